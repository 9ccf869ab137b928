"""Source, sink and recordings: what is sent when, what is noticed, what a state holds."""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path

import pytest

from emu import pcap
from emu.clock import Clock
from emu.devices.e1000 import wire_ticks
from emu.errors import ConfigError, ImageError
from emu.machine import Machine
from emu.traffic import READY_TICKS, SIZE_MAX, Frame, Stream, Traffic, TrafficSpec, sums
from tests.devices.nic_rig import NicBoard

MIB = 1 << 20


class Card:
    """The near end of a cable: notes what arrives."""

    mac = bytes.fromhex("525400123456")

    def __init__(self) -> None:
        self.on_transmit: Callable[[bytes, int], None] | None = None
        self.on_ready: Callable[[int], None] | None = None
        self.got: list[tuple[int, bytes]] = []

    def receive(self, frame: bytes, now: int) -> None:
        self.got.append((now, frame))

    def send(self, frame: bytes, now: int = 0) -> None:
        assert self.on_transmit is not None
        self.on_transmit(frame, now)


def setup(text: str) -> tuple[Clock, Card, Traffic]:
    clock, card = Clock(), Card()
    return clock, card, Traffic(clock, TrafficSpec.parse(text), card)


def slow_sums(frame: bytes) -> tuple[int, int]:
    """The loop that the description gives."""
    data = bytearray(frame)
    data[36:44] = bytes(8)
    data = data[12:] + bytes(-len(data[12:]) % 4)
    first = second = 0
    for (word,) in struct.iter_unpack("<I", data):
        first = first + word & 0xFFFFFFFF
        second = second + first & 0xFFFFFFFF
    return first, second


@pytest.mark.parametrize("size", [60, 61, 62, 63, 64, 1514, 9000, SIZE_MAX])
def test_frames_are_as_described(size: int) -> None:
    frame = Frame(3, 1 << 40, 123_456_789, size).build(Card.mac)
    assert len(frame) == size
    assert frame[:6] == Card.mac and frame[12:14] == b"\x88\xb5"
    assert struct.unpack_from("<HQQI", frame, 14) == (3, 1 << 40, 123_456_789, size)
    assert struct.unpack_from("<II", frame, 36) == slow_sums(frame) == sums(frame)
    assert Frame.parse(frame) == Frame(3, 1 << 40, 123_456_789, size)


@pytest.mark.parametrize("at", [14, 15, 16, 30, 35, 36, 43, 44, 1000, 1513])
def test_damage_is_noticed(at: int) -> None:
    frame = bytearray(Frame(0, 7, 5, 1514).build())
    frame[at] ^= 0x10
    with pytest.raises(ValueError):
        Frame.parse(bytes(frame))


def test_exchanged_words_and_lost_bytes_are_noticed() -> None:
    frame = Frame(0, 7, 5, 1514).build()
    for bad in (
        frame[:500] + frame[504:508] + frame[500:504] + frame[508:],
        frame[:-1],
        frame + b"\0",
        frame[:40],
    ):
        with pytest.raises(ValueError):
            Frame.parse(bad)
    assert Frame.parse(frame[:12] + b"\x08\x06" + frame[14:]) is None


def test_constant_rate() -> None:
    clock, card, traffic = setup("rate=100k,size=60,count=50")
    clock.run(10_000_000)
    assert card.got == []
    traffic.start(at=20_000_000)
    clock.run(1 << 40)
    assert [now for now, _ in card.got] == [20_000_000 + 10_000 * i for i in range(50)]
    frames = [Frame.parse(frame) for _, frame in card.got]
    assert [f and (f.sequence, f.tick) for f in frames] == [(i, now) for i, (now, _) in enumerate(card.got)]
    assert traffic.finished and clock.state() == []


def test_bursts_and_a_wire_that_is_too_slow() -> None:
    clock, card, _ = setup("interval=100000,burst=3,size=100,count=9,start=5")
    clock.run(1 << 40)
    wire = wire_ticks(100)
    assert [now for now, _ in card.got] == [5 + 100_000 * i + wire * j for i in range(3) for j in range(3)]
    clock, card, _ = setup("interval=1,size=9000,count=4,start=0")
    clock.run(1 << 40)
    assert [now for now, _ in card.got] == [wire_ticks(9000) * i for i in range(4)]


def test_sizes_are_spread_and_follow_from_the_seed() -> None:
    spec = TrafficSpec.parse("size=60-9000,seed=5")
    sizes = [spec.size_of(i) for i in range(2000)]
    assert min(sizes) < 200 and max(sizes) > 8800 and min(sizes) >= 60 and max(sizes) <= 9000
    assert 4200 < sum(sizes) / 2000 < 4900
    assert sizes == [TrafficSpec.parse("size=60-9000,seed=5").size_of(i) for i in range(2000)]
    assert sizes != [TrafficSpec.parse("size=60-9000,seed=6").size_of(i) for i in range(2000)]


