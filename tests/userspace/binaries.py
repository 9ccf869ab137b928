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
    flags: tuple[str, ...] = build.LINUX_PROGRAM
    source = f"kernels/user/tests/{name}.c"
    if name == "lu":
        flags = (*(f for f in flags if f not in build.WARNINGS), "-w")  # it was not written for these
        source = "tests/data/lu.c"
    target = build.Target(
        name=f"test-luo-{name}",
        output=f"build/tests/programs/{name}",
        sources=(source,),
        inputs=(f"{INCLUDE}/linux/*.h", "kernels/user/tests/*.h"),
        flags=(*flags, f"-I{INCLUDE}"),
    )
    made = build.build(build.project_root(), target)
    assert made is not None
    return made
