"""memfds, sessions and FLBs: golden bytes of a real kernel, a plain model, large files."""

from __future__ import annotations

import hashlib
import random
import time
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import luo.memfd
from kho.abi import PAGE_SIZE
from kho.builder import Built, HandoverBuilder
from kho.handover import Handover
from kho.memory import Buffer
from kho.radix import write_tree
from kho.vmalloc import Descriptor
from luo.builder import FileToMake, SessionToMake, add_luo
from luo.check import check
from luo.flb import Flb, pack_page
from luo.memfd import pack_folios, pack_record, write_memfd
from luo.sessions import pack_file, pack_session, write_files, write_sessions
from luo.state import Luo, pack_state
from tests.luo.images import build, contents, many_files, many_sessions, put, read, read_u64, set_bit

# Dumped from a real kernel: a file of 12388 bytes at position 1234 in four folios.
RECORD = bytes.fromhex("""
d204000000000000 6430000000000000 0000000000000000 0400000000000000 00c04d0000000000 0100000001000000
""")
ARRAY = bytes.fromhex("""
d804000000003000 0000000000000000 ec19000000003000 0100000000000000
d904000000003000 0200000000000000 da04000000003000 0300000000000000
""")
STATE = bytes.fromhex("6c756f2d76350000 0100000000000000 00504d0000000000 00d05b0000000000")


def test_golden_memfd() -> None:
    assert pack_record(1234, 12388, 0, 4, Descriptor(0x4DC000, 1, 1, 0)) == RECORD
    phys = np.array([0x4D8000, 0x19EC000, 0x4D9000, 0x4DA000], dtype=np.uint64)
    assert pack_folios(phys, np.zeros(4, dtype=np.uint8)) == ARRAY


def test_golden_state() -> None:
    assert pack_state(1, 0x4D5000, 0x5BD000) == STATE
    session = pack_session("alpha", 0x4D6000, 5)
    assert len(session) == 80
    assert session == b"alpha".ljust(64, b"\0") + bytes.fromhex("00604d0000000000 0500000000000000")
    file = pack_file(0x4D7000, 5)
    assert len(file) == 64
    assert file == b"memfd-v2".ljust(48, b"\0") + bytes.fromhex("00704d0000000000 0500000000000000")
    flb = Flb("liveupdate-test-flb-v0", 0xFEEDF00DCAFEBEE0, 6)
    page = pack_page([flb] * 3)
    assert page[:16] == bytes.fromhex("0100000000000000 0300000000000000") and len(page) == PAGE_SIZE
    assert page[16:80] == flb.compatible.encode().ljust(48, b"\0") + bytes.fromhex(
        "e0befeca0df0edfe 0600000000000000"
    )


def test_golden_memory_is_decoded() -> None:
    """The dump's addresses, put together by hand with nothing of the writers but the tree."""
    memory = Buffer(32 << 20)
    memory.write(0x4D7000, RECORD)
    memory.write(0x4DC000, bytes(8) + (0x4DB000).to_bytes(8, "little"))
    memory.write(0x4DB000, ARRAY)
    memory.write(0x4D6000, bytes(8) + b"\1" + bytes(7) + b"memfd-v2".ljust(48, b"\0")
                 + (0x4D7000).to_bytes(8, "little") + b"\5" + bytes(7))  # fmt: skip
    memory.write(0x4D5000, bytes(8) + b"\1" + bytes(7) + b"alpha".ljust(64, b"\0")
                 + (0x4D6000).to_bytes(8, "little") + b"\1" + bytes(7))  # fmt: skip
    memory.write(0x5BD000, b"\1")
    memory.write(0x5BC000, STATE)
    data = contents(5, 12388)
    for number, phys in enumerate((0x4D8000, 0x19EC000, 0x4D9000, 0x4DA000)):
        memory.write(phys, data[number * PAGE_SIZE : (number + 1) * PAGE_SIZE])
    pages = [0x4D5000, 0x4D6000, 0x4D7000, 0x4D8000, 0x4D9000, 0x4DA000, 0x4DB000, 0x4DC000, 0x5BC000,
             0x5BD000, 0x19EC000]  # fmt: skip
    builder = HandoverBuilder(32 << 20)
    builder.memory.data[:] = memory.data
    builder.blocks += [(phys, 0) for phys in pages]
    builder.add_subtree("LUO", STATE, 0x5BC000)
    handover = Handover.read(builder.finish().memory)
    luo = Luo.read(handover)
    assert luo is not None and not handover.findings.items
    (session,) = luo.sessions
    (file,) = session.files
    assert session.name == "alpha" and file.token == 5 and file.memfd is not None
    assert (file.memfd.pos, file.memfd.size, file.memfd.nr_folios) == (1234, 12388, 4)
    assert file.memfd.sha256(handover.reader) == hashlib.sha256(data).hexdigest()


