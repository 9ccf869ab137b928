"""`luemu run` on an unmodified Linux: the report, its figures, chains, Linux' own tests."""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from typing import Any

import pytest

from emu.debug.phases import NAMES
from tests.linux import updates
from tests.linux.build import SELFTESTS, LinuxBuild
from tests.linux.updates import DIGEST, SCRATCH, SPEC

pytestmark = pytest.mark.linux

JsonObject = dict[str, Any]

# --- the shape of the document ---------------------------------------------------------------------

NUMBER, TEXT, TRUTH, OBJECT = (int,), (str,), (bool,), (dict,)
MAYBE_NUMBER, MAYBE_TEXT = (int, type(None)), (str, type(None))
UPDATE: Mapping[str, Any] = {
    "old": {"release": TEXT, "sha256": TEXT},
    "new": {"release": TEXT, "sha256": TEXT},
    "phases": [
        {
            "id": TEXT, "name": TEXT, "kernel": TEXT, "generation": NUMBER, "start": NUMBER,
            "instructions": NUMBER, "ticks": NUMBER,
        }
    ],
    "blackout_instructions": NUMBER,
    "blackout_ticks": NUMBER,
    "preserved": {"pages": NUMBER, "bytes": NUMBER, "metadata_bytes": NUMBER, "tree_bytes": NUMBER},
    "digest_instructions": NUMBER,
    "sessions": [
        {
            "name": TEXT,
            "files": [
                {
                    "token": NUMBER, "compatible": TEXT, "size": NUMBER, "pos": NUMBER, "seals": NUMBER,
                    "folios": NUMBER, "sha256": TEXT,
                }
            ],
        }
    ],
    "checked": [TEXT],
    "not_checked": OBJECT,
}  # fmt: skip
TOP: Mapping[str, Any] = {
    **UPDATE,
    "ok": TRUTH,
    "memory_bytes": NUMBER,
    "violations": [{"id": TEXT, "moment": TEXT, "message": TEXT, "phys": MAYBE_NUMBER}],
    "state_hash": TEXT,
    "updates": [UPDATE],
    "programs": [
        {"when": TEXT, "argv": [TEXT], "status": MAYBE_NUMBER, "signal": MAYBE_NUMBER, "output": TEXT}
    ],
}


def shape_errors(value: Any, shape: Any, where: str = "$") -> list[str]:
    """What is missing in a document, or of another type than it should be."""
    if isinstance(shape, Mapping):
        if not isinstance(value, dict):
            return [f"{where} is no object"]
        missing = [f"{where}.{name} is missing" for name in shape if name not in value]
        there = [name for name in shape if name in value]
        return missing + [e for n in there for e in shape_errors(value[n], shape[n], f"{where}.{n}")]
    if isinstance(shape, list):
        if not isinstance(value, list):
            return [f"{where} is no list"]
        return [e for i, item in enumerate(value) for e in shape_errors(item, shape[0], f"{where}[{i}]")]
    wrong = not isinstance(value, shape) or (isinstance(value, bool) and bool not in shape)
    return [f"{where} is {value!r}"] if wrong else []


def test_the_shape_checker_notices() -> None:
    good = {"release": "7", "sha256": "00"}
    shape = UPDATE["old"]
    assert shape_errors(good, shape) == []
    assert shape_errors({"release": 7}, shape) == ["$.sha256 is missing", "$.release is 7"]
    assert shape_errors([True], [NUMBER]) == ["$[0] is True"]
    assert shape_errors({}, [NUMBER]) == ["$ is no list"]


def check_partition(phases: list[JsonObject], update: int = 0) -> None:
    """Every instruction of an update is in exactly one record."""
    assert phases
    for p in phases:
        assert NAMES[p["id"]] == p["name"]
        assert p["ticks"] > 0 and 0 <= p["instructions"] <= p["ticks"], p
        assert p["kernel"] == ("new" if p["generation"] > update else "old")
    for one, next in itertools.pairwise(phases):
        assert one["start"] + one["ticks"] == next["start"], (one, next)
        assert (one["name"], one["generation"]) != (next["name"], next["generation"]), (one, next)


