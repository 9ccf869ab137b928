"""arch/acpi.c on the host: tables of our machine, tables made by hand, and broken ones."""

from __future__ import annotations

import ctypes
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache

import pytest
from hypothesis import given
from hypothesis import strategies as st

from emu import acpi
from kernels import build

BASE, RSDP = 0x7FE0000, 0xF0000
FLAGS = (
    "-target", "x86_64-linux-gnu.2.17", "-mcpu=x86_64", "-O2", "-g0", "-std=gnu17", "-fPIC", "-shared",
    "-fno-builtin", "-iquote", "kernels/include", "-Ikernels",
    '-DRELEASE_HEADER="releases/new.h"', "-Wl,-Bsymbolic",
    *build.NO_SANITIZER, *build.WARNINGS, *build.REPRODUCIBLE,
)  # fmt: skip
LIBRARY = build.Target(
    name="test-acpi",
    output="build/tests/libacpi.so",
    sources=("tests/guest/acpi_host.c", "kernels/lib/vsprintf.c", "kernels/lib/string.c"),
    inputs=("kernels/arch/acpi.c", "kernels/include/*.h", "kernels/releases/*.h"),
    flags=FLAGS,
)


class IoApic(ctypes.Structure):
    _fields_ = [("id", ctypes.c_uint32), ("gsi_base", ctypes.c_uint32), ("phys", ctypes.c_uint64)]


class IsaIrq(ctypes.Structure):
    _fields_ = [("gsi", ctypes.c_uint32), ("active_low", ctypes.c_bool), ("level", ctypes.c_bool)]


class Info(ctypes.Structure):
    """struct acpi_info."""

    _fields_ = [
        ("local_apic", ctypes.c_uint64),
        ("nr_io_apics", ctypes.c_uint),
        ("nr_overrides", ctypes.c_uint),
        ("nr_cpus", ctypes.c_uint),
        ("io_apic", IoApic * 8),
        ("isa_irq", IsaIrq * 16),
        ("pm_timer", ctypes.c_uint16),
        ("pm1a_control", ctypes.c_uint16),
        ("pm1b_control", ctypes.c_uint16),
        ("pm_timer_32bit", ctypes.c_bool),
        ("s5_type_a", ctypes.c_uint8),
        ("s5_type_b", ctypes.c_uint8),
        ("reset_port", ctypes.c_uint16),
        ("reset_value", ctypes.c_uint8),
        ("hpet", ctypes.c_uint64),
    ]


@cache
def library() -> ctypes.CDLL:
    path = build.build(build.project_root(), LIBRARY)
    assert path is not None
    lib = ctypes.CDLL(str(path))
    lib.host_put.argtypes = [ctypes.c_uint64, ctypes.c_char_p, ctypes.c_uint64]
    lib.host_run.argtypes = [ctypes.c_uint64, ctypes.c_uint16, ctypes.c_bool]
    lib.host_text.restype = ctypes.c_char_p
    lib.host_info.restype = ctypes.POINTER(Info)
    lib.acpi_checksum_ok.restype = lib.acpi_find_s5.restype = ctypes.c_bool
    lib.acpi_find_s5.argtypes = [ctypes.c_char_p, ctypes.c_uint64, ctypes.c_char_p, ctypes.c_char_p]
    return lib


@dataclass(frozen=True)
class Result:
    info: Info
    text: str
    in_acpi_mode: bool


def read(
    chunks: Sequence[tuple[int, bytes | bytearray]], rsdp: int = RSDP, *, smi: int = 0, smi_works: bool = True
) -> Result:
    """What acpi_init() makes of this memory."""
    lib = library()
    kept = [(at, bytes(data)) for at, data in chunks]
    for at, data in kept:
        lib.host_put(at, data, len(data))
    lib.host_run(rsdp, smi, smi_works)
    info = Info.from_buffer_copy(lib.host_info().contents)
    result = Result(info, lib.host_text().decode(), bool(lib.host_mode() & 1))
    lib.host_end()
    return result


def machine() -> tuple[int, bytearray, bytes]:
    """Our machine's tables: where they are, they, and the RSDP."""
    chunks, at = acpi.build(BASE, 1, RSDP)
    assert at == RSDP
    (base, area), (rsdp_at, rsdp) = chunks
    assert rsdp_at == RSDP
    return base, bytearray(area), bytes(rsdp)


