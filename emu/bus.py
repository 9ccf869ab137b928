"""I/O port and MMIO decoding: which device answers at an address.

Knows `Region`s and addresses, no device and no CPU. RAM is not here: the CPU reaches it without the bus.
The local APIC page is not here either: each CPU sees its own, so the platform looks there first.

An address that nothing decodes behaves as on a PC: reads give all ones and writes are dropped. Both are
counted by address range and reported through ``on_unclaimed``, so that a strict run can end there.

The caller has run all clock events due at or before ``now``.
"""

from __future__ import annotations

from bisect import bisect_right, insort
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal

from emu.devices.device import Region
from emu.errors import ConfigError

Kind = Literal["io", "mmio"]

_MASK = {1: 0xFF, 2: 0xFFFF, 4: 0xFFFF_FFFF, 8: 0xFFFF_FFFF_FFFF_FFFF}
_LIMIT = {"io": 1 << 16, "mmio": 1 << 52}
_WIDTHS = (1, 2, 4, 8)
_RANGE_SHIFT = {"io": 3, "mmio": 12}
_RANGES_MAX = 4096


@dataclass(frozen=True)
class Unclaimed:
    """One access that nothing decoded. ``address`` is the first byte that nobody claimed."""

    kind: Kind
    write: bool
    address: int
    size: int
    now: int


