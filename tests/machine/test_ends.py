"""Every way a run can end is a typed result; no guest makes the host raise, crash or hang."""

from __future__ import annotations

import os
import random
import signal
import struct
import subprocess
import sys
import threading

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from emu.boot import Boot
from emu.errors import ConfigError, ImageError
from emu.machine import Machine, StopKind
from kernels.build import project_root
from tests.machine.guest import (
    CODE,
    DATA,
    GDT,
    HANDLERS,
    IDT,
    MMIO,
    PD,
    PML4,
    STACK,
    TSS,
    USER_CODE,
    USER_DATA,
    assemble,
    flat,
    gate,
    put,
    run_sliced,
    selftest,
    selftest_image,
)

LIMIT = 3_000_000

ACTIONS = {
    "triple": StopKind.TRIPLE_FAULT,
    "fault-delivering": StopKind.TRIPLE_FAULT,
    "hang": StopKind.BUDGET,
    "deadlock": StopKind.DEADLOCK,
    "idle-forever": StopKind.DEADLOCK,
    "nothing": StopKind.POWER_OFF,
    "unmapped": StopKind.POWER_OFF,
    "pagefault": StopKind.POWER_OFF,
}


@pytest.mark.parametrize("what", ACTIONS)
def test_actions_of_the_selftest_guest(what: str) -> None:
    with selftest(f"do={what}") as m:
        stop = m.run(max_instructions=LIMIT)
        assert stop.kind is ACTIONS[what], stop
        assert stop.message and "\n" not in stop.message and "\n" not in str(stop)
        wanted = m.state_hash()
        assert (stop.ticks, stop.instructions) == (m.ticks, m.instructions)
    if stop.kind is not StopKind.BUDGET:
        with selftest(f"do={what}") as m:
            m.run(until=stop.ticks - 200)
            assert run_sliced(m, 5, steps=(1, 3, 20)) == stop
            assert m.state_hash() == wanted


def test_an_end_is_the_same_when_asked_again() -> None:
    """Going on after the end of a run does not move a machine that cannot go on."""
    for what in ("triple", "deadlock"):
        with selftest(f"do={what}") as m:
            stop = m.run(max_instructions=LIMIT)
            again = m.run(max_instructions=LIMIT)
            assert again.kind is stop.kind, f"{stop}\n{again}"
            assert again.ticks - stop.ticks < 100


def test_strict_memory_ends_at_the_access() -> None:
    for access, what in (
        ("mov eax, [rdi]", "read of"),
        ("mov [rdi], eax", "write to"),
        ("push [rdi]", "read of"),
    ):
        text = f"mov edi, {MMIO + 0x128}\nnop\n{access}\n"
        with flat(text + "nop\nnop\nhlt", strict=True) as m:
            stop = m.run(until=1000)
            assert stop.kind is StopKind.UNMAPPED
            assert what in stop.message and f"{MMIO + 0x128:#x}" in stop.message
            assert (stop.ticks, stop.rip) == (3, CODE + len(assemble(text)))
            assert m.run(until=1000).kind is StopKind.DEADLOCK, "it can go on"
        with flat(text + "hlt") as m:
            assert m.run(until=1000).kind is StopKind.DEADLOCK
            assert sum(m.bus.unclaimed.values()) >= 1, "counted"


def test_strict_memory_lets_devices_and_ports_alone() -> None:
    with flat("mov edi, 0xfee00000\nmov eax, [rdi + 0x20]\nmov dx, 0x777\nin al, dx\nhlt", strict=True) as m:
        assert m.run(until=1000).kind is StopKind.DEADLOCK


def test_strict_memory_of_the_selftest_guest() -> None:
    with selftest("do=unmapped", strict=True) as m:
        stop = m.run(max_instructions=LIMIT)
        assert (stop.kind, "0x20000000" in stop.message) == (StopKind.UNMAPPED, True), stop


def test_reads_of_nothing_are_all_ones() -> None:
    with flat(
        f"mov edi, {MMIO}\nmov rax, [rdi]\nmov [rdi], rdi\nmov bl, [rdi + 3]\nmov dx, 0x777\nin eax, dx\nhlt"
    ) as m:
        m.run(until=4)
        r = m.registers()
        assert (r["rax"], r["rbx"] & 0xFF) == ((1 << 64) - 1, 0xFF)
        m.run(until=100)
        assert m.registers()["rax"] == 0xFFFFFFFF


