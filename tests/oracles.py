"""Programs that are not ours and that tests compare against (QEMU, dtc, cpio, …).

A machine of a developer may lack one: the test is skipped and says why. In CI (the variable CI is set)
nothing may be skipped for that reason: it fails, and `.ci/run` has to install the program.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

DEBIAN_PACKAGE = {
    "qemu-system-x86_64": "qemu-system-x86",
    "dtc": "device-tree-compiler",
    "fdtdump": "device-tree-compiler",
    "busybox": "busybox-static",
    "kexec": "kexec-tools",
    "iasl": "acpica-tools",
    "gdb": "gdb",
    "zstd": "zstd",
    "chroot": "coreutils",
    "cpio": "cpio",
    "ldd": "libc-bin",
    "gcc": "gcc",
}


def in_ci() -> bool:
    """Whether this is a run in which nothing may be skipped."""
    return os.environ.get("CI", "").lower() not in ("", "0", "false")


def absent(what: str, how: str) -> None:
    """Skip the running test, or fail it in CI, because `what` is absent; `how` says how to get it."""
    message = f"{what} is not there ({how})"
    if in_ci():
        pytest.fail(f"{message}; in CI nothing is skipped", pytrace=False)
    pytest.skip(message)


def require(program: str) -> Path:
    """Path of a program that the test compares against."""
    found = shutil.which(program, path=os.environ.get("PATH", os.defpath) + ":/usr/sbin:/sbin")
    if found is None:
        absent(program, f"Debian package: {DEBIAN_PACKAGE.get(program, program)}")
        raise AssertionError("unreachable")
    return Path(found)
