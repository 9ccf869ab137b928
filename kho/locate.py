"""Where in an image the handover is: the root FDT, the setup_data entry that points to it, and the scratch
list.

Nothing but the setup_data of a kernel that has just been started by kexec points to the root FDT, and a chain
of updates leaves older ones behind: the FDT a kernel received stays in its memory for as long as it runs, and
so does its own setup_data. So candidates are judged: one is consistent when its tree can be walked and
preserves the FDT page itself, and of several consistent ones the highest kexec count is the newest.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from kho import fdt as fdt_format
from kho.abi import (
    FDT_SIZE_MAX,
    KHO_COMPATIBLE,
    METADATA,
    PAGE_SIZE,
    PROP_BLOB,
    PROP_BLOB_SIZE,
    PROP_MEMORY_MAP,
    SCRATCH_ALIGN,
    SCRATCH_COUNT_MAX,
    SCRATCH_DTYPE,
    SUBTREE_METADATA,
)
from kho.errors import Ambiguous, FormatError, KhoError, NotFound
from kho.fdt import Fdt
from kho.findings import Findings
from kho.memory import Reader
from kho.metadata import KexecMetadata
from kho.preserved import PreservedSet
from kho.radix import read_tree
from kho.setup_data import Chain, KhoData, ScratchArea, ScratchList, find_chains, read_chain, read_scratch

CANDIDATES_MAX = 32


@dataclass
class Location:
    """What was found. `scratch` is None when nothing in the image says where the scratch list is."""

    fdt_phys: int
    chain: Chain | None = None
    kho_data: KhoData | None = None
    """The KHO entry of the chain that a new kernel would read, whether or not it points to `fdt_phys`."""
    leads_here: bool = False
    """Whether that entry belongs to this update: it points to `fdt_phys`, or is damaged and points to no FDT.
    """
    scratch: list[ScratchArea] | None = None
    scratch_phys: int | None = None
    scratch_source: str = ""
    found_by: str = ""
    rejected: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class _Candidate:
    phys: int
    consistent: bool
    kexec_count: int


def parse_root(data: bytes, phys: int | None) -> Fdt:
    """A root FDT that the next kernel would accept, from the bytes at its beginning; FormatError (INV-6)."""
    where = "" if phys is None else f"{phys:#x}"
    try:
        size = fdt_format.header_size(data)
        if size > FDT_SIZE_MAX:
            raise FormatError(f"the root FDT has {size} bytes, more than {FDT_SIZE_MAX}")
        fdt = Fdt.parse(data)
        root = fdt.root
        if KHO_COMPATIBLE not in root.compatible():
            is_now = ", ".join(root.compatible()) or "nothing"
            raise FormatError(f'the root FDT is compatible with {is_now}, not with "{KHO_COMPATIBLE}"')
        address = root.u64(PROP_MEMORY_MAP)
        if not address or address % PAGE_SIZE:
            raise FormatError(f'"{PROP_MEMORY_MAP}" is {address:#x}, not the address of a page')
    except FormatError as error:
        raise FormatError(error.message, where, invariant="INV-6", phys=phys) from error
    return fdt


def read_root(reader: Reader, phys: int) -> Fdt:
    """The root FDT at `phys`; FormatError (INV-6), OutOfRange."""
    size = FDT_SIZE_MAX
    while size > fdt_format.HEADER.size and not reader.contains(phys, size):
        size //= 2
    return parse_root(reader.bytes(phys, size), phys)


def locate(
    reader: Reader,
    fdt: int | None,
    scratch: ScratchList | Sequence[ScratchArea] | None,
    setup_data: int | None,
    search: bool,
) -> Location:
    """Find what is not given. NotFound or Ambiguous when that cannot be done."""
    chains: list[Chain] = []
    if setup_data is not None:
        chains = [read_chain(reader, setup_data)]
        in_place = [(chain, entry) for chain in chains for entry in chain.kho]
    else:
        chains = find_chains(reader) if search or fdt is None else []
        in_place = [
            (chain, entry) for chain in chains for entry in chain.kho if _is_in_place(reader, chain, entry)
        ]
    rejected: list[str] = []
    found_by = "given"
    if fdt is None:
        fdt, found_by = _choose(reader, in_place, rejected)
    location = Location(fdt, found_by=found_by, rejected=rejected)
    matching = [pair for pair in in_place if pair[1].fdt_addr == fdt]
    # one that leads to no FDT at all is a damaged one of this update, not a healthy one of an earlier update
    broken = [pair for pair in in_place if not _is_root(reader, pair[1].fdt_addr)]
    location.leads_here = bool(matching or broken)
    for pair in (matching or broken or in_place)[:1]:
        location.chain, location.kho_data = pair
    _set_scratch(reader, location, scratch, in_place)
    return location


def _set_scratch(
    reader: Reader,
    location: Location,
    scratch: ScratchList | Sequence[ScratchArea] | None,
    in_place: list[tuple[Chain, KhoData]],
) -> None:
    if isinstance(scratch, ScratchList):
        location.scratch = read_scratch(reader, scratch.phys, scratch.size)
        location.scratch_phys, location.scratch_source = scratch.phys, "given"
        return
    if scratch is not None:
        location.scratch, location.scratch_source = list(scratch), "given"
        return
    entries = [(location.kho_data, "setup_data")] if location.kho_data and location.leads_here else []
    # the areas never change in a chain of updates, so the list that an earlier kernel left does as well
    entries += [(entry, "setup_data of an earlier update") for _, entry in in_place]
    for entry, source in entries:
        areas = _lenient_scratch(reader, entry)
        if areas:
            location.scratch = areas
            location.scratch_phys, location.scratch_source = entry.scratch_addr, source
            return


def _lenient_scratch(reader: Reader, entry: KhoData) -> list[ScratchArea]:
    """The scratch list of an entry whose size may be damaged: as many areas as there are whole ones."""
    count = min(entry.scratch_size // SCRATCH_DTYPE.itemsize, SCRATCH_COUNT_MAX)
    try:
        return read_scratch(reader, entry.scratch_addr, count * SCRATCH_DTYPE.itemsize)
    except KhoError:
        return []


def _is_in_place(reader: Reader, chain: Chain, entry: KhoData) -> bool:
    """Whether the entry is where kexec puts it, in scratch, and not a page of an image that waits to be
    copied.
    """
    areas = _lenient_scratch(reader, entry)
    if not areas or any(area.phys % SCRATCH_ALIGN or area.size % SCRATCH_ALIGN for area in areas):
        return chain.boot_params is not None
    return any(area.phys <= entry.phys < area.end for area in areas)


def _is_root(reader: Reader, phys: int) -> bool:
    try:
        read_root(reader, phys)
    except KhoError:
        return False
    return True


def _choose(reader: Reader, in_place: list[tuple[Chain, KhoData]], rejected: list[str]) -> tuple[int, str]:
    pages = _search_pages(reader, rejected)
    if not pages:
        for _, entry in in_place[:1]:
            return entry.fdt_addr, "setup_data"
        hint = f" ({'; '.join(rejected)})" if rejected else ""
        raise NotFound(f'no root FDT compatible with "{KHO_COMPATIBLE}" in the image{hint}', "")
    pointed = {entry.fdt_addr for _, entry in in_place}
    if len(pages) == 1:
        return pages[0], "setup_data" if pages[0] in pointed else "search"
    candidates = [_judge(reader, phys) for phys in pages]
    best = [candidate for candidate in candidates if candidate.consistent]
    if len(best) > 1:
        newest = max(candidate.kexec_count for candidate in best)
        best = [candidate for candidate in best if candidate.kexec_count == newest]
    if not best:
        best = [candidate for candidate in candidates if candidate.phys in pointed]
    if len(best) != 1:
        listed = ", ".join(
            f"{candidate.phys:#x} (count {candidate.kexec_count})" for candidate in best or candidates
        )
        raise Ambiguous(f"several handovers are in the image, choose one with --fdt: {listed}")
    rejected += [
        f"{candidate.phys:#x}: older or not consistent" for candidate in candidates if candidate != best[0]
    ]
    return best[0].phys, "setup_data" if best[0].phys in pointed else "search"


def _search_pages(reader: Reader, rejected: list[str]) -> list[int]:
    """Addresses of pages that begin with an acceptable root FDT; near misses go to `rejected`."""
    found: list[int] = []
    magic = int.from_bytes(fdt_format.MAGIC.to_bytes(4, "big"), "little")
    for start, view in reader.scan():
        whole = len(view) // PAGE_SIZE * PAGE_SIZE
        first = np.ascontiguousarray(view[:whole].reshape(-1, PAGE_SIZE)[:, :4]).view("<u4")[:, 0]
        for row in np.flatnonzero(first == magic).tolist():
            phys = start + row * PAGE_SIZE
            try:
                parse_root(view[row * PAGE_SIZE : (row + 1) * PAGE_SIZE].tobytes(), phys)
            except KhoError as error:
                if b"kho-v" in view[row * PAGE_SIZE : (row + 1) * PAGE_SIZE].tobytes() and len(rejected) < 16:
                    rejected.append(str(error))
                continue
            found.append(phys)
            if len(found) >= CANDIDATES_MAX:
                return found
    return found


def _judge(reader: Reader, phys: int) -> _Candidate:
    fdt = read_root(reader, phys)
    findings = Findings()
    tree = read_tree(reader, fdt.root.u64(PROP_MEMORY_MAP), findings)
    preserved = PreservedSet(tree.phys, tree.order)
    consistent = tree.complete and not findings.items and preserved.has(phys)
    count = -1
    node = fdt.root.child(SUBTREE_METADATA)
    if node is not None:
        try:
            size = min(node.u64(PROP_BLOB_SIZE), METADATA.size)
            count = KexecMetadata.unpack(reader.bytes(node.u64(PROP_BLOB), size)).kexec_count
        except KhoError:
            consistent = False
    return _Candidate(phys, consistent, count)