@pytest.mark.parametrize("address", [0xA0000, 0x400000, MMIO, 0xFEE00000, 0xFFFFFFF0])
def test_code_outside_memory(address: int) -> None:
    """The jump is a typed end, wherever it leads: RAM ends at 4 MiB here."""
    with flat(f"mov eax, {address}\njmp rax") as m:
        stop = m.run(until=100_000, max_instructions=100_000)
        assert stop.kind in (StopKind.ENGINE, StopKind.TRIPLE_FAULT), stop
        assert "engine error" not in stop.message, "says what happened"
        assert stop.ticks < 1000


def test_page_tables_outside_memory() -> None:
    for entry, at in (
        (0x0000_3000_0000_0003, PML4),
        (MMIO | 3, PML4),
        ((1 << 51) | 7, PD + 8),
        (MMIO | 3, PD + 8),
    ):
        with flat("mov rax, cr3\nmov cr3, rax\nmov eax, [0x200000]\nmov eax, 5\nhlt") as m:
            m.memory.write(at, struct.pack("<Q", entry), by="test")
            m.cpus[0].flush_tlb()
            stop = m.run(until=100_000)
            assert stop.kind in (StopKind.ENGINE, StopKind.TRIPLE_FAULT, StopKind.DEADLOCK), stop
    with flat(f"mov eax, {MMIO}\nmov cr3, rax\nnop\nhlt") as m:
        stop = m.run(until=100_000)
        assert stop.kind in (StopKind.ENGINE, StopKind.TRIPLE_FAULT), stop


def test_fault_while_delivering() -> None:
    # the handler's stack is not there: double fault, whose stack is not there either
    with flat("mov rsp, 0x200800\nud2", {6: "iretq", 8: "iretq"}) as m:
        m.memory.write(PD + 8, bytes(8), by="test")
        stop = m.run(until=1000)
        assert (stop.kind, stop.ticks) == (StopKind.TRIPLE_FAULT, 1), stop
        assert "vector" in stop.message
    # IDT outside memory, and with no limit
    for idt in ("mov rax, 0x7fffffff0000\npush rax\npush -1", "push 0\npush 0"):
        with flat(f"{idt}\nlidt [rsp + 6]\nud2") as m:
            assert m.run(until=1000).kind in (StopKind.TRIPLE_FAULT, StopKind.ENGINE)


def test_a_null_task_register_is_refused() -> None:
    handler = "pop r13\nmov r12, [rsp]\nhlt"  # error code, RIP
    with flat("mov eax, 3\nnop\nltr ax\nmov ebx, 1\nhlt", {13: handler}) as m:
        assert m.run(until=1000).kind is StopKind.DEADLOCK
        r = m.registers()
        assert (r["r12"], r["r13"], r["rbx"]) == (CODE + len(assemble("mov eax, 3\nnop")), 0, 0)
        assert m.instructions == 2 + 3


RING3 = f"push {USER_DATA}\npush {STACK - 512}\npush 2\npush {USER_CODE}\nlea rax, [rip + 1f]\npush rax\niretq\n1: "
CALL_GATE = 0x30


def without_tss(code: str, handlers: dict[int, str]) -> Machine:
    """A guest whose task register holds nothing that is present, as VMLOAD may leave it. Vector 6 has a stack of
    its own; a call gate that ring 3 may use leads to CODE."""
    m = flat(code, handlers)
    m.memory.write(IDT + 16 * 6, gate(HANDLERS, ist=1), by="test")
    m.memory.write(GDT + CALL_GATE, struct.pack("<HHHHQ", 0, 8, 0xEC00, CODE >> 16, 0), by="test")
    m.memory.write(TSS + 36, struct.pack("<Q", STACK - 1024), by="test")
    m.cpus[0].set_registers(tr__flags=0, gdtr__limit=63)
    m.cpus[0].flush_tlb()
    return m


