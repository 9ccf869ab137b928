"""Reception of an 82540EM: filters, packet buffer, descriptors (8254x manual 3.2)."""

from __future__ import annotations

import zlib
from collections.abc import Callable

from emu.clock import Clock
from emu.devices import e1000_eeprom as beside
from emu.devices import e1000_regs as regs
from emu.devices.e1000_mac import BROADCAST, FETCH_TICKS, MASKS, Mac, size_class
from emu.devices.e1000_offload import check, sum16
from emu.devices.pci import D0


class Receiver(Mac):
    """Takes frames from the wire."""

    def __init__(self, clock: Clock, slot: int, name: str) -> None:
        super().__init__(clock, slot, name)
        self.on_ready: Callable[[int], None] | None = None
        """``on_ready(now)``: software turns the receiver on"""
        self._writers |= {
            "RCTL": self._write_rctl, "RDT": self._write_rdt, "RDTR": self._write_rdtr,
            "PBA": self._write_pba,
        }  # fmt: skip
        self._events |= {
            "store": self._store_waiting, "rx-delay": self._rx_done, "rx-absolute": self._rx_done,
        }  # fmt: skip

    def _resume(self, now: int) -> None:
        super()._resume(now)
        if self.s.fifo and self.clock.due(self.name, "store") is None:
            self.at(now + FETCH_TICKS, "store")

    def _write_pba(self, value: int, now: int) -> None:
        receive = min(value & 0x7F, 56)
        self.s.regs["PBA"] = 64 - receive << 16 | receive

    def _write_rdtr(self, value: int, now: int) -> None:
        self.s.regs["RDTR"] = value & 0xFFFF
        if value & regs.FLUSH and self.clock.due(self.name, "rx-delay") is not None:
            self._rx_done(now)

    def _rx_done(self, now: int) -> None:
        self.cancel("rx-delay")
        self.cancel("rx-absolute")
        self._cause(regs.RXT0, now)

    def _write_rctl(self, value: int, now: int) -> None:
        before = self.s.regs["RCTL"]
        self.s.regs["RCTL"] = value & MASKS["RCTL"]
        self._resume(now)
        if value & ~before & regs.RCTL_EN and self.on_ready is not None:
            self.on_ready(now)

    def _write_rdt(self, value: int, now: int) -> None:
        self.s.regs["RDT"] = value & 0xFFFF
        if self.s.fifo:
            self._resume(now)

    def receive(self, frame: bytes, now: int) -> None:
        """A frame, whole, from the first address to the last byte of data, has arrived by the wire."""
        s = self.s
        if s.link and not beside.loops_back(s.phy):
            self.arrive(frame, now)

    def arrive(self, frame: bytes, now: int) -> None:
        """A frame comes to the filters, from the wire or from the transmitter."""
        s = self.s
        rctl = s.regs["RCTL"]
        if not rctl & regs.RCTL_EN or self.power_state != D0:
            return
        counters = s.statistics
        size = len(frame) + 4
        counters["TPR"] += 1
        counters["TOR"] += size
        target = frame[:6]
        if self._exact is None:
            self._exact = self._addresses()
        status = regs.RX_DD
        if target not in self._exact:
            if not self._accepts(target, rctl):
                return
            status |= regs.RX_PIF
        long = size > 1522 and (not rctl & regs.RCTL_LPE or size > 16384)
        if size < 64 or long:
            counters["ROC" if long else "RUC"] += 1
            return
        tag = 0
        if frame[12:14] == s.regs["VET"].to_bytes(2, "big"):
            tag = int.from_bytes(frame[14:16], "big")
            if rctl & regs.RCTL_VFE and not self._vlan_accepts(tag, rctl):
                return
            if s.regs["CTRL"] & regs.CTRL_VME:
                status |= regs.RX_VP
        counters["GPRC"] += 1
        counters["GORC"] += size
        counters[size_class("PRC", size)] += 1
        if target[0] & 1:
            counters["BPRC" if target == BROADCAST else "MPRC"] += 1
        if not rctl & regs.RCTL_SECRC:
            frame += zlib.crc32(frame).to_bytes(4, "little")
        if status & regs.RX_VP:
            frame = frame[:12] + frame[16:]
            tag = status | tag << 8
        else:
            tag = status
        if not s.fifo and self._store(frame, tag, now):
            return
        counters["RNBC"] += 1
        if s.fifo_bytes + len(frame) > (s.regs["PBA"] & 0x7F) << 10:
            counters["MPC"] += 1
            self._cause(regs.RXO, now)
            return
        s.fifo.append(frame)
        s.fifo_tags.append(tag)
        s.fifo_bytes += len(frame)

    def _addresses(self) -> frozenset[bytes]:
        """The receive addresses that are valid and compared with destinations."""
        pairs = zip(self.s.ra[0::2], self.s.ra[1::2], strict=True)
        used = [low | (high & 0xFFFF) << 32 for low, high in pairs if high >> 31 and not high >> 16 & 3]
        return frozenset(address.to_bytes(6, "little") for address in used)

    def _accepts(self, target: bytes, rctl: int) -> bool:
        """The filters beside the exact one (13.4.22)."""
        if not target[0] & 1:
            return bool(rctl & regs.RCTL_UPE)
        if rctl & regs.RCTL_MPE or (target == BROADCAST and rctl & regs.RCTL_BAM):
            return True
        shift = (4, 3, 2, 0)[rctl >> 12 & 3]
        hashed = (target[4] | target[5] << 8) >> shift & 0xFFF
        return bool(self.s.mta[hashed >> 5] >> (hashed & 31) & 1)

    def _vlan_accepts(self, tag: int, rctl: int) -> bool:
        if rctl & regs.RCTL_CFIEN and tag >> 12 & 1 != bool(rctl & regs.RCTL_CFI):
            return False
        return bool(self.s.vfta[tag >> 5 & 0x7F] >> (tag & 31) & 1)

    def _store_waiting(self, now: int) -> None:
        """The oldest frame that waits."""
        s = self.s
        if s.fifo and self._store(s.fifo[0], s.fifo_tags[0], now):
            s.fifo_bytes -= len(s.fifo.pop(0))
            s.fifo_tags.pop(0)
            if s.fifo:
                self.at(now + FETCH_TICKS, "store")

    def _store(self, frame: bytes, tag: int, now: int) -> bool:
        """Put a frame into memory, and tell. False: there are not enough descriptors for all of it."""
        s = self.s
        r = s.regs
        rctl, head, tail, count = r["RCTL"], r["RDH"], r["RDT"], r["RDLEN"] >> 4
        dma = self.dma
        if not rctl & regs.RCTL_EN or head >= count or tail >= count or dma is None or not self.bus_master:
            return False
        size = regs.buffer_size(rctl)
        free = (tail - head) % count
        if free * size < len(frame):
            return False
        status, errors, packet_sum = tag & 0xFF, 0, 0
        if r["RXCSUM"]:
            start = r["RXCSUM"] & 0xFF
            packet_sum = sum16(frame[start:])
            if r["RXCSUM"] & (regs.RXCSUM_IP | regs.RXCSUM_TCP):
                more, errors = check(frame, r["RXCSUM"])
                status |= more
            else:
                status |= regs.RX_IXSM
        else:
            status |= regs.RX_IXSM
        base, requester = r["RDBAH"] << 32 | r["RDBAL"], self.requester
        left, done = len(frame), 0
        while left > 0 and free:
            at = base + 16 * head
            address = dma.read(requester, at, 8, now)
            length = 0
            if address != b"\0\0\0\0\0\0\0\0":  # a null descriptor is used up and takes nothing
                length = min(left, size)
                piece = frame if length == len(frame) else frame[done : done + length]
                dma.write(requester, int.from_bytes(address, "little"), piece, now, self.writer)
                left -= length
                done += length
            word = length | packet_sum << 16 | (status if left else status | regs.RX_EOP) << 32 | errors << 40
            done_word = (word | tag >> 8 << 48).to_bytes(8, "little")
            dma.write(requester, at, address + done_word, now, self.writer)
            head = head + 1 if head + 1 < count else 0
            free -= 1
        r["RDH"] = head
        if left:  # null descriptors took what the rest needed
            s.statistics["MPC"] += 1
            self._cause(regs.RXO, now)
        self._stored(len(frame), free, count, now)
        return True

    def _stored(self, size: int, free: int, count: int, now: int) -> None:
        """The interrupts of a frame in memory."""
        r = self.s.regs
        causes = 0
        if free <= count >> 1 + (r["RCTL"] >> 8 & 3):
            causes |= regs.RXDMT0
        if size <= r["RSRPD"]:
            causes |= regs.SRPD
        if not r["RDTR"]:
            causes |= regs.RXT0
        else:
            self._delay("rx", r["RDTR"] << 10, r["RADV"] << 10, now)
        if causes:
            self._cause(causes, now)
