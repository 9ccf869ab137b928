"""The one thing that decoders know about memory: "read N bytes at physical address P".

`PhysicalMemory` is what an image, a live machine or a saved one provides. Decoders wrap it in a `Reader`,
which checks every address against the RAM ranges first, so that a bad pointer in a handover is an
`OutOfRange` whoever provides the memory. `Buffer` is memory that can be written, for builders and tests.
"""

from __future__ import annotations

import bisect
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from kho.abi import PAGE_SIZE
from kho.errors import OutOfRange

Bytes = NDArray[np.uint8]
Words = NDArray[np.uint64]

# The most that is read at once: what a provider that has to copy may be asked to copy.
READ_MAX = 16 << 20


class PhysicalMemory(Protocol):
    """Guest-physical memory. ``ranges`` is the RAM as sorted, disjoint (start, end) pairs in bytes."""

    @property
    def ranges(self) -> Sequence[tuple[int, int]]:
        """RAM as sorted, disjoint (start, end) pairs."""
        ...

    def read(self, phys: int, size: int) -> Bytes:
        """`size` bytes at `phys` as a read-only array, a view where possible; all of them are inside one
        range.
        """
        ...


@runtime_checkable
class SparseMemory(Protocol):
    """Memory that knows which parts of it were never written and read as zero; searches skip those."""

    def populated(self) -> Iterable[tuple[int, int]]:
        """Sorted (start, end) pairs outside of which every byte is zero."""
        ...


class WritableMemory(Protocol):
    """Memory that a writer can fill."""

    def write(self, phys: int, data: bytes | Bytes) -> None:
        """Store `data` at `phys`."""
        ...


class Buffer:
    """RAM from `base` to `base + size`, all zero at first, that costs what is touched. For builders and
    tests.
    """

    def __init__(self, size: int, base: int = 0) -> None:
        self.data: Bytes = np.zeros(size, dtype=np.uint8)
        self.base = base
        self.ranges: Sequence[tuple[int, int]] = [(base, base + size)]

    def read(self, phys: int, size: int) -> Bytes:
        """A view of `size` bytes at `phys`; OutOfRange outside."""
        self._check(phys, size)
        view = self.data[phys - self.base : phys - self.base + size]
        view.flags.writeable = False
        return view

    def write(self, phys: int, data: bytes | Bytes) -> None:
        """Store `data` at `phys`; OutOfRange outside."""
        size = len(data)
        self._check(phys, size)
        source = np.frombuffer(data, dtype=np.uint8)
        self.data[phys - self.base : phys - self.base + size] = source

    def _check(self, phys: int, size: int) -> None:
        if phys < self.base or phys + size > self.base + len(self.data):
            raise OutOfRange(f"{size} bytes are outside the buffer", f"{phys:#x}")


