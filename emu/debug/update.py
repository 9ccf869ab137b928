"""One live update, from boot to verified finish: what `luemu run` does.

Builds the initramfs, boots the old kernel, follows the phases, examines every handover from the
host at the moments J, K and F, and gives the verdict. The verdict never rests on what the guest
says alone: a run is `ok` only if every program exited 0, or the last of the project's kernels found
everything as it should be, *and* the host read every handover, found no invariant broken, and found
every preserved byte unchanged.
"""

from __future__ import annotations

import hashlib
import posixpath
import re
import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

import kernels
from emu.boot import Boot, BzImage
from emu.debug import epitaph, guest, kexec
from emu.debug.chain import INIT, Chain
from emu.debug.dmacheck import DmaWatch, Reference, sorted_violations
from emu.debug.guest import UnknownLayout
from emu.debug.incoming import Incoming
from emu.debug.inspect import _describe_session as describe_session
from emu.debug.invariants import RuntimeChecker
from emu.debug.net import Net, NetReport, Sent, conclude
from emu.debug.own import OwnChecker
from emu.debug.phases import PhaseObserver, Record
from emu.debug.release import Kernel
from emu.debug.symbols import Symbols
from emu.debug.view import View
from emu.debug.workloads import CacheReport, Ledger, together
from emu.errors import ConfigError, EmuError, ImageError
from emu.files import FILE_BYTES_MAX, is_regular, read_file
from emu.initproto import Plan, ProgramRun, RecordError, RecordReader, Transcript
from emu.initramfs import Initramfs
from emu.machine import Machine, Snapshot, Stop, StopKind
from emu.memory import PAGE, U8Array, page_ranges
from emu.traffic import TrafficSpec
from kho import luemutest
from kho.abi import SCRATCH_COUNT_MAX, SUBTREE_LUO, SUBTREE_MEMBLOCK, SUBTREE_METADATA, SUBTREE_TEST
from kho.check import Report, Segment, Violation, failed
from kho.errors import KhoError
from kho.handover import Handover
from kho.setup_data import ScratchList
from luo.check import TABLE, check, compare
from luo.state import Luo, payload_bytes

MAX_INSTRUCTIONS = 50_000_000_000
"""Default of --max-instructions: about a minute; a whole update of a Linux takes 2.5 thousand million."""


OWN_SUBTREES = (SUBTREE_METADATA, SUBTREE_MEMBLOCK, SUBTREE_TEST, SUBTREE_LUO, luemutest.SUBTREE)
"""Everything that the project's kernels hand over."""


@dataclass
class Options:
    """What to run. Paths are the host's; a kernel may be one of the project's releases, by name. Several
    kernels in ``then`` are those of further updates, and there are as many updates as kernels."""

    old: Path | str
    new: Path | str
    then: Sequence[Path | str] = ()
    old_symbols: Path | None = None
    new_symbols: Path | None = None
    memory: int = 512 << 20
    cmdline: str = ""
    before: Sequence[str] = ()
    after: Sequence[str] = ()
    files: Sequence[tuple[Path, str]] = ()
    programs: Sequence[str] = ()
    """of the project, by name, to be put into /bin"""
    libraries: bool = True
    updates: int = 1
    init: Path | None = None
    """the first program, instead of the project's"""
    initramfs: Path | None = None
    """with programs to run: what they find beside them; else the whole file system"""
    incoming: Path | None = None
    """a recorded handover; then ``new`` starts on it"""
    interactive: bool = False
    raw: bool = False
    strict_memory: bool = False
    max_instructions: int = MAX_INSTRUCTIONS
    devices: Sequence[str] = ()
    """what the machine has beyond a plain PC (docs/devices.md)"""
    traffic: TrafficSpec | None = None
    """what is at the other end of its network cable"""
    traffic_at: str | None = None
    """id of the phase that starts it"""
    at: Sequence[tuple[str, str, Path]] = ()
    """(what, when, file): what is "save" or "dump", when a moment, phase id or instruction number"""

    @property
    def commands(self) -> bool:
        """Whether there is something to do for the project's init."""
        return bool(self.before or self.after or self.interactive)

    @property
    def driven(self) -> bool:
        """Whether the project's init is the first program, where there is one."""
        return self.init is None and (self.initramfs is None or self.commands)

    @property
    def has_programs(self) -> bool:
        """Whether the kernels have user space."""
        return self.commands or not self.driven or self.incoming is not None


class SnapshotMemory:
    """RAM as it was at a snapshot, or has to be since (`Reference`), for the decoders. ``changed`` limits
    what a comparison looks at."""

    def __init__(
        self, machine: Machine, snapshot: Snapshot | Reference, changed: list[int] | None = None
    ) -> None:
        self._machine = machine
        self._snapshot = snapshot
        self.changed = changed

    @property
    def ranges(self) -> list[tuple[int, int]]:
        return self._machine.memory.ranges

    def read(self, phys: int, size: int) -> U8Array:
        at = self._machine.memory.offset(phys, size)
        first, last = at // PAGE, (at + max(size, 1) - 1) // PAGE
        out = np.zeros((last - first + 1, PAGE), np.uint8)
        for number in range(first, last + 1):
            found = self._snapshot.page(number)
            if found is not None:
                out[number - first] = found
        view = out.reshape(-1)[at - first * PAGE :][:size]
        view.flags.writeable = False
        return view

    def populated(self) -> list[tuple[int, int]]:
        pages = sorted(self._snapshot.all_pages()) if self.changed is None else self.changed
        return page_ranges(pages, self._machine.memory.low)


