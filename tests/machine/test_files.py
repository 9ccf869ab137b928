"""Machines in files: another process goes on to the same states, and no bytes whatsoever crash the loader."""

from __future__ import annotations

import copy
import hashlib
import json
import os
import random
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from emu import cpuid, saved
from emu.errors import EmuError, ImageError
from emu.machine import Machine, StopKind
from kernels.build import project_root
from tests.machine.guest import DATA, flat, run_sliced, selftest

SMALL = f"mov edi, {DATA}\n1: inc rcx\nmov [rdi], rcx\nadd rdi, 4096\nand edi, 0x10ffff\njmp 1b"
HEAD = struct.Struct("<8sQQQ32s")

GO_ON = """
import sys
from pathlib import Path
from emu.machine import Machine
with Machine.load(Path(sys.argv[1])) as m:
    print(m.state_hash())
    for until in sys.argv[2:]:
        m.run(until=int(until))
        print(m.state_hash())
    print(m.console.hex())
"""


@pytest.mark.parametrize(
    ("workload", "at"), [("do=ticks", 777_777), ("do=pagetables", 2_000_001), ("", 70_000_000)]
)
def test_another_process_continues(workload: str, at: int, tmp_path: Path) -> None:
    file = tmp_path / "machine"
    later = [at, at + 1, at + 1234, at + 1_000_000]
    with selftest(workload) as m:
        m.run(until=at)
        m.save(file)
        hashes = [m.state_hash()]
        for until in later:
            m.run(until=until)
            hashes.append(m.state_hash())
        console = m.console.hex()
    run = subprocess.run(
        [sys.executable, "-c", GO_ON, str(file), *map(str, later)],
        env={**os.environ, "PYTHONHASHSEED": "99"}, cwd=project_root(), capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert run.stdout.split() == [*hashes, console], run.stderr


@pytest.mark.parametrize("seed", range(3))
def test_save_and_load_again_and_again(seed: int, tmp_path: Path) -> None:
    rng = random.Random(seed)
    end = 900_000
    with selftest("do=ticks") as whole:
        whole.run(until=end)
        wanted = whole.state_hash()
    m = selftest("do=ticks")
    while m.ticks < end:
        run_sliced(m, rng.randint(0, 1 << 30), min(end, m.ticks + rng.randint(1, 300_000)), slices_max=3)
        m.save(tmp_path / "machine")
        m.close()
        m = Machine.load(tmp_path / "machine")
    assert m.state_hash() == wanted, f"seed {seed}"
    m.close()


def test_a_loaded_machine_takes_snapshots(tmp_path: Path) -> None:
    with selftest("do=ticks") as m:
        m.run(until=300_000)
        m.save(tmp_path / "machine")
        m.run(until=500_000)
        wanted = m.state_hash()
    with Machine.load(tmp_path / "machine") as m:
        here = m.snapshot()
        for _ in range(2):
            m.run(until=500_000)
            assert m.state_hash() == wanted
            m.restore(here)


def test_saving_changes_nothing_and_is_the_same_file_again(tmp_path: Path) -> None:
    with selftest("do=ticks") as m:
        m.run(until=300_000)
        before = m.state_hash()
        m.save(tmp_path / "a")
        m.save(tmp_path / "b")
        assert m.state_hash() == before
    with Machine.load(tmp_path / "a") as m:
        m.save(tmp_path / "c")
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes() == (tmp_path / "c").read_bytes()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a", "b", "c"], "nothing is left over"


def test_the_description_is_kept(tmp_path: Path) -> None:
    with Machine(7 << 20, rtc_epoch=12345, strict_memory=True) as m:
        m.save(tmp_path / "m")
        with Machine.load(tmp_path / "m") as other:
            assert other.description == m.description
            assert other.state_hash() == m.state_hash()


# ---- what cannot be read or written -----------------------------------------------------------------


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("saved") / "machine"
    with flat(SMALL) as m:
        m.run(until=200)
        m.save(path)
    return path.read_bytes()


def load(tmp_path: Path, data: bytes) -> Machine:
    path = tmp_path / "machine"
    path.write_bytes(data)
    return Machine.load(path)


def parts(image: bytes) -> tuple[dict[str, Any], bytes]:
    """State document and compressed pages."""
    _, size, _, _, _ = HEAD.unpack_from(image)
    return json.loads(image[64 : 64 + size]), image[64 + size :]


def signed(state: object, packed: bytes, count: int | None = None) -> bytes:
    """A file whose checksum is right."""
    document = state if isinstance(state, bytes) else json.dumps(state).encode()
    if count is None:
        count = len(zstandard.ZstdDecompressor().decompress(packed, max_output_size=1 << 30)) // 4100
    head = HEAD.pack(
        b"LUEMU-M1", len(document), count, len(packed), hashlib.sha256(document + packed).digest()
    )
    return head + document + packed


def test_the_signed_helper_makes_a_good_file(image: bytes, tmp_path: Path) -> None:
    with load(tmp_path, signed(*parts(image))) as m:
        assert m.ticks == 200


@settings(max_examples=150)
@given(data=st.data())
def test_damaged_bytes_are_refused(
    data: st.DataObject, image: bytes, tmp_path_factory: pytest.TempPathFactory
) -> None:
    broken = bytearray(image)
    for _ in range(data.draw(st.integers(1, 3))):
        broken[data.draw(st.integers(0, len(image) - 1))] ^= data.draw(st.integers(1, 255))
    if bytes(broken) != image:
        with pytest.raises(ImageError):
            load(tmp_path_factory.getbasetemp(), bytes(broken))


@settings(max_examples=60)
@given(length=st.integers(0, 5000), extra=st.binary(max_size=40))
def test_wrong_lengths_are_refused(
    length: int, extra: bytes, image: bytes, tmp_path_factory: pytest.TempPathFactory
) -> None:
    cut = image[: min(length, len(image) - 1)] + extra
    if cut != image:
        with pytest.raises(ImageError):
            load(tmp_path_factory.getbasetemp(), cut)


@settings(max_examples=60)
@given(data=st.binary(max_size=300))
def test_any_bytes_are_refused(data: bytes, tmp_path_factory: pytest.TempPathFactory) -> None:
    for candidate in (data, b"LUEMU-M1" + data):
        with pytest.raises(ImageError):
            load(tmp_path_factory.getbasetemp(), candidate)


def leaves(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Paths of everything in a document."""
    out = [path] if path else []
    if isinstance(value, dict):
        for key in value:
            out += leaves(value[key], (*path, key))
    elif isinstance(value, list):
        for i, item in enumerate(value[:40]):
            out += leaves(item, (*path, i))
    return out


def changed(document: Any, path: tuple[Any, ...], value: Any) -> Any:
    out = copy.deepcopy(document)
    at = out
    for key in path[:-1]:
        at = at[key]
    if value is ...:
        del at[path[-1]]
    else:
        at[path[-1]] = value
    return out


WRONG: list[Any] = [..., None, "x", -1, 1 << 70, 1.5, [], {}, {"hex": "zz"}, {"hex": "00"}, [1, 2], True, 3]


def wrong_state(data: st.DataObject, image: bytes, directory: Path) -> None:
    """Loads, or is refused with ImageError."""
    state, packed = parts(image)
    path = data.draw(st.sampled_from(leaves(state)))
    value = data.draw(st.sampled_from(WRONG))
    try:
        m = load(directory, signed(changed(state, path, value), packed))
    except ImageError:
        return
    m.close()


@settings(max_examples=120)
@given(data=st.data())
def test_wrong_state_with_a_right_checksum(
    data: st.DataObject, image: bytes, tmp_path_factory: pytest.TempPathFactory
) -> None:
    wrong_state(data, image, tmp_path_factory.getbasetemp())


@pytest.mark.campaign
@settings(max_examples=3000)
@given(data=st.data())
def test_wrong_state_with_a_right_checksum_campaign(
    data: st.DataObject, image: bytes, tmp_path_factory: pytest.TempPathFactory
) -> None:
    wrong_state(data, image, tmp_path_factory.getbasetemp())


@pytest.mark.parametrize(
    "document",
    [
        b"",
        b"[]",
        b"{",
        b"null",
        b"\xff",
        b"{}",
        b'{"description": 3}',
        b"[" * 100_000,
        b'{"a": {"hex": 3}}',
        b"NaN",
    ],
)
def test_wrong_documents(document: bytes, image: bytes, tmp_path: Path) -> None:
    with pytest.raises(ImageError):
        load(tmp_path, signed(document, parts(image)[1]))


def test_wrong_pages(image: bytes, tmp_path: Path) -> None:
    state, packed = parts(image)
    raw = zstandard.ZstdDecompressor().decompress(packed, max_output_size=1 << 30)
    count = len(raw) // 4100
    compress = zstandard.ZstdCompressor().compress
    numbers = list(struct.unpack_from(f"<{count}I", raw))
    outside = (
        struct.pack(f"<{count}I", *numbers[:-1], state["description"]["memory"] // 4096) + raw[4 * count :]
    )
    far = struct.pack(f"<{count}I", *numbers[:-1], 0xFFFFFFFF) + raw[4 * count :]
    for what, data in {
        "outside RAM": signed(state, compress(outside)),
        "far outside RAM": signed(state, compress(far)),
        "too few": signed(state, compress(raw[:-1]), count),
        "too many": signed(state, compress(raw + b"x"), count),
        "not zstd": signed(state, b"rubbish", count),
        "huge count": signed(state, packed, 1 << 27),
        "impossible count": signed(state, packed, 1 << 60),
        "a bomb": signed(state, compress(bytes(1 << 28)), count),
    }.items():
        with pytest.raises(ImageError):
            load(tmp_path, data).close()
            pytest.fail(what)


def test_other_versions_are_refused(image: bytes, tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="another version"):
        load(tmp_path, b"LUEMU-M2" + image[8:])
    state, packed = parts(image)
    state["description"]["cpuid_version"] = cpuid.VERSION + 1
    with pytest.raises(ImageError, match="CPU model"):
        load(tmp_path, signed(state, packed))


def test_missing_files(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="No such file"):
        Machine.load(tmp_path / "nothing")
    with pytest.raises(ImageError, match="directory"):
        Machine.load(tmp_path)


def test_unwritable_places(tmp_path: Path) -> None:
    with flat(SMALL) as m:
        for path in (tmp_path / "no" / "such" / "folder", Path("/proc/nothing"), Path("/dev/null/x")):
            with pytest.raises(ImageError, match="cannot be written"):
                m.save(path)
        (tmp_path / "taken").mkdir()
        with pytest.raises(ImageError, match="cannot be written"):
            m.save(tmp_path / "taken")
    assert [p.name for p in tmp_path.iterdir()] == ["taken"]


FULL = """
import resource, signal, sys
from pathlib import Path
from emu.errors import ImageError
from tests.machine.guest import flat
with flat("hlt") as m:
    m.memory.write(0x100000, bytes(range(256)) * 4096, by="test")
    m.save(Path(sys.argv[1]))
    before = Path(sys.argv[1]).read_bytes()
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
    try:
        m.save(Path(sys.argv[1]))
    except ImageError as e:
        print(e.kind, Path(sys.argv[1]).read_bytes() == before)
"""


def test_a_full_disk_leaves_the_old_file(tmp_path: Path) -> None:
    """Stood in for by a limit on the size of files."""
    run = subprocess.run(
        [sys.executable, "-c", FULL, str(tmp_path / "machine")],
        cwd=project_root(), capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert run.stdout.split() == ["bad-image", "True"], run.stderr
    assert [p.name for p in tmp_path.iterdir()] == ["machine"]


def test_decoders_read_a_saved_machine_without_an_engine(tmp_path: Path) -> None:
    with flat(SMALL, memory=6 << 20) as m:
        m.run(until=5000)
        m.save(tmp_path / "m")
        memory = saved.SavedMemory(saved.read(tmp_path / "m"))
        assert memory.ranges == m.memory.ranges
        for start, size in ((0, 0xA0000), (0xC0000, 0x540000), (DATA + 5, 9000), (DATA, 0)):
            assert (memory.read(start, size) == m.memory.read(start, size)).all()
        for start, size in ((0x9FFFF, 2), (6 << 20, 1), (1 << 32, 1), (0, -1), (1 << 63, 1)):
            with pytest.raises(EmuError):
                memory.read(start, size)
        assert m.run(until=6000).kind is StopKind.UNTIL
