"""Preserved memfds, ``memfd-v2``: a record, an array of folios in a preserved vmalloc area, and the folios.

Everything about folios is done on whole arrays: a file of a gigabyte has 262144 of them. A folio's order is
not in the array, it is that of the block in the KHO tree.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from kho import vmalloc
from kho.abi import PAGE_SHIFT, PAGE_SIZE
from kho.handover import LISTED_MAX, Handover
from kho.memory import Reader, Words, WritableMemory, runs
from kho.radix import Orders
from kho.vmalloc import Area, Descriptor
from luo.abi import FOLIO_DTYPE, FOLIO_FLAGS, FOLIO_PFN_BITS, FOLIO_SIZE, MEMFD, SEALS_ALL


def _no_words() -> Words:
    return np.empty(0, dtype=np.uint64)


@dataclass
class Memfd:
    """One preserved memfd. `folio_phys`, `folio_index` and `folio_order` are aligned arrays in file order."""

    phys: int
    pos: int
    size: int
    seals: int
    flags: int
    nr_folios: int
    descriptor: Descriptor
    area: Area | None = None
    folio_phys: Words = field(default_factory=_no_words)
    folio_flags: Words = field(default_factory=_no_words)
    folio_index: Words = field(default_factory=_no_words)
    folio_order: NDArray[np.int64] = field(default_factory=lambda: np.empty(0, dtype=np.int64))
    complete: bool = False
    """Every byte of the contents is there and belongs to this file alone."""

    def folio_counts(self) -> dict[int, int]:
        """How many folios there are of each order (-1: not preserved)."""
        orders, counts = np.unique(self.folio_order, return_counts=True)
        return dict(zip(orders.tolist(), counts.tolist(), strict=True))

    def contents(self, reader: Reader) -> Iterator[NDArray[np.uint8]]:
        """The contents up to the size, in pieces; only for a complete file."""
        left = self.size
        for start, length in runs(
            self.folio_phys, np.uint64(PAGE_SIZE) << self.folio_order.astype(np.uint64)
        ):
            take = min(left, length)
            if take:
                yield reader.read(start, take)
            left -= take

    def sha256(self, reader: Reader) -> str | None:
        """Hex digest of the contents up to the size; None when they are not complete."""
        if not self.complete:
            return None
        digest = hashlib.sha256()
        for piece in self.contents(reader):
            digest.update(np.ascontiguousarray(piece).data)
        return digest.hexdigest()


def read_memfd(handover: Handover, phys: int, owner: int) -> Memfd | None:
    """Decode the record at `phys`; None when there is none. What is wrong goes to the handover's findings."""
    findings = handover.findings
    reader = handover.reader
    if not phys or phys % PAGE_SIZE or not reader.contains(phys, PAGE_SIZE):
        findings.add(
            "INV-20", f"the data handle {phys:#x} of a memfd is not the address of a page in RAM", phys
        )
        return None
    pos, size, seals, flags, nr_folios, descriptor = MEMFD.unpack(reader.bytes(phys, MEMFD.size))
    memfd = Memfd(phys, pos, size, seals, flags, nr_folios, Descriptor.unpack(descriptor))
    preserved = handover.preserved.has(phys) or handover.preserved.covers(phys, phys + PAGE_SIZE)
    if not preserved and not _plausible(handover, memfd):
        # nothing preserved and no record either: it is the handle that is wrong
        handover.lost("INV-20", "the data handle of a memfd does not point to preserved memory", phys)
        return None
    before = findings.counts["INV-12"]
    handover.own_page(owner, phys, lost="INV-23", what="the memfd record")
    if findings.counts["INV-12"] > before:
        return None
    if flags:
        findings.add("INV-23", f"the memfd record has the flags {flags:#x}, none is known", phys)
    if seals & ~SEALS_ALL:
        findings.add("INV-23", f"the memfd record has the unknown seals {seals & ~SEALS_ALL:#x}", phys)
    if (nr_folios == 0) != (size == 0):
        findings.add("INV-23", f"the memfd has {size} bytes in {nr_folios} folios", phys)
        return memfd
    if nr_folios == 0:
        if any(descriptor):
            findings.add("INV-25", "an empty memfd has an array of folios", phys)
        memfd.complete = True
        return memfd
    if not _read_small(handover, memfd, owner) and _read_array(handover, memfd, owner):
        _read_folios(handover, memfd, owner)
    return memfd