class ChangedMemory:
    """The live RAM, of which a comparison need only look at the pages written since a snapshot."""

    def __init__(self, machine: Machine, changed: list[int]) -> None:
        self._memory = machine.memory
        self._changed = changed

    @property
    def ranges(self) -> list[tuple[int, int]]:
        return self._memory.ranges

    def read(self, phys: int, size: int) -> U8Array:
        return self._memory.read(phys, size)

    def populated(self) -> list[tuple[int, int]]:
        return page_ranges(self._changed, self._memory.low)


_SETUP_DATA = 0x250
"""offset in boot_params: where the chain of setup_data begins"""


@dataclass
class Examined:
    """What the host found of one update's handover."""

    generation: int
    fdt: int = 0
    fdt_given: int = 0
    """where the kernel says that its root FDT is"""
    snapshot: Snapshot | None = None
    scratch: Any = None
    scratch_phys: int | None = None
    segments: list[Segment] | None = None
    control_pages: list[int] | None = None
    image: kexec.Image | None = None
    kept: list[dict[str, Any]] = field(default_factory=list)
    """what was handed over, for people: name, pages, bytes, and what there is to say of it"""
    number: int | None = None
    """live update number that the handover carries"""
    contents: dict[str, str] = field(default_factory=dict)
    """sha256 of every preserved file at J, keyed "session/0xtoken" """
    preserved: dict[str, int] = field(default_factory=dict)
    sessions: list[dict[str, Any]] = field(default_factory=list)
    ledger: Ledger | None = None
    """of the cache's client"""
    violations: list[Violation] = field(default_factory=list)
    checked: list[str] = field(default_factory=list)
    not_checked: dict[str, str] = field(default_factory=dict)
    moments: list[str] = field(default_factory=list)
    may_change: list[int] = field(default_factory=list)
    """pages of the old kernel that the jump itself writes: its control pages and its stack"""
    digest_from: int | None = None
    digest_instructions: int = 0

    def take(self, report: Report) -> None:
        self.violations += report.violations
        self.checked += [i for i in report.checked if i not in self.checked]
        for id, reason in report.not_checked.items():
            self.not_checked.setdefault(id, reason)

    def unreadable(self, error: KhoError, moment: str) -> None:
        """Note the invariant, if it is one, that keeps the handover from being read."""
        report = failed(error, moment, TABLE)
        if report is not None:
            self.violations += report.violations
            self.checked += [i for i in report.checked if i not in self.checked]

    def facts(self, moment: str) -> dict[str, Any]:
        """What a dump's .json says of the handover."""
        out: dict[str, Any] = {"moment": moment}
        if self.fdt or self.fdt_given:
            out["kho_fdt_pa"] = hex(self.fdt or self.fdt_given)
        if self.scratch_phys is not None:
            out["scratch_list_pa"] = hex(self.scratch_phys)
        if self.scratch is not None:
            out["scratch"] = [[hex(a.phys), hex(a.size)] for a in self.scratch]
            if moment in ("K", "F"):
                out["old_scratch"] = out["scratch"]
        if moment == "J" and self.segments is not None:
            out["segments"] = [[hex(s.phys), hex(s.size)] for s in self.segments]
            out["control_pages"] = [hex(page) for page in self.control_pages or []]
        out["expected_sha256"] = self.contents
        return out


@dataclass
class Result:
    """Everything `luemu run` reports."""

    ok: bool
    reasons: list[str]
    stop: Stop
    state_hash: str
    memory_bytes: int
    phases: list[Record]
    updates: list[dict[str, Any]]
    programs: list[dict[str, Any]]
    violations: list[dict[str, Any]]
    epitaph: str = ""
    """where the guest is, for people, if it did not end by itself"""
    panic: dict[str, Any] | None = None
    """what a kernel of the project left in its epitaph"""
    cache: dict[str, Any] | None = None
    """what the cache's client found, all updates together; None if there is no cache"""
    net: dict[str, Any] | None = None
    """what the receiver of the workload `net` and those who watched it found; None if there is none"""
    traffic: dict[str, Any] | None = None
    """what was sent to the network card, and what came from it"""

    def plain(self) -> dict[str, Any]:
        """For JSON: the run, with the fields of the last update repeated at the top."""
        last = self.updates[-1] if self.updates else {}
        return {
            **last,
            "ok": self.ok,
            "reasons": self.reasons,
            "memory_bytes": self.memory_bytes,
            "violations": self.violations,
            "state_hash": self.state_hash,
            "end": {"kind": self.stop.kind.value, "message": self.stop.message, "rip": self.stop.rip,
                    "instructions": self.stop.instructions, "ticks": self.stop.ticks},
            "phases": last.get("phases", [r.plain() for r in self.phases]),
            "programs": self.programs,
            "updates": self.updates,
            "panic": self.panic,
            "cache": self.cache,
            "net": self.net,
            **({} if self.traffic is None else {"traffic": self.traffic}),
        }  # fmt: skip


def split_command(text: str) -> list[str]:
    """A command line as words, like a shell splits it but run without one. Raises ConfigError."""
    try:
        words = shlex.split(text)
    except ValueError as e:
        raise ConfigError(f"{e}", text) from None
    if not words:
        raise ConfigError("is empty", "command")
    return words


def _image(path: Path) -> bytes:
    return read_file(path)


