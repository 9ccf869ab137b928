"""Files that are not files in the way of a program that means harm: pipes, sockets, terminals, watchers."""

from __future__ import annotations

import pytest

from tests.userspace.programs import RELEASES, on_kernel


@pytest.mark.parametrize("release", RELEASES)
def test_a_storm_of_calls(release: str) -> None:
    """The kernel lives, every process gets to its end, and the memory is there again."""
    (ran,) = on_kernel(release, "storm 2000 2")
    assert ran.lines == ["done"] and ran.end == "exited 0", "\n".join(ran.lines[-20:])