def place(signature: bytes) -> tuple[int, int]:
    """Offset and length of a table in the area."""
    _, area, _ = machine()
    at = next(i for i in range(0, len(area), 64) if area[i : i + 4] == signature)
    return at, int(struct.unpack_from("<I", area, at + 4)[0])


def seal(area: bytearray, at: int, length: int | None = None) -> None:
    """Make the checksum of a changed table right again."""
    size = struct.unpack_from("<I", area, at + 4)[0] if length is None else length
    area[at + 9] = 0
    area[at + 9] = acpi.checksum(area[at : at + size])


def tables(*made: bytes, root: str = "XSDT") -> list[tuple[int, bytes | bytearray]]:
    """An RSDP and a root table for tables made by hand, a page apart each."""
    at = [BASE + 0x1000 * (i + 1) for i in range(len(made))]
    form = "Q" if root == "XSDT" else "I"
    listing = acpi.table(root.encode(), 1, struct.pack(f"<{len(at)}{form}", *at))
    rsdp = acpi.rsdp(0 if root == "XSDT" else BASE, BASE if root == "XSDT" else 0)
    return [(RSDP, rsdp), (BASE, listing), *zip(at, made, strict=True)]


def madt(*entries: bytes) -> bytes:
    return acpi.table(b"APIC", 3, struct.pack("<II", 0xFEE00000, 1) + b"".join(entries))


def test_our_machine() -> None:
    base, area, rsdp = machine()
    r = read([(base, area), (RSDP, rsdp)])
    assert r.info.local_apic == 0xFEE00000
    assert (r.info.nr_cpus, r.info.nr_io_apics, r.info.nr_overrides) == (1, 1, 5)
    assert (r.info.io_apic[0].phys, r.info.io_apic[0].gsi_base) == (0xFEC00000, 0)
    assert [irq.gsi for irq in r.info.isa_irq] == [2, *range(1, 16)]
    assert [n for n, irq in enumerate(r.info.isa_irq) if irq.level] == [5, 9, 10, 11]
    assert not any(irq.active_low for irq in r.info.isa_irq)
    assert (r.info.pm1a_control, r.info.pm1b_control, r.info.pm_timer) == (0x604, 0, 0x608)
    assert r.info.pm_timer_32bit
    assert (r.info.s5_type_a, r.info.reset_port, r.info.reset_value) == (7, 0xCF9, 0x0F)
    assert r.info.hpet == 0xFED00000
    assert "ignored" not in r.text and "missing" not in r.text


@pytest.mark.parametrize("at", [0, 0xE0000, 0xE0010, 0xFFFD0])
def test_the_rsdp_is_searched(at: int) -> None:
    """By the boot loader's word, or else in the BIOS's memory, at multiples of 16."""
    base, area, rsdp = machine()
    r = read([(base, area), (at or RSDP, rsdp)], rsdp=RSDP if at == 0 else 0)
    assert r.info.hpet
    assert "RSDP" not in r.text


@pytest.mark.parametrize("at", [0xDFFF0, 0xE0008, 0xFFFF0])
def test_the_rsdp_is_not_found_elsewhere(at: int) -> None:
    base, area, rsdp = machine()
    r = read([(base, area), (at, rsdp)], rsdp=0)
    assert "no RSDP found" in r.text
    assert not r.info.hpet and not r.info.nr_io_apics


def test_a_wrong_word_of_the_boot_loader() -> None:
    base, area, rsdp = machine()
    r = read([(base, area), (RSDP, rsdp)], rsdp=0x1000)
    assert "searching" in r.text
    assert r.info.hpet


@pytest.mark.parametrize("signature", [b"FACP", b"APIC", b"MCFG", b"HPET"])
def test_a_wrong_checksum_costs_that_table(signature: bytes) -> None:
    base, area, rsdp = machine()
    area[place(signature)[0] + 30] ^= 0x40
    r = read([(base, area), (RSDP, rsdp)])
    assert "a table has a wrong checksum, ignored" in r.text
    name = signature.decode()
    assert f"ACPI: {name} missing" in r.text
    assert r.text.count("found") == 3
    assert bool(r.info.nr_io_apics) == (name != "APIC")
    assert bool(r.info.hpet) == (name != "HPET")
    assert bool(r.info.pm_timer) == (name != "FACP")
    assert [irq.gsi for irq in r.info.isa_irq][1:] == list(range(1, 16))


