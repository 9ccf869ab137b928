"""Damage to a handover, one change in memory each: those that were tried on Linux 7.2.13.

The handover is that of the orders `SPEC`: two sessions, the first with two files. A change is made when the
next kernel first looks at what it was given (`kho_populate`), as it was when Linux's reactions were recorded.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from emu.machine import Machine
from kernels.build import project_root
from kho.abi import PAGE_SIZE, RADIX
from kho.handover import Handover
from luo.memfd import Memfd
from luo.sessions import File, Session
from luo.state import Luo

SPEC = "S:one F:0x1:8K:all F:0x2:4K:all S:two F:0x3:4K:all"
RECORDED = project_root() / "tests" / "data" / "tamper" / "tamper.jsonl"


@dataclass
class Damage:
    """A handover, decoded while it was whole, and the machine whose memory is changed."""

    machine: Machine
    handover: Handover
    luo: Luo

    @classmethod
    def of(cls, machine: Machine, handover: Handover) -> Damage:
        luo = Luo.read(handover)
        assert luo is not None
        return cls(machine, handover, luo)

    # ---- where things are ------------------------------------------------------------------------

    @property
    def session(self) -> Session:
        return self.luo.sessions[0]

    @property
    def file(self) -> File:
        return self.session.files[0]

    @property
    def memfd(self) -> Memfd:
        """The file of two folios."""
        found = self.file.memfd
        assert found is not None and found.nr_folios == 2
        return found

    @property
    def fdt(self) -> int:
        found = self.handover.fdt_phys
        assert found is not None
        return found

    @property
    def session_block(self) -> int:
        assert self.luo.chain is not None
        return self.luo.chain.blocks[0].phys

    @property
    def file_block(self) -> int:
        assert self.session.chain is not None
        return self.session.chain.blocks[0].phys

    @property
    def array(self) -> int:
        """The page with the records of the two folios."""
        assert self.memfd.area is not None
        return int(self.memfd.area.blocks[0])

    @property
    def chunk(self) -> int:
        assert self.memfd.area is not None
        return int(self.memfd.area.chunks[0])

    # ---- changing --------------------------------------------------------------------------------

    def read(self, phys: int, size: int) -> bytes:
        return self.machine.memory.read(phys, size).tobytes()

    def word(self, phys: int) -> int:
        return int.from_bytes(self.read(phys, 8), "little")

    def put(self, phys: int, value: int, size: int = 8) -> None:
        """Store an integer, which must differ from what is there."""
        data = (value % (1 << 8 * size)).to_bytes(size, "little")
        assert self.read(phys, size) != data, "nothing would change"
        self.machine.memory.write(phys, data, by="test")

    def text(self, phys: int, old: bytes, new: bytes) -> None:
        """Replace bytes that must be there."""
        assert self.read(phys, len(old)) == old
        self.machine.memory.write(phys, new.ljust(len(old), b"\0"), by="test")

    def in_fdt(self, what: bytes, new: bytes, behind: bytes = b"") -> None:
        """Replace bytes of the root FDT: their first occurrence behind others."""
        fdt = self.read(self.fdt, PAGE_SIZE)
        at = fdt.index(what, fdt.index(behind))
        self.machine.memory.write(self.fdt + at, new, by="test")

    def bit(self, phys: int, order: int = 0, *, value: bool = False) -> None:
        """Preserve one block less, or one more where the leaf exists."""
        key = RADIX.key(phys, order)
        node = self.handover.fdt.root.u64("preserved-memory-map")
        for level in range(RADIX.depth - 1, 0, -1):
            node = self.word(node + 8 * (key >> (RADIX.leaf_bits + (level - 1) * RADIX.table_bits) & 511))
            assert node, "no leaf is there for this block"
        bit = key % (1 << RADIX.leaf_bits)
        byte = self.read(node + bit // 8, 1)[0]
        self.put(node + bit // 8, byte | 1 << bit % 8 if value else byte & ~(1 << bit % 8), 1)

    def free_page(self) -> int:
        """A page outside scratch that nobody preserved or wrote."""
        taken = self.handover.preserved
        for phys in range(0x300000, 64 << 20, PAGE_SIZE):
            if any(a.phys <= phys < a.end for a in self.handover.scratch or ()):
                continue
            page = np.array([phys], np.uint64)
            if not taken.touched(page)[0] and not any(self.read(phys, PAGE_SIZE)):
                return phys
        raise AssertionError("every page is used")


def _le(value: int) -> bytes:
    return value.to_bytes(8, "little")


SESSION = 80  # bytes of a record
FILE = 64
FOLIO = 16

ROWS: dict[str, Callable[[Damage], Any]] = {
    "control": lambda d: None,
    "kho fdt magic zeroed": lambda d: d.put(d.fdt, 0, 4),
    "kho compatible kho-v3": lambda d: d.in_fdt(b"kho-v4", b"kho-v3"),
    "kho compatible kho-v5": lambda d: d.in_fdt(b"kho-v4", b"kho-v5"),
    "preserved-memory-map = 0": lambda d: d.in_fdt(
        _le(d.handover.fdt.root.u64("preserved-memory-map")), _le(0)
    ),
    "LUO blob-size = 16": lambda d: d.in_fdt(_le(32), _le(16), b"LUO\0"),
    "LUO compatible luo-v4": lambda d: d.text(d.luo.phys, b"luo-v5", b"luo-v4"),
    "kexec-metadata version 2": lambda d: d.put(_metadata(d), 2, 4),
    "kexec-metadata blob-size 8": lambda d: d.in_fdt(_le(73), _le(8), b"kexec-metadata\0"),
    "sessions_pa = 0": lambda d: d.put(d.luo.phys + 16, 0),
    "session block count 52 (> 51)": lambda d: d.put(d.session_block + 8, 52),
    "session block count 1 (of 2)": lambda d: d.put(d.session_block + 8, 1),
    "session block next = itself": lambda d: d.put(d.session_block, d.session_block),
    "two sessions same name": lambda d: d.text(d.luo.sessions[1].phys, b"two", b"one"),
    "file_set count 3 (block has 2)": lambda d: d.put(d.session.phys + 72, 3),
    "file_set files = 0, count 2": lambda d: d.put(d.session.phys + 64, 0),
    "file compatible memfd-v1": lambda d: d.text(d.file.phys, b"memfd-v2", b"memfd-v1"),
    "two files same token": lambda d: d.put(d.session.files[1].phys + 56, 1),
    "memfd seals 0x40 (unknown)": lambda d: d.put(d.memfd.phys + 16, 0x40, 4),
    "memfd flags 1 (unused field)": lambda d: d.put(d.memfd.phys + 20, 1, 4),
    "memfd size 4096 (2 folios)": lambda d: d.put(d.memfd.phys + 8, 4096),
    "memfd pos = -1": lambda d: d.put(d.memfd.phys, -1),
    "memfd nr_folios 3 (2 real)": lambda d: d.put(d.memfd.phys + 24, 3),
    "vmalloc total_pages 2 (1 real)": lambda d: d.put(d.memfd.phys + 40, 2, 4),
    "vmalloc flags 0x8000": lambda d: d.put(d.memfd.phys + 44, 0x8000, 2),
    "folio 0 bit cleared in radix leaf": lambda d: d.bit(int(d.memfd.folio_phys[0])),
    "folio 1 bit cleared in radix leaf": lambda d: d.bit(int(d.memfd.folio_phys[1])),
    "folio 0 pfn = 0": lambda d: d.put(d.array, d.word(d.array) >> 52 << 52),
    "folio 1 same index as folio 0": lambda d: d.put(d.array + FOLIO + 8, 0),
    "folio 1 same pfn as folio 0": lambda d: d.put(d.array + FOLIO, d.word(d.array)),
    "folio 0 flags 0 (not uptodate, not dirty)": lambda d: d.put(d.array, d.word(d.array) & (1 << 52) - 1),
    "memfd ser page bit cleared": lambda d: d.bit(d.memfd.phys),
    "vmalloc chunk page bit cleared": lambda d: d.bit(d.chunk),
    "session block page bit cleared": lambda d: d.bit(d.session_block),
    "file block page bit cleared": lambda d: d.bit(d.file_block),
    "LUO blob page bit cleared": lambda d: d.bit(d.luo.phys),
    "KHO FDT page bit cleared": lambda d: d.bit(d.fdt),
    "extra bit set: free page": lambda d: d.bit(d.free_page(), value=True),
    "liveupdate_num = 41": lambda d: d.put(d.luo.phys + 8, 41),
}
COMMAND_LINES = {"second kernel kho=off": "kho=off", "second kernel liveupdate=off": "liveupdate=off"}
"""Rows in which the next kernel is given another command line instead."""


def _metadata(d: Damage) -> int:
    found = d.handover.subtree("kexec-metadata")
    assert found is not None
    return found.phys


# ---- reactions ---------------------------------------------------------------------------------------------

ERRNO = {2: "ENOENT", 5: "EIO", 9: "EBADF", 17: "EEXIST", 22: "EINVAL", 95: "EOPNOTSUPP"}
ALL_RIGHT = "all right"
HALT = "halts"


def recorded() -> dict[str, tuple[str, list[str], list[str]]]:
    """Linux's reaction to each row: how it booted, what `lu s2` said, what the kernel logged."""
    rows = [json.loads(line) for line in RECORDED.read_text("utf-8").splitlines()]
    return {name: (boot, lines, log) for name, boot, lines, log in rows}


