"""DMA remapping as it is handed over: the FLB ``iommu-luemu-v1`` with the tables that hardware uses, and
files ``iommufd-luemu-v1``.

Everything that a device reaches after the jump is verified: each table is a preserved page and somebody's
only once, each page that is mapped is preserved, and what the iommufds say is mapped is what the tables map.
Findings about the FLB and its tables are INV-21, those about files INV-20, memory with two owners INV-12.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from kho.abi import PAGE_SIZE
from kho.handover import Handover
from luo.abi_devices import (
    ADDRESS,
    ALLOWED,
    AREA_DTYPE,
    AUTOMATIC,
    DEVICE,
    EXTENT_DTYPE,
    HWPT,
    IOAS,
    IOMMU,
    IOMMU_COMPATIBLE,
    IOMMU_DEVICE,
    IOMMU_DEVICES,
    IOMMU_DOMAIN,
    IOMMU_DOMAINS,
    IOMMU_FILES,
    IOMMU_SIZE,
    IOMMUFD,
    IRTA_SIZE,
    OBJECT_DTYPE,
    PAGE_BIT,
    PRESENT,
    RANGE_DTYPE,
    READ,
    SMALL,
    VERIFY_SOURCE,
    WRITE,
    bdf,
    checksum,
)
from luo.flb import read_record


@dataclass(frozen=True)
class Mapping:
    """[iova, iova + size) leads to memory from `phys` on; `prot`: READ, WRITE."""

    iova: int
    phys: int
    size: int
    prot: int


@dataclass
class Domain:
    """struct iommu_luemu_domain; `tables` and `mappings` (neighbours joined) are as found in memory."""

    id: int
    levels: int
    top: int
    nr_tables: int
    bytes: int
    tables: list[int] = field(default_factory=list)
    mappings: list[Mapping] = field(default_factory=list)


@dataclass
class Iommu:
    """struct iommu_luemu_ser. `devices`: requester id → domain id."""

    phys: int
    unit: int
    capabilities: int
    extended: int
    root: int
    interrupts: int
    domains: dict[int, Domain] = field(default_factory=dict)
    devices: dict[int, int] = field(default_factory=dict)
    files: list[int] = field(default_factory=list)
    contexts: dict[int, int] = field(default_factory=dict)
    """requester id → domain id as the context tables say"""
    interrupt_entries: dict[int, int] = field(default_factory=dict)
    """index → requester id"""
    context_tables: list[int] = field(default_factory=list)

    @property
    def pages(self) -> list[int]:
        """Addresses of the record and of all tables."""
        tables = [page for domain in self.domains.values() for page in domain.tables]
        interrupts = [self.interrupts & ADDRESS] if self.interrupts else []
        return [self.phys, self.root, *self.context_tables, *interrupts, *tables]


@dataclass(frozen=True)
class Object:
    """struct iommufd_luemu_object: kind is IOAS, HWPT or DEVICE."""

    id: int
    kind: int
    parent: int
    flags: int
    arg: int


@dataclass(frozen=True)
class Area:
    """struct iommufd_luemu_area with its memory as (physical address, bytes)."""

    ioas: int
    iova: int
    size: int
    prot: int
    memory: tuple[tuple[int, int], ...]


@dataclass
class Iommufd:
    """struct iommufd_luemu_ser."""

    phys: int
    size: int
    rlimit_mode: int
    objects: list[Object] = field(default_factory=list)
    areas: list[Area] = field(default_factory=list)
    ranges: list[tuple[int, int, int, int]] = field(default_factory=list)
    """(start, last, IOAS, kind)"""

    @property
    def mapped(self) -> int:
        """Bytes."""
        return sum(area.size for area in self.areas)


# --- FLB ----------------------------------------------------------------------------------------------------


def read_iommu(handover: Handover, phys: int) -> Iommu | None:
    """Decode the record and all tables; None when there is none."""
    findings = handover.findings
    record = read_record(handover, phys, IOMMU_COMPATIBLE, "the record of DMA remapping")
    if record is None:
        return None
    owner, data = record
    _, *counts, reserved, unit, cap, ecap, root, interrupts, more = IOMMU.unpack_from(data)
    limits = (IOMMU_DOMAINS, IOMMU_DEVICES, IOMMU_FILES)
    if any(count > limit for count, limit in zip(counts, limits, strict=True)):
        findings.add("INV-21", f"the record of DMA remapping counts {counts}", phys)
        return None
    iommu = Iommu(phys, unit, cap, ecap, root, interrupts)
    at = IOMMU.size
    for number in range(counts[0]):
        domain = Domain(*IOMMU_DOMAIN.unpack_from(data, at + number * IOMMU_DOMAIN.size))
        if domain.id in iommu.domains:
            findings.add("INV-21", f"domain {domain.id} is there twice", phys)
        iommu.domains[domain.id] = domain
    at += IOMMU_DOMAINS * IOMMU_DOMAIN.size
    for number in range(counts[1]):
        source, spare, id = IOMMU_DEVICE.unpack_from(data, at + number * IOMMU_DEVICE.size)
        reserved |= spare
        if source in iommu.devices:
            findings.add("INV-21", f"function {bdf(source)} is there twice", phys)
        iommu.devices[source] = id
    at += IOMMU_DEVICES * IOMMU_DEVICE.size
    iommu.files = np.frombuffer(data, "<u8", counts[2], at).tolist()
    devices = IOMMU.size + IOMMU_DOMAINS * IOMMU_DOMAIN.size
    ends = (
        *(IOMMU.size + counts[0] * IOMMU_DOMAIN.size, devices),
        *(devices + counts[1] * IOMMU_DEVICE.size, at),
        *(at + 8 * counts[2], IOMMU_SIZE),
    )
    unused = any(any(data[start:end]) for start, end in zip(ends[::2], ends[1::2], strict=True))
    if reserved or any(more) or unused:
        findings.add("INV-21", "a reserved field in the record of DMA remapping is set", phys)
    _read_contexts(handover, iommu, owner)
    _read_interrupts(handover, iommu, owner)
    for domain in iommu.domains.values():
        _read_domain(handover, domain, owner)
    return iommu


def _table(handover: Handover, owner: int, phys: int, what: str) -> list[int] | None:
    """The 512 words of a table, which must be a preserved page of its own."""
    if phys % PAGE_SIZE or not phys or not handover.reader.contains(phys, PAGE_SIZE):
        handover.findings.add("INV-21", f"{what} is not a page in RAM", phys)
        return None
    if not handover.own_page(owner, phys, lost="INV-21", what=what) and handover.tree_is_whole:
        return None
    words: list[int] = np.frombuffer(handover.reader.bytes(phys, PAGE_SIZE), "<u8").tolist()
    return words


def _read_contexts(handover: Handover, iommu: Iommu, owner: int) -> None:
    findings = handover.findings
    root = _table(handover, owner, iommu.root, "the root table")
    for bus in range(256) if root else ():
        low, high = root[2 * bus], root[2 * bus + 1]  # type: ignore[index]
        if not low | high:
            continue
        if high or low & ~ADDRESS != PRESENT:
            findings.add("INV-21", f"the root entry of bus {bus:#x} is damaged", iommu.root + 16 * bus)
            continue
        table = _table(handover, owner, low & ADDRESS, f"the context table of bus {bus:#x}")
        if table:
            iommu.context_tables.append(low & ADDRESS)
        for n in range(256) if table else ():
            low, high = table[2 * n], table[2 * n + 1]  # type: ignore[index]
            if not low | high:
                continue
            source, id = bus << 8 | n, high >> 8 & 0xFFFF
            domain = iommu.domains.get(id)
            iommu.contexts[source] = id
            if domain is None or low != domain.top | PRESENT or high != id << 8 | domain.levels - 2:
                findings.add("INV-21", f"the context of {bdf(source)} is not its domain's", iommu.root)
    for source, _ in sorted(set(iommu.contexts.items()) ^ set(iommu.devices.items())):
        findings.add("INV-21", f"record and context of {bdf(source)} differ", iommu.phys)


def _read_interrupts(handover: Handover, iommu: Iommu, owner: int) -> None:
    if not iommu.interrupts:
        return
    phys = iommu.interrupts & ADDRESS
    if iommu.interrupts & ~ADDRESS != IRTA_SIZE:
        handover.findings.add("INV-21", "the interrupt table has another size than 256 entries", phys)
    words = _table(handover, owner, phys, "the interrupt table")
    for n in range(256) if words else ():
        low, high = words[2 * n], words[2 * n + 1]  # type: ignore[index]
        if not low | high:
            continue
        iommu.interrupt_entries[n] = high & 0xFFFF
        if low & PRESENT or high >> 16 != VERIFY_SOURCE >> 16 or high & 0xFFFF not in iommu.devices:
            handover.findings.add(
                "INV-21", f"interrupt entry {n} is not a masked one of a device", phys + 16 * n
            )


def _walk(
    handover: Handover, domain: Domain, owner: int, phys: int, level: int, iova: int
) -> Iterator[Mapping]:
    findings = handover.findings
    words = _table(handover, owner, phys, f"a table of domain {domain.id}")
    if words is None:
        return
    domain.tables.append(phys)
    shift = 12 + 9 * (level - 1)
    for n, entry in enumerate(words):
        if not entry:
            continue
        at, to, prot = iova + (n << shift), entry & ADDRESS, entry & 3
        page = level == 1 or bool(entry & PAGE_BIT)
        known = ADDRESS | 3 | (PAGE_BIT if level > 1 else 0)
        if not prot or entry & ~known or (page and (level > 3 or to & (1 << shift) - 1)):
            findings.add("INV-21", f"the entry {entry:#x} for IOVA {at:#x} is damaged", phys + 8 * n)
        elif page:
            yield Mapping(at, to, 1 << shift, prot)
        elif prot != READ | WRITE:
            findings.add("INV-21", f"the table for IOVA {at:#x} lacks rights", phys + 8 * n)
        else:
            yield from _walk(handover, domain, owner, to, level - 1, at)


def _read_domain(handover: Handover, domain: Domain, owner: int) -> None:
    findings = handover.findings
    if domain.levels not in (3, 4):
        findings.add("INV-21", f"domain {domain.id} has {domain.levels} levels of tables")
        return
    joined = domain.mappings
    for m in _walk(handover, domain, owner, domain.top, domain.levels, 0):
        last = joined[-1] if joined else None
        if (
            last
            and (last.iova + last.size, last.phys + last.size) == (m.iova, m.phys)
            and last.prot == m.prot
        ):
            joined[-1] = Mapping(last.iova, last.phys, last.size + m.size, m.prot)
        else:
            joined.append(m)
    for m in joined:
        if not handover.preserved.covers(m.phys, m.phys + m.size):
            gap = handover.preserved.gaps(m.phys, m.phys + m.size, 1)[0][0]
            handover.lost(
                "INV-21", f"IOVA {m.iova + gap - m.phys:#x} leads to memory that is not preserved", gap
            )
    total = sum(m.size for m in joined)
    if (len(domain.tables), total) != (domain.nr_tables, domain.bytes):
        findings.add(
            "INV-21",
            f"domain {domain.id} maps {total} bytes by {len(domain.tables)} tables, its record says "
            f"{domain.bytes} by {domain.nr_tables}",
            domain.top,
        )


# --- files --------------------------------------------------------------------------------------------------


def read_iommufd(handover: Handover, phys: int, owner: int) -> Iommufd | None:
    """Decode the record; None when there is none."""
    findings = handover.findings
    if not phys or phys % PAGE_SIZE or not handover.reader.contains(phys, PAGE_SIZE):
        findings.add("INV-20", f"the data handle {phys:#x} of an iommufd is not a page in RAM", phys)
        return None
    where = np.array([phys], dtype=np.uint64)
    order = int(handover.preserved.orders_at(where)[0])
    handover.own(owner, where, order, lost="INV-20", what="the record of an iommufd")
    total, size, *counts, mode, reserved, more = IOMMUFD.unpack(handover.reader.bytes(phys, IOMMUFD.size))
    types = (OBJECT_DTYPE, AREA_DTYPE, EXTENT_DTYPE, RANGE_DTYPE)
    wanted = IOMMUFD.size + sum(n * t.itemsize for n, t in zip(counts, types, strict=True))
    room = PAGE_SIZE << max(order, 0)
    if size != wanted or size > room or not handover.reader.contains(phys, size):
        findings.add(
            "INV-20", f"the record of an iommufd has {size} bytes for {counts}, {room} are there", phys
        )
        return None
    data = handover.reader.bytes(phys, size)
    if total != checksum(data[8:]):
        findings.add("INV-20", "the checksum of the record of an iommufd is wrong", phys)
        return None
    parts = []
    at = IOMMUFD.size
    for count, dtype in zip(counts, types, strict=True):
        parts.append(np.frombuffer(data, dtype, count, at))
        at += count * dtype.itemsize
    objects, areas, extents, ranges = parts
    iommufd = Iommufd(phys, size, mode)
    iommufd.objects = [Object(*row[:5]) for row in objects.tolist()]
    reserved |= sum(row[5] for row in objects.tolist())
    pieces = [tuple(row) for row in extents.tolist()]
    taken = 0
    for iova, length, ioas, prot, first, count in areas.tolist():
        memory = tuple(pieces[first : first + count])
        iommufd.areas.append(Area(ioas, iova, length, prot, memory))
        if sum(n for _, n in memory) != length or first != taken:
            findings.add("INV-20", f"the area at IOVA {iova:#x} has not the memory it needs", phys)
        taken += count
    if taken != len(pieces):
        findings.add("INV-20", "an iommufd has memory in no area", phys)
    iommufd.ranges = [tuple(row) for row in ranges.tolist()]
    if reserved or any(more) or mode > 1:
        findings.add("INV-20", "a reserved field in the record of an iommufd is set", phys)
    _check_objects(handover, iommufd)
    return iommufd


def _check_objects(handover: Handover, iommufd: Iommufd) -> None:
    def bad(message: str) -> None:
        handover.findings.add("INV-20", message, iommufd.phys)

    kinds = {o.id: o.kind for o in iommufd.objects}
    parents = {IOAS: None, HWPT: IOAS, DEVICE: HWPT}
    flags = {IOAS: (0, SMALL), HWPT: (0, AUTOMATIC), DEVICE: (0,)}
    for o in iommufd.objects:
        known = o.kind in parents and o.flags in flags[o.kind] and not (o.kind == IOAS and o.parent | o.arg)
        if not known or kinds.get(o.parent) != parents[o.kind]:
            bad(f"object {o.id} of an iommufd is not possible")
    if [o.id for o in iommufd.objects] != sorted(kinds) or 0 in kinds:
        bad("objects of an iommufd have the same id, or none, or another order")
    last = (0, 0)
    for area in iommufd.areas:
        if kinds.get(area.ioas) != IOAS or area.prot not in (READ, WRITE, READ | WRITE):
            bad(f"the area at {area.iova:#x} is in no IOAS, or has no rights")
        if (area.iova | area.size) % PAGE_SIZE or not area.size or (area.ioas, area.iova) < last:
            bad(f"the area at {area.iova:#x} can not be there")
        last = (area.ioas, area.iova + area.size)
    for start, end, ioas, kind in iommufd.ranges:
        if kinds.get(ioas) != IOAS or start > end or kind != ALLOWED:
            bad(f"the range from {start:#x} to {end:#x} is not possible")


def compare(handover: Handover, iommu: Iommu | None, iommufds: list[Iommufd]) -> None:
    """What files say is mapped, and for which functions, is what hardware has (INV-20)."""
    findings = handover.findings
    if iommu is None:
        for iommufd in iommufds:
            findings.add("INV-20", "there is an iommufd, and nothing about DMA remapping", iommufd.phys)
        return
    if sorted(iommu.files) != sorted(f.phys for f in iommufds):
        findings.add("INV-20", "the record of DMA remapping has other iommufds than the sessions", iommu.phys)
    domains: list[int] = []
    devices: list[tuple[int, int]] = []
    for iommufd in iommufds:
        hwpts = {o.id: o for o in iommufd.objects if o.kind == HWPT}
        for hwpt in hwpts.values():
            domains.append(hwpt.arg)
            domain = iommu.domains.get(hwpt.arg)
            wanted = list(_joined(area for area in iommufd.areas if area.ioas == hwpt.parent))
            if domain is not None and wanted != domain.mappings:
                findings.add("INV-20", f"domain {domain.id} does not map what its iommufd says", iommufd.phys)
        for o in iommufd.objects:
            if o.kind == DEVICE and o.parent in hwpts:
                devices.append((o.arg, hwpts[o.parent].arg))
    if sorted(domains) != sorted(iommu.domains) or sorted(devices) != sorted(iommu.devices.items()):
        findings.add("INV-20", "domains and functions are not each an iommufd's", iommu.phys)


def _joined(areas: Iterator[Area]) -> Iterator[Mapping]:
    """Mappings of areas, neighbours that fit together joined."""
    last: Mapping | None = None
    for area in areas:
        iova = area.iova
        for phys, size in area.memory:
            fits = last is not None and (last.iova + last.size, last.phys + last.size) == (iova, phys)
            if last is not None and fits and last.prot == area.prot:
                last = Mapping(last.iova, last.phys, last.size + size, last.prot)
            else:
                if last is not None:
                    yield last
                last = Mapping(iova, phys, size, area.prot)
            iova += size
    if last is not None:
        yield last
