"""The kernel's kexec_file_load in a process of its own: which images it takes, where it puts what, what it
tells the next kernel, and what is left when it refuses. Offsets: Linux x86 boot protocol 2.15.
"""

from __future__ import annotations

import ctypes
import errno
import hashlib
import struct
from collections.abc import Sequence

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from kernels import build
from tests.guest.kexec_host import HOSTED, MIB, PAGE, BzImage, Image, Kexec, Segment

SCRATCH = ((64 * MIB, 64 * MIB), (192 * MIB, 0), (192 * MIB, 32 * MIB))
PURGATORY_REGION = 56  # struct purgatory_region
LOWEST = {"scratch": 0, "purgatory": 0x3000, "parameters": 0x3000, "kernel": MIB, "initrd": 16 * MIB}


@pytest.fixture(scope="module")
def kexec() -> Kexec:
    path = build.build(build.project_root(), HOSTED)
    assert path is not None
    return Kexec(path)


def named(image: Image) -> dict[str, Segment]:
    names = ["scratch"] if image.fdt else []
    names += ["purgatory", "parameters", "kernel", "initrd"]
    return dict(zip(names, image.segments, strict=False))


def arrived(kexec: Kexec) -> dict[int, bytes]:
    """Memory by page, as it would be after the copies."""
    pages: dict[int, bytes] = {}
    for to, source in kexec.copies():
        assert to not in pages, f"{to:#x} is copied to twice"
        pages[to] = kexec.read(source, PAGE)
    return pages


def contents(pages: dict[int, bytes], segment: Segment) -> bytes:
    return b"".join(pages[at] for at in range(segment.start, segment.end, PAGE))


# ---- what the next kernel finds ---------------------------------------------------------------------------


def test_segments_arrive_with_zeros_behind_them(kexec: Kexec) -> None:
    kexec.reset(scratch=SCRATCH)
    bz = BzImage(payload=bytes(range(251)) * 77, init_size=0x123457)
    initrd = b"070701" * 3000
    assert kexec.load(bz.build(), initrd) == 0
    image = kexec.image()
    parts, pages = named(image), arrived(kexec)
    assert len(pages) == sum(s.size for s in image.segments) // PAGE
    file = bz.build()
    assert contents(pages, parts["kernel"]) == file[5 * 512 :].ljust(0x124000, b"\0")
    assert contents(pages, parts["initrd"]) == initrd.ljust(parts["initrd"].size, b"\0")
    array = b"".join(struct.pack("<QQ", *area) for area in SCRATCH)
    assert contents(pages, parts["scratch"]) == array.ljust(PAGE, b"\0")
    assert parts["scratch"].contents == 48


def test_boot_params(kexec: Kexec) -> None:
    memory = [(0, 0x9F000), (MIB, 255 * MIB), (4 << 30, 1 << 30)]
    kexec.reset(memory=memory, scratch=SCRATCH, fdt=0x527000)
    kexec.lib.host_set_rsdp(0xF5A10)
    cmdline = "console=ttyS0 kho=on ".ljust(62, "x")
    file = BzImage().build()
    assert kexec.load(file, b"i" * 5000, cmdline) == 0
    image = kexec.image()
    parts, pages = named(image), arrived(kexec)
    at = parts["parameters"].start
    params = contents(pages, parts["parameters"])

    def word(where: int) -> int:
        return int.from_bytes(params[where : where + 4], "little")

    header = bytearray(file[0x1F1:0x26C])
    header[0x210 - 0x1F1] = 0xD0  # type_of_loader
    header[0x211 - 0x1F1] = 0  # loadflags
    struct.pack_into("<II", header, 0x218 - 0x1F1, parts["initrd"].start, 5000)
    struct.pack_into("<I", header, 0x228 - 0x1F1, at + 0x1000)
    struct.pack_into("<Q", header, 0x250 - 0x1F1, at + 0x1060)
    assert params[0x1F1:0x26C] == header
    assert word(0xC0) == word(0xC4) == word(0xC8) == 0
    assert params[0x70:0x78] == (0xF5A10).to_bytes(8, "little")
    assert params[0x1E8] == 3
    table = b"".join(struct.pack("<QQI", *r, 1) for r in memory)
    assert params[0x2D0 : 0x2D0 + 60] == table
    written = [(0x70, 0x78), (0xC0, 0xCC), (0x1E8, 0x1E9), (0x1F1, 0x26C), (0x2D0, 0x30C)]
    rest = bytearray(params[:0x1000])
    for a, b in written:
        rest[a:b] = bytes(b - a)
    assert not any(rest), f"boot_params has something at {next(i for i, b in enumerate(rest) if b):#x}"
    assert params[0x1000:0x1040] == cmdline.encode() + b"\0\0"
    assert params[0x1040:0x1060] == bytes(0x20)
    entry = struct.pack("<QIIQQQQ", 0, 10, 32, 0x527000, 4096, parts["scratch"].start, 48)
    assert params[0x1060:] == entry.ljust(len(params) - 0x1060, b"\0")
    assert parts["parameters"].contents == 0x1060 + 48


