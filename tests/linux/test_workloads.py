"""The project's workloads on an unmodified Linux, and on any pair of kernels of both kinds."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest

from emu.debug.options import Options
from emu.debug.update import Update
from emu.debug.verdict import Result
from emu.debug.workloads import workload
from tests.linux.build import LinuxBuild

pytestmark = pytest.mark.linux

MIB = 1 << 20
LIMIT = 20_000_000_000
KERNELS = ("old", "new", "linux")
PAIRS = [pair for pair in itertools.product(KERNELS, repeat=2) if "linux" in pair]
CHAINS = list(itertools.permutations(KERNELS, 3))


def run(linux: LinuxBuild, name: str, kernels: tuple[str, ...], preserve: int | None = None) -> Result:
    w = workload(name, preserve)
    paths: list[Path | str] = [linux.bzimage if k == "linux" else k for k in kernels]
    o = Options(
        paths[0], paths[1], paths[2:], before=w.before, after=w.after, programs=w.programs,
        cmdline=w.cmdline, updates=len(kernels) - 1, memory=w.memory, max_instructions=LIMIT,
    )  # fmt: skip
    u = Update(o)
    try:
        return u.run()
    finally:
        u.machine.close()


def good(result: Result) -> list[dict[str, Any]]:
    assert (result.ok, result.reasons, result.violations) == (True, [], [])
    return result.updates


def check_cache(result: Result) -> None:
    for u in good(result):
        c = u["cache"]
        assert (c["lost"], c["corrupted"], c["last_write_survived"]) == (0, 0, True)
        assert c["keys"] == 2048 and c["acknowledged"] > 2048


@pytest.mark.parametrize("pair", PAIRS, ids="-".join)
def test_the_cache_loses_nothing_on_any_pair(linux: LinuxBuild, pair: tuple[str, str]) -> None:
    check_cache(run(linux, "cache", pair, 4 * MIB))


@pytest.mark.parametrize("chain", CHAINS, ids="-".join)
def test_the_cache_loses_nothing_in_a_chain_of_three_different_kernels(
    linux: LinuxBuild, chain: tuple[str, str, str]
) -> None:
    check_cache(run(linux, "cache", chain, 4 * MIB))


@pytest.mark.parametrize("pair", PAIRS, ids="-".join)
@pytest.mark.parametrize("name", ["sparse", "abort"])
def test_the_others_on_any_pair(linux: LinuxBuild, name: str, pair: tuple[str, str]) -> None:
    result = run(linux, name, pair)
    good(result)
    if name == "abort":
        skipped = [line for p in result.programs for line in p["output"].splitlines() if "skipped" in line]
        assert len(skipped) == (2 if pair[0] == "linux" else 1), "a Linux has no file that refuses"


@pytest.mark.parametrize("pair", [("linux", "linux"), ("linux", "new"), ("old", "linux")], ids="-".join)
def test_thousands_of_sessions_and_files(linux: LinuxBuild, pair: tuple[str, str]) -> None:
    (u,) = good(run(linux, "many", pair))
    assert len(u["sessions"]) == 2001
