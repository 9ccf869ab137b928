"""Pipes, sockets and terminals where Linux is no oracle: in a storm of calls; sessions in messages."""

from __future__ import annotations

import pytest

from tests.userspace.programs import RELEASES, archive, boot, on_kernel


@pytest.mark.parametrize("release", RELEASES)
def test_a_storm_of_calls(release: str) -> None:
    """The kernel lives, every process gets to its end, and the memory is there again."""
    (ran,) = on_kernel(release, "storm 2000 2")
    assert ran.lines == ["done"] and ran.end == "exited 0", "\n".join(ran.lines[-20:])


@pytest.mark.parametrize("release", RELEASES)
def test_a_session_lives_as_long_as_somebody_has_it(release: str) -> None:
    """Its name is taken while it is in a message, and free when nobody can reach it any more."""
    console = boot(release, archive(["passed"]), "loglevel=4 kho=on liveupdate=on kho_scratch=16M,0,0")
    assert "@@ end: exited 0" in console, "\n".join(console[-20:])
    said = console[console.index("@@ /t/passed") + 1 : console.index("@@ end: exited 0")]
    taken = "create() = -17 (File exists)"
    assert said == [
        "device >= 0: yes", "fd >= 0: yes", taken,
        "sendmsg(s, &m, 0) = 1", taken,
        "recvmsg(s, &m, 0) = 1", "ftruncate(p.fd, 8192) = 0",
        "ioctl(fd, LIVEUPDATE_SESSION_PRESERVE_FD, &p) = 0", taken, "child: exited 0",
        "fd >= 0: yes", *["sendmsg(s, &m, 0) = 1"] * 3, taken, taken, "create() >= 0: yes",
    ]  # fmt: skip