def test_a_stack_from_a_tss_that_is_not_there() -> None:
    """#TS with the selector of the task register; the engine by itself ends the process."""
    code = "nop\nud2\nmov ebx, 1\nhlt"
    for seed in range(4):
        with without_tss(code, {6: "mov ebx, 2\nhlt", 10: "pop r13\nmov r12, [rsp]\nhlt"}) as m:
            stop = run_sliced(m, seed, steps=(1, 2, 20))
            assert stop.kind is StopKind.DEADLOCK, stop
            r = m.registers()
            assert (r["r12"], r["r13"], r["rbx"]) == (CODE + 1, 0x28, 0)
            assert m.instructions == 1 + 3
    ring3 = {
        "a fault in ring 3": "ud2",
        "INT in ring 3": "int 0x80",
        "a call gate": f"push {CALL_GATE}\npush 0\nmov rdi, rsp\n.byte 0x48, 0xff, 0x1f",
    }
    for what, text in ring3.items():
        with without_tss(RING3 + text, {6: "hlt", 0x80: "hlt", 10: "hlt", 8: "hlt"}) as m:
            stop = m.run(until=1000)
            assert (stop.kind, stop.rip >= CODE) == (StopKind.TRIPLE_FAULT, True), f"{what}: {stop}"
        with without_tss(RING3 + text, {6: "mov ebx, 2\nhlt", 0x80: "mov ebx, 2\nhlt"}) as m:
            m.cpus[0].set_registers(tr__flags=0x8B00)
            stop = m.run(until=1000, max_instructions=1000)
            ended = (stop.kind, m.cpus[0].header.exceptions)
            assert ended == ((StopKind.BUDGET, 0) if "gate" in what else (StopKind.DEADLOCK, 1)), f"{what}: {stop}"


def test_rubbish_that_once_ended_the_process() -> None:
    rng = random.Random(6)
    pieces = [bytes.fromhex(o) for o in OPCODES]
    for i in range(5):
        run_rubbish(campaign_code(rng, pieces, i), 6 << 16 | i)


def test_power_off_reset_and_request() -> None:
    ends = {
        "mov dx, 0xcf9\nmov al, 6\nout dx, al": StopKind.RESET,
        "mov al, 0xfe\nout 0x64, al": StopKind.RESET,
        "mov edi, 0xfee00000\nmov dword ptr [rdi + 0x300], 0x44500": StopKind.RESET,
    }
    for text, kind in ends.items():
        with flat(text + "\nnop\nhlt") as m:
            stop = m.run(until=1000)
            assert stop.kind is kind, f"{text}: {stop}"
            assert stop.rip == CODE + len(assemble(text)), "right after the instruction"


def test_a_guest_that_loops_for_ever_ends_at_the_budget() -> None:
    for text in (
        "1: jmp 1b", "1: jmp 2f\n2: jmp 1b", "1: pause\njmp 1b", "1: int3\njmp 1b", "1: ud2", "1: mov eax, [rdi]\njmp 1b",
        f"1: mov edi, {DATA}\nmov ecx, 0xffffff\nmov al, 0x90\nrep stosb\njmp 1b", "sti\n1: hlt\njmp 1b",
    ):  # fmt: skip
        code = f"mov edi, {MMIO}\n" + ("mov rbx, 0xfee00000\nmov dword ptr [rbx + 0x320], 0x20040\n"
               "mov dword ptr [rbx + 0x380], 777\n" if "hlt" in text else "") + text  # fmt: skip
        with flat(code, {3: "iretq", 6: "iretq", 0x40: "mov dword ptr [rbx + 0xb0], 0\niretq"}) as m:
            for budget in (1_000, 33_333):
                stop = m.run(max_instructions=budget)
                assert (stop.kind, stop.instructions) == (StopKind.BUDGET, budget), f"{text}: {stop}"


def test_interrupt_storm_ends_at_the_budget() -> None:
    """A handler that raises its own interrupt again."""
    again = "mov dword ptr [rdi + 0xb0], 0\nmov dword ptr [rdi + 0x300], 0x44041\niretq"
    with flat(
        "mov edi, 0xfee00000\nsti\nmov dword ptr [rdi + 0x300], 0x44041\n1: jmp 1b", {0x41: again}
    ) as m:
        stop = m.run(max_instructions=10_000)
        assert (stop.kind, stop.instructions) == (StopKind.BUDGET, 10_000)