class Update:
    """One run. `machine` may be watched from outside (progress, consoles) while it goes on."""

    def __init__(self, options: Options) -> None:
        self.options = o = options
        self.chain = Chain.open(
            o.old, [o.new, *o.then], o.updates, (o.old_symbols, o.new_symbols), cmdline=o.cmdline,
            programs=o.has_programs, driven=o.driven, observe=not o.raw,
        )  # fmt: skip
        self.symbols = [kernel.symbols for kernel in self.chain.kernels]
        self.incoming = Incoming.open(o.incoming) if o.incoming is not None else None
        memory = o.memory if self.incoming is None else self.incoming.size
        self.machine = Machine(memory, strict_memory=o.strict_memory, devices=o.devices, traffic=o.traffic)
        self.sent = Sent(self.machine.traffic) if o.traffic is not None else None
        self.transcript = Transcript()
        self.reader = RecordReader()
        self.record_error: RecordError | None = None
        self.examined: list[Examined] = []
        self.failure: list[str] = []
        self.cuts = [0]
        """numbers of the phase records at which the updates begin"""
        self.on_console: Callable[[int], None] | None = None
        self.on_records: Callable[[Transcript], None] | None = None
        self.on_phase: Callable[[Record], None] | None = None
        self.machine.serial_sinks.append(self._serial)
        self._boot()
        self._pending_at = list(o.at)
        self._traffic_at = o.traffic_at
        self.ended: Stop | None = None
        """set when the machine stopped before `run` was called (an interactive session)"""
        self.checker: RuntimeChecker | None = None
        self.own: OwnChecker | None = None
        self.dma: DmaWatch | None = None
        self._handed_over: Handover | None = None
        self.observer: PhaseObserver | None = None
        self._jumping = False
        self._passed_on: Report | None = None
        self._host_writes: list[tuple[int, int, str]] = []
        self._alone = Examined(0)
        """what was found of a kernel that is not updated"""
        if not o.raw:
            kernels = self.chain.kernels
            if self.machine.platform.extras:
                self.dma = DmaWatch(self.machine, kernels)
            if self.chain.linux and self.incoming is None:
                seen = [None if kernel.own else kernel.symbols for kernel in kernels]
                self.checker = RuntimeChecker(self.machine, seen)
            self.observer = PhaseObserver(self.machine, kernels, self._moment)
            self.observer.on_phase = self._entered
            if self.chain.own:
                self.own = OwnChecker(self.machine, kernels)
                self.own.before_free = self._examine_before_free
                self.own.reference = lambda: self.dma.reference if self.dma is not None else None
                self.machine.memory.observers.append(self._host_writes_memory)
            if self.incoming is not None:
                self._receive(self.incoming)

    def _entered(self, record: Record) -> None:
        if self.on_phase is not None:
            self.on_phase(record)
        if record.id == self._traffic_at:
            self._traffic_at = None
            self.machine.traffic.start(at=self.machine.ticks + 1)

    def _boot(self) -> None:
        generation = 0 if self.incoming is None else 1
        kernel = self.chain.kernel(generation)
        cmdline = f"{self.chain.command_line(generation)} luemu.generation={generation}"
        boot = Boot(kernel.image, cmdline, self._initramfs(), where=str(kernel.path))
        if self.incoming is not None:
            found = self.incoming
            found.load(self.machine)
            boot = replace(
                boot, kernel=kernel.kexec_image, e820=found.e820, within=found.within,
                setup_data=found.setup_data(),
            )  # fmt: skip
        self.machine.boot(boot)

    def _receive(self, incoming: Incoming) -> None:
        """The kernel that is booted was handed something over: as if the jump had just been."""
        assert self.observer is not None
        self.observer.receive()
        found = Examined(0, snapshot=self.machine.snapshot())
        self.examined.append(found)
        try:
            handover = Handover.read(self.machine.memory, incoming.fdt, incoming.scratch, search=False)
        except KhoError as e:
            raise ImageError(str(e), str(incoming.path)) from None
        self._describe(found, handover, check(handover, "J"))
        for name, digest in incoming.expected.items():
            if found.contents.get(name) != digest:
                self.failure.append(f"{name} is not in the image with the sha256 that its .json says")
        if self.own is not None:
            self.own.receive(handover, found.snapshot)
        self._jumping = True

    def _initramfs(self) -> bytes:
        o = self.options
        files = Initramfs(bytes_max=o.memory if o.incoming is None else FILE_BYTES_MAX)
        if o.initramfs is not None:
            files.add_base(_image(o.initramfs), str(o.initramfs))
        if self.chain.init is not None:
            files.add_standard(kernels.binary("init"), self.chain.init)
        elif o.init is not None:
            files.add_standard(o.init)
            files.add_host_file(o.init, INIT, libraries=o.libraries)
        for host, where in o.files:
            if posixpath.normpath(where).lstrip("/").split("/")[0] in ("init", "luemu", "boot"):
                raise ConfigError("is where luemu's own init, its plan and the kernels are", where)
            files.add_host_file(host, where, libraries=o.libraries)
        for name in o.programs:
            try:
                files.add_file(f"/bin/{name}", kernels.binary(name).read_bytes(), 0o755)
            except OSError as e:
                raise ConfigError(str(e), name) from None
        for path, data in self.chain.files().items():
            files.add_file(path, data)
        if o.initramfs is not None and not files.entries:
            return _image(o.initramfs)  # as it is, to the byte
        if self.chain.init is not None:
            files.write_plan(
                Plan(
                    updates=o.updates,
                    before=[split_command(c) for c in o.before],
                    after=[split_command(c) for c in o.after],
                    next=self.chain.next_kernels(),
                    terminal="/dev/ttyS0" if o.interactive else None,
                )
            )
        return files.build()

    # ---- what the guest says -------------------------------------------------------------------

    def _serial(self, port: int, value: int, now: int) -> None:
        if port == 0:
            if self.on_console is not None:
                self.on_console(value)
            return
        if self.record_error is not None:
            return
        try:
            records = self.reader.feed(bytes((value,)))
            if records:
                self.transcript.add(records)
                self._cut()
                if self.on_records is not None:
                    self.on_records(self.transcript)
        except RecordError as e:
            self.record_error = e

    def _cut(self) -> None:
        """In a chain, an update begins where its kernel begins to work for it: at the first program
        before it, or else at the kexec."""
        t = self.transcript
        generation = t.generations[-1].generation if t.generations else 0
        if self.observer is None or generation < len(self.cuts) or generation >= self.options.updates:
            return
        started = any(p.generation == generation and p.when == "before" for p in t.programs)
        if generation and (started or any(k.generation > generation for k in t.kexecs)):
            self.cuts.append(self.observer.split())

    def _cut_own(self, generation: int) -> None:
        """The same where a kernel of the project begins to prepare the next update."""
        begins = not self.chain.has_init(generation) and len(self.cuts) <= generation < self.options.updates
        if begins and self.observer is not None:
            self.cuts.append(len(self.observer.records) - 1)

    # ---- what the host sees --------------------------------------------------------------------

    def _moment(self, m: Machine, when: str, generation: int) -> None:
        if when == "J":
            self._examine_jump(m, generation)
        elif when in ("P6", "P7", "P8"):
            self._cut_own(generation)
        elif when == "P12" and self.examined:
            self._passed_on = self._read_passed_on(m)
        handover = self._handed_over if when == "J" else None
        if self.dma is not None and when not in ("J", "K", "F"):
            self.dma.phase(when)
        elif self.dma is not None and when == "J":
            found = self.examined[-1]
            image = [(s.phys, s.phys + s.size) for s in found.segments or ()]
            self.dma.moment("J", handover, found.snapshot, image)
        if self.own is not None and when in ("J", "K", "F"):
            self.own.moment(when, handover, self.examined[-1].snapshot if when == "J" else None)
        if when in ("K", "F") and self.examined:
            if self.own is not None and self.chain.kernel(generation).own and not self.own.adopted:
                self._refused(generation)
            else:
                self._examine_again(m, when)
        if self.dma is not None and when in ("K", "F"):
            own = self.own if self.chain.kernel(generation).own else None
            self.dma.moment(when, adopted=own is None or own.adopted)
        if self.checker is not None and when in ("J", "K", "F"):
            self.checker.moment(when, generation, handover)
        if when in ("J", "F"):
            self._jumping = when == "J"
        for item in list(self._pending_at):
            if item[1] == when:
                self._pending_at.remove(item)
                self._keep(item[0], item[2], when)

    def _refused(self, generation: int) -> None:
        reason = (
            f"{self._kernel_name(generation)} did not take the handover: it boots cold, everything is lost"
        )
        if reason not in self.failure:
            self.failure.append(reason)
            if self._passed_on is not None:
                self.examined[-1].take(self._passed_on)

    def _read_passed_on(self, m: Machine) -> Report | None:
        """INV-29 at the new kernel's entry: one that refuses the list goes on to use all memory."""
        try:
            at = m.registers()["rsi"] + _SETUP_DATA
            chain = int.from_bytes(m.memory.read(at, 8).tobytes(), "little")
            handover = Handover.read(m.memory, setup_data=chain)
            report = check(handover, "K", old_scratch=self.examined[-1].scratch)
        except (KhoError, EmuError):
            return None
        report.violations = [v for v in report.violations if v.id == "INV-29"]
        report.checked = ["INV-29"]
        return report

    def _kernel_name(self, generation: int) -> str:
        return f"kernel {generation} ({self.chain.kernel(generation).short})"

    def _host_writes_memory(self, phys: int, size: int, by: str) -> None:
        """From the jump until the new kernel has adopted memory, only the guest and its devices may write."""
        if self._jumping and not by.startswith("dma:"):
            self._host_writes.append((phys, size, by))

    def _facts_of_others(self, when: str) -> dict[str, Any]:
        """What the memory of this moment does not tell: of the update before, of the running kernel."""
        previous = self._previous()
        out: dict[str, Any] = {}
        if previous.scratch is not None:
            out["earlier_scratch"] = [[hex(a.phys), hex(a.size)] for a in previous.scratch]
        if previous.number is not None:
            out["received_number"] = previous.number
        pages = None
        for checker in (self.checker, self.own) if when == "F" else ():
            pages = pages or (checker.struct_pages() if checker is not None else None)
        if pages is not None:
            out["struct_pages"] = pages.plain()
        return out

    def _keep(self, what: str, path: Path, when: str) -> None:
        from emu.debug import dump

        known = self.examined[-1].facts(when) if self.examined else {"moment": when}
        if self.examined:
            known |= self._facts_of_others(when)
        if what == "save":
            self.machine.save(path)
            if is_regular(path):
                dump.describe(self.machine, dump.beside_saved(path), known)
        else:
            dump.write(self.machine, path, known)

    def _examine_jump(self, m: Machine, generation: int) -> None:
        found = Examined(generation)
        self.examined.append(found)
        found.snapshot = m.snapshot()
        self._handed_over = None
        segments: list[Segment] | None = None
        control: list[int] | None = None
        kernel = self.chain.kernel(generation)
        try:
            image = kexec.read(m, _kimage(m, kernel), kernel.layouts if kernel.own else None)
            segments = [Segment(a, n) for a, n, _ in image.segments]
            control = image.control_pages
            found.segments, found.control_pages, found.image = segments, control, image
            found.may_change = control + image.stack
            if self.observer is not None:
                self._watch_jump(m, found, image)
        except kexec.UnknownImage as e:
            found.not_checked["INV-13"] = found.not_checked["INV-28"] = str(e)
        scratch = _scratch(m, kernel.symbols)
        given = _root_fdt(m, kernel)
        found.fdt_given = given or 0
        if given == 0:
            why = f"KHO is off in {self._kernel_name(generation)}{_last_of_kho(m.console)}"
            self.failure.append(f"the handover of update {generation + 1} cannot be read at J: {why}")
            return
        try:
            handover = Handover.read(m.memory, given, scratch=scratch, search=not kernel.own)
        except KhoError as e:
            found.unreadable(e, "J")
            self.failure.append(f"the handover of update {generation + 1} cannot be read at J: {e}")
            return
        previous = self._previous()
        report = check(
            handover, "J", segments=segments, control_pages=control, earlier_scratch=previous.scratch,
            received_number=previous.number,
        )  # fmt: skip
        self._describe(found, handover, report)
        if kernel.own:
            self._check_explained(found, handover)

    def _describe(self, found: Examined, handover: Handover, report: Report) -> None:
        """What is handed over, as it is at J."""
        self._handed_over = handover
        found.fdt = handover.fdt_phys or 0
        found.scratch = handover.scratch
        found.scratch_phys = handover.location.scratch_phys
        luo = Luo.read(handover)
        found.number = None if luo is None else luo.liveupdate_num
        found.take(report)
        found.moments.append("J")
        found.contents = _contents(handover)
        found.preserved = _preserved(handover)
        found.kept = _kept(handover)
        found.sessions = _sessions(handover)
        found.ledger = _ledger(handover)
        test = handover.kho_test
        if test is not None and test.csum_ok(handover.reader) is False:
            self.failure.append(
                f"the folios of kho_test have not their checksum at J of update {found.generation + 1}"
            )

    def _check_explained(self, found: Examined, handover: Handover) -> None:
        """INV-12, the other way round: all that a kernel of the project preserves is known here, so what
        nothing explains is a leak."""
        if not handover.tree_is_whole or any(s.name not in OWN_SUBTREES for s in handover.subtrees):
            return
        for phys, order in zip(*(a.tolist() for a in handover.unexplained()), strict=True):
            message = f"nothing explains why the block of order {order} is preserved"
            found.violations.append(Violation("INV-12", "J", message, phys))

    def _previous(self) -> Examined:
        """What was found of the update before; before the first, no live update was received."""
        first = Examined(-1, number=0 if self.incoming is None else None)
        return self.examined[-2] if len(self.examined) > 1 else first

    def _watch_jump(self, m: Machine, found: Examined, image: kexec.Image) -> None:
        observer = self.observer
        assert observer is not None

        def digest(machine: Machine, address: int) -> None:
            if found.digest_from is None:
                found.digest_from = machine.instructions

        def entered(machine: Machine, address: int) -> None:
            if found.digest_from is not None and not found.digest_instructions:
                found.digest_instructions = machine.instructions - found.digest_from

        m.probe(image.start, digest)
        kernel = self._kernel_segment(image, found.generation + 1)
        if kernel is not None:
            m.probe(kernel + 0x200, entered)
            observer.next_entry(kernel + 0x200)

    def _kernel_segment(self, image: kexec.Image, generation: int) -> int | None:
        """Where the next kernel is: the segment with as many bytes as its image has."""
        if image.kernel_segment is None:
            try:
                payload = BzImage.parse(self.chain.kernel(generation).kexec_image).payload
            except ImageError:
                return image.kernel
            for start, _, contents in image.segments:
                if contents == len(payload):
                    return start
        return image.kernel

    def _examine_again(self, m: Machine, when: str) -> None:
        found = self.examined[-1]
        if not found.fdt or found.snapshot is None:
            return
        changed = m.memory.dirty()
        now_memory = ChangedMemory(m, changed)
        then_memory = SnapshotMemory(m, self._reference(found.snapshot), changed)
        try:
            before = Handover.read(then_memory, found.fdt, scratch=found.scratch, search=False)
            if when == "K":
                handover = Handover.read(m.memory)
                previous = self._previous()
                found.take(
                    check(
                        handover, "K", old_scratch=found.scratch, earlier_scratch=previous.scratch,
                        received_number=previous.number,
                    )
                )  # fmt: skip
            else:
                handover = Handover.read(now_memory, found.fdt, scratch=found.scratch, search=False)
            report = compare(before, handover, ("J", when), may_change=found.may_change)
            if when == "F":  # free memory may have been used by now
                report.violations = [v for v in report.violations if v.id == "INV-26"]
                report.checked = ["INV-26"]
            found.take(report)
            contents = _contents_of(m, before)
            if self.dma is not None and self.dma.reference is not None and self.dma.reference.written:
                whole = SnapshotMemory(m, self.dma.reference)
                found.contents = _contents(
                    Handover.read(whole, found.fdt, scratch=found.scratch, search=False)
                )
        except KhoError as e:
            found.unreadable(e, when)
            self.failure.append(f"the handover cannot be read at {when}: {e}")
            return
        found.moments.append(when)
        for name, digest in found.contents.items():
            if contents.get(name) != digest:
                found.violations.append(
                    Violation("INV-26", when, f"the contents of {name} are not {self._what_they_were}", None)
                )

    def _reference(self, snapshot: Snapshot) -> Snapshot | Reference:
        """What preserved memory has to be now: as at J, and what devices wrote since by right."""
        reference = self.dma.reference if self.dma is not None else None
        return snapshot if reference is None else reference

    @property
    def _what_they_were(self) -> str:
        written = self.dma is not None and self.dma.reference is not None and self.dma.reference.written
        return "what they were at J and devices wrote since" if written else "what they were at J"

    def _examine_before_free(self) -> None:
        """INV-30, 26 and 49 up to the last moment at which memory outside scratch is nobody's."""
        found = self.examined[-1] if self.examined else None
        if found is None or not found.fdt or found.snapshot is None:
            return
        changed = self.machine.memory.dirty()
        then = SnapshotMemory(self.machine, self._reference(found.snapshot), changed)
        now = ChangedMemory(self.machine, changed)
        try:
            before = Handover.read(then, found.fdt, scratch=found.scratch, search=False)
            after = Handover.read(now, found.fdt, scratch=found.scratch, search=False)
        except KhoError as e:
            found.unreadable(e, "F")
            return
        found.take(compare(before, after, ("J", "F"), may_change=found.may_change))

    # ---- the run -------------------------------------------------------------------------------

    def advance(self, until: int | None = None, progress: Callable[[Machine], None] | None = None) -> Stop:
        """`Machine.run` to tick ``until`` with the run's limit, keeping on the way what --save and --dump
        want at an instruction number."""
        m, limit = self.machine, self.options.max_instructions
        while True:
            numbers = [int(when) for _, when, _ in self._pending_at if when.isdigit()]
            if not numbers:
                return m.run(until, max_instructions=limit, progress=progress)
            here = min(numbers)
            if m.instructions >= here:
                for item in [i for i in self._pending_at if i[1].isdigit() and int(i[1]) == here]:
                    self._pending_at.remove(item)
                    self._keep(item[0], item[2], item[1])
                continue
            tick = m.ticks + here - m.instructions  # or later, if time passes without instructions
            last = until is not None and until <= tick
            stop = m.run(until if last else tick, max_instructions=limit, progress=progress)
            reached = m.instructions >= here and stop.kind in (StopKind.UNTIL, StopKind.BUDGET)
            if not reached and (last or stop.kind is not StopKind.UNTIL):
                return stop

    def run(self, progress: Callable[[Machine], None] | None = None) -> Result:
        """Run to the end and judge."""
        stop = self.ended
        if stop is None or stop.kind is StopKind.UNTIL:
            stop = self.advance(progress=progress)
        if self.observer is not None:
            self.observer.finish()
        self._finish_checks()
        return self._judge(stop)

    def _finish_checks(self) -> None:
        """The last kernel is done: what the checkers have found, row by row."""
        generations = max(1, len(self.examined))
        if self.checker is not None:
            self.checker.moment("end", len(self.examined), None)
        if self.own is not None:
            self.own.moment("end")
        for generation in range(generations):
            found = self.examined[generation] if self.examined else Examined(0)
            reasons: dict[str, str] = {}
            if self.checker is not None and self.examined:
                report = self.checker.report(generation)
                found.take(report)
                reasons |= report.not_checked
            if self.own is not None:
                report = self.own.report(generation)
                found.take(report)
                ours = self.chain.kernel(generation).own or self.chain.kernel(generation + 1).own
                if ours:
                    reasons |= report.not_checked
            found.not_checked.update(reasons)
            if not self.examined:
                self._alone = found

    def _judge(self, stop: Stop) -> Result:
        o, t = self.options, self.transcript
        reasons = list(self.failure)
        phases = self.observer.records if self.observer else []
        jumps = self.observer.jumps if self.observer else []
        died = self._epitaph()
        if died is not None:
            reasons.insert(0, f"{self._kernel_name(died[0])} panicked: {died[1]['reason']}")
        elif stop.kind is not StopKind.POWER_OFF:
            where = f" in phase {self.observer.phase}" if self.observer else ""
            reasons.append(f"the run ended by {stop.kind.value}{where}: {stop.message}")
        reasons += self._refused_by_purgatory()
        reasons += self._guest_reasons(len(jumps))
        if self.observer is None:
            reasons.append("nothing was verified: --raw observes nothing")
        elif len(jumps) != o.updates:
            known = all(kernel.symbols for kernel in self.chain.kernels)
            hint = "" if known else "; the kernel's symbols are not known: give --symbols"
            reasons.append(f"the host saw {len(jumps)} of {o.updates} updates{hint}")
        for e in self.examined:
            for moment in ("J", "K", "F"):
                if moment not in e.moments and e.fdt and not self.failure:
                    reasons.append(f"update {e.generation + 1} was not examined at {moment}")
        violations = [v for e in (self.examined or [self._alone]) for v in e.violations]
        if violations:
            first = violations[0]
            reasons.append(f"{len(violations)} violation(s); the first: {first.id}: {first.message}")
        net = self._net()
        reasons += [] if net is None else net.reasons
        reasons += self._dma_reasons()
        if self._host_writes:
            phys, size, by = self._host_writes[0]
            reasons.append(f"the host wrote to memory between J and F: {size} bytes at {phys:#x} ({by})")
        for what, when, path in self._pending_at:
            reasons.append(f"--{what} {when}={path}: the run never got there")
        if self._traffic_at is not None:
            reasons.append(f"--traffic start={self._traffic_at}: the run never got there")
        crashed = stop.kind not in (StopKind.POWER_OFF, StopKind.UNTIL, StopKind.REQUEST)
        symbols = self.chain.kernel(len(jumps)).symbols
        text = guest.epitaph(self.machine, symbols) if crashed else ""
        return Result(
            ok=not reasons,
            reasons=reasons,
            stop=stop,
            state_hash=self.machine.state_hash(),
            memory_bytes=self.machine.memory.size,
            phases=phases,
            updates=[self._update(i) for i in range(len(jumps))],
            programs=[
                {"when": p.when, "generation": p.generation, "argv": list(p.argv), "status": p.status,
                 "signal": p.signal, "output": p.output.decode("utf-8", "replace"),
                 "replaced": p in self._replacing(len(jumps))}
                for p in t.programs
            ],
            violations=[v.to_dict() for v in violations],
            epitaph=epitaph.text(died[1]) if died is not None else text,
            panic=died[1] if died is not None else None,
            cache=together([r for r in self._cache_reports().values() if r is not None]),
            net=None if net is None else net.plain(),
            traffic=self.machine.traffic.plain() if self.options.traffic is not None else None,
        )  # fmt: skip

    def _net(self) -> Net | None:
        """What came of the workload `net`, if it ran."""
        runs = [p for p in self.transcript.programs if posixpath.basename(p.argv[0]) == "net"]
        if not runs or self.sent is None or self.dma is None or self.observer is None:
            return None
        reports = [report for report in (NetReport.parse(p.output) for p in runs) if report is not None]
        return conclude(reports[-1] if reports else None, self.sent, self.dma, self.observer.records)

    def _dma_reasons(self) -> list[str]:
        found = sorted_violations(self.dma.violations) if self.dma is not None else []
        more = f" (and {len(found) - 1} more)" if len(found) > 1 else ""
        return [f"DMA: {found[0]}{more}"] if found else []

    def _guest_reasons(self, jumps: int) -> list[str]:
        """What the guest itself says against the run."""
        o, t, reasons = self.options, self.transcript, list[str]()
        last_is_own = not self.chain.has_init(o.updates)
        for generation, left in (self.own.left if self.own is not None else {}).items():
            for owner, count in left.items():
                who = self._kernel_name(generation)
                reasons.append(f"{who} did not restore {count} of the blocks of {owner}")
        if self.record_error is not None:
            reasons.append(f"what init reports cannot be read: {self.record_error}")
        elif t.error is not None:
            hint = ": give it one with --file BUSYBOX:/bin/sh" if t.error.tried == "run /bin/sh" else ""
            reasons.append(f"init: {t.error}{hint}")
        elif not t.done and not last_is_own and o.driven:
            reasons.append("init did not get to the end of its plan")
        verdicts = self.own.verdicts if self.own is not None else []
        for generation, ok in verdicts:
            if not ok:
                why = _failure_line(self.machine.console)
                reasons.append(f"{self._kernel_name(generation)} says that it failed{why}")
        if last_is_own and self.own is not None:
            if not verdicts:
                reasons.append("no kernel gave a verdict")
            elif verdicts != [(o.updates, True)] and all(ok for _, ok in verdicts):
                whose = ", ".join(str(g) for g, _ in verdicts)
                reasons.append(f"the verdict is that of kernel {whose}, not of the last one, {o.updates}")
        expected = 0
        for generation in range(o.updates + 1):
            if self.chain.has_init(generation):
                expected += len(o.before) * (generation < o.updates or not o.updates)
                expected += len(o.after) * (generation > 0)
        replacing = self._replacing(jumps)
        for p in t.programs:
            if not p.ok and p not in replacing:
                how = f"was killed by signal {p.signal}" if p.signal else (
                    f"exited with status {p.status}" if p.ended else "did not end"
                )  # fmt: skip
                reasons.append(f"{shlex.join(p.argv)} ({p.when}, generation {p.generation}) {how}")
        reasons += self._cache_reasons()
        ran = len([p for p in t.programs if (p.ended or p in replacing) and p.when != "interactive"])
        if not reasons and not self.failure and ran != expected:
            reasons.append(f"{ran} of {expected} programs ran")
        return reasons

    def _replacing(self, jumps: int) -> list[ProgramRun]:
        """Programs that made the kernel start the next one, instead of init: each the last of its kernel."""
        t = self.transcript
        by_init = {k.generation - 1 for k in t.kexecs}
        last = {p.generation: p for p in t.programs}
        return [p for g, p in last.items() if g < jumps and g not in by_init and not p.ended]

    def _cache_reports(self) -> dict[int, CacheReport | None]:
        """What the cache's client said after each update that a cache was handed over in, by update."""
        out: dict[int, CacheReport | None] = {}
        for program in self.transcript.programs:
            report = CacheReport.parse(program.output)
            if report is not None and program.when == "after":
                out[program.generation - 1] = report
        for e in self.examined:
            if e.ledger is not None:
                out.setdefault(e.generation, None)
        return out

    def _cache_reasons(self) -> list[str]:
        """Where the cache's client says something else than what the host had seen in memory at J."""
        out: list[str] = []
        for update, report in self._cache_reports().items():
            ledger = self.examined[update].ledger if update < len(self.examined) else None
            if report is None:
                out.append(f"update {update + 1}: nobody compared the cache with what was written before")
                continue
            out += report.problems
            if not report.ok and not report.problems:
                out.append(f"update {update + 1}: {report}")
            if ledger is None:
                out.append(f"update {update + 1}: the cache was compared with no ledger that was handed over")
            else:
                out += [f"update {update + 1}: {text}" for text in ledger.contradictions(report)]
        return out

    def _epitaph(self) -> tuple[int, dict[str, Any]] | None:
        """(generation, epitaph) of the kernel of the project that panicked."""
        if self.observer is None:
            return None
        for generation in {self.observer.generation: 0, max(self.observer.generation - 1, 0): 0}:
            kernel = self.chain.kernel(generation)
            found = epitaph.read(self.machine, kernel) if kernel.own else None
            if found is not None:
                return generation, found
        return None

    def _refused_by_purgatory(self) -> list[str]:
        """Why the next kernel was not entered, if it was not."""
        if not self.examined or self.observer is None or self.observer.phase != "jump":
            return []
        image = self.examined[-1].image
        found = kexec.refused(self.machine, image) if image is not None else None
        if found is None:
            return []
        digests = f"the SHA-256 {found.computed.hex()[:16]}…, not {found.expected.hex()[:16]}…"
        what = f"segment {found.segment}, {found.size} bytes at {found.start:#x}, has {digests}"
        return [f"the purgatory refused the next kernel: {what}"]

    def _update(self, index: int) -> dict[str, Any]:
        assert self.observer is not None
        jump = self.observer.jumps[index]
        e = self.examined[index] if index < len(self.examined) else Examined(index)
        report = self._cache_reports().get(index)
        hellos = {hello.generation: hello.release for hello in self.transcript.generations}

        def side(generation: int) -> dict[str, Any]:
            if self.incoming is not None and not generation:
                return {"release": self.incoming.previous_release, "sha256": None}
            kernel = self.chain.kernel(generation)
            release = kernel.release if kernel.own else hellos.get(generation)
            image = kernel.kexec_image if generation else kernel.image
            return {"release": release, "sha256": hashlib.sha256(image).hexdigest()}

        return {
            "old": side(index),
            "new": side(index + 1),
            "phases": [
                {**r.plain(), "kernel": "old" if r.generation <= index else "new"}
                for r in self.observer.records[self.cuts[index] : (*self.cuts[index + 1 :], None)[0]]
            ],
            "blackout_instructions": jump.blackout_instructions,
            "blackout_ticks": jump.blackout_ticks,
            "preserved": e.preserved,
            "kept": e.kept,
            "scratch": [{"phys": a.phys, "size": a.size} for a in e.scratch or []],
            "digest_instructions": e.digest_instructions,
            "sessions": e.sessions,
            "cache": report.plain() if report is not None else None,
            "checked": e.checked,
            "not_checked": {id: reason for id, reason in e.not_checked.items() if id not in e.checked},
            "moments": e.moments,
        }


