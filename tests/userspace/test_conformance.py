"""Our kernels answer programs as Linux does: the same binary says the same on both."""

from __future__ import annotations

import difflib
import functools

import pytest

from tests.userspace.programs import RELEASES, Ran, is_root, on_kernel, on_linux

PROGRAMS = ("fork", "signals", "exec")


@functools.cache
def expected(name: str) -> Ran:
    return on_linux(name)


@pytest.mark.parametrize("release", RELEASES)
@pytest.mark.parametrize("name", PROGRAMS)
def test_same_as_linux(name: str, release: str) -> None:
    if not is_root():
        pytest.skip("the programs are user 0's in our kernels")
    linux = expected(name)
    (ours,) = on_kernel(release, name)
    different = list(difflib.unified_diff(linux.lines, ours.lines, "Linux", release, lineterm="", n=1))
    assert not different, f"kernels/user/tests/{name}.c:\n" + "\n".join(different)
    assert ours.end == linux.end
    assert len(linux.lines) > 20, "the program said hardly anything on Linux"
