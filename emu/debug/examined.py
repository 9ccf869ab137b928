"""One update's handover as the host reads it from memory: `Examined`, at the moments J, K and F.

At J the handover is decoded and checked, and the machine kept as a snapshot. All that comes later is compared
with that: what the new kernel is handed (P12), what it adopts (K), memory when the rest is about to be given
away, and when that is done (F).
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from emu.debug import handed, kexec, outgoing
from emu.debug.dmaright import Reference
from emu.debug.release import Kernel
from emu.debug.then import MemoryNow, MemoryThen
from emu.debug.workloads import Ledger
from emu.errors import EmuError
from emu.machine import Machine, Snapshot
from kho import check as kho_check
from kho import luemutest
from kho.abi import SUBTREE_LUO, SUBTREE_MEMBLOCK, SUBTREE_METADATA, SUBTREE_TEST
from kho.check import Report, Segment, Violation, failed
from kho.errors import KhoError
from kho.handover import Handover
from kho.memory import Reader
from kho.setup_data import ScratchArea
from luo.check import TABLE, check, compare
from luo.state import Luo

OWN_SUBTREES = (SUBTREE_METADATA, SUBTREE_MEMBLOCK, SUBTREE_TEST, SUBTREE_LUO, luemutest.SUBTREE)
"""Everything that the project's kernels hand over."""
_SETUP_DATA = 0x250
"""offset in boot_params: where the chain of setup_data begins"""


