"""Any kernel hands over to any other: the two releases, and an unmodified Linux 7.2.13, in every order.

Sessions, files and contents are verified three times: by the decoder at the jump, by what `lu s2` reads in
the next kernel, and against the recording of the same orders.
"""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest

from kho.handover import Handover
from luo.check import check
from luo.state import Luo
from tests.linux.build import required
from tests.luo.images import RECORDED
from tests.userspace import rig
from tests.userspace.test_handovers import digests, facts, recording, retrieved

CONFIG = "c3-3sess"
NAMES = ("old", "new", "linux")


def named(name: str) -> str | Path:
    """A release, or the reference Linux."""
    if name != "linux":
        return name
    build = required()
    return build.bzimage


def groups(length: int, least_different: int) -> list[object]:
    """Orders of kernels; those with Linux in them are marked."""
    return [
        pytest.param(g, id="-".join(g), marks=[pytest.mark.linux] if "linux" in g else [])
        for g in itertools.product(NAMES, repeat=length)
        if len(set(g)) >= least_different
    ]


LONG = [
    ("old", "new", "old", "new"),
    ("old", "old", "new", "new", "old"),
    pytest.param(("linux", "new", "linux", "old", "new"), marks=pytest.mark.linux),
]


def handover_at_the_jump(r: rig.Rig, generation: int, name: str) -> Handover:
    if name != "linux":
        r.run_to(generation, "kexec:jump")
        return r.handover(generation)
    r.run_to(generation, "machine_kexec")
    return Handover.read(r.machine.memory, search=True)


def run(names: tuple[str, ...]) -> None:
    known, linux = recording(CONFIG)
    lines = " ".join(known["spec"])
    spec = rig.Spec(
        [named(name) for name in names], before=[f"lu s1 {lines}"], after=[f"lu s2 {lines}"], memory=256 << 20
    )
    s2 = (RECORDED.parent / "probe" / f"{CONFIG}.s2.txt").read_text()
    with rig.Rig(spec) as r:
        for generation, name in enumerate(names[:-1]):
            handover = handover_at_the_jump(r, generation, name)
            assert check(handover, "J").violations == []
            assert digests(handover) == known["expected_sha256"]
            same = {"kexec_count": generation + 1, "number": generation + 1}
            assert facts(handover) == linux | same
        outcome = r.finish().check()
    after = [i for i, p in enumerate(outcome.programs) if p.when == "after"]
    assert len(after) == len(names) - 1
    for i in after:
        assert retrieved(outcome.output(i)) == retrieved(s2)


@pytest.mark.parametrize("names", groups(2, 1))
def test_any_kernel_hands_over_to_any(names: tuple[str, str]) -> None:
    run(names)


@pytest.mark.parametrize("names", groups(3, 3))
def test_three_different_kernels_in_a_chain(names: tuple[str, str, str]) -> None:
    run(names)


@pytest.mark.parametrize("names", LONG, ids="-".join)
def test_longer_chains(names: tuple[str, ...]) -> None:
    """Nothing of a round is left in the next one."""
    run(names)


def test_no_state_of_luo_without_luo() -> None:
    """A negative control: what is compared is really there only with sessions."""
    with rig.Rig(rig.Spec(("old", "new"), cmdline=f"{rig.SCRATCH} liveupdate=off")) as r:
        assert Luo.read(handover_at_the_jump(r, 0, "old")) is None
