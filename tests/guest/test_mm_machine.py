"""The memory management in running kernels: its own test in machines of every size; what booting costs."""

from __future__ import annotations

import re

import pytest

from emu import Machine
from emu.boot import Boot
from emu.machine import StopKind
from tests.guest.running import RELEASES
from tests.guest.test_kho_machine import adopt, image, pages_from

MIB, GIB, PAGE = 1 << 20, 1 << 30, 4096


def boot(release: str, memory: int, cmdline: str) -> tuple[str, int, int]:
    """Text, instructions, and bytes of RAM that were touched, of a kernel that switches itself off."""
    with Machine(memory) as m:
        m.boot(Boot(image(release), cmdline=cmdline))
        stop = m.run(max_instructions=400_000_000)
        text = m.console.decode("ascii").replace("\r\n", "\n")
        assert stop.kind is StopKind.POWER_OFF, f"{stop}\n{text[-2000:]}"
        return text, m.instructions, len(m.memory.resident_pages()) * PAGE


def passed(text: str) -> bool:
    """Did the self-test run to its end without a failed check?"""
    found = re.search(r"^selftest mm: (\d+) checks, (\d+) failed$", text, re.MULTILINE)
    assert found, text[-2000:]
    return int(found[1]) > 10_000 and int(found[2]) == 0


def managed(text: str) -> int:
    """Bytes that the page allocator had at the end, after its lists were verified."""
    found = re.search(r"^luemu: (\d+) pages managed,.*\nluemu: free lists are consistent", text, re.MULTILINE)
    assert found and text.endswith("luemu: verdict ok\n"), text[-2000:]
    return int(found[1]) * PAGE


@pytest.mark.parametrize("release", RELEASES)
@pytest.mark.parametrize(
    ("memory", "scratch"), [(128 * MIB, "48M,0,0"), (512 * MIB, "0,0,256M"), (8 * GIB, "200%")], ids=str
)
def test_the_kernels_own_test(release: str, memory: int, scratch: str) -> None:
    text, _, _ = boot(release, memory, f"kho=on kho_scratch={scratch} selftest=on")
    assert passed(text), "\n".join(line for line in text.splitlines() if "does not hold" in line)


@pytest.mark.parametrize("release", RELEASES)
def test_memory_in_single_pages(release: str) -> None:
    """Every other page of 200 MiB is preserved: all else is given, taken and verified page by page."""
    preserved = pages_from(300 * MIB, 25_600, 2)
    result = adopt(release, preserved, memory=512 * MIB, cmdline="kho=on selftest=on")
    assert result.kind is StopKind.POWER_OFF, result.text[-2000:]
    assert "cannot be adopted" not in result.text
    assert passed(result.text), result.text[-2000:]


@pytest.mark.parametrize("release", RELEASES)
def test_a_large_machine_boots_at_the_cost_of_a_small_one(release: str) -> None:
    """What grows is the direct map, one entry for 2 MiB, and scratch, which has room for all struct pages:
    one block of 4 MiB for 256 MiB. Everything else is the same."""
    small, few, little = boot(release, 128 * MIB, "kho=on")
    large, many, much = boot(release, 64 * GIB, "kho=on")
    # The difference is all there but for the table of pageblocks and the page tables of the direct map.
    assert 64 * GIB - 129 * MIB < managed(large) - managed(small) < 64 * GIB - 128 * MIB
    assert much - little < 4 * MIB, f"{much >> 10} KiB touched, {little >> 10} in the small machine"
    assert many - few < 64 * GIB // (2 * MIB) * 160, f"{many:,} instructions, {few:,} in the small machine"


@pytest.mark.parametrize("release", RELEASES)
def test_junk_can_be_switched_off(release: str) -> None:
    _, with_junk, _ = boot(release, 128 * MIB, "kho=on")
    text, without, _ = boot(release, 128 * MIB, "kho=on junk=off")
    assert without < with_junk and "luemu: verdict ok" in text
    assert (
        "junk" in boot(release, 128 * MIB, "kho=on junk=maybe")[0].split("Zone ranges")[0].split("\n", 2)[2]
    )
