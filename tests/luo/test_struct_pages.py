"""Rows that an image alone cannot tell, told by the .json beside it."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from emu.cli import main
from emu.debug.struct_pages import StructPages
from kho.abi import PAGE_SIZE, RESTORE_MAGIC
from kho.builder import MIB, Built
from kho.handover import Handover
from kho.memory import Buffer, Reader
from luo.state import Luo
from tests.luo.images import build

# ---- struct pages --------------------------------------------------------------------------------


@pytest.mark.parametrize(("size", "private_at"), [(64, 40), (56, 0), (64, 56), (8, 0), (4096, 4088)])
def test_every_page_is_found_in_its_array(size: int, private_at: int) -> None:
    rng = random.Random(size)
    memory = Buffer(2 * MIB, 0x400000)
    memory.write(0x400000, rng.randbytes(2 * MIB))
    arrays: list[tuple[int, int, int]] = []
    phys, frame = 0x400000, 0
    while len(arrays) < 7:
        frame += rng.randrange(20)
        count = rng.randrange(1, 40)
        arrays.append((phys, frame, count))
        phys += count * size + 8 * rng.randrange(50)
        frame += count
    pages = StructPages(size, private_at, arrays)
    assert StructPages.parse(json.loads(json.dumps(pages.plain()))) == pages
    asked = np.array(rng.sample(range(frame + 30), frame + 30), np.uint64) << np.uint64(12)
    found = pages.states(Reader(memory)).private(asked)
    for at, value in zip(asked.tolist(), found.tolist(), strict=True):
        expected = 0
        for start, first, count in arrays:
            if first <= at >> 12 < first + count:
                where = start + ((at >> 12) - first) * size + private_at
                expected = int.from_bytes(memory.read(where, 8).tobytes(), "little")
        assert value == expected, hex(at)


def test_no_array_at_all() -> None:
    states = StructPages(64, 40, []).states(Reader(Buffer(4096)))
    assert states.private(np.array([0, 4096], np.uint64)).tolist() == [0, 0]


ARRAYS = [[0x1000, 0, 10], [0x8000, 10, 5]]
MALFORMED: dict[str, dict[str, Any]] = {
    "size 0": {"size": 0, "private_at": 0, "arrays": ARRAYS},
    "odd size": {"size": 60, "private_at": 40, "arrays": ARRAYS},
    "large size": {"size": 8192, "private_at": 40, "arrays": ARRAYS},
    "private outside": {"size": 64, "private_at": 64, "arrays": ARRAYS},
    "private negative": {"size": 64, "private_at": -8, "arrays": ARRAYS},
    "arrays overlap": {"size": 64, "private_at": 40, "arrays": [[0x1000, 0, 10], [0x8000, 9, 5]]},
    "empty array": {"size": 64, "private_at": 40, "arrays": [[0x1000, 0, 0]]},
    "end of addresses": {"size": 64, "private_at": 40, "arrays": [[(1 << 64) - 64, 0, 2]]},
    "frames": {"size": 64, "private_at": 40, "arrays": [[0x1000, (1 << 52) - 1, 2]]},
    "misaligned": {"size": 64, "private_at": 40, "arrays": [[0x1001, 0, 1]]},
    "two numbers": {"size": 64, "private_at": 40, "arrays": [[1, 2]]},
    "text": {"size": 64, "private_at": 40, "arrays": [["a", 0, 1]]},
    "no size": {"private_at": 40, "arrays": ARRAYS},
    "no list": {"size": 64, "private_at": 40, "arrays": 7},
    "too many": {"size": 64, "private_at": 40, "arrays": [[8 * i, i, 1] for i in range(1 << 16 | 1)]},
}


@pytest.mark.parametrize("what", MALFORMED)
def test_malformed_places_are_refused(what: str) -> None:
    with pytest.raises((ValueError, TypeError, KeyError)):
        StructPages.parse(MALFORMED[what])


# ---- luemu check ---------------------------------------------------------------------------------

STRUCT_PAGE, PRIVATE_AT = 64, 40


def read(built: Built) -> Handover:
    return Handover.read(built.memory, built.fdt_phys, built.scratch_list)


def image_at_f(tmp_path: Path, change: Callable[[Built, int, dict[str, Any]], None] | None = None) -> Path:
    """A handover at F, with struct pages behind everything else, and what its .json says."""
    built = build("F")
    handover = read(built)
    data = built.memory.data
    frames, at = len(data) // PAGE_SIZE, len(data)
    pages = np.zeros((frames, STRUCT_PAGE // 8), np.uint64)
    for phys, order in zip(handover.preserved.phys.tolist(), handover.preserved.order.tolist(), strict=True):
        pages[phys >> 12, PRIVATE_AT // 8] = RESTORE_MAGIC << 32 | order
    built.memory = Buffer(len(data) + pages.nbytes)
    built.memory.write(0, data)
    built.memory.write(at, pages.tobytes())
    luo = Luo.read(handover)
    assert luo is not None and handover.scratch is not None
    facts: dict[str, Any] = {
        "moment": "F",
        "kho_fdt_pa": hex(handover.fdt_phys or 0),
        "scratch": [[a.phys, a.size] for a in handover.scratch],
        "earlier_scratch": [[a.phys, a.size] for a in handover.scratch],
        "received_number": luo.liveupdate_num - 1,
        "expected_sha256": {
            f"{s.name}/{f.token:#x}": f.memfd.sha256(handover.reader)
            for s in luo.sessions for f in s.files if f.memfd is not None
        },
        "struct_pages": StructPages(STRUCT_PAGE, PRIVATE_AT, [(at, 0, frames)]).plain(),
    }  # fmt: skip
    if change is not None:
        change(built, at, facts)
    path = tmp_path / "image.raw"
    path.write_bytes(built.memory.data.tobytes())
    (tmp_path / "image.json").write_text(json.dumps(facts))
    return path


def check(path: Path, capsys: pytest.CaptureFixture[str]) -> tuple[int, dict[str, Any]]:
    status = main(["check", "--json", str(path)])
    return status, json.loads(capsys.readouterr().out)


TOLD = {"INV-4", "INV-14", "INV-26", "INV-35"}
"""Rows of F that need what the .json says."""


def test_all_rows_of_f_are_checked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, report = check(image_at_f(tmp_path), capsys)
    assert (status, report["violations"], report["moment"]) == (0, [], "F")
    assert set(report["checked"]) >= TOLD and not set(report["not_checked"]) & TOLD
    assert report["checked"] == sorted(report["checked"], key=lambda id: int(id[4:]))


def a_struct_page_loses_its_magic(built: Built, at: int, facts: dict[str, Any]) -> None:
    phys = read(built).preserved.phys.tolist()[3]
    built.memory.write(at + (phys >> 12) * STRUCT_PAGE + PRIVATE_AT, bytes(8))


def a_byte_of_a_file_changes(built: Built, at: int, facts: dict[str, Any]) -> None:
    luo = Luo.read(read(built))
    assert luo is not None
    memfd = next(f.memfd for s in luo.sessions for f in s.files if f.memfd is not None and f.memfd.size)
    where = int(memfd.folio_phys[0])
    built.memory.write(where, bytes([int(built.memory.read(where, 1)[0]) ^ 1]))


def the_chain_had_another_scratch(built: Built, at: int, facts: dict[str, Any]) -> None:
    facts["earlier_scratch"][0][1] += 4 * MIB


def the_number_skips_one(built: Built, at: int, facts: dict[str, Any]) -> None:
    facts["received_number"] += 1


@pytest.mark.parametrize(
    ("change", "id"),
    [
        (a_struct_page_loses_its_magic, "INV-35"),
        (a_byte_of_a_file_changes, "INV-26"),
        (the_chain_had_another_scratch, "INV-4"),
        (the_number_skips_one, "INV-14"),
    ],
)
def test_what_is_told_is_compared(
    change: Callable[[Built, int, dict[str, Any]], None],
    id: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    status, report = check(image_at_f(tmp_path, change), capsys)
    assert status == 1
    (violation,) = report["violations"]
    assert (violation["id"], violation["moment"]) == (id, "F") and violation["phys"] is not None


def test_struct_pages_that_are_not_in_the_image(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def outside(built: Built, at: int, facts: dict[str, Any]) -> None:
        facts["struct_pages"]["arrays"] = [[1 << 50, 0, 1 << 20]]

    status, document = check(image_at_f(tmp_path, outside), capsys)
    assert (status, document["ok"]) == (2, False) and document["error"]["kind"]


def test_a_json_that_makes_no_sense_is_ignored(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def damaged(built: Built, at: int, facts: dict[str, Any]) -> None:
        facts["struct_pages"] = {"size": -1}

    path = image_at_f(tmp_path, damaged)
    main(["check", "--json", str(path), "--moment", "F"])
    shown = capsys.readouterr()
    assert "image.json is ignored" in shown.err
    assert "INV-35" in json.loads(shown.out)["not_checked"]
