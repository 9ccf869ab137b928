"""fs/cpio.c and fs/ramfs.c: archives of our own writer and of the `cpio` program, and ones that are wrong.

Every archive lies at the end of readable memory (lib_host.Fenced): reading beyond it crashes the test.
"""

from __future__ import annotations

import random
import re
import shutil
import stat
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from emu.initramfs import Initramfs
from tests.guest.lib_host import Node, load

EINVAL, ENOMEM = -22, -12
REGULAR, DIRECTORY, LINK = stat.S_IFREG | 0o644, stat.S_IFDIR | 0o755, stat.S_IFLNK | 0o777


def member(
    name: bytes,
    data: bytes = b"",
    mode: int = REGULAR,
    *,
    magic: bytes = b"070701",
    name_size: int | None = None,
    file_size: int | None = None,
    links: int = 1,
    ino: int = 1,
    check: int = 0,
    terminated: bool = True,
) -> bytes:
    """A member as bytes, without the padding at its end if there are no data to pad."""
    name += b"\0" * terminated
    fields = [
        ino, mode, 0, 0, links, 0, len(data) if file_size is None else file_size, 0, 0, 0, 0,
        len(name) if name_size is None else name_size, check,
    ]  # fmt: skip
    head = magic + b"".join(b"%08x" % f for f in fields) + name
    return head + bytes(-len(head) % 4) + data + bytes(-len(data) % 4)


TRAILER = member(b"TRAILER!!!", mode=0)


def unpack(archive: bytes) -> tuple[int, dict[str, Node], str]:
    """Result, the tree without its root, what was printed."""
    lib = load()
    lib.parse(b"loglevel=7", early=True)
    lib.console()
    result = lib.unpack(archive)
    files = lib.files()
    assert stat.S_ISDIR(files.pop("/").mode)
    return result, files, lib.console()


# ---- archives that are right


def test_files_directories_and_links_of_our_own_writer() -> None:
    files = Initramfs()
    files.add_file("/boot/chain", b"/boot/new quiet\n")
    files.add_file("/bin/program", bytes(range(256)) * 37)
    files.add_file("/empty", b"")
    result, got, said = unpack(files.build())
    assert result == 0, said
    assert got["/boot/chain"].data == b"/boot/new quiet\n"
    assert got["/bin/program"].data == bytes(range(256)) * 37
    assert got["/empty"].data == b""
    assert stat.S_ISDIR(got["/boot"].mode)
    assert re.fullmatch(r"initramfs: \d+ files in 1 archives\n", said)


NAMES = st.lists(
    st.text(st.characters(codec="utf-8", exclude_characters="/\0"), min_size=1, max_size=12).filter(
        lambda s: s not in (".", "..") and len(s.encode()) < 200
    ),
    min_size=1,
    max_size=4,
).map("/".join)


@given(st.dictionaries(NAMES, st.binary(max_size=60), max_size=8))
def test_any_contents_come_back(contents: dict[str, bytes]) -> None:
    # a name that is a directory of another one cannot be a file
    contents = {n: d for n, d in contents.items() if not any(o.startswith(n + "/") for o in contents)}
    contents.pop("TRAILER!!!", None)
    archive = b"".join(member(n.encode(), d) for n, d in contents.items()) + TRAILER
    result, got, said = unpack(archive)
    assert result == 0, said
    assert {p[1:]: n.data for p, n in got.items() if stat.S_ISREG(n.mode)} == contents


@pytest.mark.skipif(shutil.which("cpio") is None, reason="the cpio program is not installed")
@pytest.mark.parametrize("form", ["newc", "crc"])
def test_archives_of_the_cpio_program(tmp_path: Path, form: str) -> None:
    (tmp_path / "a/b").mkdir(parents=True)
    (tmp_path / "a/b/large").write_bytes(random.Random(1).randbytes(70001))
    (tmp_path / "a/hard").write_bytes(b"one inode")
    (tmp_path / "z-hard").hardlink_to(tmp_path / "a/hard")
    (tmp_path / "soft").symlink_to("a/b/large")
    names = "\n".join(str(p.relative_to(tmp_path)) for p in [tmp_path, *sorted(tmp_path.rglob("*"))])
    made = subprocess.run(
        ["cpio", "-o", "-H", form, "--quiet"],
        cwd=tmp_path,
        input=names.encode(),
        capture_output=True,
        check=True,
    )
    result, got, said = unpack(made.stdout)
    assert result == 0, said
    assert got["/a/b/large"].data == (tmp_path / "a/b/large").read_bytes()
    assert got["/a/hard"].data == got["/z-hard"].data == b"one inode"
    assert stat.S_ISLNK(got["/soft"].mode) and got["/soft"].data == b"a/b/large"


