"""What the receiver says of itself, and what is made of it: without a machine that runs."""

from __future__ import annotations

import json
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any, cast

import pytest

from emu.debug.dmacheck import DmaWatch
from emu.debug.faults import FAULTS, fault
from emu.debug.net import Net, NetReport, Sent, conclude, instruction_at, writes_by_phase
from emu.debug.phases import Record
from emu.debug.release import Kernel
from emu.debug.workloads import Stream, workload
from emu.devices.e1000 import E1000
from emu.devices.e1000_regs import RCTL_EN
from emu.devices.pci import COMMAND
from emu.errors import ConfigError
from emu.machine import Machine

MIB = 1 << 20
GOOD: dict[str, Any] = {
    "final": True, "updates": 1, "irq": False, "ring": 4096, "buffer": 2048, "first": 10, "highest": 109,
    "received": 100, "lost": 0, "duplicated": 0, "corrupted": 0, "reordered": 0, "beyond": 0, "missed": 0,
    "gap": [100, 200], "poll": [50, 250], "backlog": 3, "signals": 0, "spurious": 0, "lost_interrupts": 0,
    "lost_tick": 0,
}  # fmt: skip


def line(**changes: Any) -> bytes:
    return b"net: something\n@net " + json.dumps({**GOOD, **changes}).encode() + b"\nmore\n"


def test_a_report_is_found_in_the_output() -> None:
    report = NetReport.parse(line())
    assert report is not None and not report.problems
    assert (report.received, report.poll, report.final) == (100, [50, 250], True)


def test_the_last_report_counts() -> None:
    report = NetReport.parse(line(received=1) + line(received=2))
    assert report is not None and report.received == 2


def test_no_report() -> None:
    assert NetReport.parse(b"net: receives into 4096 buffers\n") is None


@pytest.mark.parametrize(
    "damaged",
    [
        b"@net \n", b"@net []\n", b"@net {}\n", b'@net {"received": 1}\n', b"@net {\n", b"@net \xff\n",
        line(gap=[5]), line(gap=[9, 5]), line(poll=None), line(poll=["a", 1]), line(problems=[]),
        line(received="5"), line(received=-1), line(received=1 << 64), line(received=1.5),
        line(received=True),
        line(lost_tick=None), line(final=1), line(irq="yes"), line(gap={}), line(gap=[0, True]),
        b"@net " + b"[" * 100_000 + b"\n", b"@net " + b"9" * 10_000 + b"\n",
    ],
)  # fmt: skip
def test_damaged_reports_are_a_problem(damaged: bytes) -> None:
    report = NetReport.parse(damaged)
    assert report is not None and report.problems == ["the report of the receiver cannot be read"]


@pytest.fixture
def machine() -> Iterator[Machine]:
    with Machine(64 * MIB, devices=("e1000", "vtd"), traffic="rate=10k") as m:
        yield m


@pytest.fixture
def watch(machine: Machine) -> Iterator[DmaWatch]:
    found = DmaWatch(machine, [Kernel.open("old")])
    yield found
    found.close()


RECORDS = [Record("P1", "old", 0, 0, 0, 100, 100), Record("P11", "old", 0, 100, 100, 50, 100)]


def concluded(watch: DmaWatch, report: NetReport | None, sent: int) -> Net:
    nic = watch.machine.platform.extras["e1000"]
    source = SimpleNamespace(count=sent, ticks_per_frame=50.0, nic=nic)
    return conclude(report, cast(Sent, source), watch, RECORDS)


def test_all_agree(watch: DmaWatch) -> None:
    net = concluded(watch, NetReport.parse(line()), 100)
    assert net.reasons == []
    plain = net.plain()
    names = ["sent", "received", "lost", "duplicated", "corrupted"]
    assert [plain[name] for name in names] == [100, 100, 0, 0, 0]
    assert (plain["poll_gap_ticks"], plain["ring_needed"], plain["backlog"]) == (200, 5, 3)
    assert plain["longest_gap_instructions"] == 50, "half of the ticks of the jump are idle"
    assert plain["dma_violations"] == [] and plain["dma_writes"]["jump"] == 0


@pytest.mark.parametrize(
    ("changes", "sent", "reason"),
    [
        ({}, 101, "1 of 101 frames is lost"),
        ({"lost": 2}, 100, "2 of 100 frames are lost"),
        ({}, 99, "100 frames were received, and 99 sent"),
        ({"duplicated": 1}, 100, "1 of 100 frames is received twice"),
        ({"corrupted": 3}, 100, "3 of 100 frames are corrupted"),
        ({"reordered": 1}, 100, "1 of 100 frames is out of order"),
        ({"beyond": 1}, 100, "beyond what can be counted"),
        ({"missed": 7}, 100, "no descriptor for 7 frames: the ring of 4,096 is too small"),
        (
            {"lost_interrupts": 2, "lost_tick": 120},
            100,
            "e1000 (00:02.0): frames came and their interrupt did not, 2 times, the first in phase jump of",
        ),
        ({"final": False}, 100, "not its last one"),
        ({"received": 0}, 0, "no frame was received"),
    ],
)
def test_what_does_not_agree(watch: DmaWatch, changes: dict[str, Any], sent: int, reason: str) -> None:
    net = concluded(watch, NetReport.parse(line(**changes)), sent)
    assert any(reason in text for text in net.reasons), net.reasons


