"""The instruction at which something is seen, and how often a device is touched, do not depend on slicing.

The guests are straight-line code, so that the engine would like to run it as one block.
"""

from __future__ import annotations

import random
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import pytest

from emu.devices.device import Region
from emu.machine import Machine, StopKind
from tests.machine import guest
from tests.machine.guest import CODE, DATA, DISTURBANCES, LAPIC, MMIO, PD, assemble, flat, run_sliced

SEEDS = range(6)
NO_TIME_TRAVEL = tuple(d for d in DISTURBANCES if d is not guest.go_back)
"""A device of a test lives outside the machine's state: a restore would not take its log back."""

NOTE = """
    push rax
    mov rax, [rsp + 8]
    mov [r15], rax
    add r15, 8
    mov eax, 0xfee000b0
    mov dword ptr [rax], 0
    pop rax
    iretq
"""
"""Interrupt handler: append the address of the interrupted instruction to the list at r15, EOI."""

X2APIC_NOTE = """
    push rax
    push rcx
    push rdx
    mov rax, [rsp + 24]
    mov [r15], rax
    add r15, 8
    mov ecx, 0x80b
    xor eax, eax
    xor edx, edx
    wrmsr
    pop rdx
    pop rcx
    pop rax
    iretq
"""
START = f"mov r15d, {DATA}\nmov edi, {LAPIC}\n"
END = "cli\nhlt\n"
TIMER = "mov dword ptr [rdi + 0x3e0], 0xb\nmov dword ptr [rdi + 0x320], 0x40\n"


def noted(m: Machine, count: int) -> list[int]:
    """The first quadwords at DATA."""
    return list(struct.unpack(f"<{count}Q", m.memory.read(DATA, 8 * count).tobytes()))


def same_sliced(code: str, handlers: Mapping[int, str] | None = None, *, seeds: range = SEEDS) -> Machine:
    """Run a guest that halts, whole and in pieces; everything must be equal. Returns the whole run."""
    whole = flat(code, handlers)
    stop = whole.run(until=10_000_000)
    assert stop.kind is StopKind.DEADLOCK, stop
    for seed in seeds:
        with flat(code, handlers) as m:
            sliced = run_sliced(m, seed, steps=(1, 2, 3, 7, 30))
            assert sliced == stop, f"seed {seed}"
            assert m.state_hash() == whole.state_hash(), f"seed {seed}"
    return whole


def test_rdtsc_in_mid_block_is_exact() -> None:
    code = "mov r15d, 0x100000\n"  # tick 0
    wanted = []
    tick = 1
    for i in range(12):
        code += "nop\n" * i + "rdtsc\nmov [r15], eax\nadd r15, 8\n"
        wanted.append(tick + i)
        tick += i + 3
    with same_sliced(code + "hlt") as m:
        assert noted(m, 12) == wanted


def test_rdtscp_and_tsc_msr_are_exact() -> None:
    code = """
        mov ecx, 0x10
        nop
        rdmsr
        mov r8d, eax
        rdtscp
        mov r9d, eax
        mov ecx, 0x10
        mov eax, 1000000
        xor edx, edx
        wrmsr
        nop
        rdtsc
        mov r10d, eax
        mov ecx, 0x3b
        rdmsr
        mov r11d, eax
        hlt
    """
    with same_sliced(code) as m:
        r = m.registers()
        assert [r[n] for n in ("r8", "r9", "r10", "r11")] == [2, 4, 1_000_002, 1_000_000 - 9]


@pytest.mark.parametrize("ahead", range(1, 21))
def test_apic_timer_armed_in_straight_line_code(ahead: int) -> None:
    arm = f"mov dword ptr [rdi + 0x380], {ahead}\n"
    before = assemble(START + TIMER + "sti\nnop\n" + arm)
    with same_sliced(START + TIMER + "sti\nnop\n" + arm + "nop\n" * 40 + END, {0x40: NOTE}) as m:
        assert noted(m, 2) == [CODE + len(before) + ahead - 1, 0], "interrupted instruction"


