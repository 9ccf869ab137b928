"""Programs on the project's kernels, and on Linux, through one or more updates: what tests of userspace run.

Less than `luemu run`: nothing is watched, the programs' own words are all there is, and the test has the
machine in its hands. That makes a run cheap enough for hundreds of them.
"""

from __future__ import annotations

import functools
import shlex
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

import kernels
from emu.boot import Boot
from emu.debug.release import Kernel
from emu.debug.view import View
from emu.initproto import NextKernel, Plan, ProgramRun, RecordReader, Transcript
from emu.initramfs import Initramfs
from emu.machine import Machine, Snapshot, Stop, StopKind
from kernels.build import build_all, project_root
from kho.handover import Handover
from kho.setup_data import ScratchList
from tests.userspace.binaries import binary

MEMORY = 128 << 20
CMDLINE = "console=ttyS0,115200 kho=on liveupdate=on retain_initrd nokaslr panic=-1"
SCRATCH = "kho_scratch=48M,0,0"
"""What the recordings of Linux were made with."""
LIMIT = 8_000_000_000
"""Instructions: far more than any run here needs."""
SECONDS = 120
"""Virtual time: for a guest that sleeps for ever."""


@functools.cache
def kernel(name: str | Path) -> Kernel:
    """A release by its name, built if need be; or a kernel by its path."""
    if isinstance(name, Path):
        return Kernel.open(name)
    build_all(project_root(), [f"kernel-{name}"])
    return Kernel.open(name)


@dataclass
class Outcome:
    """What a run came to."""

    stop: Stop
    console: str
    transcript: Transcript
    machine: Machine

    @property
    def programs(self) -> list[ProgramRun]:
        return self.transcript.programs

    def output(self, index: int = -1) -> str:
        """What a program wrote, with one kind of line end."""
        return self.programs[index].output.decode("utf-8", "replace").replace("\r\n", "\n")

    def lines(self, prefix: str, index: int = -1) -> list[str]:
        """Those of its lines that begin so."""
        return [line for line in self.output(index).split("\n") if line.startswith(prefix)]

    def log(self, *parts: str) -> list[str]:
        """Lines of the console that have all of these."""
        return [line for line in self.console.split("\n") if all(part in line for part in parts)]

    def check(self) -> Outcome:
        """All programs ended with 0, and the machine switched itself off. Returns itself."""
        said = self.console[-3000:] + "".join(
            f"\n--- {' '.join(p.argv)}: status {p.status}, signal {p.signal}\n{self.output(i)}"
            for i, p in enumerate(self.programs)
        )
        assert self.stop.kind is StopKind.POWER_OFF, f"{self.stop}\n{said}"
        assert self.transcript.done, f"init did not finish: {self.transcript.error}\n{said}"
        assert all(p.ok for p in self.programs), f"a program failed\n{said}"
        return self


@dataclass
class Spec:
    """A run. ``kernels`` are those of the generations, by name or path; programs are words or a line that is
    split into words."""

    kernels: Sequence[str | Path]
    before: Sequence[str | Sequence[str]] = ()
    after: Sequence[str | Sequence[str]] = ()
    cmdline: str = SCRATCH
    """added to each kernel's command line"""
    later: str = ""
    """added to those of all kernels but the first"""
    memory: int = MEMORY
    devices: tuple[str, ...] = ()
    programs: Sequence[str] = ("lu", "pick")
    files: Sequence[tuple[str, bytes]] = ()
    init: Path | None = None
    """instead of the project's"""

    def command_line(self, generation: int) -> str:
        """What the kernel of a generation is given."""
        words = [CMDLINE, self.cmdline, self.later if generation else "", f"luemu.generation={generation}"]
        return " ".join(w for w in words if w)

    def initramfs(self) -> bytes:
        """All files."""
        files = Initramfs()
        files.add_standard(self.init or kernels.binary("init"))
        for name in self.programs:
            files.add_file(f"/bin/{name}", binary(name).read_bytes(), 0o755)
        for where, data in self.files:
            files.add_file(where, data, 0o755)
        loads = []
        for generation, which in enumerate(self.kernels):
            if generation:
                path = f"/luemu/kernel{generation}"
                files.add_file(path, kernel(which).kexec_image)
                line = self.command_line(generation).rsplit(" ", 1)[0]
                loads.append(NextKernel(path, line))
        if self.init is None:
            before, after = _words(self.before), _words(self.after)
            files.write_plan(Plan(updates=len(loads), before=before, after=after, next=loads))
        return files.build()


