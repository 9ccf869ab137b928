"""The x86-64 processor: one engine, its architectural state, and the callbacks of its core.

Knows the native core and the engine. What a port, an MSR or an interrupt means is the machine's
business: it comes in through `Wiring`.
"""

from __future__ import annotations

import ctypes
import enum
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from emu import cpuid
from emu.engine import (
    ENV_FEATURES,
    UC_HOOK_BLOCK,
    UC_HOOK_INSN_INVALID,
    UC_HOOK_INTR,
    VOIDP,
    Engine,
    Library,
    peek,
    poke,
)
from emu.errors import ConfigError, UnsupportedHost
from emu.memory import GIB4, HOLE, Memory

U32, U64, INT = ctypes.c_uint32, ctypes.c_uint64, ctypes.c_int

NEVER = (1 << 64) - 1
FLUSH_GRID_TICKS = 10_000_000
"""The TLB is flushed whenever time crosses a multiple of this."""
PHYSICAL_TOP = 1 << 46


_ENGINE_FEATURES = [0x078BFBFD, 0xC6D8220B, 0x2DD3FBFD]
"""CPUID 1.EDX, 1.ECX and 80000001.EDX of the engine's EPYC model."""


class Reason(enum.IntEnum):
    """Why the core stopped running (``enum stop``)."""

    NONE = 0
    END = 1
    REQUEST = 2
    DEADLOCK = 3
    TRIPLE_FAULT = 4
    ENGINE = 5
    INTERNAL = 6
    LIVELOCK = 7


class ClockHeader(ctypes.Structure):
    """`struct clock`: the machine's virtual time."""

    _fields_ = [("ticks", U64), ("skipped", U64), ("deadline", U64)]


COUNTERS = [
    "exceptions",
    "interrupts",
    "syscalls",
    "io_reads",
    "io_writes",
    "mmio_reads",
    "mmio_writes",
    "translations",
    "splits",
    "tlb_walks",
    "tlb_refills",
    "tlb_flushes",
    "code_writes",
    "jit_flushes",
]


class CoreHeader(ctypes.Structure):
    """The part of `struct core` that is shared with Python."""

    _fields_ = [
        *[(n, U64) for n in ["end", "limit", "irq", "nmi", "stop", "stop_request", "halted", "engine_error"]],
        *[(n, U64) for n in ["tsc_offset", "flush_at", "flush_grid", "strict", "uncounted"]],
        *[(n, U64) for n in COUNTERS],
        ("exceptions_by_vector", U64 * 32),
        *[(n, U64) for n in ["last_vector", "last_error", "last_rip", "last_cr2"]],
        *[(n, U64) for n in ["user_left", "user_entered", "watch_user"]],
    ]


_IO_READ = ctypes.CFUNCTYPE(U64, U32, U32, U64)
_IO_WRITE = ctypes.CFUNCTYPE(None, U32, U32, U32, U64)
_MMIO_READ = ctypes.CFUNCTYPE(U64, U64, U32, U64)
_MMIO_WRITE = ctypes.CFUNCTYPE(None, U64, U32, U64, U64)
_EVENTS = ctypes.CFUNCTYPE(None, U64)
_ACKNOWLEDGE = ctypes.CFUNCTYPE(INT, U64)
_MSR_READ = ctypes.CFUNCTYPE(INT, U32, ctypes.POINTER(U64), U64)
_MSR_WRITE = ctypes.CFUNCTYPE(INT, U32, U64, U64)
_CR8_READ = ctypes.CFUNCTYPE(U64, U64)
_CR8_WRITE = ctypes.CFUNCTYPE(None, U64, U64)
_PROBE = ctypes.CFUNCTYPE(INT, U64, U64)


