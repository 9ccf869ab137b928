"""16550A by its data sheet, and by what Linux's 8250 driver probes for."""

from __future__ import annotations

import pytest

from emu.devices.uart import Uart
from tests.devices.rig import Rig, Wire

RBR, IER, IIR, LCR, MCR, LSR, MSR, SCR = range(0x3F8, 0x400)
THR, FCR = RBR, IIR
CHARACTER_NS = 10 * 1_000_000_000 // 115200  # 8N1 at divisor 1


class Serial(Rig):
    def __init__(self) -> None:
        super().__init__()
        self.wire = Wire()
        self.sent = bytearray()
        self.uart = Uart("com1", self.clock, 0x3F8, self.wire, lambda byte, now: self.sent.append(byte))
        self.add(self.uart)

    def enable(self, ier: int, fcr: int = 0, mcr: int = 0x0B) -> None:
        self.outb(LCR, 3)
        self.outb(MCR, mcr)
        self.outb(FCR, fcr)
        self.outb(IER, ier)

    def receive(self, data: bytes) -> None:
        self.uart.receive(data, self.now)


@pytest.fixture
def com() -> Serial:
    return Serial()


# --- what Linux's autoconfig asks ---


def test_ier_holds_four_bits(com: Serial) -> None:
    com.outb(IER, 0)
    assert com.inb(IER) & 0x0F == 0
    com.outb(IER, 0xFF)
    assert com.inb(IER) == 0x0F


def test_scratch_register_keeps_a_byte(com: Serial) -> None:
    com.outb(SCR, 0xA5)
    assert com.inb(SCR) == 0xA5


def test_loopback_connects_modem_outputs_to_inputs(com: Serial) -> None:
    com.outb(MCR, 0x10 | 0x0A)  # RTS and OUT2
    assert com.inb(MSR) & 0xF0 == 0x90  # CTS and DCD
    com.outb(MCR, 0x10 | 0x05)  # DTR and OUT1
    assert com.inb(MSR) & 0xF0 == 0x60  # DSR and RI


def test_fifo_bits_of_iir_tell_a_16550a(com: Serial) -> None:
    assert com.inb(IIR) >> 6 == 0
    com.outb(FCR, 1)
    assert com.inb(IIR) >> 6 == 3
    com.outb(FCR, 0x21)
    assert com.inb(IIR) & 0x20 == 0, "bit 5 would be a 16750"


def test_the_efr_probe_finds_no_16650(com: Serial) -> None:
    com.outb(FCR, 1)
    com.outb(LCR, 0x80)
    assert com.inb(IIR) != 0
    com.outb(LCR, 0xBF)
    assert com.inb(IIR) != 0


def test_divisor_latch_hides_data_and_ier(com: Serial) -> None:
    com.outb(IER, 5)
    com.outb(LCR, 0x80)
    com.outb(RBR, 0x0C)
    com.outb(IER, 0x01)
    assert (com.inb(RBR), com.inb(IER)) == (0x0C, 0x01)
    com.outb(LCR, 3)
    assert com.inb(IER) == 5
    assert com.sent == b""


# --- transmitter ---


def test_transmitted_bytes_leave_at_once_and_lsr_stays_empty(com: Serial) -> None:
    com.outb(LCR, 3)
    for byte in b"hello":
        com.outb(THR, byte)
        assert com.inb(LSR) == 0x60
    assert com.sent == b"hello"


def test_only_the_programmed_data_bits_are_sent(com: Serial) -> None:
    com.outb(LCR, 0)  # five bits
    com.outb(THR, 0xFF)
    assert com.sent == b"\x1f"


def test_enabling_thre_interrupt_raises_it_and_reading_iir_clears_it(com: Serial) -> None:
    com.enable(2)
    assert com.wire.level == 1
    assert com.inb(IIR) == 0x02
    assert com.wire.level == 0
    assert com.inb(IIR) == 0x01, "reading IIR cleared it"
    com.outb(IER, 2)
    assert com.wire.level == 0, "it was enabled already: no new interrupt"
    com.outb(IER, 0)
    com.outb(IER, 2)
    assert com.inb(IIR) == 0x02, "Linux's THRE test: toggling IER brings it back"


