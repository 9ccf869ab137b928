"""Damaged handovers: our kernels react as Linux 7.2.13 does, or as docs/differences.md says, and never worse.

Whatever is refused stays reserved and unread: no page of it was given to anybody, no byte of it has changed,
and the kernel's count of it is the host's. A kernel that cannot go on leaves an epitaph.
"""

from __future__ import annotations

import hashlib
import random
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from emu.debug import epitaph
from emu.debug.view import PG_BUDDY, View
from emu.machine import Machine, Snapshot, StopKind
from kho.handover import Handover
from luo.state import Luo
from tests.userspace import damage, rig
from tests.userspace.damage import ALL_RIGHT, COMMAND_LINES, HALT, ROWS, SPEC, Damage, reaction
from tests.userspace.rig import Outcome
from tests.userspace.tables import table

KEPT_ALWAYS = 3
"""Pages that no kernel gives back: the root FDT, the metadata, the page of FLBs."""
STRICT = "luo_strict=linux"
Change = Callable[[Damage], Any]


def listed() -> dict[str, tuple[str, str, str]]:
    """Rows of the table: Linux's reaction, ours, and why they differ."""
    return {row[0]: (row[1], row[2], row[3]) for row in table("Damaged handovers")}


def listed_strict() -> dict[str, tuple[str, str]]:
    return {row[0]: (row[1], row[2]) for row in table("Linux's own reactions")}


def linux(name: str) -> str:
    """What the recording says."""
    rows = damage.recorded()
    return reaction(rows[name][1], rows["control"][1])


@dataclass
class Stage:
    """A next kernel that is about to look at a handover, again and again."""

    rig: rig.Rig
    snapshot: Snapshot
    damage: Damage
    names: tuple[str, str]

    @property
    def machine(self) -> Machine:
        return self.rig.machine

    def react(self, change: Change) -> tuple[str, Outcome]:
        """The rest of the run after a change."""
        outcome = self.rig.branch(self.snapshot, lambda m: change(self.damage))
        return self.verdict(outcome), outcome

    def verdict(self, outcome: Outcome) -> str:
        """A kernel ends in one of two ways: its programs have run, or it left an epitaph."""
        if outcome.stop.kind is not StopKind.POWER_OFF:
            found = epitaph.read(self.machine, rig.kernel(self.names[1]))
            assert found is not None, (
                f"it ended without an epitaph: {outcome.stop}\n{outcome.console[-2000:]}"
            )
            return HALT
        after = [i for i, p in enumerate(outcome.programs) if p.when == "after"]
        lines = [line for i in after for line in outcome.lines("", i) if line]
        assert lines, f"lu said nothing\n{outcome.console[-2000:]}"
        return reaction(lines, damage.recorded()["control"][1])

    # ---- what is kept --------------------------------------------------------------------------------

    def view(self) -> View:
        return View(self.machine, rig.kernel(self.names[1]))

    def kept(self) -> np.ndarray[Any, np.dtype[np.uint64]]:
        """First pages of blocks that are reserved for what nobody restored."""
        return self.view().magic_pages()

    def kept_pages(self) -> int:
        private = self.view().page_member(self.kept(), "private")
        return sum(1 << (int(word) & 63) for word in private)

    def nobody_has_them(self) -> None:
        """What is kept is not in use, not free, and as it was at the jump."""
        view, kept = self.view(), self.kept()
        assert not view.page_member(kept, "refcount").any(), "a page that was refused is in use"
        assert not (view.page_member(kept, "flags") & PG_BUDDY).any(), "a page that was refused is free"
        now = {int(p): self.machine.memory.read(int(p), 4096).tobytes() for p in kept}
        self.machine.restore(self.snapshot)
        for phys, data in now.items():
            then = self.machine.memory.read(phys, 4096).tobytes()
            same = sum(a == b for a, b in zip(then, data, strict=True))
            assert same >= 4096 - 8, f"the page at {phys:#x} that was refused was written"


