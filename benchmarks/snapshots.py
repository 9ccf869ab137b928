"""What a snapshot and a restore cost with 100 dirty pages, on a small and on a large machine."""

from __future__ import annotations

import statistics
import time

import kernels
from emu.boot import Boot
from emu.machine import Machine

DIRTY_PAGES = 100
_FIRST = 32 << 20


def microseconds(memory: int, rounds: int = 200) -> tuple[float, float]:
    """Medians of (snapshot, restore) in microseconds on a machine with ``memory`` bytes."""
    taken: list[float] = []
    restored: list[float] = []
    with Machine(memory) as m:
        m.boot(Boot(kernels.binary("selftest.elf").read_bytes(), "only=lapic"))
        m.run(3_000_000)
        m.snapshot()
        for i in range(rounds):
            for page in range(DIRTY_PAGES):
                m.memory.write(_FIRST + 4096 * page + i % 8, b"a", by="benchmark")
            start = time.perf_counter()
            snapshot = m.snapshot()
            taken.append(time.perf_counter() - start)
            for page in range(DIRTY_PAGES):
                m.memory.write(_FIRST + 4096 * page + i % 8, b"b", by="benchmark")
            start = time.perf_counter()
            m.restore(snapshot)
            restored.append(time.perf_counter() - start)
    return statistics.median(taken) * 1e6, statistics.median(restored) * 1e6


def run() -> dict[str, float]:
    """Microseconds for 64 MiB and 16 GiB, and the ratios large to small."""
    small, large = microseconds(64 << 20), microseconds(16 << 30)
    return {
        "snapshot_us_64MiB": small[0],
        "snapshot_us_16GiB": large[0],
        "snapshot_ratio": large[0] / small[0],
        "restore_us_64MiB": small[1],
        "restore_us_16GiB": large[1],
        "restore_ratio": large[1] / small[1],
    }