def test_addresses_above_4g_are_split(kexec: Kexec) -> None:
    kexec.reset(memory=[(MIB, 63 * MIB), (4 << 30, 1 << 30)])
    assert kexec.load(BzImage().build(), b"i" * 10) == 0
    parts, pages = named(kexec.image()), arrived(kexec)
    params = contents(pages, parts["parameters"])
    for low, high, expected in (
        (0x218, 0xC0, parts["initrd"].start),
        (0x21C, 0xC4, 10),
        (0x228, 0xC8, parts["parameters"].start + 0x1000),
    ):
        value = (
            int.from_bytes(params[low : low + 4], "little")
            | int.from_bytes(params[high : high + 4], "little") << 32
        )
        assert value == expected, f"the pair at {low:#x}, {high:#x}"
    assert parts["initrd"].start > 4 << 30


@pytest.mark.parametrize("length", [0, 1, 17, 62, 63, 500, 2046])
def test_kho_entry_follows_the_command_line(kexec: Kexec, length: int) -> None:
    kexec.reset(scratch=SCRATCH)
    assert kexec.load(BzImage().build(), cmdline="c" * length) == 0
    parts, pages = named(kexec.image()), arrived(kexec)
    params = contents(pages, parts["parameters"])
    link = int.from_bytes(params[0x250:0x258], "little") - parts["parameters"].start
    assert link == (0x1000 + length + 1 + 30 + 15) & ~15
    assert params[link : link + 16] == struct.pack("<QII", 0, 10, 32)
    assert params[0x1000 : 0x1000 + length + 1] == b"c" * length + b"\0"


def test_without_kho_nothing_leads_to_its_entry(kexec: Kexec) -> None:
    kexec.reset()
    assert kexec.load(BzImage().build(), cmdline=None) == 0
    image = kexec.image()
    parts, pages = named(image), arrived(kexec)
    params = contents(pages, parts["parameters"])
    assert params[0x250:0x258] == bytes(8)
    assert params[0x1020:] == struct.pack("<QII32x", 0, 10, 32).ljust(len(params) - 0x1020, b"\0")
    assert params[0x218:0x220] == bytes(8), "an initrd that is not there"
    assert len(image.segments) == 3


def test_purgatory_is_told_what_to_verify(kexec: Kexec) -> None:
    kexec.reset(scratch=SCRATCH)
    assert kexec.load(BzImage(init_size=0x54321).build(), b"i" * 12345) == 0
    image = kexec.image()
    parts, pages = named(image), arrived(kexec)
    program = contents(pages, parts["purgatory"])
    assert image.start == parts["purgatory"].start
    assert program[16:24] == b"URGATORY"
    assert struct.unpack_from("<QQQQ", program, 24) == (
        parts["kernel"].start + 0x200, parts["parameters"].start, 4, 0,
    )  # fmt: skip
    assert image.kernel == parts["kernel"].start
    numbers = [0, 2, 3, 4]
    for i, number in enumerate(numbers):
        start, size, segment = struct.unpack_from("<QQQ", program, 88 + PURGATORY_REGION * i)
        digest = program[88 + PURGATORY_REGION * i + 24 :][:32]
        expected = image.segments[number]
        assert (start, size, segment) == (expected.start, expected.size, number)
        assert digest == hashlib.sha256(contents(pages, expected)).digest(), f"segment {number}"


