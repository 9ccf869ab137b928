"""What a device had no right to: `DmaViolation`. What memory has to be where it had one: `Reference`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from emu.debug.phases import NAMES
from emu.machine import Machine, Snapshot
from emu.memory import PAGE, U8Array

RIGHT, REFUSED, OFF, STALE, EXPOSED, NOT_PRESERVED, FREE, IMAGE, IN_SCRATCH, TABLE, INHERITED = range(11)
MASTER, LOST_TABLE = 11, 12
WRONGS = (
    "",
    "the remapping unit refused it",
    "remapping is off",
    "no table grants it: the remapping unit went by what it remembered",
    "it may write there, and the page is not preserved",
    "the page is not preserved",
    "the page is free",
    "the page is part of the kernel's image",
    "the page is scratch",
    "the page is a table of the remapping unit",
    "the page is not preserved, and the grant is the previous kernel's",
    "it masters the bus, and is not handed over",
    "it goes through this table, which is not preserved",
)
"""Why a device had no right, by number."""


@dataclass
class DmaViolation:
    """What a device did to one page in one phase without a right to it."""

    device: str
    requester: int
    iova: int
    phys: int | None
    """of the page; None if there is none"""
    size: int
    """bytes of the first request; 0: it could, and did not"""
    tick: int
    instruction: int
    generation: int
    phase: str
    """id"""
    owner: str
    wrong: int
    write: bool = True
    count: int = 1

    def plain(self) -> dict[str, object]:
        """For JSON."""
        return {
            "device": self.device,
            "bdf": bdf(self.requester),
            "direction": "write" if self.write else "read",
            "iova": self.iova,
            "phys": self.phys,
            "size": self.size,
            "tick": self.tick,
            "instruction": self.instruction,
            "kernel": self.generation,
            "phase": NAMES[self.phase],
            "owner": self.owner,
            "reason": WRONGS[self.wrong],
            "count": self.count,
        }

    def __str__(self) -> str:
        where = "no page" if self.phys is None else f"page {self.phys:#x} of {self.owner}"
        does = "writes to" if self.write else "reads"
        what = f"{does} {where}" if self.size else f"reaches {where}"
        if not self.size and self.phys is None:
            what = "is a bus master"
        times = f", {self.count:,} times" if self.count > 1 else ""
        return (
            f"{self.device} ({bdf(self.requester)}) {what} (IOVA {self.iova:#x}) in phase "
            f"{NAMES[self.phase]} of kernel {self.generation}, instruction {self.instruction:,}{times}: "
            f"{WRONGS[self.wrong]}"
        )


def sorted_violations(found: Sequence[DmaViolation]) -> list[DmaViolation]:
    """What was done to a page first, then what could have been, then what went nowhere; each in its order."""
    return sorted(found, key=lambda v: (v.phys is None, not v.size))


def bdf(requester: int) -> str:
    """A requester id as people write it."""
    return f"{requester >> 8:02x}:{requester >> 3 & 31:02x}.{requester & 7}"


class Reference:
    """What preserved pages have to be: as they were at the jump, with what devices wrote since by right."""

    def __init__(self, machine: Machine, snapshot: Snapshot) -> None:
        self._memory = machine.memory
        self._snapshot = snapshot
        self._pages: dict[int, npt.NDArray[np.uint8]] = {}

    def page(self, number: int) -> U8Array | None:
        """Contents of page ``number`` (as `emu.machine.Snapshot.page`), None for zeros."""
        found = self._pages.get(number)
        return found if found is not None else self._snapshot.page(number)

    def all_pages(self) -> set[int]:
        """Numbers of all pages that were ever written."""
        return self._snapshot.all_pages() | self.written

    @property
    def written(self) -> set[int]:
        """Numbers of the pages that devices wrote to."""
        return set(self._pages)

    def wrote(self, phys: int, size: int) -> None:
        """A granted write has just been done."""
        while size:
            at = self._memory.offset(phys)
            number, offset = divmod(at, PAGE)
            piece = min(size, PAGE - offset)
            page = self._pages.get(number)
            if page is None:
                before = self._snapshot.page(number)
                page = np.zeros(PAGE, np.uint8) if before is None else before.copy()
                self._pages[number] = page
            page[offset : offset + piece] = self._memory.read(phys, piece)
            phys += piece
            size -= piece


__all__ = ["WRONGS", "DmaViolation", "Reference", "bdf", "sorted_violations"]
