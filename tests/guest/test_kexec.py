"""Kexec on the machine: our releases into each other and into Linux, what the jump writes and costs, the
state in which the next kernel is entered, and the purgatory's refusals."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from emu import Machine
from emu.boot import Boot
from emu.debug import guest, kexec
from emu.debug.layout import Layouts
from emu.debug.sdt import Probes
from emu.initramfs import Initramfs
from emu.machine import Stop, StopKind
from kernels.build import build_all, project_root
from tests.guest.running import RELEASES, elf
from tests.linux.build import required
from tests.oracles import require

PAIRS = [(a, b) for a in RELEASES for b in RELEASES]
PAGE = 4096
DIGEST_PER_BYTE_MAX = 43.5
"""Instructions of the purgatory for each byte; that of Linux 7.2.13 needs 54.4."""
COPY_PER_PAGE_MAX = 521
"""512 of them are the copy itself."""
LIMIT = 3_000_000_000


def bzimage(release: str) -> bytes:
    return elf(release).with_suffix(".bzImage").read_bytes()


def chain(*lines: str, files: dict[str, bytes] | None = None) -> bytes:
    """An initramfs that leads through these images."""
    archive = Initramfs()
    for name in RELEASES:
        archive.add_file(f"/boot/{name}", bzimage(name))
    for path, data in (files or {}).items():
        archive.add_file(path, data, 0o755)
    archive.add_file("/boot/chain", "".join(f"{line}\n" for line in lines).encode())
    return archive.build()


@dataclass
class Entered:
    """State at the first instruction of the next kernel."""

    instructions: int
    registers: dict[str, int]


@dataclass
class Watched:
    """A run with its first jump: the image, and the numbers of the instructions at which things began."""

    machine: Machine
    image: kexec.Image | None = None
    jump: int = 0
    purgatory: int = 0
    entered: Entered | None = None
    changed: set[int] = field(default_factory=set)
    """pages written between the jump and the purgatory"""
    stop: Stop | None = None

    @property
    def text(self) -> str:
        return self.machine.console.decode("ascii", "replace").replace("\r\n", "\n")

    def run(self) -> str:
        self.stop = self.machine.run(max_instructions=LIMIT)
        return self.text


@contextmanager
def watched(
    release: str,
    initramfs: bytes,
    cmdline: str = "console=ttyS0 kho=on",
    *,
    memory_mib: int = 256,
    at_jump: Callable[[Machine, kexec.Image], None] | None = None,
) -> Iterator[Watched]:
    """A machine that boots the release's bzImage, its first jump watched. `at_jump` is called there."""
    (probe,) = Probes.read(elf(release)).at("kexec:jump")
    with Machine(memory_mib << 20) as m:
        m.boot(Boot(kernel=bzimage(release), initrd=initramfs, cmdline=cmdline))
        seen = Watched(m)

        def jump(m: Machine, address: int) -> None:
            if seen.image is not None:
                return
            image = kexec.read(m, probe.read(m)[0], elf(release))
            seen.image, seen.jump = image, m.instructions
            m.snapshot()
            if at_jump is not None:
                at_jump(m, image)
            m.probe(image.start, purgatory)
            assert image.kernel is not None
            m.probe(image.kernel + 0x200, kernel)

        def purgatory(m: Machine, address: int) -> None:
            if not seen.purgatory:
                seen.purgatory = m.instructions
                seen.changed = set(m.memory.dirty())

        def kernel(m: Machine, address: int) -> None:
            if seen.entered is None:
                seen.entered = Entered(m.instructions, dict(m.registers()))

        m.probe(probe.address, jump)
        yield seen


def scratch(text: str) -> list[tuple[int, int]]:
    """Memory that the next kernel reports as scratch: (start, end)."""
    found = re.findall(r"\[mem 0x([0-9a-f]+)-0x([0-9a-f]+)\] scratch", text)
    return [(int(a, 16), int(b, 16) + 1) for a, b in found]


