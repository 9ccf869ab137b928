"""The initramfs: deterministic bytes, what cpio reads from them, and libraries of dynamic programs."""

from __future__ import annotations

import bz2
import gzip
import lzma
import os
import re
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from emu.errors import ConfigError, EmuError, ImageError
from emu.initproto import NextKernel, Plan
from emu.initramfs import Entry, Initramfs, needed_libraries, read_archive
from kernels import build
from tests.oracles import require

CHARACTER = st.characters(exclude_characters="\0/", exclude_categories=["Cs"])
NAME = st.text(CHARACTER, min_size=1, max_size=8).filter(lambda s: s not in (".", "..", "TRAILER!!!"))
PATH = st.lists(NAME, min_size=1, max_size=4).map("/".join)


def small() -> Initramfs:
    i = Initramfs()
    i.add_file("/bin/tool", b"\x7fnot really", 0o755)
    i.add_symlink("/bin/sh", "tool")
    i.add_device("/dev/console", 5, 1)
    i.add_dir("/tmp", 0o1777)
    i.add_file("etc/empty", b"")
    return i


def list_with_cpio(archive: bytes) -> dict[str, tuple[str, str]]:
    """Name → (mode as ls shows it, size or device numbers), as GNU cpio reads the archive."""
    env = {**os.environ, "TZ": "UTC", "LC_ALL": "C"}
    out = subprocess.run(
        [require("cpio"), "-itvn", "--quiet"], input=archive, capture_output=True, check=True, env=env
    ).stdout.decode()
    found: dict[str, tuple[str, str]] = {}
    for line in out.splitlines():
        words = re.sub(r", +", ",", line).split(None, 8)
        assert words[1:4] in (["1", "0", "0"], ["2", "0", "0"]), line
        assert words[5:8] == ["Jan", "1", "1970"], line
        found[words[8]] = (words[0], words[4])
    return found


def test_cpio_reads_it() -> None:
    assert list_with_cpio(small().build()) == {
        "bin": ("drwxr-xr-x", "0"),
        "bin/sh -> tool": ("lrwxrwxrwx", "4"),
        "bin/tool": ("-rwxr-xr-x", "11"),
        "dev": ("drwxr-xr-x", "0"),
        "dev/console": ("crw-------", "5,1"),
        "etc": ("drwxr-xr-x", "0"),
        "etc/empty": ("-rw-r--r--", "0"),
        "tmp": ("drwxrwxrwt", "0"),
    }


def test_golden_bytes() -> None:
    """One file, by hand from the format's description."""
    i = Initramfs()
    i.add_file("/a", b"hello")
    file = b"070701" + b"00000001" + b"000081A4" + b"00000000" * 2 + b"00000001"
    file += b"00000000" + b"00000005"
    file += b"00000000" * 4 + b"00000002" + b"00000000" + b"a\0" + b"hello" + b"\0\0\0"
    end = b"070701" + b"00000000" * 4 + b"00000001" + b"00000000" * 6 + b"0000000B" + b"00000000"
    end += b"TRAILER!!!\0" + b"\0\0\0"
    assert i.build() == file + end


def test_the_order_of_adding_and_the_host_leave_no_trace(tmp_path: Path) -> None:
    a, b = Initramfs(), Initramfs()
    one, two = tmp_path / "one", tmp_path / "two"
    one.write_bytes(b"x")
    two.write_bytes(b"x")
    os.utime(two, (1, 1))
    a.add_host_file(one, "/p")
    a.add_file("/q/r", b"y")
    b.add_file("/q/r", b"y")
    b.add_host_file(two, "/p")
    assert a.build() == b.build()
    assert a.build("gzip") == b.build("gzip")
    assert gzip.decompress(a.build("gzip")) == a.build()


