"""The other end of a network card's cable: a source that sends in virtual time, and a sink that verifies.

Both are deterministic. What the source is to send is part of the machine's description; how far it is, and
what the sink saw, are part of its state. So a snapshot, or a machine from a file, sends the rest.

    with Machine(memory, devices=("e1000",), traffic="rate=100k,size=64-9000,count=1000") as m:
        m.traffic.start(at=m.ticks + 1_000_000)

Layout of a frame (`Frame`; numbers little-endian but the Ethernet type):

| offset | bytes | |
|---|---|---|
| 0 | 6 | destination |
| 6 | 6 | source |
| 12 | 2 | type 0x88b5, which IEEE 802 leaves to experiments |
| 14 | 2 | stream |
| 16 | 8 | sequence number, from 0 |
| 24 | 8 | tick at which the frame has arrived |
| 32 | 4 | bytes of the frame, without check sequence |
| 36 | 4 | first sum |
| 40 | 4 | second sum |
| 44 | | filling: a piece of a fixed random table, chosen by the sequence number |

The sums are over the 32-bit words from offset 12 to the end, which is filled up with zeros, with both sums
taken as 0: ``for each word: first += word; second += first``, modulo 2^32.
"""

from __future__ import annotations

import functools
import hashlib
import random
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, Protocol

import numpy as np

from emu.clock import Clock
from emu.devices.device import Device
from emu.devices.e1000 import MAC, wire_ticks
from emu.errors import ConfigError

ETHERTYPE = 0x88B5
SUMMED_FROM, HEADER = 12, 44
SIZE_MIN, SIZE_MAX = 60, 9216
READY, READY_TICKS = "ready", 100_000
SOURCE_MAC = bytes.fromhex("525400fedcba")
_HEAD = struct.Struct("<6s6s2sHQQIII")
_FILLING = random.Random(0x88B5).randbytes(2 * SIZE_MAX)
_WEIGHTS = np.arange(1 << 14, 0, -1, dtype=np.uint64)  # of each word in the second sum, the last has 1


def sums(frame: bytes) -> tuple[int, int]:
    """Both sums of a frame, whatever stands in their place."""
    data = frame[SUMMED_FROM:36] + bytes(8) + frame[HEADER:]
    words = np.frombuffer(data + bytes(-len(data) % 4), "<u4").astype(np.uint64)
    second = (words * _WEIGHTS[-len(words) :]).sum()
    return int(words.sum()) & 0xFFFF_FFFF, int(second) & 0xFFFF_FFFF


@dataclass(frozen=True)
class Frame:
    """What a frame of ours says of itself."""

    stream: int
    sequence: int
    tick: int
    size: int

    def build(self, to: bytes = MAC, source: bytes = SOURCE_MAC) -> bytes:
        """The frame, without check sequence."""
        head = _HEAD.pack(
            to, source, ETHERTYPE.to_bytes(2, "big"), self.stream, self.sequence, self.tick, self.size, 0, 0
        )
        start = self.sequence * 61 % SIZE_MAX
        frame = head + _FILLING[start : start + self.size - HEADER]
        return frame[:36] + struct.pack("<II", *sums(frame)) + frame[HEADER:]

    @classmethod
    def parse(cls, frame: bytes) -> Frame | None:
        """What a frame says, if it is one of ours and whole. Raises ValueError if it is ours and damaged."""
        if frame[12:14] != ETHERTYPE.to_bytes(2, "big"):
            return None
        if len(frame) < HEADER:
            raise ValueError("cut off")
        _, _, _, stream, sequence, tick, size, first, second = _HEAD.unpack_from(frame)
        if size != len(frame):
            raise ValueError(f"{len(frame)} bytes, and says {size}")
        if (first, second) != sums(frame):
            raise ValueError("sums do not match")
        return cls(stream, sequence, tick, size)


