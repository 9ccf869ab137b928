"""State that several preserved files share: its whole life, on both sides of the jump.

The objects are those of Linux's own test (`CONFIG_LIVEUPDATE_TEST`), with the same data and the same lines in
the log, so a Linux that has that test hands them over to ours, and takes them from ours.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from luo.flb import Flb
from luo.state import Luo
from tests.linux.build import CONFIGS, required
from tests.userspace import rig
from tests.userspace.agents import NOENT, command, expect, log, orders, spec
from tests.userspace.test_unhappy import PAIRS, Steps

NAMES = [f"liveupdate-test-flb-v{i}" for i in range(3)]
DATA = 0xFEEDF00DCAFEBEE0
TWO_FILES: Steps = [
    ("open", 0), ("create 0 a", 0), ("memfd 10 2", 0), ("preserve 0 10 1", 0), ("memfd 11 2", 0),
    ("preserve 0 11 2", 0),
]  # fmt: skip
FINISH: Steps = [("open", 0), ("retrieve 0 a", 0), ("get 10 0 1", 0), ("finish 0", 0)]


def events(outcome: rig.Outcome) -> list[str]:
    return log(outcome, "liveupdate test: ")


def each(what: str, *, backwards: bool = False) -> list[str]:
    names = reversed(NAMES) if backwards else NAMES
    return [f"{name}: {what}" for name in names]


def found_and_finished() -> list[str]:
    """What happens to objects that nobody asked for until their last file is finished."""
    lines = []
    for name in reversed(NAMES):
        lines += [f"{name}: found flb data from the previous boot", f"{name}: finish was triggered"]
    return lines


REGISTERED = ["Registered 3 FLBs with file handler: [memfd-v2]"]
PRESERVE, UNPRESERVE = each("preserve was triggered"), each("unpreserve was triggered", backwards=True)
FOUND, FINISHED = each("found flb data from the previous boot"), each("finish was triggered", backwards=True)


def flbs(r: rig.Rig) -> list[Flb]:
    r.run_to(0, "kexec:jump")
    luo = Luo.read(r.handover(0))
    assert luo is not None and luo.flb_page is not None
    return luo.flb_page.flbs


def run(kernels: tuple[str, str], old: Steps, new: Steps, words: str, users: int) -> rig.Outcome:
    """An update; what is handed over has so many users."""
    with rig.Rig(spec(kernels, orders(old), orders(new), f"luo_test={words}")) as r:
        assert flbs(r) == ([Flb(n, DATA + i, users) for i, n in enumerate(NAMES)] if users else [])
        outcome = r.finish().check()
    expect(outcome, "before", old)
    expect(outcome, "after", new)
    return outcome


@pytest.mark.parametrize("kernels", PAIRS, ids="-".join)
def test_the_life_of_an_object(kernels: tuple[str, str]) -> None:
    """Preserved before the first file, unpreserved after the last; found once, finished after the last."""
    old: Steps = [*TWO_FILES, ("close 0", 0), *TWO_FILES[1:]]
    outcome = run(kernels, old, FINISH, "flb", 2)
    assert events(outcome) == [
        *REGISTERED, *PRESERVE, *UNPRESERVE, *PRESERVE, *FOUND, *REGISTERED, *FINISHED,
    ]  # fmt: skip


@pytest.mark.parametrize("kernels", PAIRS, ids="-".join)
def test_an_object_that_nobody_asked_for_is_finished_all_the_same(kernels: tuple[str, str]) -> None:
    """In Linux 7.2.13 the count underflows then, and the object is never finished."""
    outcome = run(kernels, TWO_FILES, FINISH, "flb-late", 2)
    assert events(outcome) == [*REGISTERED, *PRESERVE, *REGISTERED, *found_and_finished()]
    assert not outcome.log("WARNING")


def test_files_that_are_never_retrieved_finish_it_too() -> None:
    outcome = run(
        ("old", "new"), TWO_FILES, [("open", 0), ("retrieve 0 a", 0), ("close 0", 0)], "flb-late", 2
    )
    assert events(outcome)[-6:] == found_and_finished()


def test_an_object_outlives_sessions_that_are_not_finished() -> None:
    """Two sessions with one file each: the first finish leaves it."""
    old: Steps = [*TWO_FILES[:4], ("create 1 b", 0), ("memfd 11 2", 0), ("preserve 1 11 1", 0)]
    new: Steps = [("open", 0), ("retrieve 1 b", 0), ("finish 1", 0)]
    outcome = run(("new", "old"), old, new, "flb", 2)
    assert events(outcome)[-1:] == REGISTERED, "one file is still to be finished"
    outcome = run(("new", "old"), old, [*new, ("retrieve 0 a", 0), ("finish 0", 0)], "flb", 2)
    assert events(outcome)[-3:] == FINISHED


def test_without_files_nothing_is_handed_over() -> None:
    outcome = run(("old", "new"), TWO_FILES[:2], [("open", 0), ("retrieve 0 a", 0)], "flb", 0)
    assert events(outcome) == [*REGISTERED, *REGISTERED]


@pytest.mark.parametrize("kernels", PAIRS, ids="-".join)
def test_references_that_are_not_given_back_are_no_files(kernels: tuple[str, str]) -> None:
    """In Linux 7.2.13 they are counted into the record, and the next kernel never finishes the object."""
    old: Steps = [
        *TWO_FILES, ("file 12 /dev/luo_test", 0), ("put 12 flb-get 0", 9), ("put 12 flb-get 0", 9),
        ("put 12 flb-get 2", 9),
    ]  # fmt: skip
    outcome = run(kernels, old, FINISH, "flb,flb-obj,file", 2)
    assert events(outcome)[-3:] == FINISHED


def test_a_reference_keeps_the_object() -> None:
    old: Steps = [
        *TWO_FILES, ("file 12 /dev/luo_test", 0), ("put 12 flb-get 1", 9), ("close 0", 0),
        ("put 12 flb-put 1", 9), ("put 12 flb-get 1", NOENT),
    ]  # fmt: skip
    outcome = run(("old", "new"), old, [("open", 0), ("retrieve 0 a", NOENT)], "flb,flb-obj,file", 0)
    unpreserved = [line for line in events(outcome) if "unpreserve" in line]
    assert unpreserved == [UNPRESERVE[0], UNPRESERVE[2], UNPRESERVE[1]], "the one with the reference is last"


def test_an_object_without_a_value_gives_no_reference() -> None:
    old: Steps = [*TWO_FILES, ("file 12 /dev/luo_test", 0), ("put 12 flb-get 0", NOENT)]
    run(("old", "new"), old, FINISH, "flb,file", 2)


def test_one_object_serves_several_handlers() -> None:
    """Files of both handlers are its users."""
    old: Steps = [*TWO_FILES, ("file 12 /dev/luo_test", 0), ("put 12 value 7", 7), ("preserve 0 12 3", 0)]
    outcome = run(("old", "new"), old, FINISH, "flb,file", 3)
    assert events(outcome)[:2] == [*REGISTERED, "Registered 3 FLBs with file handler: [luemu-test-v1]"]
    assert events(outcome).count(FINISHED[0]) == 1


def test_a_preserve_that_fails_gives_the_object_back() -> None:
    old: Steps = [
        ("open", 0), ("create 0 a", 0), ("file 12 /dev/luo_test", 0), ("put 12 preserve -5", 11),
        ("preserve 0 12 1", -5),
    ]  # fmt: skip
    outcome = run(("old", "new"), old, [("open", 0), ("retrieve 0 a", 0)], "flb,file", 0)
    assert events(outcome)[2:8] == [*PRESERVE, *UNPRESERVE]


# ---- with Linux ------------------------------------------------------------------------------------------


@pytest.mark.linux
@pytest.mark.parametrize("place", [0, 1])
def test_objects_cross_between_ours_and_linux(place: int) -> None:
    build = required(CONFIGS[1])
    kernels: list[str | Path] = ["old", "new"]
    kernels[place] = build.bzimage
    run_spec = rig.Spec(
        kernels, before=[command([*orders(TWO_FILES), "hold"])], after=[command(orders(FINISH))],
        cmdline=f"{rig.SCRATCH} luo_test=flb kho_test=off", programs=("agent",), memory=256 << 20,
    )  # fmt: skip
    with rig.Rig(run_spec) as r:
        outcome = r.finish().check()
    expect(outcome, "before", TWO_FILES)
    expect(outcome, "after", FINISH)
    said = [line.partition("liveupdate test: ")[2] for line in outcome.log("liveupdate test: ")]
    assert said == [*REGISTERED, *PRESERVE, *FOUND, *REGISTERED, *FINISHED]