def test_cpio_unpacks_what_was_put_in(tmp_path: Path) -> None:
    i = Initramfs()
    contents = {f"d{n % 3}/f{n}": bytes([n]) * n for n in range(20)}
    for name, data in contents.items():
        i.add_file(name, data, 0o600 + len(data) % 8)
    subprocess.run([require("cpio"), "-id", "--quiet"], input=i.build(), cwd=tmp_path, check=True)
    unpacked = [p for p in tmp_path.rglob("*") if p.is_file()]
    assert {str(p.relative_to(tmp_path)): p.read_bytes() for p in unpacked} == contents
    assert all(stat.S_IMODE(p.stat().st_mode) == 0o600 + p.stat().st_size % 8 for p in unpacked)


def test_what_cpio_writes_is_read(tmp_path: Path) -> None:
    (tmp_path / "usr").mkdir()
    (tmp_path / "usr/f").write_bytes(b"data")
    (tmp_path / "l").symlink_to("usr/f")
    archive = subprocess.run(
        [require("cpio"), "-o", "-H", "newc", "--quiet"], input=b".\nusr\nusr/f\nl\n", cwd=tmp_path,
        capture_output=True, check=True,
    ).stdout  # fmt: skip
    read = read_archive(archive)
    assert sorted(read) == ["l", "usr", "usr/f"]
    assert read["usr/f"].data == b"data" and read["l"].data == b"usr/f" and stat.S_ISLNK(read["l"].mode)


@given(files=st.dictionaries(PATH, st.binary(max_size=40), max_size=8))
def test_round_trip(files: dict[str, bytes]) -> None:
    i = Initramfs()
    kept: dict[str, bytes] = {}
    for path, data in files.items():
        try:
            i.add_file(path, data)
        except ConfigError:  # a file where another one needs a directory
            continue
        kept[path] = data
    read = read_archive(i.build())
    assert {n: e.data for n, e in read.items() if stat.S_ISREG(e.mode)} == kept
    assert list(read) == sorted(read)


@given(data=st.binary(max_size=300), at=st.integers(0, 400))
def test_a_damaged_archive_is_one_typed_error(data: bytes, at: int) -> None:
    whole = small().build()
    for damaged in (whole[:at], whole[:at] + data + whole[at + len(data) :], data):
        try:
            read_archive(damaged)
        except EmuError as e:
            assert isinstance(e, ImageError)


def member(name: bytes, size: bytes) -> bytes:
    fields = [b"%08X" % v for v in (1, stat.S_IFREG | 0o644, 0, 0, 1, 0, 0, 0, 0, 0, 0, len(name) + 1, 0)]
    head = b"070701" + b"".join([*fields[:6], size, *fields[7:]]) + name + b"\0"
    return head + bytes(-len(head) % 4)


@pytest.mark.parametrize("size", [b"-0000070", b"+0000001", b" 0000001", b"0000_001", b"0x000001"])
def test_sizes_that_are_no_hex_digits(size: bytes) -> None:
    """A negative one would lead back to a member that was read already, for ever."""
    with pytest.raises(ImageError, match="damaged header at byte 112"):
        read_archive(member(b"a", b"00000000") + member(b"b", size) + bytes(400))


def test_many_archives_and_much_padding_take_linear_time() -> None:
    end = member(b"TRAILER!!!", b"00000000")
    assert read_archive(end * 100_000) == {}
    with pytest.raises(ImageError, match=f"cut off, at byte {112 + (64 << 20)}"):
        read_archive(member(b"a", b"00000000") + bytes(64 << 20))


@pytest.mark.parametrize("compress", [gzip.compress, bz2.compress, lzma.compress, zstandard.compress])
def test_what_unpacks_to_too_much(compress: Callable[[bytes], bytes]) -> None:
    """It is refused before there is all of it, and so is what ends early."""
    packed = compress(bytes(32 << 20))
    with pytest.raises(ImageError, match="unpacks to more than 1,048,576 bytes"):
        Initramfs(bytes_max=1 << 20).add_base(packed)
    with pytest.raises(ImageError, match="cut off"):
        Initramfs().add_base(compress(small().build())[:-9])