class Bus:
    """Decodes ports and physical addresses to the regions of devices."""

    def __init__(self, on_unclaimed: Callable[[Unclaimed], None] | None = None) -> None:
        self.on_unclaimed = on_unclaimed
        self.unclaimed: dict[str, int] = {}
        """Accesses nobody claimed: ``"io read 0x2e8"`` → how often. The address is that of the 8-port
        group or of the page; past 4096 ranges the rest is counted as ``"io read elsewhere"`` and so on."""
        self._ports: dict[int, Region] = {}
        self._mmio: list[Region] = []
        self._mmio_bases: list[int] = []

    # --- who is there ---

    def add(self, region: Region) -> None:
        """Register ``region``. ConfigError when it is malformed or overlaps another."""
        where = f"{region.kind} {region.base:#x}+{region.size:#x}"
        if region.width not in _WIDTHS or (region.kind == "io" and region.width > 4):
            raise ConfigError(f"a region cannot take accesses {region.width} bytes wide", where)
        if region.size <= 0 or region.base < 0 or region.base + region.size > _LIMIT[region.kind]:
            raise ConfigError(f"the region does not fit into the {region.kind} address space", where)
        taken = self.overlapping(region.kind, region.base, region.size)
        if taken is not None:
            raise ConfigError(f"the region overlaps {taken.kind} {taken.base:#x}+{taken.size:#x}", where)
        if region.kind == "io":
            for port in range(region.base, region.base + region.size):
                self._ports[port] = region
        else:
            insort(self._mmio, region, key=lambda r: r.base)
            insort(self._mmio_bases, region.base)

    def add_all(self, regions: Iterable[Region]) -> None:
        """Register several regions."""
        for region in regions:
            self.add(region)

    def remove(self, region: Region) -> None:
        """Take back a region that `add` registered (a BAR that moved). ConfigError when it is not there."""
        if self.at(region.kind, region.base) is not region:
            where = f"{region.kind} {region.base:#x}+{region.size:#x}"
            raise ConfigError("the region is not registered", where)
        if region.kind == "io":
            for port in range(region.base, region.base + region.size):
                del self._ports[port]
        else:
            index = self._mmio.index(region)
            del self._mmio[index], self._mmio_bases[index]

    def at(self, kind: Kind, address: int) -> Region | None:
        """The region that decodes ``address``, or None."""
        if kind == "io":
            return self._ports.get(address)
        index = bisect_right(self._mmio_bases, address) - 1
        if index < 0:
            return None
        region = self._mmio[index]
        return region if address < region.base + region.size else None

    def overlapping(self, kind: Kind, base: int, size: int) -> Region | None:
        """The lowest registered region that shares an address with ``[base, base + size)``, or None."""
        if kind == "io":
            return next((self._ports[p] for p in range(base, base + size) if p in self._ports), None)
        found = self.at("mmio", base)
        if found is None:
            index = bisect_right(self._mmio_bases, base)
            if index < len(self._mmio) and self._mmio_bases[index] < base + size:
                found = self._mmio[index]
        return found

    # --- accesses ---

    def port_read(self, port: int, size: int, now: int) -> int:
        """IN: ``size`` 1, 2 or 4."""
        region = self._ports.get(port)
        if region is not None:
            offset = port - region.base
            if size <= region.width and offset + size <= region.size:
                return region.read(offset, size, now) & _MASK[size]
        return self._read_pieces("io", port, size, now)

    def port_write(self, port: int, size: int, value: int, now: int) -> None:
        """OUT: ``size`` 1, 2 or 4."""
        region = self._ports.get(port)
        if region is not None:
            offset = port - region.base
            if size <= region.width and offset + size <= region.size:
                region.write(offset, size, value & _MASK[size], now)
                return
        self._write_pieces("io", port, size, value, now)

    def mmio_read(self, address: int, size: int, now: int) -> int:
        """A load: ``size`` 1, 2, 4 or 8."""
        region = self.at("mmio", address)
        if region is not None:
            offset = address - region.base
            if size <= region.width and offset + size <= region.size:
                return region.read(offset, size, now) & _MASK[size]
        return self._read_pieces("mmio", address, size, now)

    def mmio_write(self, address: int, size: int, value: int, now: int) -> None:
        """A store: ``size`` 1, 2, 4 or 8."""
        region = self.at("mmio", address)
        if region is not None:
            offset = address - region.base
            if size <= region.width and offset + size <= region.size:
                region.write(offset, size, value & _MASK[size], now)
                return
        self._write_pieces("mmio", address, size, value, now)

    def read(self, kind: Kind, address: int, size: int, now: int) -> int:
        """A read of either kind."""
        return (self.port_read if kind == "io" else self.mmio_read)(address, size, now)

    def write(self, kind: Kind, address: int, size: int, value: int, now: int) -> None:
        """A write of either kind."""
        (self.port_write if kind == "io" else self.mmio_write)(address, size, value, now)

    # --- state ---

    def state(self) -> dict[str, int]:
        """The counters of unclaimed accesses. Who is registered is the machine description, not state."""
        return dict(sorted(self.unclaimed.items()))

    def load(self, state: dict[str, int]) -> None:
        """Take over what `state` returned."""
        self.unclaimed = dict(state)

    # --- accesses that do not fit one region ---

    def _pieces(self, kind: Kind, address: int, size: int) -> list[tuple[Region | None, int, int]]:
        """Cut an access into (region, address, size), lowest address first.

        A piece of a region is naturally aligned, no wider than the region takes, and ends inside it.
        Neighbouring bytes that nobody claims make one piece. Ports wrap at 64 Ki as on the ISA bus.
        """
        pieces: list[tuple[Region | None, int, int]] = []
        done = 0
        while done < size:
            here = (address + done) % _LIMIT[kind]
            region = self.at(kind, here)
            length = 1
            if region is not None:
                room = min(size - done, region.width, region.base + region.size - here)
                while length * 2 <= room and here % (length * 2) == 0:
                    length *= 2
            elif pieces and pieces[-1][0] is None:
                _, start, before = pieces.pop()
                pieces.append((None, start, before + 1))
                done += 1
                continue
            pieces.append((region, here, length))
            done += length
        return pieces

    def _read_pieces(self, kind: Kind, address: int, size: int, now: int) -> int:
        value = shift = 0
        for region, here, length in self._pieces(kind, address, size):
            mask = (1 << (8 * length)) - 1
            if region is None:
                self._nobody(kind, False, here, length, now)
                value |= mask << shift
            else:
                value |= (region.read(here - region.base, length, now) & mask) << shift
            shift += 8 * length
        return value

    def _write_pieces(self, kind: Kind, address: int, size: int, value: int, now: int) -> None:
        for region, here, length in self._pieces(kind, address, size):
            if region is None:
                self._nobody(kind, True, here, length, now)
            else:
                region.write(here - region.base, length, value & _MASK[length], now)
            value >>= 8 * length

    def _nobody(self, kind: Kind, write: bool, address: int, size: int, now: int) -> None:
        shift = _RANGE_SHIFT[kind]
        access = f"{kind} {'write' if write else 'read'}"
        key = f"{access} {address >> shift << shift:#x}"
        # A guest that walks all of physical memory must not make this grow without bound.
        if key not in self.unclaimed and len(self.unclaimed) >= _RANGES_MAX:
            key = f"{access} elsewhere"
        self.unclaimed[key] = self.unclaimed.get(key, 0) + 1
        if self.on_unclaimed is not None:
            self.on_unclaimed(Unclaimed(kind, write, address, size, now))
