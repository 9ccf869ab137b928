"""Every allocation of every LUO call fails once: the call says so, nothing remains, nothing else is harmed.

The host makes an allocation fail by returning from the allocator with nothing. Each case is gone through
allocation by allocation, until there is none left to fail.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest

from emu.machine import Machine, Snapshot
from luo.check import check
from luo.state import Luo
from tests.userspace import rig
from tests.userspace.agents import INVAL, IO, NOMEM, answers, orders, spec
from tests.userspace.test_unhappy import Steps

ALLOCATORS = ("kmalloc", "kmem_cache_alloc", "alloc_pages")
OLD: Steps = [
    ("open", 0),
    ("create 0 a", 0),
    ("memfd 10 2", 0),
    ("write 10 0 9000 1", 9000),
    ("truncate 10 20000", 0),
]
"""A file with holes."""


def fail_allocation(r: rig.Rig, generation: int, function: str, number: int) -> bool:
    """The next call of a function has its allocation of this number fail; whether it has so many."""
    m = r.machine
    r.run_to(generation, function)
    at = m.registers()["rsp"]
    back = int.from_bytes(_read(r, generation, at, 8), "little")
    places = {r.symbol(generation, name) for name in ALLOCATORS}
    left = [number]
    reached = []

    def allocating(machine: Machine, address: int) -> bool:
        left[0] -= 1
        if left[0] < 0:
            reached.append(address)
        return left[0] < 0

    def returned(machine: Machine, address: int) -> bool:
        return machine.registers()["rsp"] == at + 8

    for address in places:
        m.probe(address, allocating)
    m.probe(back, returned)
    m.run(rig.SECONDS * 10**9, max_instructions=rig.LIMIT)
    for address in places:
        m.unprobe(address, allocating)
    m.unprobe(back, returned)
    if not reached:
        return False
    cpu = m.cpus[0]
    stack = m.registers()["rsp"]
    cpu.set_registers(rax=0, rip=int.from_bytes(_read(r, generation, stack, 8), "little"), rsp=stack + 8)
    return True


def _read(r: rig.Rig, generation: int, address: int, size: int) -> bytes:
    from emu.debug.view import View

    return View(r.machine, rig.kernel(r.spec.kernels[generation])).read(address, size)


def each_allocation(
    r: rig.Rig, generation: int, function: str, verify: Callable[[rig.Outcome, int], None], least: int
) -> None:
    """From here on, again and again, with one more allocation going well each time."""
    start: Snapshot = r.machine.snapshot()
    number = 0
    while True:
        r.machine.restore(start)
        more = fail_allocation(r, generation, function, number)
        verify(r.finish(), number if more else -1)
        if not more:
            break
        number += 1
    assert number >= least, f"{function} allocates only {number} times: is it still what is tried?"


def said(outcome: rig.Outcome, when: str) -> dict[str, int]:
    """Answers by order; each order is given once."""
    outcome.check()
    return {order: int(answer.split()[0]) for order, answer in answers(outcome, when)}


def test_creating_a_session() -> None:
    steps = ["open", "create 0 a", "create 1 a", "create 2 b"]
    with rig.Rig(spec(("old", "new"), steps, ["open", "retrieve 0 a", "retrieve 1 b"], "")) as r:

        def verify(outcome: rig.Outcome, failed: int) -> None:
            old, new = said(outcome, "before"), said(outcome, "after")
            if old["create 0 a"]:
                assert old == {"open": 0, "create 0 a": NOMEM, "create 1 a": 0, "create 2 b": 0}
            else:
                assert failed == -1 and old["create 1 a"] == -17
            assert new == {"open": 0, "retrieve 0 a": 0, "retrieve 1 b": 0}

        each_allocation(r, 0, "luo_ioctl_session", verify, 4)


def test_preserving_a_file() -> None:
    steps = [*orders(OLD), "preserve 0 10 1", "preserve 0 10 2", "memfd 11 2", "preserve 0 11 3"]
    new = ["open", "retrieve 0 a", "get 10 0 1", "get 11 0 2", "get 12 0 3"]
    with rig.Rig(spec(("old", "new"), steps, new, "")) as r:

        def verify(outcome: rig.Outcome, failed: int) -> None:
            old, new = said(outcome, "before"), said(outcome, "after")
            if old["preserve 0 10 1"]:
                assert (old["preserve 0 10 1"], old["preserve 0 10 2"]) == (NOMEM, 0)
                assert (new["get 10 0 1"], new["get 11 0 2"]) == (-2, 0)
            else:
                assert failed == -1 and old["preserve 0 10 2"] == -16
                assert (new["get 10 0 1"], new["get 11 0 2"]) == (0, -2)
            assert old["preserve 0 11 3"] == new["get 12 0 3"] == 0

        each_allocation(r, 0, "luo_preserve_file", verify, 10)


def test_what_a_failed_preserve_leaves_is_nothing() -> None:
    """The same, and the host looks: not a page is preserved that was not before."""
    with rig.Rig(spec(("new", "old"), [*orders(OLD), "preserve 0 10 1"], ["open"], "")) as r:
        r.run_to(0, "luo_preserve_file")
        before = r.handover(0).preserved.count_by_order()
        start = r.machine.snapshot()
        number = 0
        while True:
            r.machine.restore(start)
            if not fail_allocation(r, 0, "luo_preserve_file", number):
                break
            r.run_to(0, "kexec:jump")
            handover = r.handover(0)
            assert handover.preserved.count_by_order() == before, f"allocation {number}"
            assert check(handover, "J").violations == []
            luo = Luo.read(handover)
            assert luo is not None and [(s.name, s.count) for s in luo.sessions] == [("a", 0)]
            number += 1
        assert number >= 10


def test_opening_the_device() -> None:
    """The first open builds everything; without memory it fails, for good, and what was handed over stays."""
    new = ["open", "open", "retrieve 0 a"]
    with rig.Rig(spec(("old", "new"), [*orders(OLD), "preserve 0 10 1"], new, "")) as r:
        r.run_to(1, "kernel:start")

        def verify(outcome: rig.Outcome, failed: int) -> None:
            outcome.check()
            after = [int(answer) for _, answer in answers(outcome, "after")]
            assert after == ([IO, IO, -9] if failed >= 0 else [0, -16, 0])

        each_allocation(r, 1, "luo_session_deserialize", verify, 3)


def test_retrieving_a_session() -> None:
    new = ["open", "retrieve 0 a", "retrieve 1 a", "get 10 0 1", "get 11 1 1"]
    with rig.Rig(spec(("new", "old"), [*orders(OLD), "preserve 0 10 1"], new, "")) as r:
        r.run_to(1, "kernel:start")

        def verify(outcome: rig.Outcome, failed: int) -> None:
            after = said(outcome, "after")
            if after["retrieve 0 a"]:
                assert (after["retrieve 0 a"], after["retrieve 1 a"], after["get 11 1 1"]) == (NOMEM, 0, 0)
            else:
                assert failed == -1 and (after["retrieve 1 a"], after["get 10 0 1"]) == (INVAL, 0)

        each_allocation(r, 1, "luo_ioctl_session", verify, 2)


def test_retrieving_a_file() -> None:
    """The file is lost, as in Linux: its handler is asked once. Others are not."""
    old = [*orders(OLD), "preserve 0 10 1", "memfd 11 2", "write 11 0 5000 2", "preserve 0 11 2"]
    new = ["open", "retrieve 0 a", "get 10 0 1", "get 12 0 1", "get 11 0 2", "finish 0"]
    with rig.Rig(spec(("old", "new"), old, new, "")) as r:
        r.run_to(1, "kernel:start")

        def verify(outcome: rig.Outcome, failed: int) -> None:
            after = said(outcome, "after")
            assert after["get 10 0 1"] == after["get 12 0 1"]
            assert after["get 10 0 1"] in ((NOMEM, INVAL) if failed >= 0 else (0,))
            assert after["get 11 0 2"] == after["finish 0"] == 0

        each_allocation(r, 1, "luo_retrieve_file", verify, 4)


@pytest.mark.parametrize("release", ["old", "new"])
def test_setting_up_luo(release: str) -> None:
    """Without memory for what it hands over there is no LUO in this boot, and no trace of it."""
    with rig.Rig(spec((release, "old"), ["open", "create 0 a"], ["open"], "")) as r:

        def verify(outcome: rig.Outcome, failed: int) -> None:
            before = said(outcome, "before")
            # the third is that of a file in debugfs, which may be missing
            assert before["open"] == (-2 if 0 <= failed < 2 else 0)

        each_allocation(r, 0, "luo_late_startup", verify, 3)
