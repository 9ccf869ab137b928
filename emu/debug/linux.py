"""Structures of a running Linux, read from the host.

None of them is an ABI. What is known here is Linux 7.2 on x86-64 (`struct memblock`, `struct page`,
`struct mem_section`, `struct luo_session`, `struct luo_file_set`, `struct luo_file`, `struct file`),
and every structure is checked for what it must be before anything of it is believed; where it does not
fit, `UnknownLayout` says what, and whatever needs it is reported as not checked.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from emu.debug.guest import KernelMemory, UnknownLayout
from emu.debug.luo_rules import File, Session
from emu.debug.struct_pages import StructPages
from emu.debug.symbols import Symbols
from emu.machine import Machine
from kho.abi import PAGE_SIZE, RESTORE_MAGIC
from kho.check import PageStates
from kho.memory import Words

KERNEL_SPACE = 0xFFFF_8000_0000_0000
"""Lowest virtual address that can be the kernel's."""

# memblock.h: enum memblock_flags
RSRV_NOINIT, RSRV_KERN = 0x10, 0x20
_FLAGS_KNOWN = 0x7F

# struct page, 64 bytes: flags, lru or mapping …, private, _mapcount, _refcount
_STRUCT_PAGE = 64
_PRIVATE, _REFCOUNT = 40, 52
# struct folio, in its second page: flags, head, _large_mapcount, _nr_pages_mapped, _entire_mapcount,
# _pincount
_PINCOUNT = 64 + 28
PIN = 1024
"""GUP_PIN_COUNTING_BIAS: what a pin adds to the reference count of a page that is a folio by itself."""

_SECTION_BITS, _PAGEBLOCK = 27, 2 << 20
MIGRATE_CMA = 4
"""enum migratetype: UNMOVABLE, MOVABLE, RECLAIMABLE, HIGHATOMIC, CMA."""

LIST_MAX = 1 << 20
_NAME = 64
_FILE_SET = 88
"""struct luo_session: name, list (64), retrieved (80), file_set."""
_LUO_FILE = ((64, 80), (72, 88))
"""struct luo_file: fh, file, serialized_data, private_data, retrieve_status, mutex, list, token. Where the
last two are depends on the size of a mutex."""


@dataclass(frozen=True)
class Region:
    """struct memblock_region."""

    base: int
    size: int
    flags: int

    @property
    def end(self) -> int:
        """First address after it."""
        return self.base + self.size


