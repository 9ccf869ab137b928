"""Memory of two moments for the decoders: what was written in between is all that a comparison looks at."""

from __future__ import annotations

import numpy as np

from emu.debug.dmaright import Reference
from emu.machine import Machine, Snapshot
from emu.memory import PAGE, U8Array, page_ranges


class MemoryNow:
    """The live RAM. ``changed``: numbers of the pages written since the other moment."""

    def __init__(self, machine: Machine, changed: list[int]) -> None:
        self._memory = machine.memory
        self._changed = changed

    @property
    def ranges(self) -> list[tuple[int, int]]:
        """As `kho.memory.PhysicalMemory`."""
        return self._memory.ranges

    def read(self, phys: int, size: int) -> U8Array:
        """Likewise."""
        return self._memory.read(phys, size)

    def populated(self) -> list[tuple[int, int]]:
        """What was written."""
        return page_ranges(self._changed, self._memory.low)


class MemoryThen(MemoryNow):
    """RAM as it was at a snapshot, or has to be since (`Reference`)."""

    def __init__(self, machine: Machine, changed: list[int], then: Snapshot | Reference) -> None:
        super().__init__(machine, changed)
        self._then = then

    def read(self, phys: int, size: int) -> U8Array:
        """Likewise."""
        at = self._memory.offset(phys, size)
        first, last = at // PAGE, (at + max(size, 1) - 1) // PAGE
        out = np.zeros((last - first + 1, PAGE), np.uint8)
        for number in range(first, last + 1):
            found = self._then.page(number)
            if found is not None:
                out[number - first] = found
        view = out.reshape(-1)[at - first * PAGE :][:size]
        view.flags.writeable = False
        return view


def differs(machine: Machine, then: Snapshot | Reference, phys: int) -> bool:
    """Whether a page is not what it was, or has to be."""
    memory = machine.memory
    old = then.page(memory.offset(phys, PAGE) // PAGE)
    now = memory.read(phys, PAGE)
    return bool(now.any()) if old is None else not np.array_equal(old, now)


__all__ = ["MemoryNow", "MemoryThen", "differs"]
