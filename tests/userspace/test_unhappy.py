"""Everything of LUO that goes wrong in an orderly way: refused, undone, tried again, and nothing is lost.

The agent does what it is told and says what came of it; the host looks at the kernel's memory where the agent
cannot see.
"""

from __future__ import annotations

import hashlib

import pytest

from emu.debug.view import View
from kho.handover import Handover
from luo.check import check
from luo.state import Luo
from tests.userspace import rig
from tests.userspace.agents import (
    BUSY,
    EXIST,
    FAULT,
    INVAL,
    IO,
    MFILE,
    NOENT,
    NOMEM,
    NOSPC,
    PROGRAMS,
    TEST,
    answers,
    command,
    expect,
    log,
    orders,
    spec,
)  # fmt: skip

PAIRS = [("old", "new"), ("new", "old")]
KERNEL = "/luemu/kernel1"
EMPTY = {0: 4}
"""What is preserved without a session: root FDT, metadata, LUO's state, the page of FLBs."""

Steps = list[tuple[str, int | str]]


def both(kernels: tuple[str, ...], old: Steps, new: Steps, cmdline: str = TEST) -> rig.Outcome:
    """An update with these orders, all answered as it says here."""
    with rig.Rig(spec(kernels, orders(old), orders(new), cmdline)) as r:
        outcome = r.finish().check()
    expect(outcome, "before", old)
    expect(outcome, "after", new)
    return outcome


def contents(handover: Handover) -> dict[int, str]:
    """Digest of each preserved block."""
    return {
        int(p): hashlib.sha256(handover.reader.bytes(int(p), 4096 << int(o))).hexdigest()
        for p, o in zip(handover.preserved.phys, handover.preserved.order, strict=True)
    }


# ---- freezing ----------------------------------------------------------------------------

FROZEN: Steps = [
    ("open", 0),
    ("create 0 a", 0), ("file 10 /dev/luo_test", 0), ("put 10 value 1", 7), ("preserve 0 10 1", 0),
    ("file 11 /dev/luo_test", 0), ("put 11 value 2", 7), ("preserve 0 11 2", 0),
    ("create 1 b", 0), ("file 12 /dev/luo_test", 0), ("put 12 value 3", 7), ("preserve 1 12 1", 0),
    ("memfd 13 2", 0), ("write 13 0 9000 5", 9000), ("seek 13 0", 0), ("preserve 1 13 2", 0),
    ("file 14 /dev/luo_test", 0), ("put 14 value 4", 7), ("preserve 1 14 3", 0),
    ("file 15 /dev/luo_test", 0), ("put 15 value 5", 7), ("preserve 1 15 4", 0),
    ("create 2 c", 0), ("file 16 /dev/luo_test", 0), ("put 16 value 6", 7), ("preserve 2 16 1", 0),
    ("create 3 empty", 0),
]  # fmt: skip
AGAIN: Steps = [
    ("open", 0), ("retrieve 0 a", 0), ("get 10 0 1", 0), ("read 10", 1), ("get 11 0 2", 0), ("read 11", 1),
    ("retrieve 1 b", 0), ("get 12 1 1", 0), ("get 13 1 2", 0), ("get 14 1 3", 0), ("get 15 1 4", 0),
    ("read 15", 1), ("retrieve 2 c", 0), ("get 16 2 1", 0), ("retrieve 3 empty", 0),
    ("finish 0", 0), ("finish 1", 0), ("finish 2", 0), ("finish 3", 0),
]  # fmt: skip
ORDER_OF_EVENTS = {
    # which file refuses -> what happens to the others, in this order
    1: "freeze 1",
    2: "freeze 1, freeze 2, unfreeze 1",
    3: "freeze 1, freeze 2, freeze 3, unfreeze 1, unfreeze 2",
    4: "freeze 1, freeze 2, freeze 3, freeze 4, unfreeze 3, unfreeze 1, unfreeze 2",
    5: "freeze 1, freeze 2, freeze 3, freeze 4, freeze 5, unfreeze 3, unfreeze 4, unfreeze 1, unfreeze 2",
    6: "freeze 1, freeze 2, freeze 3, freeze 4, freeze 5, freeze 6, "
    "unfreeze 3, unfreeze 4, unfreeze 5, unfreeze 1, unfreeze 2",
}
SLOT = {1: 10, 2: 11, 3: 12, 4: 14, 5: 15, 6: 16}


