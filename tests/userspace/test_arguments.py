"""What calls of the live update interface look at first, and what preserved files refuse: answers of the
reference Linux to kernels/user/tests/arguments.c, which a random comparison found to be others here."""

from __future__ import annotations

import pytest

from tests.linux.build import find
from tests.oracles import absent
from tests.userspace import rig

EXPECTED = """\
ioctl(device, LIVEUPDATE_IOCTL_CREATE_SESSION, c) = -14 (Bad address)
ioctl(device, LIVEUPDATE_IOCTL_CREATE_SESSION, c) = -7 (Argument list too long)
ioctl(device, LIVEUPDATE_IOCTL_CREATE_SESSION, c) = -7 (Argument list too long)
ioctl(device, LIVEUPDATE_IOCTL_CREATE_SESSION, &c) < 0 ? -1 : 0 = 0
ioctl(session, LIVEUPDATE_SESSION_GET_NAME, &n) = 0
name session-of-17-ch, bytes written 24
pread(device, two, 1, 0) = -22 (Invalid argument)
pwrite(device, two, 1, 0) = -22 (Invalid argument)
pread(session, two, 1, 0) = -29 (Invalid seek)
lseek(device, 0, SEEK_SET) = -29 (Invalid seek)
lseek(device, 0, 9) = -22 (Invalid argument)
fchmod(session, 0600) = -95 (Not supported)
fchown(session, 1, 1) = -95 (Not supported)
ftruncate(file, PAGE + 100) = 0
ioctl(session, LIVEUPDATE_SESSION_PRESERVE_FD, &p) = 0
pwrite(file, two, 2 * PAGE, 0) = -1 (Operation not permitted)
pwrite(file, two, PAGE, 100) = 4096
lseek(file, 0, SEEK_CUR) = 0
madvise(memory, PAGE, MADV_REMOVE) = -1 (Operation not permitted)
"""


@pytest.mark.parametrize("release", ["old", "new", pytest.param("linux", marks=pytest.mark.linux)])
def test_the_same_answers_as_linux(release: str) -> None:
    kernel: object = release
    if release == "linux":
        build = find()
        if build is None:
            absent("the reference Linux", "make test-linux builds it")
            raise AssertionError("unreachable")
        kernel = build.bzimage
    outcome = rig.run(kernel, before=["arguments"], programs=("arguments",)).check()  # type: ignore[arg-type]
    assert outcome.output() == EXPECTED
