"""RAM, an interrupt bus that notes what arrives, and a remapping unit between them, moved by hand.

Table builders write raw numbers: what the specification says and not what the model computes.
"""

from __future__ import annotations

import struct

import numpy as np

from emu.clock import Clock
from emu.devices import vtd
from emu.devices.vtd import Vtd
from emu.dma import DmaLog, DmaPort
from emu.errors import AddressError
from emu.memory import U8Array

MIB = 1 << 20
GCMD, GSTS, FSTS, FECTL, IQH, IQT, IQA, IRTA = 0x18, 0x1C, 0x34, 0x38, 0x80, 0x88, 0x90, 0xB8
TE, SRTP, QIE, IRE, SIRTP, CFI = 1 << 31, 1 << 30, 1 << 26, 1 << 25, 1 << 24, 1 << 23
FRCD = 0x200


class FakeRam:
    """RAM at [0, 16 MiB) and [4 GiB, 4 GiB + 16 MiB)."""

    SIZE = 16 * MIB
    HIGH = 1 << 32

    def __init__(self) -> None:
        self.bytes: U8Array = np.zeros(2 * self.SIZE, np.uint8)
        self.writers: list[str] = []

    def offset(self, phys: int, size: int = 1) -> int:
        for start, at in ((0, 0), (self.HIGH, self.SIZE)):
            if start <= phys and phys + size <= start + self.SIZE and size >= 0:
                return phys - start + at
        raise AddressError("not RAM", f"{phys:#x}")

    def contains(self, phys: int, size: int = 1) -> bool:
        try:
            self.offset(phys, size)
        except AddressError:
            return False
        return True

    def copy(self, phys: int, size: int) -> bytes:
        at = self.offset(phys, size)
        return self.bytes[at : at + size].tobytes()

    def write(self, phys: int, data: bytes | bytearray | memoryview | U8Array, by: str) -> None:
        array = np.frombuffer(data, np.uint8)
        at = self.offset(phys, len(array))
        self.bytes[at : at + len(array)] = array
        self.writers.append(by)

    def put(self, phys: int, data: bytes) -> None:
        at = self.offset(phys, len(data))
        self.bytes[at : at + len(data)] = np.frombuffer(data, np.uint8)

    def put64(self, phys: int, *values: int) -> None:
        self.put(phys, struct.pack(f"<{len(values)}Q", *values))

    def get(self, phys: int, size: int) -> bytes:
        return self.copy(phys, size)


class InterruptBus:
    """Takes everything and notes it."""

    def __init__(self) -> None:
        self.delivered: list[tuple[int, int, int, bool, bool]] = []
        self.messages: list[tuple[int, int]] = []

    def message(self, address: int, data: int, now: int) -> bool:
        self.messages.append((address, data))
        return True

    def deliver(self, mode: int, vector: int, destination: int, logical: bool, level: bool, now: int) -> bool:
        self.delivered.append((mode, vector, destination, logical, level))
        return True

    def take(self) -> list[tuple[int, int, int, bool, bool]]:
        """What was delivered since the last time."""
        out, self.delivered = self.delivered, []
        return out


ROOT, CONTEXTS, TOP, QUEUE, TABLE, STATUS = 0x10000, 0x11000, 0x20000, 0x30000, 0x40000, 0x50000
"""Where the tables of `Remapping` are: root, context table of bus 0, page tables from here on, queue,
interrupt table, and a word for wait descriptors."""
DEVICE, DOMAIN = 3 << 3, 7


