"""What a bus master asks of memory: translated where there is an IOMMU, done at once, and told about.

A device calls `PciFunction.dma_read` and `dma_write` at its virtual time, with the addresses its driver
gave it; they come here with the function's requester id. A request is cut where the translation changes and
no finer, and observers are told of each piece before it is done. A piece that is refused, or that finds no
RAM, reads as all ones and is dropped when written, as on a bus where nobody answers. There is no access
from device to device.

A write of four aligned bytes to 0xFEExxxxx is no memory access but an interrupt message (SDM 12.11), and
goes through interrupt remapping. I/O APICs send their messages here too.

Knows memory, the interrupt bus, and that there may be an IOMMU; no device, no CPU and no kernel. It has no
state of its own, and without observers it costs nothing to have them.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from emu.memory import PAGE, U8Array

MSI_BASE, MSI_SIZE = 0xFEE0_0000, 1 << 20
NOWHERE = (1 << 64) - 1
"""The physical address of a refused piece."""
NO_RAM = 0xFF
"""A fault code that no IOMMU has: the address is translated, but there is no RAM."""

Interrupt = tuple[int, int, int, bool, bool]
"""What a local APIC is told: (delivery mode, vector, destination, logical, level)."""

DmaObserver = Callable[[int, int, int, int, int, bool, int], None]
"""``observer(tick, requester, iova, phys, size, write, fault)`` for each piece, before it is done.

``requester``: bus << 8 | device << 3 | function. ``iova``: the address the device used. ``phys``: where it
goes, `NOWHERE` when refused. ``size`` in bytes. ``fault``: 0, `NO_RAM`, or the reason of the IOMMU.
"""
MessageObserver = Callable[[int, int, int, int, int], None]
"""``observer(tick, requester, address, data, fault)`` for each interrupt message, before it is remapped."""


class Ram(Protocol):
    """What devices need of `emu.memory.Memory`. Outside RAM, `copy` and `write` raise AddressError."""

    def contains(self, phys: int, size: int = 1) -> bool:
        """Whether all of it is RAM."""

    def copy(self, phys: int, size: int) -> bytes:
        """The bytes there."""

    def write(self, phys: int, data: bytes | bytearray | memoryview | U8Array, by: str) -> None:
        """Store, mark dirty, drop translated code, tell observers of memory."""


class Interrupts(Protocol):
    """The part of `emu.devices.lapic.ApicBus` that devices need; both return whether an APIC took it."""

    def message(self, address: int, data: int, now: int) -> bool:
        """An interrupt message that means what it says."""

    def deliver(self, mode: int, vector: int, destination: int, logical: bool, level: bool, now: int) -> bool:
        """An interrupt that is already decoded."""


class Iommu(Protocol):
    """What translates: `emu.devices.vtd.Vtd`, or whatever else may come."""

    def translate(self, requester: int, iova: int, write: bool, now: int) -> tuple[int, int, int]:
        """(physical address, bytes from there on that are translated alike, fault); the fault is recorded."""

    def remap(self, requester: int, address: int, data: int, now: int) -> tuple[Interrupt | None, int]:
        """(what to deliver, fault). (None, 0): not remapped, the message means what it says."""


class DmaPort:
    """The way of all bus masters to memory and to the interrupt bus."""

    def __init__(self, ram: Ram | None, interrupts: Interrupts) -> None:
        """``ram`` None: a board without memory, where all DMA finds nobody."""
        self.ram = ram
        self.interrupts = interrupts
        self.iommu: Iommu | None = None
        self.observers: list[DmaObserver] = []
        self.message_observers: list[MessageObserver] = []

    def read(self, requester: int, iova: int, size: int, now: int) -> bytes:
        """``size`` bytes at the device's address ``iova``."""
        iommu = self.iommu
        first = (iova, NOWHERE, 0) if iommu is None else iommu.translate(requester, iova, False, now)
        phys, room, fault = first
        if room >= size and not fault and self.ram is not None and self.ram.contains(phys, size):
            for observer in self.observers:
                observer(now, requester, iova, phys, size, False, 0)
            return self.ram.copy(phys, size)
        out = b""
        for at, phys, piece, fault in self._pieces(requester, iova, size, False, now, first):
            for observer in self.observers:
                observer(now, requester, at, phys, piece, False, fault)
            out += b"\xff" * piece if fault or self.ram is None else self.ram.copy(phys, piece)
        return out

    def write(self, requester: int, iova: int, data: bytes, now: int, by: str = "dma") -> None:
        """Store ``data`` at the device's address ``iova``. ``by`` names the writer to observers of memory."""
        size = len(data)
        if size == 4 and iova >> 20 == MSI_BASE >> 20 and not iova & 3:
            self.message(requester, iova, int.from_bytes(data, "little"), now)
            return
        iommu = self.iommu
        first = (iova, NOWHERE, 0) if iommu is None else iommu.translate(requester, iova, True, now)
        phys, room, fault = first
        if room >= size and not fault and self.ram is not None and self.ram.contains(phys, size):
            for observer in self.observers:
                observer(now, requester, iova, phys, size, True, 0)
            self.ram.write(phys, data, by)
            return
        done = 0
        for at, phys, piece, fault in self._pieces(requester, iova, size, True, now, first):
            for observer in self.observers:
                observer(now, requester, at, phys, piece, True, fault)
            if not fault and self.ram is not None:
                self.ram.write(phys, data[done : done + piece], by)
            done += piece

    def message(self, requester: int, address: int, data: int, now: int) -> bool:
        """An interrupt message; returns whether it was taken, as far as its sender can know.

        A message that remapping refuses is gone like any posted write: its sender learns nothing.
        """
        what, fault = None, 0
        if self.iommu is not None:
            what, fault = self.iommu.remap(requester, address, data, now)
        for observer in self.message_observers:
            observer(now, requester, address, data, fault)
        if fault:
            return True
        if what is None:
            return self.interrupts.message(address, data, now)
        return self.interrupts.deliver(*what, now)

    def _pieces(
        self, requester: int, iova: int, size: int, write: bool, now: int, found: tuple[int, int, int]
    ) -> Sequence[tuple[int, int, int, int]]:
        """A request as (bus address, physical address, size, fault): as few pieces as its translation allows.

        All of it is translated before anything is done; ``found`` is what its beginning is translated to.
        """
        ram = self.ram
        if ram is None:
            return ((iova, iova, size, NO_RAM),)
        runs: list[tuple[int, int, int, int]] = []  # (bus address, physical address, size, fault)
        at, end, moved, straight = iova, iova + size, found[0] - iova, True
        phys, room, fault = found
        while True:
            if fault or phys - at != moved:
                straight = False
            if room >= end - at:
                runs.append((at & NOWHERE, phys, end - at, fault))
                break
            runs.append((at & NOWHERE, phys, room, fault))
            at += room
            assert self.iommu is not None  # without one nothing is cut
            phys, room, fault = self.iommu.translate(requester, at & NOWHERE, write, now)
        if straight and ram.contains(found[0], size):
            return ((iova, found[0], size, 0),)
        out: list[tuple[int, int, int, int]] = []
        for at, phys, room, fault in runs:
            while True:
                piece, reason = room, fault
                if not fault and not ram.contains(phys, room):
                    piece = min(room, PAGE - phys % PAGE)  # part may be RAM, which ends at a page boundary
                    reason = 0 if ram.contains(phys, piece) else NO_RAM
                if out and not reason and not out[-1][3] and out[-1][1] + out[-1][2] == phys:
                    out[-1] = (*out[-1][:2], out[-1][2] + piece, 0)
                else:
                    out.append((at, phys, piece, reason))
                room -= piece
                if not room:
                    break
                at, phys = at + piece & NOWHERE, phys + piece & NOWHERE
        return out


