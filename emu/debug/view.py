"""Structures of a running kernel of the project, read from the host.

Offsets come from the debug information of the release that runs, so nothing here depends on which one it is;
names are those of kernels/include. Where the kernel's memory is not as it must be, `UnknownLayout` says what.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from emu.debug.guest import KernelMemory, UnknownLayout
from emu.debug.layout import Structure
from emu.debug.release import Kernel
from emu.debug.struct_pages import StructPages
from emu.errors import AddressError, ImageError
from emu.machine import Machine
from emu.memory import PAGE
from kho.abi import RESTORE_MAGIC
from kho.memory import Words
from kho.setup_data import ScratchArea

# kernels/include/page.h, pagecache.h and memblock.h, compared by a test
PG_BUDDY, PG_RESERVED, PG_PINNED = 1, 2, 1 << 10
RSRV_NOINIT, RSRV_KERN, KHO_SCRATCH = 0x10, 0x20, 0x40
PAGEBLOCK = 2 << 20
REGIONS_MAX = 1 << 24
SCRATCH_MAX = 4096
_PRESENT, _WRITABLE, _LARGE = 1, 2, 0x80
_ADDRESS = 0x000F_FFFF_FFFF_F000
_RUN_PAGES_MAX = 4096


@dataclass(frozen=True)
class Regions:
    """A list of memblock: first and last-plus-one address of each region, and its flags."""

    base: Words
    end: Words
    flags: NDArray[np.uint32]

    def joined(self, flag: int) -> Regions:
        """Those with a flag, neighbours as one."""
        mine = (self.flags & np.uint32(flag)) != 0
        base, end = self.base[mine], self.end[mine]
        if not len(base):
            return Regions(base, end, self.flags[mine])
        cut = np.flatnonzero(base[1:] != end[:-1]) + 1
        first = np.concatenate(([0], cut))
        last = np.concatenate((cut, [len(base)])) - 1
        return Regions(base[first], end[last], self.flags[mine][first])

    def covers(self, low: Words, high: Words) -> NDArray[np.bool_]:
        """For each [low, high) whether it lies in one region."""
        if not len(self.base):
            return np.zeros(len(low), np.bool_)
        at = np.searchsorted(self.base, low, side="right").astype(np.int64) - 1
        return np.asarray((at >= 0) & (high <= self.end[np.maximum(at, 0)]), np.bool_)


class View(KernelMemory):
    """A stopped machine that runs a kernel of the project: make a new one whenever it has run on.

    Methods raise UnknownLayout.
    """

    def __init__(self, machine: Machine, kernel: Kernel, registers: dict[str, int] | None = None) -> None:
        """``registers`` are the CPU's, from whoever has them already."""
        self.registers = machine.cpus[0].registers() if registers is None else registers
        super().__init__(machine, self.registers["cr3"])
        self.kernel = kernel

    # ---- memory --------------------------------------------------------------------------------

    def symbol(self, name: str) -> int:
        """Address of a variable or function."""
        address = self.kernel.symbols.address(name) if self.kernel.symbols is not None else None
        if address is None:
            raise UnknownLayout(f"the kernel has no {name}")
        return address

    def struct(self, name: str) -> Structure:
        """Layout of a structure."""
        try:
            return self.kernel.layouts.struct(name)
        except ImageError as e:
            raise UnknownLayout(str(e)) from None

    def variable(self, name: str, size: int = 8) -> int:
        """Value of a variable."""
        return self.number(self.symbol(name), size)

    def member(self, address: int, struct: str, path: str) -> int:
        """Value of a member, or member of a member, of the structure at a virtual address."""
        *outer, last = path.split(".")
        for name in outer:
            found = self.struct(struct)[name]
            address, struct = address + found.offset, found.type
        try:
            found = self.struct(struct)[last]
        except ImageError as e:
            raise UnknownLayout(str(e)) from None
        return self.number(address + found.offset, found.size)

    # ---- memblock and boot -----------------------------------------------------------------------

    def regions(self, which: str) -> Regions:
        """memblock.memory or memblock.reserved."""
        at = self.symbol("memblock")
        count = self.member(at, "memblock", f"{which}.cnt")
        room = self.member(at, "memblock", f"{which}.max")
        region = self.struct("memblock_region")
        if not count <= room <= REGIONS_MAX or region.size % 8:
            raise UnknownLayout(f"memblock.{which} has {count} of {room} regions")
        raw = self.read(self.member(at, "memblock", f"{which}.regions"), region.size * count)
        words = np.frombuffer(raw, "<u8").reshape(count, region.size // 8)
        base = words[:, region.offset("base") // 8]
        end = base + words[:, region.offset("size") // 8]
        flags = words[:, region.offset("flags") // 8] >> np.uint64(8 * (region.offset("flags") % 8))
        if bool((end < base).any()) or bool((base[1:] < end[:-1]).any()):
            raise UnknownLayout(f"the regions of memblock.{which} are not in order")
        return Regions(base, end, flags.astype(np.uint32))

    @property
    def scratch_only(self) -> bool:
        """Whether memblock allocates from scratch alone."""
        return bool(self.member(self.symbol("memblock"), "memblock", "scratch_only"))

    def scratch_list(self) -> tuple[int, list[ScratchArea]] | None:
        """Physical address of the kernel's own list of scratch areas, and the areas; None without KHO."""
        at, count = self.variable("kho_scratch"), self.variable("kho_scratch_cnt", 4)
        if not at or not count:
            return None
        if count > SCRATCH_MAX:
            raise UnknownLayout(f"kho_scratch_cnt is {count}")
        table = np.frombuffer(self.read(at, 16 * count), "<u8").reshape(-1, 2).tolist()
        return self.phys(at), [ScratchArea(addr, size) for addr, size in table]

    def boot_info(self, member: str) -> int:
        """What the boot loader handed over."""
        return self.member(self.symbol("boot_info"), "boot_info", member)

    def image(self) -> tuple[int, int]:
        """(start, end) of the kernel's image in physical memory."""
        start = self.phys(self.symbol("_text"))
        return start, start + self.symbol("_end") - self.symbol("_text")

    def unreserved_pages(self) -> int:
        """Whole pages of memory that memblock has not reserved."""
        memory, reserved = self.regions("memory"), self.regions("reserved")
        count = 0
        taken = list(zip(reserved.base.tolist(), reserved.end.tolist(), strict=True))
        for base, end in zip(memory.base.tolist(), memory.end.tolist(), strict=True):
            at = base
            for low, high in [*((a, b) for a, b in taken if b > base and a < end), (end, end)]:
                first, last = -(-at // PAGE), min(low, end) // PAGE
                count += max(0, last - first)
                at = max(at, high)
        return count

    def migratetypes(self, area: ScratchArea) -> list[tuple[int, int]]:
        """(physical address, type) of each pageblock of an area."""
        table = self.variable("pageblock_type")
        first, last = area.phys // PAGEBLOCK, -(-area.end // PAGEBLOCK)
        return [
            ((first + i) * PAGEBLOCK, kind) for i, kind in enumerate(self.read(table + first, last - first))
        ]

    # ---- struct page ---------------------------------------------------------------------------

    @cached_property
    def _vmemmap(self) -> int:
        return self.variable("vmemmap_base")

    def page_member(self, phys: Words, member: str) -> NDArray[np.int64]:
        """A member of the struct pages of these addresses. Pages of the array that the kernel never wrote
        read as zeros, as they do for the kernel."""
        page = self.struct("page")
        found = page[member]
        at = np.uint64(self._vmemmap + found.offset) + (phys >> np.uint64(12)) * np.uint64(page.size)
        out = np.zeros(len(at), np.uint64)
        pages, back = np.unique(at >> np.uint64(12), return_inverse=True)
        order = np.argsort(back, kind="stable")
        first = 0
        sizes = np.cumsum(np.bincount(back, minlength=len(pages))).tolist()
        for number, end in zip(pages.tolist(), sizes, strict=True):
            mine = order[first:end]
            first = end
            raw = np.frombuffer(self.read(number << 12, PAGE), np.uint8)
            offsets = (at[mine] & np.uint64(PAGE - 1)).astype(np.intp)
            value = np.zeros(len(mine), np.uint64)
            for byte in range(found.size):
                value |= raw[offsets + byte].astype(np.uint64) << np.uint64(8 * byte)
            out[mine] = value
        return _signed(out, found.size, member)

    def magic_pages(self) -> Words:
        """Addresses of all pages whose `private` begins with the magic of preserved memory."""
        found: list[Words] = [np.empty(0, np.uint64)]
        for first, words in self._scan("private"):
            hits = np.flatnonzero(words >> np.uint64(32) == np.uint64(RESTORE_MAGIC)).astype(np.uint64)
            found.append((hits + np.uint64(first)) << np.uint64(12))
        return np.unique(np.concatenate(found))

    def struct_pages(self) -> StructPages:
        """Where `private` of the struct pages is in physical memory, for whoever looks into an image later.
        Pages of the array that nobody wrote are left out: they read as zeros."""
        page = self.struct("page")
        member = page.offset("private")
        arrays: list[tuple[int, int, int]] = []
        for start, frames in self._written():
            for i, phys in enumerate(frames):
                at = start + PAGE * i
                # the struct pages of which `private` is in this page of the array
                first = -(-(at - self._vmemmap - member) // page.size)
                end = -(-(at + PAGE - self._vmemmap - member) // page.size)
                where = phys + self._vmemmap + first * page.size - at
                last = arrays[-1] if arrays else (0, 0, 0)
                if (last[0] + last[2] * page.size, last[1] + last[2]) == (where, first):
                    arrays[-1] = (last[0], last[1], last[2] + end - first)
                elif end > first:
                    arrays.append((where, first, end - first))
        return StructPages(page.size, member, arrays)

    def free_blocks(self) -> tuple[Words, Words]:
        """(start, end) of all blocks in the buddy allocator's lists, ascending."""
        starts: list[Words] = [np.empty(0, np.uint64)]
        for first, words in self._scan("flags"):
            hits = np.flatnonzero(words & np.uint64(PG_BUDDY)).astype(np.uint64)
            starts.append((hits + np.uint64(first)) << np.uint64(12))
        start = np.unique(np.concatenate(starts))
        order = self.page_member(start, "order").astype(np.uint64)
        return start, start + (np.uint64(PAGE) << order)

    def _scan(self, member: str) -> Iterator[tuple[int, Words]]:
        """(page frame number of the first, values) of a member, for all struct pages ever written."""
        page = self.struct("page")
        found = page[member]
        if found.offset % found.size or page.size % found.size:
            raise UnknownLayout(f"{member} of struct page is not aligned")
        dtype = np.dtype(f"<u{found.size}")
        flat = self.machine.memory.view.reshape(-1, PAGE)
        offset = self.machine.memory.offset
        for start, frames in self._written():
            numbers = np.array([offset(phys, PAGE) // PAGE for phys in frames])
            words = flat[numbers].reshape(-1).view(dtype)
            # the first struct page of which the member is in this run
            first = -(-(start - self._vmemmap - found.offset) // page.size)
            at = (self._vmemmap + first * page.size + found.offset - start) // found.size
            yield first, words[at :: page.size // found.size].astype(np.uint64)

    def _written(self) -> Iterator[tuple[int, list[int]]]:
        """(virtual address, physical pages) of stretches of the array that have memory of their own: what
        nobody wrote is mapped read-only."""
        start, frames = 0, list[int]()
        limit = max(end for _, end in self.machine.memory.ranges) >> 12
        end = self._vmemmap + (limit + 1024) * self.struct("page").size
        for address, entry in self._leaves(self._vmemmap, end):
            if not entry & _WRITABLE:
                continue
            if frames and (address != start + PAGE * len(frames) or len(frames) == _RUN_PAGES_MAX):
                yield start, frames
                frames = []
            if not frames:
                start = address
            frames.append(entry & _ADDRESS)
        if frames:
            yield start, frames

    def _table(self, phys: int) -> list[int]:
        try:
            return self.machine.memory.read(phys, PAGE).view("<u8").tolist()  # type: ignore[no-any-return]
        except AddressError as e:
            raise UnknownLayout(f"a page table is at {phys:#x}: {e.message}") from None

    def _leaves(self, start: int, end: int) -> Iterator[tuple[int, int]]:
        """(virtual address, entry) of the 4 KiB pages of [start, end) that are present."""
        quiet: dict[int, bool] = {}
        """tables all of whose entries are read-only: shared many times over"""
        top = self._table(self.registers["cr3"] & _ADDRESS)
        for at in range(start & -(1 << 39), end, 1 << 39):
            upper = top[at >> 39 & 511]
            for gib, middle in enumerate(self._table(upper & _ADDRESS) if upper & _PRESENT else ()):
                base = at + (gib << 30)
                if not middle & _PRESENT or base >= end or base + (1 << 30) <= start:
                    continue
                for mib, lower in enumerate(self._table(middle & _ADDRESS)):
                    where = base + (mib << 21)
                    if not lower & _PRESENT or where >= end or where + (1 << 21) <= start:
                        continue
                    if lower & _LARGE:
                        raise UnknownLayout(f"{where:#x} is mapped by a large page")
                    table = lower & _ADDRESS
                    if table not in quiet:
                        entries = self.machine.memory.read(table, PAGE).view("<u8")
                        quiet[table] = not bool((entries & np.uint64(_WRITABLE)).any())
                    if not quiet[table]:
                        for i, entry in enumerate(self._table(table)):
                            if entry & _PRESENT and start <= where + (i << 12) < end:
                                yield where + (i << 12), entry


def took_handover(machine: Machine, kernel: Kernel) -> bool:
    """Whether a kernel of the project has accepted what it was handed, once it has looked at it."""
    view = View(machine, kernel)
    return bool(view.member(view.symbol("kho_in"), "kho_in", "fdt"))


def _signed(values: Words, size: int, member: str) -> NDArray[np.int64]:
    if member == "refcount" and size == 4:
        return values.astype(np.uint32).view(np.int32).astype(np.int64)
    return values.view(np.int64)


__all__ = ["Regions", "View", "took_handover"]
