"""What handing over costs grows with what is handed over, and no faster: instructions for a page.

Counted are four parts of an update: filling the folios, preserving them, adopting them, and restoring (which
verifies and frees them). From each is taken what it costs with one folio; the rest, divided by the number of
pages more, is the price of a page. Instructions are counted, so the figures are exact.
"""

from __future__ import annotations

import pytest

from emu import Machine
from emu.boot import Boot
from emu.debug.chain import Chain
from emu.debug.release import Kernel
from emu.initramfs import Initramfs
from emu.machine import StopKind
from tests.run.stages import addresses

MIB, GIB, PAGE = 1 << 20, 1 << 30, 4096
PARTS = ("fill", "preserve", "adopt", "restore")
FLAT = 1.05
"""a page among many against a page among few"""


def cost(first: str, second: str, size: int, order: int, memory: int) -> dict[str, int]:
    """Instructions of each part."""
    chain = Chain.open(first, [second], 1, cmdline=f"junk=off test_kho.max_mem={size} test_kho.order={order}")
    files = Initramfs()
    for path, data in chain.files().items():
        files.add_file(path, data)
    at: dict[str, list[int]] = {}

    def note(kernel: Kernel, event: str) -> None:
        def hit(m: Machine, _: int) -> None:
            at.setdefault(event, []).append(m.instructions)

        for address in addresses(kernel, event):
            m.probe(address, hit)

    with Machine(memory) as m:
        old, new = chain.kernel(0), chain.kernel(1)
        for event in ("test_kho_save", "test_kho:saved", "test_areas_save"):
            note(old, event)
        for event in ("kho:memory_init", "mm:free_all", "test_kho_init", "test_kho:restored"):
            note(new, event)
        m.boot(Boot(old.image, f"{chain.command_line(0)} luemu.generation=0", files.build()))
        stop = m.run(max_instructions=200_000_000_000)
        text = m.console.decode("ascii").replace("\r\n", "\n")
        assert stop.kind is StopKind.POWER_OFF and text.endswith("luemu: verdict ok\n"), text[-2000:]
    events = {event: numbers[-1] for event, numbers in at.items()}
    steps = [
        ("test_kho_save", "test_kho:saved"), ("test_kho:saved", "test_areas_save"),
        ("kho:memory_init", "mm:free_all"), ("test_kho_init", "test_kho:restored"),
    ]  # fmt: skip
    return {part: events[b] - events[a] for part, (a, b) in zip(PARTS, steps, strict=True)}


def per_page(first: str, second: str, sizes: list[int], order: int) -> list[dict[str, float]]:
    """The price of a page, of each size."""
    one = PAGE << order
    base = cost(first, second, one, order, 256 * MIB)
    rows = []
    for size in sizes:
        costs = cost(first, second, size, order, size + max(256 * MIB, size // 8))
        rows.append({part: (costs[part] - base[part]) / ((size - one) // PAGE) for part in PARTS})
    return rows


def check(sizes: list[int], order: int, first: str, second: str) -> None:
    rows = per_page(first, second, sizes, order)
    for size, row in zip(sizes, rows, strict=True):
        figures = "  ".join(f"{part} {row[part]:8.1f}" for part in PARTS)
        print(f"order {order}, {size // MIB:5} MiB, {first} -> {second}: {figures}")
    for part in PARTS:
        prices = [row[part] for row in rows]
        assert max(prices) <= FLAT * prices[0], f"{part} is not flat: {prices}"


@pytest.mark.parametrize(("first", "second"), [("old", "new"), ("new", "old")])
@pytest.mark.parametrize("order", [9, 0])
def test_a_page_costs_the_same(order: int, first: str, second: str) -> None:
    check([16 * MIB, 64 * MIB, 128 * MIB], order, first, second)


@pytest.mark.campaign
@pytest.mark.parametrize(("first", "second"), [("old", "new"), ("new", "old")])
@pytest.mark.parametrize("order", [9, 0])
def test_a_page_costs_the_same_up_to_gigabytes(order: int, first: str, second: str) -> None:
    check([64 * MIB, GIB, 8 * GIB] if order else [64 * MIB, 256 * MIB, GIB], order, first, second)
