"""Preserved memfds: pages that move, pages of every size, holes, sizes up to the border, seals, modes.

What arrives is compared with a plain bytearray to which the same was done.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

import pytest

from emu.debug.view import View
from emu.machine import Machine
from kho.handover import Handover
from luo.memfd import Memfd
from luo.state import Luo
from tests.userspace import rig
from tests.userspace.agents import MIB, NOMEM, PERM, answers, expect, orders, spec
from tests.userspace.test_handovers import at_the_jump
from tests.userspace.test_unhappy import PAIRS, Steps

PAGE = 4096
HUGE = 2 * MIB
FBIG = -27
SEAL, SHRINK, GROW, WRITE, FUTURE, EXEC = 1, 2, 4, 8, 16, 32
MASK = (1 << 64) - 1


def pattern(seed: int, start: int, size: int) -> bytes:
    """Bytes [start, start + size) of contents with this seed, as the agent makes them."""
    out = bytearray()
    for word in range(start // 8, (start + size + 7) // 8):
        z = ((seed << 40) + word + 0x9E3779B97F4A7C15) & MASK
        z = ((z ^ z >> 30) * 0xBF58476D1CE4E5B9) & MASK
        out += (z ^ z >> 27).to_bytes(8, "little")
    return bytes(out[start % 8 :][:size])


def fnv(data: bytes) -> str:
    """The agent's sum of contents."""
    h = 14695981039346656037
    for byte in data:
        h = (h ^ byte) * 1099511628211 & MASK
    return f"{h:016x}"


@dataclass
class File:
    """A memfd in plain Python, and the orders that make the same of a real one."""

    slot: int
    data: bytearray = field(default_factory=bytearray)
    steps: Steps = field(default_factory=list)

    def create(self, flags: int = 2) -> File:
        self.steps.append((f"memfd {self.slot} {flags}", 0))
        return self

    def write(self, at: int, size: int, seed: int) -> File:
        for start in range(at, at + size, MIB):
            piece = min(MIB, at + size - start)
            self.steps.append((f"write {self.slot} {start} {piece} {seed}", piece))
        self.data.extend(bytes(max(0, at + size - len(self.data))))
        self.data[at : at + size] = pattern(seed, at, size)
        return self

    def truncate(self, size: int) -> File:
        self.steps.append((f"truncate {self.slot} {size}", 0))
        self.data = self.data[:size] + bytes(max(0, size - len(self.data)))
        return self

    def punch(self, at: int, size: int) -> File:
        self.steps.append((f"fallocate {self.slot} 3 {at} {size}", 0))
        end = min(at + size, len(self.data))
        self.data[at:end] = bytes(max(0, end - at))
        return self

    def huge(self, size: int, seed: int) -> File:
        self.steps.append((f"huge {self.slot} {size} {seed}", 0))
        self.data = bytearray(pattern(seed, 0, size))
        return self

    @property
    def stat(self) -> str:
        return f"0 size={len(self.data)}"


def memfds(handover: Handover) -> list[Memfd]:
    luo = Luo.read(handover)
    assert luo is not None
    found = [f.memfd for s in luo.sessions for f in s.files]
    assert all(m is not None for m in found)
    return found  # type: ignore[return-value]


def carry(files: list[File], kernels: tuple[str, str], memory: int = rig.MEMORY) -> Handover:
    """Preserve them all, update, retrieve, compare."""
    old: Steps = [("open", 0), ("create 0 a", 0)]
    new: Steps = [("open", 0), ("retrieve 0 a", 0)]
    for n, f in enumerate(files):
        old += [*f.steps, (f"preserve 0 {f.slot} {n}", 0)]
        new += [(f"get {f.slot} 0 {n}", 0), (f"stat {f.slot}", f.stat)]
    with rig.Rig(spec(kernels, orders(old), orders(new), "", memory=memory)) as r:
        handover = at_the_jump(r, 0)
        for f, m in zip(files, memfds(handover), strict=True):
            at_jump = b"".join(p.tobytes() for p in m.contents(handover.reader))
            assert at_jump == bytes(f.data), f"slot {f.slot} at the jump"
        outcome = r.finish().check()
    expect(outcome, "before", old)
    expect(outcome, "after", new)
    stats = iter(line for order, line in answers(outcome, "after") if order.startswith("stat"))
    for f in files:
        assert next(stats).endswith(f"sum={fnv(bytes(f.data))}"), f"slot {f.slot} in the next kernel"
    return handover


