"""Snapshots are a tree: from any of them the machine goes on exactly as it did the first time."""

from __future__ import annotations

import random

import numpy as np
import pytest

from emu.errors import ConfigError
from emu.machine import Machine, Snapshot, StopKind
from tests.machine.guest import CODE, DATA, MMIO, RAM, assemble, flat, run_sliced, selftest

START, STEP, COUNT = 300_000, 37_777, 40


def straight(m: Machine) -> list[str]:
    """Hashes of one straight run at START + i * STEP."""
    hashes = []
    for i in range(COUNT):
        m.run(until=START + i * STEP)
        hashes.append(m.state_hash())
    return hashes


def walk(m: Machine, hashes: list[str], seed: int, jumps: int) -> None:
    """Jump about in a growing tree of snapshots."""
    rng = random.Random(seed)
    m.run(until=START)
    nodes: list[tuple[Snapshot, int]] = [(m.snapshot(), 0)]
    for _ in range(jumps):
        node, at = rng.choice(nodes)
        m.restore(node)
        assert m.ticks == node.ticks == START + at * STEP
        if rng.random() < 0.3:
            assert m.state_hash() == hashes[at], f"seed {seed}: right after the restore"
        goal = min(COUNT - 1, at + rng.randint(0, 6))
        if rng.random() < 0.3:  # a branch that is abandoned
            m.memory.write(0x2000000 + 0x10000 * rng.randint(0, 8), rng.randbytes(9000), by="test")
            m.send(b"x")
            m.run(until=m.ticks + rng.randint(1, STEP))
            if rng.random() < 0.5:
                m.snapshot()
            m.restore(node)
        run_sliced(m, rng.randint(0, 1 << 30), START + goal * STEP, steps=(3, 1000, 50_000), slices_max=5)
        assert m.state_hash() == hashes[goal], f"seed {seed}: from {at} to {goal}"
        if rng.random() < 0.6:
            nodes.append((m.snapshot(), goal))


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("workload", ["do=ticks", "do=pagetables"])
def test_random_trees_equal_the_straight_run(workload: str, seed: int) -> None:
    with selftest(workload) as whole:
        hashes = straight(whole)
    with selftest(workload) as m:
        walk(m, hashes, seed, 40)


@pytest.mark.campaign
@pytest.mark.parametrize("seed", range(100, 109))
def test_large_random_trees(seed: int) -> None:
    workload = ["do=ticks", "do=pagetables", ""][seed % 3]
    with selftest(workload) as whole:
        hashes = straight(whole)
    with selftest(workload) as m:
        walk(m, hashes, seed, 150)


def counter() -> Machine:
    return flat(
        f"mov edi, {DATA}\n1: inc rcx\nmov [rdi], rcx\nadd rdi, 4096\nand edi, 0x13ffff\ntest ecx, 7\njmp 1b"
    )


def test_older_newer_sibling_and_the_same() -> None:
    with counter() as m:
        a = m.snapshot()
        m.run(until=1000)
        b = m.snapshot()
        b_hash = m.state_hash()
        m.run(until=2000)
        c = m.snapshot()
        c_hash = m.state_hash()
        m.restore(a)
        m.memory.write(DATA + 0x50000, b"another history", by="test")
        m.run(until=1500)
        sibling = m.snapshot()
        sibling_hash = m.state_hash()
        assert (a.depth, b.depth, c.depth, sibling.depth) == (0, 1, 2, 1)
        for node, wanted in [
            (b, b_hash), (c, c_hash), (sibling, sibling_hash), (c, c_hash), (c, c_hash), (b, b_hash),
            (sibling, sibling_hash), (b, b_hash), (c, c_hash),
        ]:  # fmt: skip
            m.restore(node)
            assert m.state_hash() == wanted
            m.run(until=m.ticks + 7)


def test_restore_forgets_a_request_to_stop() -> None:
    with counter() as m:
        here = m.snapshot()
        m.stop()
        m.restore(here)
        assert m.run(until=100).kind is StopKind.UNTIL


def test_views_stay_valid() -> None:
    with counter() as m:
        m.run(until=100)
        here = m.snapshot()
        view = m.memory.read(DATA, 0x40000)
        before = view.copy()
        m.run(until=5000)
        assert not np.array_equal(view, before), "a view is live"
        m.restore(here)
        assert np.array_equal(view, before)
        m.memory.write(DATA + 5, b"\xff", by="test")
        assert view[5] == 0xFF


def test_pages_that_were_untouched_are_zero_again() -> None:
    with counter() as m:
        here = m.snapshot()
        before = m.state_hash()
        m.memory.write(0x180000, b"\xaa" * 8192, by="test")
        m.run(until=1000)
        m.snapshot()
        m.restore(here)
        assert not m.memory.read(0x180000, 8192).any()
        assert not m.memory.read(DATA, 0x40000).any()
        assert m.state_hash() == before
        assert here.page(0x180) is None


