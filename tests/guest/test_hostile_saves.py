"""What the KHO test restores is not believed: data that no honest kernel saves, made by changing memory right
before the jump, end in a verdict that says what is wrong, never in a crash.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest

import kernels
from emu import Machine
from emu.boot import Boot
from emu.debug.symbols import Symbols
from emu.initramfs import Initramfs
from emu.machine import Snapshot, StopKind
from kho.fdt import Fdt, Node
from kho.handover import Handover

CMDLINE = "kho=on reserve_mem=64K:4K:one"


@dataclass
class AtJump:
    """A machine whose old kernel is about to jump."""

    machine: Machine
    snapshot: Snapshot
    handover: Handover

    def change_fdt(self, name: str, change: Callable[[Node], object]) -> None:
        """Change the FDT that is the blob of a sub-tree."""
        subtree = self.handover.subtree(name)
        assert subtree is not None
        fdt = Fdt.parse(bytes(self.machine.memory.read(subtree.phys, subtree.size)))
        change(fdt.root)
        data = Fdt.sequential(fdt.root).write(subtree.size)
        self.machine.memory.write(subtree.phys, data.ljust(subtree.size, b"\0"), by="test")

    @property
    def nr_folios(self) -> int:
        test = self.handover.kho_test
        assert test is not None
        return test.nr_folios

    def overwrite(self, name: str, data: bytes) -> None:
        """Overwrite the beginning of a sub-tree's blob."""
        subtree = self.handover.subtree(name)
        assert subtree is not None
        self.machine.memory.write(subtree.phys, data, by="test")

    def change_entry(self, index: int, change: Callable[[int], int]) -> None:
        """Change a word of the list of folios."""
        test = self.handover.kho_test
        assert test is not None and test.area is not None
        phys = int(test.area.blocks[index // 512]) + index % 512 * 8
        (value,) = struct.unpack("<Q", bytes(self.machine.memory.read(phys, 8)))
        self.machine.memory.write(phys, struct.pack("<Q", change(value) % 2**64), by="test")

    def entry(self, index: int) -> int:
        test = self.handover.kho_test
        assert test is not None
        return int(test.phys[index]) | int(test.order[index])


def stop_here(machine: Machine, address: int) -> bool:
    return True


@pytest.fixture(scope="module")
def jump() -> Iterator[AtJump]:
    files = Initramfs()
    files.add_file("/boot/new", kernels.binary("new.bzImage").read_bytes())
    files.add_file("/boot/chain", b"/boot/new\n")
    symbols = Symbols.read(kernels.binary("old.elf"))
    with Machine(256 << 20) as machine:
        machine.boot(Boot(kernels.binary("old.bzImage").read_bytes(), CMDLINE, files.build()))
        address = symbols.address("machine_kexec")
        assert address is not None
        machine.probe(address, stop_here)
        stop = machine.run(max_instructions=1_000_000_000)
        assert stop.kind is StopKind.BREAKPOINT, stop
        machine.unprobe(address, stop_here)
        yield AtJump(machine, machine.snapshot(), Handover.read(machine.memory))


def set_property(where: str, name: str, value: bytes) -> Callable[[Node], object]:
    def change(root: Node) -> None:
        node = root.child(where) if where else root
        assert node is not None
        assert name in node.properties, "the property to change is not there"
        node.properties[name] = value

    return change


def drop_property(where: str, name: str) -> Callable[[Node], object]:
    def change(root: Node) -> None:
        node = root.child(where)
        assert node is not None
        del node.properties[name]

    return change


def u32(value: int) -> bytes:
    return struct.pack("<I", value)


NOT_AS_IT_SHOULD = "the FDT of sub-tree kho_test is not as it should be"
NO_LIST = "the list of folios cannot be restored"
VMALLOC = struct.Struct("<QIHH")

CASES: dict[str, tuple[Callable[[AtJump], object], str]] = {
    "other compatible": (
        lambda j: j.change_fdt("kho_test", set_property("", "compatible", b"kho-test-v2\0")),
        r"sub-tree kho_test at 0x\w+ is not compatible with kho-test-v1",
    ),
    "other magic": (lambda j: j.change_fdt("kho_test", set_property("", "magic", u32(1))), NOT_AS_IT_SHOULD),
    "short magic": (
        lambda j: j.change_fdt("kho_test", set_property("", "magic", bytes(2))),
        NOT_AS_IT_SHOULD,
    ),
    "no data": (lambda j: j.change_fdt("kho_test", lambda r: r.children.clear()), NOT_AS_IT_SHOULD),
    "short descriptor": (
        lambda j: j.change_fdt("kho_test", set_property("data", "folios_info", bytes(12))),
        NOT_AS_IT_SHOULD,
    ),
    "more folios than the list has room for": (
        lambda j: j.change_fdt("kho_test", set_property("data", "nr_folios", u32(0xFFFFFFFF))),
        NOT_AS_IT_SHOULD,
    ),
    "one folio more than there are": (
        lambda j: j.change_fdt("kho_test", set_property("data", "nr_folios", u32(j.nr_folios + 1))),
        r"folio \d+ \(order \d+ at 0x[0-9a-f]+\) was not preserved",
    ),
    "fewer folios": (
        lambda j: j.change_fdt("kho_test", set_property("data", "nr_folios", u32(2))),
        r"the checksum of the folios is 0x\w+, not 0x\w+",
    ),
    "other checksum": (
        lambda j: j.change_fdt("kho_test", set_property("data", "csum", u32(0x12345678))),
        "the checksum of the folios is 0x[0-9a-f]{8}, not 0x12345678",
    ),
    "list at an odd address": (
        lambda j: j.change_fdt(
            "kho_test", set_property("data", "folios_info", VMALLOC.pack(0x1001, 1, 1, 0))
        ),
        NO_LIST,
    ),
    "list outside of RAM": (
        lambda j: j.change_fdt(
            "kho_test", set_property("data", "folios_info", VMALLOC.pack(1 << 50, 1, 1, 0))
        ),
        NO_LIST,
    ),
    "list with a huge order": (
        lambda j: j.change_fdt(
            "kho_test", set_property("data", "folios_info", VMALLOC.pack(0x1000, 1, 1, 63))
        ),
        NO_LIST,
    ),
    "list of 2^32 - 1 pages": (
        lambda j: j.change_fdt(
            "kho_test", set_property("data", "folios_info", VMALLOC.pack(0x1000, 2**32 - 1, 1, 0))
        ),
        NO_LIST,
    ),
    "order that does not exist": (
        lambda j: j.change_entry(1, lambda e: e | 0xFFF),
        r"folio 1 \(order 4095 at .*",
    ),
    "order of another folio": (
        lambda j: j.change_entry(1, lambda e: e ^ 1),
        r"folio 1 at 0x\w+ was saved with order \d+ and restored with \d+",
    ),
    "folio outside of RAM": (
        lambda j: j.change_entry(1, lambda e: e | 1 << 51),
        r"folio 1 \(order \d+ at 0x8[0-9a-f]+\) was not preserved",
    ),
    "folio twice": (
        lambda j: j.change_entry(1, lambda e: j.entry(0)),
        r"folio 1 \(.*\) was not preserved|folio 1 \(.*\): page .* changed, .*",
    ),
    "two folios of one order exchanged": (
        lambda j: exchange(j),
        r"folio \d+ \(order \d+ at 0x\w+\): page 0 at 0x\w+ changed, at byte 0",
    ),
    "no FDT": (
        lambda j: j.overwrite("kho_test", b"junk" * 16),
        r"sub-tree kho_test at 0x\w+ is no FDT: error -\d+",
    ),
    "areas without a seed": (
        lambda j: j.change_fdt("luemu_test", lambda r: r.properties.pop("seed")),
        "the FDT of sub-tree luemu_test is not as it should be",
    ),
    "areas with another seed": (
        lambda j: j.change_fdt("luemu_test", set_property("", "seed", bytes(8))),
        "payload of sub-tree luemu_test: page 0 .*",
    ),
    "area that is not described": (
        lambda j: j.change_fdt("luemu_test", drop_property("vmalloc@1", "info")),
        "vmalloc@1: the FDT does not describe it",
    ),
    "area of another size": (
        lambda j: j.change_fdt("luemu_test", set_property("vmalloc@0", "size", struct.pack("<Q", 1 << 40))),
        "vmalloc@0: 1099511627776 bytes are no 600 pages",
    ),
    "scratch areas that are fewer": (
        lambda j: j.change_fdt("luemu_test", set_property("", "scratch", bytes(16))),
        "there are 3 scratch areas, the previous kernel had others",
    ),
    "region elsewhere": (
        lambda j: j.change_fdt("luemu_test", set_property("reserve_mem", "one", struct.pack("<Q", 4096))),
        "reserve_mem region one: it was at 0x1000 and is at .*",
    ),
}


def exchange(j: AtJump) -> None:
    """Two entries of one order change places: the checksum does not see it."""
    test = j.handover.kho_test
    assert test is not None
    orders = test.order.tolist()
    a, b = next((a, b) for a in range(len(orders)) for b in range(a) if orders[a] == orders[b])
    first, second = j.entry(a), j.entry(b)
    j.change_entry(a, lambda e: second)
    j.change_entry(b, lambda e: first)


@pytest.mark.parametrize("case", CASES)
def test_it_is_told_and_the_run_fails(jump: AtJump, case: str) -> None:
    change, reason = CASES[case]
    jump.machine.restore(jump.snapshot)
    before = len(jump.machine.console)
    change(jump)
    stop = jump.machine.run(max_instructions=jump.machine.instructions + 1_000_000_000)
    text = jump.machine.console[before:].decode("latin-1").replace("\r\n", "\n")
    assert stop.kind is StopKind.POWER_OFF, f"{stop}\n{text[-2000:]}"
    verdict = text.rstrip("\n").rsplit("\n", 1)[-1]
    assert re.fullmatch(f"luemu: verdict FAILED: (?:{reason})", verdict), text[-2000:]


def test_without_a_change_the_same_jump_ends_well(jump: AtJump) -> None:
    jump.machine.restore(jump.snapshot)
    jump.machine.run(max_instructions=jump.machine.instructions + 1_000_000_000)
    assert jump.machine.console.endswith(b"luemu: verdict ok\r\n")
