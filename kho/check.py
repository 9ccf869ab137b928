"""The numbered invariants of a handover, as far as a look into memory can tell (KHO's own; `luo.check` adds
LUO's).

A table has one row for each: title, who can observe it, at which moments it holds, and the function that
checks it. Moments are J (the old kernel is about to jump), K (the new kernel is about to adopt preserved
memory) and F (it has freed the rest). A function gets everything known about the handover and returns
findings; when what it needs is not there it says so, and the row is listed as not checked, with the reason.

One damage should show as one invariant: decoders do not report what follows from something they reported
already, and rows that need a whole tree of preserved memory are not checked when the tree itself is damaged.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kho.abi import (
    KHO_DATA,
    LOW_LIMIT,
    PAGE_SIZE,
    RESTORE_MAGIC,
    SCRATCH_ALIGN,
    SCRATCH_COUNT_MIN,
    SCRATCH_DTYPE,
    SETUP_KEXEC_KHO,
)
from kho.errors import KhoError
from kho.findings import Finding
from kho.handover import Handover
from kho.memory import Words
from kho.preserved import PreservedSet
from kho.setup_data import ScratchArea

MOMENTS = ("J", "K", "F")
VIOLATIONS_PER_ID_MAX = 200


@dataclass(frozen=True)
class Violation:
    """An invariant that does not hold."""

    id: str
    moment: str
    message: str
    phys: int | None = None

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {"id": self.id, "moment": self.moment, "message": self.message, "phys": self.phys}


@dataclass(frozen=True)
class Segment:
    """A destination of the loaded kexec image; ``kind`` names it for messages."""

    phys: int
    size: int
    kind: str = "segment"


@dataclass(frozen=True)
class PageStates:
    """What the new kernel's struct pages say, from whoever can find them (its layout is not part of any
    format).

    `private` takes page-aligned addresses and returns each page's `private` word; `magic_pages` lists all
    pages whose upper half of `private` is the restore magic.
    """

    private: Callable[[Words], Words]
    magic_pages: Callable[[], Words] | None = None


@dataclass
class Subject:
    """A handover to check, at a moment, with what else the caller knows."""

    handover: Handover
    moment: str
    segments: Sequence[Segment] | None = None
    """Destinations of the loaded kexec image."""
    control_pages: Sequence[int] | None = None
    """Control and page-table pages of the image."""
    old_scratch: Sequence[ScratchArea] | None = None
    """The scratch list of the kernel that wrote the handover."""
    earlier_scratch: Sequence[ScratchArea] | None = None
    """The scratch list of any earlier kernel of the chain."""
    page_states: PageStates | None = None
    received_number: int | None = None
    """Live update number that the kernel which wrote the handover had received itself."""


class NotChecked(Exception):
    """Raised by a check that lacks something; the text is the reason."""


Check = Callable[[Subject], list[Finding]]


@dataclass(frozen=True)
class Invariant:
    """A row of the table. ``how``: D memory, T trace of a run, U user space. ``check`` None: see
    ``reason``.
    """

    id: str
    title: str
    how: str
    moments: str
    check: Check | None = None
    reason: str = ""
    needs_tree: bool = False


@dataclass
class Report:
    """Result of a check."""

    moment: str
    violations: list[Violation] = field(default_factory=list)
    checked: list[str] = field(default_factory=list)
    not_checked: dict[str, str] = field(default_factory=dict)

    @property
    def ok(self) -> bool:
        """Whether nothing that was checked is broken."""
        return not self.violations

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "ok": self.ok,
            "moment": self.moment,
            "violations": [violation.to_dict() for violation in self.violations],
            "checked": self.checked,
            "not_checked": self.not_checked,
        }


def guess_moment(handover: Handover) -> str:
    """K when setup_data in its place leads to this handover, else J. F looks like K: only the
    caller knows.
    """
    return "K" if handover.location.leads_here else "J"


def run(subject: Subject, table: Mapping[str, Invariant]) -> Report:
    """Check every row of the table that belongs to the subject's moment."""
    report = Report(subject.moment)
    no_tree = tree_problem(subject)
    for row in table.values():
        if row.check is None:
            report.not_checked[row.id] = row.reason
            continue
        if subject.moment not in row.moments:
            at = " and ".join(row.moments)
            report.not_checked[row.id] = f"holds at {at}, this is {subject.moment}"
            continue
        if subject.handover.bare and row.id not in ("INV-6", "INV-7"):
            report.not_checked[row.id] = "a bare FDT has no memory to look at"
            continue
        if row.needs_tree and no_tree:
            report.not_checked[row.id] = no_tree
            continue
        try:
            found = row.check(subject)
        except NotChecked as reason:
            report.not_checked[row.id] = str(reason)
            continue
        report.checked.append(row.id)
        if no_tree:
            found = [finding for finding in found if not finding.tree]
        report.violations += _listed(subject.moment, row.id, found)
    return report