@pytest.mark.parametrize("kernels", PAIRS, ids="-".join)
@pytest.mark.parametrize("file", ORDER_OF_EVENTS)
def test_a_file_that_refuses_to_freeze_undoes_everything(file: int, kernels: tuple[str, str]) -> None:
    """INV-22: each frozen file is unfrozen once, the failing one is not; no byte of what is preserved
    differs; sessions can be used, and the next attempt succeeds."""
    steps: Steps = [*FROZEN, (f"load {KERNEL} none", 0), (f"put {SLOT[file]} freeze -5", 9)]
    more: Steps = [("reboot", IO), ("memfd 17 2", 0), ("preserve 3 17 9", 0), ("close 17", 0)]
    again: Steps = [*AGAIN[:-4], ("get 17 3 9", 0), *AGAIN[-4:]]
    with rig.Rig(spec(kernels, orders([*steps, *more]), orders(again))) as r:
        r.run_to(0, "kexec:reboot")
        before = r.handover(0)
        was = contents(before)
        r.machine.step(1)
        r.run_to(0, "kernel_kexec", "luo_preserve_file")  # the first order after the reboot that failed
        view = View(r.machine, rig.kernel(kernels[0]))
        after = r.handover(0)
        assert contents(after) == was, "a failed attempt leaves a trace in what is preserved"
        luo = Luo.read(after)
        assert luo is not None and luo.sessions_phys == 0
        blocks = view.symbol("luo_outgoing") + view.struct("luo_sessions").offset("blocks")
        head = view.member(blocks, "kho_block_set", "head")
        assert not any(after.reader.bytes(head, 4096)), "a session's name or files are still written down"
        outcome = r.finish().check()
    expect(outcome, "before", [*steps, *more])
    expect(outcome, "after", again)
    events = log(outcome, "luo_test: ")
    assert ", ".join(e for e in events[6:] if "freeze" in e).startswith(ORDER_OF_EVENTS[file] + ", freeze 1")
    assert log(outcome, "luo: ")[0] == (
        f"Freeze failed for token[{[0, 1, 2, 1, 3, 4, 1][file]:#x}] handler[luemu-test-v1] err[-5]"
    )


def test_a_freeze_that_answers_more_than_0_succeeds() -> None:
    steps: Steps = [*FROZEN, ("put 11 freeze 7", 8)]
    outcome = both(("old", "new"), steps, AGAIN)
    assert not any(e.startswith("unfreeze") for e in log(outcome, "luo_test: "))


def test_an_attempt_without_an_image_changes_nothing() -> None:
    steps: Steps = [*FROZEN, ("reboot", INVAL), ("reboot", INVAL)]
    outcome = both(("new", "old"), steps, AGAIN)
    assert [e for e in log(outcome, "luo_test: ") if "freeze" in e] == [f"freeze {n}" for n in range(1, 7)]


def test_sessions_can_be_closed_after_a_failed_attempt() -> None:
    """What refuses is given up; the rest goes over."""
    steps: Steps = [
        *FROZEN, (f"load {KERNEL} none", 0), ("put 14 freeze -16", 10), ("reboot", BUSY), ("close 1", 0),
        ("create 1 b", 0), ("preserve 1 13 7", 0),
    ]  # fmt: skip
    new: Steps = [
        ("open", 0),
        ("retrieve 1 b", 0),
        ("get 14 1 3", NOENT),
        ("get 13 1 7", 0),
        ("retrieve 0 a", 0),
    ]
    outcome = both(("old", "new"), steps, new)
    assert [e for e in log(outcome, "luo_test: ") if e.startswith("unpreserve")] == [
        "unpreserve 5", "unpreserve 4", "unpreserve 3"
    ]  # fmt: skip


