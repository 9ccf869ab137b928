"""Several machines in one process, and several processors on one memory."""

from __future__ import annotations

import random
import subprocess
import sys
import threading
from collections.abc import Callable
from typing import Any

from emu.cpu import ClockHeader, Cpu, Reason, Wiring
from emu.engine import library
from emu.machine import Machine, StopKind
from emu.memory import Memory
from emu.selfcheck import write_flat_guest
from kernels.build import project_root
from tests.machine.guest import assemble, flat, selftest

NEVER = (1 << 64) - 1


def alone(cmdline: str, ticks: list[int]) -> list[str]:
    with selftest(cmdline) as m:
        out = []
        for tick in ticks:
            m.run(until=tick)
            out.append(m.state_hash())
    return out


def test_two_machines_interleaved_are_as_alone() -> None:
    ticks = [200_000 * i for i in range(1, 9)]
    wanted = {what: alone(what, ticks) for what in ("do=ticks", "do=pagetables")}
    rng = random.Random(1)
    machines = {what: selftest(what) for what in wanted}
    for i, tick in enumerate(ticks):
        while any(m.ticks < tick for m in machines.values()):
            m = rng.choice(list(machines.values()))
            m.run(until=min(tick, m.ticks + rng.randint(1, 30_000)))
        for what, m in machines.items():
            assert m.state_hash() == wanted[what][i], (what, tick)
    for m in machines.values():
        m.close()


def test_two_machines_in_two_threads_are_as_alone() -> None:
    """Each machine in one thread at a time."""
    ticks = [1_000_000]
    wanted = alone("do=ticks", ticks)
    found: list[list[str]] = []

    def work() -> None:
        found.append(alone("do=ticks", ticks))

    threads = [threading.Thread(target=work) for _ in range(2)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert found == [wanted, wanted]


FIRST = """
import threading
from emu import Machine
failed = []
def make():
    try:
        with Machine(2 << 20) as m:
            m.run(until=1)
    except BaseException as e:
        failed.append(repr(e))
threads = [threading.Thread(target=make) for _ in range(4)]
for t in threads: t.start()
for t in threads: t.join()
print(failed)
"""


def test_the_first_machines_may_be_made_at_once() -> None:
    run = subprocess.run(
        [sys.executable, "-W", "error", "-c", FIRST],
        cwd=project_root(), capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (run.stdout, run.stderr) == ("[]\n", ""), run


def test_a_machine_inside_an_observer_of_another() -> None:
    with selftest("do=ticks") as m:
        m.run(until=300_000)
        wanted = m.state_hash()
        address = m.registers()["rip"]
    inner = 0

    def run_another(m: Machine, at: int) -> None:
        nonlocal inner
        with flat("mov ecx, 9\n1: loop 1b\nhlt") as other:
            assert other.run(until=1000).instructions == 11
            inner += 1
        m.unprobe(at, run_another)

    with selftest("do=ticks") as m:
        m.run(until=250_000)
        m.probe(address, run_another)
        m.run(until=300_000)
        assert m.state_hash() == wanted
    assert inner <= 1


def test_machines_come_and_go() -> None:
    for i in range(60):
        with flat(f"mov eax, {i}\nhlt") as m:
            assert m.run(until=10).kind is StopKind.DEADLOCK
            assert m.registers()["rax"] == i
            m.close()
            m.close()


def wiring() -> Wiring:
    def nothing(*_: Any) -> int:
        return 0

    def none(*_: Any) -> None:
        return None

    unsigned: Callable[..., int] = nothing
    return Wiring(
        io_read=unsigned, io_write=none, mmio_read=unsigned, mmio_write=none, events=none, acknowledge=none,
        msr_read=lambda m, n: 0, msr_write=lambda m, v, n: True, cr8_read=lambda: 0, cr8_write=none,
        probe=lambda p, n: False, user=none,
    )  # fmt: skip


class Pair:
    """Two processors on one memory, with one clock."""

    def __init__(self, text: str) -> None:
        lib = library()
        self.memory = Memory(4 << 20, lib.core)
        self.clock = ClockHeader(ticks=0, skipped=0, deadline=NEVER)
        self.cpus = [Cpu(lib, self.memory, self.clock, wiring(), i) for i in range(2)]
        for i, cpu in enumerate(self.cpus):
            write_flat_guest(self.memory, cpu, 0x10000, 0x9000 - 0x400 * i)
        self.memory.write(0x10000, assemble(text), by="test")

    def run(self, which: int, ticks: int) -> Reason:
        return self.cpus[which].run(int(self.clock.ticks) + ticks)

    def close(self) -> None:
        for cpu in self.cpus:
            cpu.close()
        self.memory.close()


def test_two_engines_on_one_memory_share_data_and_time() -> None:
    pair = Pair("mov edi, 0x100000\n1: lock inc dword ptr [rdi]\njmp 1b")
    for i in range(10):
        assert pair.run(i % 2, 101) is Reason.END
    assert pair.clock.ticks == 1010
    total = int.from_bytes(pair.memory.read(0x100000, 4).tobytes(), "little")
    assert abs(total - 505) <= 2
    assert 0x100 in pair.memory.take_dirty()
    pair.close()


def test_code_written_by_one_engine_is_seen_by_the_other() -> None:
    """Through the mapping that it runs from, and through another."""
    for alias in (0, 1 << 30):
        pair = Pair("1: call r8\nadd rbx, rax\njmp 1b\n.skip 100, 0x90\n")
        pair.memory.write(0x30000, assemble("mov eax, 1\nret"), by="test")
        pair.memory.write(0x40000, assemble("mov byte ptr [rdi], cl\n1: inc rdx\njmp 1b"), by="test")
        runner, writer = pair.cpus
        runner.set_registers(r8=0x30000)
        pair.run(0, 500)
        total = runner.registers()["rbx"]
        assert total >= 99
        for value in (5, 17, 200):
            writer.set_registers(rip=0x40000, rdi=0x30001 + alias, rcx=value)
            pair.run(1, 20)
            before = runner.registers()["rbx"]
            pair.run(0, 500)
            gained = runner.registers()["rbx"] - before
            assert abs(gained - 100 * value) <= 2 * value, (alias, value, gained)
        pair.close()


def test_closing_one_engine_leaves_the_other() -> None:
    pair = Pair("mov edi, 0x100000\n1: inc dword ptr [rdi]\njmp 1b")
    pair.run(0, 100)
    pair.cpus[0].close()
    assert pair.run(1, 100) is Reason.END
    pair.close()
