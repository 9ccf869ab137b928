"""The kernel's device tree code against three others: golden bytes of a real kernel, dtc, and `kho.fdt`.

Blobs lie right before a page that may not be touched, so a step too far ends the test run.
"""

from __future__ import annotations

import ctypes
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kho.errors import FormatError
from kho.fdt import BEGIN_NODE, END, END_NODE, HEADER, MAGIC, NOP, PROP, Fdt, Node
from tests.guest.kho_host import Guarded, Library
from tests.kho.test_fdt import BLOBS, GOLDEN, RECORDED
from tests.oracles import require

NOTFOUND, EXISTS, NOSPACE, BADOFFSET, BADSTATE, TRUNCATED = 1, 2, 3, 4, 7, 8
BADMAGIC, BADVERSION, BADSTRUCTURE, BADLAYOUT, BADVALUE = 9, 10, 11, 12, 15
SIZE_MAX = 16384
NAME_MAX = 63
ROOM = 4096

# GOLDEN right after it was created: written by hand from the specification of the format.
FRESH = bytes.fromhex("""
d00dfeed 00000098 00000040 00000078 00000030 00000011 00000010 00000000 00000020 00000038 00000000 00000000
00000000 00000000 00000000 00000000
00000001 00000000 00000003 00000007 00000015 6b686f2d 76340000 00000003 00000008 00000000 00e05500 00000000
00000002 00000009
70726573 65727665 642d6d65 6d6f7279 2d6d6170 00636f6d 70617469 626c6500
""")


class Writer(ctypes.Structure):
    _fields_ = (
        ("buf", ctypes.c_void_p), ("size", ctypes.c_uint32), ("at", ctypes.c_uint32),
        ("size_strings", ctypes.c_uint32), ("depth", ctypes.c_int), ("err", ctypes.c_int),
        ("had_root", ctypes.c_bool),
    )  # fmt: skip


class GuestFdt:
    """The functions of fdt.h on one guarded buffer of `ROOM` bytes or more."""

    def __init__(self, lib: Library, room: int = ROOM) -> None:
        self.lib = lib
        self.room = room
        self.buffer = Guarded(SIZE_MAX)
        self.at = self.buffer.put(bytes(room))

    @property
    def data(self) -> bytes:
        blob = self.buffer.get(self.room)
        return blob[: int.from_bytes(blob[4:8], "big")]

    @property
    def raw(self) -> bytes:
        return self.buffer.get(self.room)

    def put(self, data: bytes) -> None:
        self.at = self.buffer.put(data.ljust(self.room, b"\xcc"))

    def check(self, data: bytes) -> int:
        return int(self.lib.fdt_check(self.buffer.put(data), len(data)))

    def write(self, root: Node) -> int:
        w = Writer()
        self.lib.fdt_create(ctypes.byref(w), self.at, self.room)

        def node(n: Node) -> None:
            self.lib.fdt_begin_node(ctypes.byref(w), n.name.encode())
            for name, value in n.properties.items():
                self.lib.fdt_property(ctypes.byref(w), name.encode(), value, len(value))
            for child in n.children:
                node(child)
            self.lib.fdt_end_node(ctypes.byref(w))

        node(root)
        return int(self.lib.fdt_finish(ctypes.byref(w)))

    def pack(self) -> int:
        return int(self.lib.fdt_pack(self.at))

    def subnode(self, name: str, parent: int = 0) -> int:
        return int(self.lib.fdt_subnode(self.at, parent, name.encode()))

    def add(self, name: str, parent: int = 0) -> int:
        return int(self.lib.fdt_add_subnode(self.at, self.room, parent, name.encode()))

    def set(self, node: int, name: str, value: bytes) -> int:
        return int(self.lib.fdt_setprop(self.at, self.room, node, name.encode(), value, len(value)))

    def delete(self, node: int) -> int:
        return int(self.lib.fdt_del_node(self.at, node))

    def get(self, node: int, name: str) -> bytes | None:
        size = ctypes.c_uint32()
        function = self.lib._lib.fdt_getprop
        function.restype = ctypes.c_void_p
        at = function(ctypes.c_void_p(self.at), ctypes.c_int(node), name.encode(), ctypes.byref(size))
        return None if at is None else ctypes.string_at(at, size.value)

    def tree(self, node: int = 0) -> list[object]:
        """[name, [children...]] by first_subnode and next_subnode."""
        name = self.lib._lib.fdt_node_name
        name.restype = ctypes.c_char_p
        children = []
        child = int(self.lib.fdt_first_subnode(self.at, node))
        while child >= 0:
            children.append(self.tree(child))
            child = int(self.lib.fdt_next_subnode(self.at, child))
        assert child == -NOTFOUND, child
        return [name(ctypes.c_void_p(self.at), ctypes.c_int(node)).decode(), children]


