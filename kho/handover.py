"""A whole handover, decoded: `Handover.read(memory)`.

This is everything that KHO itself knows: the root FDT, the tree of preserved blocks, scratch, the sub-trees,
and the blobs that KHO, memblock and KHO's self-test own. What LUO put there is decoded by `luo` on top of it.
Decoders of sub-trees claim the blocks they reach through `Handover.own`, so that lost, doubly owned and
unexplained memory shows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from kho import khotest, luemutest, memblock
from kho.abi import (
    KHO_COMPATIBLE,
    METADATA,
    PAGE_SIZE,
    PROP_BLOB,
    PROP_BLOB_SIZE,
    PROP_MEMORY_MAP,
    SUBTREE_MEMBLOCK,
    SUBTREE_METADATA,
    SUBTREE_TEST,
)
from kho.errors import KhoError
from kho.fdt import Fdt
from kho.findings import Findings
from kho.khotest import KhoTest
from kho.locate import Location, locate, parse_root, read_root
from kho.luemutest import LuemuTest
from kho.memblock import ReservedRegion
from kho.memory import Bytes, PhysicalMemory, Reader, Words
from kho.metadata import KexecMetadata
from kho.preserved import Flags, PreservedSet
from kho.radix import Orders, RadixTree, read_tree
from kho.setup_data import ScratchArea, ScratchList

LISTED_MAX = 32  # of one kind of damage in one object; the rest is counted


@dataclass(frozen=True)
class Subtree:
    """A blob that a subsystem registered. Only address and size are KHO's; the bytes belong to the
    subsystem.
    """

    name: str
    phys: int
    size: int


class _NoMemory:
    """Stands for the memory of a bare FDT blob."""

    ranges: Sequence[tuple[int, int]] = ()

    def read(self, phys: int, size: int) -> Bytes:
        raise AssertionError("a bare FDT has no memory")


@dataclass
class Handover:
    """A decoded handover. What is wrong with it, and did not stop the decoder, is in `findings`."""

    reader: Reader
    location: Location
    fdt: Fdt
    tree: RadixTree
    preserved: PreservedSet
    findings: Findings
    bare: bool = False
    """There is only the FDT: no memory, so no tree and no blobs."""
    subtrees: list[Subtree] = field(default_factory=list)
    metadata: KexecMetadata | None = None
    reserve_mem: list[ReservedRegion] = field(default_factory=list)
    kho_test: KhoTest | None = None
    luemu_test: LuemuTest | None = None
    decoded: dict[str, object] = field(default_factory=dict)
    """What decoders of sub-trees made of theirs, by sub-tree: decoding claims memory, so it happens once."""

    @classmethod
    def read(
        cls,
        memory: PhysicalMemory,
        fdt: int | None = None,
        scratch: ScratchList | Sequence[ScratchArea] | None = None,
        *,
        setup_data: int | None = None,
        search: bool | None = None,
    ) -> Handover:
        """Decode the handover in `memory`.

        ``fdt`` is the physical address of the root FDT; without it the image is searched. ``scratch`` is
        where the list of scratch areas is, or the list itself; without it the setup_data chain says it, which
        is at ``setup_data`` (head of the chain) or searched. ``search`` False keeps from searching when
        ``fdt`` is given; the default searches only when it is not.

        Raises only KhoError: FormatError when there is no root FDT that could be followed, NotFound,
        Ambiguous, OutOfRange for a given address outside RAM.
        """
        reader = Reader(memory)
        location = locate(reader, fdt, scratch, setup_data, fdt is None if search is None else search)
        root = read_root(reader, location.fdt_phys)
        findings = Findings()
        areas = None
        if location.scratch is not None:
            areas = [(area.phys, min(area.end, (1 << 64) - 1)) for area in location.scratch if area.size]
        tree = read_tree(reader, root.root.u64(PROP_MEMORY_MAP), findings, areas)
        handover = cls(reader, location, root, tree, PreservedSet(tree.phys, tree.order), findings)
        handover._decode()
        return handover

    @classmethod
    def from_blob(cls, blob: bytes) -> Handover:
        """Decode a bare root FDT as far as that goes; FormatError."""
        fdt = parse_root(blob, None)
        tree = RadixTree(fdt.root.u64(PROP_MEMORY_MAP), complete=False)
        preserved = PreservedSet(tree.phys, tree.order)
        handover = cls(Reader(_NoMemory()), Location(0), fdt, tree, preserved, Findings(), bare=True)
        handover._read_subtrees()
        return handover

    # --- facts ----------------------------------------------------------------------------------------------

    @property
    def compatible(self) -> str:
        """Version string of the root FDT."""
        return KHO_COMPATIBLE

    @property
    def fdt_phys(self) -> int | None:
        """Address of the root FDT; None for a bare blob."""
        return None if self.bare else self.location.fdt_phys

    @property
    def fdt_size(self) -> int:
        """Bytes of the root FDT by its header."""
        return self.fdt.total_size

    @property
    def scratch(self) -> list[ScratchArea] | None:
        """Scratch areas; None when nothing says where the list is."""
        return self.location.scratch

    @property
    def tree_is_whole(self) -> bool:
        """Whether what is not in the tree is really not preserved."""
        return self.tree.complete and not self.bare

    def unexplained(self) -> tuple[Words, Orders]:
        """(phys, order) of preserved blocks that no decoder has claimed so far."""
        return self.preserved.unexplained()

    def subtree(self, name: str) -> Subtree | None:
        """The sub-tree that the next kernel would find under a name: the first."""
        return next((subtree for subtree in self.subtrees if subtree.name == name), None)

    def blob(self, subtree: Subtree, size_max: int) -> bytes:
        """The first `size_max` bytes of a blob, or all if it is smaller; OutOfRange."""
        return self.reader.bytes(subtree.phys, min(subtree.size, size_max))

    # --- for decoders of sub-trees --------------------------------------------------------------------------

    def lost(self, id: str, message: str, phys: int) -> None:
        """Record that something is not preserved, unless the tree is damaged and cannot tell."""
        if self.tree_is_whole:
            self.findings.add(id, message, phys, tree=True)

    def own(
        self, owner: int, phys: Words, order: Orders | NDArray[np.int64] | int, *, lost: str, what: str
    ) -> Flags:
        """Claim blocks of exactly these orders for an owner; returns which are his alone.

        An order of -1 stands for a block that is known not to be preserved. Blocks that are not preserved
        break the invariant ``lost``, blocks with another owner break INV-12.
        """
        orders = np.broadcast_to(np.asarray(order, dtype=np.int64), phys.shape)
        if len(phys) == 1 and orders[0] == 0:  # most files are small
            return np.array([self.own_page(owner, int(phys[0]), lost=lost, what=what)])
        claimed = self.preserved.claim(owner, phys, orders)
        if not claimed.preserved.all() and self.tree_is_whole:
            missing = np.flatnonzero(~claimed.preserved)
            for index in missing[:LISTED_MAX].tolist():
                size = f" as a block of order {int(orders[index])}" if orders[index] >= 0 else ""
                self.lost(lost, f"{what} is not preserved{size}", int(phys[index]))
            self.findings.add_more(lost, max(0, len(missing) - LISTED_MAX))
        if claimed.twice.any() and self.tree_is_whole:
            doubles = np.flatnonzero(claimed.twice)
            for index in doubles[:LISTED_MAX].tolist():
                other = self.preserved.owner_of(int(phys[index]), int(orders[index]))
                self.findings.add("INV-12", f"{what} belongs to {other} already", int(phys[index]), tree=True)
            self.findings.add_more("INV-12", max(0, len(doubles) - LISTED_MAX))
        return np.asarray(claimed.preserved & ~claimed.twice, dtype=np.bool_)

    def own_page(self, owner: int, phys: int, *, lost: str, what: str) -> bool:
        """Claim one page that must be preserved as a block of its own."""
        preserved, twice = self.preserved.claim_page(owner, phys)
        if not preserved:
            self.lost(lost, f"{what} is not preserved as a block of order 0", phys)
        elif twice and self.tree_is_whole:
            other = self.preserved.owner_of(phys)
            self.findings.add("INV-12", f"{what} belongs to {other} already", phys, tree=True)
        return preserved and not twice

    def own_range(
        self, owner: int, phys: int, size: int, *, lost: str, what: str, shared: bool = False
    ) -> bool:
        """Claim all blocks of a range that must be preserved completely."""
        start = phys - phys % PAGE_SIZE
        end = -(-(phys + size) // PAGE_SIZE) * PAGE_SIZE
        taken, whole = self.preserved.claim_range(owner, start, end, shared=shared)
        if not whole:
            gap = self.preserved.gaps(start, end, 1)[0][0]
            self.lost(lost, f"{what} is not preserved completely", max(gap, phys))
        for address in taken[:LISTED_MAX] if self.tree_is_whole else []:
            other = self.preserved.owner_of(address) or "another owner"
            self.findings.add("INV-12", f"{what} belongs to {other} already", address, tree=True)
        return whole and not taken

    # --- decoding -------------------------------------------------------------------------------------------

    def _decode(self) -> None:
        fdt_phys = self.location.fdt_phys
        if fdt_phys % PAGE_SIZE:
            self.findings.add("INV-5", "the root FDT is not page aligned", fdt_phys)
        else:
            self.own_page(self.preserved.owner("root FDT"), fdt_phys, lost="INV-5", what="the root FDT page")
        self._read_subtrees()
        decoders = {
            SUBTREE_METADATA: self._read_metadata,
            SUBTREE_MEMBLOCK: self._read_memblock,
            SUBTREE_TEST: self._read_test,
            luemutest.SUBTREE: self._read_own_test,
        }
        for name, decode in decoders.items():
            subtree = self.subtree(name)
            if subtree is None or not self.reader.contains(subtree.phys, subtree.size):
                continue
            try:
                decode(subtree)
            except KhoError as error:
                self.findings.add(
                    "INV-7", f'the blob of "{name}" is malformed: {error.message}', subtree.phys
                )

    def _read_subtrees(self) -> None:
        where = self.fdt_phys
        names: set[str] = set()
        pages: dict[int, str] = {}
        for node in self.fdt.root.children:
            if node.name in names:
                self.findings.add("INV-7", f'there are two sub-trees "{node.name}"', where)
            names.add(node.name)
            try:
                subtree = Subtree(node.name, node.u64(PROP_BLOB), node.u64(PROP_BLOB_SIZE))
            except KhoError as error:
                self.findings.add("INV-7", error.message, where)
                continue
            self.subtrees.append(subtree)
            if not self.bare:
                self._check_blob(subtree, pages)

    def _check_blob(self, subtree: Subtree, pages: dict[int, str]) -> None:
        what = f'the blob of "{subtree.name}"'
        if not self.reader.contains(subtree.phys, subtree.size):
            self.findings.add("INV-7", f"{what} ({subtree.size} bytes) is not in RAM", subtree.phys)
            return
        owner = self.preserved.owner(f'sub-tree "{subtree.name}"')
        self.own_range(owner, subtree.phys, max(subtree.size, 1), lost="INV-7", what=what, shared=True)
        # the first and the last page are enough to see two blobs meet: none lies inside another's middle
        # unseen, because that one's own first page does
        first = subtree.phys // PAGE_SIZE
        last = (subtree.phys + max(subtree.size, 1) - 1) // PAGE_SIZE
        for start, name in pages.items():
            other = self.subtree(name)
            if other is None:
                continue
            other_last = (other.phys + max(other.size, 1) - 1) // PAGE_SIZE
            if start <= last and first <= other_last:
                self.findings.add("INV-7", f'{what} shares a page with that of "{name}"', subtree.phys)
        pages.setdefault(first, subtree.name)

    def _read_metadata(self, subtree: Subtree) -> None:
        self.metadata = KexecMetadata.unpack(self.blob(subtree, METADATA.size))

    def _fdt_blob(self, subtree: Subtree) -> bytes:
        """A blob that is an FDT of at most a page, as all of KHO's are."""
        return self.blob(subtree, PAGE_SIZE)

    def _read_memblock(self, subtree: Subtree) -> None:
        self.reserve_mem = memblock.unpack(self._fdt_blob(subtree))
        for region in self.reserve_mem:
            what = f'the reserve_mem region "{region.name}"'
            if not region.size or not self.reader.contains(region.phys, region.size):
                self.findings.add("INV-12", f"{what} ({region.size} bytes) is not in RAM", region.phys)
                continue
            owner = self.preserved.owner(what)
            self.own_range(owner, region.phys, region.size, lost="INV-12", what=what)

    def _read_test(self, subtree: Subtree) -> None:
        test = khotest.unpack(self._fdt_blob(subtree))
        self.kho_test = test
        owner = self.preserved.owner("kho_test")
        problems = test.read_folios(self.reader)
        for message, phys in problems:
            self.findings.add("INV-7", f"kho_test: {message}", subtree.phys if phys is None else phys)
        if test.area is None or test.area.problems:
            return
        chunks = np.array(test.area.chunks, dtype=np.uint64)
        self.own(owner, chunks, 0, lost="INV-12", what="a chunk of the kho_test list")
        area_order = test.descriptor.order
        for block in test.area.blocks.tolist():
            self.own_range(owner, block, PAGE_SIZE << area_order, lost="INV-12", what="the kho_test list")
        mine = self.own(owner, test.phys, test.order, lost="INV-12", what="a kho_test folio")
        test.complete = bool(mine.all()) and not problems

    def _read_own_test(self, subtree: Subtree) -> None:
        test = luemutest.unpack(self._fdt_blob(subtree))
        self.luemu_test = test
        owner = self.preserved.owner("luemu_test")
        for message, phys in test.read_areas(self.reader):
            self.findings.add("INV-7", f"luemu_test: {message}", subtree.phys if phys is None else phys)
        for mine in test.areas:
            if mine.area is None or mine.area.problems:
                continue
            chunks = np.array(mine.area.chunks, dtype=np.uint64)
            self.own(owner, chunks, 0, lost="INV-12", what=f"a chunk of the list of {mine.name}")
            for block in mine.area.blocks.tolist():
                size, what = mine.area.block_size, f"a block of {mine.name}"
                self.own_range(owner, block, size, lost="INV-12", what=what)
