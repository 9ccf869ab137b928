"""A finding: one way in which a handover breaks a numbered invariant, recorded by whoever read the bytes.

Decoders go on after a finding wherever that makes sense. The checkers turn findings into violations of a
moment.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

FINDINGS_PER_ID_MAX = 1000  # hostile input must not fill memory with messages


@dataclass(frozen=True)
class Finding:
    """What is wrong (``message``), which invariant that breaks (``id``) and the address concerned, if any."""

    id: str
    message: str
    phys: int | None = None
    tree: bool = False
    """It says that something is not in the tree (or is there wrongly), so it means nothing without a whole
    tree.
    """


@dataclass
class Findings:
    """Findings in the order they were made, at most `FINDINGS_PER_ID_MAX` for one id; the rest is counted."""

    items: list[Finding] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)

    def add(self, id: str, message: str, phys: int | None = None, *, tree: bool = False) -> None:
        """Record one finding."""
        self.counts[id] += 1
        if self.counts[id] <= FINDINGS_PER_ID_MAX:
            self.items.append(Finding(id, message, phys, tree))

    def add_more(self, id: str, count: int) -> None:
        """Count `count` further findings of `id` that are not worth a message each."""
        self.counts[id] += count

    def of(self, id: str) -> list[Finding]:
        """Findings of one invariant; a last one says how many were left out."""
        found = [f for f in self.items if f.id == id]
        left_out = self.counts[id] - len(found)
        if left_out > 0:
            found.append(Finding(id, f"and {left_out} more of the same kind"))
        return found

    def __iter__(self) -> Iterator[Finding]:
        return iter(self.items)

    def __contains__(self, id: str) -> bool:
        return self.counts[id] > 0
