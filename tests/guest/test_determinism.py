"""One update of our kernels is the same run in each of its repetitions: cut into slices, snapshotted and gone
back, saved and loaded, in other processes, on its own or watched.

The workload has preemptive threads, timers, faults, kexec and a handover; `junk` is on, so memory is
written that nobody reads.
"""

from __future__ import annotations

import functools
import json
import random
import subprocess
import sys
from pathlib import Path

import pytest

from emu.boot import Boot
from emu.debug.chain import Chain
from emu.initramfs import Initramfs
from emu.machine import Machine, Stop, StopKind
from kernels.build import project_root
from tests.machine.guest import run_sliced

MEMORY = 128 << 20
CMDLINE = "test_kho.max_mem=256K test_kho.order=3"
LIMIT = 1_000_000_000
MOMENTS = 5
"""hashes on the way, besides the last one"""
STEPS = (1, 2, 3, 100, 5_000, 500_000, 5_000_000)

End = tuple[str, int, int]
"""state hash, instructions, ticks"""


@functools.cache
def chain() -> Chain:
    """Read once: a build in between would be another run."""
    return Chain.open("old", ["new"], 1, cmdline=CMDLINE)


@functools.cache
def initramfs() -> bytes:
    files = Initramfs()
    for path, data in chain().files().items():
        files.add_file(path, data)
    return files.build()


def machine() -> Machine:
    """An update that is about to begin. What it is given are bytes of a bzImage, a text and an archive."""
    m = Machine(MEMORY)
    m.boot(Boot(chain().kernel(0).image, f"{chain().command_line(0)} luemu.generation=0", initramfs()))
    return m


def end(m: Machine, stop: Stop) -> End:
    assert stop.kind is StopKind.POWER_OFF, stop
    assert m.console.endswith(b"luemu: verdict ok\r\n"), m.console[-2000:]
    return m.state_hash(), stop.instructions, stop.ticks


@functools.cache
def straight() -> tuple[dict[int, str], End]:
    """Hashes at some ticks, and the end."""
    with machine() as m:
        whole = end(m, m.run(max_instructions=LIMIT))
    hashes = {}
    with machine() as m:
        for tick in random.Random(7).sample(range(whole[2]), MOMENTS):
            hashes[tick] = ""
        for tick in sorted(hashes):
            assert m.run(until=tick).kind is StopKind.UNTIL
            hashes[tick] = m.state_hash()
        assert end(m, m.run(max_instructions=LIMIT)) == whole
    return dict(sorted(hashes.items())), whole


def sliced(seed: int) -> None:
    hashes, whole = straight()
    with machine() as m:
        for tick, state_hash in hashes.items():
            run_sliced(m, seed ^ tick, tick, steps=STEPS)
            assert m.state_hash() == state_hash, f"seed {seed}: differs at or before tick {tick}"
        assert end(m, run_sliced(m, seed, steps=STEPS)) == whole, f"seed {seed}"


def snapshotted(seed: int) -> None:
    """Twice forth and back, to places within a few million ticks of each other."""
    dice = random.Random(seed)
    _, whole = straight()
    with machine() as m:
        m.run(until=dice.randrange(whole[2]))
        for _ in range(2):
            snapshot, before = m.snapshot(), m.state_hash()
            m.run(max_instructions=dice.randrange(1, 20_000_000))
            after = m.ticks, m.state_hash()
            m.restore(snapshot)
            assert m.state_hash() == before, f"seed {seed}"
            m.run(until=after[0])
            assert (m.ticks, m.state_hash()) == after, f"seed {seed}"
        assert end(m, m.run(max_instructions=LIMIT)) == whole, f"seed {seed}"


def saved(seed: int, path: Path) -> None:
    _, whole = straight()
    with machine() as m:
        m.run(until=random.Random(seed).randrange(whole[2]))
        before = m.state_hash()
        m.save(path)
    with Machine.load(path) as m:
        assert m.state_hash() == before, f"seed {seed}"
        assert end(m, m.run(max_instructions=LIMIT)) == whole, f"seed {seed}"


@pytest.mark.parametrize("seed", range(4))
def test_random_slices(seed: int) -> None:
    sliced(seed)


@pytest.mark.parametrize("seed", range(3))
def test_snapshots_and_going_back(seed: int) -> None:
    snapshotted(seed)


@pytest.mark.parametrize("seed", range(3))
def test_saved_and_loaded(seed: int, tmp_path: Path) -> None:
    saved(seed, tmp_path / "saved")


@pytest.mark.campaign
@pytest.mark.parametrize("part", range(10))
def test_hundreds_of_each(part: int, tmp_path: Path) -> None:
    for seed in range(100 + 30 * part, 130 + 30 * part):
        sliced(seed)
    for seed in range(100 + 10 * part, 110 + 10 * part):
        snapshotted(seed)
        saved(seed, tmp_path / "saved")


def luemu(*words: str) -> End:
    """The same update by the command, in a process of its own."""
    command = [sys.executable, "-m", "emu", "run", "--workload", "kho", "--memory", "128M", "--json"]
    command += ["--cmdline", CMDLINE, *words]
    done = subprocess.run(command, capture_output=True, check=False, cwd=project_root())
    document = json.loads(done.stdout)
    assert document["end"]["kind"] == "power-off", document
    return document["state_hash"], document["end"]["instructions"], document["end"]["ticks"]


def test_other_processes() -> None:
    """One that watches everything and one that watches nothing. The kernel is given as bytes alone to the
    second: no symbols, no probes."""
    _, whole = straight()
    assert luemu() == whole
    assert luemu("--raw") == whole


def test_a_bzimage_alone(tmp_path: Path) -> None:
    """A copy of it in a directory where nothing else is; and the run of another kernel is another one."""
    _, whole = straight()
    copy = tmp_path / "kernel"
    copy.write_bytes(chain().kernel(0).image)
    assert luemu("--raw", "--old", str(copy), "--new", "new") == whole
    assert luemu("--raw", "--old", "new", "--new", "new") != whole
