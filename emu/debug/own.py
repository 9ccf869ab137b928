"""Invariants that show only while one of the project's kernels runs: `OwnChecker`.

It watches the kernels from their probes and looks into their structures by debug information
(`emu.debug.view`), at those points and at the moments J, K, F and the end. It changes nothing of the run and
believes nothing that a kernel says of itself: what a kernel counts is counted again. `emu.debug.invariants`
does the same for Linux; the two share no more than what LUO's rows demand (`emu.debug.luo_rules`).

What a kernel does as the one that hands over belongs to the update that it begins, what it does as the one
that was handed over to belongs to the update before. Here are probes, results, moments, and INV-3, 39 and 49;
the other rows are in parts, an idea each: `Boot`, `Restores`, and those of LUO (`LuoChecker`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from emu.debug import entries, guest
from emu.debug.dmaright import Reference
from emu.debug.guest import UnknownLayout
from emu.debug.own_boot import NOT_ADOPTED, Boot
from emu.debug.own_luo import EVENTS, FUNCTIONS, LuoChecker
from emu.debug.own_luo import OBSERVED as OBSERVED_OF_LUO
from emu.debug.own_part import Arguments, Call, Registers
from emu.debug.own_restore import Restores
from emu.debug.own_state import Handed, Running
from emu.debug.release import Kernel
from emu.debug.sdt import Probe
from emu.debug.struct_pages import StructPages
from emu.debug.then import differs
from emu.debug.view import View
from emu.errors import AddressError, ImageError
from emu.machine import Machine, Snapshot
from kho.abi import METADATA, PAGE_SIZE
from kho.check import Report, Violation
from kho.errors import KhoError
from kho.fdt import Fdt
from kho.handover import Handover
from kho.metadata import KexecMetadata
from luo.check import metadata_pages
from luo.state import Luo

VIOLATIONS_PER_ID_MAX = 50

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
        self.before_free: Callable[[], None] = lambda: None
        """called when a kernel has adopted memory and is about to free the rest"""
        self._reports: dict[int, Report] = {}
        self._violations: dict[tuple[int, str], int] = {}
        self._installed: list[tuple[int, Callable[[Machine, int], bool | None]]] = []
        self._registers: Registers | None = None
        self._begin(Running(0, kernels[0], started=True), None)

    def _begin(self, now: Running, handover: Handover | None) -> None:
        """This kernel runs from now on."""
        self._now = now
        self._boot = Boot(self, now, lambda: self.before_free())
        self._restores = Restores(self, now, lambda: self.reference())
        self._luo = LuoChecker(self, handover if now.kernel.own else None)
        self._install()

    # ---- probes --------------------------------------------------------------------------------

    def _install(self) -> None:
        for item in self._installed:
            self.machine.unprobe(*item)
        self._installed = []
        kernel = self._now.kernel
        if not kernel.own:
            return
        for event, methods in entries.table(self, self._boot, self._restores).items():
            for probe in kernel.probes.at(event):
                for method in methods:
                    self._add(probe.address, self._handler(probe, method))
        for event in EVENTS:
            for probe in kernel.probes.at(event):
                self._add(probe.address, self._handler(probe, self._luo_call(event)))
        for name in FUNCTIONS:
            at = kernel.symbols.address(name) if kernel.symbols is not None else None
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

    def _luo_call(self, name: str) -> Call:
        def entered(registers: Registers, arguments: Arguments) -> None:
            self._luo.called(name, registers, arguments)

        return entered

    def _handler(self, probe: Probe, method: Call) -> Callable[[Machine, int], bool | None]:
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
            method(self._registers, arguments)

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
            self._boot.adopts()
        elif when == "F":
            self._boot.adopted()
        elif when == "end":
            self._end()

    def _jump(self, handover: Handover | None, snapshot: Snapshot | None) -> None:
        if self._now.kernel.own and handover is not None:
            self._check_sender(handover)
            self._luo.jump(handover)
            self._conclude("J")
        self.receive(handover, snapshot)

    def receive(self, handover: Handover | None, snapshot: Snapshot | None) -> None:
        """The next kernel begins, and this is what it is handed, as it is in memory now."""
        received = Handed.of(handover, snapshot) if handover is not None and snapshot is not None else None
        generation = self._now.generation + 1
        kernel = self.kernels[min(generation, len(self.kernels) - 1)]
        self._begin(Running(generation, kernel, received), handover)

    @entries.at("kernel:start")
    def _start(self, r: Registers, arguments: Arguments) -> None:
        self._now.started = True

    @entries.at("kernel:verdict")
    def _verdict(self, r: Registers, arguments: Arguments) -> None:
        self.verdicts.append((self._now.generation, bool(arguments[0])))

    # ---- the kernel that hands over ------------------------------------------------------------

    @entries.at("kexec:shutdown")
    def _shutdown(self, r: Registers, arguments: Arguments) -> None:
        """The point of no return: from here on nothing of the handover changes."""
        self._now.shut_down = self.machine.snapshot()

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

    # ---- the end -------------------------------------------------------------------------------

    def _conclude(self, when: str) -> None:
        """The kernel is left, or the run is over."""
        now = self._now
        if not now.freed:
            return
        self._luo.conclude()
        self._check_scratch_type(when, sender=when == "J")
        if now.taken is None:
            return
        self.left[now.generation] = self._restores.left(now.taken)
        view = self.view()
        self._boot.conclude(view, when)
        self._restores.conclude(view, when, now.taken)

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
                blob = self.machine.memory.copy(node.u64("preserved-data"), METADATA.size)
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
