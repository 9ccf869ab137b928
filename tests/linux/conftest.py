"""The reference Linuxes for the tests in this directory."""

from __future__ import annotations

import pytest

from tests.linux.build import CONFIGS, LinuxBuild, required


@pytest.fixture(scope="session")
def linux() -> LinuxBuild:
    """The finished build with the plain configuration."""
    return required()


@pytest.fixture(scope="session")
def linux_test() -> LinuxBuild:
    """The one with tests of KHO and LUO, and drivers for devices."""
    return required(CONFIGS[1])
