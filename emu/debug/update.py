"""One live update, from boot to verified finish: what `luemu run` does.

Builds the initramfs, boots the old kernel, follows the phases, and has every handover examined from the host
at the moments J, K and F (`emu.debug.examined`) until the run ends and is judged (`emu.debug.verdict`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from emu.boot import Boot, BzImage
from emu.debug import dump, kexec, userspace
from emu.debug.chain import Chain
from emu.debug.dmacheck import DmaWatch
from emu.debug.dmaright import Reference
from emu.debug.examined import Examined
from emu.debug.incoming import Incoming
from emu.debug.invariants import RuntimeChecker
from emu.debug.net import Sent
from emu.debug.options import Options
from emu.debug.own import OwnChecker
from emu.debug.phases import PhaseObserver, Record
from emu.debug.verdict import Result, judge
from emu.errors import ImageError
from emu.files import is_regular
from emu.initproto import RecordError, RecordReader, Transcript
from emu.machine import Machine, Stop, StopKind
from kho.errors import KhoError
from kho.handover import Handover


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
        """of each update"""
        self.alone = Examined(0)
        """what was found of a kernel that is not updated"""
        self.cuts = [0]
        """numbers of the phase records at which the updates begin"""
        self.on_console: Callable[[int], None] | None = None
        self.on_records: Callable[[Transcript], None] | None = None
        self.on_phase: Callable[[Record], None] | None = None
        self.machine.serial_sinks.append(self._serial)
        self._boot()
        self.pending_at = list(o.at)
        self.traffic_at = o.traffic_at
        self.ended: Stop | None = None
        """set when the machine stopped before `run` was called (an interactive session)"""
        self.checker: RuntimeChecker | None = None
        self.own: OwnChecker | None = None
        self.dma: DmaWatch | None = None
        self.observer: PhaseObserver | None = None
        self.host_writes: list[tuple[int, int, str]] = []
        """(address, bytes, by whom) of what the host wrote while only the guest may"""
        self._jumping = False
        if not o.raw:
            self._observe()

    def _boot(self) -> None:
        generation = 0 if self.incoming is None else 1
        kernel = self.chain.kernel(generation)
        cmdline = f"{self.chain.command_line(generation)} luemu.generation={generation}"
        archive = userspace.initramfs(self.options, self.chain)
        boot = Boot(kernel.image, cmdline, archive, where=str(kernel.path))
        if self.incoming is not None:
            found = self.incoming
            found.load(self.machine)
            boot = replace(
                boot, kernel=kernel.kexec_image, e820=found.e820, within=found.within,
                setup_data=found.setup_data(),
            )  # fmt: skip
        self.machine.boot(boot)

    def _observe(self) -> None:
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
            self.own.before_free = self._before_free
            self.own.reference = lambda: self._reference
            self.machine.memory.observers.append(self._host_writes_memory)
        if self.incoming is not None:
            self._receive(self.observer, self.incoming)

    def _receive(self, observer: PhaseObserver, incoming: Incoming) -> None:
        """The kernel that is booted was handed something over: as if the jump had just been."""
        observer.receive()
        found = Examined(0, snapshot=self.machine.snapshot())
        self.examined.append(found)
        try:
            handover = Handover.read(self.machine.memory, incoming.fdt, incoming.scratch, search=False)
        except KhoError as e:
            raise ImageError(str(e), str(incoming.path)) from None
        found.describe(handover)
        for name, digest in incoming.expected.items():
            if found.contents.get(name) != digest:
                found.failures.append(f"{name} is not in the image with the sha256 that its .json says")
        if self.own is not None:
            self.own.receive(handover, found.snapshot)
        self._jumping = True

    def kernel_name(self, generation: int) -> str:
        """For messages."""
        return f"kernel {generation} ({self.chain.kernel(generation).short})"

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

    def _entered(self, record: Record) -> None:
        if self.on_phase is not None:
            self.on_phase(record)
        if record.id == self.traffic_at:
            self.traffic_at = None
            self.machine.traffic.start(at=self.machine.ticks + 1)

    def _moment(self, m: Machine, when: str, generation: int) -> None:
        """J, K, F, or a phase that begins."""
        if when == "J":
            self._jump(generation)
        elif when in ("K", "F"):
            self._arrive(when, generation)
        else:
            if when in ("P6", "P7", "P8"):
                self._cut_own(generation)
            elif when == "P12" and self.examined:
                self.examined[-1].entered(m)
            if self.dma is not None:
                self.dma.phase(when)
        self._keep_at(when)

    def _jump(self, generation: int) -> None:
        found = self._next(generation)
        self.examined.append(found)
        found.jump(self.machine, self.chain.kernel(generation))
        if found.image is not None:
            self._watch_jump(found, found.image)
        if self.dma is not None:
            image = [(s.phys, s.phys + s.size) for s in found.segments or ()]
            self.dma.moment("J", found.handover, found.snapshot, image)
        if self.own is not None:
            self.own.moment("J", found.handover, found.snapshot)
        if self.checker is not None:
            self.checker.moment("J", generation, found.handover)
        self._jumping = True

    def _next(self, generation: int) -> Examined:
        """For what is found of an update, with what is known from the one before; before the first, no live
        update was received."""
        snapshot = self.machine.snapshot()
        if not self.examined:
            return Examined(generation, received_number=0, snapshot=snapshot)
        before = self.examined[-1]
        return Examined(generation, before.scratch, before.number, snapshot)

    def _watch_jump(self, found: Examined, image: kexec.Image) -> None:
        """How long the digest takes, from the purgatory's first instruction to the next kernel's."""
        began: list[int] = []

        def digest(machine: Machine, address: int) -> None:
            if not began:
                began.append(machine.instructions)

        def entered(machine: Machine, address: int) -> None:
            if began and not found.digest_instructions:
                found.digest_instructions = machine.instructions - began[0]

        self.machine.probe(image.start, digest)
        kernel = self._kernel_segment(image, found.generation + 1)
        if kernel is not None and self.observer is not None:
            self.machine.probe(kernel + 0x200, entered)
            self.observer.next_entry(kernel + 0x200)

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

    def _arrive(self, when: str, generation: int) -> None:
        """K or F of the kernel that was jumped to."""
        if self.own is not None:
            self.own.moment(when)
        own = self.own if self.chain.kernel(generation).own else None
        adopted = own is None or own.adopted
        if self.examined:
            found = self.examined[-1]
            if not adopted:
                found.refused(self.kernel_name(generation))
            elif when == "K":
                found.adopted(self.machine, self._reference)
            else:
                found.freed(self.machine, self._reference)
        if self.dma is not None:
            self.dma.moment(when, adopted=adopted)
        if self.checker is not None:
            self.checker.moment(when, generation, None)
        self._jumping = self._jumping and when != "F"

    def _before_free(self) -> None:
        if self.examined:
            self.examined[-1].freeing(self.machine, self._reference)

    @property
    def _reference(self) -> Reference | None:
        """What preserved memory has to be where devices may write to it."""
        return self.dma.reference if self.dma is not None else None

    def _host_writes_memory(self, phys: int, size: int, by: str) -> None:
        """From the jump until the new kernel has adopted memory, only the guest and its devices may write."""
        if self._jumping and not by.startswith("dma:"):
            self.host_writes.append((phys, size, by))

    # ---- what is to be kept --------------------------------------------------------------------

    def _keep_at(self, when: str) -> None:
        """--save and --dump of this moment, phase or instruction number."""
        for item in [i for i in self.pending_at if i[1] == when]:
            self.pending_at.remove(item)
            what, _, path = item
            if what == "dump":
                dump.write(self.machine, path, self._facts(when))
            else:
                known = self._facts(when)
                self.machine.save(path)
                if is_regular(path):
                    dump.describe(self.machine, dump.beside_saved(path), known)

    def _facts(self, when: str) -> dict[str, Any]:
        """What the memory of this moment does not tell, or not easily."""
        if not self.examined:
            return {"moment": when}
        out = self.examined[-1].facts(when)
        pages = None
        for checker in (self.checker, self.own) if when == "F" else ():
            pages = pages or (checker.struct_pages() if checker is not None else None)
        if pages is not None:
            out["struct_pages"] = pages.plain()
        return out

    # ---- the run -------------------------------------------------------------------------------

    def advance(self, until: int | None = None, progress: Callable[[Machine], None] | None = None) -> Stop:
        """`Machine.run` to tick ``until`` with the run's limit, keeping on the way what --save and --dump
        want at an instruction number."""
        m, limit = self.machine, self.options.max_instructions
        while True:
            numbers = [int(when) for _, when, _ in self.pending_at if when.isdigit()]
            if not numbers:
                return m.run(until, max_instructions=limit, progress=progress)
            here = min(numbers)
            if m.instructions >= here:
                self._keep_at(str(here))
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
        return judge(self, stop)

    def _finish_checks(self) -> None:
        """The last kernel is done: what the checkers have found, row by row."""
        if self.checker is not None:
            self.checker.moment("end", len(self.examined), None)
        if self.own is not None:
            self.own.moment("end")
        for generation, found in enumerate(self.examined or [self.alone]):
            reasons: dict[str, str] = {}
            if self.checker is not None and self.examined:
                report = self.checker.report(generation)
                found.take(report)
                reasons |= report.not_checked
            if self.own is not None:
                report = self.own.report(generation)
                found.take(report)
                if self.chain.kernel(generation).own or self.chain.kernel(generation + 1).own:
                    reasons |= report.not_checked
            found.not_checked.update(reasons)


__all__ = ["Update"]
