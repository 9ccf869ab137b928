"""What VT-d reads from memory: root, context, second-level and interrupt tables in legacy mode.

Intel VT-d (D51397, rev. 4.0), chapters 3, 5 and 9. Pure functions of a reader: no registers, no caches, no
machine. A table that cannot be used raises `Fault` with the specification's reason code.

    source id ──► root entry [bus] ──► context entry [device.function] ──► second-level tables ──► page
                     16 bytes                 16 bytes: domain, width,         8 bytes an entry,
                                              pass-through or table            39 or 48 bits of address

The widths are those of our machine: 48 bits of host address, agaw 39 and 48, pages of 4 KiB, 2 MiB and 1 GiB.
Reserved bits are checked as far as the specification has them reserved for hardware with these capabilities.
"""

from __future__ import annotations

from collections.abc import Callable

HOST_BITS = 48
_ADDRESS = (1 << HOST_BITS) - 0x1000
_ABOVE = (1 << 52) - (1 << HOST_BITS)  # address bits of page table entries that this host does not have
_LOW64 = (1 << 64) - 1

READ, WRITE = 1, 2
"""Permissions, as bits of a page table entry."""

FAULT_REASONS = {
    0x1: "the root entry is not present",
    0x2: "the context entry is not present",
    0x3: "the context entry asks for what is not offered",
    0x4: "the address is beyond the domain's width",
    0x5: "the page may not be written",
    0x6: "the page may not be read",
    0x7: "a page table is not in memory",
    0x8: "the root table is not in memory",
    0x9: "the context table is not in memory",
    0xA: "the root entry has reserved bits set",
    0xB: "the context entry has reserved bits set",
    0xC: "a page table entry has reserved bits set",
    0xE: "the page is mapped to the interrupt address range",
    0x20: "the interrupt request has reserved bits set",
    0x21: "the interrupt index is beyond the table",
    0x22: "the interrupt entry is not present",
    0x23: "the interrupt table is not in memory",
    0x24: "the interrupt entry has reserved bits set",
    0x25: "an interrupt in compatibility format is blocked",
    0x26: "the interrupt entry is another device's",
}
"""Reason codes (7.1.3 and 5.1.4.1), in our words."""

ReadMemory = Callable[[int, int], bytes | None]
"""``read(phys, size)``: None where not all of it is RAM."""


class Fault(Exception):
    """The request stops here."""

    def __init__(self, reason: int, quiet: bool = False) -> None:
        super().__init__(FAULT_REASONS[reason])
        self.reason = reason
        self.quiet = quiet
        """software asked, by FPD in the entry, not to record it"""


def _entry(read: ReadMemory, table: int, index: int, size: int, reason: int, quiet: bool = False) -> int:
    raw = read(table + size * index, size)
    if raw is None:
        raise Fault(reason, quiet)
    return int.from_bytes(raw, "little")


def context_entry(read: ReadMemory, root: int, source: int) -> tuple[int, int]:
    """The context entry of a requester id as (low, high) half (9.1, 9.3). ``root``: address of the table.

    What it returns is present and valid.
    """
    entry = _entry(read, root, source >> 8, 16, 0x8)
    if not entry & 1:
        raise Fault(0x1)
    if entry & ~(_ADDRESS | 1):
        raise Fault(0xA)
    entry = _entry(read, entry & _ADDRESS, source & 0xFF, 16, 0x9)
    low, high = entry & _LOW64, entry >> 64
    quiet = bool(low & 2)
    if not low & 1:
        raise Fault(0x2, quiet)
    if low & ~(_ADDRESS | 0xF) or high & ~0xFF_FF7F:
        raise Fault(0xB, quiet)
    # Translation types 1 (device TLB) and 3, and widths other than 39 and 48, are not offered.
    if low >> 2 & 3 not in (0, 2) or high & 7 not in (1, 2):
        raise Fault(0x3, quiet)
    return low, high


def domain_of(high: int) -> int:
    """Domain id of a context entry."""
    return high >> 8 & 0xFFFF


def passes_through(low: int) -> bool:
    """Whether a context entry leaves addresses as they are."""
    return low >> 2 & 3 == 2


def width_of(high: int) -> int:
    """Address width of a context entry in bits: 39 or 48."""
    return 39 if high & 7 == 1 else 48


def walk(read: ReadMemory, low: int, high: int, iova: int, needed: int) -> tuple[int, int, int]:
    """The page of ``iova`` as (physical address, permissions of all levels together, its size as a shift).

    ``low``, ``high``: the context entry. ``needed``: `READ` or `WRITE`, refused at the level that lacks it.
    Source: 3.7, 9.8.
    """
    quiet = bool(low & 2)
    table = low & _ADDRESS
    levels = 3 if high & 7 == 1 else 4
    permissions = READ | WRITE
    for level in range(levels, 0, -1):
        shift = 12 + 9 * (level - 1)
        entry = _entry(read, table, iova >> shift & 511, 8, 0x7, quiet)
        if not entry & needed:
            raise Fault(0x5 if needed == WRITE else 0x6, quiet)
        leaf = level == 1 or bool(entry & 0x80)
        reserved = _ABOVE | 1 << 62  # transient mapping needs a device TLB
        if not leaf:
            reserved |= 1 << 11  # snoop behaviour is the page's
        elif level == 4:
            reserved |= 0x80
        else:
            reserved |= (1 << shift) - 0x1000
        if entry & reserved:
            raise Fault(0xC, quiet)
        permissions &= entry
        table = entry & _ADDRESS
        if leaf:
            break
    return table, permissions, shift


def interrupt_entry(read: ReadMemory, table: int, index: int, extended: bool) -> tuple[int, int]:
    """Entry ``index`` of the interrupt table at ``table`` as (low, high) half (9.10).

    ``extended``: destinations have 32 bits. What it returns is present and valid.
    """
    entry = _entry(read, table, index, 16, 0x23)
    low, high = entry & _LOW64, entry >> 64
    quiet = bool(low & 2)
    if not low & 1:
        raise Fault(0x22, quiet)
    # Posted interrupts (bit 15) are not offered.
    reserved = 0xFF00_F000 | (0 if extended else 0xFFFF_00FF << 32)
    if low & reserved or high >> 20 or high >> 18 & 3 == 3 or low >> 5 & 7 in (3, 6):
        raise Fault(0x24, quiet)
    return low, high


def check_source(low: int, high: int, source: int) -> None:
    """Raise unless the interrupt entry may be used by this requester id (9.10: SVT, SQ, SID)."""
    check = high >> 18 & 3
    if check == 1:
        ignored = (0, 4, 6, 7)[high >> 16 & 3]  # bits of the function number
        wrong = (source ^ high) & 0xFFFF & ~ignored
    elif check == 2:
        wrong = not (high >> 8 & 0xFF) <= source >> 8 <= (high & 0xFF)
    else:
        wrong = 0
    if wrong:
        raise Fault(0x26, bool(low & 2))