def test_each_transmitted_byte_makes_an_edge(com: Serial) -> None:
    com.enable(2)
    com.wire.changes.clear()
    com.after(100)
    com.outb(THR, 0x41)
    assert com.wire.changes == [(0, 100), (1, 100)]


def test_reading_iir_for_a_higher_interrupt_leaves_thre_pending(com: Serial) -> None:
    com.enable(3)
    com.receive(b"x")
    assert com.inb(IIR) == 0x04
    com.inb(RBR)
    assert com.inb(IIR) == 0x02


# --- receiver ---


def test_without_fifo_one_byte_at_a_time_with_an_edge_each(com: Serial) -> None:
    com.enable(1)
    com.receive(b"abc")
    got = bytearray()
    while com.inb(LSR) & 1:
        assert com.inb(IIR) == 0x04
        got.append(com.inb(RBR))
    assert got == b"abc"
    assert len(com.wire.rises()) == 3
    assert com.wire.level == 0
    assert com.inb(RBR) == 0, "nothing there"


@pytest.mark.parametrize("bits, level", [(0, 1), (1, 4), (2, 8), (3, 14)])
def test_trigger_level(com: Serial, bits: int, level: int) -> None:
    com.enable(1, fcr=1 | bits << 6)
    com.receive(bytes(level - 1))
    assert com.wire.level == 0
    com.receive(b"x")
    assert com.wire.level == 1
    assert com.inb(IIR) == 0xC4


def test_timeout_after_four_characters_of_silence(com: Serial) -> None:
    com.enable(1, fcr=0xC1)
    com.receive(b"ab")
    when = com.idle()
    assert when is not None and abs(when - 4 * CHARACTER_NS) < 10
    assert com.inb(IIR) == 0xCC
    com.inb(RBR)
    assert com.inb(IIR) == 0xC1, "a read clears it"
    again = com.idle()
    assert again is not None and abs(again - when - 4 * CHARACTER_NS) < 10, "and starts it anew"
    com.inb(RBR)
    assert com.idle() is None, "an empty FIFO has no timeout"


def test_a_new_character_restarts_the_timeout(com: Serial) -> None:
    com.enable(1, fcr=0xC1)
    com.receive(b"a")
    com.after(3 * CHARACTER_NS)
    com.receive(b"b")
    com.after(3 * CHARACTER_NS)
    assert com.wire.level == 0
    com.after(CHARACTER_NS + 10)
    assert com.wire.level == 1


@pytest.mark.parametrize(
    "lcr, halves", [(0x03, 20), (0x00, 14), (0x04, 15), (0x07, 22), (0x0F, 24), (0x1B, 22), (0x02, 18)]
)
def test_timeout_follows_the_character_format(com: Serial, lcr: int, halves: int) -> None:
    com.outb(LCR, 0x80)
    com.outb(RBR, 12)  # 9600 baud
    com.outb(LCR, lcr)
    com.outb(FCR, 0xC1)
    com.receive(b"a")
    expected = 4 * halves * 1_000_000_000 / (2 * 9600)
    assert abs((com.idle() or 0) - expected) < 2


def test_host_input_beyond_the_fifo_waits_and_nothing_is_lost(com: Serial) -> None:
    com.enable(1, fcr=0x81)
    data = bytes(i & 0xFF for i in range(1000))
    com.receive(data[:600])
    com.receive(data[600:])
    got = bytearray()
    while com.inb(LSR) & 1:
        got.append(com.inb(RBR))
    assert got == data
    assert com.inb(LSR) == 0x60, "no overrun"


