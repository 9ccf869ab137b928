"""What the loader puts into memory: the q35 memory map, boot_params, PVH start info, and refusals."""

from __future__ import annotations

import itertools
import os
import struct
from typing import Any

import pytest

from emu.boot import ACPI_ROOM, Boot, BzImage, Elf, Range, e820
from emu.errors import ConfigError, EmuError, ImageError
from emu.machine import Machine, StopKind
from emu.memory import low_split
from kernels.bzimage import BzImageError, flatten
from tests.machine.guest import assemble, selftest_image
from tests.machine.test_ends import bzimage

RAM, RESERVED = 1, 2
PARAMS = 0x10000

# As `qemu-system-x86_64 -machine q35 -cpu EPYC -nodefaults -m SIZE` reports them through fw_cfg and SeaBIOS (Linux: "BIOS-e820").
# QEMU keeps 0x20000 for ACPI tables at the top of low RAM, and ends RAM below the ECAM window.
COMMON = [(0xB0000000, 0xC0000000), (0xFED1C000, 0xFED20000), (0xFFFC0000, 1 << 32),
          (0xFD00000000, 0x10000000000)]  # fmt: skip
Q35 = {
    128 << 20: [(0, 0x9FC00), (0x100000, 0x7FE0000)],
    (2 << 30) + (768 << 20): [(0, 0x9FC00), (0x100000, 0x7FFE0000), (1 << 32, 0x130000000)],
    (2 << 30) + (767 << 20): [(0, 0x9FC00), (0x100000, 0xAFEE0000)],
    6 << 30: [(0, 0x9FC00), (0x100000, 0x7FFE0000), (1 << 32, 0x200000000)],
}


@pytest.mark.parametrize("size", Q35)
def test_memory_map_of_q35(size: int) -> None:
    with Machine(size) as m:
        m.boot(Boot(bzimage()))
        found = e820_of(m)
        assert [(r.start, r.start + r.size) for r in found if r.kind == RAM] == Q35[size]
        reserved = [(r.start, r.start + r.size) for r in found if r.kind == RESERVED]
        assert reserved[-4:] == COMMON if size < 1 << 31 else set(COMMON) <= set(reserved)
        assert (m.memory.low - ACPI_ROOM, m.memory.low) in reserved
        assert found == e820(size, m.memory.low)
        ordered = sorted(found, key=lambda r: r.start)
        for a, b in itertools.pairwise(ordered):
            assert a.start + a.size <= b.start, "no overlap"
        for r in found:
            if r.kind == RAM:
                m.memory.offset(r.start, r.size)  # raises unless it is RAM


def e820_of(m: Machine) -> list[Range]:
    params = m.memory.read(PARAMS, 4096).tobytes()
    return [Range(*struct.unpack_from("<QQI", params, 0x2D0 + 20 * i)) for i in range(params[0x1E8])]


def params_of(m: Machine) -> bytes:
    return m.memory.read(PARAMS, 4096).tobytes()


def test_all_memory_can_be_addressed() -> None:
    """The hole below 4 GiB pushes the end of 1 TiB beyond what the engine's page tables may hold."""
    for size in (1 << 40, (1 << 40) - (2 << 30), 64 << 30):
        end = max(r.start + r.size for r in e820(size, low_split(size)) if r.kind == RAM)
        assert end == min(size + (2 << 30), 1 << 40), hex(size)


def test_boot_params_of_a_bzimage() -> None:
    initrd = bytes(range(256)) * 30
    with Machine(64 << 20) as m:
        m.boot(Boot(bzimage(preferred=0x1000000), "console=ttyS0 é", initrd))
        p = params_of(m)
        assert p[0x202:0x206] == b"HdrS"
        assert struct.unpack_from("<H", p, 0x206)[0] == 0x20F
        at, size = struct.unpack_from("<II", p, 0x218)
        assert size == len(initrd) and at % 4096 == 0
        assert m.memory.read(at, size).tobytes() == initrd
        (cmdline,) = struct.unpack_from("<I", p, 0x228)
        text = "console=ttyS0 é".encode() + b"\0"
        assert m.memory.read(cmdline, len(text)).tobytes() == text
        (rsdp,) = struct.unpack_from("<Q", p, 0x70)
        assert m.memory.read(rsdp, 8).tobytes() == b"RSD PTR "
        r = m.registers()
        assert (r["rip"], r["rsi"]) == (0x1000200, PARAMS)
        assert r["cr0"] & 0x80000001 == 0x80000001 and r["efer"] & 0x500 == 0x500
        assert not r["rflags"] & 0x200
        assert not any(p[0:0x70]), "what nobody set is zero"


