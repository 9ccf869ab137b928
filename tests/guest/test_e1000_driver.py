"""The kernel's own driver of the network card: the same frames, the same words, here and on QEMU.

Nothing is above the driver. It verifies the traffic source's frames and sends some of its own; the sink at
the other end of the cable, or this test at the other end of QEMU's socket, verifies those.
"""

from __future__ import annotations

import socket
import threading
import time
from typing import Any

import pytest

from emu.devices.pci import COMMAND, COMMAND_MASTER, PciFunction
from emu.machine import Machine, StopKind
from emu.traffic import Frame, TrafficSpec
from tests.guest.running import RELEASES, on_luemu, on_qemu

RECEIVE, SEND = 300, 20
CMDLINE = f"e1000_test={RECEIVE},{SEND}"
TRAFFIC = "rate=10k,size=60-1500,start=ready"
GOOD = f"{RECEIVE} frames received: 0 lost, 0 duplicated, 0 corrupted, 0 others"


def lines(text: str) -> list[str]:
    return [line for line in text.splitlines() if line.startswith("e1000:")]


def expected(place: str = "00:02.0", mac: str = "52:54:00:12:34:56") -> list[str]:
    said = (f"address {mac}", f"{SEND} of {SEND} frames sent", GOOD)
    return [f"e1000: {place} {text}" for text in said]


class Card:
    """The machine's card and what its cable saw, when the run is over."""

    sink: dict[str, Any]
    function: PciFunction

    def __call__(self, m: Machine) -> None:
        self.traffic = m.traffic
        (card,) = (f for n, f in m.platform.extras.items() if n.endswith("e1000"))
        assert isinstance(card, PciFunction)
        self.function = card


@pytest.mark.parametrize("release", RELEASES)
@pytest.mark.parametrize("devices", [("e1000",), ("vtd", "e1000")], ids="+".join)
def test_frames_both_ways(release: str, devices: tuple[str, ...]) -> None:
    card = Card()
    run = on_luemu(release, CMDLINE, devices=devices, traffic=TRAFFIC, prepare=card)
    assert run.stop.kind is StopKind.POWER_OFF, run.text
    assert lines(run.text) == expected()
    stream = card.traffic.stream()
    assert (stream.received, stream.lost(SEND)) == (SEND, 0)


def test_behind_a_bridge() -> None:
    run = on_luemu("old", CMDLINE, devices=("vtd", "bridge", "bridge/e1000"), traffic=TRAFFIC, prepare=Card())
    assert lines(run.text) == expected("01:00.0", "52:54:00:12:34:57")


def test_every_kind_of_frame_is_counted() -> None:
    """Numbers with a gap of three, two of them twice, three damaged ones, two of another type."""
    good = [Frame(0, number, 7, 60 + 11 * number).build() for number in range(12)]
    frames = [good[n] for n in (0, 1, 2, 6, 7, 7, 6, 8, 9, 10, 11)]
    for at in (20, 39, 59):
        damaged = bytearray(good[3])
        damaged[at] ^= 4
        frames.insert(3, bytes(damaged))
    frames[5:5] = [b"\xff" * 12 + b"\x08\x00" + bytes(50), good[0][:12] + b"\x86\xdd" + bytes(1400)]
    replay = tuple((20_000 * i, frame) for i, frame in enumerate(frames))
    run = on_luemu(
        "old", "e1000_test=9", devices=("e1000",), traffic=TrafficSpec(start="ready", replay=replay),
        prepare=Card(),
    )  # fmt: skip
    said = "9 frames received: 3 lost, 2 duplicated, 3 corrupted, 2 others"
    assert lines(run.text)[-1] == f"e1000: 00:02.0 {said}"


