"""Make a complete handover in memory, as a kernel would leave it: for tests, campaigns and examples.

`HandoverBuilder` allocates pages from its own RAM, preserves what it is told to, registers sub-trees, and in
`finish` writes tree, root FDT and scratch list; for moment K also boot parameters with the setup_data entry,
in scratch, where kexec puts them. `luo.builder` puts sessions on top. Addresses are handed out in ascending
order, so the same calls give the same image.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from kho import khotest, memblock, vmalloc
from kho.abi import (
    BOOT_PARAMS_HEADER,
    BOOT_PARAMS_MAGIC,
    BOOT_PARAMS_SETUP_DATA,
    FDT_SIZE_MAX,
    KHO_COMPATIBLE,
    KHO_DATA,
    PAGE_SIZE,
    PROP_BLOB,
    PROP_BLOB_SIZE,
    PROP_COMPATIBLE,
    PROP_MEMORY_MAP,
    SCRATCH_DTYPE,
    SUBTREE_MEMBLOCK,
    SUBTREE_METADATA,
    SUBTREE_TEST,
)
from kho.errors import LimitExceeded
from kho.fdt import Fdt, Node
from kho.khotest import CSUM_MODULUS, KhoTest
from kho.memblock import ReservedRegion
from kho.memory import Buffer
from kho.metadata import KexecMetadata
from kho.radix import decompose, write_tree
from kho.setup_data import KhoData, ScratchArea, ScratchList, pack_scratch

MIB = 1 << 20
SMALL_SCRATCH = (ScratchArea(8 * MIB, 4 * MIB), ScratchArea(12 * MIB, 0), ScratchArea(12 * MIB, 0))
ENTRY_OFFSET = 0x1060  # of the KHO setup_data entry in the boot parameters, a usual place


@dataclass
class Built:
    """A finished handover. `addresses` names the pages that tests damage."""

    memory: Buffer
    fdt_phys: int
    scratch: list[ScratchArea]
    scratch_list: ScratchList
    nodes: list[tuple[int, int]]
    """(level, phys) of the tree's pages, the root first."""
    blocks: list[tuple[int, int]]
    """(phys, order) of everything preserved."""
    boot_params: int | None = None
    setup_data: int | None = None
    """Address of the KHO entry."""
    addresses: dict[str, int] = field(default_factory=dict)