# ---- rubbish -------------------------------------------------------------------------------------

TYPED = set(StopKind)


def run_rubbish(code: bytes, seed: int) -> None:
    """Execute bytes as 64-bit ring 0 code, with handlers that mostly go on somewhere."""
    skip = "add qword ptr [rsp], 1\niretq"
    error = "add rsp, 8\nadd qword ptr [rsp], 1\niretq"
    handlers = {v: error if v in (8, 10, 11, 12, 13, 14, 17) else skip for v in (*range(20), 0x40, 0xFF)}
    with Machine(4 << 20) as m:
        # Not zeros: those are accesses through RAX, and where they reach a device each one makes the
        # engine translate the rest of its long block again.
        m.memory.write(CODE, b"\x90\xf4" * 0x8000, by="test")
        m.memory.write(0x30000, b"\x90\xf4" * 0x38000, by="test")
        put(m, code, handlers)
        rng = random.Random(seed)
        m.cpus[0].set_registers(
            **{n: rng.choice([0, 1, DATA, MMIO, 0xFEE00000, rng.getrandbits(64)]) for n in ("rax", "rbx", "rcx", "rdx")},
            **{n: rng.choice([DATA, MMIO, CODE]) for n in ("rsi", "rdi", "rbp")},
            r8=DATA, r9=0x500, rflags=0x202,
        )  # fmt: skip
        stop = m.run(max_instructions=10_000, until=50_000_000)
        assert stop.kind in TYPED
        assert stop.instructions <= 10_000
        m.state_hash()


@settings(max_examples=30)
@given(code=st.binary(min_size=16, max_size=400), seed=st.integers(0, 1 << 32))
def test_any_bytes_as_code(code: bytes, seed: int) -> None:
    run_rubbish(code * 2, seed)


def test_exceptions_without_end() -> None:
    """No instruction retires, so neither a tick nor a count is ever reached. What the host did before is not seen."""
    hashes = set()
    for slices in ([], [7, 39, 100]):
        with Machine(4 << 20) as m:
            put(m, bytes.fromhex("90" * 40 + "0f0b"), {6: "ud2"})
            m.memory.write(IDT + 16 * 6 + 4, b"\x01", by="test")  # on its own stack, every time from its top
            m.memory.write(TSS + 0x24, struct.pack("<Q", STACK), by="test")
            for until in slices:
                m.run(until=until)
            stop = m.run(max_instructions=10_000, until=50_000_000)
            assert (stop.kind, stop.instructions) == (StopKind.LIVELOCK, 40), stop
            assert "vector 6" in stop.message
            assert m.run(max_instructions=10_000).kind is StopKind.LIVELOCK
            hashes.add(m.state_hash())
    assert len(hashes) == 1


OPCODES = [
    "0f01d8",
    "0f01d9",
    "0f01da",
    "0f01db",
    "0f01dc",
    "0f01dd",
    "0f01de",
    "0f01df",
    "0f01f8",
    "0f01f9",
    "0f01d0",
    "0f01d1",
    "0f00d8",
    "0f00d0",
    "0f0110",
    "0f0118",
    "0f30",
    "0f32",
    "0f31",
    "0f33",
    "0f05",
    "0f07",
    "0f34",
    "0f35",
    "0f09",
    "0f08",
    "0f20c0",
    "0f22c0",
    "0f20d8",
    "0f22d8",
    "0f20e0",
    "0f22e0",
    "0f22d0",
    "440f22c0",
    "0f21c0",
    "0f23f8",
    "0f23c0",
    "cf",
    "48cf",
    "cb",
    "ca0800",
    "c3",
    "ec",
    "ed",
    "ee",
    "ef",
    "6c",
    "6d",
    "6e",
    "6f",
    "f36c",
    "f36e",
    "f3a4",
    "f3aa",
    "f3a6",
    "f2ae",
    "fa",
    "fb",
    "f4",
    "f1",
    "cc",
    "cd40",
    "9d",
    "9c",
    "8ed0",
    "8ed8",
    "8ee0",
    "0fae00",
    "0fae08",
    "0fae20",
    "0fae28",
    "0fc7f0",
    "0fc7f8",
    "c5f877",
    "62f17c4858c0",
    "0f0b",
    "0fff",
    "0fa2",
    "0f0100",
    "0fc708",
    "480fc708",
    "f00fb10e",
    "0fb2",
    "0f38f0",
    "660f3a0fc105",
    "dbe3",
    "d9e8",
    "dff0",
    "ddd8",
    "9b",
    "d93e",
    "dd36",
    "0f77",
    "0f6fc1",
    "660fefc0",
    "e8fbffffff",
    "0f01c8",
    "0f01c1",
    "f3900f01f9",
    "0f1f00",
    "ff27",
    "ff2f",
    "ff1f",
    "0f6f07",
    "48a5",
    "f348a5",
    "8707",
    "f00fc107",
    "0fc8",
    "e0fe",
    "e2fe",
    "e3fe",
]