def _read_small(handover: Handover, memfd: Memfd, owner: int) -> bool:
    """The usual file, of which there may be thousands: some single pages in order, listed in an array of one
    page, and nothing is wrong with any of it. False: it is another one, and nothing has been touched."""
    reader, preserved, descriptor = handover.reader, handover.preserved, memfd.descriptor
    first, pages = descriptor.first, memfd.nr_folios
    if (
        (descriptor.order, descriptor.total_pages, pages) != (0, 1, -(-memfd.size // PAGE_SIZE))
        or pages > PAGE_SIZE // FOLIO_SIZE
        or first % PAGE_SIZE
        or not reader.contains(first, PAGE_SIZE)
        or not handover.tree_is_whole
        or preserved.overlapping
    ):
        return False
    chunk = reader.page(first)
    array = int(chunk[1])
    if chunk[0] or chunk[2:].any() or not array or array % PAGE_SIZE:
        return False
    if not reader.contains(array, PAGE_SIZE):
        return False
    entries = np.ascontiguousarray(reader.read(array, pages * FOLIO_SIZE)).view(FOLIO_DTYPE)
    words, index = entries["word"], entries["index"].astype(np.uint64)
    phys = words << np.uint64(64 - FOLIO_PFN_BITS) >> np.uint64(64 - FOLIO_PFN_BITS - PAGE_SHIFT)
    flags = words >> np.uint64(FOLIO_PFN_BITS)
    good = (flags == FOLIO_FLAGS) & (phys != 0) & (index == np.arange(pages, dtype=np.uint64))
    listing = np.array([first, array], dtype=np.uint64)
    if not good.all() or not preserved.claim_pages(owner, np.concatenate((listing, phys))):
        return False
    memfd.area = Area(descriptor, [first], listing[1:])
    memfd.folio_phys, memfd.folio_flags, memfd.folio_index = phys, flags, index
    memfd.folio_order = np.zeros(pages, dtype=np.int64)
    memfd.complete = True
    return True


def _plausible(handover: Handover, memfd: Memfd) -> bool:
    """Whether memory that is not preserved looks like a record nevertheless."""
    pages = -(-memfd.nr_folios * FOLIO_SIZE // PAGE_SIZE)
    return (
        memfd.size > 0
        and memfd.descriptor.total_pages == pages > 0
        and handover.preserved.has(memfd.descriptor.first & -PAGE_SIZE)
    )


def _read_array(handover: Handover, memfd: Memfd, owner: int) -> bool:
    """Read the chunks and own the pages of the array; whether the entries in it can be believed."""
    total_pages = -(-memfd.nr_folios * FOLIO_SIZE // PAGE_SIZE)
    area = memfd.area = vmalloc.read_area(handover.reader, memfd.descriptor, total_pages)
    for message, phys in area.problems:
        handover.findings.add("INV-25", message, memfd.phys if phys is None else phys)
    if area.problems:
        return False
    chunks = np.array(area.chunks, dtype=np.uint64)
    handover.own(owner, chunks, 0, lost="INV-25", what="a chunk of the folio array")
    order = memfd.descriptor.order
    mine = handover.own(owner, area.blocks, order, lost="INV-25", what="a page of the folio array")
    return bool(mine.all()) or not handover.tree_is_whole


def _read_folios(handover: Handover, memfd: Memfd, owner: int) -> None:
    area = memfd.area
    assert area is not None
    data = np.ascontiguousarray(area.read(handover.reader, memfd.nr_folios * FOLIO_SIZE))
    entries = data.view(FOLIO_DTYPE)
    memfd.folio_phys = (entries["word"] << np.uint64(64 - FOLIO_PFN_BITS)) >> np.uint64(64 - FOLIO_PFN_BITS)
    memfd.folio_phys = memfd.folio_phys << np.uint64(PAGE_SHIFT)
    memfd.folio_flags = entries["word"] >> np.uint64(FOLIO_PFN_BITS)
    memfd.folio_index = entries["index"].astype(np.uint64)
    memfd.folio_order = _orders(handover, memfd)
    good = _report(handover, memfd, memfd.folio_phys == 0, "the folio entry is a hole: its contents are lost")
    good &= _report(
        handover, memfd, memfd.folio_flags != FOLIO_FLAGS, "the folio entry has other flags than 3"
    )
    if not handover.tree_is_whole:
        return  # the orders are not known, so neither is where the next folio has to be
    present = memfd.folio_phys != 0
    mine = handover.own(
        owner,
        memfd.folio_phys[present],
        memfd.folio_order[present],
        lost="INV-24",
        what="a folio of the memfd",
    )
    good &= bool(mine.all()) and bool(present.all())
    known = memfd.folio_order >= 0
    step = np.uint64(1) << np.maximum(memfd.folio_order, 0).astype(np.uint64)
    gap = np.zeros(memfd.nr_folios, dtype=np.bool_)
    gap[0] = memfd.folio_index[0] != 0
    # where a folio's order is not known, what comes after it cannot be judged
    gap[1:] = known[:-1] & (memfd.folio_index[1:] != memfd.folio_index[:-1] + step[:-1])
    good &= _report(handover, memfd, gap, "the folio does not begin where the one before it ends")
    if known[-1] and good:
        first = int(memfd.folio_index[-1])
        last_page = -(-memfd.size // PAGE_SIZE) - 1
        if not first <= last_page < first + int(step[-1]):
            handover.findings.add(
                "INV-24",
                f"the folios cover {first + int(step[-1])} pages, the file has {last_page + 1}",
                memfd.phys,
            )
            good = False
    memfd.complete = bool(good)


def _orders(handover: Handover, memfd: Memfd) -> NDArray[np.int64]:
    """Order of each folio by the tree. Where blocks overlap there can be several: the one the
    indices want.
    """
    preserved = handover.preserved
    orders = preserved.orders_at(memfd.folio_phys)
    if not preserved.overlapping:
        return orders
    distance = memfd.folio_index[1:] - memfd.folio_index[:-1]
    wanted = np.full(len(orders), -1, dtype=np.int64)
    power = (distance != 0) & (distance & (distance - np.uint64(1)) == 0) & (distance <= np.uint64(1 << 51))
    wanted[:-1][power] = np.frexp(distance[power].astype(np.float64))[1] - 1
    fits = (wanted >= 0) & (preserved.index(memfd.folio_phys, np.maximum(wanted, 0).astype(np.uint8)) >= 0)
    return np.where(fits, wanted, orders)


def _report(handover: Handover, memfd: Memfd, bad: NDArray[np.bool_], message: str) -> bool:
    """List the entries in `bad` as INV-24, with the address of the entry; True when there is none."""
    where = np.flatnonzero(bad)
    if not len(where):
        return True
    area = memfd.area
    assert area is not None
    for number in where[:LISTED_MAX].tolist():
        block, offset = divmod(number * FOLIO_SIZE, area.block_size)
        handover.findings.add("INV-24", f"{message} (entry {number})", int(area.blocks[block]) + offset)
    handover.findings.add_more("INV-24", max(0, len(where) - LISTED_MAX))
    return False


# --- writing ------------------------------------------------------------------------------------------------


def pack_folios(phys: Words, order: Orders) -> bytes:
    """The array for folios that follow each other in the file from index 0."""
    entries = np.zeros(len(phys), dtype=FOLIO_DTYPE)
    entries["word"] = (phys >> np.uint64(PAGE_SHIFT)) | np.uint64(FOLIO_FLAGS << FOLIO_PFN_BITS)
    pages = np.uint64(1) << order.astype(np.uint64)
    entries["index"] = np.concatenate((np.zeros(1, dtype=np.uint64), np.cumsum(pages, dtype=np.uint64)[:-1]))
    return entries.tobytes()


def pack_record(
    pos: int, size: int, seals: int, nr_folios: int, descriptor: Descriptor, flags: int = 0
) -> bytes:
    """The 48-byte record."""
    return MEMFD.pack(pos, size, seals, flags, nr_folios, descriptor.pack())


def write_memfd(
    memory: WritableMemory,
    allocate: Callable[[], int],
    folios: Sequence[tuple[int, int]],
    size: int,
    *,
    pos: int = 0,
    seals: int = 0,
) -> tuple[int, list[int]]:
    """Write record, array and chunks for folios given as (phys, order).

    Returns the address of the record and the addresses of all pages used, all of which must be preserved as
    blocks of order 0 (the folios as blocks of their order).
    """
    record = allocate()
    pages: list[int] = []
    descriptor = Descriptor()
    chunks: list[int] = []
    if folios:
        phys = np.array([address for address, _ in folios], dtype=np.uint64)
        data = pack_folios(phys, np.array([order for _, order in folios], dtype=np.uint8))
        for at in range(0, len(data), PAGE_SIZE):
            pages.append(allocate())
            memory.write(pages[-1], data[at : at + PAGE_SIZE])
        descriptor, chunks = vmalloc.write_area(memory, allocate, pages)
    memory.write(record, pack_record(pos, size, seals, len(folios), descriptor))
    return record, [record, *pages, *chunks]