def open_stage(names: tuple[str, str], later: str = "") -> Iterator[Stage]:
    spec = rig.Spec(names, before=[f"lu s1 {SPEC}"], after=[f"lu s2 {SPEC}"], later=later)
    with rig.Rig(spec) as r:
        r.run_to(0, "kexec:jump")
        found = Damage.of(r.machine, r.handover(0))
        r.run_to(1, "kho:populate")
        yield Stage(r, r.machine.snapshot(), found, names)


@pytest.fixture(scope="module", params=[("old", "new"), ("new", "old")], ids="-".join)
def stage(request: pytest.FixtureRequest) -> Iterator[Stage]:
    yield from open_stage(request.param)


@pytest.fixture(scope="module")
def strict() -> Iterator[Stage]:
    yield from open_stage(("old", "new"), STRICT)


def counted(outcome: Outcome, what: str) -> int:
    lines = outcome.log(what)
    assert len(lines) <= 1
    return int(lines[0].rsplit(": ", 1)[1]) if lines else 0


def kernel_log(lines: list[str]) -> list[str]:
    """Lines of the parts that are looked at, without what differs by itself."""
    out = []
    for line in lines:
        text = re.sub(r"^\[ *[\d.]+\] ", "", line)
        if re.match(r"(KHO|luo|memfd_luo): (?!scratch areas|exec from)", text):
            out.append(re.sub(r"0x[0-9a-f]+|(?<=address: )[0-9a-f]+", "X", text))
    return out


# ---- the table -------------------------------------------------------------------------------------------


def test_the_table_has_every_row_that_was_recorded_and_no_other() -> None:
    assert list(listed()) == list(damage.recorded()) == [*ROWS, *COMMAND_LINES]


def test_differences_have_a_reason_and_nothing_else_has() -> None:
    for name, (theirs, ours, why) in listed().items():
        assert theirs == linux(name), f"{name}: the recording says {linux(name)}"
        assert (ours != theirs) == bool(why), name


def test_ours_is_never_worse() -> None:
    """More of the handover is had, or an error stands where the contents were wrong."""
    for name, (theirs, ours, _) in listed().items():
        if ours == theirs:
            continue
        silent = re.search(r"other contents|\d of \d|ENOENT", theirs) is not None
        severe = theirs == HALT or theirs.startswith("open ")
        assert ours != HALT and "other" not in ours, name
        assert severe or silent or len(ours) <= len(theirs), f"{name}: {theirs} became {ours}"


@pytest.mark.parametrize("row", ROWS)
def test_the_reaction_is_the_one_of_the_table(row: str, stage: Stage) -> None:
    theirs, ours, _ = listed()[row]
    found, outcome = stage.react(ROWS[row])
    assert found == ours
    if found == theirs:
        missing = set(kernel_log(damage.recorded()[row][2])) - set(kernel_log(outcome.console.split("\n")))
        assert not {m for m in missing if "No registered" not in m}, f"Linux logs this: {missing}"
    if found == HALT:
        return
    if re.search(r"disabling KHO revival", outcome.console):
        assert stage.kept_pages() == 0, "a cold boot keeps nothing"
        return
    refused = counted(outcome, "pages of refused records that stay reserved")
    lost = counted(outcome, "preserved pages of no record that stay reserved")
    always = KEPT_ALWAYS - (row == "KHO FDT page bit cleared")
    assert stage.kept_pages() == always + refused + lost
    if ours != ALL_RIGHT:
        assert refused + lost, "what is refused is counted"
        assert outcome.log("refused") or outcome.log("of no record"), "what is lost is logged"
    stage.nobody_has_them()


@pytest.mark.parametrize("row", COMMAND_LINES)
def test_a_next_kernel_that_is_not_asked_to(row: str) -> None:
    outcome = rig.run(
        "old", "new", before=[f"lu s1 {SPEC}"], after=[f"lu s2 {SPEC}"], later=COMMAND_LINES[row]
    )
    rows = damage.recorded()
    lines = [line for line in outcome.lines("", -1) if line]
    assert reaction(lines, rows["control"][1]) == listed()[row][1] == listed()[row][0]
    assert set(kernel_log(rows[row][2])) <= set(kernel_log(outcome.console.split("\n")))