class Callbacks(ctypes.Structure):
    """`struct callbacks`."""

    _fields_ = [
        ("io_read", _IO_READ),
        ("io_write", _IO_WRITE),
        ("mmio_read", _MMIO_READ),
        ("mmio_write", _MMIO_WRITE),
        ("events", _EVENTS),
        ("acknowledge", _ACKNOWLEDGE),
        ("msr_read", _MSR_READ),
        ("msr_write", _MSR_WRITE),
        ("cr8_read", _CR8_READ),
        ("cr8_write", _CR8_WRITE),
        ("probe", _PROBE),
        ("user", _EVENTS),
    ]


class CpuidRow(ctypes.Structure):
    """`struct cpuid_row`."""

    _fields_ = [(n, U32) for n in ["leaf", "subleaf", "eax", "ebx", "ecx", "edx"]]


@dataclass(frozen=True)
class Wiring:
    """What the processor is connected to. ``now`` is the exact tick of the instruction.

    ``acknowledge`` returns a vector or None; MSR functions return None / False for #GP.
    ``probe`` returns whether to stop before the instruction. ``user`` is told of an entry to user
    mode while ``header.watch_user`` is set.
    """

    io_read: Callable[[int, int, int], int]
    io_write: Callable[[int, int, int, int], None]
    mmio_read: Callable[[int, int, int], int]
    mmio_write: Callable[[int, int, int, int], None]
    events: Callable[[int], None]
    acknowledge: Callable[[int], int | None]
    msr_read: Callable[[int, int], int | None]
    msr_write: Callable[[int, int, int], bool]
    cr8_read: Callable[[], int]
    cr8_write: Callable[[int, int], None]
    probe: Callable[[int, int], bool]
    user: Callable[[int], None]


_SEGMENTS = ("es", "cs", "ss", "ds", "fs", "gs", "ldtr", "tr", "gdtr", "idtr")
GPRS = ("rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi", *(f"r{i}" for i in range(8, 16)))
STATE_WORDS: tuple[str, ...] = (
    *GPRS,
    *["rip", "rflags", "hflags", "hflags2"],
    *(f"{s}.{part}" for s in _SEGMENTS for part in ("selector", "base", "limit", "flags")),
    *["cr0", "cr2", "cr3", "cr4", "efer", "xcr0", "dr0", "dr1", "dr2", "dr3", "dr6", "dr7"],
    *["fpu.top", "fpu.status", "fpu.control", "fpu.tags", "fpu.opcode", "fpu.ip", "fpu.dp", "mxcsr"],
    *[
        "sysenter_cs",
        "sysenter_esp",
        "sysenter_eip",
        "star",
        "vm_hsave_pa",
        "lstar",
        "cstar",
        "fmask",
        "kernel_gs_base",
    ],
    *["tsc_aux", "misc_enable", "pat"],
    *(f"mtrr_fixed{i}" for i in range(11)),
    "mtrr_def_type",
    *(f"mtrr_var{i}" for i in range(16)),
    *["svm.vmcb", "svm.tsc_offset", "svm.intercept", "svm.intercept_cr_dr", "svm.intercept_exceptions"],
    *["svm.nested_cr3", "svm.nested_mode", "svm.v_tpr", "old_exception"],
    *(f"st{i}.{part}" for i in range(8) for part in ("mantissa", "exponent")),
    *(f"xmm{i}.{part}" for i in range(16) for part in ("low", "high")),
    *["halted", "tsc_offset", "nmi", "intr", "tlb_flush_at", "tlb_flush_grid", "faults_at", "faults"],
)
"""Names of the words of the architectural state, in the order of the core's `core_state_save`.
``hflags`` holds what has no register of its own: CPL, interrupt shadow, guest mode and the like; ``faults``
counts exceptions since an instruction retired."""


HFLAGS_LONG = 1 << 22 | 1 << 15 | 1 << 14 | 1 << 9 | 1 << 7 | 1 << 5 | 1 << 4
"""``hflags`` of ring 0 in 64-bit code with CR0.MP and CR4.OSFXSR: OSFXSR, CS64, LMA, MP, PE, SS32, CS32."""
HFLAGS_PROTECTED = 1 << 7 | 1 << 5 | 1 << 4
"""``hflags`` of ring 0 in flat 32-bit protected mode: PE, SS32, CS32."""


