"""One live update, from boot to verified finish: what `luemu run` does.

Builds the initramfs, boots the old kernel, follows the phases, examines every handover from the
host at the moments J, K and F, and gives the verdict. The verdict never rests on what the guest
says alone: a run is `ok` only if every program exited 0 *and* the host read every handover, found
no invariant broken, and found every preserved byte unchanged.
"""

from __future__ import annotations

import hashlib
import posixpath
import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import kernels
from emu.boot import Boot
from emu.debug import guest, kexec
from emu.debug.inspect import _describe_session as describe_session
from emu.debug.invariants import RuntimeChecker
from emu.debug.phases import PhaseObserver, Record
from emu.debug.symbols import Symbols
from emu.errors import ConfigError, EmuError
from emu.files import is_regular, read_file
from emu.initproto import NextKernel, Plan, RecordError, RecordReader, Transcript
from emu.initramfs import Initramfs
from emu.machine import Machine, Snapshot, Stop, StopKind
from emu.memory import PAGE, U8Array, page_ranges
from kho.abi import SCRATCH_COUNT_MAX
from kho.check import Report, Segment, Violation, failed
from kho.errors import KhoError
from kho.handover import Handover
from kho.setup_data import ScratchList
from luo.check import TABLE, check, compare
from luo.state import Luo

MAX_INSTRUCTIONS = 50_000_000_000
"""Default of --max-instructions: about a minute; a whole update of a Linux takes 2.5 thousand million."""
LINUX_CMDLINE = "console=ttyS0,115200 kho=on liveupdate=on retain_initrd nokaslr panic=-1"


@dataclass
class Options:
    """What to run. Paths are the host's; programs are split into words already."""

    old: Path
    new: Path
    old_symbols: Path | None = None
    new_symbols: Path | None = None
    memory: int = 512 << 20
    cmdline: str = ""
    before: Sequence[str] = ()
    after: Sequence[str] = ()
    files: Sequence[tuple[Path, str]] = ()
    libraries: bool = True
    updates: int = 1
    initramfs: Path | None = None
    interactive: bool = False
    raw: bool = False
    strict_memory: bool = False
    max_instructions: int = MAX_INSTRUCTIONS
    at: Sequence[tuple[str, str, Path]] = ()
    """(what, when, file): what is "save" or "dump", when a moment, phase id or instruction number"""


class SnapshotMemory:
    """RAM as it was at a snapshot, for the decoders. ``changed`` limits what a comparison looks at."""

    def __init__(self, machine: Machine, snapshot: Snapshot, changed: list[int] | None = None) -> None:
        self._machine = machine
        self._snapshot = snapshot
        self.changed = changed

    @property
    def ranges(self) -> list[tuple[int, int]]:
        return self._machine.memory.ranges

    def read(self, phys: int, size: int) -> U8Array:
        import numpy as np

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


@dataclass
class Examined:
    """What the host found of one update's handover."""

    generation: int
    fdt: int = 0
    snapshot: Snapshot | None = None
    scratch: Any = None
    scratch_phys: int | None = None
    segments: list[Segment] | None = None
    control_pages: list[int] | None = None
    number: int | None = None
    """live update number that the handover carries"""
    contents: dict[str, str] = field(default_factory=dict)
    """sha256 of every preserved file at J, keyed "session/0xtoken" """
    preserved: dict[str, int] = field(default_factory=dict)
    sessions: list[dict[str, Any]] = field(default_factory=list)
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
        if self.fdt:
            out["kho_fdt_pa"] = hex(self.fdt)
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


def _symbols(path: Path | None, kernel: Path, raw: bool) -> Symbols | None:
    if raw:
        return None
    return Symbols.read(path) if path is not None else Symbols.beside(kernel)


