"""Random sequences of calls answered by Linux and by our kernels, before an update, after it, and another.

kernels/user/tests/differ.c draws them: sessions, files of every kind, processes that hold them and die,
arguments of every size. Each step is a line, and our two kernels, whichever begins, have to say the same
lines as three times the reference Linux. There is no list of exceptions: what docs/differences.md says of
seals is drawn only for kernels that run with `luo_strict=linux`, where ours have Linux's reactions.
"""

from __future__ import annotations

import itertools
import re
from pathlib import Path

import pytest

from tests.linux.build import LinuxBuild
from tests.userspace import rig

pytestmark = pytest.mark.linux

CHAINS = (("old", "new", "old"), ("new", "old", "new"))
MEMORY = 256 << 20
"""All sequences of a run stay below half of it, so no answer depends on how much there is."""
PLAIN: tuple[str, str] = ("", "")
STRICT = ("noexec late", "luo_strict=linux")
"""What is drawn in addition, and what our kernels need for it."""
SHOWN = 12


def transcript(
    kernels: tuple[str | Path, ...], seeds: range, steps: int, words: str, cmdline: str
) -> list[str]:
    """The lines of all sequences, of each kernel in turn."""
    order = f"{seeds.start} {len(seeds)} {steps} {words}"
    outcome = rig.run(
        *kernels,
        before=[f"pick 0 differ 0 {order}"],
        after=["pick " + " , ".join(f"{g} differ {g} {order}" for g in range(1, len(kernels)))],
        programs=("differ", "pick"), memory=MEMORY, cmdline=f"{rig.SCRATCH} {cmdline}",
    ).check()  # fmt: skip
    return [line for i in range(len(outcome.programs)) for line in outcome.output(i).splitlines()]


def compare(linux: LinuxBuild, seeds: range, steps: int, words: str, cmdline: str) -> list[str]:
    """Lines of Linux, after all have been compared."""
    bzimage = linux.bzimage
    expected = transcript((bzimage,) * 3, seeds, steps, words, "")
    ends = [line for line in expected if line.endswith(" end")]
    assert ends == [f"{seed}:{phase} end" for phase in range(3) for seed in seeds], "a sequence did not end"
    for chain in CHAINS:
        said = transcript(chain, seeds, steps, words, cmdline)
        pairs = itertools.zip_longest(expected, said)
        for at, (theirs, ours) in enumerate(pairs):
            if theirs != ours:
                before = "\n".join(expected[max(0, at - SHOWN) : at])
                pytest.fail(
                    f"{'-'.join(chain)}, differ {order_of(theirs or ours or '')}:\n{before}\n"
                    f"Linux: {theirs}\nours:  {ours}",
                    pytrace=False,
                )
    return expected


def order_of(line: str) -> str:
    """The sequence that a line is of."""
    found = re.match(r"(\d+):(\d+)", line)
    return f"seed {found[1]}, phase {found[2]}" if found else line


def answers(lines: list[str], call: str) -> set[str]:
    """Results of a kind of step."""
    return {line.rsplit(" = ", 1)[1] for line in lines if re.match(rf"\S+ (\w\d = )?{call}\b", line)}


@pytest.mark.parametrize(("words", "cmdline"), [PLAIN, STRICT], ids=["plain", "strict"])
def test_every_step_is_answered_as_by_linux(linux: LinuxBuild, words: str, cmdline: str) -> None:
    lines = compare(linux, range(1, 8), 120, words, cmdline)
    # that there was something to compare: every error of the interface, and what arrives
    assert answers(lines, "preserve") >= {"0", "-2", "-7", "-9", "-14", "-16", "-17", "-22", "-25"}
    assert answers(lines, "retrieve from") >= {"0", "-2", "-7", "-9", "-14", "-22"}
    assert answers(lines, "retrieve of") >= {"0", "-2", "-7", "-9", "-14", "-22", "-25"}
    assert answers(lines, "create") >= {"0", "-7", "-9", "-14", "-17", "-22", "-25"}
    assert answers(lines, "finish") >= {"0", "-9", "-14", "-22"}
    arrived = [line for line in lines if re.match(r"\d+:[12]\S+ status \w\d / \(deleted\) size [1-9]", line)]
    assert len(arrived) > 10


@pytest.mark.campaign
@pytest.mark.parametrize("first", range(1000, 1120, 30))
def test_many_sequences(linux: LinuxBuild, first: int) -> None:
    words, cmdline = STRICT if first // 30 % 2 else PLAIN
    compare(linux, range(first, first + 30), 220, words, cmdline)
