"""Putting a kernel into a machine: the Linux x86 boot protocol, ELF, and PVH.

Does what firmware and boot loader would have done, then lets go: everything is written before the
first instruction. Sources: Linux's x86 boot protocol (2.06 and later, 64-bit entry), the zero page
layout, ELF-64, and Xen's PVH direct boot (`hvm_start_info` version 1).

The memory map is that of `qemu-system-x86_64 -machine q35`.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

from emu import acpi
from emu.cpu import HFLAGS_LONG, HFLAGS_PROTECTED
from emu.errors import AddressError, ConfigError, ImageError
from emu.memory import GIB4, PAGE

if TYPE_CHECKING:
    from emu.machine import Machine

RAM, RESERVED, ACPI = 1, 2, 3
ECAM = (0xB0000000, 0x10000000)
ACPI_ROOM = 0x20000
"""Bytes at the top of low RAM that firmware keeps for ACPI tables: SeaBIOS' without further devices."""
_INITRD_ROOM = ACPI_ROOM + 0x8000
"""Bytes that stay free above an initramfs, as on QEMU's q35."""
ADDRESS_END = 1 << 40
"""The engine's page tables hold no higher address (others are reserved bits, whatever CPUID says)."""
HYPERTRANSPORT = (0xFD_0000_0000, 0x3_0000_0000)
"""What AMD processors keep for HyperTransport below 1 TiB."""

# What the loader puts below 640 KiB.
_GDT_AT, _TABLES_AT, _BOOT_PARAMS_AT, _CMDLINE_AT = 0x7000, 0x8000, 0x10000, 0x20000
_SETUP_DATA_AT, _START_INFO_AT = 0x21000, 0x6000
_STACK_TOP = 0x7000
_LOW_END = 0x9FC00
_RSDP_AT = 0xF0000
_KERNEL_MIN = 1 << 20
_LOADERS = "that is the loader's and firmware's"
_CMDLINE_MAX = 4095
_PVH_NOTE = 18
_START_MAGIC = 0x336EC578


@dataclass(frozen=True)
class Range:
    """One e820 entry: ``size`` bytes at ``start`` of ``kind`` (1 RAM, 2 reserved, 3 ACPI)."""

    start: int
    size: int
    kind: int


def e820(ram_bytes: int, low: int) -> list[Range]:
    """Memory map as firmware reports it on q35, for a machine with ``low`` bytes of RAM below 4 GiB."""
    out = [
        Range(0, 0x9FC00, RAM),
        Range(0x9FC00, 0x400, RESERVED),
        Range(0xF0000, 0x10000, RESERVED),
        Range(0x100000, low - ACPI_ROOM - 0x100000, RAM),
        Range(low - ACPI_ROOM, ACPI_ROOM, RESERVED),
        Range(*ECAM, RESERVED),
        Range(0xFED1C000, 0x4000, RESERVED),
        Range(0xFFFC0000, 0x40000, RESERVED),
    ]
    if ram_bytes > low:
        # of 1 TiB the hole below 4 GiB pushes a part out of what page tables can hold
        out.append(Range(GIB4, min(GIB4 + ram_bytes - low, ADDRESS_END) - GIB4, RAM))
    if GIB4 + ram_bytes - low <= HYPERTRANSPORT[0]:  # in a larger machine it would be in the middle of RAM
        out.append(Range(*HYPERTRANSPORT, RESERVED))
    return out