def failed(error: KhoError, moment: str, table: Mapping[str, Invariant]) -> Report | None:
    """The report for a handover that could not be decoded because it breaks an invariant; None for other
    errors.
    """
    if error.invariant is None:
        return None
    report = Report(
        moment, [Violation(error.invariant, moment, error.message, error.phys)], [error.invariant]
    )
    report.not_checked = {id: "the handover could not be decoded" for id in table if id != error.invariant}
    return report


def _listed(moment: str, id: str, found: list[Finding]) -> list[Violation]:
    shown = [Violation(id, moment, f.message, f.phys) for f in found[:VIOLATIONS_PER_ID_MAX]]
    if len(found) > VIOLATIONS_PER_ID_MAX:
        shown.append(Violation(id, moment, f"and {len(found) - VIOLATIONS_PER_ID_MAX} more of the same kind"))
    return shown


def tree_problem(subject: Subject) -> str:
    """Why the tree cannot be relied on, or ""."""
    handover = subject.handover
    if subject.moment == "F":
        # after the walk the tree's pages are free memory, and soon something else
        broken = any(id in handover.findings for id in ("INV-5", "INV-8", "INV-9"))
        if broken or not handover.tree_is_whole or handover.preserved.overlapping:
            return "the pages of the tree have been reused since the new kernel read them"
    elif not handover.tree_is_whole:
        return "the tree is damaged (INV-8), so what is preserved is not known"
    return ""


# --- the checks ---------------------------------------------------------------------------------------------


def findings_of(id: str) -> Check:
    """A check whose work the decoder has done."""

    def check(subject: Subject) -> list[Finding]:
        return subject.handover.findings.of(id)

    return check


def _scratch(subject: Subject) -> list[ScratchArea]:
    if subject.handover.scratch is None:
        raise NotChecked("nothing in the image says where the scratch list is (--scratch ADDR,LEN)")
    return subject.handover.scratch


def check_scratch(subject: Subject) -> list[Finding]:
    """INV-1: number, alignment, and place of the scratch areas."""
    areas = _scratch(subject)
    reader = subject.handover.reader
    where = subject.handover.location.scratch_phys
    found = []
    # how many areas setup_data may give is INV-31's business
    if len(areas) < SCRATCH_COUNT_MIN and subject.handover.location.scratch_source != "setup_data":
        found.append(
            Finding("INV-1", f"there are {len(areas)} scratch areas instead of memory nodes + 2", where)
        )
    for number, area in enumerate(areas):
        what = f"scratch area {number} ({area.phys:#x}, {area.size:#x} bytes)"
        if area.phys % SCRATCH_ALIGN or area.size % SCRATCH_ALIGN:
            found.append(Finding("INV-1", f"{what} is not aligned to {SCRATCH_ALIGN >> 20} MiB", area.phys))
        elif area.size and not reader.contains(area.phys, area.size):
            found.append(Finding("INV-1", f"{what} is not in RAM", area.phys))
    used = sorted((area.phys, area.end, number) for number, area in enumerate(areas) if area.size)
    for (_, end, first), (start, _, second) in itertools.pairwise(used):
        if start < end:
            found.append(Finding("INV-1", f"scratch areas {first} and {second} overlap", start))
    return found


