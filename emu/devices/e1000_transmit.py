"""Transmission of an 82540EM: descriptors, packets, frames (8254x manual 3.3 to 3.5)."""

from __future__ import annotations

import zlib

from emu.clock import Clock
from emu.devices import e1000_eeprom as beside
from emu.devices import e1000_regs as regs
from emu.devices.e1000_mac import BROADCAST, FETCH_TICKS, MASKS, Mac, size_class
from emu.devices.e1000_offload import Context, insert, insert_both, segments

BYTE_TICKS = 8
"""1000 Mb/s."""
GAP = 24
"""Bytes that a frame takes on the wire beyond its own: preamble 8, check sequence 4, gap 12."""
_PACKET_MAX = 16288  # what the transmitter takes without segmentation (3.3.3)
_DESCRIPTORS = 64  # how many are looked at in one go


def wire_ticks(size: int) -> int:
    """How long a frame of ``size`` bytes occupies the wire."""
    return (max(size, 60) + GAP) * BYTE_TICKS


class Transmitter(Mac):
    """Puts frames on the wire."""

    def __init__(self, clock: Clock, slot: int, name: str) -> None:
        super().__init__(clock, slot, name)
        self._writers |= {"TCTL": self._write_tctl, "TDT": self._write_tdt, "TIDV": self._write_tidv}
        self._events |= {
            "transmit": self._transmit, "tx-delay": self._tx_done, "tx-absolute": self._tx_done,
        }  # fmt: skip

    def _resume(self, now: int) -> None:
        super()._resume(now)
        self._start_transmit(now)

    def _to_wire(self, frame: bytes, now: int) -> None:
        raise NotImplementedError

    def _write_tidv(self, value: int, now: int) -> None:
        self.s.regs["TIDV"] = value & 0xFFFF
        if value & regs.FLUSH and self.clock.due(self.name, "tx-delay") is not None:
            self._tx_done(now)

    def _tx_done(self, now: int) -> None:
        self.cancel("tx-delay")
        self.cancel("tx-absolute")
        self._cause(regs.TXDW, now)

    def _write_tctl(self, value: int, now: int) -> None:
        self.s.regs["TCTL"] = value & MASKS["TCTL"]
        self._start_transmit(now)

    def _write_tdt(self, value: int, now: int) -> None:
        self.s.regs["TDT"] = value & 0xFFFF
        self._start_transmit(now)

    def _may_transmit(self) -> bool:
        r = self.s.regs
        count = r["TDLEN"] >> 4
        return (
            bool(r["TCTL"] & regs.TCTL_EN)
            and r["TDH"] != r["TDT"]
            and r["TDH"] < count
            and r["TDT"] < count
            and bool(self.s.link or beside.loops_back(self.s.phy))
            and self.bus_master
        )

    def _start_transmit(self, now: int) -> None:
        """Look at the ring before long, if there is something in it."""
        if self.clock.due(self.name, "transmit") is None and self._may_transmit():
            self.at(max(now + FETCH_TICKS, self.s.wire_free), "transmit")

    def _transmit(self, now: int) -> None:
        """Fetch descriptors to the end of a packet, and send it."""
        s = self.s
        if not self._may_transmit():
            return
        r = s.regs
        base, count = r["TDBAH"] << 32 | r["TDBAL"], r["TDLEN"] >> 4
        causes = 0
        wire = 0
        before = (r["TDT"] - r["TDH"]) % count
        for _ in range(_DESCRIPTORS):
            at = base + 16 * r["TDH"]
            descriptor = self.dma_read(at, 16, now)
            ended, wire = self._take(descriptor, now)
            if descriptor[11] & (regs.TX_RS | regs.TX_RPS):
                self.dma_write(at + 12, bytes((descriptor[12] | regs.TX_DD,)) + descriptor[13:], now)
                if descriptor[11] & regs.TX_IDE and r["TIDV"]:
                    self._delay("tx", r["TIDV"] << 10, r["TADV"] << 10, now)
                else:
                    causes |= regs.TXDW
            r["TDH"] = r["TDH"] + 1 if r["TDH"] + 1 < count else 0
            if ended or r["TDH"] == r["TDT"]:
                break
        s.wire_free = now + wire
        left, low = (r["TDT"] - r["TDH"]) % count, (r["TXDCTL"] >> 25) * 8
        if left < low <= before:
            causes |= regs.TXD_LOW
        if not left:
            causes |= regs.TXQE
        else:
            self.at(max(now + FETCH_TICKS, s.wire_free), "transmit")
        if causes:
            self._cause(causes, now)

    def _take(self, descriptor: bytes, now: int) -> tuple[bool, int]:
        """One transmit descriptor: whether a packet ends, and how long that will be on the wire."""
        s = self.s
        command = descriptor[11]
        if not command & regs.TX_DEXT:
            size = int.from_bytes(descriptor[8:10], "little")
        elif descriptor[10] >> 4 == 0:
            s.context = descriptor
            if command & regs.TX_TSE:
                s.statistics["TSCTC"] += 1
            return False, 0
        elif descriptor[10] >> 4 == 1:
            size = int.from_bytes(descriptor[8:11], "little") & 0xFFFFF
            if not s.packet:
                s.options = descriptor[13]
        else:
            return False, 0  # a type that does not exist
        address = int.from_bytes(descriptor[:8], "little")
        context = Context.unpack(s.context) if command & regs.TX_DEXT else None
        cut = context is not None and command & regs.TX_TSE and context.segment
        room = (context.header + context.payload if cut and context else _PACKET_MAX) - len(s.packet)
        size = min(size, max(room, 0))
        if size and address:
            data = self.dma_read(address, size, now)
            s.packet = s.packet + data if s.packet else data
        if not command & regs.TX_EOP:
            return False, 0
        packet, s.packet = s.packet, b""
        tag = descriptor[14:16] if command & regs.TX_VLE and s.regs["CTRL"] & regs.CTRL_VME else b""
        if context is None:
            if command & regs.TX_IC:
                changed = bytearray(packet)
                insert(changed, descriptor[13], descriptor[10])
                packet = bytes(changed)
            return True, self._send(packet, command, tag, now)
        if cut:
            wire = 0
            for segment in segments(packet, context, s.options):
                wire += self._send(bytes(segment), command | regs.TX_IFCS, tag, now)
            return True, wire
        if s.options & 3:
            changed = bytearray(packet)
            insert_both(changed, context, s.options)
            packet = bytes(changed)
        return True, self._send(packet, command, tag, now)

    def _send(self, frame: bytes, command: int, tag: bytes, now: int) -> int:
        """Put a frame on the wire; for how long it is there."""
        s = self.s
        if tag:
            frame = frame[:12] + s.regs["VET"].to_bytes(2, "big") + tag[::-1] + frame[12:]
        good = True
        if not command & regs.TX_IFCS:  # software says that it brought the check sequence along
            good = zlib.crc32(frame[:-4]) == int.from_bytes(frame[-4:], "little")
            frame = frame[:-4]
        if not frame:
            return 0
        if len(frame) < 60 and s.regs["TCTL"] & regs.TCTL_PSP:
            frame = frame.ljust(60, b"\0")
        size = len(frame) + 4
        counters = s.statistics
        counters["TPT"] += 1
        counters["TOT"] += size
        counters["GPTC"] += 1
        counters["GOTC"] += size
        counters[size_class("PTC", size)] += 1
        if frame[0] & 1:
            counters["BPTC" if frame[:6] == BROADCAST else "MPTC"] += 1
        if good:  # a frame with a wrong check sequence is dropped by whoever gets it
            self._to_wire(frame, now)
        return wire_ticks(len(frame))
