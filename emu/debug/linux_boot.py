"""Rows of a Linux that starts on a handover: INV-32 to 36 and 39.

Structures as in Linux 7.2: `struct boot_params`, `struct memblock`, `struct luo_ser`.
"""

from __future__ import annotations

import numpy as np

from emu.debug.entries import at
from emu.debug.guest import UnknownLayout
from emu.debug.linux import RSRV_KERN, RSRV_NOINIT
from emu.debug.linux_state import Received
from emu.debug.linux_watch import RECEIVER, Part, Registers
from kho import check as kho_check
from kho.abi import PAGE_SIZE
from kho.setup_data import lies_in
from luo.abi import LUO_COMPATIBLE

FIRST_MIB = 1 << 20


class Boot(Part):
    """From the entry to the last initcall."""

    SIDE, WHEN = RECEIVER, "run"

    @at("x86_64_start_kernel")
    def _start_kernel(self, r: Registers) -> None:
        """x86_64_start_kernel(boot_params), with the address as the loader gave it."""
        received = self.kernel.received
        if received is None:
            return
        with self.checking("INV-32"):
            params = r["rdi"]
            raw = self.machine.memory.copy(params, PAGE_SIZE)
            if raw[0x202:0x206] != b"HdrS":
                raise UnknownLayout(f"there is no boot_params at {params:#x}")

            def word(offset: int, high: int) -> int:
                return int.from_bytes(raw[offset : offset + 4] + raw[high : high + 4], "little")

            initrd, size, cmdline = word(0x218, 0x0C0), word(0x21C, 0x0C4), word(0x228, 0x0C8)
            start, end = self.linux.image()
            for what, low, high in (
                ("boot_params", params, params + PAGE_SIZE),
                ("the initrd", initrd, initrd + size),
                ("the command line", cmdline, cmdline + 1),
                ("the kernel's image", start, end),
            ):
                if low < high and low and not lies_in(received.scratch, low, high):
                    self.broken("INV-32", f"{what} of the new kernel is not in scratch", low, "K")

    # ---- K -------------------------------------------------------------------------------------

    def adopt(self) -> None:
        """K: the entry of kho_memory_init."""
        k = self.kernel
        if k.received is None:
            return
        k.adopting = True
        with self.checking("INV-33"):
            preserved = k.received.handover.preserved
            for region in self.linux.memblock()[1]:
                if (
                    region.flags & RSRV_KERN
                    and region.end > FIRST_MIB
                    and not preserved.covers(region.base, region.end)
                    and not lies_in(k.received.scratch, region.base, region.end)
                ):
                    message = f"{region.size:#x} bytes are allocated outside scratch"
                    self.broken("INV-33", message, region.base, "K")
        self._check_limited("K", True, "allocations are not limited to scratch before memory is adopted")

    def _check_limited(self, when: str, limited: bool, message: str) -> None:
        """INV-36."""
        with self.checking("INV-36"):
            if self.linux.flag("kho_scratch_only") != limited:
                self._wrongly_limited(when, message)

    def _wrongly_limited(self, when: str, message: str) -> None:
        self.broken("INV-36", message, self.linux.where(self.linux.symbol("kho_scratch_only")), when)

    @at("memblock_set_kho_scratch_only")
    def _scratch_only(self, r: Registers) -> None:
        if self.kernel.freeing:
            with self.checking("INV-36"):
                self._wrongly_limited("F", "allocations are limited to scratch again")

    # ---- F -------------------------------------------------------------------------------------

    @at("memblock_free_all")
    def _free_all(self, r: Registers) -> None:
        """Everything preserved must be reserved by now."""
        k = self.kernel
        if k.received is None or not k.adopting:
            return
        with self.checking("INV-34"):
            regions = self.linux.memblock()[1]
            base = np.array([g.base for g in regions], np.uint64)
            end = np.array([g.end for g in regions], np.uint64)
            noinit = np.array([bool(g.flags & RSRV_NOINIT) for g in regions])
            # neighbours of one kind are one region, as a block may lie in several
            join = np.flatnonzero(~((base[1:] == end[:-1]) & (noinit[1:] == noinit[:-1]))) + 1
            first = np.concatenate(([0], join))
            last = np.concatenate((join, [len(base)])) - 1
            base, end, noinit = base[first], end[last], noinit[first]
            preserved = k.received.handover.preserved
            low = preserved.phys
            high = low + (np.uint64(PAGE_SIZE) << preserved.order.astype(np.uint64))
            region = np.searchsorted(base, low, side="right").astype(np.int64) - 1
            good = (region >= 0) & (high <= end[region]) & noinit[region]
            for phys in low[~good].tolist():
                message = "a preserved block is not reserved, or not as NOINIT, when memory is freed"
                self.broken("INV-34", message, phys, "F")

    @at("memblock_free_pages")
    def _free_pages(self, r: Registers) -> None:
        """The first page goes to the page allocator."""
        k = self.kernel
        if not k.freeing and k.adopting:
            k.freeing = True
            self._check_limited("F", False, "memory is freed while allocations are limited to scratch")

    def adopted(self) -> None:
        """F: memblock_free_all has returned."""
        k = self.kernel
        if k.received is None:
            return
        k.freeing = True
        self._check_limited("F", False, "allocations are still limited to scratch after memory was freed")
        with self.checking("INV-35"):
            self._check_pages(k.received)

    def _check_pages(self, received: Received) -> None:
        """INV-35 by `kho.check`, with the preserved blocks as they were at J."""
        linux = self.linux
        subject = kho_check.Subject(
            received.handover, "F", old_scratch=received.scratch, page_states=linux.page_states()
        )
        report = kho_check.run(subject, {"INV-35": kho_check.TABLE["INV-35"]})
        if "INV-35" in report.not_checked:
            raise UnknownLayout(report.not_checked["INV-35"])
        for violation in report.violations:
            self.broken("INV-35", violation.message, violation.phys, "F")
        heads = received.handover.preserved.phys
        # Linux 7.2 leaves them the one reference that each struct page begins with
        count = linux.refcount(heads)
        for phys in heads[(count < 0) | (count > 1)].tolist():
            self.broken("INV-35", "a preserved page that nobody restored is in use", phys, "F")

    # ---- initcalls -----------------------------------------------------------------------------

    @at("kho_init")
    def _kho_init(self, r: Registers) -> None:
        """fs_initcall: all struct pages are initialised, LUO has parsed its state."""
        k = self.kernel
        if k.received is None or not k.adopting:
            return
        k.initialised = True
        with self.checking("INV-35"):
            self.linux.check_struct_pages()
            carry = self.linux.magic_pages()
            heads = k.received.handover.preserved.phys
            restored = np.array(list(k.restored), np.uint64)
            for phys in np.setdiff1d(carry, heads).tolist():
                self.broken("INV-35", "a page that is not preserved carries the magic", phys, "F")
            for phys in np.setdiff1d(np.setdiff1d(heads, restored), carry).tolist():
                message = "the first page of a preserved block lost its magic before it was restored"
                self.broken("INV-35", message, phys, "F")
        if k.received.luo is not None:
            with self.checking("INV-39"):
                where = self.linux.symbol("luo_global") + 16  # enabled, luo_ser_out, liveupdate_num
                number = self.linux.number(where)
                if number != k.received.number:
                    message = (
                        f"the new kernel took {number} for the live update number, not {k.received.number}"
                    )
                    self.broken("INV-39", message, self.linux.where(where))

    @at("kho_add_subtree")
    def _add_subtree(self, r: Registers) -> None:
        """kho_add_subtree(name, blob, size)."""
        k = self.kernel
        if k.received is None or not k.initialised:
            return
        with self.checking("INV-39"):
            linux, blob = self.linux, r["rsi"]
            name = linux.text(r["rdi"], 32)
            if name == "LUO":
                if linux.text(blob, 8) != LUO_COMPATIBLE:
                    raise UnknownLayout("the LUO state has another version")
                what, count, expected = "live update number", linux.number(blob + 8), k.received.number + 1
            elif name == "kexec-metadata" and k.received.kexec_count is not None:
                if linux.number(blob, 4) != 1:
                    raise UnknownLayout("the kexec metadata have another version")
                what, count = "kexec count", linux.number(blob + 69, 4)
                expected = k.received.kexec_count + 1
            else:
                return
            if count != expected:
                self.broken("INV-39", f"the next {what} is {count}, not {expected}", linux.where(blob))

    def conclude(self) -> None:
        """The kernel is left, or the run is over."""
        self._check_limited("run", False, "allocations are limited to scratch again")


__all__ = ["Boot"]
