"""Our kernels answer programs as Linux does: the same binary says the same on both."""

from __future__ import annotations

import difflib
import functools

import pytest

from tests.userspace.programs import RELEASES, Ran, is_root, on_kernel, on_linux

PROGRAMS = (
    "counters", "devices", "exec", "fork", "ids", "memfiles", "misc", "pidfd", "pipes", "polling", "rights",
    "sendfile", "session", "signals", "sockets", "terminal", "threads",
)  # fmt: skip
TRIES = 3


@functools.cache
def linux(name: str, attempt: int) -> Ran:
    """The programs wait for each other by time in some places: a busy Linux may be late. Ours never is."""
    return on_linux(name)


def difference(name: str, release: str, ours: Ran, attempt: int) -> list[str]:
    expected = linux(name, attempt)
    assert len(expected.lines) > 20, "the program said hardly anything on Linux"
    return list(
        difflib.unified_diff(
            [*expected.lines, expected.end], [*ours.lines, ours.end], "Linux", release, lineterm="", n=1
        )
    )


@pytest.mark.parametrize("release", RELEASES)
@pytest.mark.parametrize("name", PROGRAMS)
def test_same_as_linux(name: str, release: str) -> None:
    if not is_root():
        pytest.skip("the programs are user 0's in our kernels")
    (ours,) = on_kernel(release, name)
    for attempt in range(TRIES):
        different = difference(name, release, ours, attempt)
        if not different:
            return
    pytest.fail(f"kernels/user/tests/{name}.c:\n" + "\n".join(different), pytrace=False)
