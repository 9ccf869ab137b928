"""LUO against a plain Python model, for any sequence of what programs can do to it.

One machine is booted once; each example begins at its snapshot. After every step the answer is compared, and
everything that the kernel has of it in memory: who has what open, sessions and their files in order, records,
sizes, positions, seals, the contents of every page, what KHO preserves, the page cache's count. At each
update what is written down is compared as well. A failure shows the shortest sequence that fails.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    precondition,
    rule,
    run_state_machine_as_test,
)

from tests.model import luo
from tests.model.agent import RELEASES, Agent
from tests.model.luo import MEMFD, TEST, Luo, Open, Session, digest

EXAMPLES, STEPS_AN_EXAMPLE = 60, 150
STEPS = 10_000
MUST_HAPPEN = {
    ("reboot", 0), ("reboot", -5), ("reboot", luo.INVAL), ("retrieve", 0), ("retrieve", luo.NOENT),
    ("get", 0), ("get", luo.NOENT), ("finish", 0), ("kill", 1), ("create", luo.EXIST), ("preserve", 0),
    ("preserve", luo.EXIST), ("seal", luo.BUSY), ("truncate", luo.PERM), ("write", luo.PERM),
}  # fmt: skip
UPDATES_AN_EXAMPLE = 1

SESSION_SLOTS, MEMFD_SLOTS, TEST_SLOTS = (0, 1, 2), (10, 11, 12, 13), (20, 21)
NAMES = ("a", "b", "c", "n" * 63, "n" * 64)
TOKENS = (1, 1, 2, 7, (1 << 64) - 1)
SIZES = (0, 1, 4095, 4096, 4097, 9000, 12288)

processes = st.sampled_from((0, 0, 0, 1, 2))
sessions, memfds, tests = (st.sampled_from(slots) for slots in (SESSION_SLOTS, MEMFD_SLOTS, TEST_SLOTS))
names, sizes, seeds = st.sampled_from(NAMES), st.sampled_from(SIZES), st.integers(1, 255)
tokens = st.sampled_from(TOKENS)


class Comparison(RuleBasedStateMachine):
    """The agent on its machine, and the model."""

    agent: Agent
    answers: Counter[tuple[str, int]]
    """of all examples together, by order and answer: their sum is the number of steps"""
    beginnings: dict[tuple[str | None, str], tuple[Any, Luo]]
    """snapshots with the model of then, by the releases before and now"""
    model_class: type[Luo] = Luo
    broken: str = ""
    """a function of the kernels that does nothing"""

    @initialize(release=st.sampled_from(RELEASES), before=st.sampled_from((None, *RELEASES)))
    def begin(self, release: str, before: str | None) -> None:
        """After boot, or after an update from the release before."""
        self.updated = 0
        found = self.beginnings.get((before, release))
        if found is not None:
            self.model = copy.deepcopy(found[1])
            self.agent.restore(found[0])
        else:
            self.model = type(self).model_class()
            self.agent.start(before or release)
            if self.broken:
                self.agent.disable(self.broken)
            self._begin(release, before is not None)
            if self.broken and before is not None:
                self.agent.disable(self.broken)
            self.beginnings[before, release] = self.agent.remember(), copy.deepcopy(self.model)

    def _begin(self, release: str, update: bool) -> None:
        self.preserve_new(0, "a", 10, 1, 9000, 1)
        self.memfd(0, 11, 2, 4096, 2)
        self.test_file(0, 20)
        if update:
            self.instruct(0, 20, ("value", 5))
            self.preserve(0, 0, 20, 7)
            self.preserve_new(1, "b", 12, 1, 4097, 3)
            self.seek(0, 12, 9000)
            self.seal(0, 12, luo.SHRINK)
            self.preserve(0, 1, 11, 2)
            self.create(0, 2, "n" * 63)
            self.update(release)
            self.updated = 0
            self.retrieve(0, 0, "a")
            self.retrieve(0, 1, "b")

    def _who(self, process: int) -> tuple[int, str]:
        """A process that exists, and how it is addressed."""
        process = process if process in self.model.tables else 0
        return process, f"@{process} " if process else ""

    def _kind(self, process: int, slot: int, kind: str) -> bool:
        """Whether a slot has nothing else than such a file."""
        it = self.model.has(process, slot)
        return it is None or (isinstance(it, Open) and it.inode.kind == kind)

    def _done(self, order: str, answer: int, wanted: int) -> None:
        assert answer == wanted, (
            f"{order}: the kernel ({self.agent.release}) answers {answer}, right is {wanted}"
        )
        there, right = self.agent.state(), self.model.state()
        if there != right:
            differ = [k for k in right if not isinstance(there, dict) or there[k] != right[k]]
            of = there if not isinstance(there, dict) else "\n".join(
                f"  {k}\n    kernel {there[k]}\n    model  {right[k]}" for k in differ
            )  # fmt: skip
            raise AssertionError(f"after {order}: kernel {self.agent.release} is not what the model is\n{of}")
        self.answers[order.split()[0], min(answer, 1)] += 1

    def _do(self, process: int, order: str, method: Callable[..., int], *args: Any) -> None:
        """An order, and what the model makes of it."""
        process, prefix = self._who(process)
        wanted = method(process, *args)
        self._done(order + f" (by {process})" * bool(process), self.agent.number(prefix + order), wanted)

    # ---- sessions ------------------------------------------------------------------------------

    @rule(p=processes, slot=sessions, name=names)
    def create(self, p: int, slot: int, name: str) -> None:
        self._do(p, f"create {slot} {name}", self.model.create, slot, name)

    @rule(p=processes, slot=sessions, file=memfds | tests | sessions, token=tokens)
    def preserve(self, p: int, slot: int, file: int, token: int) -> None:
        self._do(p, f"preserve {slot} {file} {token}", self.model.preserve, slot, file, token)

    @precondition(lambda self: self.model.incoming)
    @rule(p=processes, slot=sessions, name=names)
    def retrieve(self, p: int, slot: int, name: str) -> None:
        self._do(p, f"retrieve {slot} {name}", self.model.retrieve, slot, name)

    @precondition(lambda self: self.model.incoming)
    @rule(p=processes, slot=sessions, to=memfds | tests, token=tokens)
    def get(self, p: int, slot: int, to: int, token: int) -> None:
        self._do(p, f"get {to} {slot} {token}", self.model.get, to, slot, token)

    @precondition(lambda self: self.model.incoming)
    @rule(p=processes, slot=sessions)
    def finish(self, p: int, slot: int) -> None:
        self._do(p, f"finish {slot}", self.model.finish, slot)

    # ---- files ---------------------------------------------------------------------------------

    @rule(slot=sessions, name=names, file=memfds, token=tokens, size=sizes, seed=seeds)
    def preserve_new(self, slot: int, name: str, file: int, token: int, size: int, seed: int) -> None:
        """What agents do all day."""
        if self.model.has(0, slot) is None:
            self.create(0, slot, name)
        self.memfd(0, file, 2, size, seed)
        self.preserve(0, slot, file, token)

    @rule(slot=sessions, name=names, file=memfds | tests, seals=st.sampled_from((0, 0, 1, 2, 4, 6, 32)))
    def preserve_again(self, slot: int, name: str, file: int, seals: int) -> None:
        """A session is given up for another one, which gets a file that was preserved before, perhaps."""
        self.close(0, slot)
        self.create(0, slot, name)
        self.preserve(0, slot, file, 3)
        if seals:
            self.seal(0, file, seals)

    @precondition(lambda self: self.model.incoming)
    @rule(which=st.integers(0, 5), to=memfds | tests)
    def get_what_is_there(self, which: int, to: int) -> None:
        """A file of a session that was retrieved."""
        held = {n: s for n in SESSION_SLOTS if isinstance(s := self.model.has(0, n), Session) and s.incoming}
        there = [(slot, entry.token) for slot, s in held.items() for entry in s.files]
        if there:
            slot, token = there[which % len(there)]
            self.get(0, slot, to, token)

    @precondition(lambda self: self.model.incoming)
    @rule(slot=sessions, name=names, to=memfds, token=tokens)
    def retrieve_all(self, slot: int, name: str, to: int, token: int) -> None:
        self.retrieve(0, slot, name)
        self.get(0, slot, to, token)

    @rule(p=processes, slot=sessions | memfds | tests)
    def close(self, p: int, slot: int) -> None:
        self._do(p, f"close {slot}", self.model.close, slot)

    @rule(
        p=processes, slots=st.tuples(sessions, sessions) | st.tuples(memfds, memfds) | st.tuples(tests, tests)
    )
    def dup(self, p: int, slots: tuple[int, int]) -> None:
        self._do(p, f"dup {slots[0]} {slots[1]}", self.model.dup, *slots)

    @rule(p=processes, slot=memfds, flags=st.sampled_from((2, 2, 2, 0, 8)), size=sizes, seed=seeds)
    def memfd(self, p: int, slot: int, flags: int, size: int, seed: int) -> None:
        self._do(p, f"memfd {slot} {flags}", self.model.memfd, slot, flags)
        if size:
            self.write(p, slot, 0, size, seed)

    @rule(p=processes, slot=memfds, at=sizes, size=sizes, seed=seeds)
    def write(self, p: int, slot: int, at: int, size: int, seed: int) -> None:
        if self._kind(self._who(p)[0], slot, MEMFD):
            self._do(p, f"write {slot} {at} {size} {seed}", self.model.write, slot, at, size, seed)

    @rule(p=processes, slot=memfds, at=sizes)
    def seek(self, p: int, slot: int, at: int) -> None:
        if self._kind(self._who(p)[0], slot, MEMFD):
            self._do(p, f"seek {slot} {at}", self.model.seek, slot, at)

    @rule(p=processes, slot=memfds, size=sizes)
    def truncate(self, p: int, slot: int, size: int) -> None:
        if self._kind(self._who(p)[0], slot, MEMFD):
            self._do(p, f"truncate {slot} {size}", self.model.truncate, slot, size)

    @rule(
        p=processes, slot=memfds, mode=st.sampled_from((0, 1, 3)), at=sizes, size=st.sampled_from(SIZES[1:])
    )
    def fallocate(self, p: int, slot: int, mode: int, at: int, size: int) -> None:
        if not self._kind(self._who(p)[0], slot, MEMFD):
            return
        order = f"fallocate {slot} {mode} {at} {size}"
        if mode == 3:
            self._do(p, order, self.model.punch, slot, at, size)
        else:
            self._do(p, order, self.model.allocate, slot, at, size, mode == 1)

    @rule(p=processes, slot=memfds, seals=st.sampled_from((1, 2, 4, 8, 16, 32, 6)))
    def seal(self, p: int, slot: int, seals: int) -> None:
        if self._kind(self._who(p)[0], slot, MEMFD):
            self._do(p, f"seal {slot} {seals}", self.model.seal, slot, seals)

    @rule(p=processes, slot=tests)
    def test_file(self, p: int, slot: int) -> None:
        self._do(p, f"file {slot} /dev/luo_test", self.model.test_file, slot)

    @rule(
        p=processes, slot=tests,
        what=st.sampled_from(
            [("value", 5), ("value", -3), ("preserve", -12), ("freeze", -5), ("freeze", -16), ("freeze", 3),
             ("retrieve", -12), ("can_finish", 0), ("can_finish", 1)]
        ),
    )  # fmt: skip
    def instruct(self, p: int, slot: int, what: tuple[str, int]) -> None:
        process, _ = self._who(p)
        if self.model.has(process, slot) is not None and self._kind(process, slot, TEST):
            self._do(p, f"put {slot} {what[0]} {what[1]}", self.model.order_test, slot, *what)

    # ---- processes -----------------------------------------------------------------------------

    @rule(p=processes, again=st.sampled_from((0, 1, 2, None)))
    def close_device(self, p: int, again: int | None) -> None:
        """And somebody opens it again, or not."""
        self._do(p, "close-device", self.model.close_device)
        if again is not None:
            self._do(again, "open", self.model.open)

    @rule(child=st.sampled_from((1, 2)))
    def spawn_or_kill(self, child: int) -> None:
        if child in self.model.tables:
            self._done(f"kill {child}", self.agent.number(f"kill {child}"), self.model.kill(child))
        else:
            self._done(f"spawn {child}", self.agent.number(f"spawn {child}"), self.model.spawn(child))

    # ---- updates -------------------------------------------------------------------------------

    @rule(
        release=st.sampled_from(RELEASES), slot=sessions, name=names, file=tests, token=tokens,
        answer=st.sampled_from((-5, -16)),
    )  # fmt: skip
    def fail(self, release: str, slot: int, name: str, file: int, token: int, answer: int) -> None:
        """A file that refuses to freeze, and an attempt."""
        self.create(0, slot, name)
        self.test_file(0, file)
        self.preserve(0, slot, file, token)
        self.instruct(0, file, ("freeze", answer))
        if copy.deepcopy(self.model).reboot() < 0:
            self.update(release)

    @precondition(lambda self: self.model.incoming)
    @rule(slot=sessions, name=names, file=tests, token=tokens)
    def finish_early(self, slot: int, name: str, file: int, token: int) -> None:
        """A session whose test file may not be finished, or cannot be had, perhaps."""
        self.instruct(0, file, ("can_finish", 0))
        self.retrieve(0, slot, name)
        self.instruct(0, file, ("retrieve", -12))
        self.get(0, slot, file, token)
        self.finish(0, slot)

    @precondition(lambda self: self.updated < UPDATES_AN_EXAMPLE)
    @rule(release=st.sampled_from(RELEASES))
    def update(self, release: str) -> None:
        if self.agent.loaded is None:
            self._done("reboot without a kernel", self.agent.number("reboot"), luo.INVAL)
            self.agent.load(release)
        order = f"reboot from {self.agent.release} into {self.agent.loaded}"
        wanted, answer = self.model.reboot(), self.agent.reboot()
        if answer == wanted == 0:
            self.updated += 1
            self.model.open(0)
            right = written_down(self.model)
            (written,) = self.agent.jumped
            assert written == right, f"{order}: {written} is handed over, right is {right}"
        self._done(order, answer, wanted)


def written_down(model: Luo) -> list[Any]:
    """As `tests.model.decode.handed_over` reads what the kernel before has written."""
    out = []
    for session in model.incoming:
        files = []
        for e in session.files:
            inode = e.inode
            data = b"".join(bytes(inode.pages[i]) for i in sorted(inode.pages))[: inode.size]
            files.append((e.token, inode.kind, e.record, digest(data)))
        out.append((session.name, files))
    return out


@pytest.fixture(scope="module")
def agent() -> Iterator[Agent]:
    it = Agent()
    yield it
    it.close()


def compare(
    machine: Agent, examples: int, steps: int = STEPS_AN_EXAMPLE, shrink: bool = True, **changed: Any
) -> Counter[tuple[str, int]]:
    """Runs examples; what was answered how often."""
    answers: Counter[tuple[str, int]] = Counter()
    kind = type("Run", (Comparison,), {"agent": machine, "answers": answers, "beginnings": {}, **changed})
    phases = (Phase.generate, Phase.shrink) if shrink else (Phase.generate,)
    run_state_machine_as_test(
        kind,
        settings=settings(
            max_examples=examples, stateful_step_count=steps, phases=phases, report_multiple_bugs=False
        ),
    )
    return answers


def test_the_kernel_is_what_the_model_is(agent: Agent) -> None:
    done = compare(agent, EXAMPLES)
    assert done.total() >= STEPS, f"only {done.total()} steps"
    missing = MUST_HAPPEN - done.keys()
    assert not missing, f"the sequences are duller than they were: no {missing}"


# ---- the test can fail -------------------------------------------------------------------------------------


class ForgetsSeals(Luo):
    """Seals that are added after preserving are not handed over."""

    def reboot(self) -> int:
        answer = super().reboot()
        for session in self.incoming if not answer else ():
            for entry in session.files:
                if entry.inode.kind == MEMFD:
                    pos, size, _, folios = entry.record
                    entry.record = (pos, size, 0, folios)
        return answer


class TruncatesFrozenFiles(Luo):
    def truncate(self, process: int, slot: int, size: int) -> int:
        outgoing, self.outgoing = self.outgoing, []
        try:
            return super().truncate(process, slot, size)
        finally:
            self.outgoing = outgoing


class AllowsTwins(Luo):
    """Two sessions may have the same name."""

    def create(self, process: int, slot: int, name: str) -> int:
        answer = super().create(process, slot, name)
        return 0 if answer == luo.EXIST else answer


@pytest.mark.parametrize("wrong", [ForgetsSeals, TruncatesFrozenFiles, AllowsTwins])
def test_a_model_with_a_wrong_rule_is_found(agent: Agent, wrong: type[Luo]) -> None:
    with pytest.raises(AssertionError, match=r"is not what the model is|right is"):
        compare(agent, EXAMPLES, shrink=False, model_class=wrong)


@pytest.mark.parametrize("function", ["memfd_freeze", "kho_block_set_shrink", "session_release"])
def test_a_kernel_that_does_something_wrong_is_found(agent: Agent, function: str) -> None:
    with pytest.raises(AssertionError, match=r"is not what the model is|right is|no answer"):
        compare(agent, EXAMPLES, shrink=False, broken=function)


def test_a_failure_shows_the_shortest_sequence(agent: Agent) -> None:
    """Here: an update with nothing before it."""
    with pytest.raises(AssertionError) as caught:
        compare(agent, EXAMPLES, model_class=ForgetsSeals)
    said = "\n".join(getattr(caught.value, "__notes__", ()))
    steps = [line.split("(")[0] for line in said.split("\n") if line.startswith("state.")]
    assert steps == ["state.begin", "state.teardown"], said
