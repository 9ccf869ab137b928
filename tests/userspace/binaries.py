"""Static Linux programs for runs of userspace, compiled by the project's own compiler."""

from __future__ import annotations

import functools
from pathlib import Path

from kernels import build

INCLUDE = "tests/data/include"
"""Headers of the interface, for a C library whose own are older."""


@functools.cache
def binary(name: str) -> Path:
    """The program: ``lu``, the tool that made the recordings, unmodified; or one of kernels/user/tests."""
    made = build.build(build.project_root(), _lu() if name == "lu" else build.user_test(name))
    assert made is not None
    return made


def _lu() -> build.Target:
    quiet = tuple(f for f in build.LINUX_PROGRAM if f not in build.WARNINGS)  # it was not written for these
    return build.Target(
        name="test-lu",
        output="build/tests/programs/lu",
        sources=("tests/data/lu.c",),
        inputs=(f"{INCLUDE}/linux/*.h",),
        flags=(*quiet, "-w", f"-I{INCLUDE}"),
    )