@pytest.mark.parametrize(("first", "second"), PAIRS)
def test_our_kernels_start_each_other(first: str, second: str) -> None:
    with watched(first, chain(f"/boot/{second}")) as w:
        text = w.run()
        image, entered = w.image, w.entered
        assert w.stop is not None and w.stop.kind is StopKind.POWER_OFF, f"{w.stop}\n{text[-2000:]}"
        assert text.rstrip().endswith("luemu: verdict ok"), text[-2000:]
        assert text.count("kexec_core: Starting new kernel\n") == 1
        assert image is not None and entered is not None

        areas = scratch(text)
        assert areas, "the second kernel found no scratch"
        for start, size, _ in image.segments:
            assert any(a <= start and start + size <= b for a, b in areas), f"{start:#x} is outside scratch"
        explained = {p // PAGE for p in (*image.control_pages, *image.stack)}
        for start, size, _ in image.segments:
            explained |= set(range(start // PAGE, (start + size) // PAGE))
        assert w.changed <= explained, f"the jump wrote to page {min(w.changed - explained) * PAGE:#x}"
        pages = sum(size for _, size, _ in image.segments) // PAGE
        assert w.purgatory - w.jump <= COPY_PER_PAGE_MAX * pages

        verified = sum(size for start, size, _ in image.segments if start != image.start)
        assert (entered.instructions - w.purgatory) / verified <= DIGEST_PER_BYTE_MAX


def test_state_in_which_the_next_kernel_is_entered() -> None:
    """Linux x86 boot protocol, "64-bit Boot Protocol"."""
    with watched("old", chain("/boot/new")) as w:
        w.run()
        assert w.image is not None and w.entered is not None
        r = w.entered.registers
        assert w.image.kernel_segment is not None and r["rip"] == w.image.kernel_segment + 0x200
        assert r["rsi"] == w.image.segments[2][0], "rsi is boot_params"
        assert not r["rflags"] & 0x200, "interrupts are on"
        assert not r["rflags"] & 0x400, "the direction flag is set"
        assert r["cr3"] in w.image.control_pages
        assert r["cr0"] & 0x80000001 == 0x80000001 and r["cr4"] == 0x20 and r["efer"] & 0x400
        assert r["cs.selector"] == 0x10
        assert {r[f"{name}.selector"] for name in ("ds", "es", "ss")} == {0x18}
        assert {r[f"{name}.base"] for name in ("cs", "ds", "es", "ss")} == {0}


@pytest.mark.parametrize(
    "lines", [["old", "new", "old"], ["old", "old"], ["new", "new", "new", "old", "new"]]
)
def test_chains(lines: list[str]) -> None:
    with watched("new", chain(*(f"/boot/{name}" for name in lines))) as w:
        text = w.run()
        assert text.rstrip().endswith("luemu: verdict ok"), text[-2000:]
        assert text.count("Starting new kernel") == len(lines)
        found = re.findall(r'^luemu kernel .*release "(\w+)"', text, re.M)
        assert found == ["new", *lines]
        assert re.findall(r"^KHO: exec from: \S+ \(count (\d+)\)", text, re.M) == [
            str(i + 1) for i in range(len(lines))
        ]


# ---- refusals ---------------------------------------------------------------------------------------------


def refuses(w: Watched, number: int) -> kexec.Refused:
    """Run, and see that the purgatory halts for ever because of this segment."""
    text = w.run()
    assert w.image is not None and w.entered is None, "the next kernel was entered"
    assert w.stop is not None and w.stop.kind is StopKind.DEADLOCK, w.stop
    start, size, _ = w.image.segments[number]
    message = f"purgatory: sha256 digest mismatch in segment {number} [mem {start:#x}-{start + size - 1:#x}]"
    assert message in text.splitlines()[-1], text[-500:]
    refused = kexec.refused(w.machine, w.image)
    assert refused is not None
    assert (refused.segment, refused.start, refused.size) == (number, start, size)
    assert refused.expected != refused.computed
    return refused


@pytest.mark.parametrize(("item", "number"), [(0, 0), (1, 2), (2, 3), (3, 4), (7, 4)])
def test_a_wrong_digest_stops_the_machine(item: int, number: int) -> None:
    with watched("old", chain("/boot/new"), f"console=ttyS0 kho=on break=digest:{item}") as w:
        refused = refuses(w, number)
        assert bytes([refused.expected[0] ^ 1]) + refused.expected[1:] == refused.computed


def source_of(m: Machine, image: kexec.Image, address: int) -> int:
    """Page that will be copied to this page."""
    entry, at, to = 2 | image.control_pages[0], 0, 0
    while not entry & 4:
        if entry & 2:
            at = entry & -PAGE
        elif entry & 1:
            to = entry & -PAGE
        else:
            if to == address:
                return entry & -PAGE
            to += PAGE
        entry = int.from_bytes(m.memory.read(at, 8).tobytes(), "little")
        at += 8
    raise AssertionError(f"nothing is copied to {address:#x}")


@pytest.mark.parametrize("number", [0, 2, 3, 4])
@pytest.mark.parametrize("last", [False, True])
def test_a_byte_that_changed_in_memory_stops_the_machine(number: int, last: bool) -> None:
    """In the first page of a segment, and in its last, which for the kernel is one of the zeros behind it."""

    def flip(m: Machine, image: kexec.Image) -> None:
        start, size, _ = image.segments[number]
        page = source_of(m, image, start + size - PAGE if last else start)
        at = page + (PAGE - 1 if last else 0)
        byte = int(m.memory.read(at, 1)[0])
        m.memory.write(at, bytes([byte ^ 0x80]), by="test")

    with watched("new", chain("/boot/old"), at_jump=flip) as w:
        refuses(w, number)


def test_an_image_that_runs_was_not_refused() -> None:
    seen: list[kexec.Refused | None] = []

    def at_jump(m: Machine, image: kexec.Image) -> None:
        assert image.kernel is not None
        m.probe(image.kernel + 0x200, lambda m, address: seen.append(kexec.refused(m, image)))

    with watched("old", chain("/boot/new"), at_jump=at_jump) as w:
        w.run()
        assert seen == [None]


def test_purgatory_layout_is_what_the_host_reads() -> None:
    path = build_all(project_root(), ["purgatory"])["purgatory"]
    layouts = Layouts.read(path)
    names = ("magic", "kernel", "boot_params", "nr_regions", "failed", "computed", "region")
    assert [layouts.offset("purgatory", name) for name in names] == [16, 24, 32, 40, 48, 56, 88]
    members = ("start", "size", "segment", "digest")
    assert [layouts.offset("purgatory_region", name) for name in members] == [0, 8, 16, 24]
    assert layouts.struct("purgatory_region").size == 56


@pytest.mark.parametrize(
    ("image", "error", "words"),
    [
        (b"", -8, "are too few for a bzImage"),
        (b"\x7fELF" + bytes(8192), -8, "not a bzImage"),
        (None, -2, "there is no kernel /boot/bad"),
    ],
)
def test_an_image_that_cannot_be_loaded_ends_the_chain(image: bytes | None, error: int, words: str) -> None:
    files = {} if image is None else {"/boot/bad": image}
    with watched("old", chain("/boot/bad", files=files)) as w:
        text = w.run()
        assert w.image is None, "there was a jump"
        assert words in text
        assert "luemu: verdict FAILED" in text
        if error != -2:
            assert f"error {error}" in text


def test_scratch_that_is_too_small() -> None:
    options = "console=ttyS0 kho=on kho_scratch=4M,0,0"
    files = {"/boot/large": bytes(5 << 20)}
    with watched("old", chain("/boot/new", files=files), options) as w:
        text = w.run()
        assert "kexec-bzImage64: no place for the initrd" in text
        assert "error -99" in text
        assert w.image is None


# ---- the image in memory ----------------------------------------------------------------------------------


def test_a_damaged_image_is_not_believed() -> None:
    layouts = Layouts.read(elf("old"))
    segment = layouts.offset("kimage", "segment")
    damages = [
        ("nr_segments", layouts.offset("kimage", "nr_segments"), 0, "0 segments"),
        ("nr_segments", layouts.offset("kimage", "nr_segments"), 17, "17 segments"),
        ("start", layouts.offset("kimage", "start"), 0, "make no sense"),
        ("kernel", layouts.offset("kimage", "kernel"), 0x1000, "its kernel is at 0x1000"),
        ("mem", segment + layouts.offset("kexec_segment", "mem"), 0x1234, "make no sense"),
        ("memsz", segment + layouts.offset("kexec_segment", "memsz"), 0, "make no sense"),
        ("bufsz", segment + layouts.offset("kexec_segment", "bufsz"), 1 << 40, "make no sense"),
        ("head", layouts.offset("kimage", "head"), 0x10, "has an entry 0x10"),
        ("head", layouts.offset("kimage", "head"), 8, "does not begin with one"),
        ("head", layouts.offset("kimage", "head"), 1 << 50 | 2, "0x4000000000000"),
        ("pgd", layouts.offset("kimage", "pgd"), 0x1000, "is not mapped"),
    ]
    seen: list[str] = []
    (probe,) = Probes.read(elf("old")).at("kexec:jump")

    def at_jump(m: Machine, image: kexec.Image) -> None:
        address = probe.read(m)[0]
        for name, offset, value, words in damages:
            at = guest.translate(m, address + offset)
            before = m.memory.read(at, 8).tobytes()
            m.memory.write(at, value.to_bytes(8, "little"), by="test")
            with pytest.raises(kexec.UnknownImage, match=words):
                kexec.read(m, address, elf("old"))
            m.memory.write(at, before, by="test")
            seen.append(name)
        with pytest.raises(kexec.UnknownImage, match="is not mapped"):
            kexec.read(m, 0x1000, elf("old"))
        assert kexec.read(m, address, elf("old")) == image

    with watched("old", chain("/boot/new"), at_jump=at_jump) as w:
        text = w.run()
        assert text.rstrip().endswith("luemu: verdict ok"), text[-2000:]
    assert seen == [name for name, *_ in damages]


# ---- without KHO, above 4 GiB, elsewhere ------------------------------------------------------------------


@pytest.mark.parametrize("memory_mib", [128, 6144])
def test_without_kho_the_next_kernel_goes_to_the_top_of_memory(memory_mib: int) -> None:
    with watched("old", chain("/boot/new"), "console=ttyS0", memory_mib=memory_mib) as w:
        text = w.run()
        assert w.image is not None and w.entered is not None, text[-2000:]
        starts = [start for start, _, _ in w.image.segments]
        assert len(starts) == 4
        assert all((start > 4 << 30) == (memory_mib > 4096) for start in starts)
        assert 'luemu kernel 7.2.2-luemu (release "new")' in text
        assert "KHO: found" not in text
        assert "kernel 1 of the chain got no handover" in text, text[-2000:]


def test_a_processor_without_pages_of_1_gib(tmp_path: Path) -> None:
    """QEMU's qemu64 has none: the page tables of the jump then have 2 MiB pages."""
    qemu = require("qemu-system-x86_64")
    initrd, serial = tmp_path / "initrd", tmp_path / "serial"
    initrd.write_bytes(chain("/boot/new", "/boot/old"))
    subprocess.run(
        [
            qemu, "-accel", "tcg", "-machine", "q35", "-cpu", "qemu64", "-m", "256",
            "-display", "none", "-nic", "none", "-no-reboot", "-serial", f"file:{serial}",
            "-kernel", elf("old"), "-initrd", initrd,
            "-append", "console=ttyS0 kho=on",
        ],
        check=True, timeout=120,
    )  # fmt: skip
    text = serial.read_text(errors="replace")
    assert "luemu: verdict ok" in text, text[-2000:]
    assert text.count("Starting new kernel") == 2


@pytest.fixture
def linux() -> dict[str, bytes]:
    """The reference Linux, with our init, as files for an initramfs."""
    found = required()
    init = build_all(project_root(), ["init"])["init"]
    return {"/boot/linux": found.bzimage.read_bytes(), "/boot/init": init.read_bytes()}


@pytest.mark.linux
@pytest.mark.parametrize("release", RELEASES)
def test_linux_is_started_with_our_handover(release: str, linux: dict[str, bytes]) -> None:
    line = "/boot/linux console=ttyS0 kho=on panic=-1 rdinit=/boot/init"
    options = "console=ttyS0 kho=on kho_scratch=16M,0,128M"
    with watched(release, chain(line, files=linux), options, memory_mib=512) as w:
        text = w.run()
        assert w.entered is not None, text[-2000:]
        assert "KHO: found kexec handover data." in text
        assert re.search(r"KHO: exec from: 7\.2\.\d-luemu \(count 1\)", text)
        assert "Linux version 7.2.13" in text
        assert "reboot: Power down" in text


@pytest.mark.linux
def test_linux_above_4_gib_without_kho(linux: dict[str, bytes]) -> None:
    lines = chain("/boot/linux console=ttyS0 panic=-1 rdinit=/boot/init", files=linux)
    with watched("new", lines, "console=ttyS0", memory_mib=5120) as w:
        text = w.run()
        assert w.entered is not None and w.image is not None, text[-2000:]
        assert w.image.kernel is not None and w.image.kernel > 4 << 30
        assert "KHO: found" not in text
        assert "Run /boot/init as init process" in text