def test_code_that_was_changed_is_the_old_code_again() -> None:
    code = "1: mov eax, 1\nmov ebx, eax\njmp 1b"
    with flat(code) as m:
        m.run(until=100)
        here = m.snapshot()
        m.memory.write(CODE + 1, b"\x02", by="test")
        m.run(until=200)
        assert m.registers()["rbx"] == 2
        m.restore(here)
        m.run(until=200)
        assert m.registers()["rbx"] == 1


def test_serial_output_is_taken_back() -> None:
    with selftest("only=cpu") as m:
        m.run(until=200_000)
        here, text = m.snapshot(), m.console
        m.run()
        longer = m.console
        assert len(longer) > len(text)
        m.restore(here)
        assert m.console == text
        m.run()
        assert m.console == longer


def test_a_snapshot_of_another_machine_is_refused() -> None:
    with counter() as a, counter() as b:
        a.run(until=100)
        foreign = a.snapshot()
        before = b.state_hash()
        for _ in range(2):
            with pytest.raises(ConfigError, match="another machine"):
                b.restore(foreign)
            assert b.state_hash() == before
            b.run(until=50)
            b.snapshot()
            before = b.state_hash()


def test_snapshots_do_not_change() -> None:
    with counter() as m:
        m.run(until=3000)
        here = m.snapshot()
        number = DATA >> 12
        page = here.page(number)
        assert page is not None
        kept, pages, ticks = page.copy(), set(here.pages), here.ticks
        with pytest.raises(ValueError, match="read-only"):
            page[0] = 1
        m.run(until=9000)
        m.memory.write(DATA, b"\xee" * 4096, by="test")
        m.snapshot()
        m.restore(here)
        m.run(until=9000)
        assert np.array_equal(page, kept)
        assert (set(here.pages), here.ticks) == (pages, ticks)
        assert here.all_pages() >= pages


def test_pending_events_and_halt_survive() -> None:
    code = (
        "mov edi, 0xfee00000\nmov dword ptr [rdi + 0x3e0], 0xb\nmov dword ptr [rdi + 0x320], 0x40\n"
        "mov dword ptr [rdi + 0x380], 1000\nsti\nhlt\nnop\ncli\nhlt"
    )
    with flat(code, {0x40: "inc rbx\niretq"}) as m:
        m.run(until=500)
        assert m.registers()["halted"] == 1
        here = m.snapshot()
        stop = m.run(until=100_000)
        assert (stop.kind, m.registers()["rbx"]) == (StopKind.DEADLOCK, 1)
        wanted = m.state_hash()
        m.restore(here)
        assert m.registers()["halted"] == 1
        assert m.run(until=100_000) == stop
        assert m.state_hash() == wanted


@pytest.mark.parametrize("instruction", ["nop", "mov eax, [rdi]"])
def test_probes_see_the_same_again_after_a_restore(instruction: str) -> None:
    """What an observer sees depends on where the machine is, not on what it did before."""
    at = CODE + len(assemble(f"mov edi, {MMIO}\nnop"))
    seen: list[int] = []
    with flat(f"mov edi, {MMIO}\nnop\n{instruction}\nnop\nhlt") as m:
        m.probe(at, lambda m, address: seen.append(m.ticks))
        m.run(until=2)
        here = m.snapshot()
        for _ in range(3):
            seen.clear()
            assert m.run(until=100).kind is StopKind.DEADLOCK
            assert seen == [2]
            m.restore(here)


def test_arithmetic_flags_survive() -> None:
    """Also those that the engine had not computed yet."""
    with flat("xor edx, edx\nnop\nmov eax, 1\nsub eax, 2\nnop\nstd\nnop\nstc\nnop\nhlt") as m:
        for _ in range(9):
            m.step()
            flags = m.registers()["rflags"]
            m.restore(m.snapshot())
            assert m.registers()["rflags"] == flags
            m.cpus[0].load_words(m.cpus[0].words())
            here = m.snapshot()
            m.step()
            after = m.registers()["rflags"]
            m.restore(here)
            m.step()
            assert m.registers()["rflags"] == after
            m.restore(here)
        m.step(100)
        assert m.registers()["rflags"] & 0x8D5 == 0x95, "CF and what SUB left"
        assert m.registers()["rflags"] & 0x400, "DF"


def test_a_snapshot_costs_what_changed() -> None:
    with counter() as m:
        m.snapshot()
        m.run(until=m.ticks + 6 * 20)
        assert len(m.snapshot().pages) <= 20 + 4, "20 stores, and page tables"
        assert len(m.snapshot().pages) == 0
        assert m.memory.size == RAM
