"""What a DMA write of a large frame costs through the remapping unit, as a multiple of a numpy copy."""

from __future__ import annotations

import struct
import time
from collections.abc import Callable

import numpy as np

from emu.devices.vtd import BASE
from emu.dma import DmaLog
from emu.machine import Machine

FRAME = 9000
_SOURCE = 3 << 3
_TABLES, _BUFFERS = 0x10000, 0x400000


def _microseconds(work: Callable[[], object]) -> float:
    """Best of several rounds, in time of this thread: others on the machine do not count."""
    best = float("inf")
    for _ in range(20):
        start = time.thread_time()
        for _ in range(2000):
            work()
        best = min(best, time.thread_time() - start)
    return best / 2000 * 1e6


def _map(m: Machine) -> None:
    """2 MiB at 2 MiB in one page, and 2 MiB at 0 in pages of 4 KiB; translation on."""

    def write(at: int, *values: int) -> None:
        m.memory.write(at, struct.pack(f"<{len(values)}Q", *values), by="benchmark")

    root, contexts, top, middle, bottom = (_TABLES + 0x1000 * i for i in range(5))
    write(root, contexts | 1, 0)
    write(contexts + 16 * _SOURCE, top | 1, 1 << 8 | 1)
    write(top, middle | 3)
    write(middle, bottom | 3, _BUFFERS | 0x83)
    write(bottom, *(_BUFFERS + 4096 * i | 3 for i in range(512)))
    m.bus.mmio_write(BASE | 0x20, 8, root, 0)
    m.bus.mmio_write(BASE | 0x18, 4, 1 << 30, 0)
    m.bus.mmio_write(BASE | 0x18, 4, 1 << 31, 0)


def run() -> dict[str, float]:
    """Microseconds a frame of 9000 bytes, and ratios."""
    frame = bytes(FRAME)
    source, target = np.frombuffer(frame, np.uint8), np.zeros(1 << 24, np.uint8)

    def copy() -> None:
        target[0x200000 : 0x200000 + FRAME] = source

    with Machine(16 << 20, devices=("vtd",)) as m:
        _map(m)
        port = m.platform.dma
        times = {
            "numpy_copy_us": _microseconds(copy),
            "large_page_us": _microseconds(lambda: port.write(_SOURCE, 0x200000, frame, 0)),
            "small_pages_us": _microseconds(lambda: port.write(_SOURCE, 0, frame, 0)),
        }
        port.observers.append(DmaLog())
        times["logged_us"] = _microseconds(lambda: port.write(_SOURCE, 0x200000, frame, 0))
    return {
        **times,
        "ratio_to_copy": times["large_page_us"] / times["numpy_copy_us"],
        "ratio_of_log": times["logged_us"] / times["large_page_us"],
    }