@pytest.fixture(scope="module")
def lib(library: Path) -> Iterator[Library]:
    loaded = Library(library)
    yield loaded
    loaded.unload()


@pytest.fixture
def guest(lib: Library) -> GuestFdt:
    return GuestFdt(lib)


def u64(value: int) -> bytes:
    return value.to_bytes(8, "little")


def root_node(tree: int = 0x55E000) -> Node:
    return Node("", {"compatible": b"kho-v4\0", "preserved-memory-map": u64(tree)})


def add_blob(guest: GuestFdt, name: str, phys: int, size: int) -> None:
    node = guest.add(name)
    assert node > 0, node
    assert guest.set(node, "preserved-data", u64(phys)) == 0
    assert guest.set(node, "blob-size", u64(size)) == 0


# --- golden bytes -------------------------------------------------------------------------------------------


def test_a_fresh_root_fdt_has_152_known_bytes(guest: GuestFdt) -> None:
    assert guest.write(root_node()) == 0
    assert guest.data == FRESH
    assert len(FRESH) == 152


def test_sub_trees_make_the_blob_of_a_real_kernel(guest: GuestFdt) -> None:
    assert guest.write(root_node()) == 0
    assert guest.pack() == 0
    add_blob(guest, "kexec-metadata", 0x4F3000, 73)
    add_blob(guest, "kho_test", 0x57A000, 240)
    add_blob(guest, "LUO", 0x21CF000, 32)
    assert guest.data == GOLDEN


def test_what_was_added_last_can_be_taken_away_to_the_byte(guest: GuestFdt) -> None:
    guest.put(GOLDEN)
    add_blob(guest, "memblock", 0x1234000, 210)
    assert guest.data != GOLDEN
    assert guest.delete(guest.subnode("memblock")) == 0
    assert guest.data == GOLDEN


def test_deleting_a_node_in_the_middle_leaves_the_others(guest: GuestFdt) -> None:
    guest.put(GOLDEN)
    assert guest.delete(guest.subnode("kho_test")) == 0
    root = Fdt.parse(guest.data).root
    assert [n.name for n in root.children] == ["LUO", "kexec-metadata"]
    assert root.children[1].u64("preserved-data") == 0x4F3000
    assert guest.subnode("kho_test") == -NOTFOUND


def test_reads_the_golden_blob(guest: GuestFdt) -> None:
    guest.put(GOLDEN)
    assert guest.check(GOLDEN) == 0
    guest.put(GOLDEN)
    assert guest.tree() == ["", [["LUO", []], ["kho_test", []], ["kexec-metadata", []]]]
    assert guest.get(0, "compatible") == b"kho-v4\0"
    assert guest.get(guest.subnode("LUO"), "preserved-data") == u64(0x21CF000)
    assert guest.get(guest.subnode("LUO"), "nothing") is None


@pytest.mark.parametrize("path", BLOBS, ids=[f"{p.parent.name}/{p.stem}" for p in BLOBS])
def test_recorded_blobs_of_linux_are_accepted(guest: GuestFdt, path: Path) -> None:
    assert guest.check(path.read_bytes()) == 0


def test_memblock_blob_is_the_one_that_linux_wrote(guest: GuestFdt) -> None:
    data = (RECORDED / "c10-reserve_mem" / "blob-memblock-at-kexec.dtb").read_bytes()
    assert guest.write(Fdt.parse(data).root) == 0
    assert guest.data == data


# --- other readers and writers ------------------------------------------------------------------------------

