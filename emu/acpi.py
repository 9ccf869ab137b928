"""The ACPI tables that describe the platform (ACPI 6.5; HPET 1.0a; PCI firmware 3.3 for MCFG;
VT-d 4.0, chapter 8, for DMAR).

Knows what `emu.devices.platform` builds, and takes each address from the device that decodes it. It is
firmware: it writes nothing itself, but returns what belongs where. The contents follow q35, except that

* there is no SMI command: the machine is in ACPI mode from the start;
* _S5 is ICH9's own value, 7, and it is the only sleep state;
* the FADT says that there is no keyboard controller and no VGA, so nobody probes for them.
"""

from __future__ import annotations

import struct

from emu import aml
from emu.devices import acpipm, hpet, ioapic, lapic, pci, vtd, vtd_tables
from emu.devices.platform import COM

OEM_ID = b"LUEMU "
OEM_TABLE_ID = b"LUEMUPC "
CREATOR_ID = b"LUEM"

MMIO_WINDOW = (0xC000_0000, 0xFEBF_FFFF)
"""Where PCI memory BARs below 4 GiB live: above ECAM, below the I/O APIC."""

_HEADER = 36
_SYSTEM_MEMORY, _SYSTEM_IO = 0, 1
_ACTIVE_HIGH_LEVEL = 0x000D
_LEVEL_IRQS = (5, acpipm.SCI_IRQ, 10, 11)


def build(
    base: int,
    ncpus: int,
    rsdp_at: int = 0xF0000,
    high_window: tuple[int, int] | None = None,
    *,
    iommu: bool = False,
) -> tuple[list[tuple[int, bytes]], int]:
    """The tables for ``ncpus`` CPUs, to be placed at ``base`` (a multiple of 64), RSDP at ``rsdp_at``.

    Returns what to write, as (address, bytes), and the address of the RSDP. ``high_window``: first and last
    address above 4 GiB that PCI BARs may use. ``iommu``: there is a VT-d unit.
    """
    if base % 64 or base < 0 or base + 0x10000 > 1 << 32:
        raise ValueError(f"ACPI tables cannot be at {base:#x}")
    area = bytearray()

    def put(data: bytes) -> int:
        at = base + len(area)
        area.extend(data + bytes(-len(data) % 64))
        return at

    facs_at = put(facs())
    dsdt_at = put(dsdt(ncpus, high_window, iommu=iommu))
    tables = [put(t) for t in (fadt(facs_at, dsdt_at), madt(ncpus), mcfg(), hpet_table())]
    if iommu:
        tables.append(put(dmar()))
    rsdt_at = put(table(b"RSDT", 1, struct.pack(f"<{len(tables)}I", *tables)))
    xsdt_at = put(table(b"XSDT", 1, struct.pack(f"<{len(tables)}Q", *tables)))
    return [(base, bytes(area)), (rsdp_at, rsdp(rsdt_at, xsdt_at))], rsdp_at


def checksum(data: bytes | bytearray) -> int:
    """The byte that makes the sum 0."""
    return -sum(data) & 0xFF


def table(signature: bytes, revision: int, body: bytes) -> bytes:
    """A system description table: header and body (5.2.6)."""
    oem = struct.pack("<6s8sI4sI", OEM_ID, OEM_TABLE_ID, 1, CREATOR_ID, 1)
    data = bytearray(struct.pack("<4sIBB", signature, _HEADER + len(body), revision, 0) + oem + body)
    data[9] = checksum(data)
    return bytes(data)


def rsdp(rsdt_at: int, xsdt_at: int) -> bytes:
    """Root system description pointer, ACPI 2.0 and later (5.2.5.3)."""
    data = bytearray(struct.pack("<8sB6sBIIQB3x", b"RSD PTR ", 0, OEM_ID, 2, rsdt_at, 36, xsdt_at, 0))
    data[8] = checksum(data[:20])
    data[32] = checksum(data)
    return bytes(data)


def facs() -> bytes:
    """Firmware ACPI control structure (5.2.10): no waking vector, no lock holder."""
    return struct.pack("<4sIIIIIQB31x", b"FACS", 64, 0, 0, 0, 0, 0, 2)


