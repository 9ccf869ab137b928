"""Stages of one small update, each reached once for all tests of a process."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.run.stages import Stage, stage


@pytest.fixture(scope="session")
def before_jump() -> Iterator[Stage]:
    """The old kernel has prepared everything and is asked to reboot."""
    found = stage("kexec:reboot")
    yield found
    found.update.machine.close()


@pytest.fixture(scope="session")
def after_jump() -> Iterator[Stage]:
    """The new kernel begins to run."""
    found = stage("kexec:jump", "kernel:start")
    yield found
    found.update.machine.close()