@dataclass(frozen=True)
class BzImage:
    """A parsed bzImage. Offsets and meanings: Linux x86 boot protocol, "The Real-Mode Kernel Header"."""

    header: bytes
    """setup header: from 0x1F1 to its end"""
    payload: bytes
    version: int
    preferred: int
    alignment: int
    init_size: int
    initrd_max: int
    relocatable: bool

    @classmethod
    def parse(cls, data: bytes, where: str = "") -> BzImage:
        """Raises ImageError unless it can be entered in 64-bit mode."""
        if len(data) < 0x268 or data[0x202:0x206] != b"HdrS":
            raise ImageError("not a bzImage: no boot protocol header ('HdrS' at 0x202)", where)
        version = struct.unpack_from("<H", data, 0x206)[0]
        if version < 0x20C:
            raise ImageError(
                f"boot protocol {version >> 8}.{version & 255:02d} has no 64-bit entry (2.12 has)",
                where,
            )
        if not struct.unpack_from("<H", data, 0x236)[0] & 1:
            raise ImageError("the kernel has no 64-bit entry point (xloadflags bit 0)", where)
        sectors = data[0x1F1] or 4
        payload = data[(sectors + 1) * 512 :]
        size = struct.unpack_from("<I", data, 0x1F4)[0] * 16
        if len(payload) < size:
            raise ImageError(
                f"truncated: {len(payload)} bytes of protected-mode code, the header says {size}", where
            )
        (init_size,) = struct.unpack_from("<I", data, 0x260)
        (preferred,) = struct.unpack_from("<Q", data, 0x258)
        (alignment,) = struct.unpack_from("<I", data, 0x230)
        if init_size < len(payload) or init_size > 1 << 30 or not alignment or alignment & (alignment - 1):
            raise ImageError(f"implausible header: init_size {init_size:#x}, alignment {alignment:#x}", where)
        return cls(
            header=data[0x1F1 : 0x202 + data[0x201]],
            payload=payload,
            version=version,
            preferred=preferred,
            alignment=alignment,
            init_size=init_size,
            initrd_max=struct.unpack_from("<I", data, 0x22C)[0],
            relocatable=bool(data[0x234]),
        )


@dataclass(frozen=True)
class Elf:
    """A parsed ELF-64 executable: what to load where, and how to enter it."""

    entry: int
    segments: list[tuple[int, bytes, int]]
    """(physical address, contents, size in memory)"""
    pvh_entry: int | None
    machine: int = 62

    @classmethod
    def parse(cls, data: bytes, where: str = "") -> Elf:
        """Raises ImageError unless it is an x86-64 executable with something to load."""
        if data[:4] != b"\x7fELF":
            raise ImageError("not an ELF file", where)
        if len(data) < 64 or data[4:6] != b"\x02\x01":
            raise ImageError("not a 64-bit little-endian ELF file", where)
        kind, machine, _, entry, phoff = struct.unpack_from("<HHIQQ", data, 16)
        phentsize, phnum = struct.unpack_from("<HH", data, 54)
        if machine != 62 or kind not in (2, 3):
            raise ImageError(f"not an x86-64 executable (e_machine {machine}, e_type {kind})", where)
        if phentsize != 56 or phoff + 56 * phnum > len(data):
            raise ImageError("program headers are outside the file", where)
        segments: list[tuple[int, bytes, int]] = []
        pvh = None
        contents = {1: 0, 4: 0}
        for i in range(phnum):
            ptype, _, off, vaddr, paddr, filesz, memsz = struct.unpack_from("<IIQQQQQ", data, phoff + 56 * i)
            if ptype not in (1, 4):
                continue
            if off + filesz > len(data) or (filesz > memsz and ptype == 1):
                raise ImageError(f"segment {i} is outside the file", where)
            contents[ptype] += filesz
            if contents[ptype] > len(data):
                raise ImageError(f"segment {i} has contents in common with the ones before it", where)
            if ptype == 1 and memsz:
                segments.append((paddr, data[off : off + filesz], memsz))
                if vaddr <= entry < vaddr + memsz:
                    entry = entry - vaddr + paddr if entry >= 1 << 47 else entry
            if ptype == 4:
                pvh = pvh if pvh is not None else _pvh_note(data[off : off + filesz])
        if not segments:
            raise ImageError("nothing to load (no PT_LOAD segment)", where)
        return cls(entry, segments, pvh)


