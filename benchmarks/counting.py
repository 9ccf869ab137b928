"""What exact counting costs: the self-test guest's micro-benchmarks with and without the block callback.

Without it the engine runs as it comes: exceptions, ports and MSRs still go through our core, but nothing
is counted, time stands still and nothing interrupts. Each mix is timed by the host between the guest's
"start" and "end" lines, alternating, and the ratio of the medians is what counts.
"""

from __future__ import annotations

import statistics
import time

import kernels
from emu.boot import Boot
from emu.machine import Machine, StopKind

MIXES = (
    "alu", "callret", "crc", "memcpy8", "rep_movsb", "rep_movsq", "rep_stosb", "rep_stosq",
    "ptwalk", "invlpg", "cr3", "pf", "int3", "ud2", "syscall", "outb", "inb", "mmio_read", "mmio_write",
    "cpuid", "rdtsc",
)  # fmt: skip


def seconds(mix: str, *, counted: bool) -> float:
    """Host seconds between the guest's "start" and "end" lines of one mix."""
    marks: list[float] = []
    line = bytearray()

    def see(port: int, value: int, now: int) -> None:
        if value != 10:
            line.append(value)
            return
        if line.startswith(b"bench "):
            marks.append(time.perf_counter())
        line.clear()

    with Machine(256 << 20, counted=counted) as m:
        m.serial_sinks.append(see)
        m.boot(Boot(kernels.binary("selftest.elf").read_bytes(), f"do=bench={mix}"))
        stop = m.run(max_instructions=20_000_000_000)
        if stop.kind is not StopKind.POWER_OFF or len(marks) != 2:
            raise RuntimeError(f"{mix}: the guest did not finish: {stop}")
    return marks[1] - marks[0]


def run(rounds: int = 3) -> dict[str, float]:
    """Ratio counted to uncounted of each mix, and their median and maximum."""
    ratios: dict[str, float] = {}
    for mix in MIXES:
        counted, plain = [], []
        for _ in range(rounds):
            plain.append(seconds(mix, counted=False))
            counted.append(seconds(mix, counted=True))
        ratios[mix] = statistics.median(counted) / statistics.median(plain)
    summary = {"median": statistics.median(ratios.values()), "worst": max(ratios.values())}
    return {**ratios, **summary}
