"""Layouts from debug information: of a program made for it, of the kernels, of damaged files."""

from __future__ import annotations

import ctypes
import io
import re
from pathlib import Path

import pytest
from elftools.elf.elffile import ELFFile
from hypothesis import given
from hypothesis import strategies as st

import kernels
from emu.boot import BzImage
from emu.debug import view
from emu.debug.layout import Layouts, Member, UnknownStructure
from emu.debug.release import Kernel
from emu.errors import ImageError
from kernels.build import BARE_METAL, compile_with_zig, project_root

SOURCE = r"""
typedef unsigned long u64;
typedef const volatile u64 odd_t;
struct inner { char c; u64 n; };
typedef struct inner inner_t;
union either { u64 n; char text[24]; };
enum kind { KIND_A, KIND_B = 7, KIND_NEGATIVE = -3 };
struct packed { char c; u64 n; } __attribute__((packed));
struct outer {
	char first;
	odd_t odd;
	inner_t in;
	struct inner several[3];
	union { int number; void *pointer; };
	struct { short a; struct { short b; }; };
	char matrix[2][5];
	void (*call)(int);
	enum kind kind;
	union either either;
	struct later *later;
	char flexible[];
};
struct outer outer;
struct packed packed;
enum kind kind;
void _start(void) { kind = KIND_B; outer.first = packed.c; }
"""
OUTER = {
    "first": Member(0, 1),
    "odd": Member(8, 8),
    "in": Member(16, 16, 1, "inner"),
    "several": Member(32, 48, 3, "inner"),
    "number": Member(80, 4),
    "pointer": Member(80, 8),
    "a": Member(88, 2),
    "b": Member(90, 2),
    "matrix": Member(92, 10, 10),
    "call": Member(104, 8),
    "kind": Member(112, 4),
    "either": Member(120, 24, 1, "either"),
    "later": Member(144, 8),
}


@pytest.fixture(scope="module")
def program() -> bytes:
    root = project_root()
    place = root / "build" / "tests" / "layout"
    place.mkdir(parents=True, exist_ok=True)
    (place / "layout.c").write_text(SOURCE)
    compile_with_zig(root, [*BARE_METAL, "-Wl,-e,_start"], [place / "layout.c"], place / "layout.elf")
    return (place / "layout.elf").read_bytes()


def test_members(program: bytes) -> None:
    outer = Layouts(program).struct("outer")
    assert outer.size == 152
    assert {name: m for name, m in outer.members.items() if name != "flexible"} == OUTER
    assert outer.offset("odd") == 8 and outer["later"].type == ""


def test_paths_constants_and_packing(program: bytes) -> None:
    layouts = Layouts(program)
    assert layouts.offset("outer", "in.n") == 24
    assert layouts.struct("packed").size == 9 and layouts.struct("packed").offset("n") == 1
    assert [layouts.constant(f"KIND_{k}") & 0xFFFFFFFF for k in ("A", "B")] == [0, 7]
    assert "outer" in layouts and "later" not in layouts


def test_what_is_not_there(program: bytes) -> None:
    layouts = Layouts(program, "file.elf")
    for ask in (
        lambda: layouts.struct("later"),
        lambda: layouts.struct("nosuch"),
        lambda: layouts.constant("NO"),
    ):
        with pytest.raises(UnknownStructure) as e:
            ask()
        assert e.value.where == "file.elf" and e.value.kind == "unknown-structure"
    with pytest.raises(UnknownStructure, match="struct outer has no member nosuch"):
        layouts.struct("outer").offset("nosuch")


def test_files_without_debug_information(tmp_path: Path) -> None:
    assert "page" not in Layouts(kernels.binary("init").read_bytes())
    with pytest.raises(ImageError, match="malformed debug information"):
        Layouts(b"no ELF file at all").struct("page")
    with pytest.raises(ImageError, match="cannot be read"):
        Layouts.read(tmp_path / "missing")


@given(st.data())
def test_damaged_files(program: bytes, data: st.DataObject) -> None:
    damaged = bytearray(program)
    for _ in range(data.draw(st.integers(1, 3))):
        damaged[data.draw(st.integers(0, len(program) - 1))] = data.draw(st.integers(0, 255))
    try:
        Layouts(bytes(damaged)).struct("nosuch")
    except ImageError:
        pass


# --- the kernels --------------------------------------------------------------------------------------

