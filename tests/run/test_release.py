"""Kernels by name and path, what belongs to them, what they accept; chains of them."""

from __future__ import annotations

import shutil
import struct
from pathlib import Path

import pytest

import kernels
from emu.boot import BzImage
from emu.debug.chain import CHAIN_PATH, LINUX_CMDLINE, OWN_CMDLINE, Chain
from emu.debug.release import Kernel, accepted_formats, kernel_name
from emu.debug.sdt import Probes
from emu.debug.symbols import Symbols
from emu.errors import ConfigError, ImageError
from kernels.bzimage import BzImageError, flatten
from tests.cli.guests import endless_loop
from tests.run.elf import elf

BIN = kernels.BIN_DIR


# --- one kernel ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "release"), [("old", "7.2.1-luemu"), ("new", "7.2.2-luemu")])
def test_by_name(name: str, release: str) -> None:
    kernel = Kernel.open(name)
    assert (kernel.name, kernel.short, kernel.release, kernel.own) == (name, name, release, True)
    assert kernel.path == BIN / f"{name}.bzImage" and kernel.elf_path == BIN / f"{name}.elf"
    assert kernel.symbols is not None and "start_kernel" in kernel.symbols
    assert "kernel:start" in kernel.probes and "page" in kernel.layouts
    assert kernel.kexec_image == kernel.image == (BIN / f"{name}.bzImage").read_bytes()


def test_a_path_is_no_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("old").write_bytes(b"mine")
    assert kernel_name("old") == "old" and kernel_name("./old") == Path("old")
    assert Kernel.open(kernel_name("old")).own
    assert Kernel.open(kernel_name("./old")).image == b"mine"


def test_by_elf_file() -> None:
    kernel = Kernel.open(BIN / "old.elf")
    assert kernel.own and kernel.image == kernel.elf and kernel.release == "7.2.1-luemu"
    assert kernel.kexec_image == (BIN / "old.bzImage").read_bytes()
    BzImage.parse(kernel.kexec_image)


def test_a_copy_is_recognised(tmp_path: Path) -> None:
    """By its contents, when its ELF file is not beside it."""
    copy = tmp_path / "kernel"
    shutil.copy(BIN / "new.bzImage", copy)
    kernel = Kernel.open(copy)
    assert kernel.own and kernel.elf_path == BIN / "new.elf" and kernel.short == "kernel"


def test_a_kernel_and_the_elf_file_of_another(tmp_path: Path) -> None:
    shutil.copy(BIN / "new.bzImage", tmp_path / "new.bzImage")
    shutil.copy(BIN / "old.elf", tmp_path / "new.elf")
    with pytest.raises(ImageError, match="does not belong to the kernel") as e:
        Kernel.open(tmp_path / "new.bzImage")
    assert e.value.where == str(tmp_path / "new.elf")
    kernel = Kernel.open(tmp_path / "new.bzImage", BIN / "new.elf")
    assert kernel.own and kernel.elf_path == BIN / "new.elf"


def test_a_kernel_whose_elf_file_is_nowhere(tmp_path: Path) -> None:
    data = bytearray((BIN / "new.bzImage").read_bytes())
    data[-100] ^= 1
    (tmp_path / "new.bzImage").write_bytes(data)
    with pytest.raises(ImageError, match="without its ELF file beside it: give --symbols"):
        Kernel.open(tmp_path / "new.bzImage")
    assert Kernel.open(tmp_path / "new.bzImage", observe=False).own, "it runs all the same, unobserved"


def test_other_kernels(tmp_path: Path) -> None:
    kernel = Kernel.open(endless_loop(tmp_path / "loop.elf"))
    assert not kernel.own and list(kernel.probes) == [] and kernel.release == ""
    assert kernel.kexec_image == kernel.image
    (tmp_path / "text").write_text("no kernel")
    found = Kernel.open(tmp_path / "text")
    assert (found.own, found.symbols, found.release) == (False, None, "")
    with pytest.raises(ImageError, match="cannot be read"):
        Kernel.open(tmp_path / "missing")
    with pytest.raises(ImageError, match=r"not a System\.map or ELF file"):
        Kernel.open(tmp_path / "loop.elf", tmp_path / "text")


# --- what a kernel accepts ------------------------------------------------------------------------------


def test_what_our_kernels_accept() -> None:
    for name in ("old", "new"):
        assert Kernel.open(name).accepts()["kho"] == ("kho-v4",)


@pytest.mark.parametrize(
    ("data", "symbols", "expected"),
    [
        (b"x\0kho-v4\0luo-v5\0", {}, {"kho": ("kho-v4",), "luo": ("luo-v5",)}),
        (b"kho-v3\0kho-v4\0", {}, {"kho": ("kho-v3", "kho-v4")}),
        (b"\xff\xffmemfd-v2\0", {}, {"memfd": ("memfd-v2",)}),
        (b"kho-v4x\0not-kho-v4\0kho-v\0akho-v4\0", {}, {}),
        (b"kho-v4\0strange\0", {"kho_compatible": 0x2007}, {"kho": ("strange",)}),
        (b"kho-v4\0", {"kho_compatible": 0x9999}, {"kho": ("kho-v4",)}),
        (b"", {}, {}),
    ],
)
def test_strings_and_symbols(
    data: bytes, symbols: dict[str, int], expected: dict[str, tuple[str, ...]]
) -> None:
    assert accepted_formats(elf(None, symbols=symbols, sections=[(".rodata", 0x2000, data)])) == expected