@dataclass(frozen=True)
class TrafficSpec:
    """What a source sends. `parse` reads ``name=value,…`` with these names.

    ``rate``: frames, or bursts, a second of virtual time, if ``interval`` in ticks is not given. ``burst``:
    frames back to back each time. ``size``: bytes without check sequence, or a range to draw from by
    ``seed``. ``count``: how many in all, 0 for no end. ``start``: a tick, or `READY`: `READY_TICKS` after the
    card's receiver is turned on first; without one somebody calls `Traffic.start`. The wire is never faster
    than 1000 Mb/s. ``replay``: the frames of a recording, with the ticks since its first; they go instead, at
    their own times.
    """

    interval: int = 10_000
    burst: int = 1
    size: tuple[int, int] = (60, 60)
    count: int = 0
    start: int | str | None = None
    seed: int = 1
    stream: int = 0
    nic: str = ""
    """name of the card; the machine's first without"""
    replay: tuple[tuple[int, bytes], ...] = ()

    def __post_init__(self) -> None:
        low, high = self.size
        for good, name, value in (
            (1 <= self.interval < 1 << 48, "interval", self.interval),
            (1 <= self.burst < 1 << 32, "burst", self.burst),
            (SIZE_MIN <= low <= high <= SIZE_MAX, "size", f"{low}-{high}"),
            (0 <= self.count < 1 << 48, "count", self.count),
            (
                self.start in (None, READY) or (isinstance(self.start, int) and 0 <= self.start < 1 << 63),
                "start",
                self.start,
            ),
            (0 <= self.stream < 1 << 16, "stream", self.stream),
            (0 <= self.seed < 1 << 63, "seed", self.seed),
        ):
            if not good:
                raise ConfigError(f"traffic cannot have {name}={value}", "traffic")

    @classmethod
    def parse(cls, text: str) -> TrafficSpec:
        """From ``name=value,…``. Numbers may end in k, M or G. Raises ConfigError."""
        given: dict[str, Any] = {}
        for part in filter(None, text.split(",")):
            name, _, value = part.partition("=")
            try:
                if name == "rate":
                    given["interval"] = max(1_000_000_000 // _number(value), 1)
                elif name == "size":
                    low, _, high = value.partition("-")
                    given[name] = (_number(low), _number(high or low))
                elif name == "start" and value == READY:
                    given[name] = value
                elif name in ("interval", "burst", "count", "start", "seed", "stream"):
                    given[name] = _number(value)
                elif name == "nic":
                    given[name] = value
                else:
                    known = "rate, interval, burst, size, count, start, seed, stream, nic"
                    raise ConfigError(f"there is no {name!r} in traffic; there are {known}", "traffic")
            except (ValueError, ZeroDivisionError):
                raise ConfigError(f"{part!r} is not {name}=NUMBER", "traffic") from None
        return cls(**given)

    def plain(self) -> dict[str, Any]:
        """For JSON; of a recording, its digest. `from_plain` reads it."""
        out = {f.name: getattr(self, f.name) for f in fields(self)}
        return {**out, "size": list(self.size), "replay": self._digest}

    @functools.cached_property
    def _digest(self) -> str:
        return hashlib.sha256(repr(self.replay).encode()).hexdigest() if self.replay else ""

    @classmethod
    def from_plain(cls, given: dict[str, Any], replay: Sequence[tuple[int, bytes]] = ()) -> TrafficSpec:
        """What `plain` returned, with the recording."""
        recorded = tuple((int(tick), bytes(frame)) for tick, frame in replay)
        spec = cls(**{**given, "size": tuple(given["size"]), "replay": recorded})
        if spec._digest != given["replay"]:
            raise ConfigError("the recording is not the one that the machine had", "traffic")
        return spec

    def size_of(self, sequence: int) -> int:
        """Bytes of a frame: by seed and number alone."""
        low, high = self.size
        if low == high:
            return low
        # a multiplicative hash: spread over the range, the same everywhere, and quick
        mixed = (sequence + 1) * 0x9E37_79B9_7F4A_7C15 + self.seed * 0xBF58_476D_1CE4_E5B9 & (1 << 64) - 1
        mixed = (mixed ^ mixed >> 29) * 0x94D0_49BB_1331_11EB & (1 << 64) - 1
        return low + (mixed >> 32) % (high - low + 1)


def _number(text: str) -> int:
    unit = {"k": 10**3, "M": 10**6, "G": 10**9}.get(text[-1:], 1)
    number = int(text if unit == 1 else text[:-1], 10 if text[:2] not in ("0x", "0X") else 16) * unit
    if number < 0:
        raise ValueError("negative")
    return number


@dataclass
class Stream:
    """What arrived of one stream: distinct sequence numbers as ranges, [first, end, first, end, …]."""

    ranges: list[int] = field(default_factory=list)
    duplicated: int = 0
    reordered: int = 0

    def add(self, sequence: int) -> None:
        """One more frame."""
        r = self.ranges
        if r and r[-1] == sequence:
            r[-1] += 1
            return
        if not r or sequence > r[-1]:
            r += [sequence, sequence + 1]
            return
        for i in range(0, len(r), 2):
            if sequence < r[i]:
                self.reordered += 1
                r[i:i] = [sequence, sequence + 1]
                break
            if sequence < r[i + 1]:
                self.duplicated += 1
                return
        merged = r[:2]
        for first, end in zip(r[2::2], r[3::2], strict=True):
            if first == merged[-1]:
                merged[-1] = end
            else:
                merged += [first, end]
        self.ranges = merged

    @property
    def received(self) -> int:
        """Distinct frames."""
        return sum(self.ranges[1::2]) - sum(self.ranges[0::2])

    def lost(self, sent: int) -> int:
        """How many of ``sent`` frames are missing."""
        return sent - self.received


@dataclass
class TrafficState:
    """How far the source is, and what the sink saw."""

    sent: int = 0  # frames, or frames of the recording
    in_burst: int = 0  # of the present burst
    burst_at: int = 0  # when it began
    began: int = 0  # the tick of the first frame
    running: int = 0
    frames: int = 0  # that the card sent, all of them
    bytes: int = 0
    foreign: int = 0  # not of our format
    corrupted: int = 0
    streams: dict[str, Stream] = field(default_factory=dict)  # by number


class Nic(Protocol):
    """What is at the near end of the cable: `emu.devices.e1000.E1000`."""

    mac: bytes
    on_transmit: Callable[[bytes, int], None] | None
    on_ready: Callable[[int], None] | None

    def receive(self, frame: bytes, now: int) -> None:
        """A frame has arrived."""


Tap = Callable[[int, bool, bytes], None]
"""``tap(tick, sent_by_card, frame)``: each frame on the cable, before it is dealt with."""


class Traffic(Device):
    """Source and sink on one card's cable."""

    s: TrafficState

    def __init__(self, clock: Clock, spec: TrafficSpec, nic: Nic, name: str = "traffic") -> None:
        super().__init__(name, clock)
        self.spec = spec
        self.nic = nic
        self.taps: list[Tap] = []
        """observers; no part of the machine"""
        nic.on_transmit = self._sent_by_card
        self.s = TrafficState()
        if spec.start == READY:
            nic.on_ready = self._ready
        elif isinstance(spec.start, int):
            self.start(spec.start)

    # --- the source ---

    def start(self, at: int) -> None:
        """Let the first frame arrive at tick ``at``, or the next one, if it was stopped."""
        s = self.s
        s.running = 1
        s.burst_at, s.in_burst = at, 0
        if not s.sent or self.spec.replay:
            s.began = at - (self.spec.replay[s.sent][0] if s.sent < len(self.spec.replay) else 0)
        if not self.finished:
            self.at(at, "send")

    def _ready(self, now: int) -> None:
        if not self.s.sent and not self.s.running:
            self.start(now + READY_TICKS)

    def stop(self) -> None:
        """Send no more; `start` goes on with the next frame."""
        self.s.running = 0
        self.cancel("send")

    @property
    def finished(self) -> bool:
        """Whether all that was to be sent is sent."""
        end = len(self.spec.replay) or self.spec.count
        return bool(end) and self.s.sent >= end

    def event(self, event: str, now: int) -> None:
        """The next frame has arrived at the card."""
        s, spec = self.s, self.spec
        if spec.replay:
            frame = spec.replay[s.sent][1].ljust(SIZE_MIN, b"\0")
        else:
            frame = Frame(spec.stream, s.sent, now, spec.size_of(s.sent)).build(self.nic.mac)
        s.sent += 1
        if self.finished:
            s.running = 0
        else:
            self.at(self._next(len(frame), now), "send")
        for tap in self.taps:
            tap(now, False, frame)
        self.nic.receive(frame, now)

    def _next(self, size: int, now: int) -> int:
        """When the next frame has arrived: not before its own bits could follow the last one's."""
        s, spec = self.s, self.spec
        if spec.replay:
            when, frame = spec.replay[s.sent]
            return max(s.began + when, now + wire_ticks(len(frame)))
        soonest = now + wire_ticks(spec.size_of(s.sent))
        s.in_burst += 1
        if s.in_burst < spec.burst:
            return soonest
        s.in_burst = 0
        s.burst_at = max(s.burst_at + spec.interval, soonest)
        return s.burst_at

    # --- the sink ---

    def _sent_by_card(self, frame: bytes, now: int) -> None:
        for tap in self.taps:
            tap(now, True, frame)
        s = self.s
        s.frames += 1
        s.bytes += len(frame)
        try:
            found = Frame.parse(frame)
        except ValueError:
            s.corrupted += 1
            return
        if found is None:
            s.foreign += 1
            return
        s.streams.setdefault(str(found.stream), Stream()).add(found.sequence)

    def stream(self, number: int = 0) -> Stream:
        """What the sink saw of a stream."""
        return replace(self.s.streams.get(str(number), Stream()))

    def plain(self) -> dict[str, Any]:
        """For JSON: what was sent, and what came back."""
        s = self.s
        streams = {
            number: {"received": one.received, "duplicated": one.duplicated, "reordered": one.reordered}
            for number, one in sorted(s.streams.items())
        }
        return {
            "sent": s.sent, "finished": self.finished, "frames": s.frames, "bytes": s.bytes,
            "foreign": s.foreign, "corrupted": s.corrupted, "streams": streams,
        }  # fmt: skip

    # --- state ---

    def load(self, state: dict[str, Any]) -> None:
        """Take over what `state` returned."""
        super().load({**state, "streams": {}})
        self.s.streams = {number: Stream(**one) for number, one in state["streams"].items()}