def test_a_host_file_that_the_machine_cannot_hold(tmp_path: Path) -> None:
    with (tmp_path / "sparse").open("wb") as f:
        f.truncate(1 << 31)
    with pytest.raises(ConfigError, match="2,147,483,648 bytes are too many"):
        Initramfs(bytes_max=1 << 20).add_host_file(tmp_path / "sparse", "/x")


@pytest.mark.parametrize(
    "compress", [bytes, gzip.compress, bz2.compress, lzma.compress, zstandard.compress]
)
def test_base_archives_come_first_and_their_links_are_followed(compress: Callable[[bytes], bytes]) -> None:
    base = Initramfs()
    base.add_file("/usr/bin/old", b"old")
    base.add_symlink("/bin", "usr/bin")
    base.add_symlink("/lib", "/usr/lib")
    base.add_symlink("/loop", "loop")
    packed = compress(base.build())
    i = Initramfs()
    i.add_base(packed)
    i.add_file("/bin/new", b"new")
    i.add_file("/lib/x/y", b"y")
    i.add_dir("/bin")
    with pytest.raises(ConfigError, match="too many symbolic links"):
        i.add_file("/loop/f", b"")
    with pytest.raises(ConfigError, match="which is no directory"):
        i.add_file("/usr/bin/old/f", b"")
    with pytest.raises(ConfigError, match="is a directory"):
        i.add_file("/usr/bin", b"")
    built = i.build()
    assert built.startswith(packed)
    read = read_archive(built)
    assert read["usr/bin/new"].data == b"new" and read["usr/lib/x/y"].data == b"y"
    assert stat.S_ISLNK(read["bin"].mode) and stat.S_ISLNK(read["lib"].mode)