def test_the_next_kernel_with_luo_off_looks_at_nothing() -> None:
    """What would end a kernel that wants it is of no consequence to one that does not."""
    for stage in open_stage(("old", "new"), "liveupdate=off"):
        for row in ("session block count 52 (> 51)", "session block page bit cleared"):
            found, outcome = stage.react(ROWS[row])
            assert found == "open ENOENT"
            assert outcome.log("live update is off: what was handed over stays reserved")


@pytest.mark.parametrize("row", ROWS)
def test_linux_own_reaction_on_demand(row: str, strict: Stage) -> None:
    found, outcome = strict.react(ROWS[row])
    theirs, ours = listed_strict().get(row, (linux(row), linux(row)))
    assert theirs == linux(row)
    assert found == ours
    if found == theirs and found != HALT:
        missing = set(kernel_log(damage.recorded()[row][2])) - set(kernel_log(outcome.console.split("\n")))
        assert not missing, f"Linux logs this: {missing}"


def test_strict_differs_only_where_it_is_unsafe() -> None:
    assert len(listed_strict()) == 2
    for row, (theirs, ours) in listed_strict().items():
        assert theirs != ours and row in ROWS


# ---- more damage: what was not tried on Linux ------------------------------------------------------------


def _other(d: Damage) -> Any:
    """The file of the second session."""
    found = d.luo.sessions[1].files[0].memfd
    assert found is not None and found.area is not None
    return found


def _flb(d: Damage, offset: int, value: int) -> None:
    d.put(d.luo.flbs_phys + offset, value)


def _pfn(d: Damage, phys: int) -> None:
    """The first folio of the first file is somewhere else."""
    d.put(d.array, d.word(d.array) >> 52 << 52 | phys >> 12)


