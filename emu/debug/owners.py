"""Who owns a page of memory at a moment, as the host sees it: `Owners`.

From the jump until the new kernel has freed memory, what was handed over decides: the map of preserved
blocks, the scratch areas, the segments of the new kernel's image. While a kernel of the project runs, its
page allocator does, and its probes say what is preserved (`kho:preserve`), no longer (`kho:unpreserve`) or
taken back (`kho:restore`). Nothing of that is what a kernel says of a device: whether a device may have a
page is judged from this and from the remapping tables (`emu.debug.dmacheck`).

Of a kernel that is not the project's nothing is known but what was handed over to it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from operator import itemgetter

import numpy as np
from numpy.typing import NDArray

from emu.debug import guest
from emu.debug.guest import UnknownLayout
from emu.debug.release import Kernel
from emu.debug.sdt import Probe
from emu.debug.view import PG_BUDDY, View
from emu.errors import AddressError, ImageError
from emu.machine import Machine
from kho.abi import MAX_PAGE_ORDER, PAGE_SIZE
from kho.handover import Handover
from kho.setup_data import ScratchArea

NOBODY, OLD_KERNEL, NEW_KERNEL, PRESERVED, SCRATCH, TABLES = range(6)
OWNERS = ("nobody", "old kernel", "new kernel", "preserved", "scratch", "device tables")
"""By number, as in a record of `emu.debug.dmacheck`."""

Words = tuple[int, ...]
"""Places of 64-bit words in memory: an answer is good while they do not change."""


@dataclass
class _Received:
    """What the running kernel was handed."""

    handover: Handover | None
    scratch: list[ScratchArea] = field(default_factory=list)
    image: list[tuple[int, int]] = field(default_factory=list)
    """(start, end) of what the jump puts into memory"""


def _inside(areas: Iterable[tuple[int, int]], phys: int) -> bool:
    return any(start <= phys < end for start, end in areas)


class _StructPages:
    """The page allocator of a running kernel of the project."""

    def __init__(self, machine: Machine, kernel: Kernel) -> None:
        """To be called when it has freed memory. Raises UnknownLayout."""
        view = View(machine, kernel)
        page = view.struct("page")
        self.machine = machine
        self.base, self.size = view.variable("vmemmap_base"), page.size
        self.flags, self.order = page.offset("flags"), page.offset("order")
        self.image = view.image()
        found = view.scratch_list()
        self.scratch = found[1] if found is not None else []
        self._cr3 = view.registers["cr3"]
        self._known: dict[int, int] = {}
        """pages of the array that have memory of their own"""

    def _phys(self, address: int) -> int:
        page = address & -PAGE_SIZE
        found = self._known.get(page)
        if found is None:
            found, entry = guest.lookup(self.machine, page, self._cr3)
            if entry & 2:  # what nobody has written yet is one page of zeros for all, and read-only
                self._known[page] = found
        return found + address - page

    def free(self, phys: int) -> tuple[bool, Words | None]:
        """Whether a page is in the buddy allocator's lists; and the words that say so, None if that may
        change without any of them changing."""
        memory, frame = self.machine.memory, phys // PAGE_SIZE
        words: list[int] = []
        lasting = True
        for order in range(MAX_PAGE_ORDER + 1):
            head = frame & -(1 << order)
            at = self.base + head * self.size
            try:
                flags, own = self._phys(at + self.flags), self._phys(at + self.order)
            except guest.NotMapped:
                return False, None
            lasting = lasting and (at + self.flags) & -PAGE_SIZE in self._known
            if memory.copy(flags, 4)[0] & PG_BUDDY and memory.copy(own, 1)[0] >= order:
                return True, None
            words += [memory.offset(flags) // 8, memory.offset(own) // 8]
        return False, tuple(dict.fromkeys(words)) if lasting else None


class Owners:
    """Follows a run. Tell it the moments J, K and F with `moment`; `version` changes with every answer that
    may have changed for another reason than that the kernel's own page allocator did something."""

    def __init__(self, machine: Machine, kernels: Sequence[Kernel]) -> None:
        self.machine = machine
        self.kernels = kernels
        self.generation = 0
        self.version = 0
        self.leaving = False
        """The running kernel has been asked to start the next one: it is the old one now."""
        self.on_restore: Callable[[int, int], None] | None = None
        """called with (address, bytes) of a block that a kernel takes back, before it has it"""
        self._received: _Received | None = None
        self._pages: _StructPages | None = None
        self._outgoing: set[tuple[int, int]] = set()
        """(page frame number, order) of what the running kernel preserves"""
        self._restored: set[tuple[int, int]] = set()
        self._installed: list[tuple[int, Callable[[Machine, int], bool | None]]] = []
        self._settled = False
        """The running kernel has got so far that it gives memory away."""
        self._install()

    # ---- following -----------------------------------------------------------------------------

    @property
    def kernel(self) -> Kernel:
        """The one that runs."""
        return self.kernels[min(self.generation, len(self.kernels) - 1)]

    @property
    def blackout(self) -> bool:
        """From the jump until the next kernel has freed what is not preserved."""
        return self._received is not None and self._pages is None and not self._settled

    @property
    def handed(self) -> Handover | None:
        """What the running kernel was handed."""
        return self._received.handover if self._received is not None else None

    def moment(
        self,
        when: str,
        handover: Handover | None = None,
        image: Sequence[tuple[int, int]] = (),
        adopted: bool = True,
    ) -> None:
        """J: with what is handed over as it is in memory now, and (start, end) of the next kernel's
        segments. F: the new kernel has freed memory; ``adopted``: it took what was handed over."""
        self.version += 1
        if when == "J":
            self.generation += 1
            scratch = list(handover.scratch or []) if handover is not None else []
            self._received = _Received(handover, scratch, list(image))
            self._pages, self._settled, self.leaving = None, False, False
            self._outgoing, self._restored = set(), set()
            self._install()
        elif when == "F":
            if self._received is not None and not adopted:
                self._received.handover = None
            self._settle()

    def _settle(self) -> None:
        """The running kernel has memory to give."""
        self._settled = True
        self.version += 1
        if self.kernel.own:
            try:
                self._pages = _StructPages(self.machine, self.kernel)
            except (UnknownLayout, ImageError, AddressError):
                self._pages = None

    def _install(self) -> None:
        for item in self._installed:
            self.machine.unprobe(*item)
        self._installed = []
        events: dict[str, Callable[[int, int], None]] = {
            "kho:preserve": self._preserve, "kho:unpreserve": self._unpreserve, "kho:restore": self._restore,
        }  # fmt: skip
        for event, method in events.items():
            for probe in self.kernel.probes.at(event):
                self._add(probe.address, self._pair(probe, method))
        if not self.generation:  # nobody tells the first kernel's moments
            for probe in self.kernel.probes.at("mm:free_all_done"):
                self._add(probe.address, self._freed)

    def _add(self, address: int, handler: Callable[[Machine, int], bool | None]) -> None:
        self.machine.probe(address, handler)
        self._installed.append((address, handler))

    def _freed(self, machine: Machine, address: int) -> None:
        if not self.generation:
            self._settle()

    def _pair(self, probe: Probe, method: Callable[[int, int], None]) -> Callable[[Machine, int], None]:
        def announced(machine: Machine, address: int) -> None:
            if not self._settled:
                return  # another kernel's code at this address
            try:
                first, second = probe.read(machine, machine.cpus[0].registers())
            except (guest.NotMapped, ValueError):
                return
            method(first, second)
            self.version += 1

        return announced

    def _preserve(self, frame: int, order: int) -> None:
        self._outgoing.add((frame, order))

    def _unpreserve(self, frame: int, order: int) -> None:
        self._outgoing.discard((frame, order))

    def _restore(self, phys: int, order: int) -> None:
        if self.on_restore is not None:
            self.on_restore(phys, PAGE_SIZE << order)
        self._restored.add((phys // PAGE_SIZE, order))

    # ---- answers -------------------------------------------------------------------------------

    def was_preserved(self, phys: int) -> bool:
        """Whether the page was handed over to the running kernel."""
        return bool(self.were_preserved(np.array([phys], np.uint64))[0])

    def were_preserved(self, phys: NDArray[np.uint64]) -> NDArray[np.bool_]:
        """The same of many pages."""
        received = self._received
        if received is None or received.handover is None:
            return np.zeros(len(phys), np.bool_)
        return received.handover.preserved.touched(phys)

    def restored(self, phys: int) -> bool:
        """Whether the running kernel has taken the page back."""
        return _covered(self._restored, phys)

    def in_image(self, phys: int) -> bool:
        """Whether the page is part of the running kernel's image, or of the next one's on its way."""
        if self.blackout and self._received is not None:
            return _inside(self._received.image, phys)
        return self._pages is not None and _inside([self._pages.image], phys)

    def of(self, phys: int) -> tuple[int, Words | None]:
        """Owner of the page at a physical address, without regard to remapping tables; and the words of
        memory on which that rests. None: ask again."""
        received = self._received
        now = OLD_KERNEL if self.leaving or not self.generation else NEW_KERNEL
        if self.blackout and received is not None:
            if self.was_preserved(phys):
                return PRESERVED, ()
            if _inside(received.image, phys):
                return NEW_KERNEL, ()
            if any(a.phys <= phys < a.end for a in received.scratch):
                return SCRATCH, ()
            return OLD_KERNEL, ()
        if _covered(self._outgoing, phys):
            return PRESERVED, ()
        if received is not None and self.was_preserved(phys) and not self.restored(phys):
            return PRESERVED, ()
        pages = self._pages
        if pages is None:
            return now, ()
        if _inside([pages.image], phys):
            return now, ()
        free, words = pages.free(phys)
        if free:
            return NOBODY, None
        if any(a.phys <= phys < a.end for a in pages.scratch):
            return SCRATCH, words
        return now, words


def _covered(blocks: set[tuple[int, int]], phys: int) -> bool:
    frame = phys // PAGE_SIZE
    return any((frame & -(1 << order), order) in blocks for order in range(MAX_PAGE_ORDER + 1))


def getter(words: Words) -> Callable[[memoryview], object]:
    """Reads these words of a view of memory, quickly."""
    if not words:
        return lambda _: None
    return itemgetter(*words)


__all__ = ["NOBODY", "OWNERS", "PRESERVED", "SCRATCH", "TABLES", "Owners", "getter"]