def test_clearing_the_receive_fifo_drops_it_and_takes_what_waits(com: Serial) -> None:
    com.enable(0, fcr=1)
    com.receive(bytes(range(20)))
    com.outb(FCR, 0x03)
    assert com.inb(RBR) == 16, "the first sixteen were in the FIFO, the rest still on the cable"


def test_toggling_the_fifo_enable_clears_it(com: Serial) -> None:
    com.outb(FCR, 1)
    com.receive(b"ab")
    com.outb(FCR, 0)
    assert com.inb(LSR) & 1 == 0


# --- loopback, modem status, line status ---


def test_loopback_receives_what_it_sends_and_sends_nothing(com: Serial) -> None:
    com.enable(1, fcr=1, mcr=0x1B)
    com.outb(THR, 0x5A)
    assert com.inb(LSR) == 0x61
    assert com.inb(IIR) == 0xC4
    assert com.wire.level == 0, "OUT2 is inactive in loopback, and it gates the interrupt"
    assert com.inb(RBR) == 0x5A
    assert com.sent == b""


def test_loopback_overrun_is_reported_once(com: Serial) -> None:
    com.enable(4, fcr=1, mcr=0x1B)
    for byte in range(17):
        com.outb(THR, byte)
    assert com.inb(IIR) == 0xC6
    assert com.inb(LSR) == 0x63
    assert com.inb(LSR) == 0x61
    assert [com.inb(RBR) for _ in range(16)] == list(range(16)), "the FIFO is kept, the new character is lost"


def test_overrun_without_fifo_overwrites(com: Serial) -> None:
    com.outb(LCR, 3)
    com.outb(MCR, 0x10)
    com.outb(THR, 1)
    com.outb(THR, 2)
    assert com.inb(LSR) == 0x63
    assert com.inb(RBR) == 2


def test_input_waits_while_in_loopback(com: Serial) -> None:
    com.outb(MCR, 0x10)
    com.receive(b"z")
    assert com.inb(LSR) & 1 == 0
    com.outb(MCR, 0x00)
    assert com.inb(RBR) == ord("z")


def test_msr_deltas_and_trailing_edge_of_ri(com: Serial) -> None:
    com.inb(MSR)
    com.outb(MCR, 0x14)  # loopback, OUT1 → RI rises; CTS, DSR, DCD fall
    assert com.inb(MSR) == 0x40 | 0x0B
    assert com.inb(MSR) == 0x40, "reading clears the deltas"
    com.outb(MCR, 0x10)
    assert com.inb(MSR) == 0x04, "TERI"


def test_modem_status_interrupt(com: Serial) -> None:
    com.enable(8, mcr=0x18)
    com.inb(MSR)
    com.outb(MCR, 0x08)  # leaving loopback brings the cable's lines back
    assert com.wire.level == 1
    assert com.inb(IIR) == 0x00
    com.inb(MSR)
    assert com.wire.level == 0


def test_break_is_a_nul_with_its_own_status(com: Serial) -> None:
    com.enable(5, fcr=1)
    com.uart.receive_break(com.now)
    assert com.inb(IIR) == 0xC6
    assert com.inb(LSR) == 0xF1
    assert com.inb(IIR) == 0xC4
    assert com.inb(RBR) == 0


def test_without_out2_the_line_stays_low(com: Serial) -> None:
    com.enable(3, mcr=0x03)
    com.receive(b"x")
    assert com.wire.level == 0
    com.outb(MCR, 0x0B)
    assert com.wire.level == 1


def test_reset_keeps_what_the_host_sent_but_nobody_read(com: Serial) -> None:
    com.enable(1, fcr=1)
    com.receive(bytes(20))
    com.uart.reset(com.now)
    assert com.inb(IER) == 0 and com.wire.level == 0
    assert com.clock.state() == []
    left = 0
    while com.inb(LSR) & 1:
        com.inb(RBR)
        left += 1
    assert left == 4, "sixteen were in the FIFO and are gone"