NAMES = st.sampled_from(["LUO", "kho_test", "kexec-metadata", "memblock", "a", "data", "x" * NAME_MAX])
PROPERTY_NAMES = st.sampled_from(
    ["compatible", "preserved-data", "data", "blob-size", "size", "e", "y" * NAME_MAX]
)
VALUES = st.binary(max_size=24)


@st.composite
def nodes(draw: st.DrawFn, depth: int = 3, name: str = "") -> Node:
    node = Node(name, draw(st.dictionaries(PROPERTY_NAMES, VALUES, max_size=4)))
    if depth:
        for child in draw(st.lists(NAMES, max_size=3, unique=True)):
            node.children.append(draw(nodes(depth=depth - 1, name=child)))
    return node


def shape(node: Node) -> list[object]:
    return [node.name, [shape(child) for child in node.children]]


def same(a: Node, b: Node) -> bool:
    return (
        a.name == b.name
        and list(a.properties.items()) == list(b.properties.items())
        and len(a.children) == len(b.children)
        and all(same(x, y) for x, y in zip(a.children, b.children, strict=True))
    )


@given(nodes())
def test_writes_what_the_host_writes(lib: Library, root: Node) -> None:
    guest = GuestFdt(lib)
    assert guest.write(root) == 0
    assert same(Fdt.parse(guest.data).root, root)
    names = {name for _, node in root.walk() for name in node.properties}
    if len({"size", "blob-size", "data", "preserved-data", "e"} & names) < 2:
        # a name that is the tail of one that comes later has its own place here, as in Linux
        assert guest.data == Fdt.sequential(root).write()


@given(nodes(), st.booleans())
def test_reads_what_the_host_writes(lib: Library, root: Node, packed: bool) -> None:
    guest = GuestFdt(lib)
    data = (Fdt.packed(root) if packed else Fdt.sequential(root)).write()
    assert guest.check(data) == 0
    guest.put(data)
    assert guest.tree() == shape(root)
    for name, value in root.properties.items():
        assert guest.get(0, name) == value


@given(st.data())
def test_edits_as_the_host_does(lib: Library, data: st.DataObject) -> None:
    """Any sequence of edits gives the bytes that the host's writer gives."""
    guest = GuestFdt(lib)
    fdt = Fdt.sequential(root_node())
    assert guest.write(fdt.root) == 0
    assert guest.pack() == 0
    fdt.reserve_offset = 0x28
    for _ in range(data.draw(st.integers(1, 12))):
        name = data.draw(NAMES)
        there = fdt.root.child(name)
        match data.draw(st.sampled_from(["add", "set", "set", "delete"])):
            case "add":
                offset = guest.add(name)
                assert (offset == -EXISTS) == (there is not None)
                if there is None:
                    fdt.add_subnode(fdt.root, name)
            case "set" if there is not None:
                prop, value = data.draw(PROPERTY_NAMES), data.draw(VALUES)
                assert guest.set(guest.subnode(name), prop, value) == 0
                fdt.set_property(there, prop, value)
            case "delete" if there is not None:
                assert guest.delete(guest.subnode(name)) == 0
                fdt.root.children.remove(there)
        assert guest.data == fdt.write(), f"after an edit of {name}"
        assert guest.lib.fdt_check(guest.at, ROOM) == 0


@settings(max_examples=25)
@given(nodes())
def test_dtc_reads_what_the_guest_writes(lib: Library, root: Node) -> None:
    dtc = require("dtc")
    guest = GuestFdt(lib)
    assert guest.write(root) == 0
    run = subprocess.run(
        [dtc, "-q", "-f", "-I", "dtb", "-O", "dtb"], input=guest.data, capture_output=True, check=False
    )
    assert run.returncode == 0, run.stderr.decode()
    assert same(Fdt.parse(run.stdout).root, root)
    assert GuestFdt(lib).check(run.stdout) == 0


def test_dtc_accepts_an_edited_blob(guest: GuestFdt) -> None:
    dtc = require("dtc")
    assert guest.write(root_node()) == 0
    assert guest.pack() == 0
    add_blob(guest, "kexec-metadata", 0x4F3000, 73)
    add_blob(guest, "LUO", 0x21CF000, 32)
    assert guest.delete(guest.subnode("kexec-metadata")) == 0
    run = subprocess.run([dtc, "-I", "dtb", "-O", "dts"], input=guest.data, capture_output=True, check=False)
    assert run.returncode == 0 and b"LUO {" in run.stdout, run.stderr.decode()