def fadt(facs_at: int, dsdt_at: int) -> bytes:
    """Fixed ACPI description table, revision 6.3 (5.2.9)."""
    f = bytearray(276)

    def put(offset: int, form: str, *values: int) -> None:
        struct.pack_into("<" + form, f, offset, *values)

    def register(offset: int, bits: int, size_code: int, address: int) -> None:
        put(offset, "BBBBQ", _SYSTEM_IO, bits, 0, size_code, address)

    pm = acpipm.PM_BASE
    put(36, "II", facs_at, dsdt_at)
    put(46, "H", acpipm.SCI_IRQ)
    put(56, "I", pm + acpipm.PM1_STS)
    put(64, "I", pm + acpipm.PM1_CNT)
    put(76, "I", pm + acpipm.PM_TMR)
    put(80, "I", pm + acpipm.GPE0_STS)
    put(88, "BBBBB", 4, 2, 0, 4, 16)  # lengths of PM1 event and control, PM2, PM timer, GPE0
    put(96, "HH", 0xFFF, 0xFFF)  # no C2, no C3
    put(108, "B", 0x32)  # CMOS cell of the century
    # Legacy devices are there; no 8042 (bit 1); VGA must not be probed (bit 2).
    put(109, "H", 1 << 0 | 1 << 2)
    # WBINVD works; C1 on all CPUs; no sleep button; no RTC wake in PM1; 32-bit PM timer; reset register
    put(112, "I", 1 << 0 | 1 << 2 | 1 << 5 | 1 << 6 | 1 << 8 | 1 << 10)
    register(116, 8, 1, 0xCF9)
    put(128, "B", 0x0F)
    put(131, "B", 3)  # minor version
    put(140, "Q", dsdt_at)
    register(148, 32, 2, pm + acpipm.PM1_STS)
    register(172, 16, 2, pm + acpipm.PM1_CNT)
    register(208, 32, 3, pm + acpipm.PM_TMR)
    register(220, 128, 1, pm + acpipm.GPE0_STS)
    return table(b"FACP", 6, bytes(f[_HEADER:]))


def madt(ncpus: int) -> bytes:
    """Multiple APIC description table (5.2.12)."""
    out = struct.pack("<II", lapic.DEFAULT_BASE, 1)  # PC-AT compatible: there is a pair of 8259s
    for cpu in range(ncpus):
        out += struct.pack("<BBBBI", 0, 8, cpu, cpu, 1)
    out += struct.pack("<BBBBII", 1, 12, 0, 0, ioapic.BASE, 0)
    out += struct.pack("<BBBBIH", 2, 10, 0, 0, 2, 0)
    for irq in _LEVEL_IRQS:
        out += struct.pack("<BBBBIH", 2, 10, 0, irq, irq, _ACTIVE_HIGH_LEVEL)
    out += struct.pack("<BBBHB", 4, 6, 0xFF, 0, 1)  # NMI on LINT1 of all
    return table(b"APIC", 3, out)


def mcfg() -> bytes:
    """Where ECAM is."""
    last_bus = (pci.ECAM_SIZE >> 20) - 1
    return table(b"MCFG", 1, bytes(8) + struct.pack("<QHBB4x", pci.ECAM_BASE, 0, 0, last_bus))


def hpet_table() -> bytes:
    """Where the HPET is (IA-PC HPET 3.2.4)."""
    address = struct.pack("<BBBBQ", _SYSTEM_MEMORY, 64, 0, 0, hpet.BASE)
    identity = struct.pack("<I", hpet.CAPABILITIES & 0xFFFF_FFFF)
    return table(b"HPET", 1, identity + address + bytes(4))