@dataclass
class Examined:
    """What the host found of one update. Where there is none, what is found of the kernel that runs."""

    generation: int
    """of the kernel that hands over"""
    earlier_scratch: list[ScratchArea] | None = None
    """the scratch list of the update before"""
    received_number: int | None = None
    """the live update number that the kernel had received, 0: none"""
    snapshot: Snapshot | None = None
    """the machine at J"""
    handover: Handover | None = None
    """as decoded at J, if it could be"""
    image: kexec.Image | None = None
    fdt_given: int = 0
    """where the kernel says that its root FDT is"""
    contents: dict[str, str] = field(default_factory=dict)
    """sha256 of every preserved file at J, with what devices wrote since, keyed "session/0xtoken" """
    preserved: dict[str, int] = field(default_factory=dict)
    kept: list[dict[str, Any]] = field(default_factory=list)
    sessions: list[dict[str, Any]] = field(default_factory=list)
    ledger: Ledger | None = None
    """of the cache's client"""
    violations: list[Violation] = field(default_factory=list)
    checked: list[str] = field(default_factory=list)
    not_checked: dict[str, str] = field(default_factory=dict)
    moments: list[str] = field(default_factory=list)
    """at which it was read"""
    failures: list[str] = field(default_factory=list)
    """what is wrong besides the violations"""
    digest_instructions: int = 0
    _passed_on: Report | None = None

    # ---- facts of J ----------------------------------------------------------------------------

    @property
    def fdt(self) -> int:
        """Address of the root FDT, 0 if nothing could be read."""
        return (self.handover.fdt_phys or 0) if self.handover is not None else 0

    @property
    def scratch(self) -> list[ScratchArea] | None:
        """The scratch areas, None if they are not known."""
        return self.handover.scratch if self.handover is not None else None

    @property
    def number(self) -> int | None:
        """The live update number that goes over."""
        luo = Luo.read(self.handover) if self.handover is not None else None
        return None if luo is None else luo.liveupdate_num

    @property
    def segments(self) -> list[Segment] | None:
        """Where the next kernel's image goes, None if that is not known."""
        return None if self.image is None else [Segment(at, size) for at, size, _ in self.image.segments]

    def facts(self, moment: str) -> dict[str, Any]:
        """What a dump's .json says of the handover."""
        out: dict[str, Any] = {"moment": moment}
        if self.fdt or self.fdt_given:
            out["kho_fdt_pa"] = hex(self.fdt or self.fdt_given)
        if self.handover is not None and self.handover.location.scratch_phys is not None:
            out["scratch_list_pa"] = hex(self.handover.location.scratch_phys)
        if self.scratch is not None:
            out["scratch"] = _plain(self.scratch)
            if moment in ("K", "F"):
                out["old_scratch"] = out["scratch"]
        if moment == "J" and self.image is not None:
            out["segments"] = [[hex(at), hex(size)] for at, size, _ in self.image.segments]
            out["control_pages"] = [hex(page) for page in self.image.control_pages]
        out["expected_sha256"] = self.contents
        if self.earlier_scratch is not None:
            out["earlier_scratch"] = _plain(self.earlier_scratch)
        if self.received_number is not None:
            out["received_number"] = self.received_number
        return out

    # ---- what was found ------------------------------------------------------------------------

    def take(self, report: Report) -> None:
        """Add what a checker has found."""
        self.violations += report.violations
        self.checked += [i for i in report.checked if i not in self.checked]
        for id, reason in report.not_checked.items():
            self.not_checked.setdefault(id, reason)

    def _unreadable(self, error: KhoError, moment: str, failure: str = "") -> None:
        """Note the invariant, if it is one, that keeps the handover from being read."""
        report = failed(error, moment, TABLE)
        if report is not None:
            self.take(replace(report, not_checked={}))
        if failure:
            self.failures.append(f"{failure}: {error}")

    # ---- J -------------------------------------------------------------------------------------

    def jump(self, m: Machine, kernel: Kernel) -> None:
        """J: the kernel is about to leave."""
        try:
            self.image = outgoing.image(m, kernel)
        except kexec.UnknownImage as e:
            self.not_checked["INV-13"] = self.not_checked["INV-28"] = str(e)
        scratch, given = outgoing.scratch(m, kernel.symbols), outgoing.root_fdt(m, kernel)
        self.fdt_given = given or 0
        unreadable = f"the handover of update {self.generation + 1} cannot be read at J"
        if given == 0:
            off = f"KHO is off in kernel {self.generation} ({kernel.short}){outgoing.last_of_kho(m.console)}"
            self.failures.append(f"{unreadable}: {off}")
            return
        try:
            handover = Handover.read(m.memory, given, scratch=scratch, search=not kernel.own)
        except KhoError as e:
            self._unreadable(e, "J", unreadable)
            return
        self.describe(handover)
        if kernel.own:
            self._check_explained(handover)

    def describe(self, handover: Handover) -> None:
        """This is what is handed over, as it is at J."""
        self.handover = handover
        control = None if self.image is None else self.image.control_pages
        self.take(
            check(
                handover, "J", segments=self.segments, control_pages=control,
                earlier_scratch=self.earlier_scratch, received_number=self.received_number,
            )
        )  # fmt: skip
        self.moments.append("J")
        self.contents = handed.digests(handover, handover.reader)
        self.preserved = handed.amounts(handover)
        self.kept = handed.kept(handover)
        self.sessions = handed.sessions(handover)
        self.ledger = handed.ledger(handover)
        test = handover.kho_test
        if test is not None and test.csum_ok(handover.reader) is False:
            self.failures.append(
                f"the folios of kho_test have not their checksum at J of update {self.generation + 1}"
            )

    def _check_explained(self, handover: Handover) -> None:
        """INV-12, the other way round: all that a kernel of the project preserves is known here, so what
        nothing explains is a leak."""
        if not handover.tree_is_whole or any(s.name not in OWN_SUBTREES for s in handover.subtrees):
            return
        for phys, order in zip(*(a.tolist() for a in handover.unexplained()), strict=True):
            message = f"nothing explains why the block of order {order} is preserved"
            self.violations.append(Violation("INV-12", "J", message, phys))

    # ---- after the jump ------------------------------------------------------------------------

    def entered(self, m: Machine) -> None:
        """INV-29 at the new kernel's entry (P12): one that refuses the list goes on to use all memory."""
        self._passed_on = None
        try:
            at = m.registers()["rsi"] + _SETUP_DATA
            chain = int.from_bytes(m.memory.copy(at, 8), "little")
            handover = Handover.read(m.memory, setup_data=chain)
            subject = kho_check.Subject(handover, "K", old_scratch=self.scratch)
            report = kho_check.run(subject, {"INV-29": TABLE["INV-29"]})
        except (KhoError, EmuError):
            return
        self._passed_on = Report("K", report.violations, ["INV-29"])

    def refused(self, who: str) -> None:
        """The new kernel went on without what it was handed."""
        reason = f"{who} did not take the handover: it boots cold, everything is lost"
        if reason not in self.failures:
            self.failures.append(reason)
            if self._passed_on is not None:
                self.take(self._passed_on)

    def adopted(self, m: Machine, reference: Reference | None) -> None:
        """K: the new kernel takes what it finds. ``reference``: what devices wrote since J by right."""
        if not self.fdt or self.snapshot is None:
            return
        changed = m.memory.dirty()
        try:
            before = self._before(m, changed, reference)
            after = Handover.read(m.memory)
            self.take(
                check(
                    after, "K", old_scratch=self.scratch, earlier_scratch=self.earlier_scratch,
                    received_number=self.received_number,
                )
            )  # fmt: skip
            self.take(self._compare(before, after, "K"))
            self._check_contents(m, before, "K", reference)
        except KhoError as e:
            self._unreadable(e, "K", "the handover cannot be read at K")

    def freeing(self, m: Machine, reference: Reference | None) -> None:
        """INV-30, 26 and 49 up to the last moment at which memory outside scratch is nobody's."""
        if not self.fdt or self.snapshot is None:
            return
        changed = m.memory.dirty()
        try:
            before = self._before(m, changed, reference)
            self.take(self._compare(before, self._after(m, changed), "F"))
        except KhoError as e:
            self._unreadable(e, "F")

    def freed(self, m: Machine, reference: Reference | None) -> None:
        """F: the new kernel has freed the rest, which may have been used by now."""
        if not self.fdt or self.snapshot is None:
            return
        changed = m.memory.dirty()
        try:
            before = self._before(m, changed, reference)
            report = self._compare(before, self._after(m, changed), "F")
            report.violations = [v for v in report.violations if v.id == "INV-26"]
            report.checked = ["INV-26"]
            self.take(report)
            self._check_contents(m, before, "F", reference)
        except KhoError as e:
            self._unreadable(e, "F", "the handover cannot be read at F")

    def _before(self, m: Machine, changed: list[int], reference: Reference | None) -> Handover:
        """The handover of J, with the memory that it has to be in now."""
        assert self.handover is not None and self.snapshot is not None
        memory = MemoryThen(m, changed, self.snapshot if reference is None else reference)
        if reference is None or not reference.written:  # nothing of it can be another: as it was decoded
            return replace(self.handover, reader=Reader(memory))
        return Handover.read(memory, self.fdt, scratch=self.scratch, search=False)

    def _after(self, m: Machine, changed: list[int]) -> Handover:
        """The same as it is in memory now."""
        return Handover.read(MemoryNow(m, changed), self.fdt, scratch=self.scratch, search=False)

    def _compare(self, before: Handover, after: Handover, when: str) -> Report:
        # the jump itself writes these pages of the old kernel: its control pages and its stack
        may_change = [] if self.image is None else self.image.control_pages + self.image.stack
        return compare(before, after, ("J", when), may_change=may_change)

    def _check_contents(self, m: Machine, before: Handover, when: str, reference: Reference | None) -> None:
        """INV-26 once more, file by file."""
        were = "what they were at J"
        if reference is not None and reference.written:
            self.contents = handed.digests(before, before.reader)
            were += " and devices wrote since"
        now = handed.digests(before, Reader(m.memory))
        self.moments.append(when)
        for name, digest in self.contents.items():
            if now.get(name) != digest:
                message = f"the contents of {name} are not {were}"
                self.violations.append(Violation("INV-26", when, message, None))


def _plain(areas: list[ScratchArea]) -> list[list[str]]:
    return [[hex(area.phys), hex(area.size)] for area in areas]


__all__ = ["Examined"]