MORE: dict[str, tuple[str, Change]] = {
    # two records that lead to the same memory: neither is believed
    "a folio of another file": (
        "file 0x1 EIO, file 0x3 EIO", lambda d: _pfn(d, int(_other(d).folio_phys[0])),
    ),
    "a folio that is another file's record": (
        "file 0x1 EIO, file 0x3 EIO", lambda d: _pfn(d, _other(d).phys),
    ),
    "a folio that is another file's array": (
        "file 0x1 EIO, file 0x3 EIO", lambda d: _pfn(d, int(_other(d).area.blocks[0])),
    ),
    "a folio that is another file's chunk": (
        "file 0x1 EIO, file 0x3 EIO", lambda d: _pfn(d, int(_other(d).area.chunks[0])),
    ),
    "a folio that is the other session's file block": (
        "file 0x1 EIO, session two EIO", lambda d: _pfn(d, d.luo.sessions[1].files_phys),
    ),
    "a folio that is the block of sessions": ("file 0x1 EIO", lambda d: _pfn(d, d.session_block)),
    "a folio that is the root FDT": ("file 0x1 EIO", lambda d: _pfn(d, d.fdt)),
    "a folio that is the page of FLBs": ("file 0x1 EIO", lambda d: _pfn(d, d.luo.flbs_phys)),
    "a folio that is the metadata": (
        "file 0x1 EIO", lambda d: _pfn(d, d.handover.subtree("kexec-metadata").phys),  # type: ignore[union-attr]
    ),
    "a folio that is its own array": ("file 0x1 EIO", lambda d: _pfn(d, d.array)),
    "a folio in scratch": ("file 0x1 EIO", lambda d: _pfn(d, d.handover.scratch[0].phys)),  # type: ignore[index]
    "a folio behind all memory": ("file 0x1 EIO", lambda d: _pfn(d, 1 << 50)),
    "a folio in a hole of memory": ("file 0x1 EIO", lambda d: _pfn(d, 0xA0000)),
    "the handle of another file": (
        "file 0x1 EIO, file 0x3 EIO", lambda d: d.put(d.file.phys + 48, _other(d).phys),
    ),
    "the files of another session": (
        "session one EIO, session two EIO",
        lambda d: d.put(d.session.phys + 64, d.luo.sessions[1].files_phys),
    ),
    # records that cannot be read
    "a handle of 0": ("file 0x1 EIO", lambda d: d.put(d.file.phys + 48, 0)),
    "a handle that is no page": ("file 0x1 EIO", lambda d: d.put(d.file.phys + 48, d.memfd.phys + 8)),
    "a handle behind all memory": ("file 0x1 EIO", lambda d: d.put(d.file.phys + 48, 1 << 51)),
    "file blocks in a circle": ("session one EIO", lambda d: d.put(d.file_block, d.file_block)),
    "a file block of no files": ("session one EIO", lambda d: d.put(d.file_block + 8, 0)),
    "a file block of 64 files": ("session one EIO", lambda d: d.put(d.file_block + 8, 64)),
    "a file block of one file": ("session one EIO", lambda d: d.put(d.file_block + 8, 1)),
    "a file block behind all memory": ("session one EIO", lambda d: d.put(d.session.phys + 64, 1 << 51)),
    "a session without a name": ("session one ENOENT", lambda d: d.put(d.session.phys, 0)),
    "a name without an end": (
        "session one ENOENT", lambda d: d.text(d.session.phys, d.read(d.session.phys, 64), b"n" * 64),
    ),
    "a compatible string without an end": (
        "file 0x1 EIO", lambda d: d.text(d.file.phys, d.read(d.file.phys, 48), b"m" * 48),
    ),
    "another token": ("file 0x1 ENOENT", lambda d: d.put(d.file.phys + 56, 0x77)),
    # sizes and arrays
    "a size of nothing": ("file 0x1 EIO", lambda d: d.put(d.memfd.phys + 8, 0)),
    "a page more": ("file 0x1 EIO", lambda d: d.put(d.memfd.phys + 8, 8193)),
    "an impossible size": ("file 0x1 EIO", lambda d: d.put(d.memfd.phys + 8, (1 << 63) + 8192)),
    "a folio less": ("file 0x1 EIO", lambda d: d.put(d.memfd.phys + 24, 1)),
    "no folios": ("file 0x1 EIO", lambda d: d.put(d.memfd.phys + 24, 0)),
    "more folios than the array holds": ("file 0x1 EINVAL", lambda d: d.put(d.memfd.phys + 24, 257)),
    "2^60 folios": ("file 0x1 EINVAL", lambda d: d.put(d.memfd.phys + 24, 1 << 60)),
    "no array": ("file 0x1 EINVAL", lambda d: d.put(d.memfd.phys + 32, 0)),
    "an array of order 1": ("file 0x1 EINVAL", lambda d: d.put(d.memfd.phys + 46, 1, 2)),
    "an array of order 255": ("file 0x1 EINVAL", lambda d: d.put(d.memfd.phys + 46, 255, 2)),
    "an array of no pages": ("file 0x1 EINVAL", lambda d: d.put(d.memfd.phys + 40, 0, 4)),
    "chunks in a circle": ("file 0x1 EIO", lambda d: d.put(d.chunk, d.chunk)),
    "a chunk of no pages": ("file 0x1 EINVAL", lambda d: d.put(d.chunk + 8, 0)),
    "an array page twice": ("file 0x1 EINVAL", lambda d: d.put(d.chunk + 16, d.array)),
    "the first folio at page 1": ("file 0x1 EIO", lambda d: d.put(d.array + 8, 1)),
    "the second folio at page 2": ("file 0x1 EIO", lambda d: d.put(d.array + 24, 2)),
    "a folio at page 2^60": ("file 0x1 EIO", lambda d: d.put(d.array + 24, 1 << 60)),
    # flbs: nobody uses one here
    "2^40 FLBs": (ALL_RIGHT, lambda d: _flb(d, 8, 1 << 40)),
    "two pages of FLBs": (ALL_RIGHT, lambda d: _flb(d, 0, 2)),
    "the page of FLBs is not preserved": (ALL_RIGHT, lambda d: d.bit(d.luo.flbs_phys)),
    "FLBs behind all memory": (ALL_RIGHT, lambda d: d.put(d.luo.phys + 24, 1 << 51)),
    "no page of FLBs": (ALL_RIGHT, lambda d: d.put(d.luo.phys + 24, 0)),
    # the chain of sessions: nobody knows what was in it
    "sessions behind all memory": (HALT, lambda d: d.put(d.luo.phys + 16, 1 << 51)),
    "sessions at an odd address": (HALT, lambda d: d.put(d.luo.phys + 16, d.session_block + 8)),
    "a session block of no sessions": (HALT, lambda d: d.put(d.session_block + 8, 0)),
    "a session block that goes on nowhere": (HALT, lambda d: d.put(d.session_block, 0x123000)),
}  # fmt: skip


