"""What comes out of rounds on luemu and on QEMU."""

from __future__ import annotations

import statistics
from collections.abc import Sequence


def medians(mine: Sequence[float], tcg: Sequence[float], icount: Sequence[float]) -> dict[str, float]:
    """Medians in seconds, and the two ratios."""
    ours, plain, counted = (statistics.median(rounds) for rounds in (mine, tcg, icount))
    return {
        "luemu_seconds": ours,
        "qemu_tcg_seconds": plain,
        "qemu_icount_seconds": counted,
        "ratio_to_tcg": ours / plain,
        "ratio_to_icount": ours / counted,
    }