def _facts(line: str) -> tuple[str, str]:
    """What was asked for, and the answer: an error, or everything that is known of it."""
    what = re.search(r"name=(\S+)|token=(0x[0-9a-f]+)", line)
    assert what, line
    kind = line.split()[1]
    ret = re.search(r"ret=(-?\w+)", line)
    assert ret, line
    if ret[1].startswith("-"):
        answer = ERRNO[-int(ret[1])]
    elif kind == "retrieve_fd":
        answer = re.sub(r".*?(st_size)", r"\1", line)
    else:
        answer = "ok"
    return f"{kind} {what[1] or what[2]}", answer


def reaction(lines: list[str], control: list[str], *, halted: bool = False) -> str:
    """In few words, what a program found: all right, or what differs from a whole handover."""
    if halted or not lines:
        return HALT
    if lines[0].startswith("open /dev/liveupdate"):
        found = re.search(r"errno (\d+)", lines[0])
        assert found
        return f"open {ERRNO[int(found[1])]}"
    right = dict(_facts(line) for line in control if ("@@T" in line and "name=" in line) or "token=" in line)
    out: list[str] = []
    for what, answer in (_facts(line) for line in lines if "name=" in line or "token=" in line):
        if answer == right[what] or answer == "EBADF":  # EBADF: its session could not be had
            continue
        name = what.replace("retrieve_session", "session").replace("retrieve_fd", "file")
        out.append(f"{name} {answer if answer in ERRNO.values() else _contents(right[what], answer)}")
    return ", ".join(out) or ALL_RIGHT


def _contents(right: str, answer: str) -> str:
    """How a file differs that could be had."""
    wanted, found = (dict(re.findall(r"(\w+)=(\S+)", text)) for text in (right, answer))
    differs = [key for key in wanted if wanted[key] != found.get(key)]
    if "st_size" in differs:
        return f"{found['st_size']} of {wanted['st_size']} bytes"
    return "other contents" if "sha256" in differs else f"other {', '.join(differs)}"
