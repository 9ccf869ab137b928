"""docs/invariants.md has every invariant, and names tests that are there."""

from __future__ import annotations

from pathlib import Path

from emu.debug.invariants import OBSERVED
from luo.check import TABLE
from tests.linux import test_invariants as in_a_run
from tests.luo import test_invariants as on_images

ROOT = Path(__file__).parent.parent


def test_the_document_has_the_table() -> None:
    text = (ROOT / "docs" / "invariants.md").read_text("utf-8")
    table = in_a_run.BEGIN + in_a_run.markdown() + in_a_run.END
    assert table in text, "run python -m tests.linux.test_invariants and paste the table"


def test_every_invariant_is_checked_somewhere_and_broken_on_purpose() -> None:
    assert list(TABLE) == [f"INV-{n}" for n in range(1, 51)]
    for row in TABLE.values():
        on_image = row.check is not None or row.id in on_images.BETWEEN_MOMENTS
        assert on_image or row.id in OBSERVED, f"nothing checks {row.id}"
        if row.check is not None:
            assert on_images.BREAKS[row.id], f"nothing breaks {row.id} in an image"
        if row.id in OBSERVED:
            assert in_a_run.BREAKS[row.id], f"nothing breaks {row.id} in a run"


def test_no_way_has_the_name_of_another() -> None:
    names = [way.__name__ for ways in in_a_run.BREAKS.values() for _, way in ways]
    assert len(names) == len(set(names))
