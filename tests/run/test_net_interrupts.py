"""One frame in each phase of an update, to a receiver that only its interrupt wakes: it is told once."""

from __future__ import annotations

import functools
from dataclasses import replace
from typing import Any, cast

import pytest

from emu.debug.net import BLACKOUT
from emu.debug.phases import NAMES
from emu.debug.update import Update
from emu.debug.workloads import Stream, workload
from emu.devices.e1000 import E1000
from emu.machine import Machine
from emu.traffic import TrafficSpec
from tests.run.test_net import options


@functools.cache
def run(phase: str | None) -> tuple[Update, dict[str, Any], list[tuple[str, int]]]:
    """(the update, the receiver's counters, (phase or moment, level of the pin) from the frame on). Without a
    phase there is no frame."""
    work = workload("net", stream=Stream(irq=True))
    one = replace(TrafficSpec.parse(work.traffic), start=None, count=1)
    update = Update(replace(options(work), traffic=one, traffic_at=phase, max_instructions=900_000_000))
    levels: list[tuple[str, int]] = []
    observer, nic = update.observer, cast(E1000, update.machine.platform.extras["e1000"])
    assert observer is not None and observer.on_moment is not None
    told = observer.on_moment

    def moment(m: Machine, what: str, generation: int) -> None:
        told(m, what, generation)
        if m.traffic.s.sent:
            levels.append((what, nic.s.intx))

    observer.on_moment = moment
    result = update.run()
    update.machine.close()
    assert result.net is not None
    counters = {**result.net, **result.net["interrupts"]}
    if phase is not None:
        assert result.ok, "\n".join(result.reasons)
    return update, counters, levels


@pytest.mark.parametrize(
    "phase",
    [p if p in ("P11", "P16") else pytest.param(p, marks=pytest.mark.campaign) for p in BLACKOUT],
)
def test_the_receiver_is_told_once(phase: str) -> None:
    update, counters, levels = run(phase)
    assert update.dma is not None
    where = {NAMES[id] for id in BLACKOUT if counters["dma_writes"][NAMES[id]]}
    assert where == {NAMES[phase]}, "the frame did not come in this phase"
    assert (counters["sent"], counters["received"]) == (1, 1)
    assert counters["signals"] == run(None)[1]["signals"] + 1
    assert (counters["lost"], counters["spurious"]) == (0, 0)
    # the line stays asserted until the program has read the cause, which it does after its finish
    finish = [what for what, _ in levels].index("P21")
    assert all(level for _, level in levels[:finish]), levels
    assert levels[-1][1] == 0, "and no longer"
