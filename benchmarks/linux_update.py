"""From the KEXEC record of the old kernel to the HELLO of the new one: ours against QEMU.

The same bzImage, initramfs and command line on both; runs alternate, so that a host whose speed
drifts slows both. QEMU: TCG as it comes, and with `-icount shift=0,sleep=off`, which is its own exactly
counted mode. Figures are seconds of wall time, medians; what counts are the ratios.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks.ratios import medians
from emu.debug.chain import LINUX_CMDLINE
from emu.debug.options import Options
from emu.debug.update import Update
from emu.debug.userspace import initramfs
from emu.initproto import RecordReader, Transcript

SPEC = "S:one F:0x1:4K:all"


def _options(kernel: Path, lu: Path) -> Options:
    return Options(
        old=kernel,
        new=kernel,
        before=[f"lu s1 {SPEC}"],
        after=[f"lu s2 {SPEC}"],
        files=[(lu, "/bin/lu")],
        raw=True,
    )


class Stopwatch:
    """Notes when the KEXEC record and the next HELLO arrive."""

    def __init__(self) -> None:
        self.kexec = 0.0
        self.hello = 0.0

    def see(self, transcript: Transcript) -> None:
        now = time.perf_counter()
        if transcript.kexecs and not self.kexec:
            self.kexec = now
        if len(transcript.generations) > 1 and not self.hello:
            self.hello = now

    @property
    def seconds(self) -> float:
        if not self.kexec or not self.hello:
            raise RuntimeError("the update did not take place: run it with `luemu run` to see why")
        return self.hello - self.kexec


def ours(kernel: Path, lu: Path) -> float:
    """Seconds from the KEXEC record to the second user space on our machine."""
    update = Update(_options(kernel, lu))
    watch = Stopwatch()
    update.on_records = watch.see
    update.run()
    update.machine.close()
    return watch.seconds


def qemu(kernel: Path, lu: Path, extra: Sequence[str] = ()) -> float:
    """The same on QEMU; the records arrive through a pipe."""
    program = shutil.which("qemu-system-x86_64")
    if program is None:
        raise RuntimeError("qemu-system-x86_64 is not installed: apt-get install qemu-system-x86")
    # The machine that the initramfs is taken from is never run.
    update = Update(_options(kernel, lu))
    archive = initramfs(update.options, update.chain)
    update.machine.close()
    with tempfile.TemporaryDirectory() as folder:
        initrd, pipe = Path(folder) / "initramfs", Path(folder) / "records"
        initrd.write_bytes(archive)
        os.mkfifo(f"{pipe}.out")
        os.mkfifo(f"{pipe}.in")
        command: list[str | Path] = [
            program, "-machine", "q35", "-accel", "tcg", "-cpu", "EPYC", "-m", "512", "-display", "none",
            "-monitor", "none", "-no-reboot", "-net", "none", "-vga", "none", "-kernel", kernel,
            "-initrd", initrd, "-append", f"{LINUX_CMDLINE} luemu.generation=0", "-serial", "null",
            "-serial", f"pipe:{pipe}", *extra,
        ]  # fmt: skip
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        reader, transcript, watch = RecordReader(), Transcript(), Stopwatch()
        try:
            hold = os.open(f"{pipe}.in", os.O_RDWR)
            with Path(f"{pipe}.out").open("rb", buffering=0) as stream:
                while not watch.hello:
                    data = stream.read(4096)
                    if not data:
                        break
                    transcript.add(reader.feed(data))
                    watch.see(transcript)
            os.close(hold)
        finally:
            process.kill()
            process.wait()
    return watch.seconds


def run(kernel: Path, lu: Path, rounds: int = 3) -> dict[str, float]:
    """Medians in seconds, and the two ratios."""
    mine: list[float] = []
    tcg: list[float] = []
    icount: list[float] = []
    for _ in range(rounds):
        mine.append(ours(kernel, lu))
        tcg.append(qemu(kernel, lu))
        icount.append(qemu(kernel, lu, ["-icount", "shift=0,sleep=off"]))
    return medians(mine, tcg, icount)