@settings(max_examples=50)
@given(
    code=st.lists(
        st.one_of(st.sampled_from([bytes.fromhex(o) for o in OPCODES]), st.binary(max_size=3)), max_size=60
    ),
    seed=st.integers(0, 1 << 32),
)
def test_privileged_instructions_in_any_order(code: list[bytes], seed: int) -> None:
    run_rubbish(b"".join(code) * 4, seed)


def campaign_code(rng: random.Random, pieces: list[bytes], i: int) -> bytes:
    """Random bytes, or privileged instructions between short ones."""
    if i % 2:
        return rng.randbytes(rng.randint(16, 2000))
    return b"".join(
        rng.choice(pieces) if rng.random() < 0.6 else rng.randbytes(rng.randint(1, 4)) for _ in range(300)
    )


@pytest.mark.campaign
@pytest.mark.parametrize("batch", range(12))
def test_any_bytes_as_code_campaign(batch: int) -> None:
    rng = random.Random(batch)
    pieces = [bytes.fromhex(o) for o in OPCODES]
    for i in range(200):
        run_rubbish(campaign_code(rng, pieces, i), batch << 16 | i)


@pytest.mark.parametrize("seeds", [range(16), pytest.param(range(16, 200), marks=pytest.mark.campaign)])
def test_any_bytes_as_code_do_not_depend_on_slicing(seeds: range) -> None:
    for seed in seeds:
        rng = random.Random(seed)
        pieces = [bytes.fromhex(o) for o in OPCODES if o not in ("fa", "f4")]
        code = b"".join(rng.choice(pieces) if rng.random() < 0.4 else rng.randbytes(2) for _ in range(200))
        ends = []
        for sliced in (False, True):
            with Machine(4 << 20) as m:
                put(m, code, dict.fromkeys((0, 1, 3, 5, 6, 7, 16, 18, 19), "add qword ptr [rsp], 1\niretq"))
                m.cpus[0].set_registers(rbx=DATA, rdi=DATA, rsi=DATA, rax=DATA, rcx=9, rdx=0x500)
                stop = run_sliced(m, seed, 3000, steps=(1, 2, 5, 40)) if sliced else m.run(until=3000)
                ends.append((stop.kind, stop.ticks, stop.rip, m.state_hash()))
        assert ends[0] == ends[1], f"seed {seed}"


def boots(image: bytes) -> None:
    """Boots to a typed end, or is refused."""
    with Machine(16 << 20) as m:
        try:
            m.boot(Boot(image, "console=ttyS0"))
        except (ImageError, ConfigError):
            return
        assert (
            m.run(max_instructions=2_000, until=50_000_000).kind in TYPED
        )  # zeros may be slow: see run_rubbish


def mutated_elf_kernels(data: st.DataObject) -> None:
    image = bytearray(selftest_image())
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.one_of(st.integers(0, 63), st.integers(64, 600), st.integers(0, len(image) - 1)))
        image[at] = data.draw(st.integers(0, 255))
    boots(bytes(image))


@settings(max_examples=20)
@given(data=st.data())
def test_mutated_elf_kernels(data: st.DataObject) -> None:
    mutated_elf_kernels(data)


@pytest.mark.campaign
@settings(max_examples=1000)
@given(data=st.data())
def test_mutated_elf_kernels_campaign(data: st.DataObject) -> None:
    mutated_elf_kernels(data)


