"""One format, described twice: the kernels' debug information against `kho.abi`."""

from __future__ import annotations

import pytest

from emu.debug.layout import Layouts
from kernels import build
from kho import abi
from tests.guest.abi_contract import Contract

ROOT = build.project_root()
HEADER = ROOT / "kho" / "guest" / "abi.h"

MEMBERS = {
    "kho_scratch": {"addr": (0, 8), "size": (8, 8)},
    "kho_vmalloc": {"first": (0, 8), "total_pages": (8, 4), "flags": (12, 2), "order": (14, 2)},
    "kho_vmalloc_chunk": {"next": (0, 8), "phys": (8, 8 * abi.VMALLOC_CHUNK_SLOTS)},
    "kho_block_header_ser": {"next": (0, 8), "count": (8, 8)},
    "kho_kexec_metadata": {"version": (0, 4), "previous_release": (4, 65), "kexec_count": (69, 4)},
    "setup_data": {"next": (0, 8), "type": (8, 4), "len": (12, 4)},
    "kho_data": {"fdt_addr": (0, 8), "fdt_size": (8, 8), "scratch_addr": (16, 8), "scratch_size": (24, 8)},
    "kho_radix_node": {"table": (0, abi.PAGE_SIZE)},
    "kho_radix_leaf": {"bitmap": (0, abi.PAGE_SIZE)},
}
SIZES = {
    "kho_scratch": abi.SCRATCH_DTYPE.itemsize,
    "kho_vmalloc": abi.VMALLOC.size,
    "kho_vmalloc_chunk": abi.PAGE_SIZE,
    "kho_block_header_ser": abi.BLOCK_HEADER.size,
    "kho_kexec_metadata": abi.METADATA.size,
    "setup_data": abi.SETUP_DATA.size,
    "kho_data": abi.KHO_DATA.size,
    "kho_radix_node": abi.RADIX.page_size,
    "kho_radix_leaf": abi.RADIX.page_size,
}
CONSTANTS = {
    "KHO_ORDER_0_LOG2": abi.RADIX.marker_max,
    "KHO_TABLE_SIZE_LOG2": abi.RADIX.table_bits,
    "KHO_BITMAP_SIZE_LOG2": abi.RADIX.leaf_bits,
    "KHO_TREE_MAX_DEPTH": abi.RADIX.depth,
    "KHO_PAGE_MAGIC": abi.RESTORE_MAGIC,
    "KHO_VMALLOC_ALLOC": abi.VMALLOC_ALLOC,
    "KHO_VMALLOC_HUGE_VMAP": abi.VMALLOC_HUGE,
    "KHO_BLOCK_SIZE": abi.PAGE_SIZE,
    "KHO_MAX_BLOCKS": abi.BLOCKS_MAX,
    "KHO_KEXEC_METADATA_VERSION": abi.METADATA_VERSION,
    "SETUP_KEXEC_KHO": abi.SETUP_KEXEC_KHO,
}
TEXTS = {
    "KHO_FDT_MEMORY_MAP_PROP_NAME": abi.PROP_MEMORY_MAP,
    "KHO_SUB_TREE_PROP_NAME": abi.PROP_BLOB,
    "KHO_SUB_TREE_SIZE_PROP_NAME": abi.PROP_BLOB_SIZE,
    "KHO_METADATA_NODE_NAME": abi.SUBTREE_METADATA,
    "MEMBLOCK_KHO_NODE_NAME": abi.SUBTREE_MEMBLOCK,
    "MEMBLOCK_KHO_FDT_COMPATIBLE": abi.MEMBLOCK_COMPATIBLE,
    "RESERVE_MEM_KHO_NODE_COMPATIBLE": abi.RESERVE_MEM_COMPATIBLE,
}


CONTRACT = Contract(
    HEADER, "kho_abi", MEMBERS, SIZES, CONSTANTS, TEXTS, {"kho_compatible": abi.KHO_COMPATIBLE}
)


@pytest.mark.parametrize("release", ["old", "new"])
def test_the_release_says_the_same(release: str) -> None:
    CONTRACT.check_image(build.build_all(ROOT, [f"kernel-{release}"])[f"kernel-{release}"])


def test_all_of_the_header_is_compared() -> None:
    CONTRACT.check_header()


def test_releases_differ_where_the_format_does_not_say() -> None:
    """The head of a block is stamped in struct page, which is each kernel's own."""
    both = build.build_all(ROOT, ["kernel-old", "kernel-new"])
    old, new = (Layouts.read(both[f"kernel-{name}"]) for name in ("old", "new"))
    assert old.struct("page").size != new.struct("page").size
    assert old.offset("page", "private") != new.offset("page", "private")
