"""Retired instructions are counted exactly, and a run stops at exactly the count that was asked for."""

from __future__ import annotations

import pytest

from emu.machine import Machine, StopKind
from tests.machine.guest import CODE, DATA, PD, USER_CODE, USER_DATA, flat, run_sliced, selftest

IRET = "iretq"
SKIP2 = "add qword ptr [rsp], 2\niretq"
SKIP2_ERROR = "add rsp, 8\nadd qword ptr [rsp], 2\niretq"

USER = f"""
    push {USER_DATA}
    push 0x8000
    push 0x3002
    push {USER_CODE}
    lea rax, [rip + 8f]
    push rax
    iretq
8:
"""
"""Seven instructions that go to ring 3 with IOPL 3."""

# A REP whose count runs out ends with one more step, the one that finds it to be zero. QEMU counts it too.
EXHAUSTED = 1

KNOWN = {
    "halt": ("hlt", {}, 1),
    "straight line": ("nop\n" * 1000 + "hlt", {}, 1001),
    "loop": ("mov ecx, 1000\n1: dec ecx\njnz 1b\nhlt", {}, 1 + 2000 + 1),
    "LOOP instruction": ("mov ecx, 100\n1: loop 1b\nhlt", {}, 1 + 100 + 1),
    "call and return": ("call 1f\nhlt\n1: ret", {}, 3),
    "jump over": ("jmp 1f\nnop\nnop\n1: hlt", {}, 2),
    "rep stosb": (f"mov edi, {DATA}\nmov ecx, 777\nrep stosb\nhlt", {}, 2 + 777 + EXHAUSTED + 1),
    "rep movsq": (f"mov edi, {DATA}\nmov esi, edi\nmov ecx, 77\nrep movsq\nhlt", {}, 3 + 77 + EXHAUSTED + 1),
    "rep lodsd": (f"mov esi, {DATA}\nmov ecx, 5\nrep lodsd\nhlt", {}, 2 + 5 + EXHAUSTED + 1),
    "repe cmpsb ends early": (
        f"mov edi, {DATA}\nlea rsi, [rdi + 256]\nmov byte ptr [rsi + 4], 1\nmov ecx, 100\nrepe cmpsb\nhlt",
        {}, 4 + 5 + 1,
    ),
    "repne scasb": (f"mov edi, {DATA}\nmov al, 1\nmov ecx, 9\nrepne scasb\nhlt", {}, 3 + 9 + EXHAUSTED + 1),
    "rep with zero count": (f"mov edi, {DATA}\nxor ecx, ecx\nrep stosb\nhlt", {}, 2 + 1 + 1),
    "INT n": ("int 0x80\nint 0x80\nhlt", {0x80: IRET}, 2 * 2 + 1),
    "INT3": ("nop\nint3\nnop\nhlt", {3: "nop\niretq"}, 6),
    "invalid instruction": ("nop\nud2\nnop\nhlt", {6: SKIP2}, 1 + 2 + 2),
    "division by zero": ("xor ecx, ecx\nnop\ndiv ecx\nnop\nhlt", {0: SKIP2}, 2 + 2 + 2),
    "general protection": ("mov eax, 0x1234\nmov ds, eax\nnop\nhlt", {13: SKIP2_ERROR}, 1 + 3 + 2),
    "page fault in mid-block": (
        "nop\nmov eax, 0x200000\nnop\nmov [rax], ebx\nnop\nhlt", {14: SKIP2_ERROR}, 3 + 3 + 2
    ),
    "page fault at a fetch": (
        "mov eax, 0x200000\ncall rax\nnop\nhlt", {14: "mov rsp, [rsp + 32]\nret"}, 2 + 2 + 2
    ),
    "fault in the middle of REP": (
        "mov edi, 0x1ffff8\nmov ecx, 16\nrep stosb\nnop\nhlt", {14: SKIP2_ERROR}, 2 + 8 + 3 + 2
    ),
    "syscall and sysret": (
        "mov ecx, 0xc0000081\nxor eax, eax\nmov edx, 0x100008\nwrmsr\n"
        "mov ecx, 0xc0000082\nlea rax, [rip + 1f]\nxor edx, edx\nwrmsr\n"
        "mov ecx, 0xc0000080\nrdmsr\nor eax, 1\nwrmsr\n" + USER + "nop\nsyscall\nint 0x81\n"
        "1: sysretq",
        {0x81: "hlt"}, 12 + 7 + 2 + 1 + 1 + 1,
    ),
    "ring 3 and back": (USER + "nop\nint 0x80\nnop\nint 0x81", {0x80: IRET, 0x81: "hlt"}, 7 + 4 + 2),
    "privileged in ring 3": (USER + "nop\nwbinvd\nnop\nint 0x81", {13: SKIP2_ERROR, 0x81: "hlt"}, 7 + 1 + 3 + 3),
    "pause": ("pause\npause\nnop\nhlt", {}, 4),
    "cpuid": ("xor eax, eax\ncpuid\nxor eax, eax\ncpuid\nhlt", {}, 5),
    "control registers": (
        "mov rax, cr3\nmov cr3, rax\nmov rax, cr0\nmov cr0, rax\ninvlpg [rax]\nhlt", {}, 6
    ),
    "x87 and SSE": ("fninit\nfld1\nfld1\nfaddp\nfstp st(0)\nmovups xmm0, xmm1\naddps xmm0, xmm1\nhlt", {}, 8),
    "code that changes itself": (
        "lea rdi, [rip + 1f]\nmov byte ptr [rdi + 1], 5\nnop\n1: mov al, 1\nnop\nhlt", {}, 6
    ),
    "unaligned and across pages": (
        f"mov edi, {DATA + 0xFFE}\nmov dword ptr [rdi], 1\nmov rax, [rdi]\nhlt", {}, 4
    ),
    "lock": (f"mov edi, {DATA}\nlock inc dword ptr [rdi]\nlock xadd [rdi], eax\nxchg [rdi], eax\nhlt", {}, 5),
    "across a page": (".skip 4094, 0x90\nmov eax, 12345\nnop\nhlt", {}, 4094 + 3),
    "single step": (
        "push 0x102\npopfq\nnop\nnop\nmov ecx, 2\npush 2\npopfq\nhlt",
        {1: "inc r8\nand qword ptr [rsp + 16], ~0x100\ncmp r8, 3\nje 1f\nor qword ptr [rsp + 16], 0x100\n1: iretq"},
        # trapped after: nop, nop, mov; the handler takes 6, 6 and 5
        2 + 3 + 6 + 6 + 5 + 3,
    ),
}  # fmt: skip


