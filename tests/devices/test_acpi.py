"""The tables: structure by hand, and iasl as the oracle for everything in them."""

from __future__ import annotations

import re
import struct
import subprocess
from pathlib import Path

import pytest

from emu import acpi, aml
from emu.devices.hpet import CAPABILITIES
from tests.oracles import require

BASE, RSDP = 0x1FFE0000, 0xF0000


class Firmware:
    """Memory with the tables, read as an operating system does."""

    def __init__(self, ncpus: int = 2, iommu: bool = False) -> None:
        self.parts, self.rsdp = acpi.build(BASE, ncpus, RSDP, iommu=iommu)

    def bytes_at(self, address: int, size: int) -> bytes:
        for at, data in self.parts:
            if at <= address and address + size <= at + len(data):
                return data[address - at : address - at + size]
        raise AssertionError(f"{address:#x}+{size:#x} is not in the tables")

    def table(self, address: int) -> bytes:
        size = struct.unpack("<I", self.bytes_at(address + 4, 4))[0]
        data = self.bytes_at(address, size)
        assert sum(data) & 0xFF == 0, data[:4]
        return data

    def tables(self) -> dict[str, bytes]:
        xsdt = self.table(struct.unpack("<Q", self.bytes_at(self.rsdp + 24, 8))[0])
        found = [self.table(a) for (a,) in struct.iter_unpack("<Q", xsdt[36:])]
        out = {t[:4].decode(): t for t in found}
        out["DSDT"] = self.table(struct.unpack_from("<Q", out["FACP"], 140)[0])
        return out


def test_rsdp_leads_to_both_root_tables() -> None:
    f = Firmware()
    rsdp = f.bytes_at(f.rsdp, 36)
    assert rsdp[:8] == b"RSD PTR "
    assert sum(rsdp[:20]) & 0xFF == 0 and sum(rsdp) & 0xFF == 0
    rsdt_at, _, xsdt_at = struct.unpack_from("<IIQ", rsdp, 16)
    rsdt, xsdt = f.table(rsdt_at), f.table(xsdt_at)
    assert struct.unpack(f"<{(len(rsdt) - 36) // 4}I", rsdt[36:]) == struct.unpack(
        f"<{(len(xsdt) - 36) // 8}Q", xsdt[36:]
    )
    assert set(f.tables()) == {"FACP", "APIC", "MCFG", "HPET", "DSDT"}


def test_fadt_points_at_the_ports_the_platform_decodes() -> None:
    f = Firmware().tables()["FACP"]

    def at(offset: int, form: str) -> int:
        value: int = struct.unpack_from("<" + form, f, offset)[0]
        return value

    assert (at(56, "I"), at(64, "I"), at(76, "I"), at(80, "I")) == (0x600, 0x604, 0x608, 0x620)
    assert at(46, "H") == 9 and at(48, "I") == 0
    assert f[116:129] == struct.pack("<BBBBQB", 1, 8, 0, 1, 0xCF9, 0x0F)
    assert at(109, "H") & 2 == 0, "no keyboard controller"
    assert at(112, "I") & (1 << 20) == 0, "not hardware-reduced"


def test_facs_is_aligned() -> None:
    f = Firmware()
    facs_at = struct.unpack_from("<I", f.tables()["FACP"], 36)[0]
    assert facs_at % 64 == 0
    assert f.bytes_at(facs_at, 8) == b"FACS" + (64).to_bytes(4, "little")


def test_madt_lists_cpus_pins_and_overrides() -> None:
    data = Firmware(3).tables()["APIC"]
    assert struct.unpack_from("<II", data, 36) == (0xFEE00000, 1)
    entries = []
    at = 44
    while at < len(data):
        entries.append(data[at : at + data[at + 1]])
        at += data[at + 1]
    assert [e[2:4] for e in entries if e[0] == 0] == [b"\0\0", b"\1\1", b"\2\2"]
    overrides = {e[3]: struct.unpack("<IH", e[4:]) for e in entries if e[0] == 2}
    assert overrides == {0: (2, 0), 5: (5, 13), 9: (9, 13), 10: (10, 13), 11: (11, 13)}
    assert entries[-1] == bytes((4, 6, 0xFF, 0, 0, 1))


def test_mcfg_and_hpet() -> None:
    t = Firmware().tables()
    assert t["MCFG"][44:] == struct.pack("<QHBBI", 0xB0000000, 0, 0, 255, 0)
    assert struct.unpack_from("<I", t["HPET"], 36)[0] == CAPABILITIES & 0xFFFFFFFF
    assert struct.unpack_from("<Q", t["HPET"], 44)[0] == 0xFED00000


def test_dmar_names_the_unit_and_who_is_behind_it() -> None:
    tables = Firmware(iommu=True).tables()
    assert set(tables) == {"FACP", "APIC", "MCFG", "HPET", "DMAR", "DSDT"}
    t = tables["DMAR"]
    assert (t[36], t[37], t[38:48]) == (47, 1, bytes(10)), "48 bits of address; interrupt remapping"
    assert struct.unpack_from("<HHBBHQ", t, 48) == (0, len(t) - 48, 1, 0, 0, 0xFED90000), "all of segment 0"
    io_apic, timers = t[64:72], t[72:80]
    assert (io_apic[0], io_apic[4], io_apic[5:]) == (3, 0, bytes((0xF0, 31, 0))), "the I/O APIC with id 0"
    assert (timers[0], timers[4], timers[5:]) == (4, 0, bytes((0xF0, 15, 0)))
    madt = tables["APIC"]
    at = 44
    while madt[at] != 1:
        at += madt[at + 1]
    assert madt[at + 2] == io_apic[4], "the same id in both tables"
    assert len(t) == 80


