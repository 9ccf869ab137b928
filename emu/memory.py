"""Guest-physical memory: sparse RAM shared with numpy, its dirty pages, hashes and page store.

RAM lies below 4 GiB up to `low` bytes and goes on at 4 GiB, as on q35. The host mapping is one
anonymous mapping that takes host memory only where the guest (or a loader) touched it.

The only way to write from the host is `Memory.write`: it invalidates translated code, marks pages
dirty and tells observers. Arrays handed out are read-only views.
"""

from __future__ import annotations

import ctypes
import hashlib
import mmap
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import numpy.typing as npt

from emu.errors import AddressError, ConfigError

PAGE = 4096
GIB4 = 1 << 32
_LOW_SPLIT = 0xB0000000  # q35: RAM that would reach the ECAM window is split ...
_LOW_MAX = 0x80000000  # ... with this much below 4 GiB
HOLE = (0xA0000, 0xC0000)
"""Legacy VGA window: decoded as a device that is not there."""
MIN_SIZE = 1 << 20
MAX_SIZE = 1 << 40

U8Array = npt.NDArray[np.uint8]
U32Array = npt.NDArray[np.uint32]
Observer = Callable[[int, int, str], None]


def low_split(size: int) -> int:
    """Bytes of RAM below 4 GiB on a machine with ``size`` bytes, as on q35."""
    return size if size < _LOW_SPLIT else _LOW_MAX


def ram_ranges(size: int) -> list[tuple[int, int]]:
    """RAM of a machine with ``size`` bytes, as sorted (start, end) pairs of physical addresses."""
    low = low_split(size)
    out = [(0, HOLE[0]), (HOLE[1], low)]
    if size > low:
        out.append((GIB4, GIB4 + size - low))
    return out


def page_ranges(pages: list[int], low: int) -> list[tuple[int, int]]:
    """Ascending page numbers as physical (start, end) ranges; ``low`` bytes of RAM are below 4 GiB."""
    out: list[tuple[int, int]] = []
    for number in pages:
        start = number * PAGE
        if start >= low:
            start += GIB4 - low
        if out and out[-1][1] == start:
            out[-1] = (out[-1][0], start + PAGE)
        else:
            out.append((start, start + PAGE))
    return out


class RamHeader(ctypes.Structure):
    """`struct ram` of the native core."""

    _fields_ = [
        ("host", ctypes.c_void_p),
        ("size", ctypes.c_uint64),
        ("low", ctypes.c_uint64),
        ("code", ctypes.c_void_p),
        ("dirty", ctypes.c_void_p),
        ("dirty_list", ctypes.c_void_p),
        ("dirty_count", ctypes.c_uint64),
        ("engines", ctypes.c_uint64),
        ("engine", ctypes.c_void_p * 64),
        ("block", ctypes.c_uint64 * 9),
    ]


_MAP_NORESERVE = 0x4000  # Linux; the mmap module has no name for it before Python 3.13


def _sparse(size: int) -> mmap.mmap:
    try:
        return mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _MAP_NORESERVE)
    except OSError as e:  # a limit of the process, or a host that does not overcommit
        raise ConfigError(f"the host gives no address space for {size:#x} bytes: {e.strerror}") from None


