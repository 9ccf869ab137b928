"""What our whole core costs: the mixes that the engine can run by itself, there and on our machine.

`counting` compares with our core without the count. Here the other side is the engine as it comes, in a
process into which our core is not loaded: no model of the guest's TLB, no dirty pages, no exceptions through
the guest's IDT. So mixes that need exceptions or devices are not among these; RDTSC is not, because the
engine then asks the host's clock.
"""

from __future__ import annotations

import pickle
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import kernels
from benchmarks import counting
from emu.boot import Boot
from emu.machine import Machine

MIXES = (
    "alu", "callret", "crc", "memcpy8", "rep_movsb", "rep_movsq", "rep_stosb", "rep_stosq",
    "ptwalk", "invlpg", "cr3", "cpuid",
)  # fmt: skip
MEMORY = 256 << 20


def save(mix: str, path: Path) -> None:
    """A machine that is about to begin the mix."""
    with Machine(MEMORY) as m:
        m.boot(Boot(kernels.binary("selftest.elf").read_bytes(), f"do=bench={mix}"))
        while b"do bench" not in m.console:  # what it prints before the "start" line
            m.run(m.ticks + 20)
        pages = [(n, m.memory.read(4096 * n, 4096).tobytes()) for n in m.memory.resident_pages()]
        path.write_bytes(pickle.dumps({"memory": MEMORY, "registers": m.registers(), "pages": pages}))


def seconds(path: Path) -> float:
    """Host seconds of the mix on the engine by itself."""
    command = [sys.executable, "-m", "benchmarks.plain_engine", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"the engine by itself did not finish: {done.stderr[-500:]}")
    return float(done.stdout)


def run(rounds: int = 3) -> dict[str, float]:
    """Ratio of our machine to the engine by itself for each mix, and their median and maximum."""
    ratios: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "machine"
        for mix in MIXES:
            save(mix, path)
            ours, plain = [], []
            for _ in range(rounds):
                plain.append(seconds(path))
                ours.append(counting.seconds(mix, counted=True))
            ratios[mix] = statistics.median(ours) / statistics.median(plain)
    return {**ratios, "median": statistics.median(ratios.values()), "worst": max(ratios.values())}