@pytest.mark.parametrize("ahead", range(1, 21))
def test_tsc_deadline_armed_in_straight_line_code(ahead: int) -> None:
    start = f"""
        mov r15d, {DATA}
        mov ecx, 0x1b
        mov eax, 0xfee00d00
        xor edx, edx
        wrmsr
        mov ecx, 0x832
        mov eax, 0x40040
        wrmsr
        mov ecx, 0x6e0
        sti
        nop
        rdtsc
        add eax, {ahead}
        wrmsr
    """
    before = assemble(start)
    with same_sliced(start + "nop\n" * 40 + END, {0x40: X2APIC_NOTE}) as m:
        assert noted(m, 2) == [CODE + len(before) + max(0, ahead - 3), 0], "interrupted instruction"


def test_periodic_timer_in_a_loop() -> None:
    code = (
        START + "mov dword ptr [rdi + 0x3e0], 0xb\nmov dword ptr [rdi + 0x320], 0x20040\nsti\n"
        "mov dword ptr [rdi + 0x380], 37\nmov ecx, 600\n1: rdtsc\nimul rbx, rax\nadd rbx, rax\n"
        "test eax, 3\njz 2f\nxor ebx, 12345\n2: dec ecx\njnz 1b\n" + END
    )
    with same_sliced(code, {0x40: NOTE}) as m:
        assert m.registers()["r15"] > DATA + 8 * 50


@pytest.mark.parametrize("x2apic", [False, True])
def test_self_ipi_is_taken_at_the_next_instruction(x2apic: bool) -> None:
    if x2apic:
        start = (
            START + "mov ecx, 0x1b\nmov eax, 0xfee00d00\nxor edx, edx\nwrmsr\nmov ecx, 0x83f\nmov eax, 0x41\n"
        )
        send = "wrmsr\n"
    else:
        start, send = START, "mov dword ptr [rdi + 0x300], 0x44041\n"
    start += "sti\nnop\n"
    before = assemble(start + send)
    handler = X2APIC_NOTE if x2apic else NOTE
    with same_sliced(start + send + "nop\n" * 10 + END, {0x41: handler}) as m:
        assert noted(m, 2) == [CODE + len(before), 0]


def test_shadow_of_sti_holds_for_one_instruction() -> None:
    text = START + "mov dword ptr [rdi + 0x300], 0x44041\nsti\n"
    before = assemble(text)
    with same_sliced(text + "nop\n" * 10 + END, {0x41: NOTE}) as m:
        assert noted(m, 2) == [CODE + len(before) + 1, 0]


def test_shadow_of_mov_ss_holds_for_one_instruction() -> None:
    arm = START + TIMER + "mov eax, ss\nsti\nnop\nmov dword ptr [rdi + 0x380], 3\n"
    for text, shadow in (("nop\nmov ss, eax\n", 1), ("nop\nmov ds, eax\n", 0)):
        before = assemble(arm + text)
        with same_sliced(arm + text + "nop\n" * 10 + END, {0x40: NOTE}) as m:
            assert noted(m, 2) == [CODE + len(before) + shadow, 0]


def test_popf_has_no_shadow() -> None:
    text = START + "mov dword ptr [rdi + 0x300], 0x44041\npush 0x202\npopfq\n"
    before = assemble(text)
    with same_sliced(text + "nop\n" * 10 + END, {0x41: NOTE}) as m:
        assert noted(m, 2) == [CODE + len(before), 0]


def test_eoi_with_another_pending() -> None:
    start = START + "mov dword ptr [rdi + 0x300], 0x44041\nmov dword ptr [rdi + 0x300], 0x44061\nsti\n"
    nested = NOTE.replace("pop rax", "sti\nnop\nnop\nnop\ncli\npop rax")
    after_sti = assemble(nested.split("sti")[0] + "sti\nnop\n")
    main = CODE + len(assemble(start + "nop\n"))
    with same_sliced(start + "nop\n" * 8 + END, {0x41: NOTE, 0x61: nested}) as m:
        # 0x61 first; its EOI lets 0x41 in, after the shadow of its STI
        assert noted(m, 3) == [main, guest.HANDLERS + 0x400 + len(after_sti), 0]
    with same_sliced(start + "nop\n" * 8 + END, {0x41: NOTE, 0x61: NOTE}) as m:
        assert noted(m, 3) == [main, main, 0], "0x41 comes when 0x61 returns, before anything else runs"


