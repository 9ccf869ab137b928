"""The project's kernels and Linux hand over to each other, in the format of Linux' own test of KHO."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from emu.debug.options import Options
from emu.debug.update import Update
from emu.debug.verdict import Result
from tests.linux.build import CONFIGS, LinuxBuild, required

pytestmark = pytest.mark.linux

LIMIT = 8_000_000_000


@pytest.fixture(scope="module")
def linux() -> LinuxBuild:
    """The one with its own test of KHO built in."""
    return required(CONFIGS[1])


@contextmanager
def running(**changes: Any) -> Iterator[Update]:
    o = Options(old="old", new="new", cmdline="kho_scratch=96M,0,0", max_instructions=LIMIT)
    for name, value in changes.items():
        setattr(o, name, value)
    update = Update(o)
    try:
        yield update
    finally:
        update.machine.close()


def good(result: Result) -> list[dict[str, Any]]:
    assert (result.ok, result.reasons, result.violations) == (True, [], [])
    for u in result.updates:
        assert u["moments"] == ["J", "K", "F"] and u["digest_instructions"] > 0
        assert 0 < u["blackout_instructions"] <= u["blackout_ticks"]
    return result.updates


@pytest.mark.parametrize(("old", "version"), [("old", "7.2.1-luemu"), ("new", "7.2.2-luemu")])
def test_linux_restores_what_ours_saved(linux: LinuxBuild, old: str, version: str) -> None:
    with running(old=old, new=linux.bzimage) as update:
        (u,) = good(update.run())
        assert b"test_kho: KHO restore succeeded" in update.machine.console
        assert f"KHO: exec from: {version} (count 1)".encode() in update.machine.console
    assert (u["old"]["release"], u["new"]["release"]) == (version, "7.2.13-kho")
    # what is seen while a kernel runs: of ours as the one that hands over, of Linux as the one that receives
    assert {"INV-3", "INV-49", "INV-39"} <= set(u["checked"])
    assert {"INV-32", "INV-33", "INV-34", "INV-35", "INV-36", "INV-37"} <= set(u["checked"])


@pytest.mark.parametrize("new", ["old", "new"])
def test_ours_restore_what_linux_saved(linux: LinuxBuild, new: str) -> None:
    with running(old=linux.bzimage, new=new) as update:
        (u,) = good(update.run())
        assert b"test_kho: KHO restore succeeded" in update.machine.console
    assert u["old"]["release"] == "7.2.13-kho"
    rows = (3, 26, 32, 33, 34, 35, 36, 37, 38, 39, 45)
    assert {f"INV-{n}" for n in rows} <= set(u["checked"])


def test_a_chain_of_both(linux: LinuxBuild) -> None:
    """Linux, ours, Linux, ours: the kexec count goes on, and so does the scratch."""
    with running(old=linux.bzimage, new="new", updates=3) as update:
        updates = good(update.run())
        # Linux saves only after a cold boot
        assert update.machine.console.count(b"KHO restore succeeded") == 2
        assert [u["scratch"] for u in updates] == [updates[0]["scratch"]] * 3
    assert all("INV-4" in u["checked"] for u in updates[1:])
    for one, following in itertools.pairwise(updates):
        last, first = one["phases"][-1], following["phases"][0]
        assert last["start"] + last["ticks"] == first["start"]


def test_a_folio_that_changes_on_the_way_to_linux(linux: LinuxBuild) -> None:
    """By the old kernel's own doing: it is named by the checksum at J, and Linux' test fails."""
    with running(new=linux.bzimage, cmdline="kho_scratch=96M,0,0 break=corrupt3") as update:
        result = update.run()
        assert not result.ok
        assert "the folios of kho_test have not their checksum at J of update 1" in result.reasons
        assert b"KHO restore failed" in update.machine.console
