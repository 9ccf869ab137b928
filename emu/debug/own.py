"""Invariants that show only while one of the project's kernels runs: `OwnChecker`.

It watches the kernels from their probes and looks into their structures by debug information
(`emu.debug.view`), at those points and at the moments J, K, F and the end. It changes nothing of the run and
believes nothing that a kernel says of itself: what a kernel counts is counted again. `emu.debug.invariants`
does the same for Linux; the two share no more than what LUO's rows demand (`emu.debug.luo_rules`).

What a kernel does as the one that hands over belongs to the update that it begins, what it does as the one
that was handed over to belongs to the update before.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np

from emu.debug import guest
from emu.debug.dmacheck import Reference
from emu.debug.guest import UnknownLayout
from emu.debug.own_luo import EVENTS, FUNCTIONS, LuoChecker
from emu.debug.own_luo import OBSERVED as OBSERVED_OF_LUO
from emu.debug.own_part import Call
from emu.debug.release import Kernel
from emu.debug.sdt import Probe
from emu.debug.struct_pages import StructPages
from emu.debug.then import differs
from emu.debug.view import PG_BUDDY, PG_RESERVED, RSRV_NOINIT, View, took_handover
from emu.errors import AddressError, ImageError
from emu.machine import Machine, Snapshot
from kho.abi import METADATA, PAGE_SIZE, RESTORE_MAGIC
from kho.check import Report, Violation
from kho.errors import KhoError
from kho.fdt import Fdt
from kho.handover import Handover
from kho.memory import Words
from kho.metadata import KexecMetadata
from kho.setup_data import ScratchArea, lies_in
from luo.check import metadata_pages
from luo.state import Luo

FIRST_MIB = 1 << 20
VIOLATIONS_PER_ID_MAX = 50
_PAGE = np.uint64(PAGE_SIZE)

TAKEN = ("kho_test", "luemu_test", 'sub-tree "kho_test"', 'sub-tree "luemu_test"', "")
"""Owners of what a kernel restores while it boots; the last is nobody."""
NO_RESTORE = "no block was restored"
OBSERVED: dict[str, str] = {
    "INV-3": "",
    "INV-26": NO_RESTORE,
    "INV-32": "",
    "INV-33": "",
    "INV-34": "",
    "INV-35": "",
    "INV-36": "",
    "INV-37": NO_RESTORE,
    "INV-38": "",
    "INV-39": "",
    "INV-45": "",
    "INV-49": "",
}
"""What the run can tell, and why it did not where the occasion did not come (empty: it always comes)."""
NOT_SEEN = "the run did not get there"
NOT_ADOPTED = "the new kernel did not take the handover"

RECEIVING = ("INV-26", "INV-32", "INV-33", "INV-34", "INV-35", "INV-36", "INV-37", "INV-45")
"""Rows that say something only of a kernel that took what it was handed."""

Event = Callable[[tuple[int, ...]], None]


@dataclass(frozen=True)
class Handed:
    """What a kernel was handed, as it was at J."""

    handover: Handover
    scratch: list[ScratchArea]
    snapshot: Snapshot
    kexec_count: int
    metadata: frozenset[int]
    """pages that describe what is handed over; who takes that apart may write to them"""

    def in_scratch(self, start: int, end: int) -> bool:
        """Whether [start, end) is scratch."""
        return lies_in(self.scratch, start, end)


@dataclass
class _Running:
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


class OwnChecker:
    """Watches the project's kernels of a run; the kernel of generation n is ``kernels[min(n, last)]``.

    Tell it the moments with `moment`; `report` gives what was found of an update, `verdicts` what the
    kernels said themselves.
    """

    def __init__(self, machine: Machine, kernels: Sequence[Kernel]) -> None:
        self.machine = machine
        self.kernels = kernels
        self.verdicts: list[tuple[int, bool]] = []
        """(generation, ok) of each `kernel:verdict`"""
        self.left: dict[int, dict[str, int]] = {}
        """blocks that each generation was handed and should have restored and did not, by owner"""
        self.reference: Callable[[], Reference | None] = lambda: None
        """gives what preserved memory has to be where devices write to it"""
        self.before_free: Callable[[], None] | None = None
        """called when a kernel has adopted memory and is about to free the rest"""
        self._reports: dict[int, Report] = {}
        self._violations: dict[tuple[int, str], int] = {}
        self._installed: list[tuple[int, Callable[[Machine, int], bool | None]]] = []
        self._registers: dict[str, int] | None = None
        self._now = _Running(0, kernels[0], started=True)
        self._luo = LuoChecker(self, None)
        self._install()

    # ---- probes --------------------------------------------------------------------------------

    def _install(self) -> None:
        for item in self._installed:
            self.machine.unprobe(*item)
        self._installed = []
        if not self._now.kernel.own:
            return
        events: dict[str, Event] = {
            "kernel:start": self._start,
            "kho:populate": self._populate,
            "memblock:alloc": self._allocates,
            "mm:free_all": self._free_all,
            "mm:free_all_done": self._free_all_done,
            "kho:restore": self._restore,
            "mm:managed": self._managed,
            "kexec:shutdown": self._shutdown,
            "kernel:verdict": self._verdict,
        }
        for event, method in events.items():
            for probe in self._now.kernel.probes.at(event):
                handler = self._handler(probe, method)
                self._add(probe.address, handler)
        for event in EVENTS:
            for probe in self._now.kernel.probes.at(event):
                self._add(probe.address, self._handler(probe, self._luo_event(event)))
        symbols = self._now.kernel.symbols
        for name in FUNCTIONS:
            at = symbols.address(name) if symbols is not None else None
            if at is not None:
                self.watch(at, self._luo_call(name))

    def _add(self, address: int, handler: Callable[[Machine, int], bool | None]) -> None:
        self.machine.probe(address, handler)
        self._installed.append((address, handler))

    def watch(self, address: int, call: Call) -> None:
        """Call with the registers whenever the running kernel gets to this address."""

        def reached(machine: Machine, address: int) -> None:
            if self._now.started:
                self._registers = machine.cpus[0].registers()
                call(self._registers, ())

        self._add(address, reached)

    def _luo_event(self, event: str) -> Event:
        def announced(arguments: tuple[int, ...]) -> None:
            self._luo.called(event, self._registers or {}, arguments)

        return announced

    def _luo_call(self, name: str) -> Call:
        def entered(registers: dict[str, int], arguments: tuple[int, ...]) -> None:
            self._luo.called(name, registers)

        return entered

    def _handler(self, probe: Probe, method: Event) -> Callable[[Machine, int], bool | None]:
        starts = probe.event == "kernel:start"

        def announced(machine: Machine, address: int) -> None:
            if not (self._now.started or starts):
                return  # the jump goes on, at an address that will be the next kernel's
            self._registers = machine.cpus[0].registers()
            try:
                arguments = probe.read(machine, self._registers)
            except guest.NotMapped as e:
                self.unknown("INV-37", f"the arguments of {probe.event} cannot be read: {e}")
                return
            method(arguments)

        return announced

    # ---- results -------------------------------------------------------------------------------

    def view(self) -> View:
        """The running kernel's structures, now."""
        return View(self.machine, self._now.kernel, self._registers)

    def _report(self, sender: bool) -> Report:
        generation = self._now.generation
        update = generation if sender else max(generation - 1, 0)
        return self._reports.setdefault(update, Report("run"))

    def unknown(self, id: str, reason: str, sender: bool = False) -> None:
        """A row cannot be checked. ``sender``: in the update that this kernel begins, not the one before."""
        self._report(sender).not_checked.setdefault(id, reason)

    @contextmanager
    def checking(self, id: str, sender: bool = False) -> Iterator[None]:
        """A row is being checked; it is not where something turns out to be unknown."""
        try:
            yield
        except (UnknownLayout, AddressError, ImageError) as e:
            self.unknown(id, str(e), sender)
        else:
            report = self._report(sender)
            if id not in report.checked:
                report.checked.append(id)

    def violate(self, id: str, when: str, message: str, phys: int | None, sender: bool = False) -> None:
        """A row is broken."""
        key = (self._now.generation, id)
        self._violations[key] = self._violations.get(key, 0) + 1
        if self._violations[key] <= VIOLATIONS_PER_ID_MAX:
            self._report(sender).violations.append(Violation(id, when, message, phys))

    def report(self, update: int) -> Report:
        """What was found of an update, from kernel ``update`` to the next."""
        found = self._reports.get(update, Report("run"))
        out = Report("run", list(found.violations), [], {})
        for id, reason in (OBSERVED | OBSERVED_OF_LUO).items():
            if id in found.not_checked:
                out.not_checked[id] = found.not_checked[id]
            elif id in found.checked:
                out.checked.append(id)
            else:
                out.not_checked[id] = reason or NOT_SEEN
        return out

    @property
    def adopted(self) -> bool:
        """Whether the kernel that runs took what it was handed."""
        return self._now.adopted

    def struct_pages(self) -> StructPages | None:
        """Where the running kernel's struct pages are; None where that is not known."""
        if not self._now.kernel.own:
            return None
        try:
            return View(self.machine, self._now.kernel).struct_pages()
        except (UnknownLayout, AddressError, ImageError, ValueError):
            return None

    # ---- moments -------------------------------------------------------------------------------

    def moment(self, when: str, handover: Handover | None = None, snapshot: Snapshot | None = None) -> None:
        """J (with the handover and a snapshot as it is in memory now), K, F or "end"."""
        self._registers = None
        if when == "J":
            self._jump(handover, snapshot)
        elif not self._now.kernel.own:
            return
        elif when == "K":
            self._adopts()
        elif when == "F":
            self._adopted()
        elif when == "end":
            self._end()

    # ---- the kernel that hands over ------------------------------------------------------------

    def _shutdown(self, arguments: tuple[int, ...]) -> None:
        """The point of no return: from here on nothing of the handover changes."""
        self._now.shut_down = self.machine.snapshot()

    def _jump(self, handover: Handover | None, snapshot: Snapshot | None) -> None:
        now = self._now
        if now.kernel.own and handover is not None:
            self._check_sender(handover)
            self._luo.jump(handover)
            self._conclude("J")
        self.receive(handover, snapshot)

    def receive(self, handover: Handover | None, snapshot: Snapshot | None) -> None:
        """The next kernel begins, and this is what it is handed, as it is in memory now."""
        now = self._now
        received = None
        if handover is not None and snapshot is not None:
            count = handover.metadata.kexec_count if handover.metadata is not None else 0
            metadata = frozenset(metadata_pages(handover).tolist())
            received = Handed(handover, list(handover.scratch or []), snapshot, count, metadata)
        generation = now.generation + 1
        kernel = self.kernels[min(generation, len(self.kernels) - 1)]
        self._now = _Running(generation, kernel, received)
        self._luo = LuoChecker(self, handover if kernel.own else None)
        self._install()

    def _check_sender(self, handover: Handover) -> None:
        now = self._now
        with self.checking("INV-49", sender=True):
            if now.shut_down is None:
                raise UnknownLayout("the kernel did not announce the end of its preparations")
            hardware = _written_by_shutdown(handover)
            for phys in metadata_pages(handover).tolist():
                if phys and phys not in hardware and differs(self.machine, now.shut_down, phys):
                    message = "a page of metadata changed between the point of no return and the jump"
                    self.violate("INV-49", "J", message, phys, sender=True)
        with self.checking("INV-39", sender=True):
            self._check_count("J", handover.metadata, handover.fdt_phys, sender=True)

    def _check_count(
        self, when: str, metadata: KexecMetadata | None, phys: int | None, sender: bool = False
    ) -> None:
        now = self._now
        expected = 1 if now.received is None or not now.adopted else now.received.kexec_count + 1
        if metadata is None:
            message = "the next kernel is not told how many updates there were"
            self.violate("INV-39", when, message, phys, sender)
        elif metadata.kexec_count != expected:
            message = f"the next kexec count is {metadata.kexec_count}, not {expected}"
            self.violate("INV-39", when, message, phys, sender)

    def _check_scratch_type(self, when: str, sender: bool) -> None:
        with self.checking("INV-3", sender):
            view = self.view()
            cma = self._now.kernel.layouts.constant("MIGRATE_CMA")
            found = view.scratch_list()
            if found is None:
                raise UnknownLayout("the kernel has no scratch areas")
            for area in found[1]:
                for phys, kind in view.migratetypes(area) if area.size else []:
                    if kind != cma:
                        message = f"a pageblock of scratch has the migratetype {kind} instead of CMA"
                        self.violate("INV-3", when, message, phys, sender)

    # ---- the kernel that receives: early boot --------------------------------------------------

    def _start(self, arguments: tuple[int, ...]) -> None:
        self._now.started = True

    def _populate(self, arguments: tuple[int, ...]) -> None:
        self._now.populated = True

    def _allocates(self, arguments: tuple[int, ...]) -> None:
        if self._now.populated and not self._now.freed:
            self._now.allocations.append((arguments[0], arguments[1]))

    def _adopts(self) -> None:
        """K: the entry of kho_memory_init."""
        self._reconsider()
        now = self._now
        view = self.view()
        if now.received is None or not now.adopted:
            return
        message = "allocations are not limited to scratch before memory is adopted"
        self._check_scratch_only(view, "K", True, message)
        with self.checking("INV-32"):
            self._check_image(view, now.received)

    def _reconsider(self) -> None:
        """Has it taken the handover? It may still think better of it when it walks the tree."""
        now = self._now
        with self.checking("INV-36"):
            now.adopted = took_handover(self.machine, now.kernel)
        if not now.adopted:
            for id in RECEIVING:
                self.unknown(id, NOT_ADOPTED)

    def _check_scratch_only(self, view: View, when: str, expected: bool, message: str) -> None:
        with self.checking("INV-36"):
            if view.scratch_only != expected:
                at = view.symbol("memblock") + view.struct("memblock").offset("scratch_only")
                self.violate("INV-36", when, message, view.phys(at))

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
                self.violate("INV-32", "K", f"{what} of the new kernel is not in scratch", low)

    def _free_all(self, arguments: tuple[int, ...]) -> None:
        """memblock_free_all, before the first page is given: everything preserved must be reserved by now."""
        now = self._now
        view = self.view()
        now.freed = True
        if now.adopted:
            self._reconsider()
        if now.received is None or not now.adopted:
            return
        if self.before_free is not None:
            self.before_free()
        message = "memory is freed while allocations are limited to scratch"
        self._check_scratch_only(view, "F", False, message)
        with self.checking("INV-33"):
            for base, size in now.allocations:
                if base + size > FIRST_MIB and not now.received.in_scratch(base, base + size):
                    message = f"{size:#x} bytes are allocated outside scratch before memory is adopted"
                    self.violate("INV-33", "F", message, base)
        with self.checking("INV-34"):
            preserved = now.received.handover.preserved
            low = preserved.phys
            high = low + (_PAGE << preserved.order.astype(np.uint64))
            held = view.regions("reserved").joined(RSRV_NOINIT).covers(low, high)
            for phys in low[~held].tolist():
                message = "a preserved block is not reserved, or not as NOINIT, when memory is freed"
                self.violate("INV-34", "F", message, phys)

    def _free_all_done(self, arguments: tuple[int, ...]) -> None:
        self._now.freed = True
        with self.checking("INV-38"):
            self._now.unreserved = self.view().unreserved_pages()

    def _adopted(self) -> None:
        """F: memblock_free_all is done."""
        now = self._now
        view = self.view()
        if now.received is None or not now.adopted:
            return
        message = "allocations are still limited to scratch after memory was freed"
        self._check_scratch_only(view, "F", False, message)
        with self.checking("INV-35"):
            self._check_pages(view, now.received)

    def _check_pages(self, view: View, received: Handed) -> None:
        """INV-35: heads carry magic and order and belong to nobody; nothing else carries the magic."""
        preserved = received.handover.preserved
        heads, order = preserved.phys, preserved.order.astype(np.uint64)

        def broken(which: Words, message: str) -> None:
            for phys in which.tolist():
                self.violate("INV-35", "F", message, phys)

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
                self.violate("INV-35", "F", "a preserved block is in the page allocator's free lists", phys)

    # ---- restoring -----------------------------------------------------------------------------

    def _restore(self, arguments: tuple[int, ...]) -> None:
        """kho:restore(phys, order), before the block is given to anybody."""
        phys, order = arguments
        now = self._now
        if now.received is None or not now.adopted:
            if now.adopted:
                self.unknown("INV-37", "the handover could not be read at J")
            else:
                self.violate("INV-37", "run", "a block is restored, and nothing was handed over", phys)
            return
        with self.checking("INV-37"):
            kept = int(now.received.handover.preserved.orders_at(np.array([phys], np.uint64))[0])
            if phys in now.restored:
                self.violate("INV-37", "run", "a block is restored again", phys)
            elif kept < 0:
                self.violate("INV-37", "run", "a block is restored that was not preserved", phys)
            elif kept != order:
                message = f"a block of order {kept} is restored as one of order {order}"
                self.violate("INV-37", "run", message, phys)
            else:
                now.restored[phys] = order
                self._check_contents(now.received, phys, PAGE_SIZE << order)

    def _check_contents(self, received: Handed, phys: int, size: int) -> None:
        """INV-26: a block is what it was at J when it is restored."""
        with self.checking("INV-26"):
            then = self.reference() or received.snapshot
            for page in range(phys, phys + size, PAGE_SIZE):
                if page not in received.metadata and differs(self.machine, then, page):
                    message = "a preserved page is not what it was at J when it is restored"
                    self.violate("INV-26", "run", message, page)

    def _managed(self, arguments: tuple[int, ...]) -> None:
        """mm:managed(pages): what the allocator has, against what it was given."""
        now = self._now
        with self.checking("INV-38"):
            view = self.view()
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
                self.violate("INV-38", "run", message, None)

    # ---- the end -------------------------------------------------------------------------------

    def _verdict(self, arguments: tuple[int, ...]) -> None:
        self.verdicts.append((self._now.generation, bool(arguments[0])))

    def _conclude(self, when: str) -> None:
        """The kernel is left, or the run is over."""
        now = self._now
        if not now.freed:
            return
        self._luo.conclude()
        self._check_scratch_type(when, sender=when == "J")
        if now.received is None or not now.adopted:
            return
        self._count_left(now.received.handover)
        view = self.view()
        message = "allocations are limited to scratch again"
        self._check_scratch_only(view, when, False, message)
        with self.checking("INV-45"):
            carry = view.magic_pages()
            restored = np.array(sorted(now.restored), np.uint64)
            for phys in np.intersect1d(carry, restored).tolist():
                self.violate("INV-37", when, "a restored block still carries the magic", phys)
            left = np.setdiff1d(now.received.handover.preserved.phys, restored)
            for phys in np.setdiff1d(carry, np.union1d(left, restored)).tolist():
                self.violate("INV-45", when, "a page that is not preserved carries the magic", phys)
            for phys in np.setdiff1d(left, carry).tolist():
                self.violate("INV-45", when, "a block that nobody restored lost its magic", phys)

    def _count_left(self, handover: Handover) -> None:
        """What was handed over for somebody and that somebody did not take."""
        preserved = handover.preserved
        left: Counter[str] = Counter()
        for phys, order in zip(preserved.phys.tolist(), preserved.order.tolist(), strict=True):
            if phys not in self._now.restored:
                owner = preserved.owner_of(phys, order)
                if owner in TAKEN:
                    left[owner or "nobody"] += 1
        self.left[self._now.generation] = dict(left)

    def _end(self) -> None:
        """The last kernel is done: what it would hand over to another one."""
        self._conclude("end")
        if not self._now.freed:
            return
        with self.checking("INV-39"):
            view = self.view()
            at = view.member(view.symbol("kho_out"), "kho_out", "fdt")
            if not at:
                raise UnknownLayout("the last kernel could not hand over: KHO is off")
            try:
                fdt = Fdt.parse(view.read(at, PAGE_SIZE))
                node = fdt.root.child("kexec-metadata")
                if node is None:
                    self._check_count("end", None, view.phys(at))
                    return
                blob = self.machine.memory.read(node.u64("preserved-data"), METADATA.size).tobytes()
                self._check_count("end", KexecMetadata.unpack(blob), node.u64("preserved-data"))
            except KhoError as e:
                self.violate("INV-39", "end", f"what the last kernel would hand over: {e}", view.phys(at))


def _written_by_shutdown(handover: Handover) -> frozenset[int]:
    """Tables of the remapping unit from which the shutdown of devices takes what is not handed over."""
    luo = Luo.read(handover)
    if luo is None or luo.iommu is None:
        return frozenset()
    unit = luo.iommu
    return frozenset({unit.root, unit.interrupts & -PAGE_SIZE, *unit.context_tables})


__all__ = ["NOT_ADOPTED", "OBSERVED", "OwnChecker"]
