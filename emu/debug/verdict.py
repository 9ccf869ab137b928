"""The verdict on a run, and everything that is reported of it: `judge`.

It never rests on what the guest says alone: a run is `ok` only if every program exited 0, or the last of the
project's kernels found everything as it should be, *and* the host read every handover, found no invariant
broken, and found every preserved byte unchanged.
"""

from __future__ import annotations

import hashlib
import posixpath
import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from emu.debug import epitaph, guest, kexec
from emu.debug.dmaright import sorted_violations
from emu.debug.examined import Examined
from emu.debug.net import Net, NetReport, conclude
from emu.debug.phases import Jump, Record
from emu.debug.workloads import CacheReport, together
from emu.initproto import ProgramRun
from emu.machine import Stop, StopKind

if TYPE_CHECKING:
    from emu.debug.update import Update


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


def judge(update: Update, stop: Stop) -> Result:
    """The result of a run that has ended."""
    return _Judge(update, stop).result()


class _Judge:
    """What several parts of the verdict need is looked up once."""

    def __init__(self, update: Update, stop: Stop) -> None:
        self.u = update
        self.stop = stop
        self.jumps: Sequence[Jump] = update.observer.jumps if update.observer is not None else []
        self.phases = update.observer.records if update.observer is not None else []
        self.replacing = self._replacing()
        self.caches = self._cache_reports()

    def result(self) -> Result:
        """All of it."""
        u = self.u
        found = u.examined or [u.alone]
        violations = [v for e in found for v in e.violations]
        died = self._epitaph()
        net = self._net()
        reasons = [f for e in u.examined for f in e.failures]
        if died is not None:
            reasons.insert(0, f"{u.kernel_name(died[0])} panicked: {died[1]['reason']}")
        elif self.stop.kind is not StopKind.POWER_OFF:
            where = f" in phase {self.phases[-1].name}" if self.phases else ""
            reasons.append(f"the run ended by {self.stop.kind.value}{where}: {self.stop.message}")
        reasons += self._refused_by_purgatory()
        reasons += self._guest_reasons()
        reasons += self._missing()
        if violations:
            first = violations[0]
            reasons.append(f"{len(violations)} violation(s); the first: {first.id}: {first.message}")
        reasons += [] if net is None else net.reasons
        reasons += self._dma_reasons()
        reasons += self._host_reasons()
        crashed = self.stop.kind not in (StopKind.POWER_OFF, StopKind.UNTIL, StopKind.REQUEST)
        symbols = u.chain.kernel(len(self.jumps)).symbols
        text = guest.epitaph(u.machine, symbols) if crashed else ""
        return Result(
            ok=not reasons,
            reasons=reasons,
            stop=self.stop,
            state_hash=u.machine.state_hash(),
            memory_bytes=u.machine.memory.size,
            phases=self.phases,
            updates=[self._update(i) for i in range(len(self.jumps))],
            programs=[
                {"when": p.when, "generation": p.generation, "argv": list(p.argv), "status": p.status,
                 "signal": p.signal, "output": p.output.decode("utf-8", "replace"),
                 "replaced": p in self.replacing}
                for p in u.transcript.programs
            ],
            violations=[v.to_dict() for v in violations],
            epitaph=epitaph.text(died[1]) if died is not None else text,
            panic=died[1] if died is not None else None,
            cache=together([r for r in self.caches.values() if r is not None]),
            net=None if net is None else net.plain(),
            traffic=u.machine.traffic.plain() if u.options.traffic is not None else None,
        )  # fmt: skip

    # ---- what the host has seen ----------------------------------------------------------------

    def _missing(self) -> list[str]:
        """Updates and moments that nobody looked at."""
        u = self.u
        if u.observer is None:
            return ["nothing was verified: --raw observes nothing"]
        out: list[str] = []
        if len(self.jumps) != u.options.updates:
            known = all(kernel.symbols for kernel in u.chain.kernels)
            hint = "" if known else "; the kernel's symbols are not known: give --symbols"
            out.append(f"the host saw {len(self.jumps)} of {u.options.updates} updates{hint}")
        if not any(e.failures for e in u.examined):
            for e in u.examined:
                missed = [moment for moment in ("J", "K", "F") if e.fdt and moment not in e.moments]
                out += [f"update {e.generation + 1} was not examined at {moment}" for moment in missed]
        return out

    def _dma_reasons(self) -> list[str]:
        found = sorted_violations(self.u.dma.violations) if self.u.dma is not None else []
        more = f" (and {len(found) - 1} more)" if len(found) > 1 else ""
        return [f"DMA: {found[0]}{more}"] if found else []

    def _host_reasons(self) -> list[str]:
        """What the host itself did that it must not, or did not that it was to do."""
        u, out = self.u, list[str]()
        if u.host_writes:
            phys, size, by = u.host_writes[0]
            out.append(f"the host wrote to memory between J and F: {size} bytes at {phys:#x} ({by})")
        for what, when, path in u.pending_at:
            out.append(f"--{what} {when}={path}: the run never got there")
        if u.traffic_at is not None:
            out.append(f"--traffic start={u.traffic_at}: the run never got there")
        return out

    def _net(self) -> Net | None:
        """What came of the workload `net`, if it ran."""
        u = self.u
        runs = [p for p in u.transcript.programs if posixpath.basename(p.argv[0]) == "net"]
        if not runs or u.sent is None or u.dma is None or u.observer is None:
            return None
        reports = [report for report in (NetReport.parse(p.output) for p in runs) if report is not None]
        return conclude(reports[-1] if reports else None, u.sent, u.dma, u.observer.records)

    def _epitaph(self) -> tuple[int, dict[str, Any]] | None:
        """(generation, epitaph) of the kernel of the project that panicked."""
        observer = self.u.observer
        if observer is None:
            return None
        for generation in dict.fromkeys((observer.generation, max(observer.generation - 1, 0))):
            kernel = self.u.chain.kernel(generation)
            found = epitaph.read(self.u.machine, kernel) if kernel.own else None
            if found is not None:
                return generation, found
        return None

    def _refused_by_purgatory(self) -> list[str]:
        """Why the next kernel was not entered, if it was not."""
        u = self.u
        if not u.examined or u.observer is None or u.observer.phase != "jump":
            return []
        image = u.examined[-1].image
        found = kexec.refused(u.machine, image) if image is not None else None
        if found is None:
            return []
        digests = f"the SHA-256 {found.computed.hex()[:16]}…, not {found.expected.hex()[:16]}…"
        what = f"segment {found.segment}, {found.size} bytes at {found.start:#x}, has {digests}"
        return [f"the purgatory refused the next kernel: {what}"]

    # ---- what the guest says against the run ---------------------------------------------------

    def _guest_reasons(self) -> list[str]:
        u = self.u
        out = self._left() + self._init_reasons() + self._verdict_reasons()
        for p in u.transcript.programs:
            if not p.ok and p not in self.replacing:
                how = f"was killed by signal {p.signal}" if p.signal else (
                    f"exited with status {p.status}" if p.ended else "did not end"
                )  # fmt: skip
                out.append(f"{shlex.join(p.argv)} ({p.when}, generation {p.generation}) {how}")
        out += self._cache_reasons()
        programs = [p for p in u.transcript.programs if p.when != "interactive"]
        ran = len([p for p in programs if p.ended or p in self.replacing])
        expected = self._expected_programs()
        if not out and not any(e.failures for e in u.examined) and ran != expected:
            out.append(f"{ran} of {expected} programs ran")
        return out

    def _left(self) -> list[str]:
        """What the project's kernels were handed for somebody who did not take it."""
        return [
            f"{self.u.kernel_name(generation)} did not restore {count} of the blocks of {owner}"
            for generation, left in (self.u.own.left if self.u.own is not None else {}).items()
            for owner, count in left.items()
        ]

    def _init_reasons(self) -> list[str]:
        u, t = self.u, self.u.transcript
        if u.record_error is not None:
            return [f"what init reports cannot be read: {u.record_error}"]
        if t.error is not None:
            hint = ": give it one with --file BUSYBOX:/bin/sh" if t.error.tried == "run /bin/sh" else ""
            return [f"init: {t.error}{hint}"]
        if not t.done and u.chain.has_init(u.options.updates) and u.options.driven:
            return ["init did not get to the end of its plan"]
        return []

    def _verdict_reasons(self) -> list[str]:
        """What the project's kernels say of themselves; the last one has to say it, if no program does."""
        u, last = self.u, self.u.options.updates
        verdicts = u.own.verdicts if u.own is not None else []
        out = [
            f"{u.kernel_name(generation)} says that it failed{_failure_line(u.machine.console)}"
            for generation, ok in verdicts
            if not ok
        ]
        if u.own is not None and not u.chain.has_init(last):
            if not verdicts:
                out.append("no kernel gave a verdict")
            elif verdicts != [(last, True)] and not out:
                whose = ", ".join(str(g) for g, _ in verdicts)
                out.append(f"the verdict is that of kernel {whose}, not of the last one, {last}")
        return out

    def _expected_programs(self) -> int:
        o = self.u.options
        return sum(
            len(o.before) * (generation < o.updates or not o.updates) + len(o.after) * (generation > 0)
            for generation in range(o.updates + 1)
            if self.u.chain.has_init(generation)
        )

    def _replacing(self) -> list[ProgramRun]:
        """Programs that made the kernel start the next one, instead of init: each the last of its kernel."""
        t = self.u.transcript
        by_init = {k.generation - 1 for k in t.kexecs}
        last = {p.generation: p for p in t.programs}
        return [p for g, p in last.items() if g < len(self.jumps) and g not in by_init and not p.ended]

    def _cache_reports(self) -> dict[int, CacheReport | None]:
        """What the cache's client said after each update that a cache was handed over in, by update."""
        out: dict[int, CacheReport | None] = {}
        for program in self.u.transcript.programs:
            report = CacheReport.parse(program.output)
            if report is not None and program.when == "after":
                out[program.generation - 1] = report
        for e in self.u.examined:
            if e.ledger is not None:
                out.setdefault(e.generation, None)
        return out

    def _cache_reasons(self) -> list[str]:
        """Where the cache's client says something else than what the host had seen in memory at J."""
        out: list[str] = []
        for update, report in self.caches.items():
            ledger = self.u.examined[update].ledger if update < len(self.u.examined) else None
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

    # ---- one update ----------------------------------------------------------------------------

    def _update(self, index: int) -> dict[str, Any]:
        u, jump = self.u, self.jumps[index]
        e = u.examined[index] if index < len(u.examined) else Examined(index)
        report = self.caches.get(index)
        return {
            "old": self._side(index),
            "new": self._side(index + 1),
            "phases": [
                {**r.plain(), "kernel": "old" if r.generation <= index else "new"}
                for r in self.phases[u.cuts[index] : (*u.cuts[index + 1 :], None)[0]]
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

    def _side(self, generation: int) -> dict[str, Any]:
        """The kernel before or after an update."""
        u = self.u
        if u.incoming is not None and not generation:
            return {"release": u.incoming.previous_release, "sha256": None}
        kernel = u.chain.kernel(generation)
        hellos = {hello.generation: hello.release for hello in u.transcript.generations}
        image = kernel.kexec_image if generation else kernel.image
        return {
            "release": kernel.release if kernel.own else hellos.get(generation),
            "sha256": hashlib.sha256(image).hexdigest(),
        }


def _failure_line(console: bytes) -> str:
    """What a kernel printed with its verdict."""
    found = re.findall(rb"luemu: verdict FAILED: ([^\r\n]*)", console)
    return f": {found[-1].decode('ascii', 'backslashreplace')}" if found else ""


__all__ = ["Result", "judge"]
