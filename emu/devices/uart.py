"""16550A UART (National Semiconductor PC16550D data sheet, 1995), as COM1 and COM2 of a PC.

Knows its eight registers, the interrupt line, and a sink that takes what it transmits. It may not know who is
at the other end of the cable, nor which interrupt controller it is wired to.

Two liberties that the data sheet leaves to the world outside the chip:

* Characters take no time on the wire. A byte written to THR is in the sink at the same tick and the
  transmitter is empty again; pacing by the divisor would only make a console slow. The THRE interrupt still
  goes away and comes back with each byte, so an edge-triggered controller sees every one.
* The sender at the other end obeys flow control perfectly: what `receive` is given waits in `pending` (part
  of the state) and enters the FIFO as the guest makes room. So a receiver overrun only happens in loopback.

The character timeout is the exception: it is four character times of the programmed divisor and format, in
virtual time, because drivers depend on it being neither zero nor infinite.

On a PC, OUT2 gates the interrupt output. In loopback the OUT2 pin is inactive, which closes the gate.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from emu.clock import Clock
from emu.devices.device import Device, Line, Region

Sink = Callable[[int, int], None]
"""Where transmitted characters go: ``sink(byte, now)``."""

BASE_BAUD_HZ = 1_843_200
"""The crystal of a PC's UART: 115200 baud × 16."""

RBR_THR, IER, IIR_FCR, LCR, MCR, LSR, MSR, SCR = range(8)

IER_RDA, IER_THRE, IER_RLS, IER_MS = 0x01, 0x02, 0x04, 0x08
IIR_NONE, IIR_MS, IIR_THRE, IIR_RDA, IIR_RLS, IIR_TIMEOUT = 0x01, 0x00, 0x02, 0x04, 0x06, 0x0C
IIR_FIFO = 0xC0
FCR_ENABLE, FCR_CLEAR_RX, FCR_CLEAR_TX = 0x01, 0x02, 0x04
LCR_BREAK, LCR_DLAB = 0x40, 0x80
MCR_DTR, MCR_RTS, MCR_OUT1, MCR_OUT2, MCR_LOOP = 0x01, 0x02, 0x04, 0x08, 0x10
LSR_DR, LSR_OE, LSR_PE, LSR_FE, LSR_BI, LSR_THRE, LSR_TEMT, LSR_FIFO_ERROR = (1 << n for n in range(8))
LSR_ERRORS = LSR_OE | LSR_PE | LSR_FE | LSR_BI
MSR_CTS, MSR_DSR, MSR_RI, MSR_DCD = 0x10, 0x20, 0x40, 0x80
MSR_TERI = 0x04

FIFO_SIZE = 16
_TRIGGER = (1, 4, 8, 14)
_CABLE = MSR_CTS | MSR_DSR | MSR_DCD  # a terminal is connected and ready


@dataclass
class UartState:
    """Registers (data sheet table II), the receiver, and the host's waiting input."""

    ier: int = 0
    lcr: int = 0
    mcr: int = 0
    scr: int = 0
    divisor: int = 1
    fcr: int = 0  # enable and trigger level
    errors: int = 0  # OE: concerns the receiver as a whole
    msr: int = _CABLE
    thre_pending: bool = False
    timeout_pending: bool = False
    fifo: bytes = b""  # RBR alone when FIFOs are off
    fifo_errors: bytes = b""  # PE, FE, BI of each character of `fifo`
    pending: bytes = b""  # host input that did not fit yet
    pending_at: int = 0  # how much of `pending` is already consumed
    line: int = 0