RELEASES = {name: Layouts.read(kernels.BIN_DIR / f"{name}.elf") for name in ("old", "new")}
INCLUDE = project_root() / "kernels" / "include"


@pytest.mark.parametrize("struct", ["page", "thread", "file", "ramfs_file"])
def test_the_releases_differ(struct: str) -> None:
    """So nothing that the host reads can be right by accident."""
    old, new = (RELEASES[name].struct(struct) for name in ("old", "new"))
    assert old.size != new.size
    moved = [n for n in old.members.keys() & new.members.keys() if old.offset(n) != new.offset(n)]
    assert len(moved) >= 4


def test_the_releases_lie_elsewhere() -> None:
    """In virtual memory, and where a loader puts them: image, direct map, vmalloc area, struct pages."""
    old, new = (Kernel.open(name) for name in ("old", "new"))
    assert old.symbols is not None and new.symbols is not None
    names = ("_text", "start_kernel", "schedule", "kho_memory_init")
    assert all(old.symbols.address(name) != new.symbols.address(name) for name in names)
    preferred = [BzImage.parse(kernel.image).preferred for kernel in (old, new)]
    assert preferred[0] != preferred[1] and all(at % (2 << 20) == 0 for at in preferred)
    variables = ("page_offset_base", "vmalloc_base", "vmemmap_base")
    assert all(constant(old, name) != constant(new, name) for name in variables)


def constant(kernel: Kernel, name: str) -> int:
    """A 64-bit constant of a kernel."""
    assert kernel.symbols is not None and kernel.elf is not None
    address = kernel.symbols.address(name)
    assert address is not None
    with io.BytesIO(kernel.elf) as f:
        for segment in ELFFile(f).iter_segments():
            offset = address - segment["p_vaddr"]
            if segment["p_type"] == "PT_LOAD" and 0 <= offset < segment["p_filesz"]:
                return int.from_bytes(segment.data()[offset : offset + 8], "little")
    raise AssertionError(f"{name} is in no segment")


@pytest.mark.parametrize("release", RELEASES)
def test_what_the_view_needs_is_there(release: str) -> None:
    layouts = RELEASES[release]
    for struct, members in {
        "page": ("flags", "refcount", "private", "order"),
        "memblock": ("memory", "reserved", "scratch_only"),
        "memblock_type": ("cnt", "max", "regions"),
        "memblock_region": ("base", "size", "flags"),
        "boot_info": ("cmdline", "initrd", "initrd_size", "setup_data", "boot_params"),
        "kho_in": ("fdt", "scratch"),
        "kho_out": ("fdt",),
        "epitaph": ("magic", "regs", "cr2", "has_trap", "frames", "backtrace", "phase", "reason"),
    }.items():
        for member in members:
            assert layouts.struct(struct)[member].size > 0, (struct, member)
    assert layouts.struct("page").size % 8 == 0
    assert layouts.constant("MIGRATE_CMA") == 2


def macro(header: str, name: str) -> int:
    match = re.search(rf"#define\s+{name}\s+([^/\n]+)", (INCLUDE / header).read_text())
    assert match is not None, f"{header} has no {name}"
    text = re.sub(r"(?<=[0-9a-fA-F])U?L?\b", "", match[1].strip().strip("()"))
    left, _, right = text.partition("<<")
    return int(left, 0) << int(right or "0", 0)


def test_constants_that_are_macros() -> None:
    """Debug information has none of them."""
    assert macro("page.h", "PG_BUDDY") == view.PG_BUDDY and macro("page.h", "PG_RESERVED") == view.PG_RESERVED
    assert macro("pagecache.h", "PG_PINNED") == view.PG_PINNED
    assert macro("memblock.h", "MEMBLOCK_RSRV_NOINIT") == view.RSRV_NOINIT
    assert macro("memblock.h", "MEMBLOCK_RSRV_KERN") == view.RSRV_KERN
    assert macro("memblock.h", "MEMBLOCK_KHO_SCRATCH") == view.KHO_SCRATCH
    assert 4096 << macro("page.h", "PAGEBLOCK_ORDER") == view.PAGEBLOCK
    from emu.debug import epitaph

    assert macro("panic.h", "EPITAPH_MAGIC") == epitaph.MAGIC
    assert ctypes.c_uint64(epitaph.MAGIC).value.to_bytes(8, "little") == b"!EPITAPH"
