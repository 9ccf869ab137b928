"""The numbered invariants of LUO state and memfds, and the comparison of two moments; KHO's are in
`kho.check`.

`check(handover)` is the whole table. What a decoder found while reading is reported by the row it belongs to.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from kho.abi import PAGE_SIZE
from kho.check import (
    FROM_USER_SPACE,
    IN_A_RUN,
    TWO_MOMENTS,
    Check,
    Invariant,
    NotChecked,
    PageStates,
    Report,
    Segment,
    Subject,
    Violation,
    guess_moment,
    run,
    table_of,
)
from kho.check import TABLE as KHO_TABLE
from kho.findings import Finding
from kho.handover import Handover
from kho.memory import READ_MAX, Words, merge
from kho.setup_data import ScratchArea
from luo.abi import LUO_SUBTREE
from luo.state import Luo

FIRST_MIB = 1 << 20
DIFFERENCES_MAX = 200


def _luo(subject: Subject) -> Luo:
    luo = Luo.read(subject.handover)
    if luo is None:
        there = subject.handover.subtree(LUO_SUBTREE) is not None
        raise NotChecked("the LUO state cannot be read" if there else "there is no LUO state in the handover")
    return luo


def _understood(id: str) -> Check:
    """Findings of an id, for state of the known version."""

    def check(subject: Subject) -> list[Finding]:
        luo = _luo(subject)
        if not luo.understood:
            raise NotChecked(f'the LUO state has the unknown version "{luo.compatible}"')
        return subject.handover.findings.of(id)

    return check


def check_state(subject: Subject) -> list[Finding]:
    """INV-14: luo_ser and the FLB page."""
    if subject.handover.subtree(LUO_SUBTREE) is None:
        raise NotChecked("there is no LUO state in the handover")
    luo = Luo.read(subject.handover)
    found = subject.handover.findings.of("INV-14")
    if luo is None and not found:
        raise NotChecked("the LUO state cannot be read")
    if luo is not None and subject.received_number is not None:
        expected = subject.received_number + 1
        if luo.liveupdate_num != expected:
            message = f"the live update number is {luo.liveupdate_num} instead of {expected}"
            found.append(Finding("INV-14", message, luo.phys))
    return found


TABLE = KHO_TABLE | table_of(
    Invariant("INV-14", "LUO state: luo-v5, live update number, FLB page", "D", "JKF", check_state),
    Invariant("INV-15", "session chain: links, each block preserved", "D", "JKF", _understood("INV-15")),
    Invariant("INV-16", "file chains: links, length", "D", "JKF", _understood("INV-16")),
    Invariant("INV-17", "names, tokens and objects are unique in the running kernel", "TU", "",
              reason=IN_A_RUN),
    Invariant("INV-18", "FLB users are counted right in the running kernel", "T", "", reason=IN_A_RUN),
    Invariant("INV-19", "sessions: full blocks, names there and unique", "D", "JKF", _understood("INV-19")),
    Invariant("INV-20", "files: counts, known handlers, unique tokens, data preserved", "D", "JKF",
              _understood("INV-20")),
    Invariant("INV-21", "FLBs: at most 63, names unique, each with users", "D", "JKF", _understood("INV-21")),
    Invariant("INV-22", "a failed serialization leaves nothing behind", "TD", "", reason=IN_A_RUN),
    Invariant("INV-23", "memfd records: preserved, known seals and flags", "D", "JKF", _understood("INV-23")),
    Invariant("INV-24", "memfd folios: in order, without gap, preserved with their order", "D", "JKF",
              _understood("INV-24"), needs_tree=True),
    Invariant("INV-25", "memfd arrays: pages and chunks complete and preserved", "D", "JKF",
    _understood("INV-25")),
    Invariant("INV-26", "the contents of preserved memory do not change", "D", "", reason=TWO_MOMENTS),
    Invariant("INV-27", "size, pages and pins of a preserved memfd do not change", "T", "", reason=IN_A_RUN),
    Invariant("INV-39", "live update number and kexec count go up by one", "T", "", reason=IN_A_RUN),
    Invariant("INV-40", "incoming sessions and files are those serialized", "TU", "", reason=FROM_USER_SPACE),
    Invariant("INV-41", "a handler's retrieve is called at most once for a file", "T", "", reason=IN_A_RUN),
    Invariant("INV-42", "a session is retrieved once", "U", "", reason=FROM_USER_SPACE),
    Invariant("INV-43", "finish: after all consents, once for each file, in reverse", "T", "",
              reason=IN_A_RUN),
    Invariant("INV-44", "FLB: retrieve before finish, each once", "T", "", reason=IN_A_RUN),
    Invariant("INV-45", "after the last finish only the known pages stay preserved", "D", "",
              reason="holds after the last finish, which is later than J, K and F"),
    Invariant("INV-46", "/dev/liveupdate is open once", "U", "", reason=FROM_USER_SPACE),
    Invariant("INV-47", "after serialization no LUO call completes", "T", "", reason=IN_A_RUN),
    Invariant("INV-48", "freeze comes before device shutdown", "T", "", reason=IN_A_RUN),
    Invariant("INV-49", "tree, FDT and LUO records do not change after serialization", "D", "",
              reason=TWO_MOMENTS),
    Invariant("INV-50", "without serialization no session is handed over", "T", "", reason=IN_A_RUN),
)  # fmt: skip
TABLE = table_of(*TABLE.values())


def check(
    handover: Handover,
    moment: str = "auto",
    *,
    segments: Sequence[Segment] | None = None,
    control_pages: Sequence[int] | None = None,
    old_scratch: Sequence[ScratchArea] | None = None,
    earlier_scratch: Sequence[ScratchArea] | None = None,
    page_states: PageStates | None = None,
    received_number: int | None = None,
) -> Report:
    """Check all invariants of a moment (``J``, ``K``, ``F`` or ``auto``); the keywords are what the image
    cannot tell.

    Decodes the LUO state first, so that all findings are there.
    """
    Luo.read(handover)
    if moment == "auto":
        moment = guess_moment(handover)
    subject = Subject(
        handover,
        moment,
        segments=segments,
        control_pages=control_pages,
        old_scratch=old_scratch,
        earlier_scratch=earlier_scratch,
        page_states=page_states,
        received_number=received_number,
    )
    return run(subject, TABLE)


# --- two moments --------------------------------------------------------------------------------------------


def metadata_pages(handover: Handover) -> Words:
    """Sorted addresses of the pages with FDT, tree, blobs and LUO records: all but the payload."""
    luo = Luo.read(handover)
    pages: list[Words] = [np.array([handover.location.fdt_phys], dtype=np.uint64), handover.tree.node_phys]
    single: list[int] = []
    for subtree in handover.subtrees:
        single += range(subtree.phys & -PAGE_SIZE, subtree.phys + min(subtree.size, READ_MAX), PAGE_SIZE)
    if luo is not None:
        single += [luo.flbs_phys]
        single += [block.phys for block in luo.chain.blocks] if luo.chain else []
        single += luo.iommu.pages if luo.iommu else []
        single += [luo.pci.phys] if luo.pci else []
        for session in luo.sessions:
            single += [block.phys for block in session.chain.blocks] if session.chain else []
            for file in session.files:
                if file.vfio is not None:
                    single.append(file.vfio.phys)
                if file.iommufd is not None:
                    end = file.iommufd.phys + file.iommufd.size
                    single += range(file.iommufd.phys, end, PAGE_SIZE)
                if file.memfd is not None:
                    single.append(file.memfd.phys)
                    if file.memfd.area is not None and not file.memfd.area.problems:
                        single += file.memfd.area.chunks
                        pages.append(file.memfd.area.blocks)
    pages.append(np.array(single, dtype=np.uint64))
    return np.unique(np.concatenate(pages) & ~np.uint64(PAGE_SIZE - 1))


def compare(
    before: Handover,
    after: Handover,
    moments: tuple[str, str] = ("J", "K"),
    *,
    may_change: Iterable[int] = (),
) -> Report:
    """Compare the memory of two moments of one update.

    A change of metadata breaks INV-49, of other preserved memory INV-26, of other memory outside scratch and
    the first MiB INV-30 (the pages in `may_change` are the old kernel's control and stack pages), and a
    scratch list that is another one INV-29 from J to K, INV-4 otherwise. Needs whole images: a pruned one
    proves nothing about INV-30.
    """
    report = Report(moments[1])
    _compare_lists(before, after, moments, report)
    scratch = before.scratch or after.scratch
    if scratch is None:
        report.not_checked |= dict.fromkeys(("INV-26", "INV-30", "INV-49"), "the scratch list is not known")
        return report
    report.checked += ["INV-26", "INV-30", "INV-49"]
    metadata = metadata_pages(before)
    allowed = np.array(sorted(set(may_change)), dtype=np.uint64)
    skip = merge([(0, FIRST_MIB), *((area.phys, area.end) for area in scratch)])
    for start, end in _without(before.reader.ranges, skip):
        for phys in _changed(before, after, start, end):
            if phys in allowed:
                continue
            page = np.array([phys], dtype=np.uint64)
            if np.isin(page, metadata)[0]:
                id, what = "INV-49", "a page of metadata"
            elif before.preserved.touched(page)[0]:
                id, what = "INV-26", "a preserved page"
            else:
                id, what = "INV-30", "a page outside scratch"
            message = f"{what} is not the same at {moments[0]} and {moments[1]}"
            report.violations.append(Violation(id, moments[1], message, phys))
            if len(report.violations) >= DIFFERENCES_MAX:
                return report
    return report


def _compare_lists(before: Handover, after: Handover, moments: tuple[str, str], report: Report) -> None:
    id = "INV-29" if moments == ("J", "K") else "INV-4"
    if before.scratch is None or after.scratch is None:
        report.not_checked[id] = "the scratch list is not known at both moments"
        return
    report.checked.append(id)
    if before.scratch != after.scratch:
        message = f"the scratch list is not the same at {moments[0]} and {moments[1]}"
        report.violations.append(Violation(id, moments[1], message, after.location.scratch_phys))


def _without(
    ranges: Sequence[tuple[int, int]], holes: Sequence[tuple[int, int]]
) -> Iterable[tuple[int, int]]:
    for start, end in ranges:
        at = start
        for low, high in holes:
            if high <= at or low >= end:
                continue
            if low > at:
                yield at, low
            at = max(at, high)
        if at < end:
            yield at, end


def _changed(before: Handover, after: Handover, start: int, end: int) -> Iterable[int]:
    """Addresses of the pages of [start, end) that differ; memory that only one image has differs."""
    populated = merge([*before.reader.populated(), *after.reader.populated()])
    for low, high in populated:
        at = max(low, start) & -PAGE_SIZE
        while at < min(high, end):
            size = min(READ_MAX, min(high, end) - at)
            if not (before.reader.contains(at, size) and after.reader.contains(at, size)):
                yield at
                break
            old, new = before.reader.read(at, size), after.reader.read(at, size)
            if not np.array_equal(old, new):
                different: NDArray[np.int64] = np.flatnonzero(old != new)
                yield from (at + np.unique(different // PAGE_SIZE) * PAGE_SIZE).tolist()
            at += size
