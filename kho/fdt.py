"""Flattened device tree, version 17: read, edit and write (Devicetree Specification, chapter 5).

KHO uses the container only: property payloads are raw bytes here and their meaning belongs to whoever asks
for them. The reader is strict (header, bounds, alignment, nesting, string offsets) and takes time and memory
in proportion to the blob. The writer can reproduce what Linux writes byte for byte, which needs two habits of
libfdt:

- *sequential* blobs (fdt_create … fdt_finish) have their reservation block at 0x30 and a string table that
  grows
  downwards, so that the string used last comes first;
- *packed* blobs (opened for editing, then packed) have it at 0x28, new strings go to the end, and a new
  property
  or sub-node is put in front of the others of its kind.

In both a string that is the tail of one already there is shared.
"""

from __future__ import annotations

import itertools
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final

from kho.errors import FormatError, LimitExceeded

MAGIC: Final = 0xD00DFEED
VERSION: Final = 17
LAST_COMPATIBLE: Final = 16
HEADER: Final = struct.Struct(">10I")
RESERVATION: Final = struct.Struct(">QQ")
TOKEN: Final = struct.Struct(">I")
PROPERTY: Final = struct.Struct(">II")

BEGIN_NODE: Final = 1
END_NODE: Final = 2
PROP: Final = 3
NOP: Final = 4
END: Final = 9

BLOB_SIZE_MAX: Final = 1 << 20
DEPTH_MAX: Final = 32
RESERVE_OFFSET_PACKED: Final = 0x28
RESERVE_OFFSET_SEQUENTIAL: Final = 0x30


@dataclass
class Node:
    """One node: its name ("" for the root), properties in blob order, and sub-nodes in blob order.

    Sub-nodes are a list because a damaged blob may have two of one name.
    """

    name: str = ""
    properties: dict[str, bytes] = field(default_factory=dict)
    children: list[Node] = field(default_factory=list)

    def child(self, name: str) -> Node | None:
        """The first sub-node of that name."""
        return next((c for c in self.children if c.name == name), None)

    def u64(self, name: str) -> int:
        """A property that is one little-endian 64-bit integer, as KHO stores them; FormatError otherwise."""
        return int.from_bytes(self._exactly(name, 8), "little")

    def u32(self, name: str) -> int:
        """A property that is one little-endian 32-bit integer; FormatError otherwise."""
        return int.from_bytes(self._exactly(name, 4), "little")

    def compatible(self) -> list[str]:
        """The strings of `compatible`; empty when it is missing or is not a list of NUL-terminated
        strings.
        """
        value = self.properties.get("compatible", b"")
        if not value.endswith(b"\0"):
            return []
        return [part.decode("latin-1") for part in value[:-1].split(b"\0")]

    def walk(self, path: str = "") -> Iterator[tuple[str, Node]]:
        """(path, node) of this node and all below it, in blob order."""
        here = f"{path}/{self.name}" if path != "/" else f"/{self.name}"
        yield here or "/", self
        for node in self.children:
            yield from node.walk(here)

    def _exactly(self, name: str, size: int) -> bytes:
        value = self.properties.get(name)
        if value is None:
            raise FormatError(f'node "{self.name or "/"}" has no property "{name}"')
        if len(value) != size:
            raise FormatError(
                f'property "{name}" of node "{self.name or "/"}" has {len(value)} bytes instead of {size}'
            )
        return value