FILES = st.builds(
    FileToMake,
    st.integers(0, (1 << 64) - 1),
    st.binary(max_size=64).flatmap(lambda head: st.integers(0, 30000).map(lambda n: (head * (n + 1))[:n])),
    st.integers(0, (1 << 64) - 1),
    st.integers(0, 0x3F),
)
NAMES = st.text("abcdefghijklmnopqrstuvwxyz-./ 0123456789", min_size=1, max_size=63)
SESSIONS = st.builds(SessionToMake, NAMES, st.lists(FILES, max_size=4, unique_by=lambda file: file.token))


@settings(max_examples=40)
@given(
    st.lists(SESSIONS, max_size=4, unique_by=lambda session: session.name),
    st.integers(1, (1 << 64) - 1),
    st.lists(st.tuples(NAMES.filter(lambda name: len(name) < 48), st.integers(0, 1 << 60)), max_size=5,
             unique_by=lambda item: item[0]),
)  # fmt: skip
def test_round_trip(sessions: list[SessionToMake], number: int, flbs: list[tuple[str, int]]) -> None:
    builder = HandoverBuilder()
    add_luo(builder, sessions, number=number, flbs=[Flb(name, data, 1) for name, data in flbs])
    handover = Handover.read(builder.finish().memory)
    luo = Luo.read(handover)
    assert luo is not None and luo.liveupdate_num == number and luo.flb_page is not None
    assert [(flb.compatible, flb.data) for flb in luo.flb_page.flbs] == flbs
    found = []
    for session in luo.sessions:
        files = []
        for file in session.files:
            memfd = file.memfd
            assert memfd is not None
            data = b"".join(piece.tobytes() for piece in memfd.contents(handover.reader))
            assert memfd.sha256(handover.reader) == hashlib.sha256(data).hexdigest()
            files.append(FileToMake(file.token, data, memfd.pos, memfd.seals))
        found.append(SessionToMake(session.name, files))
    assert found == sessions
    assert check(handover).ok and not len(handover.unexplained()[0])


@given(st.lists(st.integers(0, 6), min_size=1, max_size=8), st.integers(1, PAGE_SIZE))
@settings(max_examples=40)
def test_folios_of_any_order(orders: list[int], last: int) -> None:
    pages = sum(1 << order for order in orders)
    unused = min((1 << orders[-1]) - 1, pages - 1)
    data = contents(pages, (pages - unused - 1) * PAGE_SIZE + last)
    builder = HandoverBuilder()
    add_luo(builder, [SessionToMake("s", [FileToMake(1, data, orders=orders)])])
    handover = Handover.read(builder.finish().memory)
    assert check(handover).ok
    luo = Luo.read(handover)
    assert luo is not None
    memfd = luo.sessions[0].files[0].memfd
    assert memfd is not None and memfd.folio_order.tolist() == orders
    assert memfd.sha256(handover.reader) == hashlib.sha256(data).hexdigest()


def damage(built: Built, seed: int) -> None:
    """One or two words of what describes the first file of two become others, or a page is lost."""
    at, pick = built.addresses, random.Random(seed)
    pages = [at[f"{what}:s:1"] for what in ("record", "array", "chunk")]
    others = [*pages, at["folio:s:1:0"], at["folio:s:1:2"], at["folio:s:2:0"], at["array:s:2"], at["state"]]
    for _ in range(pick.choice((0, 1, 1, 1, 2))):
        where = pick.choice(pages) + 8 * pick.choice((0, 1, 2, 3, 4, 5, 6, 7, 511))
        phys = pick.choice(others)
        was = read_u64(built, where)
        new = (phys, phys >> 12 | 3 << 52, phys >> 12 | 1 << 52, 0, was + 1, was - 1, was ^ 1 << 52, 1 << 62)
        put(built, where, pick.choice(new) % (1 << 64))
    if pick.random() < 0.3:
        set_bit(built, pick.choice(others), value=False)


def test_small_files_are_decoded_as_all_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """There is a short way for files of some single pages in order, which most take. What it finds, and whose
    the pages are, is the same as without it, whatever is wrong with a file."""

    def decoded(built: Built) -> tuple[object, ...]:
        handover = Handover.read(built.memory, built.fdt_phys, built.scratch, search=False)
        luo = Luo.read(handover)
        found = [str(vars(memfd)) for _, _, memfd in luo.memfds] if luo is not None else []
        listed = [handover.findings.of(f"INV-{n}") for n in range(1, 51)]
        return found, listed, [a.tolist() for a in handover.unexplained()]

    short, taken = luo.memfd._read_small, [0]

    def counted(*args: Any) -> bool:
        took = short(*args)
        taken[0] += took
        return took

    built = build(sessions=(SessionToMake("s", [FileToMake(t, contents(t, 9000)) for t in (1, 2)]),))
    whole = built.memory.data.copy()
    for seed in range(200):
        built.memory.data[:] = whole
        damage(built, seed)
        monkeypatch.setattr(luo.memfd, "_read_small", counted)
        quick = decoded(built)
        monkeypatch.setattr(luo.memfd, "_read_small", lambda *args: False)
        assert quick == decoded(built), f"seed {seed}"
    assert 200 < taken[0] < 350


