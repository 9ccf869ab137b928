"""Intel 82540EM gigabit Ethernet controller, 8086:100e (8254x software developer's manual, 317453).

Frames come from the wire by `E1000.receive` and go to it by `E1000.on_transmit`, without their check
sequence. What follows from registers is done at once; what takes a real one time is done by events:

* Transmission: the first descriptor is looked at `FETCH_TICKS` after its tail was written; the next packet
  not before this one has left at 8 ticks a byte.
* Reception: a frame is stored at the tick at which it is there, if descriptors are there for all of it. Else
  it waits in the packet buffer (PBA), and is stored `FETCH_TICKS` after the tail was moved; one for which the
  buffer has no room is lost and counted.
* Delay timers in units of 1024 ticks, ITR of 256. Interrupts are the level of INTA; there is no MSI.

Without a link, or without the right to master the bus, transmission waits; frames arrive only with a link.
The link is there at power-on, and again `LINK_TICKS` after the PHY was told to negotiate. As the manual
says, STATUS.LU needs CTRL.SLU.

Registers, resets, link and interrupts are in `emu.devices.e1000_mac`; both directions of frames in
`e1000_receive` and `e1000_transmit`, what is done to their contents in `e1000_offload`; EEPROM and PHY in
`e1000_eeprom`; offsets and bits in `e1000_regs`.
"""

from __future__ import annotations

from collections.abc import Callable

from emu.clock import Clock
from emu.devices import e1000_eeprom as beside
from emu.devices.e1000_mac import FETCH_TICKS, LINK_TICKS, MAC
from emu.devices.e1000_receive import Receiver
from emu.devices.e1000_transmit import Transmitter, wire_ticks


class E1000(Receiver, Transmitter):
    """One controller."""

    def __init__(self, clock: Clock, slot: int, name: str = "e1000") -> None:
        super().__init__(clock, slot, name)
        self.on_transmit: Callable[[bytes, int], None] | None = None
        """``on_transmit(frame, now)``: a frame leaves by the wire"""

    def _to_wire(self, frame: bytes, now: int) -> None:
        if beside.loops_back(self.s.phy):
            self.arrive(frame, now)
        elif self.on_transmit is not None:
            self.on_transmit(frame, now)


__all__ = ["E1000", "FETCH_TICKS", "LINK_TICKS", "MAC", "wire_ticks"]