# ---- contents of every kind --------------------------------------------------------------------------------


@pytest.mark.parametrize("kernels", PAIRS, ids="-".join)
def test_sizes_around_pages(kernels: tuple[str, str]) -> None:
    files = []
    for n, size in enumerate(
        (0, 1, 4095, 4096, 4097, 8191, 8192, 12345, 511 * PAGE, 512 * PAGE, 513 * PAGE + 1)
    ):
        f = File(10 + n).create()
        files.append(f.write(0, size, n) if size else f)
    carry(files, kernels, 256 * MIB)


@pytest.mark.parametrize("kernels", PAIRS, ids="-".join)
def test_holes_become_zeros(kernels: tuple[str, str]) -> None:
    sparse = File(10).create().truncate(40 * PAGE).write(3 * PAGE, 100, 1).write(17 * PAGE + 4000, 200, 2)
    punched = File(11).create().write(0, 20 * PAGE, 3).punch(2 * PAGE + 100, 5 * PAGE).punch(19 * PAGE, PAGE)
    nothing = File(12).create().truncate(1 * MIB + 5)
    cut = File(13).create().write(0, 10 * PAGE, 4).truncate(3 * PAGE + 7).truncate(9 * PAGE)
    far = File(14).create().write(700 * PAGE + 11, 5000, 5)
    carry([sparse, punched, nothing, cut, far], kernels)


def orders_of(handover: Handover) -> list[dict[int, int]]:
    return [m.folio_counts() for m in memfds(handover)]


