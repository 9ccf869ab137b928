"""Every allocation of iommufd's calls, and of its handler, fails once: the call says so, nothing remains of
it, and the next one works."""

from __future__ import annotations

import pytest

from luo.check import check
from luo.state import Luo
from tests.userspace import iommufd as i
from tests.userspace import rig
from tests.userspace.agents import MIB, NOMEM, answers
from tests.userspace.test_iommufd import (
    ATTACHED,
    HANDED,
    IOVA,
    OPENED,
    PRESERVE,
    RETRIEVED,
    WORKING,
    Step,
    compare,
    memory,
    steps_spec,
)
from tests.userspace.test_no_memory import each_allocation

AT = 0x1000_0000_0000


def results(outcome: rig.Outcome, when: str) -> list[int]:
    return [int(answer.split()[0]) for _, answer in answers(outcome, when)]


@pytest.mark.parametrize(
    ("function", "before", "call", "after", "least"),
    [
        ("iommufd_ioas_map", [*memory(), *OPENED, *ATTACHED], i.ioas_map(2, 1, AT, 3 * 4096, IOVA),
         [(i.ioas_unmap(2, 1, IOVA, 3 * 4096), 0), (i.detach(3), 0), (i.destroy(2, 1), 0)], 3),
        ("iommufd_attach", [*memory(), *OPENED, (i.ioas_map(2, 1, AT, 4 * MIB, IOVA), 0), *ATTACHED[:2]],
         i.attach(3, 1), [(i.detach(3), 0), (i.destroy(2, 1), 0), (i.destroy(2, 3), -2)], 4),
        ("iommufd_bind", [*OPENED, ATTACHED[0]], i.bind(3, 2), [(i.attach(3, 1), 0)], 1),
        ("iommufd_ioas_copy", [*WORKING, (i.ioas_alloc(2), 0)], i.ioas_copy(2, 4, 1, MIB, 0, IOVA),
         [(i.destroy(2, 4), 0)], 2),
    ],
)  # fmt: skip
def test_a_call(function: str, before: list[Step], call: str, after: list[Step], least: int) -> None:
    """It is made twice: what could not be had the first time is there the second."""
    steps = [*before, (call, 0)]
    with rig.Rig(steps_spec([*steps, (call, 0), *after])) as r:

        def verify(outcome: rig.Outcome, failed: int) -> None:
            outcome.check()
            said = results(outcome, "before")
            first, second, rest = said[len(before)], said[len(before) + 1], said[len(steps) + 1 :]
            assert first in (0, NOMEM)
            assert second == 0 or first == 0, f"allocation {failed}: {second}"
            assert rest == [right for _, right in after], f"allocation {failed}"
            assert not outcome.log("BUG") and not outcome.log("WARN")

        each_allocation(r, 0, function, verify, least)


def test_preserving() -> None:
    """A second attempt, and then all is handed over."""
    start = len(HANDED) - len(PRESERVE)
    steps = [*HANDED[: start + 1], PRESERVE[1], *PRESERVE[1:]]
    new = [*RETRIEVED, ("finish 0", 0)]
    with rig.Rig(steps_spec(steps, new)) as r:

        def verify(outcome: rig.Outcome, failed: int) -> None:
            outcome.check()
            first, second = results(outcome, "before")[start + 1 : start + 3]
            assert (first, second) in ((NOMEM, 0), (0, -16), (0, -17)), f"allocation {failed}"
            assert results(outcome, "after")[:5] == [0] * 5
            assert not outcome.log("refused") and not outcome.log("stay reserved")

        each_allocation(r, 0, "iommufd_preserve", verify, 1)


def test_retrieving() -> None:
    """There is one attempt. What could not be retrieved is stopped and freed at the end."""
    new = [*RETRIEVED, ("finish 0", 0)]
    with rig.Rig(steps_spec(HANDED, new)) as r:
        r.run_to(0, "kexec:jump")
        assert check(r.handover(0), "J").violations == [] and Luo.read(r.handover(0)) is not None

        def verify(outcome: rig.Outcome, failed: int) -> None:
            outcome.check()
            said = results(outcome, "after")
            assert said[3] in (0, NOMEM)
            if not said[3]:
                compare(outcome, "after", new)
            assert not outcome.log("BUG") and not outcome.log("WARN")

        each_allocation(r, 1, "iommufd_retrieve", verify, 4)
