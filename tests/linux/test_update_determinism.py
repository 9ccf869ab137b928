"""The same run, whatever is done to it from outside: sliced, observed, saved, dumped, replayed."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from emu.debug.phases import NAMES
from emu.machine import Machine
from tests.linux import updates
from tests.linux.build import LinuxBuild
from tests.linux.updates import SCRATCH, SPEC
from tests.oracles import require

pytestmark = pytest.mark.linux

End = tuple[str, int, int]
"""State hash, instructions and ticks at the end."""
ROOT = Path(__file__).resolve().parent.parent.parent


@pytest.fixture(scope="session")
def straight(linux: LinuxBuild) -> End:
    """How the small update ends."""
    result = updates.run(linux)
    assert result.ok, result.reasons
    return result.state_hash, result.stop.instructions, result.stop.ticks


def luemu(*words: str | Path, stdin: bytes = b"") -> tuple[int, bytes, bytes]:
    """A command in a process of its own: status, stdout, stderr."""
    done = subprocess.run(
        [sys.executable, "-m", "emu", *words], capture_output=True, check=False, input=stdin, cwd=ROOT
    )
    return done.returncode, done.stdout, done.stderr


def small(linux: LinuxBuild) -> list[str | Path]:
    """The small update as a command line."""
    words: list[str | Path] = ["run", "--old", linux.bzimage, "--memory", "128M", "--cmdline", SCRATCH]
    return [*words, "--file", f"{linux.lu}:/bin/lu", "--before", f"lu s1 {SPEC}", "--after", f"lu s2 {SPEC}"]


def test_another_process_comes_to_the_same_state(linux: LinuxBuild, straight: End) -> None:
    """Observed with everything that observes: trace, consoles."""
    with_everything = luemu(*small(linux), "--json", "-v", "--trace", "/dev/null")
    document = json.loads(with_everything[1])
    assert document["ok"], document["reasons"]
    end = document["end"]
    assert (document["state_hash"], end["instructions"], end["ticks"]) == straight
    assert b"Linux version 7.2.13" in with_everything[2]  # -v shows the console, on stderr beside --json


def test_the_trace(linux: LinuxBuild, tmp_path: Path, straight: End) -> None:
    trace = tmp_path / "trace"
    status, out, _ = luemu(*small(linux), "--json", "--trace", trace)
    assert status == 0
    document = json.loads(out)
    assert document["state_hash"] == straight[0]
    events = [json.loads(line) for line in trace.read_text().splitlines()]
    ticks = [e["tick"] for e in events]
    assert ticks == sorted(ticks)
    phases = [(e["id"], e["generation"]) for e in events if e["event"] == "phase"]
    reported = [(p["id"], p["generation"]) for p in document["phases"]]
    assert set(reported) <= set(phases)
    programs = [e for e in events if e["event"] in ("program", "exit")]
    assert [e["event"] for e in programs] == ["program", "exit"] * 2
    assert programs[0]["argv"] == ["lu", "s1", *SPEC.split()] and programs[1]["status"] == 0
    assert events[-1]["event"] == "end" and events[-1]["kind"] == "power-off"


@pytest.mark.parametrize(("seed", "at_most"), [(1, 20_000_000), (2, 90_000_000)])
def test_random_slices(linux: LinuxBuild, straight: End, seed: int, at_most: int) -> None:
    with updates.update(linux) as u:
        result = updates.run_sliced(u, seed, at_most)
    assert result.ok, result.reasons
    assert (result.state_hash, result.stop.instructions, result.stop.ticks) == straight


def test_snapshots_on_the_way_change_nothing(linux: LinuxBuild, straight: End) -> None:
    """Taken, left behind and gone back to, twice."""
    with updates.update(linux) as u:
        u.machine.run(600_000_000)
        assert u.observer is not None and u.observer.generation == 0
        hashes = []
        u.machine.watch_user(None)  # the observer follows one line of time only: go on without it
        for address, handler in u.observer._installed:
            u.machine.unprobe(address, handler)
        u.machine.serial_sinks.clear()
        base = u.machine.snapshot()
        for _ in range(2):
            u.machine.restore(base)
            u.machine.run(1_000_000_000)
            middle = u.machine.snapshot()
            u.machine.run(1_200_000_000)
            u.machine.restore(middle)
            stop = u.machine.run(max_instructions=updates.LIMIT)
            hashes.append((u.machine.state_hash(), stop.instructions, stop.ticks))
        assert hashes == [straight, straight]


def test_a_raw_run_reaches_the_same_state(linux: LinuxBuild, tmp_path: Path, straight: End) -> None:
    """Given only the bytes of the bzImage: no symbols, no probes."""
    alone = tmp_path / "kernel"
    alone.write_bytes(linux.bzimage.read_bytes())
    with updates.update(linux, old=alone, new=alone, raw=True) as u:
        assert u.symbols == [None, None] and u.observer is None and not u.machine._probes
        result = u.run()
    assert (result.state_hash, result.stop.instructions, result.stop.ticks) == straight
    assert not result.ok and result.reasons == ["nothing was verified: --raw observes nothing"]
    assert all(p["status"] == 0 for p in result.programs)


CONTINUE = """
import sys
from pathlib import Path
from emu.machine import Machine
for path in sys.argv[1:]:
    with Machine.load(Path(path)) as m:
        stop = m.run(max_instructions=6_000_000_000)
        print(path, stop.kind.value, m.state_hash(), stop.instructions, stop.ticks, flush=True)
