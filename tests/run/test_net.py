"""A network card that goes on receiving while the kernel under its driver is replaced: the workload `net`."""

from __future__ import annotations

import functools
import json
import re
from pathlib import Path
from typing import Any

import pytest

from emu.cli import main
from emu.debug.dmacheck import PHASES
from emu.debug.net import BLACKOUT, SHORT_TICKS
from emu.debug.options import Options
from emu.debug.phases import NAMES
from emu.debug.update import Update
from emu.debug.verdict import Result
from emu.debug.workloads import Stream, Workload, workload
from emu.traffic import TrafficSpec

KEYS = {
    "sent", "received", "lost", "duplicated", "corrupted", "longest_gap_instructions", "dma_writes",
    "dma_violations",
}  # fmt: skip


def options(work: Workload, old: str = "old", new: str = "new", updates: int = 1, **changes: Any) -> Options:
    return Options(
        old=old, new=new, updates=updates, memory=work.memory, cmdline=work.cmdline, before=work.before,
        after=work.after, programs=work.programs, devices=work.devices,
        traffic=TrafficSpec.parse(work.traffic), **changes,
    )  # fmt: skip


def run(stream: Stream, **how: Any) -> tuple[Result, Update]:
    work = workload("net", stream=stream, updates=how.get("updates", 1))
    update = Update(options(work, **how))
    result = update.run()
    update.machine.close()
    return result, update


@functools.cache
def plain() -> tuple[Result, Update]:
    return run(Stream())


def whole(result: Result, updates: int = 1) -> dict[str, Any]:
    """The object `net` of a run in which nothing was lost."""
    assert result.ok, "\n".join(result.reasons)
    net = result.net
    assert net is not None
    assert net["received"] == net["sent"] > 1000 * updates
    assert [net[what] for what in ("lost", "duplicated", "corrupted", "reordered")] == [0, 0, 0, 0]
    assert net["dma_violations"] == []
    return net


def test_no_frame_is_lost() -> None:
    result, _ = plain()
    net = whole(result)
    assert net.keys() >= KEYS
    assert result.cache is not None and result.cache["lost"] == 0 and result.cache["last_write_survived"]


def test_the_card_writes_while_nobody_looks() -> None:
    """In each longer phase without a program; which of them get none depends on where the frames fall."""
    net = whole(plain()[0])
    blackout = [NAMES[id] for id in BLACKOUT]
    assert list(net["dma_writes"]).index("jump") < list(net["dma_writes"]).index("retrieve-file")
    for phase in blackout:
        if net["phase_ticks"][phase] > 2 * 50_000:  # longer than the distance of two frames
            assert net["dma_writes"][phase], f"no write in {phase}, {net['phase_ticks'][phase]} ticks"
    assert net["dma_writes"]["jump"] >= 2 * net["phase_ticks"]["jump"] // 50_000 - 2, "frame and descriptor"


def test_all_of_that_goes_to_preserved_pages() -> None:
    _, update = plain()
    assert update.dma is not None
    records = update.dma.records()
    during = [PHASES.index(id) for id in BLACKOUT if id not in ("P18", "P19", "P20")]
    mine = records[[int(p) in during for p in records["phase"]]]
    assert len(mine) > 1000 and set(mine["owner"].tolist()) == {3} and not mine["fault"].any()
    assert not records["wrong"].any()


def test_the_ring_that_is_needed_is_the_one_that_was_filled() -> None:
    net = whole(plain()[0])
    assert net["ring_needed"] - 2 <= net["backlog"] <= net["ring_needed"] + 2 < net["ring"]
    assert net["poll_gap_ticks"] >= plain()[0].updates[0]["blackout_ticks"]
    assert net["longest_gap_instructions"] >= net["poll_gap_ticks"] * 0.9


def test_driven_by_interrupts() -> None:
    net = whole(run(Stream(irq=True))[0])
    assert net["interrupts"]["used"] and net["interrupts"]["signals"] > 100
    assert (net["interrupts"]["spurious"], net["interrupts"]["lost"]) == (0, 0)


def test_from_new_to_old() -> None:
    whole(run(Stream(), old="new", new="old")[0])


def test_large_frames() -> None:
    net = whole(run(Stream(rate=15_000, frame_size=9000))[0])
    assert net["ring"] == 4096


@pytest.mark.campaign
def test_a_chain() -> None:
    result, _ = run(Stream(irq=True), updates=4)
    whole(result, 4)
    assert len(result.updates) == 4


def test_a_ring_that_is_too_small_loses_frames_and_says_so() -> None:
    result, _ = run(Stream(ring=512))
    net = result.net
    assert net is not None and not result.ok and net["lost"] > 500 and not net["dma_violations"]
    assert any("the ring of 512 is too small" in reason for reason in result.reasons), result.reasons
    assert net["ring_needed"] > 512