@dataclass
class Fdt:
    """A whole blob: the tree and what is needed to write it again exactly as it was."""

    root: Node
    strings: bytes = b""
    reserve_offset: int = RESERVE_OFFSET_PACKED
    reservations: list[tuple[int, int]] = field(default_factory=list)
    boot_cpuid: int = 0
    last_compatible: int = LAST_COMPATIBLE
    total_size: int = 0
    """Bytes of the blob as its header said, 0 for a tree that was not read from one."""

    @classmethod
    def sequential(cls, root: Node) -> Fdt:
        """A blob as fdt_create … fdt_finish make it; properties and nodes in the order of `root`."""
        fdt = cls(root, reserve_offset=RESERVE_OFFSET_SEQUENTIAL)
        for _, node in root.walk():
            for name in node.properties:
                if _find(fdt.strings, name) < 0:
                    fdt.strings = name.encode() + b"\0" + fdt.strings
        return fdt

    @classmethod
    def packed(cls, root: Node) -> Fdt:
        """A blob as dtc makes it; properties and nodes in the order of `root`."""
        fdt = cls(root)
        fdt._intern()
        return fdt

    @classmethod
    def parse(cls, data: bytes) -> Fdt:
        """Read a blob at the beginning of `data`; what follows it is ignored. FormatError if it is
        malformed.
        """
        return _Parser(data).parse()

    def add_subnode(self, parent: Node, name: str) -> Node:
        """Insert an empty sub-node in front of the others, as fdt_add_subnode does, and repack."""
        if parent.child(name) is not None:
            raise FormatError(f'there is a node "{name}" already')
        node = Node(name)
        parent.children.insert(0, node)
        self.reserve_offset = RESERVE_OFFSET_PACKED
        return node

    def set_property(self, node: Node, name: str, value: bytes) -> None:
        """Change a property, or insert a new one in front of the others, as fdt_setprop does, and repack."""
        if name in node.properties:
            node.properties[name] = value
        else:
            rest = dict(node.properties)
            node.properties.clear()
            node.properties[name] = value
            node.properties.update(rest)
            if _find(self.strings, name) < 0:
                self.strings += name.encode() + b"\0"
        self.reserve_offset = RESERVE_OFFSET_PACKED

    def write(self, size_max: int = BLOB_SIZE_MAX) -> bytes:
        """The blob; LimitExceeded when it would be larger than `size_max`."""
        self._intern()
        out = bytearray()
        self._write_node(self.root, out)
        out += TOKEN.pack(END)
        reserve = b"".join(RESERVATION.pack(a, s) for a, s in [*self.reservations, (0, 0)])
        struct_offset = self.reserve_offset + len(reserve)
        strings_offset = struct_offset + len(out)
        total = strings_offset + len(self.strings)
        if total > size_max:
            raise LimitExceeded(f"the device tree needs {total} bytes, there are {size_max}")
        header = HEADER.pack(
            MAGIC, total, struct_offset, strings_offset, self.reserve_offset,
            VERSION, self.last_compatible, self.boot_cpuid, len(self.strings), len(out),
        )  # fmt: skip
        return header.ljust(self.reserve_offset, b"\0") + reserve + bytes(out) + self.strings

    def _intern(self) -> None:
        for _, node in self.root.walk():
            for name in node.properties:
                if _find(self.strings, name) < 0:
                    self.strings += name.encode() + b"\0"

    def _write_node(self, node: Node, out: bytearray) -> None:
        out += TOKEN.pack(BEGIN_NODE) + node.name.encode() + b"\0"
        out += bytes(-len(out) % 4)
        for name, value in node.properties.items():
            out += TOKEN.pack(PROP) + PROPERTY.pack(len(value), _find(self.strings, name)) + value
            out += bytes(-len(out) % 4)
        for child in node.children:
            self._write_node(child, out)
        out += TOKEN.pack(END_NODE)


def _find(strings: bytes, name: str) -> int:
    """Offset of `name` in a string table, also as the tail of a longer string; -1 when it is not there."""
    return strings.find(name.encode() + b"\0")


def header_size(data: bytes) -> int:
    """`totalsize` of the blob that begins `data`; FormatError when that is no header of version 17."""
    if len(data) < HEADER.size:
        raise FormatError(f"{len(data)} bytes are too few for a device tree header")
    magic, total, *_, version, last, _, _, _ = HEADER.unpack_from(data)
    if magic != MAGIC:
        raise FormatError(f"bad device tree magic {magic:#010x}")
    if version < VERSION or last > VERSION:
        raise FormatError(f"device tree version {version} (compatible with {last}) is not supported")
    return int(total)


