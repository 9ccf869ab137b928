"""A recorded handover for a kernel to start on: `luemu run --incoming IMAGE`.

The image (raw, .zst, ELF core or saved machine) is memory as the kernel before left it; the .json beside it
says what memory does not: the firmware's memory map, where the root FDT is, and the scratch areas. The new
kernel is put where kexec would have put it, into scratch, with a list of the scratch areas of its own.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from pathlib import Path

from emu.boot import RAM, Range
from emu.boot import e820 as firmware_map
from emu.debug.inspect import open_any
from emu.debug.neighbour import read_neighbour
from emu.errors import ConfigError, ImageError
from emu.machine import Machine
from emu.memory import PAGE, low_split
from kho.abi import PAGE_SIZE, SETUP_KEXEC_KHO
from kho.errors import KhoError
from kho.handover import Handover
from kho.memory import PhysicalMemory
from kho.setup_data import ScratchArea

_MIB = 1 << 20
_GIB4 = 1 << 32
_STEP = 1 << 20


@dataclass(frozen=True)
class Incoming:
    """``size`` is the memory of the machine; ``expected`` has the sha256 of the files, if they are known."""

    path: Path
    memory: PhysicalMemory
    size: int
    e820: list[Range]
    fdt: int
    scratch: list[ScratchArea]
    expected: dict[str, str] = field(default_factory=dict)
    previous_release: str | None = None

    @classmethod
    def open(cls, path: Path) -> Incoming:
        """Raises ImageError for what is no image with a handover and scratch areas."""
        try:
            memory = open_any(path).memory
            if memory is None:
                raise ImageError("has no memory, only a root FDT", str(path))
            neighbour = read_neighbour(path)
            fdt = neighbour.fdt if neighbour is not None else None
            given = list(neighbour.scratch) if neighbour is not None and neighbour.scratch else None
            handover = Handover.read(memory, fdt, given, search=fdt is None)
        except KhoError as e:
            raise ImageError(e.message if e.where == str(path) else str(e), str(path)) from None
        found = handover.scratch
        if handover.fdt_phys is None or not found or not any(a.size for a in found):
            message = "nothing says where the scratch areas are: its .json has to"
            raise ImageError(message, str(path))
        entries = neighbour.e820 if neighbour is not None else []
        size = _memory_size(memory, entries)
        release = handover.metadata.previous_release if handover.metadata is not None else None
        return cls(
            path, memory, size, entries or firmware_map(size, low_split(size)), handover.fdt_phys,
            list(found), dict(neighbour.contents) if neighbour is not None else {}, release,
        )  # fmt: skip

    # ---- putting it into a machine -------------------------------------------------------------

    @property
    def _list_at(self) -> int:
        """The list of scratch areas that the new kernel is given: at the end of the largest area."""
        count = -(-16 * len(self.scratch) // PAGE_SIZE) * PAGE_SIZE
        return self._room.end - count

    @property
    def _room(self) -> ScratchArea:
        low = [area for area in self.scratch if area.end <= _GIB4]  # what the loader's page tables map
        return max(low or self.scratch, key=lambda area: area.size)

    @property
    def within(self) -> Range:
        """Where the new kernel and all that is loaded with it has to be."""
        return Range(self._room.phys, self._list_at - self._room.phys, RAM)

    def setup_data(self) -> list[tuple[int, bytes]]:
        """What leads the new kernel to the handover."""
        place = struct.pack("<QQQQ", self.fdt, PAGE_SIZE, self._list_at, 16 * len(self.scratch))
        return [(SETUP_KEXEC_KHO, place)]

    def load(self, machine: Machine) -> None:
        """Fill the memory of a fresh machine. Raises ConfigError where the image does not fit."""
        ranges = machine.memory.ranges
        for r in self.e820:
            if r.kind == RAM and not any(a <= r.start and r.start + r.size <= b for a, b in ranges):
                raise ConfigError(
                    f"its memory map has RAM at {r.start:#x} that a machine of {self.size >> 20} MiB has not",
                    str(self.path),
                )
        populated = getattr(self.memory, "populated", None)
        for start, end in populated() if populated is not None else self.memory.ranges:
            for low, high in ranges:
                for at in range(max(start, low), min(end, high), _STEP):
                    data = self.memory.read(at, min(_STEP, end - at, high - at))
                    if data.any():
                        machine.memory.write(at, data.tobytes(), by="image")
        table = b"".join(struct.pack("<QQ", area.phys, area.size) for area in self.scratch)
        machine.memory.write(self._list_at, table.ljust(PAGE, b"\0"), by="loader")


def _memory_size(memory: PhysicalMemory, entries: list[Range]) -> int:
    """Of the machine that has this memory map, or at least this memory."""
    ends = [r.start + r.size for r in entries if r.kind == RAM] or [end for _, end in memory.ranges]
    end = max(ends)
    if end > _GIB4:
        end = end - _GIB4 + low_split(1 << 40)
    return -(-end // _MIB) * _MIB


__all__ = ["Incoming"]