def test_a_digest_can_be_broken_on_purpose(kexec: Kexec) -> None:
    kexec.reset(scratch=SCRATCH)
    kexec.lib.host_break(6)
    assert kexec.load(BzImage().build(), b"i") == 0
    parts, pages = named(kexec.image()), arrived(kexec)
    program = contents(pages, parts["purgatory"])
    wrong = [
        i
        for i, number in enumerate([0, 2, 3, 4])
        if program[88 + PURGATORY_REGION * i + 24 :][:32]
        != hashlib.sha256(contents(pages, kexec.image().segments[number])).digest()
    ]
    assert wrong == [2]


def test_page_tables_map_all_memory_one_to_one(kexec: Kexec) -> None:
    kexec.reset(memory=[(0, 0x9F000), (MIB, 2 << 30), (4 << 30, 3 << 30), (600 << 30, 2 << 30)])
    assert kexec.load(BzImage().build()) == 0
    image = kexec.image()
    for address in (0, 0x3000, MIB, 0xFEE00000, (7 << 30) - 1, 512 << 30, (602 << 30) - 1):
        table = image.pgd
        for shift in (39, 30, 21):
            entry = kexec.word(table + 8 * (address >> shift & 511))
            assert entry & 0x23 == 0x23, f"{address:#x} is not mapped writable at level {shift}"
            assert not entry >> 63, f"{address:#x} is not executable"
            table = entry & 0xFFFFFFFFFF000
            if entry & 0x80:
                assert shift < 39
                assert entry & 0x40, "the processor would set the dirty bit at the jump"
                assert table | address & ((1 << shift) - 1) == address
                break
        else:
            raise AssertionError(f"{address:#x}: no page")
    upper = [kexec.word(image.pgd + 8 * i) for i in range(256, 512)]
    assert upper == [0x1000 * i | 0x63 for i in range(256, 512)], "the kernel's half"


# ---- places -----------------------------------------------------------------------------------------------