def test_lowering_the_priority_lets_a_pending_one_in() -> None:
    start = (
        START
        + "mov eax, 7\nmov cr8, rax\nmov dword ptr [rdi + 0x300], 0x44041\nsti\nnop\nnop\nxor eax, eax\n"
    )
    before = assemble(start + "mov cr8, rax\n")
    with same_sliced(start + "mov cr8, rax\n" + "nop\n" * 8 + END, {0x41: NOTE}) as m:
        assert noted(m, 2) == [CODE + len(before), 0]


def test_halt_is_woken_at_the_deadline() -> None:
    code = START + TIMER + "mov dword ptr [rdi + 0x380], 1000\nsti\nhlt\nrdtsc\nmov [r15], rax\n" + END
    with same_sliced(code, {0x40: NOTE}) as m:
        after_hlt = CODE + len(assemble(code.split("rdtsc")[0]))
        # armed at tick 4; the handler has 8 instructions
        assert noted(m, 2) == [after_hlt, 1_004 + 8]
        # START, TIMER, arm, sti, hlt; the handler; rdtsc, mov, cli, hlt
        assert m.instructions == 4 + 3 + 8 + 4


# ---- accesses ------------------------------------------------------------------------------------


@dataclass
class Register:
    """A device whose reads have side effects: it hands out 0x11, 0x12, ... and remembers every access."""

    log: list[tuple[str, int, int, int, int]] = field(default_factory=list)
    handed_out: int = 0x10

    def attach(self, m: Machine, *, width: int = 8) -> None:
        m.bus.add(Region("mmio", MMIO, 0x1000, self.read, self.write, width))
        m.bus.add(Region("io", 0x500, 0x10, self.read, self.write, 4))

    def read(self, offset: int, size: int, now: int) -> int:
        self.handed_out += 1
        self.log.append(("read", offset, size, self.handed_out, now))
        return self.handed_out

    def write(self, offset: int, size: int, value: int, now: int) -> None:
        self.log.append(("write", offset, size, value, now))


Log = list[tuple[str, int, int, int, int]]


def access_log(
    code: str, handlers: Mapping[int, str] | None = None, *, unmapped: bool = False, seeds: range = SEEDS
) -> Log:
    """What the device saw, which must be the same for the whole run and for every slicing of it."""
    logs = []
    hashes = set()
    for seed in (None, *seeds):
        device = Register()
        with flat(code, handlers) as m:
            device.attach(m)
            if unmapped:  # 0x200000..0x3fffff is not present
                m.memory.write(PD + 8, bytes(8), by="test")
            if seed is None:
                stop = m.run(until=1_000_000)
            else:
                stop = run_sliced(m, seed, steps=(1, 2, 3, 5, 20), disturb=NO_TIME_TRAVEL)
            assert stop.kind is StopKind.DEADLOCK, f"seed {seed}: {stop}"
            logs.append(device.log)
            hashes.add(m.state_hash())
            assert device.log == logs[0], f"seed {seed}"
    assert len(hashes) == 1
    return logs[0]


def test_accesses_in_mid_block_happen_once_and_on_time() -> None:
    code = f"""
        mov edi, {MMIO}
        mov edx, 0x500
        nop
        mov eax, [rdi]
        mov ebx, [rdi + 4]
        nop
        mov [rdi + 8], eax
        mov [rdi + 12], bl
        in al, dx
        nop
        out dx, eax
        in ax, dx
        add eax, [rdi + 16]
        add [rdi + 20], eax
        mov rax, [rdi + 32]
        mov [rdi + 40], rax
        hlt
    """
    assert access_log(code) == [
        ("read", 0, 4, 0x11, 3), ("read", 4, 4, 0x12, 4), ("write", 8, 4, 0x11, 6), ("write", 12, 1, 0x12, 7),
        ("read", 0, 1, 0x13, 8), ("write", 0, 4, 0x13, 10), ("read", 0, 2, 0x14, 11),
        ("read", 16, 4, 0x15, 12), ("read", 20, 4, 0x16, 13), ("write", 20, 4, 0x14 + 0x15 + 0x16, 13),
        # the engine makes two halves of a quadword
        ("read", 32, 4, 0x17, 14), ("read", 36, 4, 0x18, 14),
        ("write", 40, 4, 0x17, 15), ("write", 44, 4, 0x18, 15),
    ]  # fmt: skip


