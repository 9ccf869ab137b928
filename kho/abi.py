"""Every constant and layout of the Kexec Handover format, version ``kho-v4`` (Linux 7.2), x86-64, 4 KiB
pages.

This file only describes. Integers of KHO structures are little-endian, also inside FDT properties; only the
FDT container itself is big-endian. The guest's neighbour of this file is ``kho/guest/abi.h``.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Final

import numpy as np

PAGE_SHIFT: Final = 12
PAGE_SIZE: Final = 1 << PAGE_SHIFT
MAX_PAGE_ORDER: Final = 10

# --- root FDT (Linux 7.2 KHO ABI, root FDT) ---------------------------------------------------------------
KHO_COMPATIBLE: Final = "kho-v4"
PROP_COMPATIBLE: Final = "compatible"
PROP_MEMORY_MAP: Final = "preserved-memory-map"
PROP_BLOB: Final = "preserved-data"
PROP_BLOB_SIZE: Final = "blob-size"
FDT_SIZE_MAX: Final = PAGE_SIZE

SUBTREE_METADATA: Final = "kexec-metadata"
SUBTREE_LUO: Final = "LUO"
SUBTREE_MEMBLOCK: Final = "memblock"
SUBTREE_TEST: Final = "kho_test"

# --- scratch areas: struct kho_scratch ---------------------------------------------------------------------
SCRATCH_DTYPE: Final = np.dtype([("addr", "<u8"), ("size", "<u8")])
SCRATCH_ALIGN: Final = PAGE_SIZE << MAX_PAGE_ORDER
SCRATCH_COUNT_MIN: Final = 3  # low, global, one memory node
SCRATCH_COUNT_MAX: Final = 4096  # ours, to bound the work on hostile input; Linux has nodes + 2
LOW_LIMIT: Final = 1 << 32  # ARCH_LOW_ADDRESS_LIMIT of x86

# --- preserved-memory radix tree (enum kho_radix_consts) ---------------------------------------------------


@dataclass(frozen=True)
class RadixGeometry:
    """Shape of the tree for one page size; every node and leaf is one page."""

    page_shift: int

    @property
    def page_size(self) -> int:
        """Bytes of a node."""
        return 1 << self.page_shift

    @property
    def marker_max(self) -> int:
        """Bit that marks order 0 in a key: the width of a page frame number."""
        return 64 - self.page_shift

    @property
    def table_bits(self) -> int:
        """log2 of the entries of an interior node."""
        return self.page_shift - 3

    @property
    def leaf_bits(self) -> int:
        """log2 of the bits of a leaf."""
        return self.page_shift + 3

    @property
    def depth(self) -> int:
        """Levels, the leaf included; level depth - 1 is the root, level 0 the leaf."""
        return -(-(self.marker_max - self.leaf_bits + 1) // self.table_bits) + 1

    def key(self, phys: int, order: int) -> int:
        """Key of the block of 2^order pages at `phys`: the order marker, or-ed with the shifted address."""
        return (1 << (self.marker_max - order)) | (phys >> (self.page_shift + order))

    def decode(self, key: int) -> tuple[int, int]:
        """(phys, order) of a key; ValueError when it has no marker or the marker is above order 0's."""
        order = self.marker_max - (key.bit_length() - 1)
        if key <= 0 or order < 0:
            raise ValueError(f"{key:#x} is no key of the tree")
        return (key << (self.page_shift + order)) & ((1 << 64) - 1), order


RADIX: Final = RadixGeometry(PAGE_SHIFT)
ORDER_MAX: Final = RADIX.marker_max  # 52: the largest order that a key can express

# --- vmalloc areas: struct kho_vmalloc, struct kho_vmalloc_chunk --------------------------------------------
VMALLOC: Final = struct.Struct("<QIHH")  # first chunk, total base pages, flags, order
VMALLOC_CHUNK_SLOTS: Final = PAGE_SIZE // 8 - 1
VMALLOC_ALLOC: Final = 0x0001
VMALLOC_HUGE: Final = 0x0002

# --- linked blocks: struct kho_block_header_ser -------------------------------------------------------------
BLOCK_HEADER: Final = struct.Struct("<QQ")  # next, count
BLOCKS_MAX: Final = 10000


def block_capacity(entry_size: int) -> int:
    """Entries of `entry_size` bytes that one block holds."""
    return (PAGE_SIZE - BLOCK_HEADER.size) // entry_size


# --- kexec-metadata: packed, 73 bytes -----------------------------------------------------------------------
METADATA: Final = struct.Struct("<I65sI")  # version, previous release, kexec count
METADATA_VERSION: Final = 1

# --- the "memblock" blob (reserve_mem=) ---------------------------------------------------------------------
MEMBLOCK_COMPATIBLE: Final = "memblock-v1"
RESERVE_MEM_COMPATIBLE: Final = "reserve-mem-v1"
PROP_START: Final = "start"
PROP_SIZE: Final = "size"
RESERVE_MEM_MAX: Final = 8
RESERVE_MEM_NAME_MAX: Final = 15

# --- the "kho_test" blob (CONFIG_TEST_KEXEC_HANDOVER) -------------------------------------------------------
TEST_COMPATIBLE: Final = "kho-test-v1"
TEST_MAGIC: Final = 0x4B484F21
PROP_TEST_MAGIC: Final = "magic"
NODE_TEST_DATA: Final = "data"
PROP_TEST_NR: Final = "nr_folios"
PROP_TEST_FOLIOS: Final = "folios_info"
PROP_TEST_CSUM: Final = "csum"

# --- x86 boot protocol: setup_data chain --------------------------------------------------------------------
SETUP_DATA: Final = struct.Struct("<QII")  # next, type, length
SETUP_KEXEC_KHO: Final = 10
KHO_DATA: Final = struct.Struct("<QQQQ")  # FDT address and size, scratch array address and size
SETUP_DATA_MAX: Final = 64  # ours, to bound the walk of a chain
BOOT_PARAMS_HEADER: Final = 0x202
BOOT_PARAMS_MAGIC: Final = b"HdrS"
BOOT_PARAMS_SETUP_DATA: Final = 0x250

# --- struct page of a preserved block in the next kernel ----------------------------------------------------
RESTORE_MAGIC: Final = 0x4B484F50  # upper half of page->private; the lower half is the order