def test_the_state_at_the_entry() -> None:
    """64-bit, flat, everything below 4 GiB mapped at its own address."""
    code = "mov eax, 0xfee00030\nmov eax, [rax]\nmov rcx, [rsi + 0x250]\npush rcx\npop rdx\nmov bx, ds\nmov r8w, cs\nhlt"
    with Machine(64 << 20) as m:
        m.boot(Boot(bzimage(code=assemble(code))))
        assert m.run(until=100).kind is StopKind.DEADLOCK
        r = m.registers()
        assert r["rax"] & 0xFF == 0x14 and r["rcx"] == r["rdx"] == 0
        assert (r["r8"] & 0xFFFF, r["rbx"] & 0xFFFF) == (0x10, 0x18), "__BOOT_CS, __BOOT_DS"


def test_setup_data_is_chained_in_order() -> None:
    data = [(1, b"device tree"), (9, b"x"), (0x80000000, bytes(64)), (13, b"")]
    with Machine(64 << 20) as m:
        m.boot(Boot(bzimage(), setup_data=data))
        (at,) = struct.unpack_from("<Q", params_of(m), 0x250)
        for kind, payload in data:
            assert at and at % 8 == 0
            following, found, size = struct.unpack("<QII", m.memory.read(at, 16).tobytes())
            assert (found, m.memory.read(at + 16, size).tobytes()) == (kind, payload)
            at = following
        assert at == 0


def test_without_setup_data_the_pointer_is_zero() -> None:
    with Machine(64 << 20) as m:
        m.boot(Boot(bzimage()))
        assert struct.unpack_from("<Q", params_of(m), 0x250) == (0,)


def test_another_memory_map() -> None:
    mine = [Range(0, 0x9FC00, RAM), Range(0x100000, 0x1F00000, RAM)]
    with Machine(64 << 20) as m:
        m.boot(Boot(bzimage(), e820=mine))
        assert e820_of(m) == mine


@pytest.mark.parametrize("length", [4094, 4095])
def test_longest_command_line(length: int) -> None:
    with Machine(64 << 20) as m:
        m.boot(Boot(bzimage(), "x" * length))
        (at,) = struct.unpack_from("<I", params_of(m), 0x228)
        assert m.memory.read(at, length + 1).tobytes() == b"x" * length + b"\0"


def refused(boot: Boot, memory: int = 64 << 20) -> str:
    with Machine(memory) as m, pytest.raises((ImageError, ConfigError)) as e:
        m.boot(boot)
    assert isinstance(e.value, EmuError) and "\n" not in str(e.value)
    return str(e.value)


@pytest.mark.parametrize("text", ["x" * 4096, "é" * 2048, "a\0b"])
def test_command_lines_that_do_not_fit(text: str) -> None:
    assert "command line" in refused(Boot(bzimage(), text))
    assert "command line" in refused(Boot(selftest_image(), text))


def test_initramfs_that_does_not_fit() -> None:
    for image in (bzimage(), selftest_image()):
        assert "initramfs" in refused(Boot(image, initrd=bytes(64 << 20)))
        assert "initramfs" in refused(Boot(image, initrd=bytes(63 << 20)))


def test_initramfs_stays_below_the_kernels_limit() -> None:
    image = bytearray(bzimage())
    struct.pack_into("<I", image, 0x22C, 0x1FFFFFF)
    with Machine(64 << 20) as m:
        m.boot(Boot(bytes(image), initrd=bytes(10000)))
        at, size = struct.unpack_from("<II", params_of(m), 0x218)
        assert at + size <= 0x2000000


def test_kernel_that_does_not_fit() -> None:
    assert "memory" in refused(Boot(bzimage(init_size=80 << 20)))
    assert "memory" in refused(Boot(bzimage(preferred=(64 << 20) - ACPI_ROOM - 0x8000)))
    assert "memory" in refused(Boot(bzimage(preferred=1 << 32)))


