"""What LUO costs our kernels, in instructions of the guest, beside what it costs Linux 7.2.13.

A file is preserved, unpreserved, preserved again, carried over an update, retrieved and finished. One tick
of the machine is one instruction, so the guest's own clock counts them, and the figures are the same in every
run. Linux's are those of its account: medians, by QEMU's exact counting.
"""

from __future__ import annotations

import re

from tests.userspace import rig

LINUX = {
    "preserve": {16: 2_060_831, 64: 8_199_597, 256: 32_729_096, 1024: 130_910_720},
    "unpreserve": {16: 807_027, 64: 3_209_341, 256: 12_816_965, 1024: 51_251_098},
    "retrieve": {16: 4_837_575, 64: 19_389_396, 256: 77_499_493, 1024: 310_015_939},
    "finish": {16: 4_997_126, 64: 22_369_833, 256: 96_037_869, 1024: 390_643_482},
}
"""Instructions of each operation by the size of the file in MiB."""
SIZES = (16, 64, 256, 1024)
PAGES_PER_MIB = 256


def measure(old: str, new: str, sizes: tuple[int, ...] = SIZES) -> dict[str, dict[int, int]]:
    """Instructions of each operation by size in MiB, for files that are handed over from old to new."""
    arguments = " ".join(str(size << 20) for size in sizes)
    outcome = rig.run(
        old, new, before=[f"costs old {arguments}"], after=[f"costs new {arguments}"], programs=["costs"],
        memory=(2 * sum(sizes) + 512) << 20,
    ).check()  # fmt: skip
    out: dict[str, dict[int, int]] = {}
    for program in range(len(outcome.programs)):
        for what, size, cost in re.findall(r"^cost (\S+) (\d+) (\d+)$", outcome.output(program), re.M):
            out.setdefault(what, {})[int(size) >> 20] = int(cost)
    return out


def run() -> dict[str, float]:
    """Instructions a page of each operation at the largest size, ours and Linux's, and how flat ours are."""
    out: dict[str, float] = {}
    for old, new in (("old", "new"), ("new", "old")):
        found = measure(old, new)
        for what, linux in LINUX.items():
            release = old if what in ("preserve", "unpreserve") else new
            by_page = {size: cost / (size * PAGES_PER_MIB) for size, cost in found[what].items()}
            out[f"{what}_{release}"] = by_page[1024]
            out[f"{what}_linux"] = linux[1024] / (1024 * PAGES_PER_MIB)
            out[f"{what}_{release}_flat"] = max(by_page.values()) / min(by_page.values())
    return dict(sorted(out.items()))
