"""What `emu.debug.invariants` knows of a run: plain data, of which a deep copy can be put back together with
the machine's snapshot."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from emu.debug.luo_rules import SerializedFile, serialized
from emu.machine import Snapshot
from kho.check import Violation
from kho.handover import Handover
from kho.memory import Words
from kho.setup_data import ScratchArea
from luo.state import Luo


class _Shared:
    """What copies of the state share: it does not change."""

    def __deepcopy__(self, memo: dict[int, Any]) -> _Shared:
        return self


@dataclass(frozen=True)
class Received(_Shared):
    """What a kernel was handed, as it was at J."""

    handover: Handover
    scratch: list[ScratchArea]
    number: int
    kexec_count: int | None
    luo: Luo | None
    names: frozenset[str]
    """of the sessions"""
    files: dict[int, SerializedFile]
    """by handle"""
    consumed: Words
    """blocks that are restored when all sessions are finished and closed"""
    snapshot: Snapshot

    @classmethod
    def of(cls, handover: Handover, snapshot: Snapshot) -> Received:
        """From what was decoded at J, and the machine as it was then."""
        luo = Luo.read(handover)
        pages: list[Words] = []
        single: list[int] = []
        if luo is not None:
            single.append(luo.phys)
            single += [b.phys for b in luo.chain.blocks] if luo.chain else []
            for session in luo.sessions:
                single += [b.phys for b in session.chain.blocks] if session.chain else []
            for _, _, memfd in luo.memfds:
                single.append(memfd.phys)
                pages.append(memfd.folio_phys)
                if memfd.area is not None and not memfd.area.problems:
                    single += memfd.area.chunks
                    pages.append(memfd.area.blocks)
        return cls(
            handover,
            list(handover.scratch or []),
            luo.liveupdate_num if luo is not None else 0,
            handover.metadata.kexec_count if handover.metadata is not None else None,
            luo,
            frozenset(s.name for s in luo.sessions) if luo is not None else frozenset(),
            serialized(luo),
            np.unique(np.concatenate([np.array(single, np.uint64), *pages])),
            snapshot,
        )


@dataclass(frozen=True)
class Kept(_Shared):
    """A snapshot."""

    snapshot: Snapshot


@dataclass(frozen=True)
class Preserved:
    """A memfd as it was when it was preserved."""

    size: int
    seals: int
    array: bytes
    inode: int
    size_at: tuple[int, ...]
    """offsets in the inode at which its size may be: that of i_size and what happens to be equal"""


@dataclass
class KernelSeen:
    """What was seen of one kernel."""

    generation: int
    received: Received | None = None
    # as the one that hands over
    preserving: int | None = None
    preserved: dict[int, Preserved] = field(default_factory=dict)
    serialize: str = ""
    """"", "running", "done" or "failed" """
    frozen: list[int] = field(default_factory=list)
    unfrozen: list[tuple[int, int]] = field(default_factory=list)
    end_of_serialize: Kept | None = None
    shut_down: bool = False
    flbs: dict[int, set[int]] = field(default_factory=dict)
    """handlers of each FLB"""
    flb_users: Counter[int] = field(default_factory=Counter)
    flb_pending: int | None = None
    flb_held: bool = False
    flb_names: dict[int, str] = field(default_factory=dict)
    flb_events: Counter[tuple[str, int]] = field(default_factory=Counter)
    # as the one that receives
    adopting: bool = False
    freeing: bool = False
    initialised: bool = False
    restored: dict[int, int] = field(default_factory=dict)
    managed: int | None = None
    """_totalram_pages when blocks began to be restored"""
    managed_blocks: int = 0
    managed_phys: int | None = None
    deserialized: bool = False
    compared: bool = False
    opening: int | None = None
    opened: int | None = None
    asking: str | None = None
    granted: set[str] = field(default_factory=set)
    retrieved: set[int] = field(default_factory=set)
    finishing: list[int] = field(default_factory=list)
    finishing_all: int = 0
    finished: set[int] = field(default_factory=set)
    concluded: bool = False


@dataclass
class State:
    """Everything that is known."""

    kernel: KernelSeen
    violations: list[tuple[int, str, Violation]] = field(default_factory=list)
    """(kernel, side, violation)"""
    checked: dict[tuple[int, str], set[str]] = field(default_factory=dict)
    unknown: dict[tuple[int, str], dict[str, str]] = field(default_factory=dict)
    jumps: int = 0
    blind: dict[int, str] = field(default_factory=dict)
    """why nothing is known of what a kernel was handed"""


__all__ = ["Kept", "KernelSeen", "Preserved", "Received", "State"]
