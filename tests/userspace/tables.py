"""The tables of docs/differences.md, which tests hold against what they observe."""

from __future__ import annotations

import functools
import re

from kernels.build import project_root


@functools.cache
def table(heading: str) -> list[tuple[str, ...]]:
    """Rows of the first table under a heading, without the header. Cells that are code as a whole lose the
    marks."""
    text = (project_root() / "docs" / "differences.md").read_text()
    found = re.search(rf"^## {re.escape(heading)}\n(.*?)(?=^## |\Z)", text, re.M | re.S)
    assert found, f"docs/differences.md has no part '{heading}'"
    rows: list[tuple[str, ...]] = []
    for line in found[1].split("\n"):
        if not line.startswith("|"):
            if rows:
                break
            continue
        cells = re.split(r"(?<!\\)\|", line.strip().strip("|"))
        rows.append(tuple(_cell(cell) for cell in cells))
    return rows[2:]


def _cell(text: str) -> str:
    text = text.strip().replace("\\|", "|")
    return text[1:-1] if re.fullmatch(r"`[^`]*`", text) else text
