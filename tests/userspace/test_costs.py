"""What LUO costs is counted in instructions, so it is the same in every run, and has bars.

A page costs no more than in Linux 7.2.13 (its account: 500 to preserve, 196 to undo it, 1,183 to retrieve,
1,219 to 1,490 to finish, freeing included), whatever the size of the file.
"""

from __future__ import annotations

import pytest

from benchmarks.preserving import LINUX, PAGES_PER_MIB, measure

BARS = {"preserve": 500, "unpreserve": 196, "retrieve": 1183, "finish": 1219}
SIZES = (16, 128, 1024)
FLAT = 1.06
"""The dearest size costs this much more a page than the cheapest."""


PAIRS = [
    pytest.param(("old", "new"), marks=pytest.mark.campaign, id="old-new"),
    pytest.param(("new", "old"), id="new-old"),
]


@pytest.fixture(scope="module", params=PAIRS)
def costs(request: pytest.FixtureRequest) -> dict[str, dict[int, int]]:
    old, new = request.param
    return measure(old, new, SIZES)


@pytest.mark.parametrize("what", BARS)
def test_a_page_costs_no_more_than_in_linux_whatever_the_size(
    what: str, costs: dict[str, dict[int, int]]
) -> None:
    by_page = {size: costs[what][size] / (size * PAGES_PER_MIB) for size in SIZES}
    assert max(by_page.values()) <= BARS[what], f"{what}: {by_page}"
    assert max(by_page.values()) <= FLAT * min(by_page.values()), f"{what}: {by_page}"
    assert min(by_page.values()) > 10, "so little that nothing can have been done"


def test_the_bars_are_those_of_the_account() -> None:
    for what, bar in BARS.items():
        by_page = [cost / (size * PAGES_PER_MIB) for size, cost in LINUX[what].items()]
        assert min(by_page) - 2 <= bar <= max(by_page) + 2


@pytest.mark.parametrize("operation", ["open", "first-preserve"])
def test_other_costs_are_bounded_too(operation: str, costs: dict[str, dict[int, int]]) -> None:
    """Opening the device verifies all records; the first preserve moves what lies in scratch."""
    total = sum(costs[operation].values())
    assert 0 < total / (sum(SIZES) * PAGES_PER_MIB) < 6000