"""
PHASES = [*(p for p in NAMES if p != "userspace"), "J", "K", "F"]
HALVES = [PHASES[::2], PHASES[1::2]]


@pytest.mark.parametrize("whens", HALVES, ids=["even", "odd"])
def test_saved_machines_go_on_in_another_process(
    linux: LinuxBuild, tmp_path: Path, straight: End, whens: list[str]
) -> None:
    """At each phase and moment, and once in the middle of nowhere."""
    at: list[tuple[str, str, Path]] = [("save", when, tmp_path / f"{when}.luemu") for when in whens]
    at.append(("save", "1234567891", tmp_path / "middle.luemu"))
    result = updates.run(linux, at=at)
    assert result.ok, result.reasons
    assert (result.state_hash, result.stop.instructions, result.stop.ticks) == straight
    files = [path for _, _, path in at]
    done = subprocess.run(
        [sys.executable, "-c", CONTINUE, *files], capture_output=True, text=True, check=False, cwd=ROOT
    )
    assert done.returncode == 0, done.stderr
    ended = {line.split()[0]: line.split()[1:] for line in done.stdout.splitlines()}
    expected = ["power-off", straight[0], str(straight[1]), str(straight[2])]
    assert {name: end for name, end in ended.items() if end != expected} == {}
    assert len(ended) == len(files)


def test_dumps_change_nothing(linux: LinuxBuild, tmp_path: Path, straight: End) -> None:
    files = {"P9": "a.raw", "K": "b.raw.zst", "P18": "c.elf"}
    at = [("dump", when, tmp_path / file) for when, file in files.items()]
    result = updates.run(linux, at=at)
    assert result.ok and all(path.stat().st_size for _, _, path in at)
    assert (result.state_hash, result.stop.instructions, result.stop.ticks) == straight


def test_nothing_but_devices_writes_between_the_jump_and_the_new_kernel(
    linux: LinuxBuild, straight: End
) -> None:
    writes: list[tuple[int, int, str]] = []
    seen: dict[str, int] = {}

    def watch(phys: int, size: int, by: str) -> None:
        writes.append((phys, size, by))

    with updates.update(linux) as u:
        assert u.observer is not None
        examine = u.observer.on_moment

        def moment(m: Machine, when: str, generation: int) -> None:
            if when == "J":
                m.memory.observers.append(watch)
            if examine is not None:
                examine(m, when, generation)  # what the host does at J and K is watched too
            if when in ("J", "K"):
                seen[when] = m.instructions

        u.observer.on_moment = moment
        until = updates.at_entry(u, "memblock_free_all", 1, lambda m: m.memory.observers.remove(watch))
        result = u.run()
        assert result.ok and set(seen) == {"J", "K"} and until
        assert result.state_hash == straight[0]
        assert [w for w in writes if not w[2].startswith("dma:")] == []
        # the observer does notice
        u.machine.memory.observers.append(watch)
        u.machine.memory.write(0x2000000, b"x", "test")
        assert writes[-1] == (0x2000000, 1, "test")


# --- a console that is typed on --------------------------------------------------------------------


def interactive(linux: LinuxBuild) -> list[str | Path]:
    words: list[str | Path] = ["run", "--old", linux.bzimage, "--memory", "128M", "--cmdline", SCRATCH]
    words += ["--file", f"{require('busybox')}:/bin/sh", "--updates", "0", "--interactive", "--json"]
    return words


TYPED = b"echo sum $((6*7))\nread x; echo got $x\nhello\nexit 3\n"


def test_replayed_input_is_the_same_run(linux: LinuxBuild, tmp_path: Path) -> None:
    log = tmp_path / "input"
    pieces = TYPED.splitlines(keepends=True)
    lines = [(700_000_000 + 30_000_000 * i, piece.hex()) for i, piece in enumerate(pieces)]
    log.write_text("".join(json.dumps(line) + "\n" for line in lines))
    runs = []
    for _ in range(2):
        status, out, err = luemu(*interactive(linux), "--replay-input", log)
        document: dict[str, Any] = json.loads(out)
        assert b"sum 42" in err and b"got hello" in err, err[-2000:]
        (shell,) = document["programs"]
        assert (status, shell["when"], shell["status"]) == (1, "interactive", 3)
        runs.append((document["state_hash"], document["end"]))
    assert runs[0] == runs[1]
    later = [(tick + 1, data) for tick, data in lines]
    log.write_text("".join(json.dumps(line) + "\n" for line in later))
    _, out, _ = luemu(*interactive(linux), "--replay-input", log)
    assert json.loads(out)["state_hash"] != runs[0][0], "input one tick later is another run"


def test_recorded_input_replays(linux: LinuxBuild, tmp_path: Path) -> None:
    log = tmp_path / "input"
    words = [w for w in interactive(linux) if w != "--json"]
    _, out, _ = luemu(*words, "--record-input", log, stdin=TYPED)
    assert b"sum 42" in out and b"got hello" in out, out[-2000:]
    state = next(line for line in out.decode(errors="replace").splitlines() if line.startswith("state "))
    _, again, _ = luemu(*words, "--replay-input", log)
    assert state in again.decode(errors="replace").splitlines()
