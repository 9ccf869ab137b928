"""FDT blobs: golden bytes of a real kernel, dtc as the other party, one test for each malformation."""

from __future__ import annotations

import struct
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kho import memblock
from kho.errors import FormatError, KhoError, LimitExceeded
from kho.fdt import BEGIN_NODE, DEPTH_MAX, END, END_NODE, HEADER, MAGIC, NOP, PROP, Fdt, Node
from kho.memblock import ReservedRegion
from tests.oracles import require

RECORDED = Path(__file__).parent.parent / "data" / "handovers"
BLOBS = sorted(RECORDED.glob("*/*.dtb"))

# The root FDT of a real kernel: tree at 0x55e000; kexec-metadata, kho_test and LUO were added in this order.
GOLDEN = bytes.fromhex("""
d00dfeed 00000159 00000038 00000120 00000028 00000011 00000010 00000000 00000039 000000e8 00000000 00000000
00000000 00000000 00000001 00000000 00000003 00000007 00000015 6b686f2d 76340000 00000003 00000008 00000000
00e05500 00000000 00000001 4c554f00 00000003 00000008 0000002f 20000000 00000000 00000003 00000008 00000020
00f01c02 00000000 00000002 00000001 6b686f5f 74657374 00000000 00000003 00000008 0000002f f0000000 00000000
00000003 00000008 00000020 00a05700 00000000 00000002 00000001 6b657865 632d6d65 74616461 74610000 00000003
00000008 0000002f 49000000 00000000 00000003 00000008 00000020 00304f00 00000000 00000002 00000002 00000009
70726573 65727665 642d6d65 6d6f7279 2d6d6170 00636f6d 70617469 626c6500 70726573 65727665 642d6461 74610062
6c6f622d 73697a65 00
""")


def u64(value: int) -> bytes:
    return value.to_bytes(8, "little")


def test_reads_the_golden_blob() -> None:
    root = Fdt.parse(GOLDEN).root
    assert root.compatible() == ["kho-v4"]
    assert root.u64("preserved-memory-map") == 0x55E000
    found = {node.name: (node.u64("preserved-data"), node.u64("blob-size")) for node in root.children}
    assert found == {
        "LUO": (0x21CF000, 0x20),
        "kho_test": (0x57A000, 0xF0),
        "kexec-metadata": (0x4F3000, 0x49),
    }
    assert [node.name for node in root.children] == ["LUO", "kho_test", "kexec-metadata"]
    assert list(root.children[0].properties) == ["blob-size", "preserved-data"]


def test_writes_the_golden_blob_by_the_steps_of_the_kernel() -> None:
    root = Node("", {"compatible": b"kho-v4\0", "preserved-memory-map": u64(0x55E000)})
    fdt = Fdt.sequential(root)
    fresh = fdt.write()
    assert len(fresh) == 152 and fresh[8:12] == b"\0\0\0\x40"
    for name, phys, size in (
        ("kexec-metadata", 0x4F3000, 73),
        ("kho_test", 0x57A000, 240),
        ("LUO", 0x21CF000, 32),
    ):
        node = fdt.add_subnode(fdt.root, name)
        fdt.set_property(node, "preserved-data", u64(phys))
        fdt.set_property(node, "blob-size", u64(size))
    assert fdt.write() == GOLDEN


@pytest.mark.parametrize("path", BLOBS, ids=[f"{p.parent.name}/{p.stem}" for p in BLOBS])
def test_recorded_blob_is_written_as_it_was(path: Path) -> None:
    data = path.read_bytes()
    fdt = Fdt.parse(data)
    assert fdt.write() == data
    assert fdt.total_size == len(data)


def test_recorded_blobs_are_here() -> None:
    assert len(BLOBS) > 20


def test_memblock_blob_as_linux_writes_it() -> None:
    data = (RECORDED / "c10-reserve_mem" / "blob-memblock-at-kexec.dtb").read_bytes()
    assert memblock.unpack(data) == [ReservedRegion("golden", 0x7A27000, 1 << 20)]
    assert memblock.pack([ReservedRegion("golden", 0x7A27000, 1 << 20)]) == data


# --- dtc ----------------------------------------------------------------------------------------------------