class Uart(Device):
    """One UART at ``base``. ``line`` is its gated interrupt output."""

    s: UartState

    def __init__(self, name: str, clock: Clock, base: int, line: Line, sink: Sink) -> None:
        super().__init__(name, clock)
        self.base = base
        self.line = line
        self.sink = sink
        self.s = UartState()

    def regions(self) -> Sequence[Region]:
        """The eight ports."""
        return (Region("io", self.base, 8, self.read, self.write, width=1),)

    def reset(self, now: int) -> None:
        """The MR pin. Input that the host has sent but the guest not read is still on the cable."""
        waiting = self.s.pending[self.s.pending_at :]
        self.cancel("timeout")
        self.s = UartState(scr=self.s.scr, divisor=self.s.divisor, line=self.s.line, pending=waiting)
        self._fill(now)
        self._update(now)

    def receive(self, data: bytes, now: int) -> None:
        """The other end sends ``data``."""
        self.s.pending = self.s.pending[self.s.pending_at :] + data
        self.s.pending_at = 0
        self._fill(now)
        self._update(now)

    def receive_break(self, now: int) -> None:
        """The other end holds the line in break for longer than a character: a NUL with BI set."""
        s = self.s
        if s.mcr & MCR_LOOP or len(s.fifo) >= self._depth():
            return  # the receiver is not listening, or the break is lost in an overrun
        self._into_fifo(0, LSR_BI, now)
        self._update(now)

    def event(self, event: str, now: int) -> None:
        """Four character times passed with characters below the trigger level and nobody reading."""
        self.s.timeout_pending = True
        self._update(now)

    # --- registers ---

    def read(self, offset: int, size: int, now: int) -> int:
        """A byte read from the register at ``offset``."""
        s = self.s
        if offset == LSR:
            value = LSR_THRE | LSR_TEMT | s.errors
            if s.fifo:
                value |= LSR_DR | s.fifo_errors[0]
                if s.fcr & FCR_ENABLE and any(s.fifo_errors):
                    value |= LSR_FIFO_ERROR
            if value & LSR_ERRORS:
                s.errors = 0
                # The character keeps its place; only what was reported about it is gone.
                s.fifo_errors = b"\0" + s.fifo_errors[1:] if s.fifo else b""
                self._update(now)
            return value
        if offset == RBR_THR:
            if s.lcr & LCR_DLAB:
                return s.divisor & 0xFF
            return self._read_rbr(now)
        if offset == IER:
            return s.divisor >> 8 if s.lcr & LCR_DLAB else s.ier
        if offset == IIR_FCR:
            cause = self._cause()
            if cause == IIR_THRE:
                s.thre_pending = False
                self._update(now)
            return cause | (IIR_FIFO if s.fcr & FCR_ENABLE else 0)
        if offset == LCR:
            return s.lcr
        if offset == MCR:
            return s.mcr
        if offset == MSR:
            value = s.msr
            s.msr &= 0xF0
            self._update(now)
            return value
        return s.scr

    def write(self, offset: int, size: int, value: int, now: int) -> None:
        """A byte write to the register at ``offset``."""
        s = self.s
        if offset == RBR_THR:
            if s.lcr & LCR_DLAB:
                s.divisor = s.divisor & 0xFF00 | value
            else:
                self._transmit(value, now)
        elif offset == IER:
            if s.lcr & LCR_DLAB:
                s.divisor = s.divisor & 0xFF | value << 8
            else:
                # THR is always empty here, so enabling the interrupt raises it at once.
                if value & IER_THRE and not s.ier & IER_THRE:
                    s.thre_pending = True
                s.ier = value & 0x0F
        elif offset == IIR_FCR:
            self._write_fcr(value, now)
        elif offset == LCR:
            s.lcr = value
        elif offset == MCR:
            s.mcr = value & 0x1F
            self._modem_lines(now)
        elif offset == SCR:
            s.scr = value
        # LSR and MSR: writing is for factory tests only and changes nothing
        self._update(now)

    def _write_fcr(self, value: int, now: int) -> None:
        s = self.s
        # The other bits are only taken when FIFOs are, or are being, enabled.
        toggled = (value ^ s.fcr) & FCR_ENABLE
        if toggled or (value & FCR_CLEAR_RX and value & FCR_ENABLE):
            s.fifo = s.fifo_errors = b""
            s.timeout_pending = False
            self.cancel("timeout")
        s.fcr = value & 0xC9 if value & FCR_ENABLE else 0
        self._fill(now)
        self._restart_timeout(now)

    def _modem_lines(self, now: int) -> None:
        """Recompute MSR's levels from the cable or, in loopback, from MCR; note what changed."""
        s = self.s
        if s.mcr & MCR_LOOP:
            level = (
                (MSR_CTS if s.mcr & MCR_RTS else 0)
                | (MSR_DSR if s.mcr & MCR_DTR else 0)
                | (MSR_RI if s.mcr & MCR_OUT1 else 0)
                | (MSR_DCD if s.mcr & MCR_OUT2 else 0)
            )
        else:
            level = _CABLE
        changed = (s.msr ^ level) >> 4
        if not (s.msr & MSR_RI and not level & MSR_RI):
            changed &= ~MSR_TERI  # only RI's trailing edge counts
        s.msr = level | s.msr & 0x0F | changed & 0x0F
        self._fill(now)  # the receiver listens to the cable again after loopback

    # --- transmitter and receiver ---

    def _transmit(self, value: int, now: int) -> None:
        s = self.s
        s.thre_pending = False
        self._update(now)
        value &= (1 << (5 + (s.lcr & 3))) - 1
        if s.mcr & MCR_LOOP:
            if len(s.fifo) < self._depth():
                self._into_fifo(value, 0, now)
            else:
                s.errors |= LSR_OE
                if not s.fcr & FCR_ENABLE:
                    s.fifo = bytes((value,))  # without FIFOs the new character overwrites RBR
        else:
            self.sink(value, now)
        s.thre_pending = True

    def _read_rbr(self, now: int) -> int:
        s = self.s
        if not s.fifo:
            return 0
        value = s.fifo[0]
        s.fifo = s.fifo[1:]
        s.fifo_errors = s.fifo_errors[1:]
        s.timeout_pending = False
        if not s.fcr & FCR_ENABLE:
            self._update(now)  # the line falls between two characters, so that each makes an edge
        self._fill(now)
        self._restart_timeout(now)
        self._update(now)
        return value

    def _depth(self) -> int:
        return FIFO_SIZE if self.s.fcr & FCR_ENABLE else 1

    def _fill(self, now: int) -> None:
        """Move host input into the receiver as far as there is room."""
        s = self.s
        room = self._depth() - len(s.fifo)
        if room <= 0 or s.pending_at == len(s.pending) or s.mcr & MCR_LOOP:
            return
        data = s.pending[s.pending_at : s.pending_at + room]
        s.fifo += data
        s.fifo_errors += bytes(len(data))
        s.pending_at += len(data)
        if s.pending_at == len(s.pending):
            s.pending, s.pending_at = b"", 0
        self._restart_timeout(now)

    def _into_fifo(self, value: int, errors: int, now: int) -> None:
        self.s.fifo += bytes((value,))
        self.s.fifo_errors += bytes((errors,))
        self._restart_timeout(now)

    def _restart_timeout(self, now: int) -> None:
        """The timeout runs from the last character that came or was read (data sheet 8.4.1)."""
        s = self.s
        if s.fcr & FCR_ENABLE and s.fifo and not s.timeout_pending:
            self.at(now + self._timeout_ns(), "timeout")
        else:
            self.cancel("timeout")

    def _timeout_ns(self) -> int:
        """Four characters of start bit, data, parity and stop bits at the programmed speed."""
        lcr = self.s.lcr
        halves = 2 * (1 + 5 + (lcr & 3) + (1 if lcr & 8 else 0) + 1)
        if lcr & 4:
            halves += 1 if lcr & 3 == 0 else 2  # 1.5 stop bits with five data bits, else 2
        clocks = 4 * halves * 8 * (self.s.divisor or 0x10000)
        return -(-clocks * 1_000_000_000 // BASE_BAUD_HZ)

    # --- interrupt ---

    def _cause(self) -> int:
        """IIR bits 3:0: the pending enabled interrupt of highest priority (data sheet table V)."""
        s = self.s
        if s.ier & IER_RLS and (s.errors or (s.fifo_errors and s.fifo_errors[0])):
            return IIR_RLS
        if s.ier & IER_RDA and s.fifo:
            if not s.fcr & FCR_ENABLE or len(s.fifo) >= _TRIGGER[s.fcr >> 6]:
                return IIR_RDA
            if s.timeout_pending:
                return IIR_TIMEOUT
        if s.ier & IER_THRE and s.thre_pending:
            return IIR_THRE
        if s.ier & IER_MS and s.msr & 0x0F:
            return IIR_MS
        return IIR_NONE

    def _update(self, now: int) -> None:
        s = self.s
        open_gate = s.mcr & (MCR_OUT2 | MCR_LOOP) == MCR_OUT2
        level = 1 if open_gate and self._cause() != IIR_NONE else 0
        if level != s.line:
            s.line = level
            self.line(level, now)