# --- no space -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["a", "abc", "abcd", "kexec-metadata"])
def test_a_node_that_does_not_fit_changes_nothing(lib: Library, name: str) -> None:
    need = len(GOLDEN) + 8 + (len(name) + 4) // 4 * 4
    guest = GuestFdt(lib, need)
    guest.put(GOLDEN)
    guest.room = need - 1
    guest.put(GOLDEN)
    before = guest.raw
    name = name.replace("kexec", "other")
    assert guest.add(name) == -NOSPACE
    assert guest.raw == before
    guest.room = need
    guest.put(GOLDEN)
    assert guest.add(name) > 0


@pytest.mark.parametrize("prop", ["preserved-data", "quite-new"])
@pytest.mark.parametrize("size", [0, 1, 4, 9])
def test_a_property_that_does_not_fit_changes_nothing(lib: Library, prop: str, size: int) -> None:
    guest = GuestFdt(
        lib, len(GOLDEN) + 12 + (size + 3) // 4 * 4 + (len(prop) + 1 if prop == "quite-new" else 0)
    )
    guest.room -= 1
    guest.put(GOLDEN)
    before = guest.raw
    assert guest.set(0, prop, bytes(size)) == -NOSPACE
    assert guest.raw == before
    guest.room += 1
    guest.put(GOLDEN)
    assert guest.set(0, prop, bytes(size)) == 0
    assert len(guest.data) == guest.room


def test_a_property_may_grow_by_what_is_left_and_no_more(lib: Library) -> None:
    guest = GuestFdt(lib, len(GOLDEN) + 8)
    guest.put(GOLDEN)
    before = guest.raw
    assert guest.set(0, "compatible", bytes(17)) == -NOSPACE
    assert guest.raw == before
    assert guest.set(0, "compatible", bytes(16)) == 0
    assert guest.get(0, "compatible") == bytes(16)


@pytest.mark.parametrize("room", range(0, 152, 7))
def test_creating_without_room_stays_inside(lib: Library, room: int) -> None:
    guest = GuestFdt(lib, room)
    assert guest.write(root_node()) == -NOSPACE


def test_creating_in_just_enough_room(lib: Library) -> None:
    guest = GuestFdt(lib, len(FRESH))
    assert guest.write(root_node()) == 0
    assert guest.data == FRESH


def test_the_writer_refuses_a_wrong_order_of_calls(lib: Library) -> None:
    buffer = Guarded(ROOM)
    at = buffer.put(bytes(ROOM))

    def outcome(*calls: tuple[str, object]) -> int:
        w = Writer()
        lib.fdt_create(ctypes.byref(w), at, ROOM)
        for name, argument in calls:
            arguments = () if argument is None else (argument,)
            getattr(lib, name)(ctypes.byref(w), *arguments)
        return int(lib.fdt_finish(ctypes.byref(w)))

    assert outcome() == -BADSTATE
    assert outcome(("fdt_begin_node", b"")) == -BADSTATE
    assert outcome(("fdt_end_node", None)) == -BADSTATE
    assert outcome(("fdt_begin_node", b"x"), ("fdt_end_node", None)) == -BADSTATE
    two_roots = ("fdt_begin_node", b""), ("fdt_end_node", None)
    assert outcome(*two_roots) == 0
    assert outcome(*two_roots, *two_roots) == -BADSTATE


def test_edits_refuse_what_is_no_node(guest: GuestFdt) -> None:
    guest.put(GOLDEN)
    for offset in (-1, 4, 8, 2, 0xE4, 1 << 20):
        assert guest.add("x", offset) == -BADOFFSET
        assert guest.set(offset, "x", b"") == -BADOFFSET
        assert guest.delete(offset) == -BADOFFSET
    assert guest.data == GOLDEN


