"""A hundred updates under a stream of frames whose offset is swept across the gap between two frames.

So each moment of an update that lasts a microsecond meets a frame in some run. Prints how many writes each
phase got, and how long it lasted.
"""

from __future__ import annotations

import numpy as np
import pytest

from emu.debug.dmacheck import PHASES
from emu.debug.net import BLACKOUT, SHORT_TICKS
from emu.debug.owners import OWNERS
from emu.debug.phases import NAMES
from emu.debug.update import Update
from emu.debug.workloads import Stream, workload
from tests.run.test_net import options

pytestmark = pytest.mark.campaign
UPDATES = 2
"""a run: there and back"""
RUNS = 50
GAP = 50_000
"""ticks between two frames at the default rate"""


@pytest.mark.parametrize("irq", [False, True], ids=["polling", "interrupts"])
def test_every_phase_gets_writes_and_nothing_is_lost(irq: bool, capsys: pytest.CaptureFixture[str]) -> None:
    writes: dict[str, int] = dict.fromkeys(BLACKOUT, 0)
    longest: dict[str, int] = dict.fromkeys(BLACKOUT, 0)
    frames, polls, needed, backlogs = 0, [], [], []
    for number in range(RUNS):
        offset = number * GAP // RUNS
        work = workload("net", stream=Stream(irq=irq, start=offset), updates=UPDATES)
        update = Update(options(work, updates=UPDATES))
        result = update.run()
        update.machine.close()
        where = f"offset {offset}: "
        assert result.ok and result.net is not None, where + "; ".join(result.reasons)
        assert result.net["sent"] == result.net["received"] and not result.net["dma_violations"], where
        assert update.dma is not None
        records = update.dma.records()
        done = records[(records["write"] != 0) & (records["requester"] == 2 << 3)]
        blackout = np.isin(done["phase"], [PHASES.index(id) for id in BLACKOUT[:-3]])
        assert {OWNERS[o] for o in np.unique(done["owner"][blackout])} == {"preserved"}, where
        for id in BLACKOUT:
            writes[id] += int(np.count_nonzero(done["phase"] == PHASES.index(id)))
        for phase in result.phases:
            if phase.id in longest:
                longest[phase.id] = max(longest[phase.id], phase.ticks)
        frames += result.net["sent"]
        polls.append(result.net["poll_gap_ticks"])
        needed.append(result.net["ring_needed"])
        backlogs.append(result.net["backlog"])
    with capsys.disabled():
        print(f"\n{RUNS * UPDATES} updates, {frames:,} frames, none lost")
        print(
            f"longest time without a look at the ring {max(polls):,} ticks: {max(needed):,} descriptors, ",
            end="",
        )
        print(f"{max(backlogs):,} were filled")
        for id in BLACKOUT:
            print(f"{id:<4}{NAMES[id]:<18}{writes[id]:>10,} writes{longest[id]:>14,} ticks at most")
    silent = [NAMES[id] for id in BLACKOUT if longest[id] >= SHORT_TICKS and not writes[id]]
    assert not silent, f"no frame was written in {', '.join(silent)}"