def test_a_wrong_dsdt_leaves_sleep_type_0() -> None:
    base, area, rsdp = machine()
    area[place(b"DSDT")[0] + 50] ^= 1
    r = read([(base, area), (RSDP, rsdp)])
    assert "DSDT has a wrong checksum" in r.text and "no \\_S5_" in r.text
    assert (r.info.s5_type_a, r.info.s5_type_b) == (0, 0)


@pytest.mark.parametrize("length", [0, 35, 0xFFFFFFFF, 5 << 20])
def test_an_impossible_length(length: int) -> None:
    base, area, rsdp = machine()
    struct.pack_into("<I", area, place(b"HPET")[0] + 4, length)
    r = read([(base, area), (RSDP, rsdp)])
    assert f"impossible length of {length} bytes" in r.text
    assert not r.info.hpet and r.info.nr_io_apics == 1


def test_the_old_root_table_stands_in() -> None:
    base, area, rsdp = machine()
    area[place(b"XSDT")[0] + 12] ^= 1
    r = read([(base, area), (RSDP, rsdp)])
    assert "XSDT has a wrong checksum" in r.text
    assert r.info.hpet and r.info.nr_io_apics == 1


def test_no_root_table() -> None:
    base, area, rsdp = machine()
    for name in (b"XSDT", b"RSDT"):
        area[place(name)[0] + 12] ^= 1
    r = read([(base, area), (RSDP, rsdp)])
    assert not r.info.hpet
    assert r.text.count("missing") == 4


def test_tables_at_impossible_addresses() -> None:
    area = acpi.table(b"XSDT", 1, struct.pack("<3Q", 0, 1 << 63, (1 << 46) + 8))
    r = read([(BASE, area), (RSDP, acpi.rsdp(0, BASE))])
    assert r.text.count("impossible address") == 3


def test_more_tables_than_there_is_room_for() -> None:
    other = acpi.table(b"SSDT", 1, bytes(4))
    listing = acpi.table(b"XSDT", 1, struct.pack("<40Q", *[BASE + 0x1000] * 40))
    r = read([(RSDP, acpi.rsdp(0, BASE)), (BASE, listing), (BASE + 0x1000, other)])
    assert "more than 32 tables" in r.text


OVERRIDE = struct.pack("<BBBBIH", 2, 10, 0, 9, 20, 0xF)
IOAPIC = struct.pack("<BBBBII", 1, 12, 7, 0, 0xFEC00000, 24)


def test_overrides_and_io_apics() -> None:
    r = read(tables(madt(IOAPIC, OVERRIDE), root="RSDT"))
    irq = r.info.isa_irq[9]
    assert (irq.gsi, irq.active_low, irq.level) == (20, True, True)
    assert (r.info.io_apic[0].id, r.info.io_apic[0].gsi_base) == (7, 24)
    r = read(tables(madt(struct.pack("<BBHQ", 5, 12, 0, 0x1_0000_0000), IOAPIC)))
    assert r.info.local_apic == 1 << 32


@pytest.mark.parametrize(
    "bad",
    [b"\x02", b"\x02\x00" + bytes(8), b"\x02\x01" + bytes(8), OVERRIDE[:9], IOAPIC[:11]],
    ids=["no length", "length 0", "length 1", "cut override", "cut I/O APIC"],
)
def test_a_malformed_madt_ends_there(bad: bytes) -> None:
    """What came before the malformed entry counts; `bad` alone at the end of a table is all of it."""
    r = read(tables(madt(OVERRIDE, bad)))
    assert r.info.isa_irq[9].gsi == 20 and r.info.nr_overrides == 1
    assert r.info.nr_io_apics == 0
    if len(bad) > 1:
        assert "MADT is malformed" in r.text


def test_a_madt_with_nonsense() -> None:
    far = struct.pack("<BBBBIH", 2, 10, 0, 16, 20, 0)
    other_bus = struct.pack("<BBBBIH", 2, 10, 1, 3, 20, 0)
    r = read(tables(madt(far, other_bus, *[IOAPIC] * 9)))
    assert r.info.nr_overrides == 0 and r.text.count("that ISA does not have") == 2
    assert r.info.nr_io_apics == 8 and "more than 8 I/O APICs" in r.text
    assert read(tables(acpi.table(b"APIC", 3, bytes(4)))).info.local_apic == 0