def check_blackout(u: JsonObject, generation: int) -> None:
    """From the last user instruction of the old kernel to the first of the new one, by the phases."""
    user = ("userspace", "P22")
    before = [p for p in u["phases"] if p["generation"] == generation and p["id"] in user][-1]
    after = next(p for p in u["phases"] if p["generation"] == generation + 1 and p["id"] in user)
    from_phases = after["start"] - (before["start"] + before["ticks"])
    # the system call's way to kernel_kexec is in the blackout, but still in the record before
    assert 0 <= u["blackout_ticks"] - from_phases < 10_000
    assert 0 < u["digest_instructions"] < u["blackout_instructions"] <= u["blackout_ticks"]


# --- one update by the command ---------------------------------------------------------------------


@pytest.fixture(scope="session")
def document(linux: LinuxBuild) -> JsonObject:
    """`luemu run --json` of the small update, in a process of its own."""
    command = [sys.executable, "-m", "emu", "run", "--json", "--old", str(linux.bzimage)]
    command += ["--memory", "128M", "--cmdline", SCRATCH, "--file", f"{linux.lu}:/bin/lu"]
    command += ["--before", f"lu s1 {SPEC}", "--after", f"lu s2 {SPEC}"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=dict(os.environ))
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr
    assert done.stderr == ""
    found: JsonObject = json.loads(done.stdout)
    return found


def test_the_second_kernel_finds_what_the_first_preserved(document: JsonObject) -> None:
    assert document["ok"] and not document["violations"] and not document["reasons"]
    before, after = document["programs"]
    assert (before["when"], before["status"], after["when"], after["status"]) == ("before", 0, "after", 0)
    # the sha256 that the guests print, the host computes, and the recording has
    assert f"sha256={DIGEST}" in before["output"] and f"sha256={DIGEST}" in after["output"]
    (session,) = document["sessions"]
    (file,) = session["files"]
    assert (session["name"], file["token"], file["size"], file["sha256"]) == ("one", 1, 4096, DIGEST)


def test_the_document_has_all_fields(document: JsonObject, linux: LinuxBuild) -> None:
    assert shape_errors(document, TOP) == []
    sha256 = hashlib.sha256(linux.bzimage.read_bytes()).hexdigest()
    (u,) = document["updates"]
    for field, value in u.items():
        assert document[field] == value, f"the top level repeats {field} of the last update"
    assert u["old"] == u["new"] == {"release": "7.2.13-kho", "sha256": sha256}
    assert document["memory_bytes"] == 128 << 20
    assert len(document["state_hash"]) == 32
    p = u["preserved"]
    assert p["bytes"] == 4096 * p["pages"] and p["bytes"] - p["metadata_bytes"] == 4096
    assert p["tree_bytes"] >= 6 * 4096  # a tree is six levels deep


def test_phases_partition_the_run(document: JsonObject) -> None:
    phases = document["phases"]
    check_partition(phases)
    end = document["end"]
    assert sum(p["instructions"] for p in phases) == end["instructions"]
    assert sum(p["ticks"] for p in phases) == end["ticks"]
    assert phases[0]["start"] == 0 and (phases[0]["id"], phases[-1]["generation"]) == ("P1", 1)


def test_all_phases_occur_in_their_kernel_and_order(document: JsonObject) -> None:
    first: dict[tuple[int, str], int] = {}
    for p in document["phases"]:
        first.setdefault((p["generation"], p["id"]), p["start"])
    old = ["P1", "P2", "P3", "userspace", "P4", "P5", "P6", "P7", "P8", "P9", "P10", "P11"]
    new = ["P12", "P13", "P14", "P15", "P16", "P17", "userspace", "P4", "P18", "P19", "P20", "P21", "P22"]
    assert list(first) == [(0, id) for id in old] + [(1, id) for id in new]


def test_the_blackout(document: JsonObject) -> None:
    check_blackout(document["updates"][0], 0)


