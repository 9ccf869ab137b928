"""Rows of one of the project's kernels that starts on a handover: INV-32 to 36."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from emu.debug.entries import at
from emu.debug.own_part import Arguments, Judge, Part, Registers
from emu.debug.own_state import Handed, Running
from emu.debug.view import PG_BUDDY, PG_RESERVED, RSRV_NOINIT, View, took_handover
from kho.abi import PAGE_SIZE, RESTORE_MAGIC
from kho.memory import Words

FIRST_MIB = 1 << 20
_PAGE = np.uint64(PAGE_SIZE)
NOT_ADOPTED = "the new kernel did not take the handover"
RECEIVING = ("INV-26", "INV-32", "INV-33", "INV-34", "INV-35", "INV-36", "INV-37", "INV-45")
"""Rows that say something only of a kernel that took what it was handed."""


class Boot(Part):
    """From the entry until memory has been freed; ``before_free`` is called when a kernel has adopted memory
    and is about to free the rest."""

    def __init__(self, judge: Judge, now: Running, before_free: Callable[[], None]) -> None:
        super().__init__(judge)
        self.now = now
        self.before_free = before_free

    @at("kho:populate")
    def _populate(self, r: Registers, arguments: Arguments) -> None:
        self.now.populated = True

    @at("memblock:alloc")
    def _allocates(self, r: Registers, arguments: Arguments) -> None:
        if self.now.populated and not self.now.freed:
            self.now.allocations.append((arguments[0], arguments[1]))

    # ---- K -------------------------------------------------------------------------------------

    def adopts(self) -> None:
        """K: the entry of kho_memory_init."""
        self._reconsider()
        view = self.judge.view()
        if self.now.taken is None:
            return
        message = "allocations are not limited to scratch before memory is adopted"
        self._check_scratch_only(view, "K", True, message)
        with self.checking("INV-32"):
            self._check_image(view, self.now.taken)

    def _reconsider(self) -> None:
        """Has it taken the handover? It may still think better of it when it walks the tree."""
        with self.checking("INV-36"):
            self.now.adopted = took_handover(self.judge.machine, self.now.kernel)
        if not self.now.adopted:
            for id in RECEIVING:
                self.judge.unknown(id, NOT_ADOPTED)

    def _check_scratch_only(self, view: View, when: str, expected: bool, message: str) -> None:
        with self.checking("INV-36"):
            if view.scratch_only != expected:
                where = view.symbol("memblock") + view.struct("memblock").offset("scratch_only")
                self.broken("INV-36", message, view.phys(where), when)

    def _check_image(self, view: View, received: Handed) -> None:
        start, end = view.image()
        initrd, size = view.boot_info("initrd"), view.boot_info("initrd_size")
        cmdline, params = view.boot_info("cmdline"), view.boot_info("boot_params")
        setup = view.boot_info("setup_data")
        for what, low, high in (
            ("the kernel's image", start, end),
            ("boot_params", params, params + PAGE_SIZE),
            ("the initrd", initrd, initrd + size),
            ("the command line", cmdline, cmdline + 1),
            ("setup_data", setup, setup + 16),
        ):
            if low and low < high and not received.in_scratch(low, high):
                self.broken("INV-32", f"{what} of the new kernel is not in scratch", low, "K")

    # ---- F -------------------------------------------------------------------------------------

    @at("mm:free_all")
    def _free_all(self, r: Registers, arguments: Arguments) -> None:
        """memblock_free_all, before the first page is given: everything preserved must be reserved by now."""
        now = self.now
        view = self.judge.view()
        now.freed = True
        if now.adopted:
            self._reconsider()
        received = now.taken
        if received is None:
            return
        self.before_free()
        message = "memory is freed while allocations are limited to scratch"
        self._check_scratch_only(view, "F", False, message)
        with self.checking("INV-33"):
            for base, size in now.allocations:
                if base + size > FIRST_MIB and not received.in_scratch(base, base + size):
                    message = f"{size:#x} bytes are allocated outside scratch before memory is adopted"
                    self.broken("INV-33", message, base, "F")
        with self.checking("INV-34"):
            preserved = received.handover.preserved
            low = preserved.phys
            high = low + (_PAGE << preserved.order.astype(np.uint64))
            held = view.regions("reserved").joined(RSRV_NOINIT).covers(low, high)
            for phys in low[~held].tolist():
                message = "a preserved block is not reserved, or not as NOINIT, when memory is freed"
                self.broken("INV-34", message, phys, "F")

    def adopted(self) -> None:
        """F: memblock_free_all is done."""
        view = self.judge.view()
        if self.now.taken is None:
            return
        message = "allocations are still limited to scratch after memory was freed"
        self._check_scratch_only(view, "F", False, message)
        with self.checking("INV-35"):
            self._check_pages(view, self.now.taken)

    def _check_pages(self, view: View, received: Handed) -> None:
        """INV-35: heads carry magic and order and belong to nobody; nothing else carries the magic."""
        preserved = received.handover.preserved
        heads, order = preserved.phys, preserved.order.astype(np.uint64)

        def broken(which: Words, message: str) -> None:
            for phys in which.tolist():
                self.broken("INV-35", message, phys, "F")

        stamp = (np.uint64(RESTORE_MAGIC) << np.uint64(32)) | order
        private = view.page_member(heads, "private").view(np.uint64)
        broken(heads[private != stamp], "the first page of a preserved block does not carry magic and order")
        count = view.page_member(heads, "refcount")
        broken(heads[count != 0], "a preserved page that nobody restored is in use")
        flags = view.page_member(heads, "flags")
        broken(heads[(flags & PG_RESERVED) != 0], "a preserved page is marked reserved")
        broken(heads[(flags & PG_BUDDY) != 0], "a preserved page is free")
        carry = view.magic_pages()
        broken(np.setdiff1d(carry, heads), "a page that is not preserved carries the magic")
        start, end = view.free_blocks()
        for low, high in zip(start.tolist(), end.tolist(), strict=True):
            for index in preserved.intersecting(low, high).tolist():
                phys = int(preserved.phys[index])
                self.broken("INV-35", "a preserved block is in the page allocator's free lists", phys, "F")

    # ---- the end -------------------------------------------------------------------------------

    def conclude(self, view: View, when: str) -> None:
        """The kernel is left, or the run is over."""
        self._check_scratch_only(view, when, False, "allocations are limited to scratch again")


__all__ = ["NOT_ADOPTED", "Boot"]
