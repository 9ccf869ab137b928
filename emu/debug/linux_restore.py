"""Blocks that a Linux restores: INV-37, 38 and 45."""

from __future__ import annotations

import numpy as np

from emu.debug.entries import at
from emu.debug.guest import UnknownLayout
from emu.debug.linux_watch import RECEIVER, Part, Registers

RESTORES_MAX = 20_000
"""More restored blocks than this are not watched one by one: each costs the run some microseconds."""
NOT_ALL_FINISHED = "not every session was retrieved, finished and closed"


class Restores(Part):
    """Each block once; what the page allocator has grows by that; the rest keeps its magic."""

    SIDE, WHEN = RECEIVER, "run"

    @at("kho_restore_page")
    def _restore(self, r: Registers) -> None:
        """kho_restore_page(phys, is_folio)."""
        k = self.kernel
        if k.received is None or len(k.restored) > RESTORES_MAX:
            return
        phys = r["rdi"]
        if len(k.restored) == RESTORES_MAX:
            self._too_many(phys)
            return
        order = k.received.handover.preserved.orders_at(np.array([phys], np.uint64))[0]
        with self.checking("INV-37"):
            if phys in k.restored:
                self.broken("INV-37", "a block is restored again", phys)
                return
            if order < 0:
                self.broken("INV-37", "a block is restored that was not preserved", phys)
                return
        k.restored[phys] = 1 << int(order)
        if not k.deserialized:
            return  # while a kernel boots, managed memory grows for other reasons too
        with self.checking("INV-38"):
            if k.managed is None:
                k.managed = self.linux.number(self.linux.symbol("_totalram_pages"))
                k.managed_blocks = 0
            k.managed_phys = phys
            k.managed_blocks += 1 << int(order)

    def _too_many(self, phys: int) -> None:
        k, symbols = self.kernel, self.watch.running
        k.restored[phys] = 0
        k.managed = None
        reason = f"more than {RESTORES_MAX} blocks were restored, too many to watch each"
        unknown = self.watch.state.unknown.setdefault((k.generation, RECEIVER), {})
        unknown.update(dict.fromkeys(("INV-37", "INV-38"), reason))
        function = symbols.address("kho_restore_page") if symbols is not None else None
        if function is not None:
            self.watch.remove(function)

    @at("free_reserved_area")
    def _managed_changes(self, r: Registers) -> None:
        """The number of managed pages is about to change for another reason."""
        self.settle()

    def settle(self) -> None:
        """INV-38 for what has been restored so far."""
        k = self.kernel
        if k.managed is None:
            return
        with self.checking("INV-38"):
            grown = self.linux.number(self.linux.symbol("_totalram_pages")) - k.managed
            if grown != k.managed_blocks:
                message = f"{k.managed_blocks} pages were restored, managed memory grew by {grown}"
                self.broken("INV-38", message, k.managed_phys)
        k.managed = None

    def conclude(self) -> None:
        """At the end: INV-45, and of INV-37 that what was restored carries the magic no more."""
        with self.checking("INV-45"):
            self._check_left()

    def _check_left(self) -> None:
        k, linux = self.kernel, self.linux
        assert k.received is not None
        linux.check_struct_pages()
        carry = linux.magic_pages()
        restored = np.array([p for p, pages in k.restored.items() if pages], np.uint64)
        if len(restored):
            for phys in np.intersect1d(carry, restored).tolist():
                self.broken("INV-37", "a restored block still carries the magic", phys)
        head = linux.session_header("incoming")
        sessions = k.received.luo.sessions if k.received.luo is not None else []
        if sessions and (not k.deserialized or linux.number(head)):
            raise UnknownLayout(NOT_ALL_FINISHED)
        for phys in np.setdiff1d(np.intersect1d(carry, k.received.consumed), restored).tolist():
            self.broken("INV-45", "a page of a finished session is still preserved", phys)
        for phys in np.setdiff1d(carry, k.received.handover.preserved.phys).tolist():
            self.broken("INV-45", "a page that is not preserved carries the magic", phys)


__all__ = ["Restores"]