def test_other_tables_do_not_mention_the_unit() -> None:
    plain, with_unit = Firmware().tables(), Firmware(iommu=True).tables()
    for signature in ("APIC", "MCFG", "HPET"):
        assert plain[signature] == with_unit[signature]
    reserved = aml.memory32_fixed(0xFED90000, 0x1000, True)
    assert reserved in with_unit["DSDT"] and reserved not in plain["DSDT"]


def test_the_same_description_gives_the_same_bytes() -> None:
    assert acpi.build(BASE, 4) == acpi.build(BASE, 4)
    assert acpi.build(BASE, 4) != acpi.build(BASE, 5)


def test_all_cpus_fit_into_the_room_of_the_loader() -> None:
    parts, _ = acpi.build(BASE, 255)
    assert sum(len(d) for a, d in parts if a == BASE) <= 0x20000


@pytest.mark.parametrize("base", [1, 32, -64, 0xFFFFFFC0])
def test_impossible_places_are_refused(base: int) -> None:
    with pytest.raises(ValueError, match="cannot be at"):
        acpi.build(base, 1)


def iasl(directory: Path, *arguments: str) -> str:
    done = subprocess.run(
        [str(require("iasl")), *arguments],
        cwd=directory,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


@pytest.mark.parametrize("signature", ["FACP", "APIC", "MCFG", "HPET", "DMAR", "DSDT"])
def test_iasl_reads_each_table_without_complaint(tmp_path: Path, signature: str) -> None:
    (tmp_path / "t.aml").write_bytes(Firmware(iommu=True).tables()[signature])
    said = iasl(tmp_path, "-d", "t.aml")
    text = (tmp_path / "t.dsl").read_text()
    for bad in ("Invalid", "ERROR", "Unknown", "Warning", "Incorrect"):
        assert bad not in said + text, said


@pytest.mark.parametrize("window", [None, (0x80_0000_0000, 0xBF_FFFF_FFFF)])
def test_iasl_compiles_our_dsdt_back_to_the_same_bytes(
    tmp_path: Path, window: tuple[int, int] | None
) -> None:
    ours = acpi.dsdt(2, window)
    (tmp_path / "ours.aml").write_bytes(ours)
    iasl(tmp_path, "-d", "ours.aml")
    said = iasl(tmp_path, "-oa", "-p", "theirs", "ours.dsl")
    assert re.search(r"\b0 Errors, 0 Warnings", said), said
    theirs = (tmp_path / "theirs.aml").read_bytes()
    assert _without_checksums(theirs) == _without_checksums(ours)


def _without_checksums(table: bytes) -> bytes:
    """iasl computes the checksum in a resource template's end tag; we leave 0, which means "not computed"."""
    return re.sub(rb"\x79[\x00-\xff]", b"\x79\x00", table[36:])


# --- the encoder, against bytes written by hand from ACPI 6.5 chapter 20 ---


@pytest.mark.parametrize(
    "length, encoded",
    [
        (0, "01"),
        (0x3E, "3f"),
        (0x3F, "4104"),
        (0xFFD, "4fff"),
        (0xFFE, "810001"),
        (0xFFFFC, "8fffff"),
        (0xFFFFD, "c1000001"),
    ],
)
def test_package_lengths(length: int, encoded: str) -> None:
    assert aml.package_length(length).hex() == encoded


def test_package_length_limit() -> None:
    with pytest.raises(ValueError, match="too long"):
        aml.package_length(1 << 28)


@pytest.mark.parametrize(
    "path, encoded",
    [
        ("_HID", b"_HID"),
        ("\\_SB", b"\\_SB_"),
        ("\\_SB.PCI0", b"\\\x2e_SB_PCI0"),
        ("A.B.C", b"\x2f\x03A___B___C___"),
    ],
)
def test_names(path: str, encoded: bytes) -> None:
    assert aml.name(path) == encoded


def test_names_too_long_are_refused() -> None:
    with pytest.raises(ValueError, match="longer than four"):
        aml.name("LEGACY")


@pytest.mark.parametrize(
    "value, encoded",
    [
        (0, "00"),
        (1, "01"),
        (2, "0a02"),
        (0x100, "0b0001"),
        (0x10000, "0c00000100"),
        (1 << 32, "0e0000000001000000"),
    ],
)
def test_integers(value: int, encoded: str) -> None:
    assert aml.integer(value).hex() == encoded


def test_integers_beyond_64_bits_are_refused() -> None:
    with pytest.raises(ValueError, match="64 bits"):
        aml.integer(1 << 64)


def test_eisa_ids() -> None:
    assert aml.eisa_id("PNP0A03").hex() == "0c41d00a03"
    assert aml.eisa_id("PNP0501").hex() == "0c41d00501"
