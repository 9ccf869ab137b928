"""Who may write where: what `emu.debug.dmacheck` says of single requests, with tables written by hand, and in
an update of the project's kernels into which a test puts requests."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from typing import cast

import numpy as np
import pytest

from emu.debug import dmacheck
from emu.debug.dmacheck import PHASES, WRONGS, DmaViolation, DmaWatch
from emu.debug.owners import OWNERS
from emu.debug.release import Kernel
from emu.debug.update import Update
from emu.debug.verdict import Result
from emu.debug.view import View
from emu.devices.pci import COMMAND, PciFunction
from emu.devices.vtd import TE, Vtd
from emu.dma import NOWHERE
from emu.machine import Machine
from tests.run.stages import options

MIB = 1 << 20
EDU = 3 << 3
ROOT, CONTEXT, TOP, UPPER, LOWER, LEAVES = (0x100000 + 0x1000 * i for i in range(6))
BUFFER = 0x800000
IOVA = 0x4000_0000


def entry(machine: Machine, table: int, index: int, value: int, size: int = 8) -> None:
    machine.memory.write(table + size * index, value.to_bytes(size, "little"), by="test")


def master(machine: Machine) -> PciFunction:
    edu = cast(PciFunction, machine.platform.extras["edu"])
    edu.poke(COMMAND, 2, 4)
    return edu


def translated(machine: Machine) -> Vtd:
    """One page at `IOVA` may be written; remapping is on."""
    entry(machine, ROOT, 0, CONTEXT | 1, 16)
    entry(machine, CONTEXT, EDU, TOP | 1 | (2 | 1 << 8) << 64, 16)
    entry(machine, TOP, 0, UPPER | 3)
    entry(machine, UPPER, 1, LOWER | 3)
    entry(machine, LOWER, 0, LEAVES | 3)
    entry(machine, LEAVES, 0, BUFFER | 3)
    entry(machine, LEAVES, 1, 0x900000 | 1)
    unit = cast(Vtd, machine.platform.extras["vtd"])
    unit.s.root = ROOT
    unit.s.gsts |= TE
    return unit


@pytest.fixture
def machine() -> Iterator[Machine]:
    with Machine(64 * MIB, devices=("edu", "vtd")) as m:
        yield m


@pytest.fixture
def watch(machine: Machine) -> Iterator[DmaWatch]:
    found = DmaWatch(machine, [Kernel.open("old")])
    yield found
    found.close()


def test_a_record_is_what_the_request_was(machine: Machine, watch: DmaWatch) -> None:
    translated(machine)
    master(machine).dma_write(IOVA + 16, b"12345678", 77)
    master(machine).dma_read(IOVA + 0x1000, 4, 78)
    master(machine).dma_write(IOVA + 0x5000, b"lost", 79)
    records = watch.records()
    assert records.dtype.itemsize == 48 and len(watch) == 3
    fields = ("tick", "iova", "phys", "size", "requester", "write", "fault")
    found = [tuple(int(r[f]) for f in fields) for r in records]
    assert found == [
        (77, IOVA + 16, BUFFER + 16, 8, EDU, 1, 0),
        (78, IOVA + 0x1000, 0x900000, 4, EDU, 0, 0),
        (79, IOVA + 0x5000, NOWHERE, 4, EDU, 1, 5),
    ]
    assert {PHASES[r["phase"]] for r in records} == {"P1"} and not records["wrong"].any()
    assert watch.refused == 1 and not watch.violations
    line = dmacheck.plain(records[2])
    assert (line["bdf"], line["refused"], line["phys"], line["phase"]) == ("00:03.0", 5, None, "cold-boot")


@pytest.mark.parametrize("level", [LEAVES, LOWER, UPPER, TOP, CONTEXT, ROOT])
def test_what_only_a_cache_grants_is_a_violation(machine: Machine, watch: DmaWatch, level: int) -> None:
    """The entry goes, the cache is not told: at each level, also after the write had been judged before."""
    translated(machine)
    edu = master(machine)
    for _ in range(2):
        edu.dma_write(IOVA, b"good", 1)
    assert not watch.violations
    index = {CONTEXT: 2 * EDU, UPPER: 1}.get(level, 0)
    entry(machine, level, index, 0)
    edu.dma_write(IOVA, b"evil", 2)
    assert machine.memory.copy(BUFFER, 4) == b"evil", "the model's cache did not grant it: nothing was tested"
    [found] = watch.violations
    assert (found.device, found.phys, found.iova) == ("edu", BUFFER, IOVA)
    assert "remembered" in WRONGS[found.wrong] and "page 0x800000" in str(found)


def test_an_entry_that_leads_elsewhere_is_a_violation(machine: Machine, watch: DmaWatch) -> None:
    translated(machine)
    edu = master(machine)
    edu.dma_write(IOVA, b"good", 1)
    entry(machine, LEAVES, 0, 0xA00000 | 3)
    edu.dma_write(IOVA, b"evil", 2)
    assert [(v.phys, v.count) for v in watch.violations] == [(BUFFER, 1)]


def test_the_same_again_is_counted(machine: Machine, watch: DmaWatch) -> None:
    translated(machine)
    edu = master(machine)
    edu.dma_write(IOVA, b"good", 1)
    entry(machine, LEAVES, 0, 0)
    for tick in range(5):
        edu.dma_write(IOVA + 8 * tick, b"evil", 2 + tick)
    [found] = watch.violations
    assert found.count == 5 and "5 times" in str(found)


def test_remapping_that_is_switched_off_again_is_a_violation(machine: Machine, watch: DmaWatch) -> None:
    unit = translated(machine)
    edu = master(machine)
    edu.dma_write(IOVA, b"good", 1)
    unit.s.gsts &= ~TE
    unit._fast = {}
    edu.dma_write(BUFFER, b"evil", 2)
    assert [WRONGS[v.wrong] for v in watch.violations] == ["remapping is off"]


def test_remapping_that_was_never_on_is_none(machine: Machine, watch: DmaWatch) -> None:
    master(machine).dma_write(BUFFER, b"good", 2)
    assert not watch.violations and len(watch) == 1


def test_a_write_into_a_table_is_a_violation(machine: Machine, watch: DmaWatch) -> None:
    translated(machine)
    entry(machine, LEAVES, 2, LOWER | 3)
    master(machine).dma_write(IOVA + 0x2000 + 8 * 511, bytes(8), 1)
    [found] = watch.violations
    assert (found.phys, found.owner) == (LOWER, "device tables")


def test_a_request_across_pages_is_judged_page_by_page(machine: Machine, watch: DmaWatch) -> None:
    """One piece of memory, of which the second page is the root table."""
    translated(machine)
    entry(machine, LEAVES, 0, ROOT - 0x1000 | 3)
    entry(machine, LEAVES, 1, ROOT | 3)
    master(machine).dma_write(IOVA + 0xFFC, bytes(4) + struct.pack("<I", CONTEXT | 1), 1)
    found = [(int(r["phys"]), int(r["size"]), OWNERS[r["owner"]], bool(r["wrong"])) for r in watch.records()]
    assert found == [(ROOT - 4, 4, "old kernel", False), (ROOT, 4, "device tables", True)]
    assert [v.phys for v in watch.violations] == [ROOT]


def test_masters_at_the_jump_reach_preserved_pages_only(machine: Machine, watch: DmaWatch) -> None:
    """Nothing is handed over, and the device could write."""
    translated(machine)
    master(machine)
    watch.phase("P11")
    watch.moment("J", None, machine.snapshot())
    page, *through = watch.violations
    assert (page.phys, page.size, page.generation) == (BUFFER, 0, 0) and "reaches page" in str(page)
    assert [v.phys for v in through] == [ROOT, CONTEXT, TOP, UPPER, LOWER, LEAVES]


def test_a_master_without_tables_should_have_been_silenced(machine: Machine, watch: DmaWatch) -> None:
    translated(machine)
    entry(machine, CONTEXT, EDU, 0, 16)
    master(machine)
    watch.phase("P11")
    watch.moment("J", None, machine.snapshot())
    [found] = watch.violations
    assert (found.device, found.phys) == ("edu", None) and "is a bus master" in str(found)


def test_a_silent_function_may_keep_its_tables(machine: Machine, watch: DmaWatch) -> None:
    translated(machine)
    watch.moment("J", None, machine.snapshot())
    assert not watch.violations


def test_what_is_refused_during_the_update_is_a_violation(machine: Machine, watch: DmaWatch) -> None:
    translated(machine)
    edu = master(machine)
    edu.dma_write(IOVA + 0x7000, b"lost", 1)
    assert not watch.violations
    for phase in ("P8", "P9"):
        watch.phase(phase)
    edu.dma_write(IOVA + 0x7000, b"lost", 2)
    watch.phase("userspace")  # it failed, the kernel goes on
    edu.dma_write(IOVA + 0x8000, b"lost", 3)
    assert [(v.phase, v.iova) for v in watch.violations] == [("P9", IOVA + 0x7000)]
    assert watch.refused == 2


# ---- in an update of the project's kernels ---------------------------------------------------------------


class Meddler:
    """Runs an update with a device that no kernel knows, and does something at one moment or phase."""

    def __init__(self, when: str, act: Callable[[Meddler], None], generation: int = 1) -> None:
        self.update = Update(options(devices=("edu",)))
        self.done = 0
        observer = self.update.observer
        assert observer is not None
        told = observer.on_moment
        assert told is not None

        def moment(machine: Machine, what: str, number: int) -> None:
            told(machine, what, number)
            if (what, number) == (when, generation) and not self.done:
                self.done += 1
                act(self)

        observer.on_moment = moment

    def run(self) -> tuple[Result, list[DmaViolation]]:
        assert self.update.dma is not None
        result = self.update.run()
        assert self.done, "the run did not get there"
        self.update.machine.close()
        return result, self.update.dma.violations

    def write(self, phys: int, data: bytes = b"device was here") -> None:
        master(self.update.machine).dma_write(phys, data, self.update.machine.ticks)

    def preserved(self) -> int:
        """A page that kho_test hands over."""
        handed = self.update.dma.owners.handed if self.update.dma is not None else None
        assert handed is not None and handed.kho_test is not None
        return int(handed.kho_test.phys[0])


PRESERVED_PHASES = ("P12", "P13", "P14", "P15", "F")


@pytest.mark.parametrize("when", PRESERVED_PHASES)
def test_writes_to_preserved_pages_are_explained(when: str) -> None:
    """The kernel's own test sees another checksum; the host does not complain about INV-26."""
    result, violations = Meddler(when, lambda m: m.write(m.preserved() + 100)).run()
    assert not violations
    assert not [v for v in result.violations if v["id"] in ("INV-26", "INV-30")], result.violations
    assert not result.ok and not any("devices wrote" in reason for reason in result.reasons)


