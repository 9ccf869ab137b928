"""Small guests in assembly, for what the large self-test guest cannot pin to one instruction.

A guest runs in 64-bit ring 0 on a whole `Machine` without a kernel: everything below 4 GiB is mapped at
its own address and can be accessed from ring 3 too, code is at `CODE`, interrupt handlers are where `flat`
puts them. The assembler is the one of `ziglang` (kernels/build.py), so no system compiler is needed.
"""

from __future__ import annotations

import functools
import io
import random
import struct
import subprocess
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from elftools.elf.elffile import ELFFile

from emu.boot import Boot
from emu.machine import Machine, Stop, StopKind
from emu.selfcheck import write_flat_guest
from kernels.build import TARGETS, build, project_root, zig

CODE, HANDLERS, DATA, STACK = 0x10000, 0x20000, 0x100000, 0x9000
RAM = 4 << 20
GDT, IDT, PML4, PDPT, PD, TSS = 0x2000, 0x3000, 0x4000, 0x5000, 0x6000, 0x9000
USER_CODE, USER_DATA = 0x23, 0x1B
MMIO = 0xD0000000
"""Where tests put a device of their own: neither RAM nor another device is there."""
LAPIC = 0xFEE00000


@functools.cache
def assemble(text: str) -> bytes:
    """Machine code of GNU assembler text (Intel syntax, 64-bit). Addresses must be absolute numbers or
    relative to a local label: nothing is relocated."""
    with tempfile.TemporaryDirectory() as tmp:
        source, made = Path(tmp) / "guest.s", Path(tmp) / "guest.o"
        source.write_text(f".intel_syntax noprefix\n.code64\n{text}\n")
        cache = project_root() / "build" / "zig-cache"
        cache.mkdir(parents=True, exist_ok=True)
        env = {"PATH": "/usr/bin:/bin", "HOME": tmp, "ZIG_GLOBAL_CACHE_DIR": str(cache)}
        run = subprocess.run(
            [zig(), "cc", "-target", "x86_64-freestanding-none", "-c", source, "-o", made],
            capture_output=True, text=True, check=False, env=env, cwd=tmp,
        )  # fmt: skip
        assert run.returncode == 0, f"{run.stderr}\n{text}"
        image = ELFFile(io.BytesIO(made.read_bytes()))
        assert image.get_section_by_name(".rela.text") is None, f"needs relocation:\n{text}"
        section = image.get_section_by_name(".text")
        assert section is not None
        data = section.data()
        assert isinstance(data, bytes)
        return data


def gate(handler: int, *, kind: int = 0x8E, ist: int = 0) -> bytes:
    """An entry of the 64-bit IDT."""
    return struct.pack("<HHBBHII", handler & 0xFFFF, 8, ist, kind, handler >> 16 & 0xFFFF, handler >> 32, 0)


def flat(
    code: str | bytes,
    handlers: Mapping[int, str] | None = None,
    *,
    memory: int = RAM,
    strict: bool = False,
    devices: Sequence[str] = (),
) -> Machine:
    """A machine that is about to run ``code``, with ``handlers`` (vector to text) in its IDT."""
    m = Machine(memory, strict_memory=strict, devices=devices)
    put(m, code, handlers)
    return m