def check_low_scratch(subject: Subject) -> list[Finding]:
    """INV-2: area 0 is below 4 GiB."""
    area = _scratch(subject)[0]
    if area.end > LOW_LIMIT:
        return [Finding("INV-2", f"the low scratch area ends at {area.end:#x}, above 4 GiB", area.phys)]
    return []


def check_same_scratch(subject: Subject) -> list[Finding]:
    """INV-4: the list is that of the kernels before."""
    if subject.earlier_scratch is None:
        raise NotChecked("needs the scratch list of an earlier kernel of the chain")
    return _compare_scratch("INV-4", subject, subject.earlier_scratch)


def check_scratch_segment(subject: Subject) -> list[Finding]:
    """INV-29: the list that kexec passed on is the old kernel's."""
    if subject.old_scratch is None:
        raise NotChecked("needs the scratch list of the old kernel")
    entry = subject.handover.location.kho_data
    if entry is None or not subject.handover.location.leads_here:
        raise NotChecked("no setup_data leads to this handover")
    found = _compare_scratch("INV-29", subject, subject.old_scratch)
    if not found and entry.scratch_size != SCRATCH_DTYPE.itemsize * len(subject.old_scratch):
        found = [Finding("INV-29", f"the scratch list has {entry.scratch_size} bytes", entry.phys)]
    return found


def _compare_scratch(id: str, subject: Subject, expected: Sequence[ScratchArea]) -> list[Finding]:
    areas = _scratch(subject)
    where = subject.handover.location.scratch_phys
    if len(areas) != len(expected):
        return [Finding(id, f"there are {len(areas)} scratch areas, there were {len(expected)}", where)]
    return [
        Finding(
            id,
            f"scratch area {number} is {area.phys:#x}+{area.size:#x}, it was {old.phys:#x}+{old.size:#x}",
            None if where is None else where + number * SCRATCH_DTYPE.itemsize,
        )
        for number, (area, old) in enumerate(zip(areas, expected, strict=True))
        if area != old
    ]


def check_fdt_page(subject: Subject) -> list[Finding]:
    """INV-5: the root FDT is a preserved page outside scratch, and setup_data points to it."""
    handover = subject.handover
    found = handover.findings.of("INV-5")
    fdt_phys = handover.location.fdt_phys
    if any(area.phys < fdt_phys + PAGE_SIZE and fdt_phys < area.end for area in handover.scratch or []):
        found.append(Finding("INV-5", "the root FDT lies in scratch", fdt_phys))
    entry = handover.location.kho_data
    if subject.moment != "J" and entry is not None and entry.fdt_addr != fdt_phys:
        found.append(
            Finding(
                "INV-5",
                f"setup_data says that the root FDT is at {entry.fdt_addr:#x}, not {fdt_phys:#x}",
                entry.phys,
            )
        )
    return found


def check_nodes(subject: Subject) -> list[Finding]:
    """INV-8: pointers, and no node where something else is."""
    handover = subject.handover
    found = handover.findings.of("INV-8")
    nodes = handover.tree.node_phys
    for phys in nodes[handover.preserved.touched(nodes)].tolist():
        found.append(Finding("INV-8", "a page of the tree lies in a preserved block", phys))
    for low, high, what in _destinations(subject):
        for phys in nodes[(nodes >= np.uint64(low)) & (nodes < np.uint64(high))].tolist():
            found.append(Finding("INV-8", f"a page of the tree lies in {what} of the kexec image", phys))
    return found


def check_overlap(subject: Subject) -> list[Finding]:
    """INV-10: preserved blocks are disjoint."""
    return [
        Finding("INV-10", f"the preserved block of order {order} overlaps the one at {other:#x}", phys)
        for phys, order, other in subject.handover.preserved.overlaps()
    ]