@pytest.mark.parametrize(
    "kernels", [pytest.param(("old", "new"), marks=pytest.mark.campaign), ("new", "old")], ids="-".join
)
def test_large_folios_whole_cut_and_punched(kernels: tuple[str, str]) -> None:
    """A large folio that is cut becomes small ones where it is; what is beyond the end reads as zeros."""
    files = [
        File(10).create().huge(2 * HUGE, 1),
        File(11).create().huge(2 * HUGE, 2).truncate(HUGE + 3 * PAGE + 100).truncate(2 * HUGE),
        File(12).create().huge(HUGE, 3).punch(10 * PAGE, 7 * PAGE + 50),
        File(13).create().huge(2 * HUGE, 4).punch(0, HUGE),
        File(14).create().huge(HUGE + 5 * PAGE, 5),
        File(15).create().huge(HUGE, 6).write(HUGE, 3 * PAGE, 7),
    ]
    found = orders_of(carry(files, kernels, 256 * MIB))
    assert found[0] == {9: 2}
    assert found[4] == found[5] | {0: 5} == {9: 1, 0: 5}
    assert found[1] == {9: 1, 0: 512}, "the one that was cut is in small ones now"
    assert all(
        sum(n << o for o, n in by_order.items()) == -(-len(f.data) // PAGE)
        for f, by_order in zip(files, found, strict=True)
    )


@pytest.mark.parametrize("kernels", PAIRS, ids="-".join)
def test_large_folios_can_be_cut_after_they_were_retrieved(kernels: tuple[str, str]) -> None:
    f = File(10).create().huge(2 * HUGE, 1)
    after = File(10, bytearray(f.data))
    after.truncate(HUGE + 100).write(HUGE + 50, 3000, 2).punch(5 * PAGE, 9 * PAGE).truncate(2 * HUGE - 1)
    after.write(2 * HUGE - 10, 20, 3)
    more: Steps = [("finish 0", 0), *after.steps, ("stat 10", after.stat)]
    old: Steps = [("open", 0), ("create 0 a", 0), *f.steps, ("preserve 0 10 1", 0)]
    new: Steps = [("open", 0), ("retrieve 0 a", 0), ("get 10 0 1", 0), *more]
    with rig.Rig(spec(kernels, orders(old), orders(new), "", memory=256 * MIB)) as r:
        outcome = r.finish().check()
    expect(outcome, "after", new)
    assert answers(outcome, "after")[-1][1].endswith(f"sum={fnv(bytes(after.data))}")


def test_files_of_tmpfs_without_a_name() -> None:
    """They are files in memory like any other."""
    f = File(10)
    f.steps.append(("tmpfile 10", 0))
    carry([f.write(0, 9000, 1)], ("old", "new"))


# ---- borders -----------------------------------------------------------------------------------------------


def test_the_largest_file_and_the_one_that_is_too_large() -> None:
    """2^32 - 1 pages are refused for want of memory, one more for what it is. Nothing remains of either."""
    old: Steps = [
        ("open", 0), ("create 0 a", 0), ("memfd 10 2", 0), (f"truncate 10 {((1 << 32) - 1) * PAGE}", 0),
        ("preserve 0 10 1", NOMEM), (f"truncate 10 {((1 << 32) - 1) * PAGE + 1}", 0),
        ("preserve 0 10 1", FBIG),
        (f"truncate 10 {1 << 62}", 0), ("preserve 0 10 1", FBIG), ("truncate 10 5000", 0),
        ("write 10 0 5000 1", 5000), ("preserve 0 10 1", 0),
    ]  # fmt: skip
    new: Steps = [("open", 0), ("retrieve 0 a", 0), ("get 10 0 1", 0), ("stat 10", "0 size=5000 blocks=16")]
    with rig.Rig(spec(("old", "new"), orders(old), orders(new), "")) as r:
        assert at_the_jump(r, 0).preserved.count_by_order() == {0: 4 + 2 + 3 + 2}
        outcome = r.finish().check()
    expect(outcome, "before", old)
    expect(outcome, "after", new)
    assert answers(outcome, "after")[-1][1].endswith(f"sum={fnv(pattern(1, 0, 5000))}")


def test_more_than_there_is_memory_for_leaves_the_file_usable() -> None:
    """A sparse file that memory cannot hold; some of it is there before and after."""
    old: Steps = [
        ("open", 0), ("create 0 a", 0), ("memfd 10 2", 0), ("write 10 8192 4096 3", 4096),
        (f"truncate 10 {1 << 40}", 0), ("preserve 0 10 1", NOMEM), ("truncate 10 16384", 0),
        ("write 10 0 4096 4", 4096), ("seal 10 8", 0), ("truncate 10 8192", 0), ("preserve 0 10 1", 0),
    ]  # fmt: skip
    new: Steps = [("open", 0), ("retrieve 0 a", 0), ("get 10 0 1", 0), ("stat 10", "0 size=8192")]
    with rig.Rig(spec(("new", "old"), orders(old), orders(new), "")) as r:
        outcome = r.finish().check()
    expect(outcome, "before", old)
    expect(outcome, "after", new)


# ---- seals, modes, positions -------------------------------------------------------------------------------


@pytest.mark.parametrize("kernels", PAIRS, ids="-".join)
@pytest.mark.parametrize(
    ("flags", "before", "after", "arrives", "mode"),
    [
        (2, 0, 0, 0, "100777"),
        (0, None, None, SEAL, "100777"),
        (2, SHRINK, GROW, SHRINK | GROW, "100777"),
        (2, 0, SEAL, SEAL, "100777"),
        (2, WRITE, 0, WRITE, "100777"),
        (2, FUTURE, SHRINK | GROW, FUTURE | SHRINK | GROW, "100777"),
        (8, 0, 0, EXEC, "100666"),  # MFD_NOEXEC_SEAL: Linux 7.2.13 returns it sealed against every write
        (8, SHRINK, GROW, EXEC | SHRINK | GROW, "100666"),
        (8, SHRINK | GROW | WRITE | FUTURE, 0, EXEC | SHRINK | GROW | WRITE | FUTURE, "100777"),
        (0x12, EXEC, 0, EXEC | SHRINK | GROW | WRITE | FUTURE, "100777"),  # an executable one that is sealed
    ],
)
def test_seals_arrive_as_they_are_at_the_jump(
    flags: int, before: int | None, after: int | None, arrives: int, mode: str, kernels: tuple[str, str]
) -> None:
    old: Steps = [("open", 0), ("create 0 a", 0), (f"memfd 10 {flags}", 0), ("write 10 0 6000 1", 6000)]
    old += [(f"seal 10 {before}", 0)] if before is not None else []
    old += [("preserve 0 10 1", 0)]
    old += [(f"seal 10 {after}", 0)] if after is not None else []
    old += [("seek 10 123", 123)]
    writable = not arrives & (WRITE | FUTURE)
    new: Steps = [
        ("open", 0), ("retrieve 0 a", 0), ("get 10 0 1", 0),
        ("stat 10", f"0 size=6000 blocks=16 pos=123 seals={arrives:#x} mode={mode}"),
        ("write 10 10 5 9", 5 if writable else PERM), ("finish 0", 0), ("close 0", 0),
        ("write 10 10 5 9", 5 if writable else PERM), ("truncate 10 6001", PERM if arrives & GROW else 0),
    ]  # fmt: skip
    with rig.Rig(spec(kernels, orders(old), orders(new), "")) as r:
        outcome = r.finish().check()
    expect(outcome, "before", old)
    expect(outcome, "after", new)


# ---- pages that move ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("kernels", PAIRS, ids="-".join)
def test_a_mapped_file_that_is_being_written_moves_out_of_scratch_and_loses_nothing(
    kernels: tuple[str, str],
) -> None:
    """Most of memory is scratch, so that the file's pages begin there; a child writes to all of them without
    pause while they are preserved."""
    pages = 512
    new: Steps = [("open", 0), ("retrieve 0 written", 0), ("get 10 0 1", 0), ("stat 10", "0")]
    run = rig.Spec(
        kernels, before=[f"writer {pages}"], after=spec(kernels, [], orders(new)).after,
        cmdline="kho_scratch=80M,0,0", programs=("writer", "agent"),
    )  # fmt: skip
    moved: list[int] = []
    kernel = rig.kernel(kernels[0])

    def migrated(m: Machine) -> None:
        folio = m.cpus[0].registers()["rsi"]
        vmemmap = View(m, kernel).variable("vmemmap_base")
        moved.append((folio - vmemmap) // kernel.layouts.struct("page").size << 12)

    with rig.Rig(run) as r:
        r.at(0, "migrate_folio", migrated)
        handover = at_the_jump(r, 0)
        (memfd,) = memfds(handover)
        places = [int(p) for p in memfd.folio_phys]
        assert handover.scratch is not None
        inside = [p for p in moved if any(a.phys <= p < a.end for a in handover.scratch)]
        assert len(set(inside)) >= pages // 2, f"only {len(set(inside))} pages began in scratch"
        assert not any(a.phys <= p < a.end for p in places for a in handover.scratch)
        assert not set(places) & set(moved), "a page that was moved away from is preserved"
        counts = [int.from_bytes(handover.reader.bytes(p, 8), "little") for p in places]
        outcome = r.finish().check()
    said = dict(re.findall(r"^page (\d+) (\d+)$", outcome.output(0), re.M))
    assert len(said) == pages
    behind = [counts[i] - int(said[str(i)]) for i in range(pages)]
    assert sum(behind) in (0, 1) and min(behind) == 0, "a write is not in the file"
    expect(outcome, "after", new)
    data = b"".join(n.to_bytes(8, "little") + bytes(PAGE - 8) for n in counts)
    assert answers(outcome, "after")[-1][1].endswith(f"sum={fnv(data)}")
