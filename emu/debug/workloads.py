"""What runs in the kernels of an update: the project's workloads, for `luemu run --workload`.

A workload is commands for init, before and after each update, of programs that are built with the
project (kernels/user). They are Linux programs: what runs on our kernels runs on Linux. The only one that
is no program is `kho`, the test that is built into our kernels.
"""

from __future__ import annotations

import builtins
import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import numpy as np

from emu.debug.output import amount, size
from emu.errors import ConfigError

MIB = 1 << 20
CACHE_BYTES, CACHE_BYTES_MIN = 16 * MIB, 4 * MIB
TEST_BYTES_MIN = 4096
CHAIN_UPDATES = 4
FRAME_SIZE = 60, 9216
RING_MAX = 32768
_CACHE_MARK = b"@cache "

WORKLOADS = {
    "cache": "a cache service with its store in memfds, written to until the kernel stops (default)",
    "chain": f"the same through {CHAIN_UPDATES} updates, old and new by turns (--updates says how many)",
    "net": "a receiver in user space owns a network card; frames keep coming; the cache beside it",
    "many": "thousands of sessions and files",
    "sparse": "files with holes, odd sizes, seals and positions",
    "abort": "every way in which a live update does not take place, and the one that does after all",
    "kho": "no programs: the test of KHO that is built into the project's kernels",
}
DEFAULT = "cache"


@dataclass(frozen=True)
class Workload:
    """``programs`` are of the project, and are put into /bin; ``memory`` is what the machine needs for it."""

    name: str
    before: Sequence[str] = ()
    after: Sequence[str] = ()
    programs: Sequence[str] = ()
    cmdline: str = ""
    updates: int = 1
    memory: int = 512 * MIB
    devices: Sequence[str] = ()
    traffic: str = ""
    """what arrives at the network card (`emu.traffic`)"""


