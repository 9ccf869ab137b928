"""The reference Linux for the tests in this directory."""

from __future__ import annotations

import pytest

from tests.linux.build import LinuxBuild, find
from tests.oracles import absent


@pytest.fixture(scope="session")
def linux() -> LinuxBuild:
    """The finished build with the plain configuration."""
    build = find()
    if build is None:
        absent("the reference Linux", "make test-linux builds it")
        raise AssertionError("unreachable")
    return build