def test_the_same_run_twice() -> None:
    one, two = plain()[0], run(Stream())[0]
    assert (one.state_hash, one.net) == (two.state_hash, two.net)


# ---- what must go wrong ----------------------------------------------------------------------------------


def faulty(name: str, capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    """A run with a fault, as a script sees it."""
    assert main(["run", "--fault", name, "--json"]) == 1
    return dict(json.loads(capsys.readouterr().out))


def named(document: dict[str, Any], device: str, phase: str) -> list[dict[str, Any]]:
    """Violations of a device in a phase that name a page; one of them is among the reasons."""
    found = [v for v in document["net"]["dma_violations"] if v["device"] == device and v["phase"] == phase]
    found = [v for v in found if v["phys"] is not None]
    assert found, document["net"]["dma_violations"]
    said = [r for r in document["reasons"] if r.startswith(f"DMA: {device}") and f"in phase {phase}" in r]
    assert said and "page 0x" in said[0], document["reasons"]
    return found


def test_iommu_state_not_handed_over(capsys: pytest.CaptureFixture[str]) -> None:
    document = faulty("iommu-state", capsys)
    found = named(document, "e1000", "jump")
    assert {v["owner"] for v in found} == {"device tables"} and "not preserved" in found[0]["reason"]
    assert document["net"]["lost"] > 0


def test_iommu_off(capsys: pytest.CaptureFixture[str]) -> None:
    document = faulty("iommu-off", capsys)
    found = named(document, "e1000", "jump")
    scribbled = [v for v in found if v["owner"] == "new kernel"]
    assert scribbled and scribbled[0]["reason"] == "remapping is off" and scribbled[0]["count"] > 10
    assert any("purgatory refused the next kernel" in reason for reason in document["reasons"])


def test_stale_iotlb(capsys: pytest.CaptureFixture[str]) -> None:
    [found] = named(faulty("iotlb", capsys), "e1000", "jump")
    assert found["iova"] == 0x800000 and "no table grants it" in found["reason"] and found["size"] == 1500


def test_bus_master_left_on(capsys: pytest.CaptureFixture[str]) -> None:
    found = named(faulty("bus-master", capsys), "edu", "jump")
    assert found[0]["iova"] == 0x400000 and found[0]["bdf"] == "00:03.0"


def test_interrupt_lost(capsys: pytest.CaptureFixture[str]) -> None:
    document = faulty("interrupt", capsys)
    assert document["net"]["interrupts"]["lost"] >= 1 and document["net"]["lost"] == 0
    [reason] = [r for r in document["reasons"] if "their interrupt did not" in r]
    where = r" in phase \S+ of kernel \d, written to page 0x\w+ of preserved$"
    assert reason.startswith("e1000 (00:02.0): ") and re.search(where, reason), reason


def test_the_careless_driver_alone_is_stopped_by_the_hardware() -> None:
    """What `--fault iotlb` has the program do is refused, where the kernel does its part."""
    work = workload("net", stream=Stream(), more="--unmap")
    update = Update(options(work))
    result = update.run()
    assert update.dma is not None and result.net is not None
    wrong = [str(v) for v in update.dma.violations]
    assert all("refused" in text and "0x800000" in text for text in wrong), wrong
    assert result.net["lost"] > 0
    update.machine.close()


# ---- the command line ------------------------------------------------------------------------------------


def test_faults_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "--fault", "help"]) == 0
    out = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in out] == [
        "iommu-state",
        "iommu-off",
        "iotlb",
        "bus-master",
        "interrupt",
    ]


def test_the_screen_and_the_trace(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trace = tmp_path / "trace.jsonl"
    words = [
        "run",
        "--workload",
        "net",
        "--rate",
        "5k",
        "--frame-size",
        "60",
        "--trace",
        str(trace),
        "--trace-dma",
    ]
    assert main(words) == 0
    out = capsys.readouterr().out
    assert "frames sent" in out and "0 lost, 0 duplicated, 0 corrupted" in out
    assert "without a look at the ring across an update" in out and "of the ring's 4,095 descriptors" in out
    assert "jump" in out.split("DMA writes in phase")[1]
    lines = [json.loads(line) for line in trace.read_text().splitlines()]
    dma = [line for line in lines if line["event"] == "dma"]
    assert len(dma) > 1000 and lines[-1]["event"] == "end"
    jump = [d for d in dma if d["phase"] == "jump" and d["direction"] == "write"]
    assert jump and {d["owner"] for d in jump} == {"preserved"} and {d["bdf"] for d in jump} == {"00:02.0"}
    assert all(d["violation"] is None and d["instruction"] <= d["tick"] for d in dma)


def test_short_is_a_microsecond() -> None:
    assert SHORT_TICKS == 1000
