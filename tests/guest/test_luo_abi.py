"""LUO's formats and its user interface, described twice: the kernels' debug information against `luo.abi`."""

from __future__ import annotations

import re

import pytest

from kernels import build
from luo import abi
from tests.guest.abi_contract import Contract

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


CONTRACT = Contract(HEADER, "luo_abi", MEMBERS, SIZES, CONSTANTS, TEXTS, VERSIONS)


@pytest.mark.parametrize("release", ["old", "new"])
def test_the_release_says_the_same(release: str) -> None:
    CONTRACT.check_image(build.build_all(ROOT, [f"kernel-{release}"])[f"kernel-{release}"])


def test_all_of_the_header_is_compared() -> None:
    CONTRACT.check_header()


def test_the_header_for_programs_has_the_same_numbers() -> None:
    """Programs of the tests are compiled with a header of their own."""
    found = re.findall(
        r"^#define\s+(LIVEUPDATE_\w+)\s+_IO\(LIVEUPDATE_IOCTL_TYPE, (0x\w+)\)", USER_HEADER.read_text(), re.M
    )
    assert {name: 0xBA00 | int(number, 16) for name, number in found} == IOCTLS
