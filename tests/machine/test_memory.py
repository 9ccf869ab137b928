"""Guest memory: sparse, read-only to the host but for one door, and code in it is never stale."""

from __future__ import annotations

import json
import random
import struct
import subprocess
import sys

import numpy as np
import pytest

from emu.errors import AddressError, ConfigError
from emu.machine import Machine, StopKind
from kernels.build import project_root
from tests.machine.guest import CODE, DATA, PD, RAM, assemble, flat, run_sliced

RSS = """
import json, sys
from emu.machine import Machine
from tests.machine.guest import put
def rss():
    with open("/proc/self/status") as f:
        return next(int(l.split()[1]) for l in f if l.startswith("VmRSS")) << 10
with Machine(2 << 20) as m:
    m.run(until=1)
before = rss()
out = {}
for gib in map(int, sys.argv[1:]):
    m = Machine(gib << 30)
    put(m, "mov edi, 0x100000\\nmov ecx, 64\\n1: mov [rdi], ecx\\nadd rdi, 4096\\nloop 1b\\nhlt")
    stop = m.run(until=10_000)
    m.memory.write((gib << 30) + (2 << 30) - 4096, b"the last page", by="test")
    m.state_hash()
    m.restore(m.snapshot())
    out[gib] = rss() - before
    m.close()
print(json.dumps(out))
"""