def test_names_may_begin_with_a_slash_or_a_dot() -> None:
    archive = member(b"/x/./y", b"1") + member(b"./x//z", b"2") + member(b".", mode=DIRECTORY) + TRAILER
    _, got, _ = unpack(archive)
    assert got["/x/y"].data == b"1"
    assert got["/x/z"].data == b"2"


def test_archives_follow_each_other_with_zeros_in_between() -> None:
    one = member(b"a", b"first") + member(b"d", mode=DIRECTORY) + TRAILER
    two = member(b"a", b"second") + member(b"b", b"new") + TRAILER
    for gap in (b"", bytes(4), bytes(508)):
        result, got, said = unpack(one + gap + two + gap)
        assert result == 0, said
        assert got["/a"].data == b"second", "a later file replaces an earlier one"
        assert got["/b"].data == b"new"
        assert "4 files in 2 archives" in said


def test_contents_are_not_copied() -> None:
    lib = load()
    archive = member(b"a", b"contents") + TRAILER
    assert lib.unpack(archive) == 0
    start = lib._archive.address
    assert start <= lib.c.host_file_data(lib.c.file_lookup(b"/a")) < start + len(archive)


@pytest.mark.parametrize("order", [(b"data", b"", b""), (b"", b"data", b""), (b"", b"", b"data")])
def test_hard_links_share_the_contents_of_whichever_has_them(order: tuple[bytes, ...]) -> None:
    links = b"".join(member(b"l%d" % i, d, links=3, ino=7) for i, d in enumerate(order))
    other = member(b"other", links=2, ino=8)
    _, got, _ = unpack(links + other + TRAILER)
    assert [got[f"/l{i}"].data for i in range(3)] == [b"data"] * 3
    assert got["/other"].data == b""


def test_padding_at_the_very_end_may_be_missing() -> None:
    for cut in range(1, len(TRAILER)):
        archive = member(b"a", b"1") + TRAILER[:-cut]
        ok = cut <= len(TRAILER) - 110 - len(b"TRAILER!!!\0")
        assert unpack(archive)[0] == (EINVAL if not ok else 0), f"{cut} bytes are missing"


# ---- archives that are wrong

GOOD = member(b"good", b"x") + TRAILER
LONG = b"n" * 256


@pytest.mark.parametrize(
    "archive, said",
    [
        (b"", r"byte 0: it is empty"),
        (bytes(512), r"byte 0: it is empty"),
        (GOOD[:-124], r"byte 120: it ends without a trailer"),
        (GOOD[:60], r"byte 0: it ends without a trailer"),
        (member(b"a"), r"byte 112: it ends without a trailer"),
        (member(b"a", magic=b"070707") + TRAILER, r"byte 0: no magic number"),
        (b"\x1f\x8b\x08" + bytes(200), r"byte 0: no magic number"),
        (GOOD + b"\0" + GOOD, r"byte 245: an archive begins at no multiple of 4"),
        (GOOD + b"junk" * 40, r"no magic number"),
        (member(b"a").replace(b"000081a4", b"0000x1a4") + TRAILER, r"byte 14: no number of 8 hex digits"),
        (member(b"a").replace(b"000081a4", b"+00081a4") + TRAILER, r"byte 14: no number of 8 hex digits"),
        (member(b"", terminated=False) + TRAILER, r"size of the name"),
        (member(b"a", name_size=4097) + bytes(5000) + TRAILER, r"size of the name"),
        (member(b"a", name_size=0xFFFFFFFF) + TRAILER, r"size of the name"),
        (member(b"a", name_size=300) + bytes(8), r"the name goes beyond the archive"),
        (member(b"abc", terminated=False) + TRAILER, r"no NUL at its end"),
        (member(b"a", b"1234", file_size=129) + TRAILER, r"contents go beyond the archive"),
        (member(b"a", file_size=0xFFFFFFFF) + TRAILER, r"contents go beyond the archive"),
        (member(b"a", b"12", mode=DIRECTORY) + TRAILER, r"contents in what is no file"),
        (member(b"a", mode=0o644) + TRAILER, r"no known type"),
        (member(b"a", mode=0x1FFFF) + TRAILER, r"no known type"),
        (member(b"../a") + TRAILER, r'goes up with "\.\."'),
        (member(b"a/../b") + TRAILER, r'goes up with "\.\."'),
        (member(b"a/..") + TRAILER, r'goes up with "\.\."'),
        (member(b"..") + TRAILER, r'goes up with "\.\."'),
        (member(LONG) + TRAILER, r"longer than 255"),
        (member(b"a/" + LONG + b"/b") + TRAILER, r"longer than 255"),
        (member(b"a", b"123", magic=b"070702", check=151) + TRAILER, r"another checksum"),
        (member(b"a") + member(b"a", mode=DIRECTORY) + TRAILER, r"something else has this name"),
        (member(b"a", mode=DIRECTORY) + member(b"a") + TRAILER, r"something else has this name"),
        (member(b"a") + member(b"a/b") + TRAILER, r"something else has this name"),
    ],
)
def test_what_is_wrong_is_told_with_its_place(archive: bytes, said: str) -> None:
    result, _, printed = unpack(archive)
    assert result == EINVAL
    assert re.search(said, printed) and printed.startswith("initramfs: archive is malformed at byte "), (
        printed
    )
    assert printed.count("\n") == 1


