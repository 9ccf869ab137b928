"""Kernels whose KHO code runs in this process (`kho_host.py`)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from kernels import build
from tests.guest.kho_cases import OLD_PAGES, RAM_SIZE
from tests.guest.kho_host import HOSTED, Kernel, Ram


@pytest.fixture(scope="session")
def library() -> Path:
    path = build.build(build.project_root(), HOSTED)
    assert path is not None
    return path


@pytest.fixture
def ram() -> Iterator[Ram]:
    with Ram(RAM_SIZE) as memory:
        yield memory


@pytest.fixture
def old(library: Path, ram: Ram) -> Iterator[Kernel]:
    """A kernel after a cold boot."""
    with Kernel(library, ram, OLD_PAGES) as kernel:
        kernel.boot()
        yield kernel
