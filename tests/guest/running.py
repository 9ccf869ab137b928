"""Our kernels on our machine and on QEMU, with the same image and command line, and what they print."""

from __future__ import annotations

import functools
import subprocess
import tempfile
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from elftools.elf.elffile import ELFFile

from emu import Machine
from emu.boot import Boot
from emu.debug.symbols import Symbols
from emu.machine import Stop
from emu.traffic import TrafficSpec
from kernels.build import build_all, project_root
from tests.oracles import require

RELEASES = ("old", "new")
MEMORY_MIB = 128
HALTED = "System halted"
"""The last line of a kernel that panicked; it does not switch the machine off."""


@functools.cache
def elf(release: str) -> Path:
    """The ELF file of a release, built if need be."""
    return build_all(project_root(), [f"kernel-{release}"])[f"kernel-{release}"]


@functools.cache
def symbols(release: str) -> Symbols:
    return Symbols.read(elf(release))


@dataclass(frozen=True)
class Run:
    """A run on our machine. The machine is closed; `text` is the console without carriage returns."""

    text: str
    stop: Stop
    image: bytes
    """the kernel's image as it was in memory at the end, from `_text` to `_end`"""
    base: int
    """address of `_text`"""

    def read(self, address: int, size: int) -> bytes:
        """Bytes of the image at a virtual address."""
        at = address - self.base
        assert 0 <= at <= at + size <= len(self.image), f"{address:#x} is not in the image"
        return self.image[at : at + size]


def on_luemu(
    release: str,
    cmdline: str = "",
    *,
    memory_mib: int = MEMORY_MIB,
    max_instructions: int = 200_000_000,
    max_seconds: int = 20,
    entry: str = "auto",
    initramfs: bytes = b"",
    prepare: Callable[[Machine], None] | None = None,
    devices: Sequence[str] = (),
    traffic: TrafficSpec | str | None = None,
) -> Run:
    """Boot the ELF file and run until the machine stops; a kernel that does not end fails the caller's
    look at `stop`. It has `max_seconds` of its own time too, for one that sleeps forever. `prepare`
    changes the machine before the first instruction; `devices` are added to it, with
    `traffic` at the end of the network card's cable."""
    names = symbols(release)
    start, end = names.address("_text"), names.address("_end")
    assert start is not None and end is not None
    with Machine(memory_mib << 20, devices=tuple(devices), traffic=traffic) as m:
        m.boot(Boot(kernel=elf(release).read_bytes(), cmdline=cmdline, entry=entry, initrd=initramfs))
        if prepare is not None:
            prepare(m)
        stop = m.run(max_seconds * 10**9, max_instructions=max_instructions)
        text = m.console.decode("ascii").replace("\r\n", "\n")
        image = m.memory.read(_load_address(elf(release)), end - start).tobytes()
        return Run(text, stop, image, start)


@functools.cache
def _load_address(path: Path) -> int:
    """Where the boot loader puts the first byte of an ELF file."""
    with path.open("rb") as f:
        return min(int(s["p_paddr"]) for s in ELFFile(f).iter_segments() if s["p_type"] == "PT_LOAD")


def on_qemu(
    release: str,
    cmdline: str = "",
    *,
    machine: str = "q35",
    memory_mib: int = MEMORY_MIB,
    initramfs: bytes = b"",
    timeout: float = 60,
    devices: Sequence[str] = (),
    arguments: Sequence[str] = (),
) -> str:
    """What the kernel prints on QEMU until it switches the machine off or halts after a panic. What
    firmware prints before it is left out. Skips the test without QEMU, fails it after `timeout` seconds.
    `devices` are arguments of `-device`, `arguments` come before them."""
    command: list[str | Path] = [require("qemu-system-x86_64"), "-accel", "tcg", "-machine", machine]
    command += ["-cpu", "EPYC", "-m", str(memory_mib), "-nodefaults", "-display", "none", "-no-reboot"]
    command += ["-serial", "stdio", "-serial", "null", "-kernel", elf(release), "-append", cmdline]
    command += arguments
    for device in devices:
        command += ["-device", device]
    lines: list[str] = []
    with tempfile.TemporaryFile() as errors, tempfile.NamedTemporaryFile() as archive:
        if initramfs:
            archive.write(initramfs)
            archive.flush()
            command += ["-initrd", archive.name]
        qemu = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=errors)
        assert qemu.stdout is not None
        late = threading.Timer(timeout, qemu.kill)
        late.start()
        ended = False
        try:
            for raw in qemu.stdout:
                lines.append(raw.decode("ascii", "replace").rstrip("\r\n"))
                if lines[-1] == HALTED:
                    ended = True
                    break
            else:
                ended = qemu.wait() == 0
        finally:
            late.cancel()
            qemu.kill()
            qemu.wait()
            qemu.stdout.close()
        errors.seek(0)
        said = errors.read().decode(errors="replace")
    assert ended, f"QEMU neither switched off nor halted: {said}\n" + "\n".join(lines[-20:])
    first = next((i for i, line in enumerate(lines) if "luemu kernel " in line), None)
    assert first is not None, "no line of the kernel:\n" + "\n".join(lines)
    lines[first] = lines[first][lines[first].index("luemu kernel ") :]
    return "\n".join(lines[first:]) + "\n"
