"""The educational device, by its document."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from emu.devices.acpipm import ResetControl
from emu.devices.device import Line
from emu.devices.edu import DMA_TICKS, FACTORIAL_TICKS, Edu
from emu.devices.pci import PciHost, intx_gsi
from emu.dma import DmaPort
from tests.devices.dma_rig import FakeRam, InterruptBus
from tests.devices.rig import Rig, Wire

ECAM, BAR = 0xB0000000, 0xC0000000
ONES = 0xFFFFFFFF


class Board(Rig):
    """One edu at 00:03.0, decoding at `BAR` and mastering the bus."""

    def __init__(self) -> None:
        super().__init__()
        self.wire = Wire()
        self.gsi: list[int] = []
        self.ram = FakeRam()
        self.interrupts = InterruptBus()
        self.dma = DmaPort(self.ram, self.interrupts)
        self.host = PciHost(
            self.clock,
            self.bus,
            ResetControl(self.clock, lambda kind, now: None),
            self.line,
            self.dma,
        )
        self.add(self.host)
        self.edu = Edu(self.clock, 3)
        self.host.plug(self.edu)
        self.cfg(0x10, BAR)
        self.cfg(4, 6, 2)

    def line(self, gsi: int) -> Line:
        self.gsi.append(gsi)
        return self.wire

    def cfg(self, register: int, value: int, size: int = 4) -> None:
        self.write(ECAM | 3 << 15 | register, value, size)

    def r(self, register: int, size: int = 4) -> int:
        return self.read(BAR + register, size)

    def w(self, register: int, value: int, size: int = 4) -> None:
        self.write(BAR + register, value, size)

    def transfer(self, source: int, destination: int, count: int, command: int) -> int:
        """Start a transfer; how long it takes."""
        for register, value in ((0x80, source), (0x88, destination), (0x90, count), (0x98, command | 1)):
            self.w(register, value, 8)
        assert self.r(0x98) & 1
        start = self.now
        while self.r(0x98) & 1:
            assert self.idle() is not None, "it never ends"
        return self.now - start

    def messages_on(self) -> None:
        at = self.edu.msi_at
        self.cfg(at + 4, 0xFEE01000)
        self.cfg(at + 12, 0x4041, 2)
        self.cfg(at + 2, 1, 2)


@pytest.fixture
def b() -> Board:
    return Board()


def test_identity(b: Board) -> None:
    assert b.read(ECAM | 3 << 15) == 0x11E81234
    assert b.read(ECAM | 3 << 15 | 8) == 0x00FF0010
    assert b.r(0) == 0x010000ED
    b.w(0, 5)
    assert b.r(0) == 0x010000ED
    assert b.gsi == [intx_gsi(3, 0)] == [23]


def test_liveness(b: Board) -> None:
    b.w(4, 0x12345678)
    assert b.r(4) == 0xEDCBA987


@pytest.mark.parametrize("number", [0, 1, 2, 5, 12, 13, 20, 33, 34, 35, 1000, 0xFFFFFFFF])
def test_factorial(b: Board, number: int) -> None:
    b.w(8, number)
    assert b.r(0x20) == 1
    b.w(8, 3)
    b.after(FACTORIAL_TICKS - 1)
    assert (b.r(0x20), b.r(8)) == (1, number), "not yet, and not changed by a write meanwhile"
    b.after(1)
    expected = math.factorial(number) & ONES if number < 2000 else 0
    assert (b.r(0x20), b.r(8)) == (0, expected)
    assert b.wire.level == 0


def test_factorial_interrupts_if_asked(b: Board) -> None:
    b.w(0x20, 0xFF)
    assert b.r(0x20) == 0x80
    b.w(8, 5)
    assert b.r(0x20) == 0x81
    b.w(0x20, 0x80)
    assert b.r(0x20) == 0x81, "computing is not software's"
    b.after(FACTORIAL_TICKS)
    assert (b.r(0x20), b.r(0x24), b.wire.level) == (0x80, 1, 1)


def test_interrupts_are_raised_and_acknowledged_bit_by_bit(b: Board) -> None:
    assert b.r(0x60) == b.r(0x64) == ONES
    b.w(0x60, 0x30)
    b.w(0x60, 0x01)
    assert (b.r(0x24), b.wire.level) == (0x31, 1)
    b.w(0x64, 0x11)
    assert (b.r(0x24), b.wire.level) == (0x20, 1)
    b.w(0x64, 0x20)
    assert (b.r(0x24), b.wire.level) == (0, 0)
    b.w(0x60, 0)
    assert b.wire.level == 0


def test_messages(b: Board) -> None:
    b.messages_on()
    b.w(0x60, 2)
    b.w(0x60, 4)
    assert b.interrupts.messages == [(0xFEE01000, 0x4041)] * 2
    assert (b.r(0x24), b.wire.changes) == (6, [])
    b.w(0x64, 6)
    assert b.r(0x24) == 0


def test_transfers_both_ways(b: Board) -> None:
    data = bytes(i * 7 & 0xFF for i in range(4096))
    b.ram.put(0x12345, data)
    assert b.transfer(0x12345, 0x40000, 4096, 0) == DMA_TICKS + 4096
    assert b.edu.s.buffer == data and b.ram.writers == []
    assert b.transfer(0x40010, 0x30001, 100, 2) == DMA_TICKS + 100
    assert b.ram.get(0x30000, 102) == b"\0" + data[16:116] + b"\0"
    assert b.ram.writers == ["dma:edu"]
    assert b.wire.level == 0


def test_memory_is_touched_at_the_end(b: Board) -> None:
    b.edu.s.buffer = b"\x11" * 4096
    for register, value in ((0x80, 0x40000), (0x88, 0x30000), (0x90, 8), (0x98, 3)):
        b.w(register, value)
    b.after(DMA_TICKS + 7)
    assert b.ram.get(0x30000, 8) == bytes(8)
    b.w(0x88, 0x50000)
    b.w(0x90, 4)
    b.w(0x98, 1)
    assert (b.r(0x88), b.r(0x90), b.r(0x98)) == (0x30000, 8, 3), "a transfer that runs is not changed"
    b.after(1)
    assert b.ram.get(0x30000, 8) == b"\x11" * 8 and b.r(0x98) == 2


def test_addresses_have_28_bits(b: Board) -> None:
    b.edu.s.buffer = b"\x22" * 4096
    b.transfer(0x40000, 0xF_0012_3456, 4, 2)
    assert b.ram.get(0x123456, 4) == b"\x22" * 4
    assert b.r(0x88, 8) == 0xF_0012_3456


@pytest.mark.parametrize(
    ("at", "count"),
    [(0x40000, 4097), (0x40FFF, 2), (0x3FFFF, 1), (0x41000, 1), (0, 8), (1 << 63, 8), (0x40000, 0)],
)
@pytest.mark.parametrize("command", [0, 2])
def test_what_is_outside_the_buffer_moves_nothing(b: Board, at: int, count: int, command: int) -> None:
    b.edu.s.buffer = b"\x33" * 4096
    source, destination = (at, 0x30000) if command else (0x30000, at)
    b.transfer(source, destination, count, command)
    assert b.ram.writers == [] and b.edu.s.buffer == b"\x33" * 4096


def test_transfers_interrupt_if_asked(b: Board) -> None:
    b.transfer(0x1000, 0x40000, 4, 4)
    assert (b.r(0x24), b.wire.level, b.r(0x98)) == (0x100, 1, 4)


def test_no_transfer_without_bus_mastering(b: Board) -> None:
    b.ram.put(0x1000, b"abcd")
    b.cfg(4, 2, 2)
    b.transfer(0x1000, 0x40000, 4, 0)
    assert b.edu.s.buffer[:4] == b"\xff" * 4
    b.transfer(0x40000, 0x2000, 4, 2)
    assert b.ram.writers == []


def test_widths(b: Board) -> None:
    assert b.r(0, 1) == 0xFF and b.r(0, 2) == 0xFFFF
    assert b.r(0, 8) == (1 << 64) - 1 and b.r(0x24, 8) == (1 << 64) - 1
    b.w(0x80, 0x1_2345_6789, 8)
    assert (b.r(0x80, 8), b.r(0x80), b.r(0x84)) == (0x1_2345_6789, 0x2345_6789, ONES)
    b.w(0x80, 5)
    assert b.r(0x80, 8) == 5
    b.w(4, 0, 1)
    b.w(4, 0, 8)
    assert b.r(4) == 0
    assert b.r(0x40000) == ONES, "the buffer is reached by DMA only"


def test_reset_forgets_what_runs(b: Board) -> None:
    b.w(8, 5)
    for register, value in ((0x80, 0x40000), (0x88, 0x30000), (0x90, 8), (0x98, 3)):
        b.w(register, value)
    b.w(0x60, 1)
    b.cfg(b.edu._reset_bit[0] if b.edu._reset_bit else 0, 1, 1)
    assert b.clock.state() == [] and b.wire.level == 0
    assert b.edu.s == type(b.edu.s)(bytes(b.edu.initial))
    assert b.r(0) == ONES, "its BAR is gone"


@given(st.data())
def test_a_restored_edu_goes_on_alike(data: st.DataObject) -> None:
    b = Board()
    registers = [0, 4, 8, 0x20, 0x24, 0x60, 0x64, 0x80, 0x84, 0x88, 0x90, 0x98, 0x9C, 0x40000]
    values = [0, 1, 2, 3, 7, 100, 0x80, 0x40000, 0x30000, 0xFFFFFFFF]
    step = st.tuples(
        st.sampled_from(registers), st.sampled_from(values), st.sampled_from([0, 1, 900, 1100, 6000])
    )

    def perform(board: Board, steps: list[tuple[int, int, int]]) -> list[int]:
        seen = []
        for register, value, wait in steps:
            board.after(wait // 2)
            board.after(wait - wait // 2)
            seen += [board.r(register), board.wire.level]
            board.w(register, value)
        return seen

    perform(b, data.draw(st.lists(step, max_size=20)))
    copy = Board()
    copy.edu.load(b.edu.state())
    copy.clock.load(b.clock.state())
    size = 1 << 20
    copy.ram.bytes[:size] = b.ram.bytes[:size]
    copy.now, copy.wire.level = b.now, b.wire.level
    after = data.draw(st.lists(step, max_size=20))
    assert perform(copy, after) == perform(b, after)
    assert copy.edu.state() == b.edu.state() and copy.ram.get(0, size) == b.ram.get(0, size)