def test_edits_refuse_an_unpacked_blob(guest: GuestFdt) -> None:
    """Between structure and strings there is a gap: the strings would be moved over what is in it."""
    fdt = bytearray(GOLDEN[:0x120] + bytes(8) + GOLDEN[0x120:])
    fdt[4:8] = len(fdt).to_bytes(4, "big")
    fdt[12:16] = (0x128).to_bytes(4, "big")
    guest.put(bytes(fdt))
    assert guest.add("x") == -BADLAYOUT
    assert guest.data == fdt
    assert guest.pack() == 0
    assert guest.data == GOLDEN


# --- malformed ----------------------------------------------------------------------------------------------


def blob(structure: bytes, text: bytes = b"name\0other\0", **header: int) -> bytes:
    """A packed blob around a structure block, with fields of the header replaced."""
    fields = {
        "magic": MAGIC, "total": 0, "struct": 0x38, "strings": 0x38 + len(structure), "reserve": 0x28,
        "version": 17, "last": 16, "cpu": 0, "size_strings": len(text), "size_struct": len(structure),
    }  # fmt: skip
    fields["total"] = fields["strings"] + len(text)
    fields.update(header)
    return HEADER.pack(*fields.values()) + bytes(16) + structure + text


def words(*values: int | bytes) -> bytes:
    return b"".join(v if isinstance(v, bytes) else v.to_bytes(4, "big") for v in values)


def nested(levels: int) -> bytes:
    """The root and so many nodes, each in the one before."""
    return words(ROOT) + words(BEGIN_NODE, b"abc\0") * levels + words(END_NODE) * (levels + 1) + words(END)