def test_what_can_not_be_a_base() -> None:
    for data, message in (
        (b"", "is empty"),
        (b"MZ", "is no newc cpio archive"),
        (b"\x02\x21\x4c\x18", "LZ4"),
        (b"\x1f\x8b\x08damaged", "is damaged"),
        (small().build() + b"more", "something else behind"),
        (small().build()[:-200], "cut off"),
    ):
        with pytest.raises(ImageError, match=message):
            Initramfs().add_base(data, "file.cpio")
    late = small()
    with pytest.raises(ConfigError, match="before everything else"):
        late.add_base(small().build())


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("", "root directory"),
        ("/", "root directory"),
        ("/a/../b", "goes up"),
        ("/a\0b", "NUL"),
        ("a" * 256, "too long"),
        ("a/" * 2100, "too long"),
        ("TRAILER!!!", "ends an archive"),
        ("/bin/tool/x", "which is no directory"),
        ("/tmp", "is a directory"),
        ("/\ud800", "surrogate"),
    ],
)
def test_impossible_paths(path: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        small().add_file(path, b"")


def test_other_impossible_members() -> None:
    i = small()
    with pytest.raises(ConfigError, match="no directory"):
        i.add_dir("/bin/tool")
    with pytest.raises(ConfigError, match="target"):
        i.add_symlink("/l", "")
    with pytest.raises(ConfigError, match="device numbers"):
        i.add_device("/dev/x", 4096, 0)
    with pytest.raises(ConfigError, match="compress"):
        i.build("lzo")
    with pytest.raises(ConfigError, match="No such file"):
        i.add_host_file(Path("/no/such/file"), "/x")


def test_a_later_file_replaces_an_earlier_one() -> None:
    i = small()
    i.add_file("/bin/tool", b"new")
    assert read_archive(i.build())["bin/tool"].data == b"new"


def test_the_standard_contents(tmp_path: Path) -> None:
    init = tmp_path / "init"
    init.write_bytes(b"#!")
    i = Initramfs()
    i.add_standard(init)
    i.write_plan(Plan(1, next=[NextKernel("/luemu/kernel-1", "quiet")]))
    read = read_archive(i.build())
    assert read["init"] == Entry(stat.S_IFREG | 0o755, b"#!")
    assert read["dev/console"].device == (5, 1)
    assert read["luemu/plan"].data.startswith(b"luemu-plan 1\n")
    assert {"bin", "dev", "proc", "sys", "tmp"} <= set(read)


# --- libraries ---

LIBRARY = "int answer(void) { return 42; }\n"
PROGRAM = "int answer(void);\nint main(void) { return answer() - 42; }\n"
DYNAMIC = ("-target", "x86_64-linux-gnu.2.17", "-mcpu=x86_64", "-O1", "-g0", *build.NO_SANITIZER)


@pytest.fixture(scope="module")
def dynamic(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with prog, which needs libinner.so through RUNPATH $ORIGIN/libs, and libc."""
    root = tmp_path_factory.mktemp("dynamic")
    (root / "lib.c").write_text(LIBRARY)
    (root / "prog.c").write_text(PROGRAM)
    build.compile_with_zig(root, (*DYNAMIC, "-shared", "-fPIC"), [root / "lib.c"], root / "libs/libinner.so")
    flags = (*DYNAMIC, "-Llibs", "-linner", "-Wl,-rpath,$ORIGIN/libs")
    build.compile_with_zig(root, flags, [root / "prog.c"], root / "prog")
    return root


def test_libraries_are_found_by_runpath_and_in_the_system(dynamic: Path) -> None:
    found = needed_libraries(dynamic / "prog")
    names = {Path(n).name for n in found}
    assert {"libinner.so", "libc.so.6", "ld-linux-x86-64.so.2"} <= names
    assert "/lib64/ld-linux-x86-64.so.2" in found
    inner = next(n for n in found if n.endswith("/libinner.so"))
    assert found[inner] == (dynamic / "libs/libinner.so").read_bytes()


@pytest.mark.skipif(os.geteuid() != 0, reason="chroot needs root")
def test_a_dynamic_program_runs_with_what_was_packed(dynamic: Path, tmp_path: Path) -> None:
    i = Initramfs()
    i.add_host_file(dynamic / "prog", "/elsewhere/prog")
    subprocess.run([require("cpio"), "-id", "--quiet"], input=i.build(), cwd=tmp_path, check=True)
    command: list[str | Path] = [require("chroot"), tmp_path, "/elsewhere/prog"]
    assert subprocess.run(command, env={}, check=False).returncode == 0


def test_the_same_libraries_as_ldd(tmp_path: Path) -> None:
    program = Path(sys.executable).resolve()
    ldd = subprocess.run([require("ldd"), program], capture_output=True, text=True, check=False).stdout
    expected = {Path(line.split()[0]).name for line in ldd.splitlines() if "/" in line}
    assert {Path(n).name for n in needed_libraries(program)} == expected


def test_a_missing_library_is_named(dynamic: Path, tmp_path: Path) -> None:
    alone = tmp_path / "prog"
    alone.write_bytes((dynamic / "prog").read_bytes())
    message = r"needs the library libinner\.so, which is in none of .*/libs, "
    with pytest.raises(ImageError, match=message) as e:
        needed_libraries(alone)
    assert e.value.where == str(alone)
    Initramfs().add_host_file(alone, "/prog", libraries=False)


def test_static_programs_and_scripts_need_nothing() -> None:
    assert needed_libraries(Path("static"), b"#!/bin/sh\n") == {}
    init = build.build(build.project_root(), next(t for t in build.TARGETS if t.name == "init"))
    assert init is not None and needed_libraries(init) == {}


def test_programs_for_other_processors_are_refused() -> None:
    arm = b"\x7fELF\x02\x01\x01" + bytes(9) + b"\x02\0\xb7\0\x01\0\0\0" + bytes(28) + b"\x40\0" + bytes(10)
    with pytest.raises(ImageError, match="another processor"):
        needed_libraries(Path("arm"), arm)


@given(at=st.integers(0, 3000), data=st.binary(min_size=1, max_size=16))
def test_a_damaged_program_is_one_typed_error(dynamic: Path, at: int, data: bytes) -> None:
    whole = (dynamic / "prog").read_bytes()
    for damaged in (whole[: at + 4], whole[:at] + data + whole[at + len(data) :]):
        try:
            needed_libraries(dynamic / "prog", damaged)
        except EmuError as e:
            assert isinstance(e, ImageError)
