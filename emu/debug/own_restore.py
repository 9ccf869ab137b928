"""Blocks that one of the project's kernels restores: INV-26, 37, 38 and 45."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import numpy as np

from emu.debug.dmaright import Reference
from emu.debug.entries import at
from emu.debug.own_part import Arguments, Judge, Part, Registers
from emu.debug.own_state import Handed, Running
from emu.debug.then import differs
from emu.debug.view import View
from kho.abi import PAGE_SIZE

TAKEN = ("kho_test", "luemu_test", 'sub-tree "kho_test"', 'sub-tree "luemu_test"', "")
"""Owners of what a kernel restores while it boots; the last is nobody."""


class Restores(Part):
    """Each block once and as it was; what the page allocator has grows by that; the rest keeps its magic.
    ``reference``: gives what preserved memory has to be where devices write to it."""

    def __init__(self, judge: Judge, now: Running, reference: Callable[[], Reference | None]) -> None:
        super().__init__(judge)
        self.now = now
        self.reference = reference

    @at("kho:restore")
    def _restore(self, r: Registers, arguments: Arguments) -> None:
        """kho:restore(phys, order), before the block is given to anybody."""
        phys, order = arguments
        now = self.now
        if now.taken is None:
            if now.adopted:
                self.judge.unknown("INV-37", "the handover could not be read at J")
            else:
                self.broken("INV-37", "a block is restored, and nothing was handed over", phys)
            return
        with self.checking("INV-37"):
            kept = int(now.taken.handover.preserved.orders_at(np.array([phys], np.uint64))[0])
            if phys in now.restored:
                self.broken("INV-37", "a block is restored again", phys)
            elif kept < 0:
                self.broken("INV-37", "a block is restored that was not preserved", phys)
            elif kept != order:
                message = f"a block of order {kept} is restored as one of order {order}"
                self.broken("INV-37", message, phys)
            else:
                now.restored[phys] = order
                self._check_contents(now.taken, phys, PAGE_SIZE << order)

    def _check_contents(self, received: Handed, phys: int, size: int) -> None:
        """INV-26: a block is what it was at J when it is restored."""
        with self.checking("INV-26"):
            then = self.reference() or received.snapshot
            for page in range(phys, phys + size, PAGE_SIZE):
                if page not in received.metadata and differs(self.judge.machine, then, page):
                    message = "a preserved page is not what it was at J when it is restored"
                    self.broken("INV-26", message, page)

    @at("mm:free_all_done")
    def _free_all_done(self, r: Registers, arguments: Arguments) -> None:
        self.now.freed = True
        with self.checking("INV-38"):
            self.now.unreserved = self.judge.view().unreserved_pages()

    @at("mm:managed")
    def _managed(self, r: Registers, arguments: Arguments) -> None:
        """mm:managed(pages): what the allocator has, against what it was given."""
        now = self.now
        with self.checking("INV-38"):
            view = self.judge.view()
            restored = sum(1 << order for order in now.restored.values())
            scratch = 0
            if not view.member(view.symbol("kho_in"), "kho_in", "scratch") and view.variable("kho_enable", 1):
                found = view.scratch_list()
                scratch = sum(a.size for a in found[1]) // PAGE_SIZE if found is not None else 0
            expected = now.unreserved + scratch + restored
            if arguments[0] != expected:
                message = (
                    f"{arguments[0]} pages are managed; {now.unreserved} were never reserved, {scratch} are "
                    f"scratch that was released, {restored} were restored"
                )
                self.broken("INV-38", message, None)

    # ---- the end -------------------------------------------------------------------------------

    def left(self, received: Handed) -> dict[str, int]:
        """Blocks that were handed over for somebody who did not take them, by owner."""
        preserved = received.handover.preserved
        out: Counter[str] = Counter()
        for phys, order in zip(preserved.phys.tolist(), preserved.order.tolist(), strict=True):
            if phys not in self.now.restored:
                owner = preserved.owner_of(phys, order)
                if owner in TAKEN:
                    out[owner or "nobody"] += 1
        return dict(out)

    def conclude(self, view: View, when: str, received: Handed) -> None:
        """At the end: INV-45, and of INV-37 that what was restored carries the magic no more."""
        with self.checking("INV-45"):
            carry = view.magic_pages()
            restored = np.array(sorted(self.now.restored), np.uint64)
            for phys in np.intersect1d(carry, restored).tolist():
                self.broken("INV-37", "a restored block still carries the magic", phys, when)
            left = np.setdiff1d(received.handover.preserved.phys, restored)
            for phys in np.setdiff1d(carry, np.union1d(left, restored)).tolist():
                self.broken("INV-45", "a page that is not preserved carries the magic", phys, when)
            for phys in np.setdiff1d(left, carry).tolist():
                self.broken("INV-45", "a block that nobody restored lost its magic", phys, when)


__all__ = ["Restores"]