def ready(name: str) -> Machine:
    code, handlers, _ = KNOWN[name]
    assert isinstance(code, str) and isinstance(handlers, dict)
    m = flat(code, handlers)
    m.memory.write(PD + 8, bytes(8), by="test")  # nothing at 0x200000
    return m


@pytest.mark.parametrize("name", KNOWN)
def test_known_count(name: str) -> None:
    """Whole, sliced, and stopped at every single count."""
    with ready(name) as m:
        stop = m.run(until=1_000_000)
        assert stop.kind is StopKind.DEADLOCK, stop
        assert stop.instructions == stop.ticks == KNOWN[name][2]
        wanted = m.state_hash()
    for seed in range(4):
        with ready(name) as m:
            assert run_sliced(m, seed, steps=(1, 2, 3, 20)) == stop, f"seed {seed}"
            assert m.state_hash() == wanted, f"seed {seed}"


@pytest.mark.parametrize(
    "name", ["loop", "fault in the middle of REP", "syscall and sysret", "straight line"]
)
def test_stops_at_any_count(name: str) -> None:
    """`until=n` on a fresh machine ends at n with the same state as single steps give."""
    total = min(int(str(KNOWN[name][2])), 120)
    with ready(name) as stepped:
        first = stepped.snapshot()
        hashes = []
        for n in range(total):
            assert stepped.ticks == n
            hashes.append(stepped.state_hash())
            stepped.step()
        for n in range(1, total):
            stepped.restore(first)
            stop = stepped.run(until=n)
            assert (stop.kind, stop.ticks, stop.instructions) == (StopKind.UNTIL, n, n)
            assert stepped.state_hash() == hashes[n], n
            with ready(name) as fresh:
                fresh.run(until=n)
                assert fresh.state_hash() == hashes[n], n


def test_stops_at_any_count_of_a_large_guest() -> None:
    """In the middle of initialisation, interrupts and faults."""
    with selftest("only=cpu,fault,lapic") as m:
        m.run(until=1_000_000)
        here = m.snapshot()
        for n in [*range(1, 120), *range(1_000, 200_000, 7_919)]:
            m.restore(here)
            stop = m.run(until=1_000_000 + n)
            assert (stop.kind, m.ticks) == (StopKind.UNTIL, 1_000_000 + n)


def test_single_steps_reach_the_same_state() -> None:
    with selftest("only=cpu") as whole, selftest("only=cpu") as stepped:
        for m in (whole, stepped):
            m.run(until=170_000)
        whole.run(until=176_000)
        while stepped.ticks < 176_000:
            before = stepped.instructions
            assert stepped.step().kind is StopKind.UNTIL
            assert stepped.instructions == before + 1
        assert stepped.state_hash() == whole.state_hash()


def test_step_passes_over_a_halt() -> None:
    """A step is an instruction, not a tick: time that passes while halted is not one."""
    code = (
        "mov edi, 0xfee00000\nmov dword ptr [rdi + 0x3e0], 0xb\nmov dword ptr [rdi + 0x320], 0x40\n"
        "mov dword ptr [rdi + 0x380], 1000\nsti\nhlt\nnop\ncli\nhlt"
    )
    with flat(code, {0x40: "iretq"}) as m:
        at = []
        while m.step().kind is StopKind.UNTIL:
            at.append((m.registers()["rip"], m.instructions, m.ticks))
        assert [i for _, i, _ in at][:6] == [1, 2, 3, 4, 5, 6]
        assert m.instructions == 6 + 1 + 3
        assert m.ticks == 3 + 1000 + 1 + 3


def test_until_in_the_past_does_nothing() -> None:
    with flat("nop\n" * 10 + "hlt") as m:
        m.run(until=5)
        before = m.state_hash()
        for until in (0, 4, 5):
            stop = m.run(until=until)
            assert (stop.kind, stop.ticks, stop.rip) == (StopKind.UNTIL, 5, CODE + 5)
        assert m.state_hash() == before


def test_budget_counts_instructions_not_ticks() -> None:
    code = (
        "mov edi, 0xfee00000\nmov dword ptr [rdi + 0x3e0], 0xb\nmov dword ptr [rdi + 0x320], 0x40\n"
        "mov dword ptr [rdi + 0x380], 5000\nsti\nhlt\n1: jmp 1b"
    )
    with flat(code, {0x40: "iretq"}) as m:
        for budget in (3, 6, 7, 50):
            stop = m.run(max_instructions=budget)
            assert (stop.kind, stop.instructions) == (StopKind.BUDGET, budget)
        assert m.ticks > 5000