def test_which_invariants_are_checked(document: JsonObject) -> None:
    """Every row that memory can tell; those of docs/phases.md that cannot be told have a reason."""
    (u,) = document["updates"]
    memory = [1, 2, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 19, 20, 21, 23, 24, 25, 26, 28, 29, 30, 31, 49]
    assert u["moments"] == ["J", "K", "F"]
    assert set(u["checked"]) >= {f"INV-{n}" for n in memory}
    assert set(u["checked"]) | set(u["not_checked"]) == {f"INV-{n}" for n in range(1, 51)}
    assert not set(u["checked"]) & set(u["not_checked"])
    assert all(u["not_checked"].values())


# --- chains ----------------------------------------------------------------------------------------


def test_a_chain_of_three_updates(linux: LinuxBuild) -> None:
    result = updates.run(linux, updates=3, max_instructions=20_000_000_000)
    assert result.ok, result.reasons
    document = json.loads(json.dumps(result.plain()))
    assert shape_errors(document, TOP) == []
    assert len(document["updates"]) == 3
    phases = [p for u in document["updates"] for p in u["phases"]]
    assert sum(p["ticks"] for p in phases) == document["end"]["ticks"]
    assert sum(p["instructions"] for p in phases) == document["end"]["instructions"]
    assert all(one["start"] + one["ticks"] == two["start"] for one, two in itertools.pairwise(phases))
    for generation, u in enumerate(document["updates"]):
        check_partition(u["phases"], generation)
        assert {p["generation"] for p in u["phases"]} == {generation, generation + 1}
        check_blackout(u, generation)
        assert u["moments"] == ["J", "K", "F"]
        assert u["sessions"][0]["files"][0]["sha256"] == DIGEST
        assert ("INV-4" in u["checked"]) == (generation > 0)
    ran = [(p["generation"], p["when"]) for p in document["programs"]]
    expected = [(0, "before"), (1, "after"), (1, "before"), (2, "after"), (2, "before"), (3, "after")]
    assert ran == expected
    assert all(f"sha256={DIGEST}" in p["output"] for p in document["programs"])
    last = document["updates"][-1]
    assert {k: document[k] for k in last} == last, "the top level repeats the last update"


def test_no_update_at_all(linux: LinuxBuild) -> None:
    result = updates.run(linux, updates=0, after=[])
    assert result.ok, result.reasons
    assert result.updates == [] and [p["when"] for p in result.programs] == ["before"]
    check_partition([json.loads(json.dumps(r.plain())) for r in result.phases])
    assert {r.generation for r in result.phases} == {0}


# --- Linux' own tests ------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SELFTESTS)
def test_linux_own_selftests(linux: LinuxBuild, name: str) -> None:
    program = f"/st/{name}"
    stages: JsonObject = {"before": [f"{program} --stage 1"], "after": [f"{program} --stage 2"]}
    if name == "liveupdate":
        stages = {"before": [program], "after": [], "updates": 0}
    files = [(linux.selftest(name), program)]
    result = updates.run(linux, memory=256 << 20, files=files, max_instructions=20_000_000_000, **stages)
    outputs = "".join(p["output"] for p in result.programs)
    assert result.ok, (result.reasons, outputs[-2000:])
    if name == "liveupdate":
        assert "# PASSED: 15 / 15 tests passed." in outputs and "not ok" not in outputs
        return
    sessions = result.updates[0]["sessions"]
    files_of = {s["name"]: len(s["files"]) for s in sessions}
    assert files_of == {
        "luo_kexec_simple": {"kexec_simple_state": 1, "test-session": 1},
        "luo_multi_session": {
            "kexec_multi_state": 1, "multi-test-empty-1": 0, "multi-test-files-1": 1, "multi-test-empty-2": 0,
            "multi-test-files-2": 2,
        },
        "luo_stress_sessions": {"kexec_many_state": 1, **{f"many-test-{i}": 0 for i in range(2000)}},
        "luo_stress_files": {"kexec_many_files_state": 1, "many_files_session": 500},
    }[name]  # fmt: skip