def test_start_when_the_receiver_is_turned_on() -> None:
    clock, card, traffic = setup("interval=1000,count=3,start=ready")
    clock.run(5_000_000)
    assert card.got == [] and card.on_ready is not None
    card.on_ready(6_000_000)
    card.on_ready(6_050_000)
    clock.run(7_000_000)
    assert [now for now, _ in card.got] == [6_000_000 + READY_TICKS + 1000 * i for i in range(3)]
    card.on_ready(8_000_000)
    clock.run(1 << 40)
    assert len(card.got) == 3 and traffic.plain()["sent"] == 3, "once"
    b = NicBoard()
    Traffic(b.clock, TrafficSpec.parse("interval=1000,count=3,start=ready"), b.nic)
    b.to(1_000)
    b.receive_ring()
    b.after(1_000_000)
    assert len(b.take_all()) == 3


def test_stop_and_go_on() -> None:
    clock, card, traffic = setup("interval=1000,count=6,start=0")
    clock.run(2500)
    traffic.stop()
    clock.run(50_000)
    assert len(card.got) == 3
    traffic.start(at=60_000)
    clock.run(1 << 40)
    assert [now for now, _ in card.got[3:]] == [60_000, 61_000, 62_000]
    traffic.start(at=1 << 41)
    clock.run(1 << 42)
    assert len(card.got) == 6, "there is no more"


def test_the_state_holds_what_is_still_to_be_sent() -> None:
    clock, card, traffic = setup("interval=20000,burst=4,size=60-9000,count=40,start=10")
    clock.run(123_456)
    state, events = traffic.state(), clock.state()
    clock.run(1 << 40)
    clock2, card2, traffic2 = setup("interval=20000,burst=4,size=60-9000,count=40")
    traffic2.load(state)
    clock2.load(events)
    clock2.run(1 << 40)
    assert 0 < len(card2.got) < 40 and card2.got == card.got[-len(card2.got) :]
    assert traffic2.state() == traffic.state()


def test_sink() -> None:
    _, card, traffic = setup("stream=1")
    for sequence in (0, 1, 2, 5, 4, 4, 1, 7):
        card.send(Frame(1, sequence, 0, 100).build())
    card.send(Frame(2, 9, 0, 100).build())
    card.send(Frame(1, 3, 0, 100).build()[:-1])
    card.send(b"\xff" * 60)
    s = traffic.s
    assert (s.frames, s.bytes, s.corrupted, s.foreign) == (11, 9 * 100 + 99 + 60, 1, 1)
    one = traffic.stream(1)
    assert one == Stream(ranges=[0, 3, 4, 6, 7, 8], duplicated=2, reordered=1)
    assert (one.received, one.lost(8), one.lost(10)) == (6, 2, 4)
    assert traffic.stream(2).ranges == [9, 10] and traffic.stream(3).received == 0
    again = setup("stream=1")[2]
    again.load(traffic.state())
    assert again.state() == traffic.state() and again.stream(1) == one