def check_preserved_scratch(subject: Subject) -> list[Finding]:
    """INV-11: nothing preserved lies in scratch (the root FDT there is INV-5)."""
    preserved = subject.handover.preserved
    found = []
    for number, area in enumerate(_scratch(subject)):
        for index in preserved.intersecting(area.phys, area.end).tolist():
            phys, order = int(preserved.phys[index]), int(preserved.order[index])
            if phys != subject.handover.fdt_phys:
                message = f"the preserved block of order {order} lies in scratch area {number}"
                found.append(Finding("INV-11", message, phys))
    return found


def _destinations(subject: Subject) -> list[tuple[int, int, str]]:
    """(start, end, name) of everything that the jump overwrites or runs on, as far as it is known."""
    found = [(s.phys, s.phys + s.size, f"the {s.kind}") for s in subject.segments or ()]
    found += [(page, page + PAGE_SIZE, "a control page") for page in subject.control_pages or ()]
    return found


def check_destinations(subject: Subject) -> list[Finding]:
    """INV-13: the jump overwrites nothing preserved."""
    if subject.segments is None:
        raise NotChecked("needs the segments of the loaded kexec image")
    preserved = subject.handover.preserved
    found = []
    for low, high, what in _destinations(subject):
        for index in preserved.intersecting(low, high).tolist():
            phys = int(preserved.phys[index])
            found.append(Finding("INV-13", f"a preserved block lies in {what} of the kexec image", phys))
    return found


def check_segments(subject: Subject) -> list[Finding]:
    """INV-28: every segment is in one scratch area, and they are disjoint."""
    if subject.segments is None:
        raise NotChecked("needs the segments of the loaded kexec image")
    areas = _scratch(subject)
    found = []
    for segment in subject.segments:
        if not any(a.phys <= segment.phys and segment.phys + segment.size <= a.end for a in areas):
            found.append(Finding("INV-28", f"the {segment.kind} is not inside a scratch area", segment.phys))
    order = sorted(subject.segments, key=lambda segment: segment.phys)
    for first, second in itertools.pairwise(order):
        if second.phys < first.phys + first.size:
            found.append(Finding("INV-28", f"the {first.kind} and the {second.kind} overlap", second.phys))
    return found


def check_setup_data(subject: Subject) -> list[Finding]:
    """INV-31: the KHO entry of the setup_data chain."""
    location = subject.handover.location
    if location.chain is None or location.kho_data is None:
        raise NotChecked("no setup_data chain with a KHO entry in the image")
    found = []
    of_kho = [phys for phys, kind, _ in location.chain.entries if kind == SETUP_KEXEC_KHO]
    for phys in of_kho[1:]:
        found.append(Finding("INV-31", "there is a second KHO entry in the setup_data chain", phys))
    entry = location.kho_data
    if entry.length != KHO_DATA.size:
        found.append(Finding("INV-31", f"the KHO entry has {entry.length} bytes of data", entry.phys))
    if entry.fdt_size != PAGE_SIZE:
        found.append(
            Finding("INV-31", f"the KHO entry gives the root FDT {entry.fdt_size} bytes", entry.phys)
        )
    count, rest = divmod(entry.scratch_size, SCRATCH_DTYPE.itemsize)
    if rest or count < SCRATCH_COUNT_MIN:
        found.append(
            Finding("INV-31", f"the KHO entry gives the scratch list {entry.scratch_size} bytes", entry.phys)
        )
    return found


def check_struct_pages(subject: Subject) -> list[Finding]:
    """INV-35: the first page of each preserved block carries magic and order, and no other page the magic."""
    states = subject.page_states
    if states is None:
        raise NotChecked("needs to know where the new kernel's struct pages are")
    preserved = subject.handover.preserved
    expected = np.uint64(RESTORE_MAGIC << 32) | preserved.order.astype(np.uint64)
    actual = states.private(preserved.phys)
    found = []
    for index in np.flatnonzero(actual != expected)[:VIOLATIONS_PER_ID_MAX].tolist():
        message = f"page->private is {int(actual[index]):#x} instead of {int(expected[index]):#x}"
        found.append(Finding("INV-35", message, int(preserved.phys[index])))
    if states.magic_pages is not None:
        strange: NDArray[np.uint64] = np.setdiff1d(states.magic_pages(), preserved.phys)
        for phys in strange[:VIOLATIONS_PER_ID_MAX].tolist():
            found.append(Finding("INV-35", "a page that is not preserved carries the magic", phys))
    return found


