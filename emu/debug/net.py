"""What a run of the workload `net` came to: frames, gaps, and DMA by phase.

Three parties count. The traffic source, outside the machine, knows what it sent while the receiver was on
(`Sent`). The program in the machine (kernels/user/net) knows what it received; it says so in a line that
begins with ``@net``. The watcher of DMA (`emu.debug.dmacheck`) knows what was written into memory, when, and
by whom. A run is good if they agree.
"""

from __future__ import annotations

import builtins
import json
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np

from emu.debug.dmacheck import PHASES, DmaViolation, DmaWatch, bdf, sorted_violations
from emu.debug.owners import OWNERS
from emu.debug.phases import NAMES, Record
from emu.devices.e1000 import E1000
from emu.devices.e1000_regs import RCTL_EN
from emu.memory import PAGE
from emu.traffic import Traffic

_MARK = b"@net "
BLACKOUT = ("P9", "P10", "P11", "P12", "P13", "P14", "P15", "P16", "P17", "P18", "P19", "P20")
"""From the freeze to the retrieval of the last file."""
SHORT_TICKS = 1000
"""A phase that is shorter (1 µs) may pass between two frames."""


def _of_its_kind(value: Any, kind: Any) -> None:
    """Raise ValueError unless a reported value is like its default: a flag, an interval, or a number."""
    if isinstance(kind, bool):
        good = isinstance(value, bool)
    else:
        numbers = value if isinstance(kind, tuple) else [0, value]
        good = isinstance(numbers, list) and len(numbers) == 2 and all(type(n) is int for n in numbers)
        good = good and 0 <= numbers[0] <= numbers[1] < 1 << 64
    if not good:
        raise ValueError("no such value")


@dataclass
class NetReport:
    """What the receiver in the machine said of itself."""

    final: bool = False
    updates: int = 0
    irq: bool = False
    ring: int = 0
    buffer: int = 0
    first: int = 0
    highest: int = 0
    received: int = 0
    lost: int = 0
    duplicated: int = 0
    corrupted: int = 0
    reordered: int = 0
    beyond: int = 0
    missed: int = 0
    gap: Sequence[int] = (0, 0)
    """time-stamp counter at both ends of the longest time without a frame"""
    poll: Sequence[int] = (0, 0)
    """the same of the longest time between a poll before an update and the first after it"""
    backlog: int = 0
    signals: int = 0
    spurious: int = 0
    lost_interrupts: int = 0
    lost_tick: int = 0
    """when the frame came whose interrupt was the first that did not"""
    problems: list[str] = field(default_factory=list)
    """what is wrong with the report itself"""

    @classmethod
    def parse(cls, output: builtins.bytes) -> NetReport | None:
        """The last report in a program's output; None if there is none."""
        found: NetReport | None = None
        names = {f.name for f in fields(cls)} - {"problems"}
        for line in output.splitlines():
            if not line.startswith(_MARK):
                continue
            try:
                values = json.loads(line.removeprefix(_MARK))
                if not isinstance(values, dict) or set(values) != names:
                    raise ValueError("other fields")
                for name, value in values.items():
                    _of_its_kind(value, getattr(cls, name, ()))
                found = cls(**values)
            except (ValueError, RecursionError):
                found = cls(problems=["the report of the receiver cannot be read"])
        return found


@dataclass
class Net:
    """The run, from all sides."""

    sent: int
    received: int
    lost: int
    duplicated: int
    corrupted: int
    reordered: int
    longest_gap_instructions: int
    dma_writes: dict[str, int]
    """writes of the controller by phase, of all updates"""
    phase_ticks: dict[str, int]
    poll_gap_ticks: int
    """between the last look at the ring before an update and the first one after it; the longest"""
    ring: int
    ring_needed: int
    """descriptors that the longest such time takes at the rate of the run"""
    backlog: int
    irq: bool
    signals: int
    spurious: int
    lost_interrupts: int
    violations: list[DmaViolation]
    reasons: list[str]

    def plain(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "sent": self.sent,
            "received": self.received,
            "lost": self.lost,
            "duplicated": self.duplicated,
            "corrupted": self.corrupted,
            "reordered": self.reordered,
            "longest_gap_instructions": self.longest_gap_instructions,
            "dma_writes": self.dma_writes,
            "dma_violations": [v.plain() for v in self.violations],
            "phase_ticks": self.phase_ticks,
            "poll_gap_ticks": self.poll_gap_ticks,
            "ring": self.ring,
            "ring_needed": self.ring_needed,
            "backlog": self.backlog,
            "interrupts": {
                "used": self.irq,
                "signals": self.signals,
                "spurious": self.spurious,
                "lost": self.lost_interrupts,
            },
        }