def patched(at: int, kind: str, value: int) -> bytes:
    image = bytearray(bzimage())
    struct.pack_into(kind, image, at, value)
    return bytes(image)


@pytest.mark.parametrize(
    ("image", "words"),
    [
        (b"", "bzImage"),
        (b"MZ" + bytes(5000), "bzImage"),
        (bzimage()[:0x260], "bzImage"),
        (bzimage(version=0x20B), "64-bit entry"),
        (patched(0x236, "<H", 0), "64-bit entry"),
        (patched(0x1F4, "<I", 1 << 20), "truncated"),
        (bzimage()[:-16], "truncated"),
        (patched(0x230, "<I", 0), "implausible"),
        (patched(0x230, "<I", 3), "implausible"),
        (patched(0x260, "<I", 0), "implausible"),
        (patched(0x260, "<I", 0xFFFFFFFF), "implausible"),
    ],
)
def test_bzimages_that_are_refused(image: bytes, words: str) -> None:
    with pytest.raises(ImageError, match=words):
        BzImage.parse(image)
    assert words in refused(Boot(image))


def test_the_file_is_named() -> None:
    for image in (b"x", bzimage(preferred=1 << 32), bzimage(preferred=0), elf(paddr=0)):
        assert refused(Boot(image, where="/boot/vmlinuz")).startswith("/boot/vmlinuz: ")


@pytest.mark.parametrize("at", [0, 0x7000, 0xFF000])
def test_kernels_where_the_loader_works(at: int) -> None:
    """Below 1 MiB the loader's tables would replace part of them."""
    assert "below 1 MiB" in refused(Boot(bzimage(preferred=at)))
    assert "below 1 MiB" in refused(Boot(elf(paddr=at)))


def test_a_command_line_that_is_no_utf8() -> None:
    """What the shell gave is what the kernel gets, byte by byte."""
    with Machine(64 << 20) as m:
        m.boot(Boot(bzimage(), os.fsdecode(b"x=\xff\xfe")))
        (at,) = struct.unpack_from("<I", params_of(m), 0x228)
        assert m.memory.read(at, 5).tobytes() == b"x=\xff\xfe\0"


def elf(**changes: Any) -> bytes:
    """A two-segment ELF at 1 MiB, with fields replaced."""
    f = {
        "magic": b"\x7fELF", "bits": 2, "order": 1, "kind": 2, "machine": 62, "entry": 0x100000, "phoff": 64,
        "phentsize": 56, "phnum": 1, "ptype": 1, "off": 120, "vaddr": 0x100000, "paddr": 0x100000, "filesz": 2,
        "memsz": 0x1000, **changes,
    }  # fmt: skip
    head = struct.pack(
        "<4sBBB9xHHIQQQIHHHHHH", f["magic"], f["bits"], f["order"], 1, f["kind"], f["machine"], 1, f["entry"],
        f["phoff"], 0, 0, 64, f["phentsize"], f["phnum"], 0, 0, 0,
    )  # fmt: skip
    return head + struct.pack(
        "<IIQQQQQQ", f["ptype"], 5, f["off"], f["vaddr"], f["paddr"], f["filesz"], f["memsz"], 1
    ) + b"\x90\xf4"  # fmt: skip


def test_the_smallest_elf_runs() -> None:
    with Machine(64 << 20) as m:
        m.boot(Boot(elf()))
        assert m.registers()["rip"] == 0x100000
        stop = m.run(until=100)
        assert (stop.kind, stop.instructions) == (StopKind.DEADLOCK, 2)


def test_a_virtual_entry_is_made_physical() -> None:
    parsed = Elf.parse(elf(entry=0xFFFFFFFF81000010, vaddr=0xFFFFFFFF81000000))
    assert parsed.entry == 0x100010