def _pvh_note(notes: bytes) -> int | None:
    at = 0
    while at + 12 <= len(notes):
        namesz, descsz, kind = struct.unpack_from("<III", notes, at)
        name = notes[at + 12 : at + 12 + namesz].rstrip(b"\0")
        desc = at + 12 + (namesz + 3 & ~3)
        if name == b"Xen" and kind == _PVH_NOTE and descsz in (4, 8) and desc + descsz <= len(notes):
            return int.from_bytes(notes[desc : desc + descsz], "little")
        at = desc + (descsz + 3 & ~3)
    return None


@dataclass(frozen=True)
class Boot:
    """What is booted. ``kernel`` is the image's bytes (bzImage or ELF); ``setup_data`` is a list of
    (type, payload) that are chained in this order."""

    kernel: bytes
    cmdline: str = ""
    initrd: bytes = b""
    setup_data: Sequence[tuple[int, bytes]] = field(default_factory=tuple)
    entry: str = "auto"
    """for an ELF: "auto" (PVH if it has the note), "pvh" or "linux64" """
    where: str = ""
    e820: Sequence[Range] | None = None
    """the memory map, where it must differ from the machine's own (a recorded machine)"""
    within: Range | None = None
    """where a bzImage and everything that is loaded with it has to be, as after a kexec; else where a boot
    loader has it"""


@dataclass(frozen=True)
class _Places:
    """Where the loader puts what is not the kernel's."""

    gdt: int = _GDT_AT
    tables: int = _TABLES_AT
    boot_params: int = _BOOT_PARAMS_AT
    cmdline: int = _CMDLINE_AT
    setup_data: int = _SETUP_DATA_AT
    stack_top: int = _STACK_TOP
    end: int = _LOW_END
    """of the room for setup_data"""

    @classmethod
    def at(cls, start: int) -> _Places:
        """One after the other, from a page on."""
        pages = [start + PAGE * n for n in range(12)]
        return cls(pages[0], pages[2], pages[8], pages[9], pages[10], pages[1] + PAGE, pages[11])

    SIZE: ClassVar[int] = 11 * PAGE


_DEFAULT_PLACES = _Places()


def _put_initrd(m: Machine, initrd: bytes, top: int, floor: int) -> int:
    if not initrd:
        return 0
    at = (top - len(initrd)) & ~(PAGE - 1)
    if at < floor:
        raise ConfigError(
            f"an initramfs of {len(initrd) / 2**20:.1f} MiB does not fit below {top:#x}: "
            "more memory is needed"
        )
    m.memory.write(at, initrd, by="loader")
    return at


def _firmware(m: Machine) -> int:
    """ACPI tables; returns the RSDP's address."""
    iommu = "vtd" in m.description.devices
    tables, rsdp = acpi.build(m.memory.low - ACPI_ROOM, len(m.cpus), _RSDP_AT, iommu=iommu)
    for at, data in tables:
        m.memory.write(at, data, by="firmware")
    return rsdp


def _cmdline(m: Machine, text: str, at: int = _CMDLINE_AT) -> int:
    data = text.encode("utf-8", "surrogateescape")  # bytes of the shell that are no UTF-8 stay what they are
    if b"\0" in data:
        raise ConfigError("the kernel command line contains a NUL byte")
    if len(data) > _CMDLINE_MAX:
        raise ConfigError(f"the kernel command line is {len(data)} bytes long; at most {_CMDLINE_MAX} fit")
    m.memory.write(at, data + b"\0", by="loader")
    return len(data)


