"""Orders for kernels/user/tests/agent.c, and what came of them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from tests.userspace import rig

TEST = "luo_test=file"
"""Files of /dev/luo_test can be preserved, and do as they are told."""
PROGRAMS = ("agent", "pick")
MIB = 1 << 20

BUSY, NOENT, IO, NOMEM, FAULT, EXIST = -16, -2, -5, -12, -14, -17
INVAL, MFILE, NOSPC, PERM = -22, -24, -28, -1


def command(orders: Iterable[str], generation: int | None = None) -> list[str]:
    """A program for init's plan; with a generation, only there."""
    words = ["agent"]
    for i, order in enumerate(orders):
        words += [","] * bool(i) + order.split()
    if generation is None:
        return words
    # `pick` separates its own commands by commas as well
    return ["pick", str(generation), *(word if word != "," else ";" for word in words)]


def spec(
    kernels: Sequence[str], old: Iterable[str], new: Iterable[str] = (), cmdline: str = TEST, **more: Any
) -> rig.Spec:
    """An update in which the agent of each kernel has these orders. What is open stays open till the end."""
    after = [command(new)] if new else []
    line = f"{rig.SCRATCH} {cmdline}" if "kho_scratch" not in cmdline else cmdline
    return rig.Spec(
        kernels, before=[command([*old, "hold"])], after=after, cmdline=line, programs=PROGRAMS, **more
    )


def answers(outcome: rig.Outcome, when: str) -> list[tuple[str, str]]:
    """(order, answer) of the agents that ran before or after the update."""
    out = []
    for i, program in enumerate(outcome.programs):
        if program.when == when:
            out += [tuple(line.split(": ", 1)) for line in outcome.output(i).strip().split("\n")]
    return out  # type: ignore[return-value]


def expect(outcome: rig.Outcome, when: str, wanted: Iterable[tuple[str, int | str]]) -> None:
    """Orders with what they answer, in turn; an answer with words is compared by its beginning."""
    said = answers(outcome, when)
    listed = [(order, str(answer)) for order, answer in wanted]
    assert [order for order, _ in said] == [order for order, _ in listed], outcome.console[-2000:]
    for (order, answer), (_, right) in zip(said, listed, strict=True):
        assert answer == right or answer.startswith(f"{right} "), f"{order}: {answer} instead of {right}"


def orders(wanted: Iterable[tuple[str, int | str]]) -> list[str]:
    return [order for order, _ in wanted]


def log(outcome: rig.Outcome, *prefixes: str) -> list[str]:
    """Lines of the console that begin so, without it."""
    return [
        line.removeprefix(p) for line in outcome.console.split("\n") for p in prefixes if line.startswith(p)
    ]