def test_access_at_the_end_of_a_block() -> None:
    code = f"""
        mov edi, {MMIO}
        lea rax, [rip + 1f]
        call rax
        jmp 2f
    1:  mov eax, [rdi + 8]
        ret
    2:  push [rdi + 16]
        pop rcx
        cmp dword ptr [rdi + 24], 0x14
        jne 4f
        cmp byte ptr [rdi + 25], 0
    4:  hlt
    """
    assert access_log(code) == [
        ("read", 8, 4, 0x11, 3), ("read", 16, 4, 0x12, 6), ("read", 20, 4, 0x13, 6), ("read", 24, 4, 0x14, 8),
        ("read", 25, 1, 0x15, 10),
    ]  # fmt: skip


def test_wide_access_to_a_narrow_device_is_cut_once() -> None:
    device = Register()
    with flat(f"mov edi, {MMIO}\nnop\nmov rax, [rdi + 8]\nmov [rdi + 16], rax\nhlt") as m:
        device.attach(m, width=4)
        assert m.run(until=100).kind is StopKind.DEADLOCK
        assert m.registers()["rax"] == 0x12_00000011
    assert device.log == [
        ("read", 8, 4, 0x11, 2), ("read", 12, 4, 0x12, 2), ("write", 16, 4, 0x11, 3), ("write", 20, 4, 0x12, 3)
    ]  # fmt: skip


MAP_IT = f"""
    push rax
    mov rax, cr2
    mov qword ptr [{PD} + 8], 0x200087
    invlpg [rax]
    pop rax
    add rsp, 8
    iretq
"""
"""Page fault handler: map 0x200000..0x3fffff and try again."""


@pytest.mark.parametrize(
    ("instruction", "wanted"),
    [
        ("insb", ("read", 0, 1, 0x11)),
        ("insd", ("read", 0, 4, 0x11)),
        ("outsb", ("write", 0, 1, 0)),
        ("mov rdi, rsi\nmov al, [rdi]\nmov [rbx], al", ("write", 0, 1, 0)),
        ("mov edi, ebx\nmovsb", ("write", 0, 1, 0)),
        ("mov edi, ebx\nmov ecx, 1\nrep movsd", ("write", 0, 4, 0)),
    ],
)
def test_no_access_by_an_instruction_that_faults_first(
    instruction: str, wanted: tuple[str, int, int, int]
) -> None:
    code = (
        f"mov edi, 0x200800\nmov esi, 0x200800\nmov edx, 0x500\nmov ebx, {MMIO}\nnop\n{instruction}\nnop\nhlt"
    )
    log = access_log(code, {14: MAP_IT}, unmapped=True)
    assert [entry[:4] for entry in log] == [wanted]


@pytest.mark.parametrize("count", [1, 2, 7, 300])
def test_string_instructions_access_once_per_iteration(count: int) -> None:
    head = f"mov edi, {DATA}\nmov esi, {DATA}\nmov edx, 0x500\nmov ecx, {count}\nnop\n"
    ins = access_log(head + "rep insb\nnop\nhlt", seeds=range(3))
    assert ins == [("read", 0, 1, 0x11 + i, 5 + i) for i in range(count)]
    outs = access_log(head + "rep outsb\nnop\nhlt", seeds=range(3))
    assert outs == [("write", 0, 1, 0, 5 + i) for i in range(count)]
    head = f"mov edi, {DATA}\nmov esi, {MMIO}\nmov ecx, {count}\nnop\n"
    load = access_log(head + "rep movsb\nnop\nhlt", seeds=range(3))
    assert load == [("read", i, 1, 0x11 + i, 4 + i) for i in range(count)]
    store = access_log(
        head.replace("esi", "ebx") + f"mov edi, {MMIO}\nmov al, 7\nrep stosb\nhlt", seeds=range(3)
    )
    assert store == [("write", i, 1, 7, 6 + i) for i in range(count)]