def dmar() -> bytes:
    """DMA remapping reporting: one unit for all of segment 0, the I/O APIC and the HPET (VT-d 8.1, 8.3)."""

    def scope(kind: int, identity: int, source: int) -> bytes:
        return struct.pack("<BBHBBBB", kind, 8, 0, identity, source >> 8, source >> 3 & 31, source & 7)

    # The HPET is listed as firmware does, though its timers send no messages.
    scopes = scope(3, 0, vtd.IOAPIC_SOURCE) + scope(4, 0, vtd.HPET_SOURCE)
    include_all = 1
    unit = struct.pack("<HHBBHQ", 0, 16 + len(scopes), include_all, 0, 0, vtd.BASE) + scopes
    interrupt_remapping = 1
    return table(b"DMAR", 1, bytes((vtd_tables.HOST_BITS - 1, interrupt_remapping)) + bytes(10) + unit)


def dsdt(ncpus: int, high_window: tuple[int, int] | None = None, *, iommu: bool = False) -> bytes:
    """Differentiated system description table: the namespace."""
    windows = [
        aml.bus_numbers(0, 255),
        aml.io(pci.CONFIG_ADDRESS, 8),
        aml.io_window(0x0000, 0x0CF7),
        aml.io_window(0x0D00, 0xFFFF),
        aml.memory_window(0xA0000, 0xBFFFF),
        aml.memory_window(*MMIO_WINDOW),
    ]
    if high_window is not None:
        windows.append(aml.memory_window_64(*high_window))
    routing = [
        aml.package(
            aml.integer(slot << 16 | 0xFFFF),
            aml.integer(pin),
            aml.integer(0),
            aml.integer(pci.intx_gsi(slot, pin)),
        )
        for slot in range(32)
        for pin in range(4)
    ]
    serial = [
        aml.device(
            f"COM{n + 1}",
            aml.define("_HID", aml.eisa_id("PNP0501")),
            aml.define("_UID", aml.integer(n + 1)),
            aml.define("_CRS", aml.resources(aml.io(base, 8), aml.irq_no_flags(irq))),
        )
        for n, (base, irq) in enumerate(COM)
    ]
    clock = aml.device(
        "RTC",
        aml.define("_HID", aml.eisa_id("PNP0B00")),
        aml.define("_CRS", aml.resources(aml.io(0x70, 4), aml.irq_no_flags(8))),
    )
    isa = aml.device("ISA", aml.define("_ADR", aml.integer(31 << 16)), *serial, clock)
    root_bridge = aml.device(
        "PCI0",
        aml.define("_HID", aml.eisa_id("PNP0A08")),
        aml.define("_CID", aml.eisa_id("PNP0A03")),
        aml.define("_UID", aml.integer(0)),
        aml.define("_CRS", aml.resources(*windows)),
        aml.define("_PRT", aml.package(*routing)),
        # The operating system gets every control it asks for: no firmware shares the bus with it.
        aml.method("_OSC", 4, aml.returns(aml.argument(3))),
        isa,
    )
    timers = aml.device(
        "HPET",
        aml.define("_HID", aml.eisa_id("PNP0103")),
        aml.define("_UID", aml.integer(0)),
        aml.define("_CRS", aml.resources(aml.memory32_fixed(hpet.BASE, hpet.SIZE, False))),
    )
    # What no driver owns but nobody else may use. MCFG counts only if ECAM is reserved here or in e820.
    board = aml.device(
        "BRD",
        aml.define("_HID", aml.eisa_id("PNP0C02")),
        aml.define("_UID", aml.integer(1)),
        aml.define(
            "_CRS",
            aml.resources(
                aml.memory32_fixed(pci.ECAM_BASE, pci.ECAM_SIZE, True),
                aml.io(acpipm.PM_BASE, 0x80),
                aml.io(0x4D0, 2),
                *([aml.memory32_fixed(vtd.BASE, vtd.SIZE, True)] if iommu else []),
            ),
        ),
    )
    processors = [
        aml.device(
            f"C{cpu:03X}",
            aml.define("_HID", aml.string("ACPI0007")),
            aml.define("_UID", aml.integer(cpu)),
        )
        for cpu in range(ncpus)
    ]
    soft_off = aml.integer(acpipm.SLP_TYP_S5)
    body = aml.define("\\_S5", aml.package(soft_off, soft_off, aml.integer(0), aml.integer(0)))
    body += aml.scope("\\_SB", root_bridge, timers, board, *processors)
    return table(b"DSDT", 2, body)
