"""A run is the same whatever it was cut into, and whether or not it was observed, snapshotted or slowed.

The workloads are those of the self-test guest: `do=ticks` (timers, IPIs, ports, device memory, faults,
code changes, TSC in mid-block), `do=pagetables` (page tables and accessed bits edited without INVLPG), and
all of its tests.
"""

from __future__ import annotations

import functools
import os
import random
import subprocess
import sys
from dataclasses import dataclass

import pytest

from emu.machine import Machine, Stop, StopKind
from kernels.build import project_root
from tests.machine.guest import run_sliced, selftest

WORKLOADS = {"ticks": "do=ticks", "pagetables": "do=pagetables", "all": ""}
EVERY = {"ticks": 4_000_000, "pagetables": 9_000_000, "all": 20_000_000}
STEPS = (1, 2, 3, 100, 5_000, 500_000)


@dataclass(frozen=True)
class Reference:
    stop: Stop
    final: str
    hashes: dict[int, str]
    console: bytes


@functools.cache
def reference(name: str) -> Reference:
    """The workload in one go, and its hashes at a few ticks."""
    with selftest(WORKLOADS[name]) as whole:
        stop = whole.run(max_instructions=1_000_000_000)
        assert stop.kind is StopKind.POWER_OFF, stop
        final, console = whole.state_hash(), whole.console
    hashes = {}
    with selftest(WORKLOADS[name]) as m:
        for tick in range(EVERY[name], stop.ticks, EVERY[name]):
            assert m.run(until=tick).kind is StopKind.UNTIL
            hashes[tick] = m.state_hash()
        assert m.run() == stop
        assert m.state_hash() == final, "cut at a few places"
    return Reference(stop, final, hashes, console)


def compare(name: str, m: Machine, seed: int, *, steps: tuple[int, ...] = STEPS) -> None:
    wanted = reference(name)
    for tick, state_hash in wanted.hashes.items():
        run_sliced(m, seed ^ tick, tick, steps=steps)
        assert m.state_hash() == state_hash, f"workload {name}, seed {seed}: differs at or before tick {tick}"
    assert run_sliced(m, seed, steps=steps) == wanted.stop, f"workload {name}, seed {seed}"
    assert m.state_hash() == wanted.final, f"workload {name}, seed {seed}"
    assert m.console == wanted.console


@pytest.mark.parametrize(("name", "seed"), [("ticks", 1), ("ticks", 2), ("pagetables", 3)])
def test_random_slicing(name: str, seed: int) -> None:
    with selftest(WORKLOADS[name]) as m:
        compare(name, m, seed)


@pytest.mark.campaign
@pytest.mark.parametrize("seed", range(100, 106))
@pytest.mark.parametrize("name", WORKLOADS)
def test_many_random_slicings(name: str, seed: int) -> None:
    steps = (STEPS, (1_000, 300_000), (1, 3, 3_000_000))[seed % 3]
    with selftest(WORKLOADS[name]) as m:
        compare(name, m, seed, steps=steps)


@pytest.mark.parametrize("name", ["ticks", "pagetables"])
def test_thousands_of_single_steps(name: str) -> None:
    tick = next(iter(reference(name).hashes))
    with selftest(WORKLOADS[name]) as m:
        m.run(until=tick - 6_000)
        while m.ticks < tick - 3:
            assert m.step().kind is StopKind.UNTIL
        m.run(until=tick)
        assert m.state_hash() == reference(name).hashes[tick]


@functools.cache
def busy_addresses(name: str, count: int, seed: int) -> tuple[int, ...]:
    """Addresses of instructions that the workload executes, in the middle of blocks mostly: where it
    was when it was stopped at random times."""
    rng = random.Random(seed)
    found: set[int] = set()
    with selftest(WORKLOADS[name]) as m:
        m.run(until=165_000)
        while len(found) < count:
            m.run(until=m.ticks + rng.randint(1, 9_000))
            found.add(m.registers()["rip"])
    return tuple(sorted(found))


@pytest.mark.parametrize(("name", "seed"), [("ticks", 11), ("pagetables", 12)])
def test_probes_change_nothing(name: str, seed: int) -> None:
    """Including on accesses to devices, on REP, in handlers and in ring 3; some stop the run."""
    tick = next(iter(reference(name).hashes))
    rng = random.Random(seed)
    calls = 0

    def note(m: Machine, address: int) -> bool:
        nonlocal calls
        calls += 1
        if calls % 1000 == 0:  # a probe in a hot loop costs too much
            m.unprobe(address, note)
        return rng.random() < 0.01

    with selftest(WORKLOADS[name]) as m:
        for address in busy_addresses(name, 150, seed):
            m.probe(address, note)
        stops = 0
        while m.ticks < tick:
            stop = m.run(until=min(tick, m.ticks + rng.randint(1, 400_000)))
            stops += stop.kind is StopKind.BREAKPOINT
        assert m.state_hash() == reference(name).hashes[tick], f"seed {seed}"
        assert calls > 1000
        assert stops > 10


def test_watching_user_mode_changes_nothing() -> None:
    seen = 0

    def note(m: Machine) -> None:
        nonlocal seen
        seen += 1
        m.registers()

    tick = next(iter(reference("ticks").hashes))
    with selftest(WORKLOADS["ticks"]) as m:
        m.watch_user(note)
        m.run(until=tick)
        assert m.state_hash() == reference("ticks").hashes[tick]
    assert seen > 10


IN_A_PROCESS = """
import os, random, sys, threading, time
from tests.machine.guest import selftest
from emu.machine import StopKind

tick, how = int(sys.argv[1]), sys.argv[2]
with selftest("do=ticks") as m:
    if how == "slow":
        os.nice(10)
        done = False
        def spin():
            while not done:
                sum(range(1000))
        threading.Thread(target=spin, daemon=True).start()
        rng = random.Random(1)
        def sleep(*_):
            time.sleep(rng.choice([0, 0, 0.0001, 0.002]))
        m.serial_sinks.append(sleep)
        while m.ticks < tick:
            m.run(until=min(tick, m.ticks + rng.randint(1, 300_000)))
            sleep()
    m.run(until=tick)
    print(m.state_hash())
    done = True
"""


@pytest.mark.parametrize(
    ("how", "environment"),
    [
        ("plain", {"PYTHONHASHSEED": "1"}),
        ("plain", {"PYTHONHASHSEED": "4242", "PADDING": "x" * 50_000}),
        ("slow", {"PYTHONHASHSEED": "7", "MALLOC_PERTURB_": "165"}),
    ],
)
def test_other_processes_get_the_same_state(how: str, environment: dict[str, str]) -> None:
    tick = next(iter(reference("ticks").hashes))
    run = subprocess.run(
        [sys.executable, "-c", IN_A_PROCESS, str(tick), how],
        env={**os.environ, **environment}, cwd=project_root(), capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert run.stdout.strip() == reference("ticks").hashes[tick], run.stderr