class Sent:
    """Counts the frames that arrive at a controller while its receiver is on."""

    def __init__(self, traffic: Traffic) -> None:
        assert isinstance(traffic.nic, E1000)
        self.nic = traffic.nic
        self.traffic = traffic
        self.count = 0
        self.first_tick = self.last_tick = 0
        traffic.taps.append(self)

    def __call__(self, tick: int, sent_by_card: bool, frame: bytes) -> None:
        """A frame is on the cable."""
        if not sent_by_card and self.nic.s.regs["RCTL"] & RCTL_EN:
            self.first_tick = self.first_tick or tick
            self.last_tick = tick
            self.count += 1

    @property
    def ticks_per_frame(self) -> float | None:
        """The mean distance between frames; None if there were fewer than two."""
        return (self.last_tick - self.first_tick) / (self.count - 1) if self.count > 1 else None


def instruction_at(records: Sequence[Record], tick: int) -> int:
    """Number of the instruction at a tick, to the phase exactly, inside one as if it idled evenly."""
    for r in reversed(records):
        if r.start <= tick:
            inside = min(tick - r.start, r.ticks)
            return r.first_instruction + (inside * r.instructions // r.ticks if r.ticks else 0)
    return 0


def writes_by_phase(watch: DmaWatch, requesters: set[int]) -> dict[str, int]:
    """Number of writes into memory by phase name, in the order of the phases."""
    records = watch.records()
    done = (records["write"] != 0) & (records["fault"] == 0) & np.isin(records["requester"], list(requesters))
    counts = np.bincount(records["phase"][done], minlength=len(PHASES)).tolist()
    return {NAMES[id]: count for id, count in zip(PHASES, counts, strict=True) if count or id in BLACKOUT}


def phase_ticks(records: Sequence[Record]) -> dict[str, int]:
    """Virtual time spent in each phase, by name."""
    out: dict[str, int] = {}
    for r in records:
        out[r.name] = out.get(r.name, 0) + r.ticks
    return out


def _interrupt_lost(r: NetReport, nic: E1000, watch: DmaWatch, records: Sequence[Record]) -> str:
    """Names the device, and page and phase of the first frame that no interrupt announced."""
    text = f"{nic.name} ({bdf(nic.requester)}): frames came and their interrupt did not, "
    text += f"{r.lost_interrupts:,} time{'s' if r.lost_interrupts > 1 else ''}"
    where = next((p for p in reversed(records) if p.start <= r.lost_tick), None)
    if where is not None:
        text += f", the first in phase {where.name} of kernel {where.generation}"
    events = watch.records()
    own = (events["requester"] == nic.requester) & (events["write"] != 0) & (events["fault"] == 0)
    later = np.flatnonzero(own & (events["tick"] >= r.lost_tick))
    if len(later):
        event = events[later[0]]
        text += f", written to page {int(event['phys']) & -PAGE:#x} of {OWNERS[event['owner']]}"
    return text


def conclude(report: NetReport | None, source: Sent, watch: DmaWatch, records: Sequence[Record]) -> Net:
    """Put together what all have counted."""
    reasons: list[str] = []
    sent = source.count
    r = report or NetReport()
    if report is None:
        reasons.append("the receiver did not report")
    reasons += r.problems
    if report is not None and not r.problems:
        if not r.final:
            reasons.append("the receiver's report is not its last one")
        if not r.received:
            reasons.append("no frame was received")
    lost = max(sent - r.received, r.lost, 0)
    for count, what in (
        (lost, "lost"), (r.duplicated, "received twice"), (r.corrupted, "corrupted"),
        (r.reordered, "out of order"), (r.beyond, "beyond what can be counted"),
    ):  # fmt: skip
        if count:
            reasons.append(f"{count:,} of {sent:,} frames {'is' if count == 1 else 'are'} {what}")
    if r.received > sent:
        reasons.append(f"{r.received:,} frames were received, and {sent:,} sent")
    if r.missed:
        reasons.append(
            f"the controller had no descriptor for {r.missed:,} frames: the ring of {r.ring:,} is too small"
        )
    if r.lost_interrupts:
        reasons.append(_interrupt_lost(r, source.nic, watch, records))
    poll = r.poll[1] - r.poll[0]
    return Net(
        sent=sent,
        received=r.received,
        lost=lost,
        duplicated=r.duplicated,
        corrupted=r.corrupted,
        reordered=r.reordered,
        longest_gap_instructions=instruction_at(records, r.gap[1]) - instruction_at(records, r.gap[0]),
        dma_writes=writes_by_phase(watch, {source.nic.requester}),
        phase_ticks=phase_ticks(records),
        poll_gap_ticks=poll,
        ring=r.ring,
        ring_needed=int(poll / source.ticks_per_frame) + 1 if source.ticks_per_frame else 0,
        backlog=r.backlog,
        irq=r.irq,
        signals=r.signals,
        spurious=r.spurious,
        lost_interrupts=r.lost_interrupts,
        violations=sorted_violations(watch.violations),
        reasons=reasons,
    )


__all__ = ["BLACKOUT", "SHORT_TICKS", "Net", "NetReport", "conclude", "instruction_at"]
