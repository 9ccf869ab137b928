"""LUO's formats and its user interface, described twice: the kernels' debug information against `luo.abi`."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from elftools.elf.elffile import ELFFile

from emu.debug.layout import Layouts
from kernels import build
from luo import abi

ROOT = build.project_root()
HEADER = ROOT / "luo" / "guest" / "abi.h"
USER_HEADER = ROOT / "tests" / "data" / "include" / "linux" / "liveupdate.h"

MEMBERS = {
    "luo_ser": {
        "compatible": (0, 8), "liveupdate_num": (8, 8), "sessions_pa": (16, 8), "flbs_pa": (24, 8),
    },
    "luo_file_set_ser": {"files": (0, 8), "count": (8, 8)},
    "luo_session_ser": {"name": (0, abi.SESSION_NAME_SIZE), "file_set": (64, 16)},
    "luo_file_ser": {"compatible": (0, abi.FILE_COMPATIBLE_SIZE), "data": (48, 8), "token": (56, 8)},
    "luo_flb_header_ser": {"pgcnt": (0, 8), "count": (8, 8)},
    "luo_flb_ser": {"name": (0, abi.FILE_COMPATIBLE_SIZE), "data": (48, 8), "count": (56, 8)},
    "memfd_luo_ser": {
        "pos": (0, 8), "size": (8, 8), "seals": (16, 4), "flags": (20, 4), "nr_folios": (24, 8),
        "folios": (32, 16),
    },
    "memfd_luo_folio_ser": {"pfn_flags": (0, 8), "index": (8, 8)},
    # the user interface
    "liveupdate_session_ioctl": {"size": (0, 4), "fd": (4, 4), "name": (8, 64)},
    "liveupdate_fd_ioctl": {"size": (0, 4), "fd": (4, 4), "token": (8, 8)},
    "liveupdate_finish_ioctl": {"size": (0, 4), "reserved": (4, 4)},
    "liveupdate_name_ioctl": {"size": (0, 4), "reserved": (4, 4), "name": (8, 64)},
}  # fmt: skip
SIZES = {
    "luo_ser": abi.LUO_SER.size,
    "luo_file_set_ser": abi.SESSION.size - abi.SESSION_NAME_SIZE,
    "luo_session_ser": abi.SESSION.size,
    "luo_file_ser": abi.FILE.size,
    "luo_flb_header_ser": abi.FLB_HEADER.size,
    "luo_flb_ser": abi.FLB.size,
    "memfd_luo_ser": abi.MEMFD.size,
    "memfd_luo_folio_ser": abi.FOLIO_SIZE,
    "liveupdate_session_ioctl": 72,
    "liveupdate_fd_ioctl": 16,
    "liveupdate_finish_ioctl": 8,
    "liveupdate_name_ioctl": 72,
}
IOCTLS = {
    "LIVEUPDATE_IOCTL_CREATE_SESSION": 0xBA00,
    "LIVEUPDATE_IOCTL_RETRIEVE_SESSION": 0xBA01,
    "LIVEUPDATE_SESSION_PRESERVE_FD": 0xBA40,
    "LIVEUPDATE_SESSION_RETRIEVE_FD": 0xBA41,
    "LIVEUPDATE_SESSION_FINISH": 0xBA42,
    "LIVEUPDATE_SESSION_GET_NAME": 0xBA43,
}
CONSTANTS = {
    "LUO_SESSION_NAME_LENGTH": abi.SESSION_NAME_SIZE,
    "LUO_COMPATIBLE_LENGTH": abi.FILE_COMPATIBLE_SIZE,
    "LUO_FLB_PGCNT": 1,
    "LUO_FLB_MAX": abi.FLB_MAX,
    "MEMFD_LUO_PFN_BITS": abi.FOLIO_PFN_BITS,
    "MEMFD_LUO_DIRTY": abi.FOLIO_DIRTY,
    "MEMFD_LUO_UPTODATE": abi.FOLIO_UPTODATE,
    "MEMFD_LUO_ALL_SEALS": abi.SEALS_ALL,
    **IOCTLS,
}
TEXTS = {"LUO_KHO_NODE_NAME": abi.LUO_SUBTREE}
VERSIONS = {"luo_compatible": abi.LUO_COMPATIBLE, "memfd_compatible": abi.MEMFD_COMPATIBLE}


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
    enumeration = text[text.index("enum luo_abi") : text.index("};", text.index("enum luo_abi"))]
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


@pytest.mark.parametrize("symbol", VERSIONS)
def test_compatible_strings_are_in_the_image(elf: Path, symbol: str) -> None:
    with elf.open("rb") as f:
        file = ELFFile(f)
        symbols: Any = file.get_section_by_name(".symtab")
        found = symbols.get_symbol_by_name(symbol)[0]
        section = file.get_section(found["st_shndx"])
        at = found["st_value"] - section["sh_addr"]
        assert section.data()[at : at + found["st_size"]] == VERSIONS[symbol].encode() + b"\0"


def test_the_header_for_programs_has_the_same_numbers() -> None:
    """Programs of the tests are compiled with a header of their own."""
    found = re.findall(
        r"^#define\s+(LIVEUPDATE_\w+)\s+_IO\(LIVEUPDATE_IOCTL_TYPE, (0x\w+)\)", USER_HEADER.read_text(), re.M
    )
    assert {name: 0xBA00 | int(number, 16) for name, number in found} == IOCTLS
