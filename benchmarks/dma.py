"""What a frame of 9000 bytes costs, as a multiple of a numpy copy: a DMA write through the remapping unit,
and all that the network card does with it, with and without the log of DMA. What idle devices cost."""

from __future__ import annotations

import struct
import time
from collections.abc import Callable

import numpy as np

import kernels
from emu.boot import Boot
from emu.devices.vtd import BASE
from emu.dma import DmaLog
from emu.machine import Machine
from emu.traffic import Frame

FRAME = 9000
_SOURCE = 2 << 3
_CARD = 0xC000_0000
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


class _Card:
    """The network card with a ring of `RING` buffers in the large page, and software that gives them back."""

    RING, SIZE = 64, 16384

    def __init__(self, m: Machine) -> None:
        self.m, self.card = m, m.platform.card()
        config = 0xB000_0000 | 2 << 15
        m.bus.mmio_write(config | 0x10, 4, _CARD, 0)
        m.bus.mmio_write(config | 4, 2, 6, 0)
        for i in range(self.RING):  # in the large page, behind where the other measurements write
            buffer = 0x210000 + i * self.SIZE
            m.memory.write(_BUFFERS + 0x1F0000 + 16 * i, struct.pack("<QQ", buffer, 0), by="benchmark")
        for register, value in (
            (0x2800, 0x3F0000),
            (0x2808, 16 * self.RING),
            (0x100, 1 << 25 | 1 << 16 | 0x0400_8022),
        ):
            m.bus.mmio_write(_CARD | register, 4, value, 0)

    def give(self) -> None:
        """All but one descriptor are the card's."""
        r = self.card.s.regs
        m = self.m
        m.bus.mmio_write(_CARD | 0x2818, 4, (r["RDH"] - 1) % self.RING, 0)

    def receive(self, frame: bytes) -> Callable[[], None]:
        """Take one frame; now and then the ring is given back."""
        count = 0

        def work() -> None:
            nonlocal count
            if not count & 31:
                self.give()
            count += 1
            self.card.receive(frame, 0)

        return work


def _idle() -> float:
    """Host time of a guest that computes, on a machine with all devices as a multiple of one with none."""
    image = kernels.binary("selftest.elf").read_bytes()
    best: dict[tuple[str, ...], float] = {}
    for _ in range(5):
        for devices in ((), ("vtd", "bridge", "e1000", "edu", "bridge/e1000")):
            with Machine(256 << 20, devices=devices, traffic="" if devices else None) as m:
                m.boot(Boot(image, "do=bench=crc"))
                start = time.thread_time()
                m.run(max_instructions=300_000_000)
                best[devices] = min(best.get(devices, 1e9), time.thread_time() - start)
    plain, loaded = best.values()
    return loaded / plain


def run() -> dict[str, float]:
    """Microseconds a frame of 9000 bytes, and ratios."""
    frame = Frame(0, 0, 0, FRAME).build()
    source, target = np.frombuffer(frame, np.uint8), np.zeros(1 << 24, np.uint8)

    def copy() -> None:
        target[0x200000 : 0x200000 + FRAME] = source

    with Machine(16 << 20, devices=("vtd", "e1000")) as m:
        _map(m)
        port = m.platform.dma
        receive = _Card(m).receive(frame)
        times = {
            "numpy_copy_us": _microseconds(copy),
            "large_page_us": _microseconds(lambda: port.write(_SOURCE, 0x200000, frame, 0)),
            "small_pages_us": _microseconds(lambda: port.write(_SOURCE, 0, frame, 0)),
            "card_us": _microseconds(receive),
        }
        m.platform.card().receive(frame, 0)
        assert not m.platform.card().s.statistics["RNBC"], "the ring was empty"
        assert m.memory.copy(_BUFFERS + 0x10000, FRAME) == frame, "the frame does not get there"
        port.observers.append(DmaLog())
        times["logged_us"] = _microseconds(lambda: port.write(_SOURCE, 0x200000, frame, 0))
        times["card_logged_us"] = _microseconds(receive)
    return {
        **times,
        "ratio_to_copy": times["large_page_us"] / times["numpy_copy_us"],
        "ratio_of_log": times["logged_us"] / times["large_page_us"],
        "card_to_copy": times["card_us"] / times["numpy_copy_us"],
        "card_ratio_of_log": times["card_logged_us"] / times["card_us"],
        "ratio_of_idle": _idle(),
    }
