"""Phases of a live update, observed without changing the run.

A phase begins at the entry of a function that its kernel's symbols name, or at a probe of one of the
project's kernels, and lasts until the next one begins or the CPU returns to user mode. The initcalls of KHO
and LUO last until the next initcall; what a kernel does in between on its way to user space is `cold-boot`
in the first one, and in one started by kexec `adopt` until LUO's early initcall, then `ready`.

A phase is the work of one thread. While another one is in user mode, that is `userspace`; when the thread
goes on, so does its phase.

What a kernel without user space does instead of it, in its init thread, is `userspace` too.

Names and numbers are those of the project's table of phases (docs/phases.md): P1 cold-boot to P22
steady, and `userspace` for everything else. A run is partitioned: every instruction is in exactly
one record.

The moments at which a handover is examined: J, entry of `machine_kexec` in the old kernel; K, entry
of `kho_memory_init` in the new one; F, after `memblock_free_all` there.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

from emu.debug import guest
from emu.debug.guest import UnknownLayout
from emu.debug.release import Kernel
from emu.debug.threads import Threads
from emu.debug.view import took_handover
from emu.machine import Machine

NAMES = {
    "P1": "cold-boot",
    "P2": "kho-init",
    "P3": "luo-init",
    "P4": "open",
    "P5": "create-session",
    "P6": "preserve",
    "P7": "load",
    "P8": "reboot",
    "P9": "serialize",
    "P10": "shutdown",
    "P11": "jump",
    "P12": "decompress",
    "P13": "populate",
    "P14": "scratch-only",
    "P15": "adopt",
    "P16": "luo-early",
    "P17": "ready",
    "P18": "deserialize",
    "P19": "retrieve-session",
    "P20": "retrieve-file",
    "P21": "finish",
    "P22": "steady",
    "userspace": "userspace",
}
IDS = {name: id for id, name in NAMES.items()}

# Function -> phase. `None` for the first or later generations means: not a phase there.
_ENTRIES: dict[str, tuple[str | None, str | None]] = {
    # function: (phase in the first kernel, phase in one started by kexec)
    "kho_init": ("P2", "P17"),
    "luo_late_startup": ("P3", None),
    "luo_open": ("P4", "P4"),
    "luo_session_create": ("P5", "P5"),
    "luo_preserve_file": ("P6", "P6"),
    "__x64_sys_kexec_file_load": ("P7", "P7"),
    "syscall_kexec_file_load": ("P7", "P7"),  # of the project's kernels: reads the files as well
    "kernel_kexec": ("P8", "P8"),
    "luo_session_serialize": ("P9", "P9"),
    "kernel_restart_prepare": ("P10", "P10"),
    "machine_kexec": ("P11", "P11"),
    "kho_populate": (None, "P13"),
    "e820__memblock_setup": (None, "P14"),
    "kho_memory_init": (None, "P15"),
    "liveupdate_early_init": (None, "P16"),
    "liveupdate_ioctl_init": ("P3", None),
    "memfd_luo_init": ("P3", None),
    "do_one_initcall": ("P1", "P17"),
    "luo_session_deserialize": (None, "P18"),
    "luo_session_retrieve": (None, "P19"),
    "luo_retrieve_file": (None, "P20"),
    "luo_file_finish": (None, "P21"),
}
_AFTER_FREE = ("mem_init", "kmem_cache_init")
"""Called right after memblock_free_all: the first one that the kernel has marks moment F."""

_PROBES: dict[str, str] = {
    # event of a kernel of the project: the function of Linux whose entry means the same
    "kho:init": "kho_init",
    "kexec:file_load": "__x64_sys_kexec_file_load",
    "kexec:reboot": "kernel_kexec",
    "kexec:shutdown": "kernel_restart_prepare",
    "kexec:jump": "machine_kexec",
    "kho:populate": "kho_populate",
    "boot:memblock_setup": "e820__memblock_setup",
    "kho:memory_init": "kho_memory_init",
    "initcall:begin": "do_one_initcall",
    "luo:session_create": "luo_session_create",
    "luo:session_serialize": "luo_session_serialize",
    "luo:session_retrieve": "luo_session_retrieve",
}
_OF_A_THREAD = ("P4", "P5", "P6", "P7", "P8", "P9", "P10", "P18", "P19", "P20", "P21")
"""System calls: while they last, another program may run."""
_FREED, _INIT = "mm:free_all_done", "init:begin"
_OWN_SAVE = "test_kho_save"
"""What the test workload of the project's kernels does to have something to hand over, filling included."""