def boot(m: Machine, b: Boot) -> None:
    """Load everything and set the boot CPU to the kernel's entry. Raises ImageError or ConfigError."""
    if b.kernel[:4] == b"\x7fELF":
        elf = Elf.parse(b.kernel, b.where)
        for paddr, data, memsz in elf.segments:
            if paddr < _KERNEL_MIN:
                raise ImageError(f"a segment is loaded at {paddr:#x}, below 1 MiB: {_LOADERS}", b.where)
            try:
                m.memory.offset(paddr, memsz)
            except AddressError:
                raise ConfigError(
                    f"{memsz:#x} bytes at {paddr:#x} do not fit into {m.memory.size >> 20} MiB of RAM",
                    b.where,
                ) from None
            m.memory.write(paddr, data, by="loader")  # the rest is zero: the machine is fresh
        end = max(p + n for p, _, n in elf.segments)
        use_pvh = b.entry == "pvh" or (b.entry == "auto" and elf.pvh_entry is not None)
        if use_pvh:
            if elf.pvh_entry is None:
                raise ImageError("the ELF file has no PVH entry note", b.where)
            _enter_pvh(m, b, elf.pvh_entry, end)
        else:
            _enter_linux64(m, b, elf.entry, b"", end, m.memory.low - _INITRD_ROOM)
        return
    image = BzImage.parse(b.kernel, b.where)
    if b.within is not None:
        _boot_within(m, b, image, b.within)
        return
    at = image.preferred
    if at < _KERNEL_MIN:
        raise ImageError(f"implausible header: pref_address {at:#x} is below 1 MiB: {_LOADERS}", b.where)
    if at + image.init_size > m.memory.low - ACPI_ROOM:
        raise ConfigError(
            f"the kernel needs {-(-(at + image.init_size) >> 20):,} MiB of memory to start (pref_address "
            f"{at:#x}, init_size {image.init_size:#x}); the machine has {m.memory.low >> 20} MiB below 4 GiB",
            b.where,
        )
    m.memory.write(at, image.payload, by="loader")
    top = min(m.memory.low - _INITRD_ROOM, image.initrd_max + 1)
    _enter_linux64(m, b, at + 0x200, image.header, at + image.init_size, top)


