"""A chain of updates of our kernels, from the first line of the first kernel to the verdict: on QEMU too.

The same images, initramfs and command line on both, junk off; runs alternate, so that a host whose speed
drifts slows both. QEMU: TCG as it comes, and with `-icount shift=0,sleep=off`, which is its own exactly
counted mode. The clock starts with the first line that the kernel prints, so the start of either program and
QEMU's firmware are left out. Figures are seconds of wall time, medians; what counts are the ratios.
"""

from __future__ import annotations

import shutil
import subprocess
import tempfile
import time
from collections.abc import Sequence

import kernels
from benchmarks.ratios import medians
from emu.boot import Boot
from emu.initramfs import Initramfs
from emu.machine import Machine

MEMORY_MIB = 512
CMDLINE = "kho=on junk=off test_kho.max_mem=32M kho_scratch=16M,0,0"
CHAIN = ("old", *("new", "old") * 4)
FIRST, LAST = b"luemu kernel ", b"luemu: verdict "


def _initramfs() -> bytes:
    files = Initramfs()
    for release in set(CHAIN):
        files.add_file(f"/boot/{release}", kernels.binary(f"{release}.bzImage").read_bytes())
    files.add_file("/boot/chain", "".join(f"/boot/{release}\n" for release in CHAIN[1:]).encode())
    return files.build()


class Stopwatch:
    """Notes when the first and the last line of the console arrive."""

    def __init__(self) -> None:
        self.line = bytearray()
        self.first = 0.0
        self.last = 0.0
        self.verdict = ""

    def see(self, data: bytes) -> None:
        for value in data:
            self.line.append(value)
            if not self.first and self.line.endswith(FIRST):
                self.first = time.perf_counter()
            if value == 10:
                if self.line.startswith(LAST):
                    self.last = time.perf_counter()
                    self.verdict = self.line.decode().strip()
                self.line.clear()

    @property
    def seconds(self) -> float:
        if self.verdict != "luemu: verdict ok":
            raise RuntimeError(f"the chain of updates went wrong: {self.verdict or 'no verdict'}")
        return self.last - self.first


def ours(initramfs: bytes) -> tuple[float, int]:
    """Seconds on our machine, and the instructions of the whole run."""
    watch = Stopwatch()
    with Machine(MEMORY_MIB << 20) as m:
        m.serial_sinks.append(lambda port, value, now: watch.see(bytes((value,))) if port == 0 else None)
        m.boot(Boot(kernels.binary("old.elf").read_bytes(), CMDLINE, initramfs))
        m.run(max_instructions=20_000_000_000)
        return watch.seconds, m.instructions


def qemu(initramfs: bytes, extra: Sequence[str] = ()) -> float:
    """The same on QEMU; the console arrives through a pipe."""
    program = shutil.which("qemu-system-x86_64")
    if program is None:
        raise RuntimeError("qemu-system-x86_64 is not installed: apt-get install qemu-system-x86")
    watch = Stopwatch()
    with tempfile.NamedTemporaryFile() as archive:
        archive.write(initramfs)
        archive.flush()
        command = [
            program, "-machine", "q35", "-accel", "tcg", "-cpu", "EPYC", "-m", str(MEMORY_MIB), "-nodefaults",
            "-display", "none", "-no-reboot", "-serial", "stdio", "-kernel", str(kernels.binary("old.elf")),
            "-initrd", archive.name, "-append", CMDLINE, *extra,
        ]  # fmt: skip
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, bufsize=0
        )
        assert process.stdout is not None
        try:
            while data := process.stdout.read(4096):
                watch.see(data)
        finally:
            process.kill()
            process.wait()
            process.stdout.close()
    return watch.seconds


def run(rounds: int = 3) -> dict[str, float]:
    """Medians in seconds, and the two ratios."""
    initramfs = _initramfs()
    mine: list[float] = []
    tcg: list[float] = []
    icount: list[float] = []
    instructions = 0
    for _ in range(rounds):
        seconds, instructions = ours(initramfs)
        mine.append(seconds)
        tcg.append(qemu(initramfs))
        icount.append(qemu(initramfs, ["-icount", "shift=0,sleep=off"]))
    return {"million_instructions": instructions / 1e6, **medians(mine, tcg, icount)}