# ---- facts of a handover -------------------------------------------------------------------------


def _kimage(m: Machine, kernel: Kernel) -> int:
    """Address of the image that the kernel is about to jump to."""
    registers = m.cpus[0].registers()
    for probe in kernel.probes.at("kexec:jump"):
        if probe.address == registers["rip"]:
            return probe.read(m, registers)[0]
    return registers["rdi"]


def _root_fdt(m: Machine, kernel: Kernel) -> int | None:
    """Where the root FDT is that the kernel hands over; None if it must be searched for."""
    if not kernel.own:
        return None
    try:
        view = View(m, kernel)
        at = view.member(view.symbol("kho_out"), "kho_out", "fdt")
        return view.phys(at) if at else 0
    except UnknownLayout:
        return None


def _failure_line(console: bytes) -> str:
    """What a kernel printed with its verdict."""
    found = re.findall(rb"luemu: verdict FAILED: ([^\r\n]*)", console)
    return f": {found[-1].decode('ascii', 'backslashreplace')}" if found else ""


def _last_of_kho(console: bytes) -> str:
    """What a kernel said last of KHO: why it is off."""
    found = re.findall(rb"KHO: ([^\r\n]*)", console)
    return f" ({found[-1].decode('ascii', 'backslashreplace')})" if found else ""