class Cpu:
    """One processor. Its clock and memory belong to the machine."""

    def __init__(
        self,
        lib: Library,
        memory: Memory,
        clock: ClockHeader,
        wiring: Wiring,
        apic_id: int = 0,
        *,
        counted: bool = True,
    ) -> None:
        """``counted`` False leaves the block callback out: for measuring what it costs."""
        self.counted = counted
        self.lib = lib
        self.memory = memory
        self.apic_id = apic_id
        self.wiring = wiring
        self.failure: BaseException | None = None
        self._looking = False
        self._seen: dict[str, int] | None = None
        """registers, while an observer looks and nothing runs"""
        self._callbacks = self._make_callbacks(wiring)
        self.engine = Engine(lib)
        core = lib.core.core_new(
            VOIDP(self.engine.uc),
            VOIDP(self.engine.cpu),
            VOIDP(self.engine.tcg),
            ctypes.byref(clock),
            ctypes.byref(memory.header),
            ctypes.byref(self._callbacks),
        )
        if not core:
            raise ConfigError("no more than 64 CPUs on one memory and 1024 in one process")
        self.address = int(core)
        self.core = VOIDP(core)
        self.header = CoreHeader.from_address(core)
        self._probes: list[int] = []
        words = int(lib.core.core_state_words())
        if words != len(STATE_WORDS):
            raise UnsupportedHost(f"the native core is stale ({words} state words): reinstall the project")
        self._words = words
        self._unpack = struct.Struct(f"={words}Q").unpack
        self._map()
        self._features()

    def _map(self) -> None:
        memory, engine, lib = self.memory, self.engine, self.lib
        host = int(memory.header.host)
        self._mmio_users: list[Any] = []
        # Largest first: in any other order the engine gives two blocks the same internal addresses.
        blocks = sorted(((end - start, start) for start, end in memory.ranges), reverse=True)
        for size, start in blocks:
            engine.map_ram(start, host + memory.offset(start, size), size)
        starts = (U64 * len(blocks))(*(start for _, start in blocks))
        sizes = (U64 * len(blocks))(*(size for size, _ in blocks))
        bad = lib.core.core_regions(self.core, starts, sizes, len(blocks))
        if bad:
            raise UnsupportedHost(
                f"the engine lays out RAM differently (block {bad}): not the unicorn 2.1.4 wheel"
            )
        hooks = [int(lib.core.core_hook(i)) for i in range(6)]
        engine.hook(UC_HOOK_INTR, hooks[1], self.address)
        engine.hook(UC_HOOK_INSN_INVALID, hooks[2], self.address)
        self.header.uncounted = not self.counted
        if self.counted:
            engine.hook(UC_HOOK_BLOCK, hooks[0], self.address)
        top = GIB4 + max(0, memory.size - memory.low)
        for start, end in ((HOLE[0], HOLE[1]), (memory.low, GIB4), (top, PHYSICAL_TOP)):
            user = (U64 * 2)(self.address, start)
            self._mmio_users.append(user)
            engine.map_mmio(start, end - start, hooks[3], hooks[4], ctypes.addressof(user))
        original = ctypes.cast(lib.engine.find_memory_mapping_x86_64, VOIDP).value
        for at in range(engine.uc, engine.uc + 0x3000, 8):
            if peek(at, 8) == original:
                poke(at, 8, hooks[5])
                break
        else:
            raise UnsupportedHost("the engine's memory lookup cannot be found: not the unicorn 2.1.4 wheel")

    def _features(self) -> None:
        rows = cpuid.table(self.apic_id)
        table = (CpuidRow * len(rows))(*(CpuidRow(*row) for row in rows))
        if self.lib.core.core_cpuid(self.core, table, len(rows)):
            raise ConfigError(f"the CPUID table has too many rows ({len(rows)})")
        # The features of the engine's EPYC as it comes, so that the masks go where they belong.
        if [peek(self.engine.env + ENV_FEATURES + 8 * i, 8) for i in (0, 1, 6)] != _ENGINE_FEATURES:
            raise UnsupportedHost(
                f"the engine's features are not at offset {ENV_FEATURES:#x}: not the unicorn 2.1.4 wheel"
            )
        found = tuple(peek(self.engine.env + ENV_FEATURES + 8 * word, 8) for word in range(3))
        if found != cpuid.ENGINE_FEATURES:
            raise UnsupportedHost(
                f"the engine's features are not at offset {ENV_FEATURES:#x}: not the unicorn 2.1.4 wheel"
            )
        for word, mask in cpuid.FEATURE_MASKS.items():
            at = self.engine.env + ENV_FEATURES + 8 * word
            poke(at, 8, peek(at, 8) & mask)

    def _guard(self, function: Callable[..., Any], default: Any) -> Callable[..., Any]:
        fail = self.fail

        def call(*args: Any) -> Any:
            try:
                return function(*args)
            except BaseException as e:  # re-raised by `run`
                fail(e)
                return default

        return call

    def _make_callbacks(self, w: Wiring) -> Callbacks:
        guard, fail = self._guard, self.fail
        port_read, port_write = w.io_read, w.io_write

        # Ports are by far the busiest callback (a Linux boot makes a hundred thousand accesses).
        def io_read(port: int, size: int, now: int) -> int:
            try:
                return port_read(port, size, now)
            except BaseException as e:  # re-raised by `run`
                fail(e)
                return 0

        def io_write(port: int, size: int, value: int, now: int) -> None:
            try:
                port_write(port, size, value, now)
            except BaseException as e:  # re-raised by `run`
                fail(e)

        def acknowledge(now: int) -> int:
            vector = w.acknowledge(now)
            return -1 if vector is None else vector

        def looking(observer: Callable[..., Any]) -> Callable[..., Any]:
            def look(*args: int) -> Any:
                self._looking = True
                try:
                    return observer(*args)
                finally:
                    self._looking, self._seen = False, None

            return look

        def msr_read(msr: int, out: Any, now: int) -> int:
            value = w.msr_read(msr, now)
            if value is None:
                return 0
            out[0] = value
            return 1

        return Callbacks(
            io_read=_IO_READ(io_read),
            io_write=_IO_WRITE(io_write),
            mmio_read=_MMIO_READ(guard(w.mmio_read, 0)),
            mmio_write=_MMIO_WRITE(guard(w.mmio_write, None)),
            events=_EVENTS(guard(w.events, None)),
            acknowledge=_ACKNOWLEDGE(guard(acknowledge, -1)),
            msr_read=_MSR_READ(guard(msr_read, 1)),
            msr_write=_MSR_WRITE(guard(lambda m, v, now: int(w.msr_write(m, v, now)), 1)),
            cr8_read=_CR8_READ(guard(lambda now: w.cr8_read(), 0)),
            cr8_write=_CR8_WRITE(guard(w.cr8_write, None)),
            probe=_PROBE(guard(looking(lambda pc, now: int(w.probe(pc, now))), 1)),
            user=_EVENTS(guard(looking(w.user), None)),
        )

    # ---- running -----------------------------------------------------------------------------

    def run(self, end: int) -> Reason:
        """Run until tick ``end`` or until something else ends it."""
        self.header.stop_request = 0
        self.raise_failure()
        reason = Reason(self.lib.core.core_run(self.core, U64(end)))
        self.raise_failure()
        return reason

    def fail(self, e: BaseException) -> None:
        """End the run by this exception, at an instruction boundary. None may cross the engine's frames."""
        if self.failure is None:
            self.failure = e
        self.header.stop_request = 1

    def raise_failure(self) -> None:
        """Raise what `fail` was given."""
        if self.failure is not None:
            failure, self.failure = self.failure, None
            raise failure

    def request_stop(self) -> None:
        """From a callback: stop at the next instruction boundary."""
        self.header.stop_request = 1

    def interrupt(self, level: int) -> None:
        """Level of the INTR pin."""
        self.header.irq = level
        self.lib.core.core_relimit(self.core)

    def nmi(self) -> None:
        """Latch a non-maskable interrupt."""
        self.header.nmi = 1
        self.lib.core.core_relimit(self.core)

    def set_probes(self, addresses: Sequence[int]) -> None:
        """Call `Wiring.probe` before each execution of the instructions at these linear addresses."""
        probes = sorted(set(addresses))
        if probes == self._probes:
            return
        table = (U64 * max(1, len(probes)))(*probes)
        if self.lib.core.core_probes(self.core, table, U64(len(probes))):
            raise ConfigError(f"at most 1024 addresses can be probed at once, not {len(probes)}")
        self._probes = probes

    # ---- state -------------------------------------------------------------------------------

    def words(self) -> list[int]:
        """The architectural state, one integer for each of `STATE_WORDS`."""
        out = (U64 * self._words)()
        self.lib.core.core_state_save(self.core, out)
        return list(self._unpack(out))

    def load_words(self, words: Sequence[int]) -> None:
        """Set the architectural state. Raises ConfigError for a wrong number of words."""
        if len(words) != self._words:
            raise ConfigError(f"CPU state has {len(words)} words, not {self._words}")
        self._seen = None
        self.lib.core.core_state_load(self.core, (U64 * self._words)(*words))

    def freeze(self) -> tuple[bytes, bytes]:
        """Architectural state and TLB for `thaw`, quickly and in no canonical order."""
        out = (U64 * self._words)()
        self.lib.core.core_state_save(self.core, out)
        count = int(self.lib.core.core_tlb_save(self.core, None, 0))
        tlb = (U64 * (2 * count))()
        if count:
            self.lib.core.core_tlb_save(self.core, tlb, 0)
        return bytes(out), bytes(tlb)

    def thaw(self, frozen: tuple[bytes, bytes]) -> None:
        """Take over what `freeze` returned."""
        self._seen = None
        words, tlb = frozen
        self.lib.core.core_state_load(self.core, words)
        self.lib.core.core_tlb_load(self.core, tlb, U64(len(tlb) // 16))
        self.lib.core.core_forget_probe(self.core)

    def registers(self) -> dict[str, int]:
        """The architectural state by name, to be read only."""
        found = self._seen
        if found is None:
            found = dict(zip(STATE_WORDS, self.words(), strict=True))
            if self._looking:
                self._seen = found
        return found

    def set_registers(self, **values: int) -> None:
        """Change some words by name (dots as double underscores: ``cs__base``)."""
        words = self.words()
        for name, value in values.items():
            words[STATE_WORDS.index(name.replace("__", "."))] = value
        self.load_words(words)

    def tlb(self) -> list[int]:
        """Translations that the guest may still see: (key, value) pairs, flat, canonical order."""
        count = int(self.lib.core.core_tlb_save(self.core, None, 1))
        out = (U64 * (2 * max(1, count)))()
        self.lib.core.core_tlb_save(self.core, out, 1)
        return list(out[: 2 * count])

    def load_tlb(self, pairs: Sequence[int]) -> None:
        """Set what `tlb` returned."""
        table = (U64 * max(1, len(pairs)))(*pairs)
        self.lib.core.core_tlb_load(self.core, table, U64(len(pairs) // 2))

    def flush_tlb(self) -> None:
        """Forget all translations, as a reset does."""
        self.lib.core.core_tlb_flush(self.core)

    def close(self) -> None:
        """Free the engine and the core."""
        if self.address:
            self.engine.close()
            self.lib.core.core_free(self.core)
            self.address = 0
