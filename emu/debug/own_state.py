"""What `emu.debug.own` knows of the kernel that runs."""

from __future__ import annotations

from dataclasses import dataclass, field

from emu.debug.release import Kernel
from emu.machine import Snapshot
from kho.handover import Handover
from kho.setup_data import ScratchArea, lies_in
from luo.check import metadata_pages


@dataclass(frozen=True)
class Handed:
    """What a kernel was handed, as it was at J."""

    handover: Handover
    scratch: list[ScratchArea]
    snapshot: Snapshot
    kexec_count: int
    metadata: frozenset[int]
    """pages that describe what is handed over; who takes that apart may write to them"""

    @classmethod
    def of(cls, handover: Handover, snapshot: Snapshot) -> Handed:
        """From what was decoded, and the machine as it was then."""
        count = handover.metadata.kexec_count if handover.metadata is not None else 0
        metadata = frozenset(metadata_pages(handover).tolist())
        return cls(handover, list(handover.scratch or []), snapshot, count, metadata)

    def in_scratch(self, start: int, end: int) -> bool:
        """Whether [start, end) is scratch."""
        return lies_in(self.scratch, start, end)


@dataclass
class Running:
    """What was seen of one kernel."""

    generation: int
    kernel: Kernel
    received: Handed | None = None
    started: bool = False
    """Its own code runs: the jump is over."""
    populated: bool = False
    adopted: bool = False
    """It took what it was handed."""
    allocations: list[tuple[int, int]] = field(default_factory=list)
    """(address, bytes) of what memblock gave away while it had to come from scratch"""
    freed: bool = False
    unreserved: int = 0
    """pages that memblock had not reserved when memory was freed"""
    restored: dict[int, int] = field(default_factory=dict)
    """order by address"""
    shut_down: Snapshot | None = None

    @property
    def taken(self) -> Handed | None:
        """What it was handed, if it took it."""
        return self.received if self.adopted else None


__all__ = ["Handed", "Running"]