ROOT = words(BEGIN_NODE, 0)
EMPTY = words(BEGIN_NODE, 0, END_NODE, END)
MALFORMED = {
    "magic": (blob(EMPTY, magic=MAGIC ^ 1), BADMAGIC),
    "old version": (blob(EMPTY, version=16), BADVERSION),
    "too new": (blob(EMPTY, last=18), BADVERSION),
    "longer than there is": (blob(EMPTY, total=1000), TRUNCATED),
    "shorter than its header": (blob(EMPTY, total=39), TRUNCATED),
    "structure before the blocks": (blob(EMPTY, struct=0), TRUNCATED),
    "structure behind the end": (blob(EMPTY, struct=0x1000), TRUNCATED),
    "structure too long": (blob(EMPTY, size_struct=0xFFFFFFFC), TRUNCATED),
    "structure not aligned": (blob(EMPTY, struct=0x3A), BADLAYOUT),
    "strings behind the end": (blob(EMPTY, strings=0xFFFFFFFF), TRUNCATED),
    "strings over the structure": (blob(EMPTY, strings=0x38), BADLAYOUT),
    "reservations not aligned": (blob(EMPTY, reserve=0x2C), BADLAYOUT),
    "reservations over the structure": (
        blob(words(ROOT, PROP, 28, 0, bytes(28), END_NODE, END), reserve=0x50), BADLAYOUT,
    ),
    "reservations without end": (blob(EMPTY, reserve=0x38), TRUNCATED),
    "no end": (blob(words(ROOT, END_NODE)), BADSTRUCTURE),
    "empty structure": (blob(b""), BADSTRUCTURE),
    "no root": (blob(words(END)), BADSTRUCTURE),
    "root with a name": (blob(words(BEGIN_NODE, b"abc\0", END_NODE, END)), BADSTRUCTURE),
    "two roots": (blob(words(ROOT, END_NODE, ROOT, END_NODE, END)), BADSTRUCTURE),
    "node without name": (blob(words(ROOT, ROOT, END_NODE, END_NODE, END)), BADSTRUCTURE),
    "node never ended": (blob(words(ROOT, END)), BADSTRUCTURE),
    "node ended twice": (blob(words(ROOT, END_NODE, END_NODE, END)), BADSTRUCTURE),
    "name without end": (blob(words(ROOT, BEGIN_NODE, b"abcd")), BADSTRUCTURE),
    "name not printable": (blob(words(ROOT, BEGIN_NODE, b"a\x01c\0", END_NODE, END_NODE, END)), BADSTRUCTURE),
    "name too long": (
        blob(words(ROOT, BEGIN_NODE, b"a" * 64 + bytes(4), END_NODE, END_NODE, END)), BADSTRUCTURE,
    ),
    "unknown token": (blob(words(ROOT, 5, END_NODE, END)), BADSTRUCTURE),
    "property outside": (blob(words(PROP, 0, 0, ROOT, END_NODE, END)), BADSTRUCTURE),
    "property after a node": (
        blob(words(ROOT, BEGIN_NODE, b"abc\0", END_NODE, PROP, 0, 0, END_NODE, END)), BADSTRUCTURE,
    ),
    "property twice": (blob(words(ROOT, PROP, 0, 0, PROP, 0, 0, END_NODE, END)), BADSTRUCTURE),
    "property longer than the rest": (blob(words(ROOT, PROP, 100, 0, END_NODE, END)), BADSTRUCTURE),
    "property of 4 GiB": (blob(words(ROOT, PROP, 0xFFFFFFFF, 0, END_NODE, END)), BADSTRUCTURE),
    "property cut": (blob(words(ROOT, PROP, 0)), BADSTRUCTURE),
    "property name outside": (blob(words(ROOT, PROP, 0, 11, END_NODE, END)), BADSTRUCTURE),
    "property name without end": (
        blob(words(ROOT, PROP, 0, 0, END_NODE, END), text=b"name"), BADSTRUCTURE,
    ),
    "property name empty": (blob(words(ROOT, PROP, 0, 4, END_NODE, END)), BADSTRUCTURE),
    "property name too long": (
        blob(words(ROOT, PROP, 0, 0, END_NODE, END), text=b"n" * 64 + b"\0"), BADSTRUCTURE,
    ),
    "33 levels": (
        blob(nested(32)), BADSTRUCTURE,
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", MALFORMED)
def test_malformed_blob_is_refused_by_the_right_code(guest: GuestFdt, what: str) -> None:
    data, code = MALFORMED[what]
    assert guest.check(data) == -code


def test_what_those_blobs_are_made_from_is_accepted(guest: GuestFdt) -> None:
    assert guest.check(blob(EMPTY)) == 0
    assert (
        guest.check(blob(words(NOP, ROOT, NOP, PROP, 3, 0, b"abcd", NOP, PROP, 0, 5, END_NODE, NOP, END)))
        == 0
    )
    assert guest.check(blob(nested(31))) == 0
    assert guest.check(blob(EMPTY) + b"what follows") == 0
    assert guest.check(blob(words(ROOT, END_NODE, END, 5, 5))) == 0


def test_no_operations_are_skipped_by_readers(guest: GuestFdt) -> None:
    guest.put(blob(words(
        NOP, ROOT, NOP, PROP, 4, 0, b"abcd", NOP, PROP, 0, 5, NOP, BEGIN_NODE, b"one\0", NOP, END_NODE, NOP,
        BEGIN_NODE, b"two\0", PROP, 4, 0, b"wxyz", NOP, END_NODE, NOP, END_NODE, NOP, END,
    )))  # fmt: skip
    assert guest.tree() == ["", [["one", []], ["two", []]]]
    assert guest.get(0, "name") == b"abcd"
    assert guest.get(0, "other") == b""
    assert guest.get(guest.subnode("two"), "name") == b"wxyz"
    assert guest.get(guest.subnode("one"), "name") is None


def test_a_blob_larger_than_the_limit_is_refused(lib: Library) -> None:
    guest = GuestFdt(lib, SIZE_MAX)
    root = Node("", {"big": bytes(SIZE_MAX - 0x38 - 8 - 12 - 8 - 4)})
    data = Fdt.packed(root).write()
    assert len(data) == SIZE_MAX
    assert guest.check(data) == 0
    longer = Guarded(SIZE_MAX + 4096)
    data = Fdt.packed(Node("", {"big": root.properties["big"] + bytes(4)})).write()
    assert int(lib.fdt_check(longer.put(data), len(data))) == -TRUNCATED


def test_truncated_blobs_are_refused(guest: GuestFdt) -> None:
    """By the size there is, and also when the header agrees with it."""
    for size in range(len(GOLDEN)):
        assert guest.check(GOLDEN[:size]) < 0, size
        if size >= 8:
            assert guest.check(GOLDEN[:4] + size.to_bytes(4, "big") + GOLDEN[8:size]) < 0, size


def accepted_by_host(data: bytes) -> bool:
    try:
        Fdt.parse(data)
    except FormatError:
        return False
    return True


def use_everything(guest: GuestFdt) -> None:
    guest.tree()
    child = int(guest.lib.fdt_first_subnode(guest.at, 0))
    while child >= 0:
        guest.get(child, "preserved-data")
        child = int(guest.lib.fdt_next_subnode(guest.at, child))
    guest.lib.fdt_node_compatible(guest.at, 0, b"kho-v4")


@settings(max_examples=600)
@given(
    st.sampled_from([GOLDEN, FRESH]),
    st.lists(st.tuples(st.integers(0, len(GOLDEN) - 1), st.integers(0, 255)), min_size=1, max_size=4),
)
def test_mutated_blob_is_judged_as_the_host_judges_it(
    lib: Library, good: bytes, changes: list[tuple[int, int]]
) -> None:
    """Whatever is accepted can be read without harm."""
    data = bytearray(good)
    for at, value in changes:
        data[at % len(data)] = value
    guest = GuestFdt(lib, len(data))
    ok = guest.check(bytes(data)) == 0
    assert ok == accepted_by_host(bytes(data)), bytes(data).hex()
    if ok:
        guest.put(bytes(data))
        use_everything(guest)


@settings(max_examples=300)
@given(st.binary(max_size=300))
def test_random_structure_blocks_do_no_harm(lib: Library, junk: bytes) -> None:
    data = blob(words(ROOT, junk + bytes(-len(junk) % 4), END_NODE, END))
    guest = GuestFdt(lib, len(data))
    assert (guest.check(data) == 0) == accepted_by_host(data)


TOKENS = st.sampled_from([BEGIN_NODE, END_NODE, PROP, NOP, END, 0, 4, 5, 0x61626300])


@settings(max_examples=600)
@given(st.lists(TOKENS, max_size=24))
def test_random_tokens_are_judged_as_the_host_judges_them(lib: Library, tokens: list[int]) -> None:
    data = blob(words(BEGIN_NODE, 0, *tokens))
    guest = GuestFdt(lib, len(data))
    ok = guest.check(data) == 0
    assert ok == accepted_by_host(data), tokens
    if ok:
        guest.put(data)
        use_everything(guest)


@pytest.mark.parametrize(
    ("value", "wanted", "expected"),
    [
        (b"kho-v4\0", b"kho-v4", 0),
        (b"kho-v3\0", b"kho-v4", 1),
        (b"kho-v4", b"kho-v4", 1),
        (b"kho-v44\0", b"kho-v4", 1),
        (b"kho-v5\0kho-v4\0", b"kho-v4", 0),
        (b"kho-v5\0kho-v4", b"kho-v4", 1),
        (b"", b"kho-v4", 1),
        (b"\0\0kho-v4\0", b"kho-v4", 0),
        (None, b"kho-v4", -NOTFOUND),
    ],
)
def test_compatible_is_a_list_of_terminated_strings(
    guest: GuestFdt, value: bytes | None, wanted: bytes, expected: int
) -> None:
    assert guest.write(Node("", {} if value is None else {"compatible": value})) == 0
    assert guest.lib.fdt_node_compatible(guest.at, 0, wanted) == expected


def test_integers_of_another_size_are_refused(guest: GuestFdt) -> None:
    assert guest.write(Node("", {"a": bytes(7), "b": b"\x01" + bytes(7), "c": b"\x02\0\0\0"})) == 0
    value = ctypes.c_uint64(99)
    read = guest.lib.fdt_getprop_u64
    assert read(guest.at, 0, b"a", ctypes.byref(value)) == -BADVALUE
    assert read(guest.at, 0, b"none", ctypes.byref(value)) == -NOTFOUND
    assert value.value == 99
    assert read(guest.at, 0, b"b", ctypes.byref(value)) == 0 and value.value == 1
    short = ctypes.c_uint32(99)
    assert guest.lib.fdt_getprop_u32(guest.at, 0, b"b", ctypes.byref(short)) == -BADVALUE
    assert guest.lib.fdt_getprop_u32(guest.at, 0, b"c", ctypes.byref(short)) == 0 and short.value == 2