# ---- holders and agents ----------------------------------------------------------------------------


def test_a_holder_that_is_killed_takes_everything_with_it() -> None:
    """As recorded with Linux: what is preserved goes back to four pages, the next kernel knows nothing."""
    steps: Steps = [
        ("open", 0), ("create 0 gone", 0), ("memfd 10 2", 0), ("write 10 0 20000 1", 20000),
        ("preserve 0 10 1", 0), ("create 1 kept", 0), ("preserve 1 10 1", BUSY), ("spawn 1", 0),
        ("close 0", 0),
        ("truncate 10 4096", -1), ("kill 1", 9), ("truncate 10 4096", 0), ("create 0 gone", 0),
        ("close 0", 0),
        ("close 1", 0),
    ]  # fmt: skip
    with rig.Rig(spec(("old", "new"), orders(steps), ["open", "retrieve 0 gone"])) as r:
        r.run_to(0, "kexec:jump")
        assert r.handover(0).preserved.count_by_order() == EMPTY
        outcome = r.finish().check()
    expect(outcome, "before", steps)
    expect(outcome, "after", [("open", 0), ("retrieve 0 gone", NOENT)])


def test_one_agent_at_a_time() -> None:
    both(
        ("old", "new"),
        [("open", 0), ("file 0 /dev/liveupdate", BUSY), ("close-device", 0), ("spawn 1", 0), ("@1 open", 0),
         ("open", BUSY), ("kill 1", 9), ("open", 0), ("create 0 a", 0)],
        [("open", 0), ("file 0 /dev/liveupdate", BUSY), ("retrieve 0 a", 0)],
    )  # fmt: skip


def test_descriptors_run_out() -> None:
    """EMFILE comes before anything else is looked at, and nothing remains of it."""
    steps: Steps = [
        ("open", 0), ("create 0 a", 0), ("memfd 10 2", 0), ("preserve 0 10 1", 0), ("limit files 3", 0),
        ("create 1 b", MFILE), ("create 1 a", MFILE), ("retrieve 1 b", MFILE), ("limit files 20000", 0),
        ("create 1 b", 0),
    ]  # fmt: skip
    new: Steps = [
        ("open", 0), ("retrieve 0 a", 0), ("limit files 3", 0), ("get 10 0 1", MFILE), ("get 10 0 2", MFILE),
        ("retrieve 1 b", MFILE), ("limit files 20000", 0), ("get 10 0 1", 0), ("retrieve 1 b", 0),
    ]  # fmt: skip
    both(("old", "new"), steps, new)


# ---- answers that cannot be given -----------------------------------------------------------------------


@pytest.mark.parametrize("kernels", PAIRS, ids="-".join)
def test_answers_that_cannot_be_copied_out_lose_nothing(kernels: tuple[str, str]) -> None:
    """The call answers EFAULT. A session or file that was asked for can be asked for again (in Linux
    7.2.13 the session is gone); what was preserved or finished, is."""
    steps: Steps = [
        ("open", 0), ("ro create a", FAULT), ("create 0 a", 0), ("memfd 10 2", 0),
        ("write 10 0 5000 3", 5000),
        ("ro preserve 0 10 1", FAULT), ("preserve 0 10 1", EXIST), ("preserve 0 10 2", BUSY),
        ("ro create a", EXIST),
    ]  # fmt: skip
    new: Steps = [
        ("open", 0), ("ro retrieve a", FAULT), ("ro retrieve a", FAULT), ("retrieve 0 a", 0),
        ("ro retrieve a", INVAL), ("ro get 0 1", FAULT), ("ro get 0 1", FAULT), ("get 10 0 1", 0),
        ("stat 10", "0 size=5000 blocks=16"), ("ro finish 0", FAULT), ("get 11 0 1", NOENT), ("finish 0", 0),
        ("close 0", 0), ("retrieve 0 a", NOENT), ("create 0 b", 0), ("preserve 0 10 1", 0),
    ]  # fmt: skip
    both(kernels, steps, new)