def _scratch(m: Machine, symbols: Symbols | None) -> ScratchList | None:
    """Where the running kernel keeps its list of scratch areas, by its own variables; None if it
    cannot be told. Nothing in memory points to it before the jump."""
    if symbols is None:
        return None
    table, count = symbols.address("kho_scratch"), symbols.address("kho_scratch_cnt")
    if table is None or count is None:
        return None
    try:
        areas = int.from_bytes(guest.read(m, count, 4), "little")
        phys = guest.translate(m, guest.u64(m, table))
    except guest.NotMapped:
        return None
    return ScratchList(phys, 16 * areas) if 0 < areas <= SCRATCH_COUNT_MAX else None


def _contents(handover: Handover) -> dict[str, str]:
    luo = Luo.read(handover)
    out: dict[str, str] = {}
    if luo is not None:
        for session in luo.sessions:
            for file in session.files:
                if file.memfd is not None:
                    digest = file.memfd.sha256(handover.reader)
                    if digest is not None:
                        out[f"{session.name}/{file.token:#x}"] = digest
    return out


def _contents_of(m: Machine, before: Handover) -> dict[str, str]:
    """Digests of the files that ``before`` describes, with the bytes that are in RAM now."""
    from kho.memory import Reader

    luo = Luo.read(before)
    live = Reader(m.memory)
    out: dict[str, str] = {}
    if luo is not None:
        for session in luo.sessions:
            for file in session.files:
                if file.memfd is not None:
                    digest = file.memfd.sha256(live)
                    if digest is not None:
                        out[f"{session.name}/{file.token:#x}"] = digest
    return out