@dataclass
class Record:
    """One stretch of the run: ``start`` is the tick; instructions and ticks it took."""

    id: str
    kernel: str
    generation: int
    start: int
    first_instruction: int
    instructions: int = 0
    ticks: int = 0

    @property
    def name(self) -> str:
        """Name of the phase."""
        return NAMES[self.id]

    def plain(self) -> dict[str, object]:
        """For JSON."""
        return {
            "id": self.id,
            "name": self.name,
            "kernel": self.kernel,
            "generation": self.generation,
            "start": self.start,
            "instructions": self.instructions,
            "ticks": self.ticks,
        }


@dataclass
class Jump:
    """What is known of one kexec."""

    generation: int
    """of the kernel that was left"""
    left: int = 0
    """tick: the last user instruction, or the reboot request of a kernel without user space"""
    idle_before: int = 0
    blackout_instructions: int = 0
    blackout_ticks: int = 0


Moment = Callable[[Machine, str, int], None]
"""``handler(machine, moment, generation)`` at "J", "K", "F" or a phase id, with the machine stopped
before the instruction."""


@dataclass
class PhaseObserver:
    """Follows a machine through its phases.

    The kernel of generation n is ``kernels[min(n, last)]``; one without symbols is one long phase, and
    its update is seen by nothing but its output.
    """

    machine: Machine
    kernels: Sequence[Kernel]
    on_moment: Moment | None = None
    on_phase: Callable[[Record], None] | None = None
    records: list[Record] = field(default_factory=list)
    jumps: list[Jump] = field(default_factory=list)
    generation: int = 0
    _installed: list[tuple[int, Callable[[Machine, int], bool | None]]] = field(default_factory=list)
    _populated: bool = False
    _deserialized: bool = False
    _finished: bool = False
    _user: str = "userspace"
    _awaiting_user: bool = False
    _awaiting_entry: bool = False
    """The jump goes on: what happens at an address of the next kernel is not the next kernel yet."""
    _had_user: bool = False
    _threads: Threads | None = None
    _owner: int | None = None
    """the thread whose phase the current record is"""
    _suspended: dict[int, str] = field(default_factory=dict)
    """phases that go on when their threads do"""
    _watches_switches: bool = False
    _requested: tuple[int, int] | None = None
    """tick and idle ticks of the reboot request"""

    def __post_init__(self) -> None:
        self._begin("P1")
        self._install()
        self.machine.phase_source = lambda: self.phase
        self.machine.watch_user(self._entered_user)

    def receive(self) -> None:
        """The machine begins in a kernel that was handed something over: at once after the jump."""
        self.generation = 1
        self.jumps = [Jump(0, self.machine.ticks)]
        self._awaiting_user = True
        self.records = []
        self._install()
        self._begin("P12")

    # ---- probes --------------------------------------------------------------------------------

    @property
    def kernel(self) -> Kernel:
        """The kernel that runs."""
        return self.kernels[min(self.generation, len(self.kernels) - 1)]

    def _install(self) -> None:
        for address, handler in self._installed:
            self.machine.unprobe(address, handler)
        self._installed = []
        kernel = self.kernel
        symbols = kernel.symbols
        self._threads = Threads.of(kernel)
        self._owner, self._suspended, self._watches_switches = None, {}, False
        if symbols is None:
            return
        announced = {name: event for event, name in _PROBES.items() if event in kernel.probes}
        for name, phases in _ENTRIES.items():
            handler = self._entry(name, phases)
            if name in announced:
                for probe in kernel.probes.at(announced[name]):
                    self._add(probe.address, handler)
                continue
            at = symbols.address(name)
            if at is not None:
                self._add(at, handler)
        for event, method in ((_FREED, self._after_free), (_INIT, self._init_thread)):
            for probe in kernel.probes.at(event):
                self._add(probe.address, method)
        save = symbols.address(_OWN_SAVE) if kernel.own else None
        if save is not None:
            self._add(save, self._saves)
        for name in _AFTER_FREE if _FREED not in kernel.probes else ():
            at = symbols.address(name)
            if at is not None:
                self._add(at, self._after_free)
                break

    def _add(self, address: int, handler: Callable[[Machine, int], bool | None]) -> None:
        self.machine.probe(address, handler)
        self._installed.append((address, handler))

    def _entry(
        self, name: str, phases: tuple[str | None, str | None]
    ) -> Callable[[Machine, int], bool | None]:
        def entered(machine: Machine, address: int) -> None:
            phase: str | None = phases[1 if self.generation else 0]
            if self._awaiting_entry:
                return
            if name == "machine_kexec":
                self._jump(machine)
                return
            if name == "kernel_kexec":
                self._requested = machine.ticks, machine.ticks - machine.instructions
            if name == "__x64_sys_kexec_file_load" and self.kernel.own and self.records[-1].id != "P7":
                # no program called; the probe is behind the function's prologue
                self._until_return(machine, "P7", machine.cpus[0].registers()["rbp"] + 8)
            if name == "kho_populate":
                self._populated = True
            if name in ("e820__memblock_setup", "kho_memory_init") and self.kernel.own:
                with suppress(UnknownLayout):
                    self._populated = self._populated and took_handover(machine, self.kernel)
            if name == "kho_memory_init":
                if self.generation and self.on_moment is not None:
                    self.on_moment(machine, "K", self.generation)
                if not self._populated:
                    phase = "P1"  # nothing was handed over: a cold boot after all
            if name == "e820__memblock_setup" and not self._populated:
                phase = None
            if name == "luo_session_deserialize":
                if self._deserialized:
                    return
                self._deserialized = True
            if name == "luo_file_finish":
                self._finished = True
            if name == "do_one_initcall" and self.records[-1].id not in ("P2", "P3", "P16"):
                return  # between initcalls, only what follows those of interest is another phase
            if phase is not None:
                self._begin_of_thread(phase)

        return entered

    def _begin_of_thread(self, phase: str) -> None:
        """A phase begins in the kernel, in whatever thread runs there."""
        m = self.machine
        thread = None
        if phase in _OF_A_THREAD and self._threads is not None:
            thread = self._threads.current(m, m.cpus[0].registers())
            self._suspend(thread)
            if not self._watches_switches:  # not before there is something to come back to
                self._watches_switches = True
                self._add(self._threads.switch, self._switches)
        self._begin(phase)
        self._owner = thread

    def _suspend(self, thread: int | None) -> None:
        """This thread runs now. If the phase is another one's, it waits for that."""
        if self._owner is None or thread is None or thread == self._owner:
            return
        self._suspended[self._owner] = self.records[-1].id
        self._owner = None

    def _switches(self, machine: Machine, address: int) -> None:
        if not self._suspended or self._threads is None or self._awaiting_entry:
            return
        thread = self._threads.next(machine, machine.cpus[0].registers())
        phase = self._suspended.pop(thread, None) if thread is not None else None
        if phase is not None:
            self._begin(phase)
            self._owner = thread

    def _after_free(self, machine: Machine, address: int) -> None:
        if self.generation and not self._awaiting_entry and self.on_moment is not None:
            self.on_moment(machine, "F", self.generation)

    def _init_thread(self, machine: Machine, address: int) -> None:
        """A kernel of the project has started. If it has user space, the blackout ends there and not here."""
        if not self._awaiting_entry:
            self._end_blackout(machine.ticks, machine.ticks - machine.instructions)
            self._begin(self._user)

    def _saves(self, machine: Machine, address: int) -> None:
        if not self._awaiting_entry:
            self._until_return(machine, "P6", machine.cpus[0].registers()["rsp"])
            self._begin("P6")

    def _until_return(self, machine: Machine, phase: str, at: int) -> None:
        """The phase that begins now is over when the function returns; ``at`` is where it finds to where."""
        try:
            back = guest.u64(machine, at)
        except guest.NotMapped:
            return

        def returned(machine: Machine, address: int) -> None:
            self._installed.remove((back, returned))
            machine.unprobe(back, returned)
            if self.records[-1].id == phase:
                self._begin(self._user)

        self._add(back, returned)

    def _jump(self, machine: Machine) -> None:
        self._begin("P11")
        header = machine.cpus[0].header
        jump = Jump(self.generation, int(header.user_left), machine.ticks - machine.instructions)
        if not self._had_user and self._requested is not None:
            jump.left, jump.idle_before = self._requested
        self.jumps.append(jump)
        header.user_entered = (1 << 64) - 1
        self._awaiting_user = True
        self.generation += 1
        self._populated = self._deserialized = self._finished = self._had_user = False
        self._user, self._requested = "userspace", None
        self._install()
        if self.on_moment is not None:
            self.on_moment(machine, "J", self.generation - 1)

    def next_entry(self, address: int) -> None:
        """The next kernel's first instruction will be at this physical (identity mapped) address."""
        self._awaiting_entry = True

        def entered(machine: Machine, at: int) -> None:
            self._awaiting_entry = False
            if self.records[-1].id == "P11":
                self._begin("P12")

        self._add(address, entered)

    # ---- records -------------------------------------------------------------------------------

    def _entered_user(self, machine: Machine) -> None:
        self._had_user = True
        if self._owner is not None and self._threads is not None:
            self._suspend(self._threads.current(machine, machine.cpus[0].registers()))
            self._owner = None
        if self._awaiting_user:
            self._awaiting_user = False
            idle = machine.ticks - machine.instructions
            self._end_blackout(int(machine.cpus[0].header.user_entered), idle)
        if self._finished:
            self._user = "P22"
        # The instruction that enters user mode is still the kernel's.
        machine.watch_user(None)
        self._begin(self._user)

    def _end_blackout(self, tick: int, idle: int) -> None:
        if self.jumps:
            jump = self.jumps[-1]
            jump.blackout_ticks = tick - jump.left
            jump.blackout_instructions = jump.blackout_ticks - (idle - jump.idle_before)

    def _begin(self, phase: str) -> None:
        """Start a phase now. The jump belongs to the old kernel until the new one is entered."""
        m = self.machine
        if self.records:
            last = self.records[-1]
            self._close(last)
            if last.id == phase and last.generation == self.generation:
                if phase not in ("userspace", "P22"):
                    m.watch_user(self._entered_user)
                return
            if not last.ticks:
                self.records.pop()
        kernel = "new" if self.generation else "old"
        record = Record(phase, kernel, self.generation, m.ticks, m.instructions)
        if self.records and (self.records[-1].id, self.records[-1].generation) == (phase, self.generation):
            record = self.records[-1]
        else:
            self.records.append(record)
        if phase not in ("userspace", "P22"):
            m.watch_user(self._entered_user)
        if self.on_phase is not None:
            self.on_phase(record)
        if self.on_moment is not None:
            self.on_moment(m, phase, self.generation)

    def split(self) -> int:
        """Cut the current record in two, here: another update begins. Returns the number of the second."""
        last = self.records[-1]
        self._close(last)
        if last.ticks:
            m = self.machine
            self.records.append(Record(last.id, last.kernel, last.generation, m.ticks, m.instructions))
        return len(self.records) - 1

    def _close(self, record: Record) -> None:
        record.ticks = self.machine.ticks - record.start
        record.instructions = self.machine.instructions - record.first_instruction

    def finish(self) -> None:
        """The run is over: close the last record."""
        self._close(self.records[-1])
        if not self.records[-1].ticks and len(self.records) > 1:
            self.records.pop()

    @property
    def phase(self) -> str:
        """Name of the phase that the machine is in."""
        return self.records[-1].name
