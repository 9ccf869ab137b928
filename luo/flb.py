"""File-lifecycle-bound objects: one page with a record for each that a preserved file needs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from kho.abi import PAGE_SIZE
from kho.handover import Handover
from luo.abi import FILE_COMPATIBLE_SIZE, FLB, FLB_HEADER, FLB_MAX
from luo.abi_devices import checksum


@dataclass(frozen=True)
class Flb:
    """struct luo_flb_ser: `data` belongs to whoever registered `compatible`, `count` is its number
    of users.
    """

    compatible: str
    data: int
    count: int

    def pack(self) -> bytes:
        """To 64 bytes."""
        return FLB.pack(self.compatible.encode("ascii"), self.data, self.count)


@dataclass
class FlbPage:
    """The page at luo_ser's flbs_pa."""

    phys: int
    pages: int
    count: int
    flbs: list[Flb] = field(default_factory=list)


def read_page(handover: Handover, phys: int) -> FlbPage | None:
    """Decode the page; None when there is none. Findings are INV-14 (the page) and INV-21 (its records)."""
    findings = handover.findings
    if not phys or phys % PAGE_SIZE or not handover.reader.contains(phys, PAGE_SIZE):
        findings.add("INV-14", f"the FLB page address {phys:#x} is not that of a page in RAM", phys)
        return None
    owner = handover.preserved.owner("LUO FLB page")
    handover.own_page(owner, phys, lost="INV-14", what="the FLB page")
    data = handover.reader.bytes(phys, PAGE_SIZE)
    page = FlbPage(phys, *FLB_HEADER.unpack_from(data))
    if page.pages != 1:
        findings.add("INV-14", f"the FLB page says it has {page.pages} pages", phys)
    if page.count > FLB_MAX:
        findings.add("INV-21", f"the FLB page has {page.count} records, more than {FLB_MAX}", phys)
        return page
    names: set[bytes] = set()
    for number in range(page.count):
        at = FLB_HEADER.size + number * FLB.size
        raw, handle, users = FLB.unpack_from(data, at)
        name, nul, _ = raw.partition(b"\0")
        if not nul or not name:
            findings.add(
                "INV-21", f"the name of FLB {number} is {'empty' if nul else 'without end'}", phys + at
            )
        elif name in names:
            findings.add("INV-21", f"the name of FLB {number} is there twice", phys + at)
        if users == 0:
            findings.add("INV-21", f"FLB {number} has no users", phys + at)
        names.add(name)
        page.flbs.append(Flb(text(name), handle, users))
    return page


def read_record(handover: Handover, phys: int, compatible: str, what: str) -> tuple[int, bytes] | None:
    """The data of an FLB, if they are a page with a checksum, as (owner, bytes). Findings are INV-21."""
    findings = handover.findings
    if not phys or phys % PAGE_SIZE or not handover.reader.contains(phys, PAGE_SIZE):
        findings.add("INV-21", f"the data of {compatible}, {phys:#x}, is not a page in RAM", phys)
        return None
    owner = handover.preserved.owner(compatible)
    handover.own_page(owner, phys, lost="INV-21", what=what)
    data = handover.reader.bytes(phys, PAGE_SIZE)
    if int.from_bytes(data[:8], "little") != checksum(data[8:]):
        findings.add("INV-21", f"the checksum of {what} is wrong", phys)
        return None
    return owner, data


def pack_page(flbs: Sequence[Flb]) -> bytes:
    """The page."""
    return (FLB_HEADER.pack(1, len(flbs)) + b"".join(flb.pack() for flb in flbs)).ljust(PAGE_SIZE, b"\0")


def text(raw: bytes) -> str:
    """A name for people and JSON; bytes that are not ASCII are shown as escapes."""
    return raw[: max(FILE_COMPATIBLE_SIZE, 64)].decode("ascii", "backslashreplace")