def _words(commands: Iterable[str | Sequence[str]]) -> list[list[str]]:
    return [shlex.split(c) if isinstance(c, str) else list(c) for c in commands]


@dataclass
class Rig:
    """A machine that a spec was booted on."""

    spec: Spec
    machine: Machine = field(init=False)

    def __post_init__(self) -> None:
        self.machine = Machine(self.spec.memory, devices=self.spec.devices)
        first = kernel(self.spec.kernels[0])
        cmdline, initramfs = self.spec.command_line(0), self.spec.initramfs()
        self.machine.boot(Boot(first.image, cmdline, initramfs, where=first.name))

    def __enter__(self) -> Rig:
        return self

    def __exit__(self, *exc: type[BaseException] | BaseException | TracebackType | None) -> None:
        self.machine.close()

    def symbol(self, generation: int, name: str) -> int:
        """Address of a symbol of the kernel of a generation."""
        symbols = kernel(self.spec.kernels[generation]).symbols
        address = symbols.address(name) if symbols else None
        assert address is not None, f"{self.spec.kernels[generation]} has no symbol {name}"
        return address

    def events(self, generation: int, event: str) -> list[int]:
        """Where the kernel of a generation announces an event ("kexec:jump"), or begins a function."""
        if ":" not in event:
            return [self.symbol(generation, event)]
        found = [probe.address for probe in kernel(self.spec.kernels[generation]).probes.at(event)]
        assert found, f"{self.spec.kernels[generation]} does not announce {event}"
        return found

    def run_to(self, generation: int, *events: str) -> Stop:
        """Run until one of these events, or function entries, of a generation; fails if none comes."""
        addresses = [a for event in events for a in self.events(generation, event)]

        def hit(m: Machine, address: int) -> bool:
            return True

        for address in addresses:
            self.machine.probe(address, hit)
        stop = self.machine.run(SECONDS * 10**9, max_instructions=LIMIT)
        for address in addresses:
            self.machine.unprobe(address, hit)
        text = self.machine.console.decode(errors="replace")[-3000:]
        assert stop.kind is StopKind.BREAKPOINT, f"{events} was not reached: {stop}\n{text}"
        return stop

    def at(self, generation: int, event: str, action: Callable[[Machine], None]) -> None:
        """Do something each time that an event comes."""

        def hit(m: Machine, address: int) -> None:
            action(m)

        for address in self.events(generation, event):
            self.machine.probe(address, hit)

    def handover(self, generation: int) -> Handover:
        """What the kernel of a generation hands over, decoded: at its jump, and as long as memory is as it
        was then."""
        view = View(self.machine, kernel(self.spec.kernels[generation]))
        fdt = view.phys(view.member(view.symbol("kho_out"), "kho_out", "fdt"))
        count = int.from_bytes(view.read(view.symbol("kho_scratch_cnt"), 4), "little")
        areas = view.phys(int.from_bytes(view.read(view.symbol("kho_scratch"), 8), "little"))
        return Handover.read(self.machine.memory, fdt, ScratchList(areas, 16 * count))

    def finish(self) -> Outcome:
        """The rest of the run."""
        stop = self.machine.run(SECONDS * 10**9, max_instructions=LIMIT)
        transcript = Transcript()
        transcript.add(RecordReader().feed(bytes(self.machine.serial[1])))
        text = self.machine.console.decode("utf-8", "replace").replace("\r\n", "\n")
        return Outcome(stop, text, transcript, self.machine)

    def branch(self, snapshot: Snapshot, action: Callable[[Machine], None] | None = None) -> Outcome:
        """From a snapshot, after the action, to the end."""
        self.machine.restore(snapshot)
        if action is not None:
            action(self.machine)
        return self.finish()


def run(*kernels: str | Path, **options: Any) -> Outcome:
    """Boot the first kernel, update to the others in turn, return what everybody said. The machine is closed.
    ``options`` are those of a spec."""
    with Rig(Spec(kernels, **options)) as rig:
        return rig.finish()
