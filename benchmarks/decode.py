"""How long it takes to decode a map of four million order-0 pages."""

from __future__ import annotations

import statistics
import time

import numpy as np

from kho.abi import PAGE_SIZE
from kho.findings import Findings
from kho.memory import Buffer, Reader
from kho.preserved import PreservedSet
from kho.radix import read_tree, write_tree

PAGES = 4 << 20


def run(rounds: int = 5) -> dict[str, float]:
    """Median of the seconds from the root of the tree to a sorted set of blocks."""
    memory = Buffer((PAGES + 4096) * PAGE_SIZE)  # costs what is touched
    taken = iter(range(PAGE_SIZE, 4096 * PAGE_SIZE, PAGE_SIZE))
    phys = (np.arange(PAGES, dtype=np.uint64) + np.uint64(4096)) * np.uint64(PAGE_SIZE)
    root, nodes = write_tree(memory, lambda: next(taken), phys, np.zeros(PAGES, dtype=np.uint8))
    times = []
    for _ in range(rounds):
        start = time.perf_counter()
        tree = read_tree(Reader(memory), root, Findings())
        preserved = PreservedSet(tree.phys, tree.order)
        times.append(time.perf_counter() - start)
        if not np.array_equal(preserved.phys, phys):
            raise RuntimeError("what was decoded is not what was written")
    return {"pages": float(PAGES), "nodes": float(len(nodes)), "seconds": statistics.median(times)}