@pytest.mark.parametrize("case", MORE)
def test_more_damage(case: str, stage: Stage) -> None:
    expected, change = MORE[case]
    found, outcome = stage.react(change)
    assert found == expected, outcome.console[-1500:]
    if found == HALT:
        return
    assert not outcome.log("WARNING"), "what a kernel refuses does not surprise it"
    if found != ALL_RIGHT:
        refused = counted(outcome, "pages of refused records that stay reserved")
        lost = counted(outcome, "preserved pages of no record that stay reserved")
        assert stage.kept_pages() == KEPT_ALWAYS + refused + lost
        stage.nobody_has_them()


# ---- random damage ----------------------------------------------------------------------------------------


def records(handover: Handover) -> list[int]:
    """Pages that say something: everything preserved but the contents of files; and the tree."""
    luo = Luo.read(handover)
    assert luo is not None
    contents = {
        int(p) for s in luo.sessions for f in s.files if f.memfd is not None for p in f.memfd.folio_phys
    }
    return sorted(
        {int(p) for p in handover.preserved.phys} - contents | {int(p) for p in handover.tree.node_phys}
    )


def originals(d: Damage) -> set[str]:
    """Digests of whole files, and of what a size that is a bit smaller or larger makes of them."""
    out = set()
    for session in d.luo.sessions:
        for file in session.files:
            assert file.memfd is not None
            pages = b"".join(d.read(int(p), 4096) for p in file.memfd.folio_phys)
            sizes = range(len(pages) - 4095, len(pages) + 1)
            out |= {hashlib.sha256(pages[:n]).hexdigest() for n in sizes}
    return out


def flip(d: Damage, pages: list[int], dice: random.Random) -> str:
    """One bit where something is, seldom where nothing is."""
    while True:
        page = dice.choice(pages)
        at = page + dice.randrange(4096)
        if d.read(at & ~7, 8).strip(b"\0") or not dice.randrange(200):
            bit = dice.randrange(8)
            d.put(at, d.read(at, 1)[0] ^ 1 << bit, 1)
            return f"bit {bit} of {at:#x}"


def run_flips(stage: Stage, seed: int, count: int) -> dict[str, int]:
    """The kernel ends well or with an epitaph, and nobody ever gets contents that no file had."""
    stage.machine.restore(stage.snapshot)  # who was here before has left it somewhere else
    right = originals(stage.damage)
    pages = records(stage.damage.handover)
    dice = random.Random(seed)
    seen: dict[str, int] = {}
    for number in range(count):
        said: list[str] = []

        def change(d: Damage, said: list[str] = said) -> None:
            said.append(flip(d, pages, dice))

        found, outcome = stage.react(change)
        what = f"seed {seed}, change {number}, {said}: {found}\n{outcome.console[-1500:]}"
        for digest in re.findall(r"ret=ok .*sha256=([0-9a-f]{64})", outcome.output(-1)):
            assert digest in right or digest == hashlib.sha256(b"").hexdigest(), f"wrong data, {what}"
        seen[found] = seen.get(found, 0) + 1
    return seen


def test_a_flipped_bit_never_gives_wrong_data(stage: Stage) -> None:
    seen = run_flips(stage, 1, 150)
    assert len(seen) >= 6 and seen[ALL_RIGHT] < 100, f"the changes are too much alike: {seen}"


@pytest.mark.campaign
@pytest.mark.parametrize("seed", range(2, 12))
def test_many_flipped_bits_never_give_wrong_data(seed: int, stage: Stage) -> None:
    run_flips(stage, seed, 2000)