def fadt_chunks(change: Callable[[bytearray], None]) -> list[tuple[int, bytes | bytearray]]:
    base, area, rsdp = machine()
    at, size = place(b"FACP")
    table = area[at : at + size]
    change(table)
    area[at : at + size] = table
    seal(area, at)
    return [(base, bytes(area)), (RSDP, rsdp)]


def test_acpi_mode_is_entered_once() -> None:
    def legacy(table: bytearray) -> None:
        struct.pack_into("<I", table, 48, 0xB2)
        table[52] = 0xF1

    chunks = fadt_chunks(legacy)
    assert read(chunks, smi=0xB2).in_acpi_mode
    r = read(chunks, smi=0xB2, smi_works=False)
    assert not r.in_acpi_mode and "does not change to ACPI mode" in r.text


def test_an_old_fadt() -> None:
    """Revision 1 ends before the generic addresses: the old fields count, there is no reset register."""

    def cut(table: bytearray) -> None:
        struct.pack_into("<I", table, 4, 116)

    r = read(fadt_chunks(cut))
    assert (r.info.pm1a_control, r.info.pm_timer, r.info.reset_port) == (0x604, 0x608, 0)
    assert r.info.s5_type_a == 7


def test_a_reset_register_in_memory_is_left_alone() -> None:
    def memory(table: bytearray) -> None:
        table[116] = 0

    assert read(fadt_chunks(memory)).info.reset_port == 0


def s5(package: bytes, name: bytes = b"\x08_S5_", before: bytes = b"\x5b\x80") -> tuple[int, int] | None:
    """SLP_TYPa and b that are found in these bytes of AML."""
    a, b = ctypes.create_string_buffer(1), ctypes.create_string_buffer(1)
    aml = before + name + package
    buffer = ctypes.create_string_buffer(aml, len(aml))
    return (a.raw[0], b.raw[0]) if library().acpi_find_s5(buffer.raw, len(aml), a, b) else None


@pytest.mark.parametrize(
    "package, expected",
    [
        (b"\x12\x06\x04\x00\x00\x00\x00", (0, 0)),
        (b"\x12\x08\x04\x0a\x05\x0a\x06\x00\x00", (5, 6)),
        (b"\x12\x07\x04\x0a\x07\x01\x00\x00", (7, 1)),
        (b"\x12\x42\x00\x04\x0a\x05\x0a\x05", (5, 5)),  # package length in two bytes
        (b"\x12\x04\x01\x0a\x03", (3, 0)),  # one element
        (b"\x12\x05\x02\x01\x0b\x34\x12", (1, 0)),  # b is no small integer
        (b"\x12\x04\x01\x0a\x08", None),  # 8 is no sleep type
        (b"\x12\x02\x00\x00", None),  # no elements
        (b"\x12\x04\x01\x0b\x05\x00", None),  # a word
        (b"\x12\x04\x01\x0a", None),  # cut off
        (b"\x12", None),
        (b"\x12\xc4", None),
        (b"\x14\x06\x04\x00\x00\x00\x00", None),  # a method
        (b"", None),
    ],
)
def test_sleep_types(package: bytes, expected: tuple[int, int] | None) -> None:
    assert s5(package) == expected


def test_the_name_must_be_defined_there() -> None:
    package = b"\x12\x06\x04\x01\x01\x00\x00"
    assert s5(package, name=b"\x08\\_S5_") == (1, 1)
    assert s5(package, name=b"_S5_") is None
    assert s5(package, name=b"\\_S5_") is None
    assert s5(package, before=b"") == (1, 1)


@given(st.binary(max_size=40))
def test_sleep_types_of_anything(aml: bytes) -> None:
    found = s5(aml)
    assert found is None or (found[0] <= 7 and found[1] <= 7)


@given(st.lists(st.tuples(st.integers(0, 0x1FFF), st.integers(0, 255)), max_size=8), st.booleans())
def test_no_table_makes_it_crash(changes: list[tuple[int, int]], sealed: bool) -> None:
    """Bytes anywhere in our machine's tables are changed; with right checksums or without."""
    base, area, rsdp = machine()
    for at, value in changes:
        area[at % len(area)] = value
    if sealed:
        for name in (b"FACP", b"APIC", b"HPET", b"MCFG", b"DSDT", b"XSDT", b"RSDT"):
            at, length = place(name)
            seal(area, at, length)
    info = read([(base, area), (RSDP, rsdp)]).info
    assert info.nr_io_apics <= 8 and info.s5_type_a <= 7 and info.s5_type_b <= 7