def test_nothing_comes() -> None:
    """It gives up after a minute, and says so."""
    run = on_luemu(
        "old", "e1000_test=5", devices=("e1000",), traffic="rate=1k,count=3,start=ready", max_seconds=90,
        max_instructions=2_000_000_000, prepare=Card(),
    )  # fmt: skip
    assert run.stop.kind is StopKind.POWER_OFF
    assert lines(run.text)[-1].startswith("e1000: 00:02.0 3 frames received: 0 lost")


@pytest.mark.parametrize("value", ["x", "5;1", "1,2,3"])
def test_a_malformed_parameter(value: str) -> None:
    run = on_luemu("old", f"e1000_test={value}")
    assert "e1000_test" in run.text.split("\n", 2)[2], "nobody said that the parameter is malformed"


def test_without_memory_mapping_it_reaches_nothing() -> None:
    """The card's domain is left with its memory: after the driver's end, the unit has no context for it."""
    card = Card()
    run = on_luemu("old", CMDLINE, devices=("vtd", "e1000"), traffic=TRAFFIC, prepare=card)
    assert run.stop.kind is StopKind.POWER_OFF
    assert "refused" not in run.text, "a frame went where it may not"
    assert card.function.register(COMMAND, 2) & COMMAND_MASTER, "it was a master while it worked"


class Cable:
    """The other end of QEMU's socket: keeps what comes, and from the first frame on sends numbered ones, so
    slowly that the socket holds what comes in the second for which QEMU's card does not look after it was set
    up."""

    PAUSE = 0.008
    """seconds"""

    def __init__(self) -> None:
        self.near = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.near.bind(("127.0.0.1", 0))
        self.near.settimeout(self.PAUSE)
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as far:
            far.bind(("127.0.0.1", 0))
            self.far = int(far.getsockname()[1])
        self.got: list[bytes] = []
        self.over = threading.Event()
        self.thread = threading.Thread(target=self.work)

    def work(self) -> None:
        number = 0
        while not self.over.is_set():
            end = time.monotonic() + self.PAUSE
            while time.monotonic() < end:
                try:
                    self.got.append(self.near.recv(2048))
                except OSError:  # nothing, or nobody is there
                    self.over.wait(0.001)
            if self.got:
                self.near.sendto(Frame(0, number, 0, 60 + number % 1400).build(), ("127.0.0.1", self.far))
                number += 1

    def __enter__(self) -> Cable:
        self.thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self.over.set()
        self.thread.join()
        self.near.close()

    @property
    def netdev(self) -> str:
        ports = (("local", self.far), ("remote", self.near.getsockname()[1]))
        ends = [f"{end}.type=inet,{end}.host=127.0.0.1,{end}.port={port}" for end, port in ports]
        return ",".join(["dgram,id=n", *ends])


@pytest.mark.parametrize("remapping", [False, True])
def test_qemu_says_the_same(remapping: bool) -> None:
    unit = ["intel-iommu,intremap=on"] if remapping else []
    with Cable() as cable:
        text = on_qemu(
            "old", CMDLINE, machine="q35,kernel-irqchip=split", arguments=["-netdev", cable.netdev],
            devices=[*unit, "e1000,netdev=n,addr=2"],
        )  # fmt: skip
    assert lines(text) == expected()
    frames = [Frame.parse(data[:128]) for data in cable.got]
    assert [f.sequence for f in frames if f is not None] == list(range(SEND))


def test_two_drivers_share_a_line_on_qemu() -> None:
    """Slots 3 and 7 have the same pin of the I/O APIC: edu's interrupts are not the card's, which listens."""
    with Cable() as cable:
        text = on_qemu(
            "new", CMDLINE + " edu_test", machine="q35,kernel-irqchip=split",
            arguments=["-netdev", cable.netdev],
            devices=["intel-iommu,intremap=on", "edu,addr=3", "e1000,netdev=n,addr=7"],
        )  # fmt: skip
    assert lines(text) == expected("00:07.0")
    assert "edu: 00:03.0 INTx ok" in text and "edu: 00:03.0 MSI ok" in text