RECORD = np.dtype(
    [
        ("tick", "<u8"), ("iova", "<u8"), ("phys", "<u8"), ("size", "<u4"), ("requester", "<u2"),
        ("write", "u1"), ("fault", "u1"),
    ]
)  # fmt: skip
"""One piece of a DMA request in a `DmaLog`: 32 bytes."""


class DmaLog:
    """An observer that keeps every piece as a record of 32 bytes, and makes no objects of them.

    ``port.observers.append(log)``; later ``log.records()``. Ticks become instructions by subtracting the
    ticks that were skipped, and phases by where a phase began (`emu.debug`).
    """

    def __init__(self) -> None:
        self._pack = struct.Struct("<QQQIHBB").pack
        self._parts: list[bytes] = []
        self._packed: npt.NDArray[Any] = np.empty(0, RECORD)

    def __call__(
        self, tick: int, requester: int, iova: int, phys: int, size: int, write: bool, fault: int
    ) -> None:
        """Note one piece."""
        self._parts.append(self._pack(tick, iova, phys, size, requester, write, fault))

    def __len__(self) -> int:
        return len(self._packed) + len(self._parts)

    def records(self) -> npt.NDArray[Any]:
        """All pieces so far in the order in which they were done, as an array of `RECORD`."""
        if self._parts:
            new = np.frombuffer(b"".join(self._parts), RECORD)
            self._packed = np.concatenate((self._packed, new)) if len(self._packed) else new
            self._parts = []
        return self._packed