def test_ranges_against_a_set() -> None:
    import random

    draw = random.Random(4)
    for _ in range(50):
        stream, seen, duplicated = Stream(), set[int](), 0
        for _ in range(200):
            sequence = draw.randrange(60)
            duplicated += sequence in seen
            seen.add(sequence)
            stream.add(sequence)
        flat = [i for a, b in zip(stream.ranges[::2], stream.ranges[1::2], strict=True) for i in range(a, b)]
        assert flat == sorted(seen) and stream.duplicated == duplicated
        assert all(x < y for x, y in zip(stream.ranges, stream.ranges[1:], strict=False))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("speed=1", "there is no 'speed' in traffic; there are rate, interval"), ("rate=fast", "'rate=fast'"),
        ("rate=0", "'rate=0'"), ("size=59", "size=59-59"), ("size=100-60", "size=100-60"),
        ("size=9217", "size=9217"), ("count=-1", "count=-1"), ("burst=0", "burst=0"),
        ("stream=65536", "stream=65536"), ("start=P9", "'start=P9'"),
        ("interval", "'interval'"),
    ],
)  # fmt: skip
def test_bad_specifications(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        TrafficSpec.parse(text)


def test_traffic_needs_a_card() -> None:
    with pytest.raises(ConfigError, match="no network card 'e1000'"):
        Machine(64 * MIB, devices=("edu",), traffic="")
    with pytest.raises(ConfigError, match="no network card 'bridge/e1000'"):
        Machine(64 * MIB, devices=("e1000",), traffic="nic=bridge/e1000")
    with Machine(64 * MIB, devices=("e1000",)) as m, pytest.raises(ConfigError, match="other end"):
        m.traffic  # noqa: B018


def test_a_machine_is_saved_with_its_traffic(tmp_path: Path) -> None:
    frames = tuple((1000 * i, bytes([i]) * (60 + i)) for i in range(5))
    for spec in (
        TrafficSpec.parse("interval=5000,burst=2,size=60-9000,seed=9,start=70000"),
        TrafficSpec(replay=frames),
    ):
        with Machine(64 * MIB, devices=("bridge", "bridge/e1000"), traffic=spec) as m:
            if spec.replay:
                m.traffic.start(at=100)
            m.clock.run(2_500)
            m.save(tmp_path / "machine")
            saved = m.state_hash()
            kept = m.snapshot()
            m.clock.run(1_000_000)
            end = m.traffic.state()
            assert m.state_hash() != saved
            m.restore(kept)
            assert m.state_hash() == saved
        with Machine.load(tmp_path / "machine") as m:
            assert m.state_hash() == saved and m.description.traffic == spec
            m.clock.run(1_000_000)
            assert m.traffic.state() == end


# --- recordings ---


def write_pcap(
    path: Path, frames: list[tuple[int, bytes]], order: str = "<", magic: int = 0xA1B2C3D4
) -> None:
    data = struct.pack(order + "IHHiIII", magic, 2, 4, 0, 0, 65535, 1)
    for when, frame in frames:
        data += struct.pack(order + "IIII", when // 10**6, when % 10**6, len(frame), len(frame)) + frame
    path.write_bytes(data)


@pytest.mark.parametrize("order", ["<", ">"])
def test_replay(tmp_path: Path, order: str) -> None:
    frames = [(5_000_000 + 100 * i, bytes([i]) * 80) for i in range(4)]
    write_pcap(tmp_path / "in", frames, order)
    clock, card = Clock(), Card()
    traffic = Traffic(clock, TrafficSpec(replay=pcap.read(tmp_path / "in")), card)
    traffic.start(at=7_000)
    clock.run(1 << 40)
    assert card.got == [(7_000 + 100_000 * i, frame) for i, (_, frame) in enumerate(frames)]


def test_capture_is_read_again_with_its_ticks(tmp_path: Path) -> None:
    clock, card, traffic = setup("interval=333,size=60-9000,count=9,start=1999999990")
    with pcap.Writer(tmp_path / "out") as writer:
        traffic.taps.append(writer.frame)
        clock.run(1 << 40)
        card.send(b"\x01" * 60, 2_100_000_000)
    assert writer.count == 10
    first = card.got[0][0]
    assert list(pcap.read(tmp_path / "out")) == [
        *((now - first, frame) for now, frame in card.got), (2_100_000_000 - first, b"\x01" * 60),
    ]  # fmt: skip
    data = (tmp_path / "out").read_bytes()
    assert struct.unpack_from("<IHH", data) == (0xA1B23C4D, 2, 4)
    assert struct.unpack_from("<II", data, 24) == (1, 999_999_990)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda d: d[:30], "truncated after 0"), (lambda d: d[:-1], "truncated after 1"),
        (lambda d: d[:20], "truncated"), (lambda d: d[:24], "no frame"), (lambda d: b"", "no pcap"),
        (lambda d: b"\n\r\r\n" + d[4:], "pcapng"),
        (lambda d: d[:20] + b"\x71\0\0\0" + d[24:], "link type 113"),
        (lambda d: d[:36] + b"\xff" + d[37:], "only 60 of the"),
        (lambda d: d[:24] + b"\xff" + d[25:], "order of time"),
    ],
)  # fmt: skip
def test_damaged_recordings(tmp_path: Path, damage: Callable[[bytes], bytes], message: str) -> None:
    write_pcap(tmp_path / "good", [(0, bytes(60)), (1, bytes(60))])
    (tmp_path / "bad").write_bytes(damage((tmp_path / "good").read_bytes()))
    with pytest.raises(ImageError, match=message):
        pcap.read(tmp_path / "bad")
    with pytest.raises(ImageError, match="cannot be written"):
        pcap.Writer(tmp_path / "nowhere/file")
    writer = pcap.Writer(Path("/dev/full"))
    with pytest.raises(ImageError, match=r"/dev/full: cannot be written: No space left"):
        for tick in range(1000):
            writer.frame(tick, True, bytes(1000))
    writer.close()  # that it failed has been said