@pytest.mark.parametrize(
    ("image", "words"),
    [
        (b"\x7fELF", "64-bit"),
        (elf()[:63], "64-bit"),
        (elf(bits=1), "64-bit"),
        (elf(order=2), "little-endian"),
        (elf(machine=183), "x86-64"),
        (elf(kind=1), "x86-64"),
        (elf(phentsize=32), "program headers"),
        (elf(phnum=2), "program headers"),
        (elf(phoff=1 << 60), "program headers"),
        (elf(phnum=0), "PT_LOAD"),
        (elf(ptype=6), "PT_LOAD"),
        (elf(memsz=0, filesz=0), "PT_LOAD"),
        (elf(filesz=3), "outside the file"),
        (elf(off=1 << 62), "outside the file"),
        (elf(filesz=2, memsz=1), "outside the file"),
        (elf(paddr=63 << 20, memsz=2 << 20), ""),
        (elf(paddr=1 << 45), ""),
        (elf(paddr=0xFFFFFFFFFFFFFFFF), ""),
        (elf(memsz=1 << 62), ""),
        (elf(paddr=0xA0000), ""),
    ],
)
def test_elf_files_that_are_refused(image: bytes, words: str) -> None:
    assert words in refused(Boot(image))


def test_segments_that_are_all_the_same_bytes() -> None:
    """65,535 of them would need 65,535 times the file in memory."""
    many = 40_000
    one = struct.pack("<IIQQQQQQ", 1, 5, 0, 0x100000, 0x100000, 64 + 56 * many, 64 + 56 * many, 1)
    image = elf(phnum=many)[:64] + one * many
    with pytest.raises(ImageError, match="segment 1 has contents in common"):
        Elf.parse(image)
    with pytest.raises(BzImageError, match="larger than the file"):
        flatten(image)


def test_pvh_is_asked_for_but_not_there() -> None:
    assert "PVH" in refused(Boot(elf(), entry="pvh"))


def test_pvh_start_info() -> None:
    initrd = b"initramfs" * 1000
    with Machine(256 << 20) as m:
        m.boot(Boot(selftest_image(), "only=cpu", initrd))
        r = m.registers()
        at = r["rbx"]
        info = m.memory.read(at, 56).tobytes()
        magic, version, flags, modules, module_list, cmdline, rsdp, memmap, entries, _ = struct.unpack(
            "<IIIIQQQQII", info
        )
        assert (magic, version, flags, modules) == (0x336EC578, 1, 0, 1)
        assert m.memory.read(cmdline, 9).tobytes() == b"only=cpu\0"
        assert m.memory.read(rsdp, 8).tobytes() == b"RSD PTR "
        start, size, _, _ = struct.unpack("<QQQQ", m.memory.read(module_list, 32).tobytes())
        assert m.memory.read(start, size).tobytes() == initrd
        table = m.memory.read(memmap, 24 * entries).tobytes()
        found = [Range(*struct.unpack_from("<QQI", table, 24 * i)) for i in range(entries)]
        assert found == e820(256 << 20, m.memory.low)
        # 32-bit protected mode without paging, flat segments, a TSS (Xen's PVH entry)
        assert (r["cr0"], r["cr4"], r["efer"]) == (0x11, 0, 0)
        assert (r["cs.limit"], r["ds.limit"], r["tr.limit"]) == (0xFFFFFFFF, 0xFFFFFFFF, 0x67)
        assert not r["hflags"] & (1 << 14 | 1 << 15)


def test_a_machine_boots_once() -> None:
    with Machine(64 << 20) as m:
        m.boot(Boot(elf()))
        m.run(until=1)
        with pytest.raises(ConfigError, match="already run"):
            m.boot(Boot(elf()))


def test_booting_twice_gives_the_same_machine() -> None:
    hashes = set()
    for _ in range(2):
        with Machine(64 << 20) as m:
            m.boot(Boot(bzimage(), "a b c", b"initrd", [(1, b"data")]))
            hashes.add(m.state_hash())
    assert len(hashes) == 1
    with Machine(64 << 20) as m:
        m.boot(Boot(bzimage(), "a b d", b"initrd", [(1, b"data")]))
        assert m.state_hash() not in hashes


def test_large_setup_data() -> None:
    payload = bytes(range(256)) * 1800  # 450 KiB
    with Machine(64 << 20) as m:
        m.boot(Boot(bzimage(), setup_data=[(1, payload), (2, b"after it")]))
        (at,) = struct.unpack_from("<Q", params_of(m), 0x250)
        assert m.memory.read(at + 16, len(payload)).tobytes() == payload
    assert "setup_data" in refused(Boot(bzimage(), setup_data=[(1, payload * 2)]))
    assert "setup_data" in refused(Boot(bzimage(), setup_data=[(1, payload), (2, bytes(100_000))]))