@dataclass(frozen=True)
class Stream:
    """What the workload `net` receives, and how. Raises ConfigError."""

    rate: int = 20_000
    """frames a second"""
    frame_size: int = 1500
    irq: bool = False
    ring: int = 4096
    start: int = 0
    """tick of the first frame"""

    def __post_init__(self) -> None:
        if not 1 <= self.rate <= 10_000_000:
            raise ConfigError(f"{self.rate} frames a second: 1 to 10,000,000 are possible", "--rate")
        if not FRAME_SIZE[0] <= self.frame_size <= FRAME_SIZE[1]:
            raise ConfigError(f"a frame has {FRAME_SIZE[0]} to {FRAME_SIZE[1]} bytes", "--frame-size")
        if not 8 <= self.ring <= RING_MAX or self.ring % 8:
            raise ConfigError(f"a ring has 8 to {RING_MAX} descriptors, a multiple of 8", "--ring")

    @property
    def buffer(self) -> int:
        """The smallest buffer that a frame fits in."""
        return next(size for size in (2048, 4096, 8192, 16384) if size >= self.frame_size + 4)

    @property
    def memory(self) -> int:
        """Of ring and buffers."""
        return 2 * MIB + -(-self.ring * self.buffer // (2 * MIB)) * 2 * MIB


def workload(
    name: str, preserve: int | None = None, stream: Stream | None = None, updates: int = 1, more: str = ""
) -> Workload:
    """By name; ``preserve`` is the size of what it hands over, if it has one. Of `net`: ``stream``, how many
    updates there will be, and ``more`` for the receiver's command. Raises ConfigError."""
    if name not in WORKLOADS:
        raise ConfigError(f"is none of {', '.join(WORKLOADS)}", f"workload {name}")
    if name == "net":
        return _net(CACHE_BYTES_MIN if preserve is None else preserve, stream or Stream(), updates, more)
    if name in ("cache", "chain"):
        return _cache(name, CACHE_BYTES if preserve is None else preserve)
    if name == "kho":
        if preserve is None:
            return Workload(name)
        if preserve < TEST_BYTES_MIN:
            message = f"{preserve:,} bytes are too few, {TEST_BYTES_MIN:,} are the least"
            raise ConfigError(message, "--preserve")
        return Workload(name, cmdline=f"test_kho.max_mem={preserve}", memory=_memory(preserve))
    if preserve is not None:
        raise ConfigError("hands over what it always does: it has no size", f"workload {name}")
    commands = {"many": ("many start", "many check"), "sparse": ("sparse start", "sparse check"),
                "abort": ("abort start", "abort check")}  # fmt: skip
    before, after = commands[name]
    return Workload(name, [before], [after], [name], cmdline="luo_test=file" if name == "abort" else "")


def _cache(name: str, store: int) -> Workload:
    if store < CACHE_BYTES_MIN:
        raise ConfigError(f"{size(store)} is too small, {size(CACHE_BYTES_MIN)} is the least", "--preserve")
    updates = CHAIN_UPDATES if name == "chain" else 1
    before, after = f"cache start {store}", "cache check"
    return Workload(name, [before], [after], ["cache"], updates=updates, memory=_memory(store))


def _memory(preserved: int) -> int:
    """Of a machine that preserves that much."""
    room = preserved + preserved // 4  # index, page tables, the records of what is preserved
    return max(512 * MIB, -(-(256 * MIB + room) // (64 * MIB)) * 64 * MIB)


def _net(store: int, stream: Stream, updates: int, more: str) -> Workload:
    cache = _cache("cache", store)
    irq = " --irq" if stream.irq else ""
    start = f"net start --ring {stream.ring} --buffer {stream.buffer}{irq} {more}".strip()
    return replace(
        cache,
        name="net",
        before=[start, *cache.before],
        after=[f"net check {max(updates, 1)}", *cache.after],
        programs=["net", *cache.programs],
        cmdline="vfio-pci.ids=8086:100e",
        memory=cache.memory + -(-stream.memory // (64 * MIB)) * 64 * MIB,
        devices=("vtd", "e1000", "edu"),
        traffic=f"rate={stream.rate},size={stream.frame_size},start={stream.start}",
    )


# ---- what a run of the cache came to -----------------------------------------------------------------


@dataclass
class CacheReport:
    """What the cache's clients found, after one update or all of them."""

    keys: int = 0
    bytes: int = 0
    lost: int = 0
    corrupted: int = 0
    last_write_survived: bool = False
    acknowledged: int = 0
    """writes, up to the jump"""
    issued: int = 0
    in_flight: int = 0
    problems: list[str] = field(default_factory=list)
    """what is wrong with the report itself"""

    @classmethod
    def parse(cls, output: builtins.bytes) -> CacheReport | None:
        """From the output of `cache check`; None if that reports nothing."""
        for line in output.splitlines():
            if line.startswith(_CACHE_MARK):
                try:
                    return cls(**json.loads(line.removeprefix(_CACHE_MARK)))
                except (ValueError, TypeError):
                    return cls(problems=["the report of the cache's client cannot be read"])
        return None

    def plain(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "keys": self.keys,
            "bytes": self.bytes,
            "lost": self.lost,
            "corrupted": self.corrupted,
            "last_write_survived": self.last_write_survived,
            "acknowledged": self.acknowledged,
            "issued": self.issued,
        }

    @property
    def ok(self) -> bool:
        """Whether nothing was lost."""
        return not (self.lost or self.corrupted or self.problems) and self.last_write_survived

    def __str__(self) -> str:
        return cache_line(self.plain())


def cache_line(c: dict[str, Any]) -> str:
    """The object `cache` of the JSON, for people."""
    last = "survived" if c["last_write_survived"] else "did not survive"
    return (
        f"{amount(c['keys'], 'key')}, {size(c['bytes'])}: {c['lost']:,} lost, {c['corrupted']:,} corrupted; "
        f"of {c['acknowledged']:,} acknowledged writes the last {last}"
    )


def together(reports: Sequence[CacheReport]) -> dict[str, Any] | None:
    """Of a chain: the last one's contents, everybody's losses. None if there is none."""
    if not reports:
        return None
    return replace(
        reports[-1],
        lost=sum(r.lost for r in reports),
        corrupted=sum(r.corrupted for r in reports),
        last_write_survived=all(r.last_write_survived for r in reports),
    ).plain()


@dataclass(frozen=True)
class Ledger:
    """What the cache's client had written down when the kernel jumped, as the host reads it from memory:
    struct ledger of kernels/user/cache/client.h."""

    keys: int
    issued: int
    acknowledged: int
    written: int
    """keys of which a write was acknowledged"""

    SESSION: ClassVar[str] = "cache-client"
    TOKEN: ClassVar[int] = 3
    BYTES_MAX: ClassVar[int] = 128 * MIB

    @classmethod
    def parse(cls, data: bytes) -> Ledger | None:
        """None if it is no ledger."""
        if len(data) < 56 or data[:8] != b"LULEDGER":
            return None

        def word(at: int, length: int = 8) -> int:
            return int.from_bytes(data[at : at + length], "little")

        keys = word(12, 4)
        room = min(keys, (len(data) - 56) // 4)
        written = int(np.count_nonzero(np.frombuffer(data, "<u4", room, 56)))
        return cls(keys, word(24), word(32), written)

    def contradictions(self, report: CacheReport) -> list[str]:
        """Where the client says something else after the update than it had written down before it."""
        out = []
        if report.acknowledged != self.acknowledged or report.issued != self.issued:
            out.append(
                f"the cache's client remembers {report.acknowledged:,} acknowledged writes of "
                f"{report.issued:,}; at J its ledger said {self.acknowledged:,} of {self.issued:,}"
            )
        if not self.written <= report.keys <= self.written + 1:
            out.append(
                f"the cache's client looked at {report.keys:,} keys; {self.written:,} had been written at J"
            )
        return out


__all__ = [
    "DEFAULT", "WORKLOADS", "CacheReport", "Ledger", "Stream", "Workload", "cache_line", "together",
    "workload",
]  # fmt: skip
