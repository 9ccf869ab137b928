"""Preserved vmalloc areas (Linux 7.2 KHO ABI, vmalloc): a 16-byte descriptor and a chain of chunk pages.

A chunk lists up to 511 blocks of 2^order pages and links to the next one; the list ends at the first zero.
Linux appends a new chunk as soon as one is full, so an area of exactly k * 511 blocks ends with an empty
chunk.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from kho.abi import PAGE_SIZE, VMALLOC, VMALLOC_ALLOC, VMALLOC_CHUNK_SLOTS
from kho.memory import Bytes, Reader, Words, WritableMemory, runs


@dataclass(frozen=True)
class Descriptor:
    """struct kho_vmalloc."""

    first: int = 0
    total_pages: int = 0
    flags: int = 0
    order: int = 0

    @classmethod
    def unpack(cls, data: bytes) -> Descriptor:
        """From 16 bytes."""
        return cls(*VMALLOC.unpack(data))

    def pack(self) -> bytes:
        """To 16 bytes."""
        return VMALLOC.pack(self.first, self.total_pages, self.flags, self.order)


@dataclass
class Area:
    """What the chunks of a descriptor list. `problems` are (message, phys) pairs."""

    descriptor: Descriptor
    chunks: list[int] = field(default_factory=list)
    blocks: Words = field(default_factory=lambda: np.empty(0, dtype=np.uint64))
    problems: list[tuple[str, int | None]] = field(default_factory=list)

    @property
    def block_size(self) -> int:
        """Bytes of one block."""
        return PAGE_SIZE << self.descriptor.order

    def read(self, reader: Reader, size: int) -> Bytes:
        """The first `size` bytes of the area; only for an area without problems."""
        parts = []
        left = size
        for start, length in runs(self.blocks, self.block_size):
            take = min(left, length)
            parts.append(reader.read(start, take))
            left -= take
            if not left:
                break
        return parts[0] if len(parts) == 1 else np.concatenate(parts or [np.empty(0, dtype=np.uint8)])


def read_area(reader: Reader, descriptor: Descriptor, total_pages: int) -> Area:
    """Read the chunks of a descriptor that must have `total_pages` base pages.

    Bounded by `total_pages`: more blocks or chunks than that needs are a problem, not work.
    """
    area = Area(descriptor)
    if descriptor.order > 51:
        area.problems.append((f"the area has blocks of order {descriptor.order}", None))
        return area
    if descriptor.total_pages != total_pages:
        area.problems.append((f"the area has {descriptor.total_pages} pages instead of {total_pages}", None))
        return area
    if total_pages > reader.ram_bytes // PAGE_SIZE:
        area.problems.append((f"the area has {total_pages} pages, more than RAM", None))
        return area
    per_block = 1 << descriptor.order
    chunks_max = total_pages // per_block + 1  # Linux fills them, but follows half-empty ones too
    pages = []
    blocks = 0
    seen: set[int] = set()
    at = descriptor.first
    while at:
        problem = (
            "the address of a chunk is not page aligned" if at % PAGE_SIZE
            else "the address of a chunk is not in RAM" if not reader.contains(at, PAGE_SIZE)
            else "the chain of chunks is a cycle" if at in seen
            else f"the area has more than {chunks_max} chunks" if len(seen) >= chunks_max
            else ""
        )  # fmt: skip
        if problem:
            area.problems.append((problem, at))
            return area
        seen.add(at)
        area.chunks.append(at)
        words = reader.page(at)
        slots = words[1:]
        empty = np.flatnonzero(slots == 0)
        used = slots[: int(empty[0])] if len(empty) else slots
        following = int(words[0])
        if len(empty) and slots[int(empty[0]) :].any():
            area.problems.append(("a chunk has a zero between its blocks", at))
            return area
        pages.append(used)
        blocks += len(used)
        at = following
    area.blocks = np.concatenate(pages).astype(np.uint64) if pages else area.blocks
    if blocks * per_block != total_pages:
        area.problems.append((
            f"the chunks list {blocks} blocks of order {descriptor.order} for {total_pages} pages",
            descriptor.first or None,
        ))  # fmt: skip
        return area
    size = area.block_size
    good = (area.blocks % np.uint64(size) == 0) & reader.contains_all(area.blocks, size)
    for phys in area.blocks[~good].tolist()[:16]:
        area.problems.append(("a block of the area is not aligned or not in RAM", phys))
    return area


def write_area(
    memory: WritableMemory,
    allocate: Callable[[], int],
    blocks: list[int],
    order: int = 0,
    flags: int = VMALLOC_ALLOC,
) -> tuple[Descriptor, list[int]]:
    """Write the chunks for `blocks`, as Linux does; returns the descriptor and the addresses of the
    chunks.
    """
    chunks = [allocate() for _ in range(len(blocks) // VMALLOC_CHUNK_SLOTS + 1)] if blocks else []
    for number, chunk in enumerate(chunks):
        part = blocks[number * VMALLOC_CHUNK_SLOTS : (number + 1) * VMALLOC_CHUNK_SLOTS]
        words = np.zeros(PAGE_SIZE // 8, dtype="<u8")
        words[0] = chunks[number + 1] if number + 1 < len(chunks) else 0
        words[1 : 1 + len(part)] = part
        memory.write(chunk, words.tobytes())
    return Descriptor(chunks[0] if chunks else 0, len(blocks) << order, flags, order), chunks
