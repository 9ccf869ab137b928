"""One format, described twice: the kernels' debug information against `kho.abi`."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from elftools.elf.elffile import ELFFile

from emu.debug.layout import Layouts
from kernels import build
from kho import abi

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


@pytest.fixture(scope="module", params=["old", "new"])
def elf(request: pytest.FixtureRequest) -> Path:
    return build.build_all(ROOT, [f"kernel-{request.param}"])[f"kernel-{request.param}"]


@pytest.fixture(scope="module")
def layouts(elf: Path) -> Layouts:
    return Layouts.read(elf)


@pytest.mark.parametrize("name", MEMBERS)
def test_structures(layouts: Layouts, name: str) -> None:
    structure = layouts.struct(name)
    assert structure.size == SIZES[name]
    assert {m: (v.offset, v.size) for m, v in structure.members.items()} == MEMBERS[name]


@pytest.mark.parametrize("name", CONSTANTS)
def test_constants(layouts: Layouts, name: str) -> None:
    assert layouts.constant(name) == CONSTANTS[name]


def test_every_number_of_the_header_is_compared() -> None:
    text = HEADER.read_text()
    enumeration = text[text.index("enum kho_abi") : text.index("};", text.index("enum kho_abi"))]
    names = re.findall(r"^\s*([A-Z][A-Z0-9_]+) =", enumeration, re.MULTILINE)
    assert sorted(names) == sorted(CONSTANTS)
    assert not re.findall(r"#define\s+\w+\s+(?:0x[0-9a-f]+|\d+)\s*$", text, re.MULTILINE), (
        "a number that is no enumerator"
    )


def test_every_structure_of_the_header_is_compared() -> None:
    assert sorted(re.findall(r"^struct (\w+) \{", HEADER.read_text(), re.MULTILINE)) == sorted(MEMBERS)


def test_texts() -> None:
    found = dict(re.findall(r'^#define\s+(\w+)\s+"([^"]*)"', HEADER.read_text(), re.MULTILINE))
    assert found == TEXTS


def test_compatible_string_is_in_the_image(elf: Path) -> None:
    with elf.open("rb") as f:
        file = ELFFile(f)
        symbols: Any = file.get_section_by_name(".symtab")
        symbol = symbols.get_symbol_by_name("kho_compatible")[0]
        section = file.get_section(symbol["st_shndx"])
        at = symbol["st_value"] - section["sh_addr"]
        assert section.data()[at : at + symbol["st_size"]] == abi.KHO_COMPATIBLE.encode() + b"\0"


def test_releases_differ_where_the_format_does_not_say() -> None:
    """The head of a block is stamped in struct page, which is each kernel's own."""
    both = build.build_all(ROOT, ["kernel-old", "kernel-new"])
    old, new = (Layouts.read(both[f"kernel-{name}"]) for name in ("old", "new"))
    assert old.struct("page").size != new.struct("page").size
    assert old.offset("page", "private") != new.offset("page", "private")