def test_damaged_elf_files() -> None:
    with pytest.raises(ImageError, match="malformed ELF file"):
        accepted_formats(b"\x7fELF")


def test_a_section_of_absurd_size(tmp_path: Path) -> None:
    """Room for it is not there: that is damage too, and lines are done without."""
    image = bytearray(kernels.binary("new.elf").read_bytes())
    sections, count = struct.unpack_from("<Q", image, 40)[0], struct.unpack_from("<H", image, 60)[0]
    for number in range(count):
        struct.pack_into("<Q", image, sections + 64 * number + 32, 1 << 62)
    path = tmp_path / "k.elf"
    path.write_bytes(image)
    for read in (Symbols.read, Probes.read, lambda path: accepted_formats(path.read_bytes())):
        with pytest.raises(ImageError, match="malformed ELF file"):
            read(path)
    symbols = Symbols({}, path)
    assert symbols.line(0x1000) == ""


@pytest.mark.parametrize(
    ("at", "value", "message"),
    [
        (32, 1 << 63, "program headers are outside"),
        (54, 8, "program headers are outside"),
        (64 + 56 + 24, 1 << 45, "ends too far behind the first"),
        (64 + 56 + 40, 1 << 45, "ends too far behind the first"),
    ],
)
def test_program_headers_that_make_no_image(at: int, value: int, message: str) -> None:
    """Their addresses are not filled up with zeros first."""
    image = bytearray(kernels.binary("new.elf").read_bytes())
    struct.pack_into("<H" if at == 54 else "<Q", image, at, value)
    with pytest.raises(BzImageError, match=message):
        flatten(bytes(image))


# --- chains -------------------------------------------------------------------------------------------


def names(chain: Chain) -> list[str]:
    return [kernel.short for kernel in chain.running]


def test_old_and_new_by_turns() -> None:
    chain = Chain.open("old", ["new"], 5)
    assert names(chain) == ["old", "new", "old", "new", "old", "new"]
    assert chain.own and not chain.linux and chain.kernel(4) is chain.kernel(0)
    files = chain.files()
    assert sorted(files) == ["/boot/chain", "/boot/new.bzImage", "/boot/old.bzImage"]
    lines = ["/boot/new.bzImage", "/boot/old.bzImage"] * 2 + ["/boot/new.bzImage"]
    assert files[CHAIN_PATH].decode().splitlines() == lines
    assert files["/boot/old.bzImage"] == (BIN / "old.bzImage").read_bytes()


def test_kernels_in_a_given_order() -> None:
    chain = Chain.open("old", ["old", "new", "new"], 3)
    assert names(chain) == ["old", "old", "new", "new"]
    with pytest.raises(ConfigError, match="3 next kernels are given"):
        Chain.open("old", ["old", "new", "new"], 2)


def test_only_what_is_started_by_kexec_is_in_the_initramfs() -> None:
    assert sorted(Chain.open("old", ["new"], 1).files()) == ["/boot/chain", "/boot/new.bzImage"]
    assert Chain.open("old", ["new"], 0).files() == {}


def test_images_of_one_name(tmp_path: Path) -> None:
    other = tmp_path / "new.bzImage"
    shutil.copy(BIN / "old.bzImage", other)
    chain = Chain.open("old", [BIN / "new.bzImage", other], 2)
    files = chain.files()
    one, two = files[CHAIN_PATH].decode().splitlines()
    assert one != two and files[one] != files[two] == (BIN / "old.bzImage").read_bytes()


def test_linux_alone_stays_as_it_was(tmp_path: Path) -> None:
    loop = endless_loop(tmp_path / "loop.elf")
    other = tmp_path / "other.elf"
    shutil.copy(loop, other)
    chain = Chain.open(loop, [other], 3, cmdline="quiet")
    assert names(chain) == ["loop.elf", "other.elf"] and not chain.own and chain.linux
    assert chain.files() == {"/luemu/kernel": loop.read_bytes()}
    (following,) = chain.next_kernels()
    assert (following.kernel, following.cmdline) == ("/luemu/kernel", f"{LINUX_CMDLINE} quiet")
    assert chain.kernel(7) is chain.kernel(1)


def test_linux_and_ours(tmp_path: Path) -> None:
    """Each is driven in its own way, and finds the command line for what it starts."""
    loop = endless_loop(tmp_path / "bzImage")
    chain = Chain.open(loop, ["new"], 3, cmdline="quiet")
    assert names(chain) == ["bzImage", "new", "bzImage", "new"] and chain.own and chain.linux
    assert chain.files()[CHAIN_PATH].decode().splitlines() == [
        f"/boot/new.bzImage {OWN_CMDLINE} quiet",
        f"/boot/bzImage.bzImage {LINUX_CMDLINE} rdinit=/luemu/init quiet",
        f"/boot/new.bzImage {OWN_CMDLINE} quiet",
    ]
    assert [(n.kernel, n.cmdline) for n in chain.next_kernels()] == [
        ("/boot/new.bzImage", f"{OWN_CMDLINE} quiet"),
        ("/boot/bzImage.bzImage", f"{LINUX_CMDLINE} rdinit=/luemu/init quiet"),
        ("/boot/new.bzImage", f"{OWN_CMDLINE} quiet"),
    ]
