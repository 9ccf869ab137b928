"""`luemu run` with devices and traffic: what the options do, what is said of mistakes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from emu import pcap
from emu.cli import main
from emu.traffic import Frame

SMALL_RUN = ("run", "--workload", "kho", "--memory", "128M", "--preserve", "256K", "--device", "e1000")


def run(capsys: pytest.CaptureFixture[str], *words: str, status: int = 0) -> dict[str, Any]:
    """`luemu run --json`, which must end with this status."""
    assert main([*SMALL_RUN, "--json", *words]) == status
    document: dict[str, Any] = json.loads(capsys.readouterr().out)
    return document


def test_traffic_from_a_phase_on_and_its_recording(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """Nobody drives the card here: frames come and are not taken, the update is as without."""
    out, again = tmp_path / "out.pcap", tmp_path / "again.pcap"
    words = ("--traffic", "interval=5000,count=50,size=60-2000,start=P10", "--pcap-out", str(out))
    result = run(capsys, *words)
    assert result["traffic"] == {
        "sent": 50, "finished": True, "frames": 0, "bytes": 0, "foreign": 0, "corrupted": 0, "streams": {},
    }  # fmt: skip
    frames = pcap.read(out)
    found = [Frame.parse(frame) for _, frame in frames]
    assert [f and f.sequence for f in found] == list(range(50))
    begin = next(p["start"] for p in result["phases"] if p["id"] == "P10")
    assert found[0] is not None and begin < found[0].tick <= begin + 1000
    same = run(capsys, *words)
    assert same["state_hash"] == result["state_hash"]

    replayed = run(
        capsys, "--pcap-in", str(out), "--traffic", "start=P10", "--pcap-out", str(again), "--new", "old"
    )
    assert replayed["traffic"]["sent"] == 50 and replayed["state_hash"] != result["state_hash"]
    assert pcap.read(again) == frames


def test_a_phase_that_does_not_come(capsys: pytest.CaptureFixture[str]) -> None:
    result = run(capsys, "--traffic", "start=P19", status=1)
    assert result["reasons"] == ["--traffic start=P19: the run never got there"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--traffic", "speed=1"), "there is no 'speed' in traffic"),
        (("--traffic", "nic=bridge/e1000"), "no network card 'bridge/e1000'"),
        (("--pcap-in", "/nonexistent"), "cannot be read"),
        (("--pcap-out", "/nonexistent/file"), "cannot be written"),
        (("--device", "nic"), "there is no device 'nic'; there are vtd, bridge, e1000"),
        (("--device", "e1000"), "one 'e1000' at most"),
        (("--raw", "--traffic", "start=P9"), "no phases with --raw"),
    ],
)
def test_mistakes(capsys: pytest.CaptureFixture[str], words: tuple[str, ...], message: str) -> None:
    assert main([*SMALL_RUN, *words]) == 2
    assert message in capsys.readouterr().err


def test_traffic_without_a_card(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "--traffic", "rate=1k"]) == 2
    assert "--device e1000 adds one" in capsys.readouterr().err
    assert main(["run", "--device", "help"]) == 0
    assert "bridge/e1000" in capsys.readouterr().out.split()


def test_our_kernels_driver_takes_and_sends_frames(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """100 frames are verified by the kernel, its 20 by the sink; after the update it sends the same again."""
    out = tmp_path / "out.pcap"
    words = ("--cmdline", "e1000_test=100,20", "--traffic", "rate=10k,count=300,size=60-1500", "-v", "--json")
    assert main([*SMALL_RUN, *words, "--pcap-out", str(out)]) == 0
    printed = capsys.readouterr()
    traffic = json.loads(printed.out)["traffic"]
    assert (traffic["sent"], traffic["frames"], traffic["corrupted"], traffic["foreign"]) == (300, 40, 0, 0)
    assert traffic["streams"] == {"0": {"received": 20, "duplicated": 20, "reordered": 0}}
    assert "100 frames received: 0 lost, 0 duplicated, 0 corrupted, 0 others" in printed.err
    assert len(pcap.read(out)) == 340
