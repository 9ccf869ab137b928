"""lu.c, the program that made the recordings of Linux 7.2.13, unmodified on our kernels: same answers.

`@@P` lines are calls and their results, `@@I` lines are observations. Numbers that depend on the machine
(time, free memory) are left out of the comparison; everything else that differs stands in
docs/differences.md, line by line.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from kernels.build import project_root
from tests.linux.build import required
from tests.userspace import rig
from tests.userspace.tables import table

PROBE = project_root() / "tests" / "data" / "probe"
MEMORY = 512 << 20
"""What the recordings were made with: what is refused for want of memory depends on it."""

# In these lines two calls are arguments of one printf, and the second one shows what the first one changed.
# The compiler decides which comes first: for gcc, that made the recordings, it is the right one.
ORDER = {
    "@@I F_ADD_SEALS SHRINK after preserve: 0, seals now 0x0":
        "@@I F_ADD_SEALS SHRINK after preserve: 0, seals now 0x2",
    "@@I write to token3=1 pos=3": "@@I write to token3=1 pos=4",
}  # fmt: skip
MACHINE = (r"last \d+ took \d+ us", r"(MemTotal|MemFree|Shmem): +\d+ kB")


def said(lines: str) -> list[str]:
    """Lines of lu.c without what depends on the machine."""
    out = [line for line in lines.split("\n") if line.startswith("@@")]
    for pattern in MACHINE:
        out = [re.sub(pattern, lambda m: m[0].split(":")[0].split(" took")[0], line) for line in out]
    return out


def recorded(name: str) -> list[str]:
    return said((PROBE / name).read_text())


def expect(recording: str, observed: list[str], order: dict[str, str] | None = None) -> None:
    """The same lines as the recording, but for those in docs/differences.md."""
    order = ORDER if order is None else order
    listed = {row[0]: row[1] for row in table("Answers to programs")}
    wanted = [order.get(line, listed.get(line, line)) for line in recorded(recording)]
    missing, more = [w for w in wanted if w not in observed], [o for o in observed if o not in wanted]
    assert observed == wanted, f"{recording}, expected: {missing}, instead: {more}"


def all_output(outcome: rig.Outcome) -> list[str]:
    return said("\n".join(outcome.output(i) for i in range(len(outcome.programs))))


def test_at_most_eight_calls_are_answered_in_another_way() -> None:
    """A list of differences is no licence: each must be in a recording, be real, and concern a defect."""
    everything = recorded("probe1.txt") + recorded("probe2.txt") + recorded("after-preserve.txt")
    rows = table("Answers to programs")
    for linux, ours, why in rows:
        assert linux in everything, f"no recording has the line {linux}"
        assert linux != ours and why
    assert sum(row[0].startswith("@@P") for row in rows) <= 8


@pytest.mark.parametrize("release", ["old", "new"])
def test_every_use_and_abuse_of_the_interface_is_answered_as_by_linux(release: str) -> None:
    outcome = rig.run(release, before=["lu probe1"], memory=MEMORY).check()
    expect("probe1.txt", all_output(outcome))


@pytest.mark.parametrize("kernels", [("old", "new", "old"), ("new", "old", "new")], ids="-".join)
def test_the_next_two_kernels_answer_as_linux_does(kernels: tuple[str, ...]) -> None:
    """Sessions that are retrieved, closed, finished, left alone; the one preserved again reaches the third
    kernel, those that nobody finished do not."""
    outcome = rig.run(
        *kernels, before=["pick 0 lu pstage1"], after=["pick 1 lu probe2 , 2 lu probe3"], memory=MEMORY
    ).check()
    expect("probe2.txt", all_output(outcome))


@pytest.mark.parametrize("release", ["old", "new"])
def test_memory_of_files_that_come_and_go_is_managed(release: str) -> None:
    """MemTotal grows by what was restored, page for page as in the recording."""

    def totals(text: str) -> list[int]:
        return [int(n) for n in re.findall(r"MemTotal: +(\d+) kB", text)]

    outcome = rig.run("old", release, before=["lu pstage1"], after=["lu probe2"], memory=MEMORY).check()
    ours, linux = totals(outcome.output()), totals((PROBE / "probe2.txt").read_text())
    assert len(ours) == 3
    assert [n - ours[0] for n in ours] == [n - linux[0] for n in linux]


@pytest.mark.parametrize("kernels", [("old", "new"), ("new", "old")], ids="-".join)
def test_changes_after_preserve_arrive(kernels: tuple[str, ...]) -> None:
    """Contents, position and seals as they are at the jump; what is beyond the end of the file, too."""
    outcome = rig.run(*kernels, before=["lu post1"], after=["lu post2"], memory=MEMORY).check()
    expect("after-preserve.txt", all_output(outcome))


# ---- with Linux -------------------------------------------------------------------------------------------


def linux() -> Path:
    build = required()
    return build.bzimage


@pytest.mark.linux
def test_linux_still_answers_as_recorded() -> None:
    """The recordings and the compilers' order of evaluation are not our invention."""
    kernel = linux()
    outcome = rig.run(kernel, before=["lu probe1"], memory=MEMORY).check()
    assert all_output(outcome) == recorded("probe1.txt")
    outcome = rig.run(kernel, kernel, before=["lu post1"], after=["lu post2"], memory=MEMORY).check()
    assert all_output(outcome) == [ORDER.get(line, line) for line in recorded("after-preserve.txt")]


@pytest.mark.linux
def test_lu_as_gcc_made_it_says_what_was_recorded() -> None:
    """The same binary as on Linux, on ours: no line differs for the compiler's sake."""
    lu = [("/bin/lu-gcc", required().lu.read_bytes())]
    outcome = rig.run(
        "old", "new", before=["lu-gcc post1"], after=["lu-gcc post2"], memory=MEMORY, files=lu
    ).check()
    expect("after-preserve.txt", all_output(outcome), order={})


@pytest.mark.linux
@pytest.mark.parametrize("place", [0, 1, 2])
def test_linux_anywhere_in_the_chain_changes_no_answer(place: int) -> None:
    kernels: list[str | Path] = ["old", "new", "old"]
    kernels[place] = linux()
    outcome = rig.run(
        *kernels, before=["pick 0 lu pstage1"], after=["pick 1 lu probe2 , 2 lu probe3"], memory=MEMORY
    ).check()
    expect("probe2.txt", all_output(outcome))