class Remapping:
    """A remapping unit with RAM; `device` is the requester of `dma`."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.now = 0
        self.ram = FakeRam()
        self.bus = InterruptBus()
        self.unit = Vtd(self.clock, self.ram, self.bus)
        self.port = DmaPort(self.ram, self.bus)
        self.port.iommu = self.unit
        self.log = DmaLog()
        self.port.observers.append(self.log)
        self._next_table = TOP
        self._tail = 0

    # --- registers ---

    def r(self, offset: int, size: int = 4) -> int:
        return self.unit.read(offset, size, self.now) & (1 << 8 * size) - 1

    def w(self, offset: int, value: int, size: int = 4) -> None:
        self.unit.write(offset, size, value, self.now)

    def command(self, bit: int) -> None:
        """Set a bit of GCMD as the specification wants it: status, without one-shot bits, plus the bit."""
        self.w(GCMD, self.r(GSTS) & 0x96FF_FFFF | bit)
        assert self.r(GSTS) & bit, f"bit {bit:#x} of GSTS does not come"

    def off(self, bit: int) -> None:
        self.w(GCMD, self.r(GSTS) & 0x96FF_FFFF & ~bit)
        assert not self.r(GSTS) & bit

    def records(self) -> list[tuple[int, int]]:
        """The fault records that are in use, as (low, high)."""
        both = [(self.r(FRCD + 16 * i, 8), self.r(FRCD + 16 * i + 8, 8)) for i in range(vtd.FAULTS)]
        return [(low, high) for low, high in both if high >> 63]

    def clear_faults(self) -> None:
        for i in range(vtd.FAULTS):
            self.w(FRCD + 16 * i + 12, 1 << 31)
        self.w(FSTS, 0x71)

    # --- tables ---

    def new_table(self) -> int:
        self._next_table += 0x1000
        assert self._next_table < QUEUE, "more tables than the test has room for"
        return self._next_table - 0x1000

    def context(self, source: int, low: int, high: int) -> None:
        """Write the context entry of a device on bus 0, and the root entry that leads there."""
        self.ram.put64(ROOT, CONTEXTS | 1, 0)
        self.ram.put64(CONTEXTS + 16 * source, low, high)

    def domain(
        self, source: int = DEVICE, domain: int = DOMAIN, levels: int = 3, top: int | None = None
    ) -> int:
        """Give a device a domain with empty tables; the address of its top table."""
        top = self.new_table() if top is None else top
        self.context(source, top | 1, domain << 8 | levels - 2)
        return top

    def map(self, top: int, levels: int, iova: int, entry: int, at: int = 1) -> int:
        """Write a leaf entry for ``iova`` at level ``at``; tables on the way are made. Where it stands."""
        table = top
        for level in range(levels, at, -1):
            where = table + 8 * (iova >> 12 + 9 * (level - 1) & 511)
            found = int.from_bytes(self.ram.get(where, 8), "little")
            if not found & 3:
                found = self.new_table() | 3
                self.ram.put64(where, found)
            table = found & ~0xFFF
        where = table + 8 * (iova >> 12 + 9 * (at - 1) & 511)
        self.ram.put64(where, entry)
        return where

    def translate_on(self) -> None:
        self.w(0x20, ROOT, 8)
        self.command(SRTP)
        self.command(TE)

    # --- invalidation ---

    def flush_contexts(self) -> None:
        self.w(0x28, 1 << 63 | 1 << 61, 8)

    def flush_pages(self) -> None:
        self.w(0x108, 1 << 63 | 1 << 60, 8)

    def queue_on(self, size: int = 0) -> None:
        self.w(IQT, 0, 8)
        self.w(IQA, QUEUE | size, 8)
        self._tail = 0
        self.command(QIE)

    def submit(self, low: int, high: int = 0) -> None:
        """Put one descriptor on the queue of 256 and move the tail."""
        self.ram.put64(QUEUE + self._tail, low, high)
        self._tail = (self._tail + 16) % 4096
        self.w(IQT, self._tail, 8)

    # --- DMA ---

    def dma(self, iova: int, write: bool = False, source: int = DEVICE) -> int | None:
        """Access one byte; the physical address, or None when refused."""
        before = len(self.log)
        if write:
            self.port.write(source, iova, b"\xa5", self.now)
        else:
            self.port.read(source, iova, 1, self.now)
        records = self.log.records()
        assert len(records) == before + 1
        last = records[-1]
        return None if last["fault"] else int(last["phys"])