def test_a_lost_interrupt_names_the_page_of_its_frame(watch: DmaWatch) -> None:
    nic = watch.machine.platform.extras["e1000"]
    assert isinstance(nic, E1000)
    for tick, page in ((90, 0x5000), (130, 0x6123), (140, 0x7000)):
        watch.machine.platform.dma.observers[0](tick, nic.requester, page, page, 1500, True, 0)
    net = concluded(watch, NetReport.parse(line(lost_interrupts=1, lost_tick=120)), 100)
    [reason] = [text for text in net.reasons if "their interrupt did not" in text]
    assert "1 time, the first in phase jump of kernel 0" in reason
    assert reason.endswith("written to page 0x6000 of old kernel")


def test_silence_is_no_success(watch: DmaWatch) -> None:
    net = concluded(watch, None, 100)
    assert "the receiver did not report" in net.reasons and net.lost == 100


def test_only_what_arrives_while_the_receiver_is_on_was_sent(machine: Machine) -> None:
    sent = Sent(machine.traffic)
    nic = cast(E1000, machine.platform.extras["e1000"])
    machine.traffic.start(100)
    clock = machine.clock
    clock.run(250_000)
    assert (machine.traffic.s.sent, sent.count) == (3, 0)
    nic.s.regs["RCTL"] |= RCTL_EN
    clock.run(550_000)
    assert (machine.traffic.s.sent, sent.count) == (6, 3) and sent.ticks_per_frame == 100_000
    nic.s.regs["RCTL"] &= ~RCTL_EN
    clock.run(1_000_000)
    assert sent.count == 3


def test_writes_are_counted_by_phase_and_device(machine: Machine, watch: DmaWatch) -> None:
    nic = cast(E1000, machine.platform.extras["e1000"])
    nic.poke(COMMAND, 2, 4)
    for phase, writes in (("P1", 1), ("P9", 2), ("P11", 3), ("P22", 4)):
        watch.phase(phase)
        for _ in range(writes):
            nic.dma_write(0x800000, b"data", 1)
            nic.dma_read(0x800000, 4, 1)
    nic.dma_write(1 << 40, b"nowhere", 1)
    found = writes_by_phase(watch, {nic.requester})
    assert {name: count for name, count in found.items() if count} == {
        "cold-boot": 1, "serialize": 2, "jump": 3, "steady": 4
    }  # fmt: skip
    assert found["adopt"] == 0, "a phase of the update without writes is there, to be seen"
    assert not any(writes_by_phase(watch, {7}).values())


@pytest.mark.parametrize(("tick", "instruction"), [(0, 0), (40, 40), (100, 100), (150, 125), (900, 150)])
def test_instructions_at_a_tick(tick: int, instruction: int) -> None:
    assert instruction_at(RECORDS, tick) == instruction


# ---- the workload ----------------------------------------------------------------------------------------


def test_the_workload_stops_after_the_last_update() -> None:
    w = workload("net", stream=Stream(rate=5000, frame_size=9000, irq=True, ring=512, start=77), updates=3)
    assert w.before[0] == "net start --ring 512 --buffer 16384 --irq" and w.after[0] == "net check 3"
    assert w.traffic == "rate=5000,size=9000,start=77" and "vfio-pci.ids=8086:100e" in w.cmdline
    assert w.before[1].startswith("cache start") and w.after[1] == "cache check"
    assert set(w.devices) == {"vtd", "e1000", "edu"}


@pytest.mark.parametrize(
    ("size", "buffer"), [(60, 2048), (2044, 2048), (2045, 4096), (8188, 8192), (9216, 16384)]
)
def test_buffers_fit_frames(size: int, buffer: int) -> None:
    assert Stream(frame_size=size).buffer == buffer


@pytest.mark.parametrize("name", FAULTS)
def test_faults_are_classes_of_the_kernels(name: str) -> None:
    """What `break=` does not know, a kernel refuses without a word to the host."""
    from pathlib import Path

    source = (Path(__file__).parents[2] / "kernels/kernel/breakage.c").read_text()
    assert f'"{fault(name).breaks}"' in source and len(fault(name).breaks) < 16


def test_no_such_fault() -> None:
    with pytest.raises(ConfigError, match="is none of iommu-state"):
        fault("nosuch")