def _preserved(handover: Handover) -> dict[str, int]:
    pages = sum(1 << int(o) for o in handover.preserved.order.tolist())
    return {
        "pages": pages,
        "bytes": pages * PAGE,
        "metadata_bytes": pages * PAGE - payload_bytes(handover),
        "tree_bytes": len(handover.tree.node_phys) * PAGE,
    }


def _kept(handover: Handover) -> list[dict[str, Any]]:
    """What is handed over besides LUO's sessions and KHO's own pages."""
    out: list[dict[str, Any]] = []
    if handover.kho_test is not None:
        test = handover.kho_test
        orders = np.bincount(test.order.astype(np.int64)).tolist() if len(test.order) else []
        blocks = {str(order): count for order, count in enumerate(orders) if count}
        out.append({"name": "kho_test", "bytes": test.bytes, "folios": test.nr_folios, "orders": blocks})
    if handover.luemu_test is not None:
        out += [{"name": f"luemu_test {a.name}", "bytes": a.size} for a in handover.luemu_test.areas]
    out += [{"name": f"reserve_mem {r.name}", "bytes": r.size, "phys": r.phys} for r in handover.reserve_mem]
    return out


def _ledger(handover: Handover) -> Ledger | None:
    """The account that the cache's client keeps, if it is handed over."""
    luo = Luo.read(handover)
    for session in luo.sessions if luo is not None else ():
        for file in session.files:
            memfd = file.memfd
            if (session.name, file.token) != (Ledger.SESSION, Ledger.TOKEN) or memfd is None:
                continue
            if memfd.complete and memfd.size <= Ledger.BYTES_MAX:
                return Ledger.parse(b"".join(part.tobytes() for part in memfd.contents(handover.reader)))
    return None


def _sessions(handover: Handover) -> list[dict[str, Any]]:
    luo = Luo.read(handover)
    return [] if luo is None else [describe_session(handover, s) for s in luo.sessions]


__all__ = ["EmuError", "Options", "Result", "Update", "split_command"]