def dtc(data: bytes, source: str, target: str) -> bytes:
    program = require("dtc")
    command = [str(program), "-q", "-q", "-I", source, "-O", target, "-"]
    done = subprocess.run(command, input=data, capture_output=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout


@pytest.mark.parametrize("path", BLOBS, ids=[f"{p.parent.name}/{p.stem}" for p in BLOBS])
def test_dtc_and_the_recording_agree(path: Path) -> None:
    source = path.with_suffix(".dts").read_bytes()
    ours = Fdt.parse(dtc(source, "dts", "dtb"))
    recorded = Fdt.parse(path.read_bytes())
    assert ours.root == recorded.root
    assert dtc(Fdt.packed(recorded.root).write(), "dtb", "dts") == dtc(path.read_bytes(), "dtb", "dts")


def test_packed_is_what_dtc_makes() -> None:
    for path in BLOBS[:4]:
        made = dtc(path.with_suffix(".dts").read_bytes(), "dts", "dtb")
        assert Fdt.packed(Fdt.parse(made).root).write() == made


def test_dtc_reads_what_we_write() -> None:
    root = Node("", {"compatible": b"a\0b\0", "empty": b""})
    child = Node(
        "child@1", {"reg": struct.pack(">2I", 1, 2), "text": b"hello\0"}, [Node("leaf", {"x": b"\1"})]
    )
    root.children.append(child)
    for blob in (Fdt.packed(root).write(), Fdt.sequential(root).write()):
        text = dtc(blob, "dtb", "dts").decode()
        assert "reg = <0x01 0x02>;" in text and "x = [01];" in text
        assert Fdt.parse(dtc(text.encode(), "dts", "dtb")).root == root


# --- properties ---------------------------------------------------------------------------------------------

NAMES = st.text("abcdefghijklmnopqrstuvwxyz,-_0123456789", min_size=1, max_size=12)


def nodes(name: str) -> st.SearchStrategy[Node]:
    properties = st.dictionaries(NAMES, st.binary(max_size=20), max_size=4)
    leaves = st.builds(Node, NAMES, properties)
    inner = st.recursive(
        leaves,
        lambda below: st.builds(
            Node, NAMES, properties, st.lists(below, max_size=3, unique_by=lambda n: n.name)
        ),
        max_leaves=8,
    )
    return st.builds(Node, st.just(name), properties, st.lists(inner, max_size=3, unique_by=lambda n: n.name))


@given(nodes(""), st.booleans())
def test_round_trip(root: Node, sequential: bool) -> None:
    made = (Fdt.sequential if sequential else Fdt.packed)(root)
    data = made.write()
    again = Fdt.parse(data)
    assert again.root == root
    assert again.write() == data
    assert Fdt.parse(data + b"junk behind").write() == data


@given(nodes(""), st.data())
def test_edits(root: Node, data: st.DataObject) -> None:
    fdt = Fdt.parse(Fdt.packed(root).write())
    name = data.draw(NAMES.filter(lambda name: root.child(name) is None))
    value = data.draw(st.binary(max_size=9))
    fdt.set_property(fdt.add_subnode(fdt.root, name), "blob-size", value)
    with pytest.raises(FormatError, match="already"):
        fdt.add_subnode(fdt.root, name)
    again = Fdt.parse(fdt.write())
    assert again.root.children[0] == Node(name, {"blob-size": value})
    assert again.root.children[1:] == root.children


@given(st.binary(max_size=200))
def test_random_bytes(data: bytes) -> None:
    for blob in (data, struct.pack(">I", MAGIC) + data):
        try:
            Fdt.parse(blob)
        except KhoError as error:
            assert isinstance(error, FormatError) and error.message


@given(st.lists(st.tuples(st.integers(0, len(GOLDEN) - 1), st.integers(0, 255)), min_size=1, max_size=4))
def test_random_mutations(changes: list[tuple[int, int]]) -> None:
    data = bytearray(GOLDEN)
    for at, value in changes:
        data[at] = value
    try:
        fdt = Fdt.parse(bytes(data))
    except KhoError:
        return
    assert Fdt.parse(fdt.write()).root == fdt.root


# --- malformations, one at a time ---------------------------------------------------------------------------


def blob(tokens: bytes, table: bytes = b"name\0", /, **header: int) -> bytes:
    """A blob with this structure block; header fields can be overridden."""
    fields = {
        "magic": MAGIC, "total": 0x38 + len(tokens) + len(table), "struct": 0x38,
        "strings": 0x38 + len(tokens), "reserve": 0x28, "version": 17, "last": 16, "cpu": 0,
        "strings_size": len(table), "struct_size": len(tokens),
    } | header  # fmt: skip
    return HEADER.pack(*fields.values()) + bytes(16) + tokens + table


def words(*items: int | bytes) -> bytes:
    return b"".join(item if isinstance(item, bytes) else struct.pack(">I", item) for item in items)


ROOT = words(BEGIN_NODE, b"\0\0\0\0")
GOOD = ROOT + words(PROP, 4, 0, b"abcd", END_NODE, END)


def test_the_blob_to_damage_is_good() -> None:
    assert Fdt.parse(blob(GOOD)).root == Node("", {"name": b"abcd"})
    assert Fdt.parse(blob(ROOT + words(NOP, NOP, END_NODE, NOP, END))).root == Node("")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: b"", "too few"),
        (lambda: blob(GOOD)[:39], "too few"),
        (lambda: blob(GOOD, magic=0xD00DFEEE), "magic"),
        (lambda: blob(GOOD, version=16), "version"),
        (lambda: blob(GOOD, last=18), "version"),
        (lambda: blob(GOOD)[:-1], "says it has"),
        (lambda: blob(GOOD, total=39), "says it has"),
        (lambda: blob(GOOD, total=0xFFFFFFFF), "larger"),
        (lambda: blob(GOOD, struct=0x3A), "aligned"),
        (lambda: blob(GOOD, struct=0x20), "outside"),
        (lambda: blob(GOOD, struct_size=0xFFFFFFF0), "outside"),
        (lambda: blob(GOOD, strings=0xFFFFFFF0), "outside"),
        (lambda: blob(GOOD, strings_size=6), "outside"),
        (lambda: blob(GOOD, strings=0x40), "overlap"),
        (lambda: blob(GOOD, reserve=0x2C), "aligned"),
        (lambda: blob(GOOD, reserve=0x38), "reservation block has no end"),
        (lambda: blob(b""), "no end"),
        (lambda: blob(ROOT), "no end"),
        (lambda: blob(words(END)), "inside a node"),
        (lambda: blob(ROOT + words(END)), "inside a node"),
        (lambda: blob(words(END_NODE, END)), "never began"),
        (lambda: blob(words(BEGIN_NODE, b"root") + b"\0\0\0\0" + words(END_NODE, END)), "out of place"),
        (lambda: blob(ROOT + ROOT + words(END_NODE, END_NODE, END)), "out of place"),
        (lambda: blob(GOOD[:-4] + ROOT + words(END_NODE, END)), "out of place"),
        (lambda: blob(words(BEGIN_NODE, b"name")), "no end"),
        (lambda: blob(ROOT + words(BEGIN_NODE, b"a\x1b\0\0", END_NODE, END_NODE, END)), "printable"),
        (lambda: blob(ROOT + words(7, END_NODE, END)), "unknown token"),
        (lambda: blob(words(PROP, 4, 0, b"abcd") + GOOD), "beginning of a node"),
        (lambda: blob(ROOT + words(BEGIN_NODE, b"a\0\0\0", END_NODE, PROP, 0, 0, END_NODE)), "beginning"),
        (lambda: blob(ROOT + words(PROP, 4)), "inside a property"),
        (lambda: blob(ROOT + words(PROP, 0x7FFFFFFF, 0, END_NODE, END)), "more than the block"),
        (lambda: blob(ROOT + words(PROP, 0xFFFFFFFF, 0, END_NODE, END)), "more than the block"),
        (lambda: blob(ROOT + words(PROP, 0, 5, END_NODE, END)), "outside the strings"),
        (lambda: blob(GOOD, strings=0x38 + len(GOOD), strings_size=4), "outside the strings"),
        (lambda: blob(ROOT + words(PROP, 0, 4, END_NODE, END)), "empty name"),
        (lambda: blob(GOOD)[:-2] + b"\xff\0", "printable"),
        (lambda: blob(ROOT + words(PROP, 0, 0, PROP, 0, 0, END_NODE, END)), "twice"),
        (lambda: blob(words(BEGIN_NODE, b"a\0\0\0") * 100), "out of place"),
        (lambda: blob(ROOT + words(BEGIN_NODE, b"a\0\0\0") * (DEPTH_MAX + 1)), "deeper"),
    ],
)  # fmt: skip
def test_malformation(make: Callable[[], bytes], message: str) -> None:
    with pytest.raises(FormatError, match=message):
        Fdt.parse(make())


def test_writer_out_of_space_writes_nothing() -> None:
    fdt = Fdt.parse(GOLDEN)
    assert len(fdt.write(len(GOLDEN))) == len(GOLDEN)
    with pytest.raises(LimitExceeded, match="345 bytes"):
        fdt.write(len(GOLDEN) - 1)


def test_property_of_the_wrong_size() -> None:
    node = Node("n", {"x": b"abc"})
    with pytest.raises(FormatError, match="3 bytes instead of 8"):
        node.u64("x")
    with pytest.raises(FormatError, match='no property "y"'):
        node.u32("y")
    assert node.compatible() == []
    assert Node("", {"compatible": b"unterminated"}).compatible() == []
