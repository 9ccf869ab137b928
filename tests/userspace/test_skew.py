"""Releases that differ only in the version of a format: what is predicted before the jump is what happens.

`luemu check --for` tells from the kernel's ELF file what it will take; the same is asked here at the jump,
and then the update goes on.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from emu.debug.predict import Prediction, predict
from tests.run.releases import skewed
from tests.userspace import damage, rig
from tests.userspace.damage import ALL_RIGHT, SPEC, reaction


def update(kernels: Sequence[str | Path]) -> tuple[Prediction, str, rig.Outcome]:
    """What is predicted, what `lu s2` finds, and everything that was said."""
    spec = rig.Spec(kernels, before=[f"lu s1 {SPEC}"], after=[f"lu s2 {SPEC}"])
    with rig.Rig(spec) as r:
        r.run_to(0, "kexec:jump")
        prediction = predict(rig.kernel(kernels[1]), r.handover(0))
        outcome = r.finish()
    lines = [line for line in outcome.lines("", -1) if line]
    return prediction, reaction(lines, damage.recorded()["control"][1]), outcome


def lost(prediction: Prediction) -> list[str]:
    return [item.what for item in prediction.lost]


@pytest.mark.parametrize("kernels", [("old", "new"), ("new", "old")], ids="-".join)
def test_the_same_versions_lose_nothing(kernels: tuple[str, str]) -> None:
    prediction, found, _ = update(kernels)
    assert prediction.ok and lost(prediction) == []
    assert found == ALL_RIGHT


@pytest.mark.parametrize("of", [pytest.param("old", marks=pytest.mark.campaign), "new"])
def test_another_version_of_luo_loses_the_sessions_and_nothing_else(of: str) -> None:
    prediction, found, outcome = update(["old", skewed("luo-v6", of)])
    assert prediction.adopts and not prediction.ok
    assert lost(prediction) == ['session "one", 2 files', 'session "two", 1 file']
    assert found == "open EIO"
    assert outcome.log("luo: LUO state is incompatible with 'luo-v6'")
    assert outcome.log("pages of refused records that stay reserved until reboot: 17")


@pytest.mark.parametrize("of", [pytest.param("old", marks=pytest.mark.campaign), "new"])
def test_another_version_of_memfds_loses_the_files_not_the_sessions(of: str) -> None:
    prediction, found, outcome = update(["new", skewed("memfd-v3", of)])
    assert prediction.adopts and not prediction.ok
    assert lost(prediction) == [
        'file 0x1 of session "one", of version memfd-v2',
        'file 0x2 of session "one", of version memfd-v2',
        'file 0x3 of session "two", of version memfd-v2',
    ]
    assert found == "file 0x1 EIO, file 0x2 EIO, file 0x3 EIO"
    assert len(outcome.log("luo: No registered handler for compatible 'memfd-v2'")) == 3


def test_what_a_later_release_writes() -> None:
    """The same from the other side: the old kernel is the one that nobody knows."""
    prediction, found, _ = update([skewed("luo-v6"), "old"])
    assert prediction.written["luo"] == "luo-v6"
    assert lost(prediction) == ["LUO state of version luo-v6"]
    assert found == "open EIO"


def test_two_of_the_later_release_understand_each_other() -> None:
    """A version is a name: what counts is that both have the same."""
    image = skewed("luo-v6")
    prediction, found, _ = update([image, image])
    assert prediction.ok and found == ALL_RIGHT