def _boot_within(m: Machine, b: Boot, image: BzImage, room: Range) -> None:
    at = -(-room.start // image.alignment) * image.alignment
    places = -(-(at + image.init_size) // PAGE) * PAGE
    end = places + _Places.SIZE
    if end > room.start + room.size:
        raise ConfigError(
            f"the kernel needs {(end - room.start) >> 20} MiB to start; there are {room.size >> 20} MiB "
            f"for it at {room.start:#x}"
        )
    m.memory.write(at, image.payload, by="loader")
    _enter_linux64(m, b, at + 0x200, image.header, end, room.start + room.size, _Places.at(places))


def _enter_linux64(
    m: Machine, b: Boot, entry: int, header: bytes, end: int, top: int, places: _Places = _DEFAULT_PLACES
) -> None:
    rsdp = _firmware(m)
    params = bytearray(4096)
    params[0x1F1 : 0x1F1 + len(header)] = header
    initrd = _put_initrd(m, b.initrd, top, end)
    _cmdline(m, b.cmdline, places.cmdline)
    params[0x210] = 0xFF  # type of loader: undefined
    params[0x211] |= 1  # loaded high
    struct.pack_into("<II", params, 0x218, initrd & 0xFFFFFFFF, len(b.initrd))
    struct.pack_into("<II", params, 0xC0, initrd >> 32, len(b.initrd) >> 32)
    struct.pack_into("<I", params, 0x228, places.cmdline & 0xFFFFFFFF)
    struct.pack_into("<I", params, 0xC8, places.cmdline >> 32)
    struct.pack_into("<Q", params, 0x70, rsdp)
    entries = list(b.e820) if b.e820 is not None else e820(m.memory.size, m.memory.low)
    params[0x1E8] = len(entries)
    for i, r in enumerate(entries):
        struct.pack_into("<QQI", params, 0x2D0 + 20 * i, r.start, r.size, r.kind)
    at, link = places.setup_data, 0
    for i, (kind, payload) in enumerate(b.setup_data):
        if i == 0:
            link = at
        following = at + (16 + len(payload) + 7 & ~7)
        if following > places.end:
            raise ConfigError(f"{len(payload):#x} bytes of setup_data do not fit below {places.end:#x}")
        more = following if i + 1 < len(b.setup_data) else 0
        m.memory.write(at, struct.pack("<QII", more, kind, len(payload)) + payload, by="loader")
        at = following
    struct.pack_into("<Q", params, 0x250, link)
    m.memory.write(places.boot_params, params, by="loader")
    tables = bytearray(6 * PAGE)  # the first 4 GiB, identity
    struct.pack_into("<Q", tables, 0, places.tables + 0x1003)
    for i in range(4):
        struct.pack_into("<Q", tables, PAGE + 8 * i, places.tables + 0x2003 + PAGE * i)
    for i in range(2048):
        struct.pack_into("<Q", tables, 2 * PAGE + 8 * i, i << 21 | 0x83)
    m.memory.write(places.tables, tables, by="loader")
    gdt = struct.pack("<QQQQ", 0, 0, 0x00AF9B000000FFFF, 0x00CF93000000FFFF)
    m.memory.write(places.gdt, gdt, by="loader")
    data = {"selector": 0x18, "base": 0, "limit": 0xFFFFFFFF, "flags": 0xCF9300}
    cpu = m.cpus[0]
    cpu.set_registers(
        **{f"{s}__{k}": v for s in ("es", "ss", "ds") for k, v in data.items()},
        cs__selector=0x10, cs__base=0, cs__limit=0xFFFFFFFF, cs__flags=0xAF9B00,
        gdtr__base=places.gdt, gdtr__limit=31, cr0=0x80010033, cr3=places.tables, cr4=0x620, efer=0x500,
        hflags=HFLAGS_LONG, hflags2=1, rflags=2, rip=entry, rsp=places.stack_top, rsi=places.boot_params,
    )  # fmt: skip
    cpu.flush_tlb()


def _enter_pvh(m: Machine, b: Boot, entry: int, end: int) -> None:
    rsdp = _firmware(m)
    entries = list(b.e820) if b.e820 is not None else e820(m.memory.size, m.memory.low)
    memmap = b"".join(struct.pack("<QQII", r.start, r.size, r.kind, 0) for r in entries)
    initrd = _put_initrd(m, b.initrd, m.memory.low - _INITRD_ROOM, end)
    _cmdline(m, b.cmdline)
    modules = _START_INFO_AT + 64
    memmap_at = modules + 32
    info = struct.pack(
        "<IIIIQQQQII", _START_MAGIC, 1, 0, 1 if b.initrd else 0, modules if b.initrd else 0,
        _CMDLINE_AT, rsdp, memmap_at, len(entries), 0,
    )  # fmt: skip
    info = info.ljust(64, b"\0") + struct.pack("<QQQQ", initrd, len(b.initrd), 0, 0) + memmap
    m.memory.write(_START_INFO_AT, info, by="loader")
    m.memory.write(_GDT_AT, struct.pack("<QQQQ", 0, 0, 0x00CF9B000000FFFF, 0x00CF93000000FFFF), by="loader")
    data = {"selector": 0x18, "base": 0, "limit": 0xFFFFFFFF, "flags": 0xCF9300}
    cpu = m.cpus[0]
    cpu.set_registers(
        **{f"{s}__{k}": v for s in ("es", "ss", "ds", "fs", "gs") for k, v in data.items()},
        cs__selector=0x10, cs__base=0, cs__limit=0xFFFFFFFF, cs__flags=0xCF9B00,
        tr__limit=0x67, tr__flags=0x8B00, gdtr__base=_GDT_AT, gdtr__limit=31,
        cr0=0x11, cr3=0, cr4=0, efer=0, hflags=HFLAGS_PROTECTED, hflags2=1, rflags=2,
        rip=entry, rbx=_START_INFO_AT, rsp=0,
    )  # fmt: skip
    cpu.flush_tlb()