class _Parser:
    """One pass over a blob. The structure block is read as a stream of tokens with an explicit stack."""

    def __init__(self, data: bytes) -> None:
        total = header_size(data)
        if total > BLOB_SIZE_MAX:
            raise FormatError(f"device tree of {total} bytes is larger than {BLOB_SIZE_MAX}")
        if not HEADER.size <= total <= len(data):
            raise FormatError(f"device tree says it has {total} bytes, but there are {len(data)}")
        (_, _, self.struct_offset, self.strings_offset, self.reserve_offset, _, self.last, self.cpu,
         self.strings_size, self.struct_size) = HEADER.unpack_from(data)  # fmt: skip
        self.data = data[:total]
        self.total = total

    def parse(self) -> Fdt:
        self._block("structure", self.struct_offset, self.struct_size, 4)
        self._block("strings", self.strings_offset, self.strings_size, 1)
        reservations, reserve_size = self._reservations()
        self._no_overlap(
            (self.reserve_offset, reserve_size),
            (self.struct_offset, self.struct_size),
            (self.strings_offset, self.strings_size),
        )
        self.strings = self.data[self.strings_offset : self.strings_offset + self.strings_size]
        self.names: dict[int, str] = {}
        root = self._structure()
        return Fdt(
            root, self.strings, self.reserve_offset, reservations, self.cpu, self.last, total_size=self.total
        )

    def _block(self, what: str, offset: int, size: int, align: int) -> None:
        if offset % align:
            raise FormatError(f"{what} block at {offset:#x} is not aligned to {align}")
        if offset < HEADER.size or offset + size > self.total:
            raise FormatError(f"{what} block {offset:#x}+{size:#x} is outside the blob of {self.total} bytes")

    def _reservations(self) -> tuple[list[tuple[int, int]], int]:
        self._block("reservation", self.reserve_offset, RESERVATION.size, 8)
        found: list[tuple[int, int]] = []
        at = self.reserve_offset
        while at + RESERVATION.size <= self.total:
            address, size = RESERVATION.unpack_from(self.data, at)
            at += RESERVATION.size
            if not address and not size:
                return found, at - self.reserve_offset
            found.append((address, size))
        raise FormatError("the reservation block has no end")

    def _no_overlap(self, *blocks: tuple[int, int]) -> None:
        used = sorted((offset, offset + size) for offset, size in blocks if size)
        for (_, end), (start, _) in itertools.pairwise(used):
            if start < end:
                raise FormatError(f"blocks of the device tree overlap at {start:#x}")

    def _structure(self) -> Node:
        data = self.data
        at = self.struct_offset
        end = at + self.struct_size
        top = Node("<top>")
        stack = [top]
        unpack_token = TOKEN.unpack_from
        while True:
            if at + 4 > end:
                raise FormatError("the structure block has no end")
            token = unpack_token(data, at)[0]
            at += 4
            if token == PROP:
                at = self._property(stack, at, end)
            elif token == BEGIN_NODE:
                nul = data.find(b"\0", at, end)
                if nul < 0:
                    raise FormatError(f"the node name at {at:#x} has no end")
                name = _text(data[at:nul], at)
                if (len(stack) == 1) != (name == "") or (len(stack) == 1 and top.children):
                    raise FormatError(f'node "{name}" at {at:#x} is out of place')
                if len(stack) > DEPTH_MAX:
                    raise FormatError(f"nodes nest deeper than {DEPTH_MAX}")
                node = Node(name)
                stack[-1].children.append(node)
                stack.append(node)
                at = self._aligned(nul + 1)
            elif token == END_NODE:
                if len(stack) == 1:
                    raise FormatError(f"a node ends at {at - 4:#x} that never began")
                stack.pop()
            elif token == END:
                if len(stack) != 1 or not top.children:
                    raise FormatError("the structure block ends inside a node")
                return top.children[0]
            elif token != NOP:
                raise FormatError(f"unknown token {token:#x} at {at - 4:#x}")

    def _property(self, stack: list[Node], at: int, end: int) -> int:
        node = stack[-1]
        if len(stack) == 1 or node.children:
            raise FormatError(f"the property at {at - 4:#x} is not at the beginning of a node")
        if at + PROPERTY.size > end:
            raise FormatError("the structure block ends inside a property")
        size, name_offset = PROPERTY.unpack_from(self.data, at)
        at += PROPERTY.size
        if at + size > end:
            raise FormatError(f"the property at {at:#x} has {size} bytes, more than the block has left")
        name = self.names.get(name_offset)
        if name is None:
            nul = self.strings.find(b"\0", name_offset)
            if name_offset >= self.strings_size or nul < 0:
                raise FormatError(f"property name offset {name_offset:#x} is outside the strings block")
            name = _text(self.strings[name_offset:nul], self.strings_offset + name_offset)
            if not name:
                raise FormatError(f"the property at {at:#x} has an empty name")
            self.names[name_offset] = name
        if name in node.properties:
            raise FormatError(f'node "{node.name or "/"}" has the property "{name}" twice')
        node.properties[name] = self.data[at : at + size]
        return self._aligned(at + size)

    def _aligned(self, at: int) -> int:
        """Tokens are aligned to 4 bytes from the beginning of the structure block, which is aligned
        itself.
        """
        return -(-at // 4) * 4


def _text(raw: bytes, at: int) -> str:
    if not all(0x20 <= byte < 0x7F for byte in raw):
        raise FormatError(f"the name at {at:#x} has characters that are not printable ASCII")
    return raw.decode("ascii")
