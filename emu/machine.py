"""The machine: CPU, memory, bus, devices and clock put together; boot, run, step, snapshot.

Virtual time is the only time. A run is the same whatever it was sliced into, whether or not it was
observed, snapshotted or restored: `state_hash` is equal at equal ticks.

    with Machine(memory=512 << 20) as m:
        m.boot(Boot(kernel=Path("bzImage").read_bytes(), cmdline="console=ttyS0"))
        stop = m.run(until=300_000_000)
        print(stop, m.console.decode())
"""

from __future__ import annotations

import enum
import hashlib
import json
import pickle
from collections.abc import Callable, Iterator, KeysView, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from emu import boot as booting
from emu import cpuid, saved
from emu.bus import Bus, Unclaimed
from emu.clock import Clock
from emu.cpu import FLUSH_GRID_TICKS, NEVER, ClockHeader, Cpu, Reason, Wiring
from emu.devices.device import plain
from emu.devices.platform import Platform
from emu.engine import library
from emu.errors import ConfigError, EmuError, ImageError
from emu.interrupt import Interruptible
from emu.memory import Memory, U8Array
from emu.traffic import Traffic, TrafficSpec

SLICE_TICKS = 50_000_000
"""The host looks up (Ctrl-C, progress) at least this often; a guest cannot tell."""
RTC_EPOCH = 1_767_225_600
"""What the real-time clock shows at tick 0: 2026-01-01 00:00:00 UTC."""


class StopKind(enum.Enum):
    """How a run ended."""

    UNTIL = "until"  # the tick or count that was asked for
    BREAKPOINT = "breakpoint"  # an observer asked, before the instruction at `rip`
    REQUEST = "request"  # `Machine.stop` was called
    POWER_OFF = "power-off"
    RESET = "reset"
    DEADLOCK = "deadlock"  # halted with interrupts off, or with nothing pending
    TRIPLE_FAULT = "triple-fault"
    LIVELOCK = "livelock"  # exceptions without end: no instruction retires any more
    BUDGET = "budget"  # `max_instructions` reached
    UNMAPPED = "unmapped"  # strict memory: an access to nothing
    ENGINE = "engine"  # the engine gave up on the guest: it fetched or walked tables outside memory


@dataclass(frozen=True)
class Stop:
    """Typed result of a run: kind, where, when, and one line for people."""

    kind: StopKind
    rip: int
    ticks: int
    instructions: int
    message: str

    def __str__(self) -> str:
        return f"{self.kind.value} at rip {self.rip:#x}, instruction {self.instructions:,}: {self.message}"


ProbeHandler = Callable[["Machine", int], bool | None]
"""``handler(machine, address)`` runs before the instruction at ``address``; returning True stops."""


@dataclass(frozen=True)
class Description:
    """Everything that makes two machines the same machine. Saved with it."""

    memory: int
    rtc_epoch: int = RTC_EPOCH
    cpuid_version: int = cpuid.VERSION
    strict_memory: bool = False
    devices: tuple[str, ...] = ()
    traffic: TrafficSpec | None = None

    def plain(self) -> dict[str, Any]:
        """For JSON. A plain PC does not mention devices."""
        out: dict[str, Any] = {
            "memory": self.memory,
            "rtc_epoch": self.rtc_epoch,
            "cpuid_version": self.cpuid_version,
            "strict_memory": self.strict_memory,
        }
        if self.devices:
            out["devices"] = list(self.devices)
        if self.traffic is not None:
            out["traffic"] = self.traffic.plain()
        return out