class Update:
    """One run. `machine` may be watched from outside (progress, consoles) while it goes on."""

    def __init__(self, options: Options) -> None:
        self.options = o = options
        self.old_image, self.new_image = _image(o.old), _image(o.new)
        self.symbols = [_symbols(o.old_symbols, o.old, o.raw), _symbols(o.new_symbols, o.new, o.raw)]
        cmdline = f"{LINUX_CMDLINE} {o.cmdline}".strip()
        self.machine = Machine(o.memory, strict_memory=o.strict_memory)
        self.transcript = Transcript()
        self.reader = RecordReader()
        self.record_error: RecordError | None = None
        self.examined: list[Examined] = []
        self.failure: list[str] = []
        self.cuts = [0]
        """numbers of the phase records at which the updates begin"""
        self.on_console: Callable[[int], None] | None = None
        self.on_records: Callable[[Transcript], None] | None = None
        self.machine.serial_sinks.append(self._serial)
        self.machine.boot(
            Boot(self.old_image, cmdline + " luemu.generation=0", self._initramfs(cmdline), where=str(o.old))
        )
        self._pending_at = list(o.at)
        self.ended: Stop | None = None
        """set when the machine stopped before `run` was called (an interactive session)"""
        self.checker = None if o.raw else RuntimeChecker(self.machine, self.symbols)
        self._handed_over: Handover | None = None
        self.observer: PhaseObserver | None = None
        if not o.raw:
            self.observer = PhaseObserver(self.machine, self.symbols, self._moment)

    def _initramfs(self, cmdline: str) -> bytes:
        o = self.options
        files = Initramfs()
        if o.initramfs is not None:
            files.add_base(_image(o.initramfs), str(o.initramfs))
        files.add_standard(kernels.binary("init"))
        for host, where in o.files:
            if posixpath.normpath(where).lstrip("/").split("/")[0] in ("init", "luemu"):
                raise ConfigError("is where luemu's own init and its plan are", where)
            files.add_host_file(host, where, libraries=o.libraries)
        if o.updates:
            files.add_file("/luemu/kernel", self.new_image)
        files.write_plan(
            Plan(
                updates=o.updates,
                before=[split_command(c) for c in o.before],
                after=[split_command(c) for c in o.after],
                next=[NextKernel("/luemu/kernel", cmdline)] if o.updates else [],
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
        t, generation = self.transcript, len(self.transcript.generations) - 1
        if self.observer is None or generation < len(self.cuts) or generation >= self.options.updates:
            return
        started = any(p.generation == generation and p.when == "before" for p in t.programs)
        if generation and (started or len(t.kexecs) > generation):
            self.cuts.append(self.observer.split())

    # ---- what the host sees --------------------------------------------------------------------

    def _moment(self, m: Machine, when: str, generation: int) -> None:
        if when == "J":
            self._examine_jump(m, generation)
        elif when in ("K", "F") and self.examined:
            self._examine_again(m, when)
        if self.checker is not None and when in ("J", "K", "F"):
            self.checker.moment(when, generation, self._handed_over if when == "J" else None)
        for item in list(self._pending_at):
            if item[1] == when:
                self._pending_at.remove(item)
                self._keep(item[0], item[2], when)

    def _keep(self, what: str, path: Path, when: str) -> None:
        from emu.debug import dump

        known = self.examined[-1].facts(when) if self.examined else {"moment": when}
        if what == "save":
            self.machine.save(path)
            if is_regular(path):
                dump.describe(self.machine, path.with_name(path.name + ".json"), known)
        else:
            dump.write(self.machine, path, known)

    def _examine_jump(self, m: Machine, generation: int) -> None:
        found = Examined(generation)
        self.examined.append(found)
        found.snapshot = m.snapshot()
        self._handed_over = None
        segments: list[Segment] | None = None
        control: list[int] | None = None
        try:
            image = kexec.read(m, m.cpus[0].registers()["rdi"])
            segments = [Segment(a, n) for a, n, _ in image.segments]
            control = image.control_pages
            found.segments, found.control_pages = segments, control
            found.may_change = control + image.stack
            if self.observer is not None:
                self._watch_jump(m, found, image)
        except kexec.UnknownImage as e:
            found.not_checked["INV-13"] = found.not_checked["INV-28"] = str(e)
        scratch = _scratch(m, self.symbols[min(generation, 1)])
        try:
            handover = Handover.read(m.memory, scratch=scratch)
        except KhoError as e:
            found.unreadable(e, "J")
            self.failure.append(f"the handover of update {generation + 1} cannot be read at J: {e}")
            return
        self._handed_over = handover
        found.fdt = handover.fdt_phys or 0
        found.scratch = handover.scratch
        found.scratch_phys = handover.location.scratch_phys
        luo = Luo.read(handover)
        found.number = None if luo is None else luo.liveupdate_num
        previous = self._previous()
        report = check(
            handover, "J", segments=segments, control_pages=control, earlier_scratch=previous.scratch,
            received_number=previous.number,
        )  # fmt: skip
        found.take(report)
        found.moments.append("J")
        found.contents = _contents(handover)
        found.preserved = _preserved(handover)
        found.sessions = _sessions(handover)

    def _previous(self) -> Examined:
        """What was found of the update before; before the first, no live update was received."""
        return self.examined[-2] if len(self.examined) > 1 else Examined(-1, number=0)

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
        if image.kernel is not None:
            m.probe(image.kernel + 0x200, entered)
            observer.next_entry(image.kernel + 0x200)

    def _examine_again(self, m: Machine, when: str) -> None:
        found = self.examined[-1]
        if not found.fdt or found.snapshot is None:
            return
        changed = m.memory.dirty()
        now_memory = ChangedMemory(m, changed)
        then_memory = SnapshotMemory(m, found.snapshot, changed)
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
        except KhoError as e:
            found.unreadable(e, when)
            self.failure.append(f"the handover cannot be read at {when}: {e}")
            return
        found.moments.append(when)
        for name, digest in found.contents.items():
            if contents.get(name) != digest:
                found.violations.append(
                    Violation("INV-26", when, f"the contents of {name} are not what they were at J", None)
                )

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
        if self.checker is not None:
            self.checker.moment("end", len(self.examined), None)
            for found in self.examined:
                report = self.checker.report(found.generation)
                found.take(report)
                found.not_checked.update(report.not_checked)
        return self._judge(stop)

    def _judge(self, stop: Stop) -> Result:
        o, t = self.options, self.transcript
        reasons = list(self.failure)
        phases = self.observer.records if self.observer else []
        jumps = self.observer.jumps if self.observer else []
        if stop.kind is not StopKind.POWER_OFF:
            where = f" in phase {self.observer.phase}" if self.observer else ""
            reasons.append(f"the run ended by {stop.kind.value}{where}: {stop.message}")
        if self.record_error is not None:
            reasons.append(f"what init reports cannot be read: {self.record_error}")
        elif t.error is not None:
            reasons.append(f"init: {t.error}")
        elif not t.done:
            reasons.append("init did not get to the end of its plan")
        expected = (len(o.before) + len(o.after)) * o.updates if o.updates else len(o.before)
        ended = [p for p in t.programs if p.ended]
        for p in t.programs:
            if not p.ok:
                how = f"was killed by signal {p.signal}" if p.signal else (
                    f"exited with status {p.status}" if p.ended else "did not end"
                )  # fmt: skip
                reasons.append(f"{shlex.join(p.argv)} ({p.when}, generation {p.generation}) {how}")
        if not reasons and len(ended) != expected:
            reasons.append(f"{len(ended)} of {expected} programs ran")
        if self.observer is None:
            reasons.append("nothing was verified: --raw observes nothing")
        elif len(jumps) != o.updates:
            hint = "" if all(self.symbols) else "; the kernel's symbols are not known: give --symbols"
            reasons.append(f"the host saw {len(jumps)} of {o.updates} updates{hint}")
        for e in self.examined:
            for moment in ("J", "K", "F"):
                if moment not in e.moments and e.fdt:
                    reasons.append(f"update {e.generation + 1} was not examined at {moment}")
        violations = [v for e in self.examined for v in e.violations]
        if violations:
            first = violations[0]
            reasons.append(f"{len(violations)} violation(s); the first: {first.id}: {first.message}")
        for what, when, path in self._pending_at:
            reasons.append(f"--{what} {when}={path}: the run never got there")
        crashed = stop.kind not in (StopKind.POWER_OFF, StopKind.UNTIL, StopKind.REQUEST)
        symbols = self.symbols[min(len(jumps), 1)]
        return Result(
            ok=not reasons,
            reasons=reasons,
            stop=stop,
            state_hash=self.machine.state_hash(),
            memory_bytes=o.memory,
            phases=phases,
            updates=[self._update(i) for i in range(len(jumps))],
            programs=[
                {"when": p.when, "generation": p.generation, "argv": list(p.argv), "status": p.status,
                 "signal": p.signal, "output": p.output.decode("utf-8", "replace")}
                for p in t.programs
            ],
            violations=[v.to_dict() for v in violations],
            epitaph=guest.epitaph(self.machine, symbols) if crashed else "",
        )  # fmt: skip

    def _update(self, index: int) -> dict[str, Any]:
        assert self.observer is not None
        jump = self.observer.jumps[index]
        e = self.examined[index] if index < len(self.examined) else Examined(index)
        hellos = self.transcript.generations

        def side(generation: int, image: bytes) -> dict[str, Any]:
            release = hellos[generation].release if generation < len(hellos) else None
            return {"release": release, "sha256": hashlib.sha256(image).hexdigest()}

        return {
            "old": side(index, self.new_image if index else self.old_image),
            "new": side(index + 1, self.new_image),
            "phases": [
                {**r.plain(), "kernel": "old" if r.generation <= index else "new"}
                for r in self.observer.records[self.cuts[index] : (*self.cuts[index + 1 :], None)[0]]
            ],
            "blackout_instructions": jump.blackout_instructions,
            "blackout_ticks": jump.blackout_ticks,
            "preserved": e.preserved,
            "digest_instructions": e.digest_instructions,
            "sessions": e.sessions,
            "checked": e.checked,
            "not_checked": {id: reason for id, reason in e.not_checked.items() if id not in e.checked},
            "moments": e.moments,
        }


# ---- facts of a handover -------------------------------------------------------------------------


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
    payload = 0
    luo = Luo.read(handover)
    if luo is not None:
        for session in luo.sessions:
            for file in session.files:
                if file.memfd is not None:
                    payload += sum(count << order for order, count in file.memfd.folio_counts().items())
    payload += sum(r.size // PAGE for r in handover.reserve_mem)
    payload += handover.kho_test.bytes // PAGE if handover.kho_test is not None else 0
    return {
        "pages": pages,
        "bytes": pages * PAGE,
        "metadata_bytes": (pages - payload) * PAGE,
        "tree_bytes": len(handover.tree.node_phys) * PAGE,
    }


def _sessions(handover: Handover) -> list[dict[str, Any]]:
    luo = Luo.read(handover)
    return [] if luo is None else [describe_session(handover, s) for s in luo.sessions]


__all__ = ["EmuError", "Options", "Result", "Update", "split_command"]