def test_string_instruction_that_faults_in_the_middle() -> None:
    # 4 bytes below the page that is not there, 4 bytes in it
    code = "mov edi, 0x1ffffc\nmov edx, 0x500\nmov ecx, 8\nnop\nrep insb\nhlt"
    log = access_log(code, {14: MAP_IT}, unmapped=True)
    handler = 7
    assert log == [
        *(("read", 0, 1, 0x11 + i, 4 + i) for i in range(4)),
        *(("read", 0, 1, 0x15 + i, 8 + handler + i) for i in range(4)),
    ]


def test_string_instruction_is_interrupted_between_iterations() -> None:
    code = (
        START.replace("edi", "ebx") + "mov dword ptr [rbx + 0x3e0], 0xb\nmov dword ptr [rbx + 0x320], 0x40\n"
        f"sti\nmov edi, {DATA + 0x1000}\nmov edx, 0x500\nmov ecx, 20\n"
        "mov dword ptr [rbx + 0x380], 9\nrep insb\n" + END
    )
    log = access_log(code, {0x40: NOTE})
    # armed at tick 8, due at 17; the handler has 8 instructions
    assert [e[4] for e in log] == [*range(9, 17), *range(25, 37)]


# ---- probes --------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", SEEDS)
def test_breakpoint_on_an_access(seed: int) -> None:
    text = f"mov edi, {MMIO}\nmov edx, 0x500\nnop\n"
    accesses = [
        "mov eax, [rdi]\n",
        "in al, dx\n",
        "out dx, al\n",
        "mov [rdi], eax\n",
        "insb\n",
        "mov eax, [rbx]\n",
    ]
    text = text.replace("nop", f"mov ebx, {MMIO}\nmov ecx, {DATA}\nnop")
    stops = []
    for access in accesses:
        stops.append(CODE + len(assemble(text)))
        text += ("mov rdi, rcx\n" if access == "insb\n" else "") + access + "nop\n"
        if access == "insb\n":
            stops[-1] += 3
    device, plain = Register(), Register()
    with flat(text + "hlt") as whole:
        plain.attach(whole)
        whole.run(until=10_000)
        wanted = whole.state_hash()
    with flat(text + "hlt") as m:
        device.attach(m)
        for i, at in enumerate(stops):
            m.probe(at, lambda m, address: True)
            stop = run_sliced(m, seed, steps=(1, 2, 50), disturb=NO_TIME_TRAVEL)
            assert (stop.kind, stop.rip) == (StopKind.BREAKPOINT, at), f"seed {seed}"
            assert len(device.log) == i, "nothing has happened yet"
            NO_TIME_TRAVEL[seed % len(NO_TIME_TRAVEL)](m, random.Random(seed))
        stop = run_sliced(m, seed, disturb=NO_TIME_TRAVEL)
        assert stop.kind is StopKind.DEADLOCK
        assert device.log == plain.log
        assert len(device.log) == len(accesses)
        assert m.state_hash() == wanted


def test_probe_sees_each_execution_once() -> None:
    code = f"mov ecx, 50\nmov edi, {MMIO}\n1: nop\nmov eax, [rdi]\nadd ebx, eax\nnop\ndec ecx\njnz 1b\nhlt"
    loop = CODE + len(assemble(f"mov ecx, 50\nmov edi, {MMIO}\n"))
    addresses = [loop, loop + 1, loop + 3, loop + 5, loop + 6, loop + 8]
    plain = Register()
    with flat(code) as whole:
        plain.attach(whole)
        whole.run(until=10_000)
        wanted = whole.state_hash()
    for seed in SEEDS:
        device = Register()
        seen: list[tuple[int, int, int]] = []

        def note(m: Machine, address: int, seen: list[tuple[int, int, int]] = seen) -> None:
            r = m.registers()
            seen.append((address, r["rcx"], r["rip"]))

        with flat(code) as m:
            device.attach(m)
            for at in addresses:
                m.probe(at, note)
            run_sliced(m, seed, steps=(1, 2, 50), disturb=NO_TIME_TRAVEL)
            assert seen == [
                (at, 50 - i - (at == addresses[-1]), at) for i in range(50) for at in addresses
            ], f"seed {seed}"
            assert device.log == plain.log
            assert m.state_hash() == wanted