class _PageStore:
    """Room for page copies. Fresh memory costs a fault for each page; taken from large slabs of huge
    pages it does not. A slab lives as long as any array taken from it."""

    SLAB = 8 << 20

    def __init__(self) -> None:
        self._free: U8Array = np.empty((0, PAGE), np.uint8)

    def take(self, count: int) -> U8Array:
        """An uninitialised array (count, 4096)."""
        if count * PAGE > self.SLAB // 4:
            return np.empty((count, PAGE), np.uint8)
        if count > len(self._free):
            slab = mmap.mmap(-1, self.SLAB, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
            slab.madvise(mmap.MADV_HUGEPAGE)
            self._free = np.frombuffer(slab, np.uint8).reshape(-1, PAGE)
        out, self._free = self._free[:count], self._free[count:]
        return out


class Memory:
    """RAM of one machine.

    ``size`` bytes, a multiple of 1 MiB. Satisfies the decoder's memory interface: `ranges` and
    `read`.
    """

    def __init__(self, size: int, lib: ctypes.CDLL) -> None:
        if size % MIN_SIZE or not MIN_SIZE <= size <= MAX_SIZE:
            raise ConfigError(f"memory size must be a multiple of 1 MiB up to 1 TiB, not {size:#x} bytes")
        self.size = size
        self.low = low_split(size)
        self.ranges = ram_ranges(size)
        """RAM as sorted (start, end) pairs of physical addresses."""
        self.pages = size // PAGE
        self._lib = lib
        self._written = lib["ram_written"]  # an attribute of its own: other users set no types
        self._written.argtypes = [ctypes.c_void_p, ctypes.c_uint64, ctypes.c_uint64]
        self._written.restype = None
        self._maps = [_sparse(size), _sparse(self.pages), _sparse(self.pages), _sparse(4 * self.pages)]
        _, self._code, self._dirty, _ = self._maps
        self._ram: U8Array = np.frombuffer(self._maps[0], np.uint8)
        self._bookkeeping = [np.frombuffer(m, np.uint8) for m in self._maps[1:]]
        # One huge page would make a page that the guest touches cost 2 MiB of the host.
        self._maps[0].madvise(mmap.MADV_NOHUGEPAGE)
        # Read-only for good: the flag of a mere view of `_ram` could be set again.
        self.view: U8Array = np.frombuffer(memoryview(self._maps[0]).toreadonly(), np.uint8)
        host = self._ram.ctypes.data
        code, dirty, listed = (a.ctypes.data for a in self._bookkeeping)
        self.header = RamHeader(host=host, size=size, low=self.low, code=code, dirty=dirty, dirty_list=listed)
        self._header_at = ctypes.addressof(self.header)
        self.observers: list[Observer] = []
        self._store = _PageStore()
        self._dirty_since_snapshot: set[int] = set()
        self._dirty_since_hash: set[int] = set()
        self._page_hash: dict[int, int] = {}
        self._hash_sum = 0

    def contains(self, phys: int, size: int = 1) -> bool:
        """Whether all of ``size`` bytes at ``phys`` is RAM."""
        end = phys + size
        if phys >= HOLE[1] and end <= self.low:  # nearly always
            return True
        return any(start <= phys and end <= stop for start, stop in self.ranges)

    def offset(self, phys: int, size: int = 1) -> int:
        """Offset into RAM of ``size`` bytes at ``phys``; AddressError when not all of it is RAM."""
        if HOLE[1] <= phys <= phys + size <= self.low:
            return phys
        for start, end in self.ranges:
            if start <= phys and phys + size <= end and size >= 0:
                return phys if phys < GIB4 else phys - GIB4 + self.low
        raise AddressError(f"{size} bytes at {phys:#x} are not RAM", f"{phys:#x}")

    def read(self, phys: int, size: int) -> U8Array:
        """A read-only view of ``size`` bytes at ``phys``, valid (and live) as long as the machine."""
        at = self.offset(phys, size)
        return self.view[at : at + size]

    def copy(self, phys: int, size: int) -> bytes:
        """A copy of ``size`` bytes at ``phys``; for a few bytes much quicker than a view."""
        at = self.offset(phys, size)
        return self._maps[0][at : at + size]

    def write(self, phys: int, data: bytes | bytearray | memoryview | U8Array, by: str) -> None:
        """Write from the host. ``by`` names the writer ("loader", "dma:nic0", ...) for observers."""
        if not isinstance(data, bytes):
            data = np.frombuffer(data, np.uint8).tobytes()
        size = len(data)
        at = self.offset(phys, size)
        self._maps[0][at : at + size] = data
        page = at >> 12
        if size and (at + size > page + 1 << 12 or self._code[page] or not self._dirty[page]):
            self._written(self._header_at, at, size)  # what it knows already need not be said again
        for observer in self.observers:
            observer(phys, size, by)

    # ---- dirty pages -------------------------------------------------------------------------

    def drain(self) -> None:
        """Take over what the core noted as written."""
        count = int(self.header.dirty_count)
        if not count:
            return
        pages: U32Array = np.empty(count, np.uint32)
        self._lib.ram_drain(ctypes.byref(self.header), pages.ctypes.data_as(ctypes.c_void_p))
        numbers = pages.tolist()
        self._dirty_since_snapshot.update(numbers)
        self._dirty_since_hash.update(numbers)

    def dirty(self) -> list[int]:
        """Pages written since the last `take_dirty`, ascending."""
        self.drain()
        return sorted(self._dirty_since_snapshot)

    def populated(self) -> list[tuple[int, int]]:
        """Physical (start, end) of memory that was ever written: a search can skip the rest."""
        self.drain()
        return page_ranges(sorted(set(self._page_hash) | self._dirty_since_hash), self.low)

    def take_dirty(self) -> list[int]:
        """Pages written since the last `take_dirty`, ascending, and start anew."""
        self.drain()
        pages = sorted(self._dirty_since_snapshot)
        self._dirty_since_snapshot = set()
        return pages

    def gather(self, pages: Iterable[int]) -> tuple[U32Array, U8Array]:
        """Copies of pages: page numbers, and their contents as an array (count, 4096)."""
        numbers = np.fromiter(pages, np.uint32)
        out = self._store.take(len(numbers))
        self._lib.ram_gather(
            ctypes.byref(self.header),
            numbers.ctypes.data_as(ctypes.c_void_p),
            ctypes.c_uint64(len(numbers)),
            out.ctypes.data_as(ctypes.c_void_p),
        )
        return numbers, out

    def scatter(self, pages: dict[int, int | None]) -> None:
        """Put back page contents: page number -> host address of 4096 bytes, or None for zeros."""
        if not pages:
            return
        numbers = np.fromiter(pages, np.uint32)
        sources = (ctypes.c_void_p * len(pages))(*pages.values())
        self._lib.ram_scatter(
            ctypes.byref(self.header),
            numbers.ctypes.data_as(ctypes.c_void_p),
            ctypes.c_uint64(len(numbers)),
            sources,
        )
        self._dirty_since_hash.update(pages)

    def assume_written(self, pages: Iterable[int]) -> None:
        """Count pages as written since the beginning (they came from a file)."""
        self._dirty_since_snapshot.update(pages)

    def resident_pages(self) -> list[int]:
        """Numbers of all pages that hold a nonzero byte, ascending (those ever written are searched)."""
        self.drain()
        known = set(self._page_hash) | self._dirty_since_hash
        return sorted(p for p in known if self._ram[p * PAGE : (p + 1) * PAGE].any())

    # ---- hash --------------------------------------------------------------------------------

    def hash(self) -> int:
        """128-bit hash of all RAM; an untouched page equals a zero page.

        The sum over pages of BLAKE2b(page number, contents), so that it costs only the pages
        written since it was last asked for.
        """
        self.drain()
        table = self._page_hash
        total = self._hash_sum
        blake2b = hashlib.blake2b
        ram = self._maps[0]
        for page in self._dirty_since_hash:
            total -= table.pop(page, 0)
            content = ram[page * PAGE : (page + 1) * PAGE]
            if content != _ZERO:
                digest = blake2b(content, digest_size=16, salt=page.to_bytes(16, "little")).digest()
                value = int.from_bytes(digest, "little")
                table[page] = value
                total += value
        self._dirty_since_hash = set()
        self._hash_sum = total % (1 << 128)
        return self._hash_sum

    def close(self) -> None:
        """Unmap RAM if nobody holds a view of it; views keep it alive otherwise."""
        self._ram = self.view = np.empty(0, np.uint8)
        self._bookkeeping = []
        for m in self._maps:
            try:
                m.close()
            except BufferError:
                pass  # a view that was handed out still needs it

    def __deepcopy__(self, memo: dict[int, Any]) -> Memory:
        raise TypeError("machines are copied with snapshots")


_ZERO = bytes(PAGE)