@pytest.mark.parametrize("when", PRESERVED_PHASES[:4])
def test_what_no_device_wrote_is_not_explained(when: str) -> None:
    """One byte more than what the device wrote."""

    def act(m: Meddler) -> None:
        page = m.preserved()
        m.write(page + 100)
        old = m.update.machine.memory.copy(page + 99, 1)
        m.update.machine.memory.write(page + 99, bytes([old[0] ^ 1]), by="dma:edu")

    result, _ = Meddler(when, act).run()
    broken = {v["phys"] for v in result.violations if v["id"] == "INV-26"}
    assert broken, result.reasons


def _free_page(m: Meddler) -> int:
    """A page of the running kernel that its allocator has."""
    update = m.update
    assert update.observer is not None
    view = View(update.machine, update.observer.kernel)
    start, _ = view.free_blocks()
    return int(start[len(start) // 2])


def _dead_page(m: Meddler) -> int:
    """A page that was the old kernel's: neither preserved nor scratch nor in the new kernel's image."""
    assert m.update.dma is not None
    owners = m.update.dma.owners
    return next(p for p in range(2 * MIB, 128 * MIB, 4096) if OWNERS[owners.of(p)[0]] == "old kernel")


def test_a_page_that_is_not_preserved() -> None:
    result, violations = Meddler("P13", lambda m: m.write(_dead_page(m))).run()
    [found] = violations
    assert (found.device, found.phase, found.owner) == ("edu", "P13", "old kernel")
    assert "not preserved" in WRONGS[found.wrong] and found.generation == 1
    assert not result.ok and any(
        reason.startswith("DMA: edu (00:03.0) writes to page") for reason in result.reasons
    )


def test_scratch_and_the_new_kernels_image() -> None:
    def act(m: Meddler) -> None:
        found = m.update.examined[-1]
        segments = [(g.phys, g.phys + g.size) for g in found.segments or ()]
        pages = (p for a in found.scratch or () for p in range(a.phys, a.phys + a.size, 4096))
        m.write(next(p for p in pages if not any(low <= p < high for low, high in segments)))
        m.write(segments[0][1] - 4096, bytes(1))

    _, violations = Meddler("P12", act).run()
    assert [v.owner for v in violations] == ["scratch", "new kernel"]


@pytest.mark.parametrize("generation", [0, 1])
def test_a_free_page(generation: int) -> None:
    when = {0: "P6", 1: "userspace"}[generation]
    _, violations = Meddler(when, lambda m: m.write(_free_page(m)), generation).run()
    assert [(v.owner, WRONGS[v.wrong]) for v in violations] == [("nobody", "the page is free")]


def test_the_image_of_the_running_kernel() -> None:
    def act(m: Meddler) -> None:
        assert m.update.observer is not None
        _, end = View(m.update.machine, m.update.observer.kernel).image()
        m.write(end - 4096, bytes(4))

    _, violations = Meddler("userspace", act).run()
    assert [(v.owner, WRONGS[v.wrong]) for v in violations] == [
        ("new kernel", "the page is part of the kernel's image")
    ]


def test_without_devices_nothing_is_watched() -> None:
    update = Update(options())
    assert update.dma is None and update.machine.platform.dma.observers == []
    update.machine.close()


def test_records_are_numbers_and_phases() -> None:
    def act(m: Meddler) -> None:
        for offset in range(0, 4096, 64):
            m.write(m.preserved() + offset, struct.pack("<Q", offset))

    meddler = Meddler("P15", act)
    meddler.run()
    assert meddler.update.dma is not None
    records = meddler.update.dma.records()
    assert len(records) == 64 and set(records["size"]) == {8}
    assert {PHASES[p] for p in np.unique(records["phase"])} == {"P15"} and set(records["generation"]) == {1}
    assert (records["instruction"] <= records["tick"]).all()