def bzimage(
    *, code: bytes = b"\xf4", preferred: int = 0x100000, init_size: int = 0x10000, version: int = 0x20F
) -> bytes:
    """The smallest image with a 64-bit entry: one setup sector, `code` at the entry."""
    image = bytearray(1024)
    image[0x1F1] = 1
    payload = bytes(0x200) + code
    payload = payload.ljust((len(payload) + 15) // 16 * 16, b"\0")
    struct.pack_into("<I", image, 0x1F4, len(payload) // 16)
    image[0x200:0x202] = b"\xeb\x66"
    image[0x202:0x206] = b"HdrS"
    struct.pack_into("<H", image, 0x206, version)
    struct.pack_into("<I", image, 0x22C, 0x7FFFFFFF)
    struct.pack_into("<I", image, 0x230, 0x200000)
    image[0x234] = 1
    struct.pack_into("<H", image, 0x236, 1)
    struct.pack_into("<I", image, 0x238, 2047)
    struct.pack_into("<QI", image, 0x258, preferred, init_size)
    return bytes(image) + payload


def test_the_smallest_bzimage_runs() -> None:
    with Machine(16 << 20) as m:
        m.boot(Boot(bzimage(code=assemble("nop\nmov eax, [rsi + 0x1f1]\nhlt"))))
        stop = m.run(until=1000)
        assert (stop.kind, stop.instructions) == (StopKind.DEADLOCK, 3)


def mutated_bzimages(data: st.DataObject) -> None:
    image = bytearray(bzimage(code=bytes.fromhex("90f4")))
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.one_of(st.integers(0x1F1, 0x268), st.integers(0, len(image) - 1)))
        image[at] = data.draw(st.integers(0, 255))
    cut = data.draw(st.one_of(st.just(len(image)), st.integers(0, len(image))))
    boots(bytes(image[:cut]))


@settings(max_examples=60)
@given(data=st.data())
def test_mutated_bzimages(data: st.DataObject) -> None:
    mutated_bzimages(data)


@pytest.mark.campaign
@settings(max_examples=3000)
@given(data=st.data())
def test_mutated_bzimages_campaign(data: st.DataObject) -> None:
    mutated_bzimages(data)


def any_bytes_as_a_kernel(data: bytes) -> None:
    for image in (data, b"\x7fELF\x02\x01\x01" + data):
        boots(image)


@settings(max_examples=40)
@given(data=st.binary(max_size=2000))
def test_any_bytes_as_a_kernel(data: bytes) -> None:
    any_bytes_as_a_kernel(data)


@pytest.mark.campaign
@settings(max_examples=1000)
@given(data=st.binary(max_size=2000))
def test_any_bytes_as_a_kernel_campaign(data: bytes) -> None:
    any_bytes_as_a_kernel(data)


CRASH = """
import sys
from tests.machine.test_ends import run_rubbish
for seed in range(6):
    import random
    run_rubbish(random.Random(seed).randbytes(1000), seed)
print("alive")
"""


def test_rubbish_does_not_harm_the_process() -> None:
    run = subprocess.run(
        [sys.executable, "-X", "faulthandler", "-c", CRASH],
        cwd=project_root(), capture_output=True, text=True, check=False, timeout=300,
    )  # fmt: skip
    assert (run.returncode, run.stdout) == (0, "alive\n"), run.stderr


def test_interrupted_while_the_engine_works() -> None:
    """Python handles a signal at the entry of the callback that comes next, where an exception would be lost.
    The run ends all the same, at an instruction boundary, from which it goes on as if nothing had been."""
    code = "mov dx, 0x80\n1: mov ecx, 1000000\n2: dec ecx\njnz 2b\nin al, dx\njmp 1b"
    limit = 2_000_000_000
    with flat(code) as m, flat(code) as other:
        timer = threading.Timer(0.1, lambda: os.kill(os.getpid(), signal.SIGINT))
        timer.start()
        with pytest.raises(KeyboardInterrupt):
            m.run(max_instructions=limit)
        timer.join()
        assert 0 < m.instructions < limit
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
        there = m.ticks + 3_000_000
        assert m.run(until=there).kind is other.run(until=there).kind is StopKind.UNTIL
        assert m.state_hash() == other.state_hash()