# ---- finishing ----------------------------------------------------------------------------

TWO: Steps = [
    ("open", 0), ("create 0 a", 0), ("file 10 /dev/luo_test", 0), ("put 10 value 1", 7),
    ("preserve 0 10 1", 0),
    ("file 11 /dev/luo_test", 0), ("put 11 value 2", 7), ("preserve 0 11 2", 0), ("memfd 12 2", 0),
    ("write 12 0 4096 1", 4096), ("preserve 0 12 3", 0),
]  # fmt: skip


@pytest.mark.parametrize("kernels", PAIRS, ids="-".join)
def test_a_finish_that_is_refused_changes_nothing(kernels: tuple[str, str]) -> None:
    new: Steps = [
        ("open", 0), ("file 20 /dev/luo_test", 0), ("retrieve 0 a", 0), ("get 10 0 1", 0),
        ("put 20 can_finish 0", 12), ("finish 0", BUSY), ("finish 0", BUSY), ("get 11 0 2", 0),
        ("read 11", 1),
        ("create 1 next", 0), ("preserve 1 10 1", BUSY), ("put 20 can_finish 1", 12), ("finish 0", 0),
        ("preserve 1 12 1", -9), ("get 12 0 3", NOENT),
    ]  # fmt: skip
    outcome = both(kernels, TWO, new)
    events = log(outcome, "luo_test: ")
    assert events[events.index("retrieve 1") :] == [
        "retrieve 1", "can_finish 0", "can_finish 0", "retrieve 2", "can_finish 1", "can_finish 1",
        "finish 2", "finish 1",
    ]  # fmt: skip


def test_a_close_that_may_not_finish_leaves_the_session_stuck() -> None:
    new: Steps = [
        ("open", 0), ("file 20 /dev/luo_test", 0), ("retrieve 0 a", 0), ("put 20 can_finish 0", 12),
        ("close 0", 0),
        ("retrieve 0 a", INVAL), ("put 20 can_finish 1", 12), ("retrieve 0 a", INVAL), ("create 0 a", 0),
    ]  # fmt: skip
    outcome = both(("old", "new"), TWO, new)
    assert outcome.log("luo: Unable to finish session [a] on release")


@pytest.mark.parametrize("how", ["finish 0", "close 0"])
def test_files_that_nobody_asked_for_are_destroyed(how: str) -> None:
    new: Steps = [("open", 0), ("retrieve 0 a", 0), (how, 0)]
    with rig.Rig(spec(("old", "new"), orders(TWO), orders(new))) as r:
        outcome = r.finish().check()
        kept = View(r.machine, rig.kernel("new")).magic_pages()
    expect(outcome, "after", new)
    assert len(kept) == 3, "only the root FDT, the metadata and the page of FLBs stay"
    assert log(outcome, "luo_test: ")[-2:] == [
        "finish 2, never retrieved (0)",
        "finish 1, never retrieved (0)",
    ]


def test_a_retrieve_that_fails_fails_for_good() -> None:
    """The handler is asked once; its answer is remembered, and finish is told."""
    new: Steps = [
        ("open", 0), ("file 20 /dev/luo_test", 0), ("retrieve 0 a", 0), ("put 20 retrieve -12", 12),
        ("get 10 0 1", NOMEM), ("get 10 0 1", NOMEM), ("get 11 0 2", 0), ("get 12 0 3", 0), ("finish 0", 0),
    ]  # fmt: skip
    outcome = both(("new", "old"), TWO, new)
    events = log(outcome, "luo_test: ")
    assert events.count("retrieve 1") == 1
    assert events[-1] == "finish 1, never retrieved (-12)"