class Linux(KernelMemory):
    """A running Linux, stopped: make a new one whenever it has run on.

    All methods raise UnknownLayout where something is not as it must be.
    """

    def __init__(self, machine: Machine, symbols: Symbols, registers: dict[str, int] | None = None) -> None:
        """``registers`` are the CPU's, from whoever has them already."""
        if registers is None or "cr3" not in registers:
            registers = machine.cpus[0].registers()
        paging = registers["cr0"] >> 31 and registers["efer"] & 0x400
        super().__init__(machine, registers["cr3"] if paging else None)
        self.symbols = symbols

    # ---- memory --------------------------------------------------------------------------------

    def symbol(self, name: str) -> int:
        """Address of a variable or function."""
        address = self.symbols.address(name)
        if address is None:
            raise UnknownLayout(f"the symbols have no {name}")
        return address

    def pointer(self, address: int) -> int:
        """The pointer to kernel memory at a virtual address."""
        value = self.number(address)
        if value < KERNEL_SPACE or value % 8:
            raise UnknownLayout(f"{value:#x} at {address:#x} is no pointer to a structure of the kernel")
        return value

    def where(self, address: int) -> int | None:
        """Physical address of a virtual one for a message, None if there is none."""
        try:
            return self.phys(address)
        except UnknownLayout:
            return None

    def text(self, address: int, size: int) -> str:
        """A string that ends inside its field."""
        raw, nul, _ = self.read(address, size).partition(b"\0")
        if not nul:
            raise UnknownLayout(f"the string at {address:#x} does not end")
        return raw.decode("ascii", "backslashreplace")

    def image(self) -> tuple[int, int]:
        """(start, end) of the kernel's image in physical memory."""
        first, last = self.symbol("_text"), self.symbol("_end")
        start = self.phys(first)
        if not 0 < last - first < 1 << 30 or start % PAGE_SIZE:
            raise UnknownLayout(f"the kernel image is from {first:#x} to {last:#x}")
        return start, start + last - first

    # ---- memblock ------------------------------------------------------------------------------

    def memblock(self) -> tuple[list[Region], list[Region]]:
        """memblock.memory and memblock.reserved."""
        at = self.symbol("memblock")
        if self.number(at, 1) > 1:  # bottom_up, padded; then current_limit and two struct memblock_type
            raise UnknownLayout("struct memblock does not begin with a truth value")
        return self._regions(at + 16, "memory"), self._regions(at + 56, "reserved")

    def _regions(self, at: int, what: str) -> list[Region]:
        count, room, total = self.number(at), self.number(at + 8), self.number(at + 16)
        name = self.text(self.pointer_any(at + 32), 16)
        if name != what or not 0 < count <= room <= LIST_MAX:
            raise UnknownLayout(f"memblock.{what} has {count} of {room} regions and the name {name!r}")
        raw = self.read(self.pointer(at + 24), 24 * count)  # NUMA or not: the node is in the padding
        words = np.frombuffer(raw, "<u8").reshape(-1, 3)
        base, size, flags = words[:, 0], words[:, 1], words[:, 2] & np.uint64(0xFFFF_FFFF)
        ends = base + size
        # memblock_trim_memory cuts regions to whole pages and leaves the total alone
        off = abs(int(size.sum()) - total)
        if off >= PAGE_SIZE * count or bool((base[1:] < ends[:-1]).any()) or int(flags.max()) > _FLAGS_KNOWN:
            raise UnknownLayout(f"the regions of memblock.{what} are not in order or not {total} bytes")
        return [Region(*map(int, row)) for row in zip(base, size, flags, strict=True)]

    def pointer_any(self, address: int) -> int:
        """The pointer to kernel memory of any alignment at a virtual address."""
        value = self.number(address)
        if value < KERNEL_SPACE:
            raise UnknownLayout(f"{value:#x} at {address:#x} is no pointer to kernel memory")
        return value

    def flag(self, name: str) -> bool:
        """A variable of type bool."""
        value = self.number(self.symbol(name), 1)
        if value > 1:
            raise UnknownLayout(f"{name} is {value}, no truth value")
        return value == 1

    # ---- struct page ---------------------------------------------------------------------------

    def vmemmap(self) -> int:
        """Virtual address of struct page 0."""
        base = self.number(self.symbol("vmemmap_base"))
        if base < KERNEL_SPACE or base % PAGE_SIZE:
            raise UnknownLayout(f"vmemmap_base is {base:#x}")
        return base

    def check_struct_pages(self) -> None:
        """The pages of the kernel's own code must look like it: one reference, nothing private."""
        start, _ = self.image()
        pages = np.arange(start, start + 16 * PAGE_SIZE, PAGE_SIZE, dtype=np.uint64)
        if not (self.refcount(pages) == 1).all() or self.private(pages).any():
            raise UnknownLayout("the struct pages of the kernel's code are not what they must be")

    def private(self, phys: Words) -> Words:
        """`private` of the pages at these physical addresses."""
        return self._words(phys, _PRIVATE)

    def refcount(self, phys: Words) -> NDArray[np.int32]:
        """`_refcount` of the pages at these physical addresses."""
        return (self._words(phys, _REFCOUNT & -8) >> np.uint64(32)).astype(np.uint32).view(np.int32)

    def pincount(self, phys: Words) -> NDArray[np.int32]:
        """`_pincount` of the large folios at these physical addresses."""
        return (self._words(phys, _PINCOUNT & -8) >> np.uint64(32)).astype(np.uint32).view(np.int32)

    def _words(self, phys: Words, offset: int) -> Words:
        at = np.uint64(self.vmemmap() + offset) + (phys >> np.uint64(12)) * np.uint64(_STRUCT_PAGE)
        out = np.empty(len(at), np.uint64)
        pages, back = np.unique(at >> np.uint64(12), return_inverse=True)
        order = np.argsort(back, kind="stable")
        ends = np.cumsum(np.bincount(back, minlength=len(pages)))
        first = 0
        for page, end in zip(pages.tolist(), ends.tolist(), strict=True):
            mine = order[first:end]
            words = np.frombuffer(self.read(page << 12, PAGE_SIZE), "<u8")
            out[mine] = words[((at[mine] & np.uint64(4095)) >> np.uint64(3)).astype(np.intp)]
            first = end
        return out

    def magic_pages(self) -> Words:
        """Physical addresses of all pages whose `private` begins with the magic of preserved memory."""
        base = self.vmemmap()
        memory = self.machine.memory
        found: list[Words] = [np.empty(0, np.uint64)]
        window = 2 << 20
        for start, end in memory.ranges:
            first, last = start // PAGE_SIZE, end // PAGE_SIZE
            at = base + first * _STRUCT_PAGE
            stop = base + last * _STRUCT_PAGE
            while at < stop:
                size = min(window - at % window, stop - at)
                number = (at - base) // _STRUCT_PAGE
                for offset, raw in self._pieces(at, size):
                    private = raw.view("<u8").reshape(-1, _STRUCT_PAGE // 8)[:, _PRIVATE // 8]
                    hits = np.flatnonzero(private >> np.uint64(32) == np.uint64(RESTORE_MAGIC))
                    frames = hits.astype(np.uint64) + np.uint64(number + offset // _STRUCT_PAGE)
                    found.append(frames << np.uint64(12))
                at += size
        return np.concatenate(found)

    def _pieces(self, address: int, size: int) -> Iterator[tuple[int, NDArray[np.uint8]]]:
        """(offset, bytes) of what is mapped: the whole where it is physically contiguous, else by pages."""
        first, last = self.where(address), self.where(address + size - 1)
        if first is not None and last == first + size - 1 and not first % (2 << 20) and size == 2 << 20:
            yield 0, self.machine.memory.read(first, size)
            return
        for offset in range(0, size, PAGE_SIZE):
            at = self.where(address + offset)
            if at is not None:
                yield offset, self.machine.memory.read(at, min(PAGE_SIZE, size - offset))

    def page_states(self) -> PageStates:
        """For `kho.check`. `magic_pages` is not there before all struct pages are initialised."""
        self.check_struct_pages()
        return PageStates(self.private)

    def struct_pages(self) -> StructPages:
        """Where they are in physical memory, for whoever looks into an image later."""
        self.check_struct_pages()
        base, step = self.vmemmap(), 2 << 20
        arrays: list[tuple[int, int, int]] = []
        for start, end in self.machine.memory.ranges:
            at, stop = (base + edge // PAGE_SIZE * _STRUCT_PAGE for edge in (start, end))
            while at < stop:
                size = min(step - at % step, stop - at)
                phys = self.where(at)
                if phys is None or self.where(at + size - 1) != phys + size - 1:
                    size = min(PAGE_SIZE - at % PAGE_SIZE, stop - at)
                if phys is not None:
                    frame, count = (at - base) // _STRUCT_PAGE, size // _STRUCT_PAGE
                    last = arrays[-1] if arrays else (0, 0, 0)
                    if last[0] + last[2] * _STRUCT_PAGE == phys and last[1] + last[2] == frame:
                        arrays[-1] = (last[0], last[1], last[2] + count)
                    else:
                        arrays.append((phys, frame, count))
                at += size
        return StructPages(_STRUCT_PAGE, _PRIVATE, arrays)

    # ---- pageblocks ----------------------------------------------------------------------------

    def migratetypes(self, start: int, size: int) -> list[tuple[int, int]]:
        """(physical address, migratetype) of each pageblock of 2 MiB in a range."""
        roots = self.pointer(self.symbol("mem_section"))
        vmemmap = self.vmemmap()
        out: list[tuple[int, int]] = []
        blocks: dict[int, bytes] = {}
        for phys in range(start & -_PAGEBLOCK, start + size, _PAGEBLOCK):
            number = phys >> _SECTION_BITS
            if number not in blocks:
                # struct mem_section: section_mem_map, usage; 256 to a page
                at = self.pointer(roots + 8 * (number // 256)) + 16 * (number % 256)
                if self.number(at) & ~0x3F != vmemmap or not self.number(at) & 1:
                    raise UnknownLayout(f"memory section {number} is not as it must be")
                # struct mem_section_usage: rcu, a map of 64 bits, one byte for each pageblock
                flags = self.read(self.pointer(at + 8) + 24, 64)
                if any(b & 0xE0 or b & 7 > MIGRATE_CMA for b in flags):
                    raise UnknownLayout(f"the flags of the pageblocks of section {number} make no sense")
                blocks[number] = flags
            at = (phys & (1 << _SECTION_BITS) - 1) // _PAGEBLOCK
            out.append((phys, blocks[number][at] & 7))
        return out

    # ---- LUO -----------------------------------------------------------------------------------

    def _list(self, head: int) -> Iterator[int]:
        """Addresses of the entries of a struct list_head."""
        last, at = head, self.pointer(head)
        for _ in range(LIST_MAX):
            if self.pointer(at + 8) != last:
                raise UnknownLayout(f"the list at {head:#x} is not linked both ways")
            if at == head:
                return
            yield at
            last, at = at, self.pointer(at)
        raise UnknownLayout(f"the list at {head:#x} does not end")

    def sessions(self, which: str) -> list[Session]:
        """The "incoming" or "outgoing" sessions of struct luo_session_global."""
        at = self.session_header(which)
        count = self.number(at)
        out: list[Session] = []
        for entry in self._list(at + 8):
            session = entry - _NAME
            retrieved = self.number(session + 80, 1)
            name = self.text(session, _NAME)
            if retrieved > 1 or not name:
                raise UnknownLayout(f"the structure at {session:#x} is no session")
            file_set = session + _FILE_SET
            out.append(Session(session, name, file_set, self.files(file_set)))
        if len(out) != count:
            raise UnknownLayout(f"there are {len(out)} {which} sessions, {count} are counted")
        return out

    def session_header(self, which: str) -> int:
        """Address of struct luo_session_header: count, list."""
        at = self.symbol("luo_session_global")
        if which == "incoming":
            return at
        # incoming and outgoing are alike: the second begins where an empty or whole list is
        for size in range(80, 201, 8):
            link = at + size + 8
            try:
                near = self.number(link), self.number(link + 8)
                if min(near) >= KERNEL_SPACE and self.number(near[0] + 8) == link == self.number(near[1]):
                    same = self._block_set(at, size), self._block_set(at + size, size)
                    if same[0] is not None and same[0] == same[1]:
                        return at + size
            except UnknownLayout:
                continue
        raise UnknownLayout("luo_session_global does not hold two lists of sessions")

    def _block_set(self, header: int, size: int) -> int | None:
        """Offset in a header of its block set, known by the size of its entries and their number."""
        for at in range(32, size - 8, 8):
            if (self.number(header + at), self.number(header + at + 8)) == (80, 51):
                return at - 32
        return None

    def session_blocks(self) -> int:
        """Physical address of the first block that the outgoing sessions are written to, 0 if none."""
        incoming = self.session_header("incoming")
        at = self.session_header("outgoing")
        found = self._block_set(at, at - incoming)
        if found is None:
            raise UnknownLayout("the outgoing sessions have no blocks")
        return self.number(at + found + 24)

    def files(self, file_set: int) -> list[File]:
        """struct luo_file of each file of a struct luo_file_set: files_list, block_set, count."""
        count = self.number(file_set + 72)
        if (self.number(file_set + 48), self.number(file_set + 56)) != (64, 63):
            raise UnknownLayout(f"the structure at {file_set:#x} is no set of files")
        entries = list(self._list(file_set))
        if len(entries) != count:
            raise UnknownLayout(f"there are {len(entries)} files in a set, {count} are counted")
        if not entries:
            return []
        for link, token in _LUO_FILE:
            try:
                return [self._file(entry - link, token) for entry in entries]
            except UnknownLayout:
                continue
        raise UnknownLayout(f"the entries of the set of files at {file_set:#x} are no files")

    def file_blocks(self, file_set: int) -> int:
        """Physical address of the first block that a set's files are written to, 0 if none."""
        return self.number(file_set + 40)

    def _file(self, at: int, token: int) -> File:
        handler = self.pointer(at)  # struct liveupdate_file_handler: ops, compatible
        self.pointer(handler)
        compatible = self.text(handler + 8, 48)
        file, data = self.number(at + 8), self.number(at + 16)
        status = int.from_bytes(self.read(at + 32, 4), "little", signed=True)
        if not compatible or not compatible.isprintable() or not -4096 < status <= 1:
            raise UnknownLayout(f"the structure at {at:#x} is no file of LUO")
        if file and file < KERNEL_SPACE:
            raise UnknownLayout(f"the structure at {at:#x} is no file of LUO")
        return File(at, compatible, file, data, self.number(at + token))

    def inode(self, file: int) -> int:
        """struct inode of a struct file. Where its pointer is, is read from the code of memfd_luo_get_id."""
        code = self.read(self.symbol("memfd_luo_get_id"), 8)
        at = code.find(bytes.fromhex("488b47"))  # mov OFFSET(%rdi),%rax
        if at not in (0, 4):
            raise UnknownLayout("the code of memfd_luo_get_id is another one")
        return self.pointer(file + code[at + 3])

    def rwsem_writer(self, name: str) -> bool:
        """Whether a writer holds a struct rw_semaphore. Raises for a count that none can have."""
        count = self.number(self.symbol(name))
        if count & 1 and count >> 8:
            raise UnknownLayout(f"{name} has readers and a writer")
        return bool(count & 1)