def uncovered(preserved: PreservedSet, ranges: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    """Parts of the given (start, end) ranges that no preserved block has."""
    return [gap for start, end in ranges for gap in preserved.gaps(start, end)]


# --- the table ----------------------------------------------------------------------------------------------

IN_A_RUN = "observed while a kernel runs, not in memory"
FROM_USER_SPACE = "observed from user space, not in memory"
TWO_MOMENTS = "compares two moments (luo.check.compare)"


def table_of(*rows: Invariant) -> dict[str, Invariant]:
    """Rows by id, in numerical order."""
    return {row.id: row for row in sorted(rows, key=lambda row: int(row.id.removeprefix("INV-")))}


TABLE = table_of(
    Invariant("INV-1", "scratch areas: count, alignment, disjoint, in RAM", "D", "JKF", check_scratch),
    Invariant("INV-2", "the low scratch area ends below 4 GiB", "D", "JKF", check_low_scratch),
    Invariant("INV-3", "scratch pageblocks are of type CMA", "T", "", reason=IN_A_RUN),
    Invariant("INV-4", "the scratch list is the same in every kernel of a chain", "D", "JKF",
              check_same_scratch),
    Invariant("INV-5", "root FDT page: aligned, outside scratch, preserved, in setup_data", "D", "JKF",
              check_fdt_page),
    Invariant("INV-6", "root FDT: valid, at most a page, kho-v4, memory map", "D", "JKF",
              findings_of("INV-6")),
    Invariant("INV-7", "sub-trees: both properties, unique, preserved, disjoint", "D", "JKF",
              findings_of("INV-7")),
    Invariant("INV-8", "tree nodes: aligned, in RAM, outside scratch, referenced once, not preserved", "D",
              "JK",
              check_nodes),
    Invariant("INV-9", "tree keys: an order up to 52 and a block in RAM", "D", "JK", findings_of("INV-9")),
    Invariant("INV-10", "preserved blocks are disjoint", "D", "JK", check_overlap, needs_tree=True),
    Invariant("INV-11", "nothing preserved lies in scratch", "D", "JK", check_preserved_scratch,
              needs_tree=True),
    Invariant("INV-12", "everything reached is preserved and has one owner", "D", "JK", findings_of("INV-12"),
              needs_tree=True),
    Invariant("INV-13", "the kexec image overwrites nothing preserved", "D", "J", check_destinations,
              needs_tree=True),
    Invariant("INV-28", "kexec segments: each in one scratch area, disjoint", "D", "J", check_segments),
    Invariant("INV-29", "the scratch list passed on is the old kernel's", "D", "K", check_scratch_segment),
    Invariant("INV-30", "memory outside scratch does not change between the kernels", "D", "",
              reason=TWO_MOMENTS),
    Invariant("INV-31", "setup_data: one KHO entry, with the right sizes", "D", "K", check_setup_data),
    Invariant("INV-32", "the new kernel, initrd and boot parameters are in scratch", "T", "",
              reason=IN_A_RUN),
    Invariant("INV-33", "memblock allocates in scratch only until memory is adopted", "T", "",
              reason=IN_A_RUN),
    Invariant("INV-34", "preserved blocks are reserved, NOINIT, when memory is freed", "T", "",
              reason=IN_A_RUN),
    Invariant("INV-35", "struct pages of preserved blocks carry magic and order", "D", "F",
              check_struct_pages,
              needs_tree=True),
    Invariant("INV-36", "scratch-only ends before the first page is free", "T", "", reason=IN_A_RUN),
    Invariant("INV-37", "each block is restored at most once", "T", "", reason=IN_A_RUN),
    Invariant("INV-38", "managed memory counts what was restored", "U", "", reason=FROM_USER_SPACE),
)  # fmt: skip