def test_a_preserve_that_fails_leaves_nothing() -> None:
    steps: Steps = [
        ("open", 0), ("create 0 a", 0), ("file 10 /dev/luo_test", 0), ("put 10 preserve -12", 12),
        ("preserve 0 10 1", NOMEM),
    ]  # fmt: skip
    with rig.Rig(spec(("old", "new"), orders(steps))) as r:
        r.run_to(0, "kexec:jump")
        assert r.handover(0).preserved.count_by_order() == {0: 5}, "one session, which has no files"
        expect(r.finish().check(), "before", steps)


# ---- limits -----------------------------------------------------------------------------------


def test_limits_of_blocks() -> None:
    """The chain of sessions has at most 10,000 blocks; what does not fit leaves the chain as it was."""
    steps: Steps = [("open", 0), ("create 0 a", 0), ("create 1 b", NOSPC), ("create 1 b", 0)]
    with rig.Rig(spec(("old", "new"), orders(steps), ["open", "retrieve 0 b"])) as r:
        view = None
        for attempt in range(3):
            r.run_to(0, "kho_block_set_grow")
            view = View(r.machine, rig.kernel("old"))
            at = view.symbol("luo_outgoing")
            sessions, blocks = view.struct("luo_sessions"), view.struct("kho_block_set")
            count = view.phys(at + sessions.offset("count"))
            nr = view.phys(at + sessions.offset("blocks") + blocks.offset("nr_blocks"))
            if attempt == 1:  # as if there were half a million sessions already
                r.machine.memory.write(count, (510_000).to_bytes(8, "little"), by="test")
                r.machine.memory.write(nr, (10_000).to_bytes(8, "little"), by="test")
                cpu = r.machine.cpus[0]
                cpu.set_registers(rsi=510_001)
                r.run_to(0, "kfree")
                r.machine.memory.write(count, (1).to_bytes(8, "little"), by="test")
                r.machine.memory.write(nr, (1).to_bytes(8, "little"), by="test")
            else:
                r.machine.step(1)
        r.run_to(0, "kexec:jump")
        handover = r.handover(0)
        assert check(handover, "J").violations == []
        outcome = r.finish().check()
    expect(outcome, "before", steps)
    expect(outcome, "after", [("open", 0), ("retrieve 0 b", 0)])


def test_a_duplicate_name_makes_no_empty_block() -> None:
    """With 51 sessions, the 52nd would need a block; in Linux 7.2.13 a rejected name leaves it, empty, and
    the next kernel panics."""
    steps: Steps = [("open", 0), *((f"create {i} n{i}", 0) for i in range(51)), ("create 60 n7", EXIST)]
    with rig.Rig(spec(("old", "new"), orders(steps), ["open", "retrieve 0 n50", "retrieve 1 n0"])) as r:
        r.run_to(0, "kexec:jump")
        handover = r.handover(0)
        assert handover.preserved.count_by_order() == {0: 5}
        assert check(handover, "J").violations == []
        outcome = r.finish().check()
    expect(outcome, "before", steps)
    expect(outcome, "after", [("open", 0), ("retrieve 0 n50", 0), ("retrieve 1 n0", 0)])


# ---- calls that the kernel does not have ---------------------------------------------------------------


@pytest.mark.parametrize("kernel", ["old", "new"])
def test_unknown_calls_are_refused_and_named_once(kernel: str) -> None:
    """One in the table that nobody registered (afs_syscall), and one behind its end; getpid is there."""
    calls: Steps = [(f"syscall {n}", -38) for n in (183, 183, 5000, 183, 5000)]
    steps: Steps = [*calls, ("syscall 39", 0)]
    with rig.Rig(rig.Spec((kernel,), before=[command(orders(steps))], programs=PROGRAMS)) as r:
        outcome = r.finish().check()
    said = answers(outcome, "before")
    assert [answer for _, answer in said[:-1]] == ["-38"] * len(calls)
    assert int(said[-1][1]) > 1, "getpid"
    named = [line.split("unknown system call ")[1] for line in outcome.log("unknown system call")]
    assert named == ["183", "5000"]