def test_probe_of_a_repeated_instruction_sees_each_iteration() -> None:
    code = f"mov edi, {DATA}\nmov ecx, 9\nmov al, 5\nrep stosb\nhlt"
    at = CODE + len(assemble(code.split("rep")[0]))
    for seed in SEEDS:
        seen: list[int] = []
        with flat(code) as m:
            m.probe(at, lambda m, address, seen=seen: seen.append(m.registers()["rcx"]))  # type: ignore[misc]
            run_sliced(m, seed, steps=(1, 2, 50))
            # a slice may end between two iterations; the instruction then begins again
            assert seen[0] == 9 and set(seen) <= set(range(10)), f"seed {seed}: {seen}"
            assert m.instructions == 3 + 9 + 1 + 1, "one more, which finds the count to be zero"


def test_registers_in_a_probe_are_those_of_now() -> None:
    """However often they were looked at before: after a change, at the next address, after a way back."""
    code = "mov ecx, 3\n1: nop\nadd ebx, ecx\nloop 1b\nhlt"
    at = [CODE + len(assemble("mov ecx, 3\n")), CODE + len(assemble("mov ecx, 3\nnop\nadd ebx, ecx\n"))]
    seen: list[tuple[int, int]] = []

    def look(m: Machine, address: int) -> None:
        first = m.registers()["rbx"]
        m.cpus[0].set_registers(rbx=first + 100)
        seen.append((first, m.registers()["rbx"]))

    with flat(code) as m:
        start = m.snapshot()
        for address in at:
            m.probe(address, look)
        m.run(until=1000)
        assert [first for first, _ in seen] == [0, 103, 203, 305, 405, 506]
        assert all(then == first + 100 for first, then in seen)
        assert m.registers()["rbx"] == 606
        m.restore(start)
        assert m.registers()["rbx"] == 0


def test_probe_may_add_and_remove_probes() -> None:
    code = "mov ecx, 20\n1: nop\nnop\ndec ecx\njnz 1b\nhlt"
    loop = CODE + len(assemble("mov ecx, 20"))
    seen: list[tuple[str, int]] = []

    with flat(code) as m:

        def second(m: Machine, address: int) -> None:
            seen.append(("second", m.registers()["rcx"]))
            m.unprobe(address, second)

        def first(m: Machine, address: int) -> None:
            seen.append(("first", m.registers()["rcx"]))
            if m.registers()["rcx"] % 5 == 0:
                m.probe(loop + 1, second)

        m.probe(loop, first)
        stop = m.run(until=1000)
        assert stop.kind is StopKind.DEADLOCK
        assert stop.instructions == 1 + 20 * 4 + 1
    assert [n for what, n in seen if what == "first"] == list(range(20, 0, -1))
    assert [n for what, n in seen if what == "second"] == [20, 15, 10, 5]


def test_stop_from_a_device_takes_effect_at_the_next_instruction() -> None:
    for instruction in (f"mov eax, [{MMIO}]", "in al, dx", "out dx, al"):
        text = f"mov edi, {MMIO}\nmov edx, 0x500\nnop\n" + instruction.replace(f"[{MMIO}]", "[rdi]") + "\n"
        after = CODE + len(assemble(text))
        with flat(text + "nop\n" * 10 + "hlt") as m:
            stop_now = m.stop

            def read(offset: int, size: int, now: int, end: Callable[[], None] = stop_now) -> int:
                end()
                return 0

            def write(
                offset: int, size: int, value: int, now: int, end: Callable[[], None] = stop_now
            ) -> None:
                end()

            m.bus.add(Region("mmio", MMIO, 8, read, write))
            m.bus.add(Region("io", 0x500, 8, read, write))
            stop = m.run(until=1000)
            assert (stop.kind, stop.rip, stop.ticks) == (StopKind.REQUEST, after, 4)
            assert m.run(until=1000).kind is StopKind.DEADLOCK
            assert m.ticks == 15


def test_exception_in_a_device_is_raised_after_the_run() -> None:
    def fail(offset: int, size: int, now: int) -> int:
        raise ZeroDivisionError("from the device")

    with flat(f"mov edi, {MMIO}\nmov eax, [rdi]\nnop\nhlt") as m:
        m.bus.add(Region("mmio", MMIO, 8, fail, lambda o, s, v, n: None))
        with pytest.raises(ZeroDivisionError, match="from the device"):
            m.run(until=1000)
        assert m.run(until=1000).kind is StopKind.DEADLOCK, "the machine can go on"
