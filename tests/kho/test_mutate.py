"""A slice of the mutation campaign, and the whole of it in `make campaign`."""

from __future__ import annotations

from collections import Counter

import pytest

from kho.handover import Handover
from tests.kho import mutate


@pytest.mark.parametrize(("kind", "count"), [("fdt", 4000), ("handover", 250)])
def test_slice(kind: str, count: int) -> None:
    _, done, outcomes, failure = mutate.run_chunk((kind, 0, 0, count))
    assert failure is None, f"{failure.text}\nreplay: {failure.command()}"
    assert done == count
    refused = sum(number for name, number in outcomes.items() if name.startswith("error"))
    assert 0 < refused < count, outcomes
    assert len(outcomes) > 2, outcomes


def test_handovers_are_damaged_in_every_way() -> None:
    _, _, outcomes, _ = mutate.run_chunk(("handover", 3, 0, 150))
    assert len({name for name in outcomes if name.startswith("INV")}) > 8, outcomes
    assert outcomes["no violation"] < 100


def test_cases_do_not_depend_on_each_other() -> None:
    one = [mutate.run_case("handover", 5, number) for number in range(20)]
    other = [mutate.run_case("handover", 5, number) for number in reversed(range(20))]
    assert one == other[::-1]


def test_a_failure_is_found_and_can_be_replayed(monkeypatch: pytest.MonkeyPatch) -> None:
    real = Handover.from_blob

    def broken(blob: bytes) -> object:
        if len(blob) % 7 == 3:
            raise IndexError("on purpose")
        return real(blob)

    monkeypatch.setattr(Handover, "from_blob", broken)
    _, _, _, failure = mutate.run_chunk(("fdt", 1, 0, 500))
    assert failure is not None and "on purpose" in failure.text
    command = failure.command().split()
    assert command[:3] == ["python", "-m", "tests.kho.mutate"]
    with pytest.raises(IndexError, match="on purpose"):
        mutate.main(command[3:])


def test_a_case_that_hangs_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def hang(blob: bytes) -> None:
        while True:
            pass

    monkeypatch.setattr(mutate, "SECONDS_MAX", 0.2)
    monkeypatch.setattr(Handover, "from_blob", hang)
    _, _, _, failure = mutate.run_chunk(("fdt", 1, 0, 5))
    assert failure is not None and "TooSlow" in failure.text


def test_tasks_cover_every_case_once() -> None:
    covered: Counter[tuple[str, int]] = Counter()
    for kind, _, first, last in mutate.tasks(1234, 501, 1):
        covered.update((kind, number) for number in range(first, last))
    assert covered == Counter([("fdt", n) for n in range(1234)] + [("handover", n) for n in range(501)])


@pytest.mark.campaign
def test_campaign() -> None:
    failure = mutate.campaign(1_000_000, 100_000, 1, 2)
    assert failure is None, f"{failure.text}\nreplay: {failure.command()}"