def expected_place(
    areas: Sequence[tuple[int, int]], taken: Sequence[Segment], size: int, align: int, lowest: int
) -> int | None:
    """The highest free place in the first area that has one, by looking at each page."""
    size = -(-size // PAGE) * PAGE
    align = max(align, PAGE)
    for start, length in areas:
        at = (start + length - size) // align * align
        while at >= max(start, lowest):
            if not any(at < s.end and s.start < at + size for s in taken):
                return at
            at = (at - PAGE) // align * align
    return None


def check_places(
    kexec: Kexec, areas: Sequence[tuple[int, int]], kho: bool, bz: BzImage, initrd: int, result: int
) -> None:
    """The segments of `result` are where they must be, or there is a reason that they are not there."""
    purgatory = (
        next(s.contents for s in [named(kexec.image()).get("purgatory")] if s) if result == 0 else 12000
    )
    wanted = [("scratch", 16 * len(areas), 0x10000, 0)] if kho else []
    wanted += [
        ("purgatory", purgatory + 2048, PAGE, 0x3000),
        ("parameters", 0x1000 + 14 + 30 + 48, 16, 0x3000),
        ("kernel", bz.init_size, bz.alignment, max(bz.preferred, MIB)),
    ]
    wanted += [("initrd", initrd, PAGE, 16 * MIB)] if initrd else []
    taken: list[Segment] = []
    for name, size, align, lowest in wanted:
        at = expected_place(areas, taken, size, align, lowest)
        if at is None:
            assert result == -errno.EADDRNOTAVAIL, f"there is no place for the {name}"
            return
        taken.append(Segment(at, -(-size // PAGE) * PAGE, 0))
    assert result == 0, kexec.log
    got = [(s.start, s.size) for s in kexec.image().segments]
    assert got == [(s.start, s.size) for s in taken]


@st.composite
def ranges(draw: st.DrawFn, grain: int) -> list[tuple[int, int]]:
    """Disjoint ranges below 256 MiB, some of them empty, in any order of addresses."""
    edges = sorted(draw(st.sets(st.integers(0, (256 * MIB) // grain), min_size=2, max_size=8)))
    pairs = list(zip(edges[::2], edges[1::2], strict=False))
    out = [(a * grain, (b - a) * grain) for a, b in pairs]
    out += [(draw(st.sampled_from(edges)) * grain, 0)] if draw(st.booleans()) else []
    return draw(st.permutations(out))


BZIMAGES = st.builds(
    BzImage,
    init_size=st.integers(6000, 40 * MIB),
    alignment=st.integers(0, 24).map(lambda n: 1 << n),
    preferred=st.integers(0, 128 * MIB) | st.just(0x1000000) | st.just(2**64 - 1),
)


@settings(max_examples=150)
@given(areas=ranges(4 * MIB), bz=BZIMAGES, initrd=st.integers(0, 20 * MIB) | st.just(0))
@example(areas=[(64 * MIB, 4 * MIB)], bz=BzImage(init_size=4 * MIB), initrd=0)
@example(areas=[(0, 4 * MIB)], bz=BzImage(preferred=0), initrd=0)
def test_places_in_scratch(kexec: Kexec, areas: list[tuple[int, int]], bz: BzImage, initrd: int) -> None:
    kexec.reset(memory=[(0, 256 * MIB)], scratch=areas)
    result = kexec.load(bz.build(), b"i" * initrd, "console=ttyS0")
    check_places(kexec, areas, True, bz, initrd, result)
    if result == 0:
        for s in kexec.image().segments:
            assert any(a <= s.start and s.end <= a + n for a, n in areas), f"{s} is in no single scratch area"


@settings(max_examples=100)
@given(memory=ranges(4096), bz=BZIMAGES, initrd=st.integers(0, 20 * MIB) | st.just(0))
def test_places_in_ram(kexec: Kexec, memory: list[tuple[int, int]], bz: BzImage, initrd: int) -> None:
    memory = sorted(r for r in memory if r[1])
    kexec.reset(memory=memory)
    result = kexec.load(bz.build(), b"i" * initrd, "console=ttyS0")
    check_places(kexec, memory[::-1], False, bz, initrd, result)


def test_pages_in_the_way_are_not_used(kexec: Kexec) -> None:
    """Without KHO the allocator gives out pages that a segment will overwrite."""
    top = 256 * MIB
    kexec.reset(memory=[(0, top)], pages=(top - 4 * MIB, top + 64 * MIB))
    assert kexec.load(BzImage(init_size=MIB).build(), b"i" * MIB) == 0
    image = kexec.image()
    assert image.segments[0].end == top
    used = {source for _, source in kexec.copies()} | kexec.list_pages() | {image.code, image.pgd}
    for page in used:
        for s in image.segments:
            assert not s.start <= page < s.end, (
                f"page {page:#x} is overwritten by the segment at {s.start:#x}"
            )
    before = kexec.outstanding
    kexec.lib.kexec_unload()
    assert kexec.outstanding == 0, f"{before} allocations were made"


def test_large_images_have_several_list_pages(kexec: Kexec) -> None:
    kexec.reset(memory=[(0, 256 * MIB)])
    assert kexec.load(BzImage().build(), bytes(9 * MIB)) == 0
    assert len(kexec.list_pages()) == -(-(9 * 256 + 16 + 4 + 2 + 4) // 511)
    assert len(kexec.copies()) == sum(s.size for s in kexec.image().segments) // PAGE


# ---- refused ----------------------------------------------------------------------------------------------

ENOEXEC, EINVAL, EADDRNOTAVAIL = -errno.ENOEXEC, -errno.EINVAL, -errno.EADDRNOTAVAIL
BAD = {
    "HdrS": (BzImage(patch={0x202: b"HdrT"}), ENOEXEC, "HdrS"),
    "boot flag": (BzImage(patch={0x1FE: b"\x55\xab"}), ENOEXEC, "boot flag 0xab55"),
    "protocol 2.11": (BzImage(version=0x20B), ENOEXEC, "boot protocol 2.11"),
    "protocol 1.15": (BzImage(version=0x10F), ENOEXEC, "boot protocol 1.15"),
    "loaded low": (BzImage(loadflags=0x80), ENOEXEC, "LOADED_HIGH"),
    "32-bit": (BzImage(xloadflags=2), ENOEXEC, "XLF_KERNEL_64"),
    "below 4G": (BzImage(xloadflags=1), ENOEXEC, "XLF_CAN_BE_LOADED_ABOVE_4G"),
    "not relocatable": (BzImage(relocatable=0), ENOEXEC, "not relocatable"),
    "short header": (BzImage(jump=0x61), ENOEXEC, "header ends at 0x263"),
    "long header": (BzImage(jump=0x8F), ENOEXEC, "header ends at 0x291"),
    "255 setup sectors": (BzImage(patch={0x1F1: b"\xff"}), ENOEXEC, "truncated"),
    "syssize": (BzImage(syssize=376), ENOEXEC, "truncated"),
    "syssize 2^32-1": (BzImage(syssize=0xFFFFFFFF), ENOEXEC, "truncated"),
    "no payload": (BzImage(payload=b""), ENOEXEC, "truncated"),
    "init_size 0": (BzImage(init_size=0), EINVAL, "init_size 0"),
    "init_size too small": (BzImage(init_size=0x1000), EINVAL, "init_size 0x1000"),
    "init_size 4 GiB": (BzImage(init_size=0xFFFFFFFF), EADDRNOTAVAIL, "no place for the kernel"),
    "alignment 0": (BzImage(alignment=0), EINVAL, "alignment 0"),
    "alignment odd": (BzImage(alignment=0x300000), EINVAL, "alignment 0x300000"),
    "alignment 2 GiB": (BzImage(alignment=1 << 31), EADDRNOTAVAIL, "no place for the kernel"),
    "preferred 2^64-1": (BzImage(preferred=2**64 - 1), EADDRNOTAVAIL, "no place for the kernel"),
    "no command line": (BzImage(cmdline_size=0), EINVAL, "command line"),
}


@pytest.mark.parametrize("what", BAD)
@pytest.mark.parametrize("kho", [False, True])
def test_bad_images_are_refused_and_the_loaded_one_stays(kexec: Kexec, what: str, kho: bool) -> None:
    bz, expected, words = BAD[what]
    kexec.reset(scratch=SCRATCH if kho else None)
    assert kexec.load(BzImage().build(), b"first") == 0
    before, pages = kexec.outstanding, arrived(kexec)
    sources = kexec.copies()
    kexec.lib.host_clear_log()
    assert kexec.load(bz.build(), b"second") == expected
    assert words in kexec.log
    assert kexec.outstanding == before, "memory of the refused image was not given back"
    assert kexec.lib.kexec_is_loaded()
    assert {to: kexec.read(source, PAGE) for to, source in sources} == pages, "the image before was touched"


@pytest.mark.parametrize("size", [0, 1, 511, 512, 1023])
def test_too_short(kexec: Kexec, size: int) -> None:
    kexec.reset()
    assert kexec.load(BzImage().build()[:size]) == ENOEXEC
    assert f"{size} bytes are too few" in kexec.log


def test_every_truncation_is_refused(kexec: Kexec) -> None:
    kexec.reset()
    file = BzImage(payload=b"x" * 256).build()
    for size in range(1024, len(file)):
        assert kexec.load(file[:size]) == ENOEXEC, f"{size} of {len(file)} bytes were accepted"
    assert kexec.load(file) == 0


@pytest.mark.parametrize(("sectors", "real"), [(0, 4), (1, 1), (2, 2), (39, 39), (255, 255)])
def test_setup_sectors(kexec: Kexec, sectors: int, real: int) -> None:
    kexec.reset()
    bz = BzImage(payload=b"payload!" * 64, setup_sects=sectors)
    assert kexec.load(bz.build()) == 0
    parts, pages = named(kexec.image()), arrived(kexec)
    assert len(bz.build()) == (real + 1) * 512 + 512
    assert contents(pages, parts["kernel"])[:513] == b"payload!" * 64 + b"\0"


@pytest.mark.parametrize(("length", "expected"), [(2045, 0), (2046, 0), (2047, EINVAL), (1 << 20, EINVAL)])
def test_command_line_length(kexec: Kexec, length: int, expected: int) -> None:
    kexec.reset()
    assert kexec.load(BzImage().build(), cmdline="c" * length) == expected
    assert ("the kernel takes 2047" in kexec.log) == (expected != 0)


def test_huge_command_line_of_a_kernel_that_takes_it(kexec: Kexec) -> None:
    kexec.reset()
    assert kexec.load(BzImage(cmdline_size=1 << 20).build(), cmdline="c" * 100000) == 0
    assert named(kexec.image())["parameters"].contents == (0x1000 + 100001 + 30 + 15 & ~15) + 48


@pytest.mark.parametrize(
    ("scratch", "pages"),
    [(SCRATCH, None), (None, None), (None, (256 * MIB - 2 * PAGE, 300 * MIB))],
    ids=["KHO", "without", "pages in the way"],
)
def test_every_allocation_may_fail(
    kexec: Kexec, scratch: Sequence[tuple[int, int]] | None, pages: tuple[int, int] | None
) -> None:
    file, n = BzImage(init_size=0x8000).build(), 0
    while True:
        kexec.reset(scratch=scratch, pages=pages)
        kexec.lib.host_fail_after(n)
        result = kexec.load(file, b"i" * 9000)
        if result == 0:
            break
        assert result == -errno.ENOMEM, f"allocation {n}"
        assert kexec.outstanding == 0, f"allocation {n} failed: memory was lost"
        assert not kexec.lib.kexec_is_loaded()
        n += 1
    assert n > 12
    kexec.lib.kexec_unload()
    assert kexec.outstanding == 0


def test_no_page_outside_the_destinations_is_left(kexec: Kexec) -> None:
    kexec.reset(memory=[(0, 256 * MIB)], pages=(255 * MIB, 256 * MIB))
    assert kexec.load(BzImage().build(), b"i" * 2 * MIB) == -errno.ENOMEM
    assert kexec.outstanding == 0


def test_a_second_load_replaces_the_first(kexec: Kexec) -> None:
    kexec.reset(scratch=SCRATCH)
    assert kexec.load(BzImage().build(), b"i" * MIB) == 0
    large = kexec.outstanding
    assert kexec.load(BzImage().build(), b"i") == 0
    assert kexec.outstanding <= large - 255


def test_busy(kexec: Kexec) -> None:
    kexec.reset()
    assert kexec.lib.host_lock()
    assert kexec.load(BzImage().build()) == -errno.EBUSY
    assert kexec.lib.kernel_kexec() == -errno.EBUSY
    kexec.lib.host_unlock()
    assert kexec.load(BzImage().build()) == 0


def test_kexec_without_an_image(kexec: Kexec) -> None:
    kexec.reset()
    assert kexec.lib.kernel_kexec() == EINVAL
    assert kexec.load(BzImage().build()) == 0, "the lock was kept"


def test_devices_that_came_last_are_shut_down_first_and_once(kexec: Kexec) -> None:
    assert kexec.lib.host_shutdown() == b"b a "


# ---- the digest -------------------------------------------------------------------------------------------


def sha256(kexec: Kexec, data: bytes, sizes: Sequence[int]) -> bytes:
    assert sum(sizes) == len(data)
    out = ctypes.create_string_buffer(32)
    kexec.lib.host_sha256(data, (ctypes.c_uint64 * len(sizes))(*sizes), len(sizes), out)
    return out.raw


def test_sha256_of_every_length(kexec: Kexec) -> None:
    data = bytes((i * 37 + i // 256) & 255 for i in range(1000))
    for length in [*range(301), 511, 512, 513, 1000]:
        assert sha256(kexec, data[:length], [length]) == hashlib.sha256(data[:length]).digest(), (
            f"{length} bytes"
        )


def test_sha256_known_answers(kexec: Kexec) -> None:
    """FIPS 180-4 examples, so that hashlib is not the only witness."""
    abc = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    two = "248d6a61d20638b8e5c026930c3e6039a33ce45964ff2167f6ecedd419db06c1"
    assert sha256(kexec, b"abc", [3]).hex() == abc
    assert sha256(kexec, b"abcdbcdecdefdefgefghfghighijhijkijkljklmklmnlmnomnopnopq", [56]).hex() == two


@given(st.lists(st.integers(0, 200), max_size=12), st.integers(0, 2**32 - 1))
def test_sha256_in_pieces(kexec: Kexec, sizes: list[int], seed: int) -> None:
    data = hashlib.shake_128(seed.to_bytes(4, "little")).digest(sum(sizes))
    assert sha256(kexec, data, sizes) == hashlib.sha256(data).digest()