class HandoverBuilder:
    """Collects a handover. All methods that allocate raise LimitExceeded when RAM is used up."""

    def __init__(
        self, ram: int = 16 * MIB, scratch: Sequence[ScratchArea] = SMALL_SCRATCH, first: int = MIB
    ) -> None:
        self.memory = Buffer(ram)
        self.scratch = list(scratch)
        self.blocks: list[tuple[int, int]] = []
        self.addresses: dict[str, int] = {}
        self._next = first
        self._root = self.allocate()
        self.fdt_phys = self.allocate_preserved()
        map_address = self._root.to_bytes(8, "little")
        root = Node("", {PROP_COMPATIBLE: KHO_COMPATIBLE.encode() + b"\0", PROP_MEMORY_MAP: map_address})
        self.fdt = Fdt.sequential(root)

    # --- memory ---------------------------------------------------------------------------------------------

    def allocate(self, order: int = 0) -> int:
        """A block of 2^order zeroed pages outside scratch."""
        size = PAGE_SIZE << order
        at = -(-self._next // size) * size
        for area in sorted(self.scratch, key=lambda area: area.phys):
            if area.size and at < area.end and area.phys < at + size:
                at = -(-area.end // size) * size
        if at + size > len(self.memory.data):
            raise LimitExceeded(f"no room for a block of order {order}", f"{at:#x}")
        self._next = at + size
        return at

    def preserve(self, phys: int, order: int = 0) -> None:
        """Put one block into the tree."""
        self.blocks.append((phys, order))

    def allocate_preserved(self, order: int = 0) -> int:
        """Allocate a block and preserve it."""
        phys = self.allocate(order)
        self.preserve(phys, order)
        return phys

    # --- sub-trees ------------------------------------------------------------------------------------------

    def add_subtree(self, name: str, blob: bytes, phys: int | None = None) -> int:
        """Store a blob in memory of its own (or at `phys`) and register it; returns its address."""
        if phys is None:
            order = max(0, (len(blob) - 1) // PAGE_SIZE).bit_length()
            phys = self.allocate_preserved(order)
        self.memory.write(phys, blob)
        node = self.fdt.add_subnode(self.fdt.root, name)
        self.fdt.set_property(node, PROP_BLOB, phys.to_bytes(8, "little"))
        self.fdt.set_property(node, PROP_BLOB_SIZE, len(blob).to_bytes(8, "little"))
        self.addresses[f"blob:{name}"] = phys
        return phys

    def add_metadata(self, release: str = "7.2.13-kho", count: int = 1) -> int:
        """Register kexec-metadata."""
        return self.add_subtree(SUBTREE_METADATA, KexecMetadata(release, count).pack())

    def add_reserve_mem(self, *regions: tuple[str, int]) -> list[ReservedRegion]:
        """Register reserve_mem regions given as (name, pages)."""
        made = []
        for name, pages in regions:
            phys = self.allocate()
            end = phys + pages * PAGE_SIZE
            if end > len(self.memory.data) or any(a.phys < end and phys < a.end for a in self.scratch):
                raise LimitExceeded(f'no room for the region "{name}"', f"{phys:#x}")
            self._next = end
            self.blocks += decompose(phys, pages)
            made.append(ReservedRegion(name, phys, pages * PAGE_SIZE))
        self.add_subtree(SUBTREE_MEMBLOCK, memblock.pack(made))
        return made

    def add_test(self, folios: Sequence[tuple[int, bytes]]) -> KhoTest:
        """Register kho_test data for folios given as (order, contents)."""
        words = np.zeros(len(folios), dtype="<u8")
        total = 0
        for number, (order, contents) in enumerate(folios):
            phys = self.allocate_preserved(order)
            data = contents.ljust(PAGE_SIZE << order, b"\0")
            self.memory.write(phys, data)
            words[number] = phys | order
            total += int(np.frombuffer(data, dtype="<u4").sum(dtype=np.uint64))
        raw = words.tobytes()
        pages = []
        for at in range(0, len(raw), PAGE_SIZE):
            pages.append(self.allocate_preserved())
            self.memory.write(pages[-1], raw[at : at + PAGE_SIZE])
        descriptor, _ = vmalloc.write_area(self.memory, self.allocate_preserved, pages)
        test = KhoTest(len(folios), total % CSUM_MODULUS, descriptor)
        self.add_subtree(SUBTREE_TEST, khotest.pack(test))
        return test

    # --- the end --------------------------------------------------------------------------------------------

    def finish(self, moment: str = "K") -> Built:
        """Write tree, FDT and scratch list; at K also what kexec copies into scratch."""
        phys = np.array([address for address, _ in self.blocks], dtype=np.uint64)
        order = np.array([order for _, order in self.blocks], dtype=np.uint8)
        _, nodes = write_tree(self.memory, self.allocate, phys, order, self._root)
        self.memory.write(self.fdt_phys, self.fdt.write(FDT_SIZE_MAX))
        table = pack_scratch(self.scratch)
        size = len(self.scratch) * SCRATCH_DTYPE.itemsize
        if moment == "J":
            list_phys = self.allocate()
            self.memory.write(list_phys, table)
            return self._built(list_phys, size, nodes)
        top = next(area.end for area in self.scratch if area.size >= 1 << 18)
        list_phys = top - (1 << 16)
        boot_params = list_phys - (1 << 16)
        entry = KhoData(boot_params + ENTRY_OFFSET, KHO_DATA.size, self.fdt_phys, PAGE_SIZE, list_phys, size)
        self.memory.write(list_phys, table)
        self.memory.write(boot_params + BOOT_PARAMS_HEADER, BOOT_PARAMS_MAGIC)
        self.memory.write(boot_params + BOOT_PARAMS_SETUP_DATA, entry.phys.to_bytes(8, "little"))
        self.memory.write(entry.phys, entry.pack())
        built = self._built(list_phys, size, nodes)
        built.boot_params, built.setup_data = boot_params, entry.phys
        return built

    def _built(self, list_phys: int, size: int, nodes: list[tuple[int, int]]) -> Built:
        scratch_list = ScratchList(list_phys, size)
        blocks = list(self.blocks)
        return Built(
            self.memory, self.fdt_phys, self.scratch, scratch_list, nodes, blocks, addresses=self.addresses
        )