def test_large_machines_cost_what_they_touch() -> None:
    """64 GiB and the largest, 1 TiB, in one process of a host that has far less."""
    run = subprocess.run(
        [sys.executable, "-c", RSS, "64", "1024"],
        cwd=project_root(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    cost = json.loads(run.stdout)
    assert cost["64"] < 96 << 20, cost  # the engine alone takes tens of MiB
    assert cost["1024"] < 600 << 20, cost  # and a byte of bookkeeping per page


@pytest.mark.parametrize("size", [0, 1, 4096, (1 << 20) + 4096, -(1 << 20), (1 << 40) + (1 << 20)])
def test_impossible_sizes(size: int) -> None:
    with pytest.raises(ConfigError):
        Machine(size)


def test_views_are_read_only() -> None:
    with Machine(2 << 20) as m:
        for view in (m.memory.read(0x1000, 16), m.memory.view, m.memory.view[5:9]):
            with pytest.raises(ValueError, match="read-only"):
                view[0] = 1
        with pytest.raises(ValueError, match="WRITEABLE"):
            m.memory.read(0, 4096).flags.writeable = True


def test_views_outlive_the_machine() -> None:
    m = Machine(2 << 20)
    m.memory.write(0x5000, b"still here", by="test")
    view = m.memory.read(0x5000, 10)
    m.close()
    assert view.tobytes() == b"still here"


@pytest.mark.parametrize(
    ("phys", "size"),
    [(0xA0000, 1), (0x9FFFF, 2), (0xBFFFF, 1), (0x80000000, 1), (0x7FFFFFFF, 2), (0xFFFFFFFF, 1), (0xFFFFFFFF, 2),
     (0x1FFFFFFFF, 2), (0x200000000, 1), (-1, 1), (1 << 64, 1)],
)  # fmt: skip
def test_outside_ram(phys: int, size: int) -> None:
    with Machine(6 << 30) as m:
        before = m.state_hash()
        with pytest.raises(AddressError):
            m.memory.read(phys, size)
        with pytest.raises(AddressError):
            m.memory.write(phys, b"x" * size, by="test")
        assert m.state_hash() == before, "no partial effect"


def test_edges_of_ram() -> None:
    with Machine(6 << 30) as m:
        for phys, size in (
            (0x9FFFF, 1),
            (0xC0000, 1),
            (0x7FFFF000, 4096),
            (0x100000000, 1),
            (0x1FFFFFFFF, 1),
        ):
            m.memory.write(phys, b"\x5a" * size, by="test")
            assert (m.memory.read(phys, size) == 0x5A).all()
        assert m.memory.ranges == [(0, 0xA0000), (0xC0000, 0x80000000), (0x100000000, 0x200000000)]
        assert m.memory.populated() == [
            (0x9F000, 0xA0000), (0xC0000, 0xC1000), (0x7FFFF000, 0x80000000), (0x100000000, 0x100001000),
            (0x1FFFFF000, 0x200000000),
        ]  # fmt: skip


def test_guest_and_host_see_one_memory() -> None:
    with flat(f"mov edi, {DATA}\nmov rax, 0x1122334455667788\nmov [rdi], rax\nmov rbx, [rdi + 8]\nhlt") as m:
        view = m.memory.read(DATA, 16)
        m.run(until=3)
        assert view[:8].tobytes() == struct.pack("<Q", 0x1122334455667788)
        m.memory.write(DATA + 8, struct.pack("<Q", 99), by="test")
        m.run(until=100)
        assert m.registers()["rbx"] == 99


def test_memory_above_4_gib() -> None:
    with flat("mov rdi, 0x140000000\nmov rax, [rdi]\ninc rax\nmov [rdi + 8], rax\nhlt", memory=6 << 30) as m:
        m.memory.write(0x5020, struct.pack("<QQ", 4 << 30 | 0x87, 5 << 30 | 0x87), by="test")
        m.memory.write(0x140000000, struct.pack("<Q", 41), by="test")
        assert m.run(until=100).kind is StopKind.DEADLOCK
        assert m.memory.read(0x140000008, 1)[0] == 42
        assert (0x140000000 - (1 << 32) + (2 << 30)) >> 12 in m.memory.dirty()


def test_observers_are_told_who_wrote() -> None:
    with Machine(2 << 20) as m:
        seen: list[tuple[int, int, str]] = []
        m.memory.observers.append(lambda phys, size, by: seen.append((phys, size, by)))
        m.memory.write(0x1234, b"abc", by="dma:nic0")
        m.memory.write(0x3000, bytearray(5000), by="loader")
        m.memory.write(0x4000, np.zeros(7, np.uint8), by="x")
        m.memory.write(0x4000, memoryview(b""), by="empty")
        assert seen[:3] == [(0x1234, 3, "dma:nic0"), (0x3000, 5000, "loader"), (0x4000, 7, "x")]
        with pytest.raises(AddressError):
            m.memory.write(0xA0000, b"x", by="nobody")
        assert all(by != "nobody" for _, _, by in seen)


def test_dirty_pages() -> None:
    with flat(f"mov edi, {DATA}\nmov [rdi], edi\nmov [rdi + 0x1ffe], edi\nmov eax, [rdi + 0x5000]\nhlt") as m:
        m.run(until=0)
        m.memory.take_dirty()
        m.run(until=100)
        assert {p for p in m.memory.take_dirty() if p >= DATA >> 12} == {0x100, 0x101, 0x102}
        assert m.memory.take_dirty() == []


def test_each_drain_notices_the_next_store_again() -> None:
    with flat(f"mov edi, {DATA}\n1: inc ecx\nmov [rdi], ecx\njmp 1b") as m:
        for _ in range(20):
            m.run(until=m.ticks + 3)
            assert DATA >> 12 in m.memory.take_dirty()


# ---- code ----------------------------------------------------------------------------------------

LOOP = "1: mov eax, 1\nadd ebx, eax\njmp 1b"
ALIAS = 1 << 30
"""Where `map_alias` puts the low 2 MiB again."""


def map_alias(m: Machine) -> None:
    m.memory.write(0x7000, struct.pack("<Q", 0x87), by="test")
    m.memory.write(0x5008, struct.pack("<Q", 0x7007), by="test")
    m.cpus[0].flush_tlb()


def test_host_writes_over_executed_code() -> None:
    with flat(LOOP) as m:
        m.run(until=3000)
        total = m.registers()["rbx"]
        for value in (2, 3, 250):
            m.memory.write(CODE + 1, bytes([value]), by="test")
            m.run(until=m.ticks + 300)
            total += 100 * value
            assert m.registers()["rbx"] == total


def test_host_writes_from_a_probe_over_the_running_code() -> None:
    text = "mov ecx, 50\n1: nop\nmov eax, 1\nadd ebx, eax\ndec ecx\njnz 1b\nhlt"
    at = CODE + len(assemble("mov ecx, 50\n1: nop\n"))

    def change(m: Machine, address: int) -> None:
        m.memory.write(at + 1, bytes([m.registers()["rcx"]]), by="test")

    with flat(text) as m:
        m.probe(at, change)
        assert m.run(until=1000).kind is StopKind.DEADLOCK
        assert m.registers()["rbx"] == sum(range(51))


@pytest.mark.parametrize("alias", [0, ALIAS])
@pytest.mark.parametrize("distance", ["same block", "same page", "another page", "next instruction"])
def test_code_that_the_guest_changes(alias: int, distance: str) -> None:
    """By the mapping it runs from and by another; the function adds 1, then what was stored."""
    if distance == "next instruction":
        text = "mov ecx, 60\n1: lea rdi, [rip + 2f]\nadd rdi, r8\nmov byte ptr [rdi + 1], cl\n2: mov al, 0\nmovzx eax, al\nadd rbx, rax\nloop 1b\nhlt"
    elif distance == "same block":
        text = "mov ecx, 60\n1: lea rdi, [rip + 2f]\nadd rdi, r8\nmov byte ptr [rdi + 1], cl\nnop\nnop\n2: mov al, 0\nmovzx eax, al\nadd rbx, rax\nloop 1b\nhlt"
    else:
        gap = ".skip 5000, 0x90\n" if distance == "another page" else ""
        text = f"mov ecx, 60\n1: lea rdi, [rip + 2f]\nlea rsi, [rdi]\nadd rdi, r8\nmov byte ptr [rdi + 1], cl\ncall rsi\nadd rbx, rax\nloop 1b\nhlt\n{gap}2: mov al, 0\nmovzx eax, al\nret"
    ends = []
    for seed in (None, 1, 2, 3):
        with flat(text) as m:
            map_alias(m)
            m.cpus[0].set_registers(r8=alias)
            if seed is None:
                stop = m.run(until=10_000)
            else:
                stop = run_sliced(m, seed, steps=(1, 2, 5, 40))
            assert stop.kind is StopKind.DEADLOCK
            assert m.registers()["rbx"] == sum(range(61)), f"seed {seed}"
            ends.append((stop, m.state_hash()))
    assert len(set(ends)) == 1


def test_string_store_over_code() -> None:
    """REP STOSB over a function, by an alias, then run it; and over its own code."""
    text = (
        "lea rsi, [rip + 2f]\ncall rsi\nlea rdi, [rsi + 0x40000000]\nmov ecx, 16\nmov al, 0x90\nrep stosb\n"
        "mov eax, 7\ncall rsi\nhlt\n.balign 16\n2: mov eax, 1\nmov ebx, eax\nret\n.skip 40, 0xc3"
    )
    with flat(text) as m:
        map_alias(m)
        assert m.run(until=1000).kind is StopKind.DEADLOCK
        assert (m.registers()["rbx"], m.registers()["rax"]) == (1, 7)


def test_code_across_two_pages_is_changed_in_either() -> None:
    text = "mov ecx, 10\nmov edx, 0x10ffe\n1: call rdx\nadd rbx, rax\ninc byte ptr [0x10fff]\ninc byte ptr [0x11001]\nloop 1b\nhlt"
    with flat(text) as m:
        m.memory.write(0x10FFE, assemble("mov eax, 0x00010001\nret"), by="test")
        assert m.run(until=1000).kind is StopKind.DEADLOCK
        assert m.registers()["rbx"] == sum((0x10001 + 0x10001 * i) for i in range(10))


def test_page_tables_that_change_under_code() -> None:
    """Another frame is mapped where code ran: what runs then is the new frame's."""
    text = (
        "mov eax, 0x200000\ncall rax\nmov r8, rbx\n"
        f"mov qword ptr [{PD + 8}], 0x87\nmov eax, 0x200000 + 0x30000\ninvlpg [rax]\ncall rax\nhlt"
    )
    with flat(text) as m:
        m.memory.write(0x200000, assemble("mov ebx, 1\nret"), by="test")
        m.memory.write(0x30000, assemble("mov ebx, 2\nret"), by="test")
        assert m.run(until=1000).kind is StopKind.DEADLOCK
        assert (m.registers()["r8"], m.registers()["rbx"]) == (1, 2)


@pytest.mark.parametrize("seed", range(8))
def test_random_code_changes_equal_a_model(seed: int) -> None:
    """Functions in random places are rewritten by the host or by the guest, through either mapping; a
    model in Python says what each call returns."""
    rng = random.Random(seed)
    text = "1: mov [rdi], rax\nmov [rdi + 8], rdx\ncall rsi\nhlt\njmp 1b"
    with flat(text, memory=RAM) as m:
        map_alias(m)
        # mov eax, imm32; ret; then padding to 16 bytes
        places = [0x80000 + rng.randint(0, 3) * 4096 + rng.randint(0, 255) * 16 for _ in range(12)]
        values: dict[int, int] = {}
        for i in range(150):
            place = rng.choice(places)
            value = rng.getrandbits(31)
            body = (b"\xb8" + struct.pack("<I", value) + b"\xc3").ljust(16, b"\x90")
            low, high = struct.unpack("<QQ", body)
            target = place
            if rng.random() < 0.4:
                m.memory.write(place, body, by="test")
                target, low, high = DATA, 0, 0
            values[place] = value
            called = rng.choice(list(values))
            m.cpus[0].set_registers(
                rip=CODE, halted=0, rsp=0x9000, rax=low, rdx=high, rdi=target + rng.choice([0, ALIAS]),
                rsi=called + rng.choice([0, ALIAS]),
            )  # fmt: skip
            assert m.run(until=m.ticks + 100).kind is StopKind.DEADLOCK
            assert m.registers()["rax"] == values[called], f"seed {seed}, step {i}"
            if rng.random() < 0.2:
                m.restore(m.snapshot())


def test_a_write_of_nothing_at_the_end_of_memory() -> None:
    with Machine(2 << 20) as m:
        before = m.state_hash()
        m.memory.write(2 << 20, b"", by="test")
        assert m.state_hash() == before and m.memory.dirty() == []
        with pytest.raises(AddressError):
            m.memory.write(2 << 20, b"x", by="test")