class Reader:
    """Checked, typed reads from a `PhysicalMemory`. All errors are OutOfRange."""

    def __init__(self, memory: PhysicalMemory) -> None:
        self.memory = memory
        self._provided = sorted(memory.ranges)
        self.ranges: list[tuple[int, int]] = merge(self._provided)
        self._starts = [start for start, _ in self.ranges]
        self._start_array = np.array(self._starts, dtype=np.uint64)
        self._end_array = np.array([min(end, (1 << 64) - 1) for _, end in self.ranges], dtype=np.uint64)

    @property
    def ram_bytes(self) -> int:
        """Bytes of RAM."""
        return sum(end - start for start, end in self.ranges)

    @property
    def ram_end(self) -> int:
        """First address above all RAM."""
        return self.ranges[-1][1] if self.ranges else 0

    def contains(self, phys: int, size: int = 1) -> bool:
        """Whether all `size` bytes at `phys` are in RAM."""
        at = bisect.bisect_right(self._starts, phys) - 1
        return at >= 0 and size >= 0 and phys + size <= self.ranges[at][1]

    def contains_all(self, phys: Words, size: Words | int) -> NDArray[np.bool_]:
        """For each block (phys, size) whether it is in RAM; sums that pass 2^64 are not."""
        if not len(self._start_array):
            return np.zeros(len(phys), dtype=np.bool_)
        at = np.searchsorted(self._start_array, phys, side="right").astype(np.int64) - 1
        below = at < 0
        end = self._end_array[np.maximum(at, 0)]
        # end - phys cannot wrap where phys < end, and size is compared against that, so nothing overflows
        room = np.where(phys < end, end - phys, np.uint64(0))
        fits = np.asarray(size, dtype=np.uint64) <= room
        return np.asarray(~below & fits & (phys <= end), dtype=np.bool_)

    def read(self, phys: int, size: int) -> Bytes:
        """`size` bytes at `phys`; OutOfRange if one of them is not in RAM."""
        if not self.contains(phys, size):
            raise OutOfRange(f"{size} bytes at {phys:#x} are not in RAM", f"{phys:#x}", phys=phys)
        if len(self._provided) == len(self.ranges):
            return self.memory.read(phys, size)
        # Ranges that touch are one piece of RAM for us, but the provider promises reads inside one of its
        # own.
        parts = [
            self.memory.read(max(phys, start), min(phys + size, end) - max(phys, start))
            for start, end in self._provided
            if max(phys, start) < min(phys + size, end)
        ]
        return parts[0] if len(parts) == 1 else np.concatenate(parts or [np.empty(0, dtype=np.uint8)])

    def bytes(self, phys: int, size: int) -> bytes:
        """Like `read`, copied to bytes."""
        return self.read(phys, size).tobytes()

    def page(self, phys: int) -> Words:
        """The page at `phys` as 512 little-endian words."""
        data = self.read(phys, PAGE_SIZE)
        if not data.flags.c_contiguous:
            data = np.ascontiguousarray(data)
        return data.view("<u8")

    def pages(self, phys: Words) -> Bytes:
        """Pages at the given page-aligned addresses, shape (n, PAGE_SIZE); neighbours are read together."""
        out = np.empty((len(phys), PAGE_SIZE), dtype=np.uint8)
        done = 0
        for start, size in runs(phys, PAGE_SIZE):
            count = size // PAGE_SIZE
            out[done : done + count] = self.read(start, size).reshape(count, PAGE_SIZE)
            done += count
        return out

    def populated(self) -> Iterator[tuple[int, int]]:
        """RAM without what is known never to have been written."""
        if not isinstance(self.memory, SparseMemory):
            yield from self.ranges
            return
        extents = merge(self.memory.populated())
        for start, end in self.ranges:
            for low, high in extents:
                if max(start, low) < min(end, high):
                    yield max(start, low), min(end, high)

    def scan(self, step: int = READ_MAX) -> Iterator[tuple[int, Bytes]]:
        """All populated RAM in order, as (address, view) pieces that begin at a page boundary."""
        for start, end in self.populated():
            at = -(-start // PAGE_SIZE) * PAGE_SIZE
            while at < end:
                size = min(step, end - at)
                yield at, self.read(at, size)
                at += size


def merge(ranges: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    """Sorted, with empty ones dropped and touching ones joined."""
    out: list[tuple[int, int]] = []
    for start, end in sorted(ranges):
        if end <= start:
            continue
        if out and start <= out[-1][1]:
            out[-1] = (out[-1][0], max(end, out[-1][1]))
        else:
            out.append((start, end))
    return out


def runs(phys: Words, size: int | Words, limit: int = READ_MAX) -> Iterator[tuple[int, int]]:
    """Join consecutive blocks that follow each other in memory: (start, bytes) pairs, none above `limit`.

    A single block larger than `limit` is cut. Order is kept, so concatenating the runs is concatenating the
    blocks.
    """
    if not len(phys):
        return
    sizes = np.broadcast_to(np.asarray(size, dtype=np.uint64), phys.shape)
    breaks = np.flatnonzero(phys[1:] != phys[:-1] + sizes[:-1]) + 1
    firsts = np.concatenate(([0], breaks))
    lasts = np.concatenate((breaks, [len(phys)])) - 1
    starts: list[Any] = phys[firsts].tolist()
    ends: list[Any] = (phys[lasts] + sizes[lasts]).tolist()
    for start, end in zip(starts, ends, strict=True):
        at = start
        while at < end:
            piece = min(limit, end - at)
            yield at, piece
            at += piece
