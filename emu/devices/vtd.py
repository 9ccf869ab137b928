"""Intel VT-d remapping hardware in legacy mode (D51397, rev. 4.0): registers, caches, faults, invalidation.

DMA remapping with 39 and 48 bits, pages of 4 KiB, 2 MiB and 1 GiB, and pass-through; interrupt remapping,
also with 32-bit destinations; invalidation by registers and by queue; primary fault logging with its
interrupt. No scalable mode, device TLB, posted interrupt or protected memory region: the capability
registers say so. What is read from memory, and when that faults, is in `emu.devices.vtd_tables`.

What hardware caches is modelled, because software must invalidate it, and mistakes there are what people
look for: context entries by source id, pages by domain and address, interrupt entries by index. An entry
stays until it is invalidated, also over a change of tables or of the root pointer and while translation is
off. As CM = 0 says, nothing that faulted is cached. A cache that is full forgets all. The caches are state:
a restored machine remembers the same.

An access through a cached page that lacks the permission is refused without another look at the tables.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from emu.clock import Clock
from emu.devices import vtd_tables as tables
from emu.devices.device import Device, Region
from emu.devices.vtd_tables import HOST_BITS, READ, WRITE, Fault
from emu.dma import MSI_BASE, NO_RAM, NOWHERE, Interrupt, Interrupts, Ram
from emu.memory import PAGE

BASE, SIZE = 0xFED9_0000, 0x1000
PAGES_MAX, CONTEXTS_MAX, INTERRUPTS_MAX = 4096, 1024, 1024
"""How many entries each cache holds."""
IOAPIC_SOURCE = 0xF0F8
"""Requester id of the I/O APIC: bus 0xf0, device 31, function 0, as firmware says in the DMAR table."""
HPET_SOURCE = 0xF078
"""The same of the HPET."""

# Registers (11.4)
VER, CAP, ECAP, GCMD, GSTS, RTADDR, CCMD = 0x00, 0x08, 0x10, 0x18, 0x1C, 0x20, 0x28
FSTS, FECTL, FEDATA, FEADDR, FEUADDR = 0x34, 0x38, 0x3C, 0x40, 0x44
IQH, IQT, IQA, ICS, IECTL, IEDATA, IEADDR, IEUADDR = 0x80, 0x88, 0x90, 0x9C, 0xA0, 0xA4, 0xA8, 0xAC
IQERCD, IRTA = 0xB0, 0xB8
IVA, IOTLB = 0x100, 0x108
FRCD, FAULTS = 0x200, 8

VERSION = 0x10
MASK_MAX = 18
CAPABILITIES = (
    6  # ND: 16 bits of domain id
    | 0b00110 << 8  # SAGAW: 39 and 48 bits
    | HOST_BITS - 1 << 16  # MGAW: 48 bits
    | 1 << 22  # ZLR
    | FRCD // 16 << 24  # FRO
    | 0b0011 << 34  # SLLPS: 2 MiB and 1 GiB
    | 1 << 39  # PSI
    | FAULTS - 1 << 40  # NFR
    | MASK_MAX << 48  # MAMV
    | 3 << 54  # DWD, DRD
)
EXTENDED = (
    1  # C: table walks are coherent
    | 1 << 1  # QI
    | 1 << 3  # IR
    | 1 << 4  # EIM
    | 1 << 6  # PT
    | 1 << 7  # SC
    | IVA // 16 << 8  # IRO
    | 15 << 20  # MHMV
)

# GCMD and GSTS
TE, SRTP, QIE, IRE, SIRTP, CFI = 1 << 31, 1 << 30, 1 << 26, 1 << 25, 1 << 24, 1 << 23
PFO, PPF, IQE, ICE, ITE = 1, 2, 1 << 4, 1 << 5, 1 << 6  # FSTS
IM, IP = 1 << 31, 1 << 30  # FECTL, IECTL
EIME = 1 << 11  # IRTA

BAD_TAIL, BAD_FETCH, BAD_TYPE, BAD_RESERVED = 1, 2, 3, 4
"""What IQERCD says of a queue error (11.4.9.9)."""

_ALL64, _ALL32 = (1 << 64) - 1, (1 << 32) - 1
_FAST_MAX = 1 << 14


@dataclass
class VtdState:
    """Registers by the names of the specification, and the caches."""

    gsts: int = 0
    rtaddr: int = 0
    root: int = 0  # in force: latched by SRTP
    ccmd: int = 0
    fsts: int = 0  # PFO and IQE; PPF and FRI are computed
    fri: int = 0  # the record of the first fault since PPF was clear
    next: int = 0  # the record that the next fault takes
    fectl: int = IM
    fedata: int = 0
    feaddr: int = 0
    feuaddr: int = 0
    iqh: int = 0
    iqt: int = 0
    iqa: int = 0
    ics: int = 0
    iectl: int = IM
    iedata: int = 0
    ieaddr: int = 0
    ieuaddr: int = 0
    iqercd: int = 0
    irta: int = 0
    interrupts: int = 0  # IRTA in force: latched by SIRTP
    iva: int = 0
    iotlb: int = 0
    faults: list[int] = field(default_factory=lambda: [0] * (2 * FAULTS))
    contexts: dict[str, list[int]] = field(default_factory=dict)
    """source id → context entry [low, high]"""
    pages: dict[str, dict[str, int]] = field(default_factory=dict)
    """domain id → "shift:page number" → physical address and permissions"""
    entries: dict[str, list[int]] = field(default_factory=dict)
    """interrupt index → interrupt entry [low, high]"""


class Vtd(Device):
    """One remapping unit that covers all functions of segment 0 and the I/O APIC. An `emu.dma.Iommu`."""

    s: VtdState

    def __init__(self, clock: Clock, ram: Ram | None, interrupts: Interrupts, name: str = "vtd") -> None:
        """``interrupts`` carries the unit's own messages, which nobody remaps."""
        super().__init__(name, clock)
        self._ram = ram
        self._interrupts = interrupts
        self._fast: dict[int, tuple[int, int, int]] = {}
        """source << 52 | page number → (physical - bus address, end of the page, permissions): an index into
        the caches, so not state"""
        self.s = VtdState()

    def regions(self) -> Sequence[Region]:
        """The register page."""
        return (Region("mmio", BASE, SIZE, self.read, self.write, width=8),)

    def reset(self, now: int) -> None:
        """Power-on: nothing is translated, nothing cached."""
        self._fast = {}
        self.s = VtdState()

    def load(self, state: dict[str, Any]) -> None:
        """Take over what `state` returned."""
        self._fast = {}
        super().load(state)

    # --- registers ---

    def read(self, offset: int, size: int, now: int) -> int:
        """A register, or the aligned 32-bit half of one; everything else reads as 0."""
        if size < 4 or offset & (size - 1):
            return 0
        return self._register(offset & ~7) >> 8 * (offset & 4)

    def _register(self, offset: int) -> int:
        s = self.s
        if FRCD <= offset < FRCD + 16 * FAULTS:
            return s.faults[offset - FRCD >> 3]
        return {
            VER: VERSION, CAP: CAPABILITIES, ECAP: EXTENDED, GCMD: s.gsts << 32, RTADDR: s.rtaddr,
            CCMD: s.ccmd, 0x30: self._fault_status() << 32, FECTL: s.fectl | s.fedata << 32,
            FEADDR: s.feaddr | s.feuaddr << 32, IQH: s.iqh, IQT: s.iqt, IQA: s.iqa, 0x98: s.ics << 32,
            IECTL: s.iectl | s.iedata << 32, IEADDR: s.ieaddr | s.ieuaddr << 32, IQERCD: s.iqercd,
            IRTA: s.irta, IVA: s.iva, IOTLB: s.iotlb,
        }.get(offset, 0)  # fmt: skip

    def write(self, offset: int, size: int, value: int, now: int) -> None:
        """Registers take aligned writes of 32 and 64 bits. A command acts when its upper half is written."""
        if size < 4 or offset & (size - 1):
            return
        if offset & ~7 in _PAIRS:
            if size == 8:
                self._write32(offset, value & _ALL32, now)
                self._write32(offset + 4, value >> 32, now)
            else:
                self._write32(offset, value, now)
        elif size == 8:
            self._write64(offset, value, True, True, now)
        else:
            old = self._register(offset & ~7)
            if offset & 4:
                self._write64(offset & ~7, old & _ALL32 | value << 32, False, True, now)
            else:
                self._write64(offset, old & ~_ALL32 | value, True, False, now)

    def _write32(self, offset: int, value: int, now: int) -> None:
        s = self.s
        if offset == GCMD:
            self._command(value, now)
        elif offset == FSTS:
            s.fsts &= ~(value & (PFO | IQE))
            if value & IQE:
                s.iqercd = 0
                self._run_queue(now)  # goes on where it stopped
            self._serviced()
        elif offset == FECTL:
            s.fectl = value & IM | s.fectl & IP
            if s.fectl == IP:
                s.fectl = 0
                self._send(s.feaddr, s.feuaddr, s.fedata, now)
        elif offset == FEDATA:
            s.fedata = value & 0xFFFF
        elif offset == FEADDR:
            s.feaddr = value & ~3
        elif offset == FEUADDR:
            s.feuaddr = value
        elif offset == ICS:
            if value & 1:
                s.ics = 0
                s.iectl &= ~IP
        elif offset == IECTL:
            s.iectl = value & IM | s.iectl & IP
            if s.iectl == IP:
                s.iectl = 0
                self._send(s.ieaddr, s.ieuaddr, s.iedata, now)
        elif offset == IEDATA:
            s.iedata = value & 0xFFFF
        elif offset == IEADDR:
            s.ieaddr = value & ~3
        elif offset == IEUADDR:
            s.ieuaddr = value

    def _write64(self, offset: int, value: int, lower: bool, upper: bool, now: int) -> None:
        """``value`` is the whole register; ``lower`` and ``upper`` say which halves were written."""
        s = self.s
        if offset == RTADDR:
            s.rtaddr = value & ~0xFFF
        elif offset == CCMD:
            s.ccmd = value & (3 << 61 | 0x3_FFFF_FFFF) | s.ccmd & 3 << 59
            if upper and value >> 63:
                # With the queue on, or for a granularity there is none of, hardware does nothing and says so.
                kind = 0 if s.gsts & QIE else value >> 61 & 3
                self._invalidate_contexts(kind, value & 0xFFFF, value >> 16 & 0xFFFF, value >> 32 & 3)
                s.ccmd = s.ccmd & ~(3 << 59) | kind << 59
        elif offset == IVA:
            s.iva = value & ~0xF80
        elif offset == IOTLB:
            s.iotlb = value & (3 << 60 | 3 << 48 | 0xFFFF << 32) | s.iotlb & 3 << 57
            if upper and value >> 63:
                kind = 0 if s.gsts & QIE else value >> 60 & 3
                if kind == 3 and s.iva & 63 > MASK_MAX:
                    kind = 0
                self._invalidate_pages(kind, value >> 32 & 0xFFFF, s.iva & ~0xFFF, s.iva & 63)
                s.iotlb = s.iotlb & ~(3 << 57) | kind << 57
        elif offset == IQA:
            s.iqa = value & ~0xFF8
        elif offset == IQT:
            if lower:
                s.iqt = value & 0x7_FFF0
                self._run_queue(now)
        elif offset == IRTA:
            s.irta = value & ~0x7F0
        elif FRCD <= offset < FRCD + 16 * FAULTS and offset & 8 and upper and value >> 63:
            s.faults[offset - FRCD >> 3] &= ~(1 << 63)  # F is cleared by writing 1
            self._serviced()

    def _command(self, value: int, now: int) -> None:
        """GCMD: one-shot commands act when set, enables are what was written last."""
        s = self.s
        self._fast = {}
        if value & SRTP:
            s.root = s.rtaddr
            s.gsts |= SRTP
        if value & SIRTP:
            s.interrupts = s.irta
            s.gsts |= SIRTP
        queue_was_on = s.gsts & QIE
        enables = TE | QIE | IRE | CFI
        s.gsts = s.gsts & ~enables | value & enables
        if queue_was_on and not value & QIE:
            s.iqh = 0
        if not queue_was_on:
            self._run_queue(now)

    def _send(self, address: int, upper: int, data: int, now: int) -> None:
        """One of the unit's own interrupts: in compatibility format, and never remapped (5.1.6)."""
        if address >> 20 == MSI_BASE >> 20:
            logical = bool(address & 4)
            destination = address >> 12 & 0xFF | upper & 0xFFFF_FF00
            if destination == 0xFF and not logical:
                destination = _ALL32
            self._interrupts.deliver(data >> 8 & 7, data & 0xFF, destination, logical, False, now)

    # --- faults (chapter 7) ---

    def _fault_status(self) -> int:
        s = self.s
        pending = any(high >> 63 for high in s.faults[1::2])
        return s.fsts | (PPF | s.fri << 8 if pending else 0)

    def _serviced(self) -> None:
        """With nothing left to service, no interrupt is pending."""
        if not self._fault_status():
            self.s.fectl &= ~IP

    def _event(self, now: int) -> None:
        """A fault event: held back while masked."""
        s = self.s
        if s.fectl & IM:
            s.fectl |= IP
        else:
            self._send(s.feaddr, s.feuaddr, s.fedata, now)

    def _record(self, requester: int, info: int, reason: int, read: bool, now: int) -> None:
        """Log a fault (7.2.1): in the next record, or as an overflow while that is in use."""
        s = self.s
        if s.fsts & PFO:
            return
        if s.faults[2 * s.next + 1] >> 63:
            s.fsts |= PFO
            return
        status = self._fault_status()
        if not status & PPF:
            s.fri = s.next
        s.faults[2 * s.next] = info & ~0xFFF
        s.faults[2 * s.next + 1] = 1 << 63 | int(read) << 62 | reason << 32 | requester
        s.next = (s.next + 1) % FAULTS
        if not status & (PFO | PPF | IQE):
            self._event(now)

    # --- invalidation (chapter 6) ---

    def _invalidate_contexts(self, kind: int, domain: int, source: int, mask: int) -> None:
        """``kind``: 1 all; 2 of a domain; 3 of a source id and domain, but for ``mask``ed function bits."""
        s = self.s
        self._fast = {}
        if kind == 1:
            s.contexts = {}
        elif kind:
            ignored = (0, 4, 6, 7)[mask]
            s.contexts = {
                key: entry
                for key, entry in s.contexts.items()
                if tables.domain_of(entry[1]) != domain or (kind == 3 and (int(key) ^ source) & ~ignored)
            }

    def _invalidate_pages(self, kind: int, domain: int, address: int, mask: int) -> None:
        """``kind``: 1 all; 2 of a domain; 3 what overlaps 2^``mask`` pages of a domain around ``address``."""
        s = self.s
        self._fast = {}
        if kind == 1:
            s.pages = {}
        elif kind == 2:
            s.pages.pop(str(domain), None)
        elif kind == 3:
            cached = s.pages.get(str(domain), {})
            first = address >> 12 & -(1 << mask)
            last = first + (1 << mask) - 1  # in pages of 4 KiB
            if mask <= 6:
                for shift in (0, 9, 18):
                    for page in range(first >> shift, (last >> shift) + 1):
                        cached.pop(f"{12 + shift}:{page}", None)
            else:
                for key in list(cached):
                    shift = int(key[:2]) - 12
                    page = int(key[3:])
                    if first >> shift <= page <= last >> shift:
                        del cached[key]
            if not cached:
                s.pages.pop(str(domain), None)

    def _run_queue(self, now: int) -> None:
        """Carry out descriptors from head to tail (6.5.2), up to one that is an error."""
        s = self.s
        size = PAGE << (s.iqa & 7)
        while s.gsts & QIE and s.iqh != s.iqt and not s.fsts & IQE:
            error = BAD_TAIL
            if s.iqt < size:
                raw = self._memory((s.iqa & ~0xFFF) + s.iqh, 16)
                error = BAD_FETCH
                if raw is not None:
                    low, high = (int.from_bytes(raw[i : i + 8], "little") for i in (0, 8))
                    error = self._descriptor(low, high, now)
            if error:
                status = self._fault_status()
                s.fsts |= IQE
                s.iqercd = error
                if not status & (PFO | PPF | IQE):
                    self._event(now)
            else:
                s.iqh = (s.iqh + 16) % size

    def _descriptor(self, low: int, high: int, now: int) -> int:
        """Carry out one descriptor (6.5.2.1 to 6.5.2.8); returns 0 or what is wrong with it."""
        s = self.s
        kind = low & 15 | low >> 5 & 0x70
        granularity, domain = low >> 4 & 3, low >> 16 & 0xFFFF
        if kind not in _DESCRIPTORS:
            return BAD_TYPE
        reserved_low, reserved_high = _DESCRIPTORS[kind]
        if low & reserved_low or high & reserved_high:
            return BAD_RESERVED
        if kind == 1:
            if not granularity:
                return BAD_RESERVED
            self._invalidate_contexts(granularity, domain, low >> 32 & 0xFFFF, low >> 48 & 3)
        elif kind == 2:
            if not granularity or (granularity == 3 and high & 63 > MASK_MAX):
                return BAD_RESERVED
            self._invalidate_pages(granularity, domain, high & ~0xFFF, high & 63)
        elif kind == 4:
            if low & 16:
                mask = min(low >> 27 & 31, 16)
                chosen = low >> 32 & 0xFFFF
                s.entries = {k: v for k, v in s.entries.items() if (int(k) ^ chosen) >> mask}
            else:
                s.entries = {}
        else:
            self._wait(low, high, now)
        return 0

    def _wait(self, low: int, high: int, now: int) -> None:
        """Invalidation wait: everything before it is done by now."""
        s = self.s
        if low & 0x20 and self._memory(high, 4) is not None and self._ram is not None:
            self._ram.write(high, (low >> 32).to_bytes(4, "little"), f"dma:{self.name}")
        if low & 0x10 and not s.ics:
            s.ics = 1
            if s.iectl & IM:
                s.iectl |= IP
            else:
                self._send(s.ieaddr, s.ieuaddr, s.iedata, now)

    # --- DMA remapping (chapter 3) ---

    def translate(self, requester: int, iova: int, write: bool, now: int) -> tuple[int, int, int]:
        """(physical address, bytes from there on that are translated alike, fault code) of an access."""
        found = self._fast.get(requester << 52 | iova >> 12)
        if found is not None and found[2] & (WRITE if write else READ):
            return found[0] + iova, found[1] - iova, 0
        if not self.s.gsts & TE:
            return iova, NOWHERE, 0
        rest_of_page = PAGE - iova % PAGE
        if iova >> 20 == MSI_BASE >> 20:
            return NOWHERE, rest_of_page, NO_RAM  # nothing there is ever translated, and only messages arrive
        try:
            return self._translate(requester, iova, WRITE if write else READ)
        except Fault as fault:
            if not fault.quiet:
                self._record(requester, iova, fault.reason, not write, now)
            return NOWHERE, rest_of_page, fault.reason

    def _translate(self, requester: int, iova: int, needed: int) -> tuple[int, int, int]:
        s = self.s
        context = s.contexts.get(str(requester))
        if context is None:
            context = list(tables.context_entry(self._memory, s.root, requester))
            _remember(s.contexts, str(requester), context, CONTEXTS_MAX)
        low, high = context
        quiet = bool(low & 2)
        if iova >> tables.width_of(high):
            raise Fault(0x4, quiet)
        if tables.passes_through(low):
            return iova, (1 << tables.width_of(high)) - iova, 0
        domain = str(tables.domain_of(high))
        page, shift = self._cached(domain, iova)
        if page is None:
            phys, permissions, shift = tables.walk(self._memory, low, high, iova, needed)
            page = phys | permissions
            if phys + iova % (1 << shift) >> 20 == MSI_BASE >> 20:
                raise Fault(0xE, quiet)
            if sum(len(cached) for cached in s.pages.values()) >= PAGES_MAX:
                s.pages = {}
                self._fast = {}
            s.pages.setdefault(domain, {})[f"{shift}:{iova >> shift}"] = page
        if not page & needed:
            raise Fault(0x5 if needed == WRITE else 0x6, quiet)
        start = iova >> shift << shift
        delta, end = (page & ~0xFFF) - start, start + (1 << shift)
        if iova + delta >> 20 == MSI_BASE >> 20:
            raise Fault(0xE, quiet)
        if len(self._fast) >= _FAST_MAX:
            self._fast = {}
        self._fast[requester << 52 | iova >> 12] = (delta, end, page & 3)
        return iova + delta, end - iova, 0

    def _cached(self, domain: str, iova: int) -> tuple[int | None, int]:
        pages = self.s.pages.get(domain)
        if pages is not None:
            for shift in (12, 21, 30):
                found = pages.get(f"{shift}:{iova >> shift}")
                if found is not None:
                    return found, shift
        return None, 0

    def _memory(self, phys: int, size: int) -> bytes | None:
        """What the unit itself reads; None where there is no RAM."""
        if self._ram is None or not self._ram.contains(phys, size):
            return None
        return self._ram.copy(phys, size)

    # --- interrupt remapping (chapter 5) ---

    def remap(self, requester: int, address: int, data: int, now: int) -> tuple[Interrupt | None, int]:
        """(what an interrupt message means, fault code); (None, 0): it is not remapped."""
        s = self.s
        if not s.gsts & IRE:
            return None, 0
        index = 0
        try:
            if not address & 0x10:
                if s.gsts & CFI and not s.interrupts & EIME:
                    return None, 0
                raise Fault(0x25)
            if address & 8 and data >> 16:
                raise Fault(0x20)
            index = address >> 5 & 0x7FFF | (address & 4) << 13
            if address & 8:
                index += data & 0xFFFF
            return self._interrupt(requester, index), 0
        except Fault as fault:
            if not fault.quiet:
                self._record(requester, (index & 0xFFFF) << 48, fault.reason, False, now)
            return None, fault.reason

    def _interrupt(self, requester: int, index: int) -> Interrupt:
        s = self.s
        extended = bool(s.interrupts & EIME)
        if index >= 2 << (s.interrupts & 15):
            raise Fault(0x21)
        entry = s.entries.get(str(index))
        if entry is None:
            table = s.interrupts & ~0xFFF
            entry = list(tables.interrupt_entry(self._memory, table, index, extended))
            _remember(s.entries, str(index), entry, INTERRUPTS_MAX)
        low, high = entry
        tables.check_source(low, high, requester)
        mode, vector, logical, level = low >> 5 & 7, low >> 16 & 0xFF, bool(low & 4), bool(low & 16)
        destination = low >> 32 if extended else low >> 40 & 0xFF
        if not extended and destination == 0xFF and not logical:
            destination = _ALL32
        if low & 8 and logical and mode == 0:
            mode = 1  # redirection hint: one of those addressed, as lowest priority chooses
        return mode, vector, destination, logical, level


_PAIRS = {0x18, 0x30, FECTL, FEADDR, 0x98, IECTL, IEADDR}
"""Where two 32-bit registers share eight bytes."""

_HIGH_TYPE = 7 << 9
_DESCRIPTORS = {
    1: (_ALL64 & ~(0x3F | _HIGH_TYPE | 0x3_FFFF_FFFF_0000), _ALL64),
    2: (_ALL64 & ~(0xFF | _HIGH_TYPE | 0xFFFF_0000), 0xF80),
    4: (_ALL64 & ~(0x1F | _HIGH_TYPE | 0xFFFF_F800_0000), _ALL64),
    5: (0xFFFF_F100, 3),
}
"""Kinds of descriptor and the bits that are reserved in their halves: context, IOTLB, interrupts, wait."""


def _remember(cache: dict[str, list[int]], key: str, value: list[int], size: int) -> None:
    if len(cache) >= size:
        cache.clear()
    cache[key] = value