@pytest.mark.parametrize("sessions", [0, 1, 50, 51, 52, 102, 103, 300])
def test_exactly_full_session_blocks(sessions: int) -> None:
    handover = read(build(sessions=many_sessions(sessions)))
    luo = Luo.read(handover)
    assert luo is not None and luo.chain is not None and check(handover).ok
    assert [session.name for session in luo.sessions] == [f"sess-{number}" for number in range(sessions)]
    assert len(luo.chain.blocks) == -(-sessions // 51)


@pytest.mark.parametrize("files", [1, 62, 63, 64, 126, 127, 200])
def test_exactly_full_file_blocks(files: int) -> None:
    handover = read(build(sessions=many_files(files)))
    luo = Luo.read(handover)
    assert luo is not None and check(handover).ok
    (session,) = luo.sessions
    assert [file.token for file in session.files] == list(range(files)) and session.chain is not None
    assert len(session.chain.blocks) == -(-files // 63)


@pytest.mark.parametrize("pages", [511 * 256 - 1, 511 * 256, 511 * 256 + 1, 600 << 8])
def test_large_file_of_zeros(pages: int) -> None:
    """511 pages of array fill a chunk exactly, and Linux then adds an empty one."""
    ram = 8 << 30
    high = 2 << 30

    class Ram(Buffer):
        """A small buffer below; all zero above."""

        def read(self, phys: int, size: int) -> np.ndarray:
            return np.zeros(size, dtype=np.uint8) if phys >= len(self.data) else super().read(phys, size)

    memory = Ram(32 << 20)
    builder = HandoverBuilder(32 << 20)
    builder.memory = memory
    memory.ranges = [(0, ram)]
    frames = np.random.default_rng(pages).permutation(pages).astype(np.uint64)
    folios = [(high + int(frame) * PAGE_SIZE, 0) for frame in frames]
    record, used = write_memfd(memory, builder.allocate, folios, pages * PAGE_SIZE - 100)
    blocks = write_files(memory, builder.allocate_preserved, [pack_file(record, 1)])
    sessions = write_sessions(memory, builder.allocate_preserved, [pack_session("big", blocks[0], 1)])
    flbs = builder.allocate_preserved()
    memory.write(flbs, pack_page([]))
    builder.add_subtree("LUO", pack_state(1, sessions[0], flbs))
    builder.blocks += [(page, 0) for page in used] + folios
    built = builder.finish()
    start = time.perf_counter()
    handover = Handover.read(built.memory, built.fdt_phys, built.scratch_list)
    luo = Luo.read(handover)
    print(f"\n{pages} pages in {time.perf_counter() - start:.3f} s")
    assert luo is not None and not handover.findings.items, list(handover.findings)[:3]
    memfd = luo.sessions[0].files[0].memfd
    assert memfd is not None and memfd.complete and memfd.area is not None
    array_pages = -(-pages * 16 // PAGE_SIZE)
    assert len(memfd.area.chunks) == array_pages // 511 + 1
    assert memfd.folio_counts() == {0: pages}


def test_names_that_do_not_fit() -> None:
    for name in ("", "x" * 64):
        with pytest.raises(ValueError, match="1 to 63"):
            pack_session(name)
    with pytest.raises(ValueError, match="at most 47"):
        pack_file(0, 0, "c" * 48)


def test_bytes_after_a_name_are_ignored() -> None:
    built = build()
    built.memory.write(built.addresses["session_block:0"] + 16 + 6, b"\xff\xfejunk")
    luo = Luo.read(read(built))
    assert luo is not None and luo.sessions[0].name == "alpha"


def test_names_that_are_not_ascii_are_escaped() -> None:
    built = build()
    built.memory.write(built.addresses["session_block:0"] + 16, b"\xff\x1b[31m")
    luo = Luo.read(read(built))
    assert luo is not None and luo.sessions[0].name == "\\xff\x1b[31m"


def test_contents_that_are_not_complete_have_no_digest() -> None:
    built = build()
    handover = read(built)
    luo = Luo.read(handover)
    assert luo is not None and Luo.read(handover) is luo
    array = built.addresses["array:alpha:1"]
    built.memory.write(array, bytes(16))
    handover = read(built)
    luo = Luo.read(handover)
    assert luo is not None
    memfd = luo.sessions[0].files[0].memfd
    assert memfd is not None and memfd.sha256(handover.reader) is None
    assert luo.sessions[2].files[0].memfd is not None
    assert luo.sessions[2].files[0].memfd.sha256(handover.reader) is not None


def test_tree_writer_is_used_by_nobody_twice() -> None:
    """The same blocks twice are one key: a tree has no ownership."""
    memory = Buffer(1 << 20)
    pages = iter(range(PAGE_SIZE, 1 << 20, PAGE_SIZE))
    phys = np.array([0x80000, 0x80000], dtype=np.uint64)
    _, nodes = write_tree(memory, lambda: next(pages), phys, np.zeros(2, dtype=np.uint8))
    assert len(nodes) == 6 and int(memory.read(nodes[-1][1], PAGE_SIZE).sum()) == 1