@pytest.mark.parametrize("name", [b"a..", b"..a", b"a/..b", b"...", b"a/b.."])
def test_dots_in_a_name_are_only_dots(name: bytes) -> None:
    result, got, said = unpack(member(name, b"1") + TRAILER)
    assert result == 0, said
    assert got["/" + name.decode()].data == b"1"


def test_what_was_unpacked_before_the_error_stays() -> None:
    result, got, _ = unpack(member(b"kept", b"1") + member(b"bad", magic=b"nonono") + TRAILER)
    assert result == EINVAL
    assert set(got) == {"/kept"}


def test_memory_that_is_short_is_an_error_and_leaves_nothing_behind() -> None:
    lib = load()
    archive = member(b"d/a", b"1", links=2) + member(b"d/b", links=2) + TRAILER
    for n in range(8):
        lib.c.host_fail_after(n)
        try:
            result, got, _ = unpack(archive)
        finally:
            lib.c.host_fail_after(-1)
        assert result in (EINVAL, ENOMEM), f"after {n} allocations"
        # two allocations a file; nothing else is kept
        assert lib.c.host_allocated() == 2 * len(got), f"after {n} allocations"
    assert unpack(archive)[0] == 0


def mutate(rng: random.Random, data: bytes) -> bytes:
    out = bytearray(data)
    changes: list[Callable[[], None]] = [
        lambda: out.__setitem__(rng.randrange(len(out)), rng.randrange(256)),
        lambda: out.__setitem__(rng.randrange(len(out)), rng.choice(b"0123456789abcdefF/.\0")),
        lambda: out.__delitem__(slice(rng.randrange(len(out)), None)),
        lambda: out.__delitem__(slice(at := rng.randrange(len(out)), at + rng.randrange(1, 9))),
        lambda: out.extend(out[rng.randrange(len(out)) :]),
        lambda: out.__setitem__(slice(at := rng.randrange(len(out)), at), rng.randbytes(rng.randrange(9))),
    ]
    for _ in range(rng.randrange(1, 5)):
        if out:
            rng.choice(changes)()
    return bytes(out)


@pytest.mark.parametrize("seed", range(6))
def test_mutated_archives_never_crash(seed: int) -> None:
    rng = random.Random(seed)
    base = (
        member(b"dir", mode=DIRECTORY) + member(b"dir/file", b"0123456789" * 9, links=2, ino=3)
        + member(b"link", b"dir/file", mode=LINK) + member(b"same", links=2, ino=3) + TRAILER
    )  # fmt: skip
    results = {unpack(mutate(rng, base + base))[0] for _ in range(200)}
    assert results == {0, EINVAL}, "both must occur, or the mutations test nothing"


# ---- the tree


@pytest.mark.parametrize(
    "path, found",
    [
        (b"/", True), (b"//", True), (b"/d", True), (b"/d/", True), (b"//d//f", True), (b"/./d/./f", True),
        (b"/d/f/", True), (b"d/f", False), (b"", False), (b"/x", False), (b"/d/f/g", False), (b"/dd", False),
        (b"/d/..", False), (b"/l", True), (b"/l/f", False),
    ],
)  # fmt: skip
def test_a_file_is_found_by_its_absolute_path(path: bytes, found: bool) -> None:
    unpack(member(b"d/f", b"1") + member(b"l", b"d", mode=LINK) + TRAILER)
    assert bool(load().c.file_lookup(path)) is found


def test_files_are_made_with_their_directories() -> None:
    lib = load()
    lib.c.host_new_tree()
    assert lib.c.file_create(b"/a/b/c", REGULAR, None, 0)
    assert lib.files()["/a/b"].mode == DIRECTORY
    assert lib.c.file_create(b"/a/b", stat.S_IFDIR | 0o700, None, 0)
    assert lib.files()["/a/b"].mode == stat.S_IFDIR | 0o700
    for path, mode in ((b"/a/b", REGULAR), (b"/a/b/c", DIRECTORY), (b"/a/b/c/d", REGULAR), (b"/", REGULAR),
                       (b"/a/../x", REGULAR), (b"/" + LONG, REGULAR)):  # fmt: skip
        before = lib.files()
        assert not lib.c.file_create(path, mode, None, 0), path
        assert lib.files() == before, f"{path!r} left something behind"