def put(m: Machine, code: str | bytes, handlers: Mapping[int, str] | None = None) -> None:
    """What `flat` does, on a fresh machine."""
    write_flat_guest(m.memory, m.cpus[0], CODE, STACK)

    def write(phys: int, data: bytes) -> None:
        m.memory.write(phys, data, by="test")

    write(PML4, struct.pack("<Q", PDPT + 7))
    write(PDPT, struct.pack("<4Q", PD + 7, *(i << 30 | 0x87 for i in (1, 2, 3))))
    write(PD, struct.pack("<512Q", *(i << 21 | 0x87 for i in range(512))))
    descriptors = (
        0, 0x00AF9B000000FFFF, 0x00CF93000000FFFF, 0x00CFF3000000FFFF, 0x00AFFB000000FFFF,
        0x0000890000000067 | (TSS & 0xFFFFFF) << 16, 0,
    )  # fmt: skip
    write(GDT, struct.pack("<7Q", *descriptors))
    write(TSS, struct.pack("<IQQQ", 0, STACK, STACK, STACK).ljust(0x66, b"\0") + b"\x68\0")
    m.cpus[0].set_registers(gdtr__limit=55, tr__selector=0x28, tr__base=TSS, tr__limit=0x67, tr__flags=0x8B00)
    write(CODE, assemble(code) if isinstance(code, str) else code)
    for i, (vector, text) in enumerate(sorted((handlers or {}).items())):
        at = HANDLERS + i * 0x400
        machine_code = assemble(text)
        assert len(machine_code) <= 0x400
        write(at, machine_code)
        write(IDT + 16 * vector, gate(at, kind=0xEE if vector >= 0x80 else 0x8E))  # INT from ring 3
    m.cpus[0].flush_tlb()


def selftest_image() -> bytes:
    """The self-test guest (kernels/selftest), built if need be."""
    path = build(project_root(), next(t for t in TARGETS if t.name == "selftest"))
    assert path is not None
    return path.read_bytes()


def selftest(
    cmdline: str, memory: int = 256 << 20, *, strict: bool = False, devices: Sequence[str] = ()
) -> Machine:
    """A machine about to run the self-test guest."""
    m = Machine(memory, strict_memory=strict, devices=devices)
    m.boot(Boot(selftest_image(), cmdline))
    return m


# ---- running in pieces ---------------------------------------------------------------------------

Disturb = Callable[[Machine, random.Random], None]


def flush_engine(m: Machine, rng: random.Random) -> None:
    """Let the engine forget what it cached of the guest's TLB."""
    cpu = m.cpus[0]
    cpu.lib.core.core_tlb_flush_engine(cpu.core)


def drain(m: Machine, rng: random.Random) -> None:
    """Take over dirty pages: their next stores are noticed again."""
    m.memory.drain()


def take_snapshot(m: Machine, rng: random.Random) -> None:
    m.snapshot()


def go_back(m: Machine, rng: random.Random) -> None:
    """Snapshot, run ahead, come back."""
    here = m.snapshot()
    m.run(until=m.ticks + rng.choice([1, 2, 3, 100, 5000]))
    m.restore(here)


def hash_now(m: Machine, rng: random.Random) -> None:
    m.state_hash()


def registers_again(m: Machine, rng: random.Random) -> None:
    """Write the architectural state back as it is."""
    m.cpus[0].load_words(m.cpus[0].words())


def nothing(m: Machine, rng: random.Random) -> None:
    pass


DISTURBANCES: tuple[Disturb, ...] = (
    nothing, flush_engine, drain, take_snapshot, go_back, hash_now, registers_again,
)  # fmt: skip


def run_sliced(
    m: Machine,
    seed: int,
    until: int | None = None,
    *,
    steps: tuple[int, ...] = (1, 2, 3, 10, 100, 10_000),
    disturb: tuple[Disturb, ...] = DISTURBANCES,
    slices_max: int = 1 << 60,
) -> Stop:
    """Run in random pieces (each at most a step, chosen first, then its length), disturbed in between,
    until tick ``until`` or until something ends it; after ``slices_max`` pieces in one go."""
    rng = random.Random(seed)
    end = until if until is not None else (1 << 63)
    for _ in range(slices_max):
        target = min(end, m.ticks + rng.randint(1, rng.choice(steps)))
        stop = m.run(until=target)
        if stop.kind is not StopKind.UNTIL:
            return stop
        assert stop.ticks == m.ticks == target, f"seed {seed}: asked for {target}, stopped at {stop.ticks}"
        if m.ticks >= end:
            return stop
        rng.choice(disturb)(m, rng)
    return m.run(until=until)