class Snapshot:
    """An immutable state of a machine: a node in a tree that shares pages with its parent.

    It holds the pages written since the parent, and the rest of the machine in a form that is quick
    to take and to restore (for files there is `Machine.save`).
    """

    __slots__ = ("__weakref__", "_addresses", "_contents", "bus", "cpus", "depth", "devices", "events",
                 "parent", "serial", "skipped", "ticks")  # fmt: skip

    def __init__(
        self,
        parent: Snapshot | None,
        ticks: int,
        skipped: int,
        cpus: tuple[tuple[bytes, bytes], ...],
        devices: tuple[bytes, ...],
        bus: dict[str, int],
        events: list[list[object]],
        serial: tuple[bytes, ...],
        pages: list[int],
        contents: U8Array,
    ) -> None:
        self.parent = parent
        self.depth: int = parent.depth + 1 if parent is not None else 0
        self.ticks = ticks
        self.skipped = skipped
        self.cpus = cpus
        self.devices = devices
        self.bus = bus
        self.events = events
        self.serial = serial
        self._contents = contents
        first = contents.ctypes.data
        self._addresses = {number: first + 4096 * i for i, number in enumerate(pages)}

    @property
    def pages(self) -> KeysView[int]:
        """Numbers of the pages written since the parent."""
        return self._addresses.keys()

    def address(self, number: int) -> int | None:
        """Host address of a page's 4096 bytes in this snapshot; None for zeros, never written."""
        node: Snapshot | None = self
        while node is not None:
            found = node._addresses.get(number)
            if found is not None:
                return found
            node = node.parent
        return None

    def page(self, number: int) -> U8Array | None:
        """Contents of a page in this snapshot (read-only), None for zeros."""
        node: Snapshot | None = self
        while node is not None:
            found = node._addresses.get(number)
            if found is not None:
                view: U8Array = node._contents[(found - node._contents.ctypes.data) // 4096]
                view.flags.writeable = False
                return view
            node = node.parent
        return None

    def all_pages(self) -> set[int]:
        """Numbers of all pages that were ever written."""
        out: set[int] = set()
        node: Snapshot | None = self
        while node is not None:
            out.update(node._addresses)
            node = node.parent
        return out


class Machine:
    """One emulated PC. A context manager; `close` frees host memory.

    ``memory`` in bytes, a multiple of 1 MiB. ``devices``: what it has beyond a plain PC, in any order (names
    and places: docs/devices.md). ``traffic``: what is at the other end of a network card's cable
    (`emu.traffic.TrafficSpec`, or text for it). Raises `UnsupportedHost` where machines cannot run.
    """

    def __init__(
        self,
        memory: int = 512 << 20,
        *,
        rtc_epoch: int = RTC_EPOCH,
        strict_memory: bool = False,
        devices: Sequence[str] = (),
        traffic: TrafficSpec | str | None = None,
        counted: bool = True,
    ) -> None:
        """``counted`` False is for benchmarks only: time stands still and nothing interrupts."""
        lib = library()
        spec = TrafficSpec.parse(traffic) if isinstance(traffic, str) else traffic
        self.description = Description(
            memory, rtc_epoch, strict_memory=strict_memory, devices=tuple(sorted(devices)), traffic=spec
        )
        self.memory = Memory(memory, lib.core)
        self._time = ClockHeader(ticks=0, skipped=0, deadline=NEVER)
        self.clock = Clock(self._set_deadline)
        self.bus = Bus(self._unclaimed)
        self.serial = (bytearray(), bytearray())
        self.serial_sinks: list[Callable[[int, int, int], None]] = []
        self.cpus: list[Cpu] = []
        self._ending: tuple[StopKind, str] | None = None
        self._probes: dict[int, list[ProbeHandler]] = {}
        self._probes_changed = False
        self._probe_hit: int | None = None
        self._base: Snapshot | None = None
        self.phase_source: Callable[[], str] | None = None
        """set by an observer that knows phases (`emu.debug.phases`); see `phase`"""
        self._user_handler: Callable[[Machine], None] | None = None
        self.platform = Platform(
            self.clock,
            self.bus,
            1,
            intr=self._intr,
            signal=self._signal,
            power=self._power,
            tsc_offset=lambda cpu: int(self.cpus[cpu].header.tsc_offset) if self.cpus else 0,
            serial=self._serial_out,
            rtc_epoch=rtc_epoch,
            memory=memory,
            ram=self.memory,
            extras=devices,
        )
        self._traffic: Traffic | None = None
        if spec is not None:
            self._traffic = Traffic(self.clock, spec, self.platform.card(spec.nic))
            self.platform.devices.append(self._traffic)
        self.cpus.append(self._make_cpu(0, counted))

    # ---- wiring ------------------------------------------------------------------------------

    def _make_cpu(self, index: int, counted: bool) -> Cpu:
        p = self.platform
        bus = self.bus
        lapic = p.lapics[index]

        def msr_write(msr: int, value: int, now: int) -> bool:
            if lapic.owns_msr(msr):
                return lapic.write_msr(msr, value, now)
            lapic.tsc_changed(now)  # IA32_TSC or TSC_ADJUST: the core has done the rest
            return True

        wiring = Wiring(
            io_read=bus.port_read,
            io_write=bus.port_write,
            mmio_read=lambda addr, size, now: p.mmio_read(index, addr, size, now),
            mmio_write=lambda addr, size, value, now: p.mmio_write(index, addr, size, value, now),
            events=self.clock.run,
            acknowledge=lambda now: p.acknowledge(index, now),
            msr_read=lapic.read_msr,
            msr_write=msr_write,
            cr8_read=lapic.get_cr8,
            cr8_write=lapic.set_cr8,
            probe=self._probe,
            user=self._user,
        )
        cpu = Cpu(library(), self.memory, self._time, wiring, index, counted=counted)
        cpu.set_registers(tlb_flush_at=FLUSH_GRID_TICKS, tlb_flush_grid=FLUSH_GRID_TICKS)
        return cpu

    def _intr(self, cpu: int, level: int, now: int) -> None:
        if self.cpus:  # none yet while the board powers up
            self.cpus[cpu].interrupt(level)

    def _set_deadline(self, deadline: int) -> None:
        self._time.deadline = deadline

    def _serial_out(self, port: int, value: int, now: int) -> None:
        self.serial[port].append(value)
        for sink in self.serial_sinks:
            sink(port, value, now)

    def _signal(self, cpu: int, kind: str, vector: int, now: int) -> None:
        if kind == "nmi":
            self.cpus[cpu].nmi()
        # INIT and SIPI address CPUs that this machine does not have; the boot CPU ignores SIPI.
        elif kind == "init" and cpu == 0:
            self._end(StopKind.RESET, "the guest sent INIT to its boot CPU")

    def _power(self, kind: str, now: int) -> None:
        if kind == "off":
            self._end(StopKind.POWER_OFF, "the guest switched the machine off")
        else:
            self._end(StopKind.RESET, f"the guest reset the machine ({kind})")

    def _unclaimed(self, access: Unclaimed) -> None:
        if self.description.strict_memory and access.kind == "mmio":
            what = "write to" if access.write else "read of"
            self._end(
                StopKind.UNMAPPED, f"{what} {access.address:#x}, where there is neither RAM nor a device"
            )

    def _end(self, kind: StopKind, message: str) -> None:
        if self._ending is None:
            self._ending = (kind, message)
        for cpu in self.cpus:
            cpu.request_stop()

    # ---- probes ------------------------------------------------------------------------------

    def probe(self, address: int, handler: ProbeHandler) -> None:
        """Call ``handler`` before each execution of the instruction at this virtual address.

        Observing does not change the run. Several handlers of one address run in the order added.
        """
        self._probes.setdefault(address, []).append(handler)
        self._probes_changed = True

    def unprobe(self, address: int, handler: ProbeHandler) -> None:
        """Take back what `probe` added."""
        self._probes[address].remove(handler)
        if not self._probes[address]:
            del self._probes[address]
        self._probes_changed = True

    def _apply_probes(self) -> None:
        """Tell the CPUs, once for however many changes: it drops all translated code."""
        if self._probes_changed:
            self._probes_changed = False
            for cpu in self.cpus:
                cpu.set_probes(list(self._probes))

    def _probe(self, address: int, now: int) -> bool:
        stop = False
        for handler in tuple(self._probes.get(address, ())):
            stop = bool(handler(self, address)) or stop
        if stop:
            self._probe_hit = address
        self._apply_probes()
        return stop

    def watch_user(self, handler: Callable[[Machine], None] | None) -> None:
        """Call ``handler`` at each entry to user mode (None: no more)."""
        self._user_handler = handler
        for cpu in self.cpus:
            cpu.header.watch_user = handler is not None

    def _user(self, now: int) -> None:
        if self._user_handler is not None:
            self._user_handler(self)

    # ---- time --------------------------------------------------------------------------------

    @property
    def ticks(self) -> int:
        """Virtual time in nanoseconds: instructions retired plus ticks skipped while halted."""
        return int(self._time.ticks)

    @property
    def instructions(self) -> int:
        """Instructions retired by all CPUs."""
        return int(self._time.ticks - self._time.skipped)

    def registers(self) -> dict[str, int]:
        """Registers of the boot CPU by name."""
        return self.cpus[0].registers()

    @property
    def traffic(self) -> Traffic:
        """Source and sink on the network card's cable. ConfigError where there are none."""
        if self._traffic is None:
            raise ConfigError("nothing is at the other end of a network cable of this machine", "traffic")
        return self._traffic

    @property
    def phase(self) -> str:
        """Name of the phase of a live update that the machine is in, if an observer is attached."""
        return self.phase_source() if self.phase_source is not None else ""

    @property
    def console(self) -> bytes:
        """What the guest wrote to its first serial port."""
        return bytes(self.serial[0])

    def send(self, data: bytes, port: int = 0) -> None:
        """Send bytes to a serial port, now. Part of the machine's input: replay it at the same tick."""
        self.platform.receive(port, data, self.ticks)

    # ---- running -----------------------------------------------------------------------------

    def boot(self, what: booting.Boot) -> None:
        """Load a kernel and set the boot CPU to its entry. Only on a fresh machine."""
        if self.ticks:
            raise ConfigError("this machine has already run; boot a fresh one")
        booting.boot(self, what)

    def stop(self) -> None:
        """From an observer or device: end the run at the next instruction boundary."""
        self._end(StopKind.REQUEST, "stopped on request")

    def run(
        self,
        until: int | None = None,
        *,
        max_instructions: int | None = None,
        progress: Callable[[Machine], None] | None = None,
    ) -> Stop:
        """Run until tick ``until``, until something ends the run, or until ``max_instructions`` in
        all have retired. ``progress`` is called now and then. Ctrl-C ends it by KeyboardInterrupt at an
        instruction boundary."""
        with Interruptible(self.cpus[0].fail):
            stop = self._run(until, max_instructions, progress)
        self.cpus[0].raise_failure()
        return stop

    def _run(
        self,
        until: int | None,
        max_instructions: int | None,
        progress: Callable[[Machine], None] | None,
    ) -> Stop:
        end = NEVER - 1 if until is None else until
        budget = NEVER if max_instructions is None else max_instructions
        cpu = self.cpus[0]
        self._apply_probes()
        while True:
            if self.instructions >= budget:
                return self._stopped(StopKind.BUDGET, f"{budget:,} instructions were not enough")
            if self.ticks >= end:
                return self._stopped(StopKind.UNTIL, f"tick {self.ticks:,} reached")
            step = min(end, self.ticks + SLICE_TICKS, self.ticks + budget - self.instructions)
            reason = cpu.run(step)
            ending, self._ending = self._ending, None
            hit, self._probe_hit = self._probe_hit, None
            if ending is not None:
                return self._stopped(*ending)
            if hit is not None:
                return self._stopped(StopKind.BREAKPOINT, f"before the instruction at {hit:#x}")
            if reason is Reason.END:
                if progress is not None:
                    progress(self)
                continue
            if reason is Reason.DEADLOCK:
                masked = not cpu.registers()["rflags"] & 0x200
                why = "interrupts are off" if masked else "nothing is pending that could wake it"
                return self._stopped(StopKind.DEADLOCK, f"the CPU is halted and {why}")
            if reason is Reason.TRIPLE_FAULT:
                h = cpu.header
                return self._stopped(
                    StopKind.TRIPLE_FAULT,
                    f"a fault could not be delivered; the last one was vector {h.last_vector}, error "
                    f"{h.last_error:#x}, at rip {h.last_rip:#x}, cr2 {h.last_cr2:#x}",
                )
            if reason is Reason.LIVELOCK:
                h = cpu.header
                return self._stopped(
                    StopKind.LIVELOCK,
                    "exceptions without end, no instruction retires; the last one was vector "
                    f"{h.last_vector}, error {h.last_error:#x}, at rip {h.last_rip:#x}, cr2 {h.last_cr2:#x}",
                )
            if reason is Reason.ENGINE:
                error = int(cpu.header.engine_error)
                what = {6: "a read", 7: "a write", 8: "an instruction fetch", 14: "an instruction fetch"}.get(
                    error, f"engine error {error}, an access"
                )
                return self._stopped(StopKind.ENGINE, f"{what} outside memory")
            if reason is Reason.REQUEST:
                continue
            raise EmuError(f"internal error: the core stopped with {reason!r}; please report it")

    def step(self, count: int = 1) -> Stop:
        """Run exactly ``count`` instructions (fewer if something ends the run)."""
        target = self.instructions + count
        while self.instructions < target:
            stop = self.run(self.ticks + target - self.instructions)
            if stop.kind is not StopKind.UNTIL:
                return stop
        return self._stopped(StopKind.UNTIL, f"{count:,} instructions done")

    def _stopped(self, kind: StopKind, message: str) -> Stop:
        rip = self.cpus[0].registers()["rip"]
        return Stop(kind, rip, self.ticks, self.instructions, message)

    # ---- state -------------------------------------------------------------------------------

    def _rest(self) -> dict[str, Any]:
        return {
            "ticks": self.ticks,
            "skipped": int(self._time.skipped),
            "events": self.clock.state(),
            "devices": self.platform.state(),
        }

    def state(self) -> dict[str, Any]:
        """All mutable state outside RAM as plain data (what `state_hash` covers besides RAM)."""
        return {
            "description": self.description.plain(),
            "cpus": [{"words": c.words(), "tlb": c.tlb()} for c in self.cpus],
            **self._rest(),
        }

    def state_hash(self) -> str:
        """Hash of CPU, devices, clock, pending events and RAM: equal for equal machines.

        Costs what changed since it was last asked for.
        """
        document = json.dumps(self.state(), sort_keys=True, separators=(",", ":"), default=_plain_bytes)
        h = hashlib.blake2b(document.encode(), digest_size=16)
        h.update(self.memory.hash().to_bytes(16, "little"))
        return h.hexdigest()

    def snapshot(self) -> Snapshot:
        """The machine's state now, as a child of the last snapshot taken or restored."""
        pages = self.memory.take_dirty()
        self._base = Snapshot(
            self._base,
            self.ticks,
            int(self._time.skipped),
            tuple(c.freeze() for c in self.cpus),
            tuple(pickle.dumps(d.s, 5) for d in self.platform.devices),
            dict(self.bus.unclaimed),
            self.clock.state(),
            tuple(bytes(s) for s in self.serial),
            pages,
            self.memory.gather(pages)[1],
        )
        return self._base

    def restore(self, snapshot: Snapshot) -> None:
        """Go to a snapshot of this machine. Raises ConfigError for one of another machine."""
        changed = set(self._path(snapshot))
        changed.update(self.memory.take_dirty())
        self.memory.scatter({number: snapshot.address(number) for number in changed})
        self._base = snapshot
        self._time.ticks = snapshot.ticks
        self._time.skipped = snapshot.skipped
        moved = False
        for device, frozen in zip(self.platform.devices, snapshot.devices, strict=True):
            if pickle.dumps(device.s, 5) != frozen:
                device.load(plain(pickle.loads(frozen)))
                moved = True
        if moved:
            self.platform.pci.remap()
        self.bus.load(snapshot.bus)
        self.clock.load(snapshot.events)
        for cpu, state in zip(self.cpus, snapshot.cpus, strict=True):
            cpu.thaw(state)
        for log, text in zip(self.serial, snapshot.serial, strict=True):
            if len(log) != len(text) or log != text:
                log[:] = text
        self._ending = None

    def _path(self, target: Snapshot) -> Iterator[int]:
        """Pages that may differ between the last snapshot taken or restored and ``target``."""
        if target is self._base:
            return
        line: set[Snapshot] = set()
        node: Snapshot | None = target
        while node is not None:
            line.add(node)
            node = node.parent
        here = self._base
        while here is not None and here not in line:
            yield from here.pages
            here = here.parent
        if here is None:
            raise ConfigError("this snapshot was taken on another machine")
        node = target
        while node is not here and node is not None:
            yield from node.pages
            node = node.parent

    def _load_rest(
        self,
        rest: dict[str, Any],
        cpus: Sequence[tuple[Sequence[int], Sequence[int]]],
        serial: Sequence[bytes],
    ) -> None:
        self._time.ticks = rest["ticks"]
        self._time.skipped = rest["skipped"]
        self.platform.load(rest["devices"])
        self.clock.load(rest["events"])
        for cpu, (words, tlb) in zip(self.cpus, cpus, strict=True):
            cpu.load_words(words)
            cpu.load_tlb(tlb)
        for log, text in zip(self.serial, serial, strict=True):
            log[:] = text
        self._ending = None

    def save(self, path: Path) -> None:
        """Write the machine to a file that `load` continues from, in any process on any host."""
        numbers, contents = self.memory.gather(self.memory.resident_pages())
        state = {**self.state(), "serial": [bytes(s) for s in self.serial]}
        if self.description.traffic is not None and self.description.traffic.replay:
            state["replay"] = [list(one) for one in self.description.traffic.replay]
        saved.write(path, state, numbers, contents)

    @classmethod
    def load(cls, path: Path) -> Machine:
        """A machine as it was saved. Raises ImageError for a damaged file or one of another version."""
        file = saved.read(path)
        m: Machine | None = None
        try:
            d = file.state["description"]
            if d["cpuid_version"] != cpuid.VERSION:
                raise ImageError(
                    f"saved with CPU model {d['cpuid_version']}, this luemu has {cpuid.VERSION}", str(path)
                )
            traffic = d.get("traffic")
            m = cls(
                d["memory"],
                rtc_epoch=d["rtc_epoch"],
                strict_memory=d["strict_memory"],
                devices=d.get("devices", ()),
                traffic=traffic and TrafficSpec.from_plain(traffic, file.state.get("replay", ())),
            )
            m.memory.scatter(
                {int(n): file.pages.ctypes.data + 4096 * i for i, n in enumerate(file.numbers.tolist())}
            )
            cpus = [(c["words"], c["tlb"]) for c in file.state["cpus"]]
            m._load_rest(file.state, cpus, file.state["serial"])
            m.memory.assume_written(file.numbers.tolist())
        except (LookupError, ValueError, TypeError, AttributeError, ArithmeticError, ConfigError) as e:
            if m is not None:
                m.close()
            raise ImageError(f"the saved state does not fit this luemu: {e!r}", str(path)) from None
        except BaseException:
            if m is not None:
                m.close()
            raise
        return m

    # ---- life --------------------------------------------------------------------------------

    def close(self) -> None:
        """Free host memory. Views that were handed out stay valid."""
        for cpu in self.cpus:
            cpu.close()
        self.memory.close()

    def __enter__(self) -> Machine:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _plain_bytes(value: object) -> str:
    if isinstance(value, bytes | bytearray):
        return "hex:" + bytes(value).hex()
    raise TypeError(f"device state must be plain data, not {type(value).__name__}")
