"""Updates of our kernels on QEMU and on our machine: the same images, the same words.

The first kernel boots by PVH on both, and the images of the others are in the initramfs, so from the first
update on a bzImage runs that our kernel has loaded, on a machine that QEMU made. Everything the kernels can
print is switched on. Folios, struct pages, zones and digests depend on every allocation before them, so equal
lines say that all of it went the same way.
"""

from __future__ import annotations

import difflib
import functools
import re

import pytest

import kernels
from emu.initramfs import Initramfs
from emu.machine import StopKind
from tests.guest.running import on_luemu, on_qemu

MEMORY_MIB = 256
LINES_MIN = 150
"""lines of each kernel"""
CMDLINE = "kho=on selftest=on loglevel=8 memblock=debug reserve_mem=64K:4K:one test_kho.max_mem=2M"

MAY_DIFFER: tuple[re.Pattern[str], ...] = ()
"""Lines that are left out of the comparison, at most six patterns: none is needed. The memory map and the
place of the initramfs are the same on both machines, and the kernels print nothing that depends on time."""


@functools.cache
def initramfs(chain: str) -> bytes:
    """The images of a chain but the first, and in which order they are started."""
    _, *rest = chain.split()
    files = Initramfs()
    for release in sorted(set(rest)):
        files.add_file(f"/boot/{release}", kernels.binary(f"{release}.bzImage").read_bytes())
    files.add_file("/boot/chain", "".join(f"/boot/{release}\n" for release in rest).encode())
    return files.build()


@functools.cache
def ours(chain: str) -> str:
    run = on_luemu(
        chain.split()[0], CMDLINE, memory_mib=MEMORY_MIB, initramfs=initramfs(chain),
        max_instructions=3_000_000_000, max_seconds=60,
    )  # fmt: skip
    assert run.stop.kind is StopKind.POWER_OFF, run.text[-2000:]
    return run.text


def compared(text: str) -> list[str]:
    return [line for line in text.splitlines() if not any(p.search(line) for p in MAY_DIFFER)]


def kernels_of(text: str) -> list[str]:
    return re.split(r"^(?=luemu kernel )", text, flags=re.MULTILINE)[1:]


CHAINS = ["old new", "new old", "old new old new"]
PHASES = {
    "all": ["x86: Command line:", "Zone ranges:", "MEMBLOCK configuration:", "Mem-Info:", "calling kho_init"],
    "saves": ["test_kho: saved ", "luemu: next kernel ", "kexec-bzImage64: kernel at", "Starting new kernel"],
    "restores": ["KHO: found kexec handover data.", "KHO: exec from: ", "test_kho: KHO restore succeeded"],
}
"""What the phases of a kernel print, of one that has a next kernel and of one that has an earlier kernel."""


@pytest.mark.parametrize("chain", CHAINS)
def test_the_same_words_on_qemu(chain: str) -> None:
    first = chain.split()[0]
    theirs = on_qemu(first, CMDLINE, memory_mib=MEMORY_MIB, initramfs=initramfs(chain), timeout=120)
    one, two = compared(theirs), compared(ours(chain))
    found = list(difflib.unified_diff(one, two, "QEMU", "luemu", lineterm="", n=1))
    assert not found, "\n".join(found[:60])


@pytest.mark.parametrize("chain", CHAINS)
def test_there_is_much_to_compare(chain: str) -> None:
    """At least so many lines of each kernel, from every phase."""
    text = ours(chain)
    assert text.endswith("luemu: verdict ok\n"), text[-2000:]
    parts = kernels_of(text)
    assert len(parts) == len(chain.split())
    for g, part in enumerate(parts):
        assert len(compared(part)) >= LINES_MIN, f"kernel {g} prints {len(compared(part))} lines"
        wanted = list(PHASES["all"])
        wanted += PHASES["restores"] if g else []
        wanted += PHASES["saves"] if g < len(parts) - 1 else []
        assert [w for w in wanted if w not in part] == [], f"kernel {g}"
        assert re.search(r"^test_kho: order +\d+: \d+ folios, \d+ pages, checksum", part, re.MULTILINE)
        assert "trap test: backtrace through calls:\ntrap test:   trace_inner\n" in part


def test_patterns_are_anchored_and_few() -> None:
    assert len(MAY_DIFFER) <= 6
    assert all(p.pattern.startswith("^") and p.pattern.endswith("$") for p in MAY_DIFFER)


def test_a_difference_is_seen() -> None:
    """Another seed is a difference in what both print."""
    text = on_qemu("old", f"{CMDLINE} seed=2", memory_mib=MEMORY_MIB, initramfs=initramfs("old new"))
    assert compared(text) != compared(ours("old new"))
