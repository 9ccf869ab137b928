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
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from emu.clock import Clock
from emu.devices import e1000_eeprom as beside
from emu.devices import e1000_regs as regs
from emu.devices.e1000_offload import Context, check, insert, insert_both, segments, sum16
from emu.devices.pci import COMMAND, COMMAND_MASTER, D0, Bar, PciFunction, PciState

FETCH_TICKS = 500
LINK_TICKS = 1_000_000
BYTE_TICKS = 8
"""1000 Mb/s."""
GAP = 24
"""Bytes that a frame takes on the wire beyond its own: preamble 8, check sequence 4, gap 12."""
FRAME_MAX = 16384 - 4
_PACKET_MAX = 16288  # what the transmitter takes without segmentation (3.3.3)
_DESCRIPTORS = 64  # how many are looked at in one go

VENDOR, DEVICE, SUBSYSTEM = 0x8086, 0x100E, (0x1AF4, 0x1100)
MAC = bytes.fromhex("525400123456")
_MASKS = {name: mask for name, mask, _ in regs.REGISTERS.values()}
_BROADCAST = b"\xff" * 6


def wire_ticks(size: int) -> int:
    """How long a frame of ``size`` bytes occupies the wire."""
    return (max(size, 60) + GAP) * BYTE_TICKS


def _reset_values() -> dict[str, int]:
    return {name: value for name, _, value in regs.REGISTERS.values()}


@dataclass
class E1000State(PciState):
    """All of the controller, its EEPROM and its PHY."""

    regs: dict[str, int] = field(default_factory=_reset_values)
    mta: list[int] = field(default_factory=lambda: [0] * 128)
    ra: list[int] = field(default_factory=lambda: [0] * 32)
    vfta: list[int] = field(default_factory=lambda: [0] * 128)
    statistics: dict[str, int] = field(default_factory=lambda: dict.fromkeys(regs.STATISTICS.values(), 0))
    eeprom: beside.EepromState = field(default_factory=lambda: beside.EepromState([]))
    phy: beside.PhyState = field(default_factory=beside.PhyState)
    link: int = 1  # STATUS.LU
    address: int = 0  # IOADDR
    fifo: list[bytes] = field(default_factory=list)  # frames that wait for descriptors
    fifo_tags: list[int] = field(default_factory=list)  # of each: descriptor status | VLAN tag << 8
    fifo_bytes: int = 0
    packet: bytes = b""  # what was fetched of a packet that has not ended
    options: int = 0  # POPTS of its first descriptor
    context: bytes = bytes(16)  # the last context descriptor
    wire_free: int = 0  # when the last frame has left
    quiet_until: int = 0  # ITR: no interrupt before


class E1000(PciFunction):
    """One controller."""

    s: E1000State

    def __init__(self, clock: Clock, slot: int, name: str = "e1000") -> None:
        super().__init__(
            name, clock, slot, vendor=VENDOR, device=DEVICE, class_code=0x020000, revision=3,
            subsystem=SUBSYSTEM, pin=1,
        )  # fmt: skip
        self.mac = MAC if "/" not in name else MAC[:5] + bytes((MAC[5] + 1,))
        self.on_transmit: Callable[[bytes, int], None] | None = None
        """``on_transmit(frame, now)``: a frame leaves by the wire"""
        self.on_ready: Callable[[int], None] | None = None
        """``on_ready(now)``: software turns the receiver on"""
        self._exact: frozenset[bytes] | None = None  # the addresses in `ra`, once computed
        words = beside.contents(self.mac, SUBSYSTEM, (VENDOR, DEVICE))
        self.s = E1000State(bytes(self.size), eeprom=beside.EepromState(words))
        self.allow(COMMAND, 2, COMMAND_MASTER)
        self.add_bar(Bar(0, "mmio", 1 << 17, self._read, self._write))
        self.add_bar(Bar(2, "io", 64, self._read_port, self._write_port))
        self.define(0x3E, 2, 0x00FF)  # MIN_GNT, MAX_LAT
        self.add_power_management(at=0xDC)
        self._load_address()
        self._readers: dict[str, Callable[[int], int]] = {
            "ICR": self._read_icr, "EECD": self._read_eecd, "STATUS": self._read_status,
            "ICS": lambda now: 0, "IMC": lambda now: 0,
        }  # fmt: skip
        self._writers: dict[str, Callable[[int, int], None]] = {
            "CTRL": self._write_ctrl, "EECD": self._write_eecd, "EERD": self._write_eerd,
            "MDIC": self._write_mdic, "ICR": self._write_icr, "ICS": self._cause, "IMS": self._write_ims,
            "IMC": self._write_imc, "ITR": self._write_itr, "RCTL": self._write_rctl,
            "TCTL": self._write_tctl, "RDT": self._write_rdt, "TDT": self._write_tdt,
            "RDTR": self._write_rdtr, "TIDV": self._write_tidv, "PBA": self._write_pba,
            "CTRL_EXT": self._write_ctrl_ext,
        }  # fmt: skip
        self._events: dict[str, Callable[[int], None]] = {
            "transmit": self._transmit, "store": self._store_waiting, "link": self._negotiated,
            "interrupt": self._update, "rx-delay": self._rx_done, "rx-absolute": self._rx_done,
            "tx-delay": self._tx_done, "tx-absolute": self._tx_done,
        }  # fmt: skip

    # --- reset, power, state ---

    def reset(self, now: int) -> None:
        """Power-on, or a reset of the function. The EEPROM and the cable are as they were."""
        old = self.s
        self._cancel_all()
        self.cancel("link")
        self.s = E1000State(
            old.config, eeprom=beside.EepromState(old.eeprom.words), phy=beside.PhyState(cable=old.phy.cable)
        )
        self._load_address()
        self.s.link = int(self._link_up())
        super().reset(now)

    def _cancel_all(self) -> None:
        for event in self._events:
            if event != "link":
                self.cancel(event)

    def _software_reset(self, now: int) -> None:
        """CTRL.RST: all but the PHY, configuration space, and what the EEPROM holds (14.3)."""
        old = self.s
        self._cancel_all()
        eeprom = beside.EepromState(old.eeprom.words)
        self.s = E1000State(old.config, old.intx, eeprom=eeprom, phy=old.phy, address=old.address)
        self._load_address()
        self.s.link = int(self._link_up())
        self._update(now)

    def _load_address(self) -> None:
        """The first receive address comes from the EEPROM."""
        low, middle, high = self.s.eeprom.words[:3]
        self.s.ra[0] = low | middle << 16
        self.s.ra[1] = high | 1 << 31
        self._exact = None

    def load(self, state: dict[str, Any]) -> None:
        """Take over what `state` returned."""
        super().load(state)
        self.s.eeprom = beside.EepromState(**vars_of(self.s.eeprom))
        self.s.phy = beside.PhyState(**vars_of(self.s.phy))
        self._exact = None

    def config_written(self, offset: int, size: int, now: int) -> None:
        """What waits for the right to master the bus goes on."""
        if offset <= COMMAND < offset + size:
            self._resume(now)

    def event(self, event: str, now: int) -> None:
        """Something is due."""
        self._events[event](now)

    def _resume(self, now: int) -> None:
        self._start_transmit(now)
        if self.s.fifo and self.clock.due(self.name, "store") is None:
            self.at(now + FETCH_TICKS, "store")

    # --- registers ---

    def _read(self, offset: int, size: int, now: int) -> int:
        """A register by memory. An access to part of one is one to all of it."""
        return self._register_read(offset & ~3, now) >> 8 * (offset & 3)

    def _write(self, offset: int, size: int, value: int, now: int) -> None:
        """Only whole registers can be written (13.1)."""
        if size == 4 and not offset & 3:
            self._register_write(offset, value, now)

    def _read_port(self, offset: int, size: int, now: int) -> int:
        """IOADDR and IODATA (13.2)."""
        if size == 4 and offset == 0:
            return self.s.address
        if size == 4 and offset == 4:
            return self._register_read(self.s.address & ~3, now)
        return 0

    def _write_port(self, offset: int, size: int, value: int, now: int) -> None:
        if size == 4 and offset == 0:
            self.s.address = value
        elif size == 4 and offset == 4 and not self.s.address & 3:
            self._register_write(self.s.address, value, now)

    def _register_read(self, offset: int, now: int) -> int:
        offset = regs.ALIASES.get(offset, offset)
        found = regs.REGISTERS.get(offset)
        if found is not None:
            reader = self._readers.get(found[0])
            return self.s.regs[found[0]] if reader is None else reader(now)
        if regs.STATISTICS_BASE <= offset < regs.STATISTICS_END:
            return self._read_statistic(offset)
        for base, (attribute, count) in regs.ARRAYS.items():
            if base <= offset < base + 4 * count:
                words: list[int] = getattr(self.s, attribute)
                return words[offset - base >> 2]
        return 0

    def _register_write(self, offset: int, value: int, now: int) -> None:
        offset = regs.ALIASES.get(offset, offset)
        found = regs.REGISTERS.get(offset)
        if found is not None:
            name, mask, _ = found
            writer = self._writers.get(name)
            if writer is None:
                self.s.regs[name] = self.s.regs[name] & ~mask | value & mask
            else:
                writer(value, now)
            return
        for base, (attribute, count) in regs.ARRAYS.items():
            if base <= offset < base + 4 * count:
                high = base == regs.RA and offset & 4
                getattr(self.s, attribute)[offset - base >> 2] = value & regs.RAH if high else value
                self._exact = None

    def _read_statistic(self, offset: int) -> int:
        counters = self.s.statistics
        name = regs.STATISTICS.get(offset)
        if name in regs.WIDE:
            return min(counters[name], (1 << 64) - 1) & regs.ALL
        if name is None:
            name = regs.STATISTICS.get(offset - 4)
            if name not in regs.WIDE:
                return 0
            value, counters[name] = min(counters[name], (1 << 64) - 1) >> 32, 0
            return value
        value, counters[name] = min(counters[name], regs.ALL), 0
        return value

    def _read_status(self, now: int) -> int:
        return regs.STATUS_FIXED | (regs.STATUS_LU if self.s.link else 0)

    def _write_ctrl(self, value: int, now: int) -> None:
        s = self.s
        if value & regs.CTRL_RST:
            self._software_reset(now)
            return
        before = s.regs["CTRL"]
        s.regs["CTRL"] = value
        if value & regs.CTRL_PHY_RST and not before & regs.CTRL_PHY_RST:
            s.phy = beside.PhyState(cable=s.phy.cable, negotiated=0, lost=1)
            self.cancel("link")
        elif before & regs.CTRL_PHY_RST and not value & regs.CTRL_PHY_RST:
            self._negotiate(now)
        self._link_changed(now)

    def _write_ctrl_ext(self, value: int, now: int) -> None:
        self.s.regs["CTRL_EXT"] = value & ~0x3000
        if value & 1 << 13:  # EE_RST: the EEPROM is read again, as after a reset
            self._load_address()

    def _read_eecd(self, now: int) -> int:
        s = self.s
        pins = s.regs["EECD"]
        granted = regs.EE_GNT if pins & regs.EE_REQ else 0
        return pins | granted | regs.EE_PRES | (regs.EE_DO if s.eeprom.out else 0) | 0x10

    def _write_eecd(self, value: int, now: int) -> None:
        self.s.regs["EECD"] = value & 0x47
        beside.drive(self.s.eeprom, value & 7)

    def _write_eerd(self, value: int, now: int) -> None:
        address = value >> 8 & 0xFF
        if value & regs.EERD_START:
            words = self.s.eeprom.words
            word = words[address & beside.WORDS - 1]
            self.s.regs["EERD"] = word << 16 | address << 8 | regs.EERD_DONE
        else:
            self.s.regs["EERD"] = value & 0xFF00

    def _write_mdic(self, value: int, now: int) -> None:
        s = self.s
        operation, register = value >> 26 & 3, value >> 16 & 0x1F
        out = value & ~regs.MDIC_ERROR | regs.MDIC_READY
        if value >> 21 & 0x1F != beside.PHY_ADDRESS or operation not in (regs.MDIC_READ, regs.MDIC_WRITE):
            out |= regs.MDIC_ERROR
        elif operation == regs.MDIC_READ:
            out = out & ~0xFFFF | beside.phy_read(s.phy, register)
        elif beside.phy_write(s.phy, register, value & 0xFFFF):
            self._negotiate(now)
        else:
            self._link_changed(now)
        s.regs["MDIC"] = out
        if value & regs.MDIC_INTERRUPT:
            self._cause(regs.MDAC, now)

    def _write_pba(self, value: int, now: int) -> None:
        receive = min(value & 0x7F, 56)
        self.s.regs["PBA"] = 64 - receive << 16 | receive

    # --- link ---

    def _link_up(self) -> bool:
        return beside.link(self.s.phy) and bool(self.s.regs["CTRL"] & regs.CTRL_SLU)

    def _link_changed(self, now: int) -> None:
        up = int(self._link_up())
        if up != self.s.link:
            self.s.link = up
            if not up:
                self.s.phy.lost = 1
            self._cause(regs.LSC, now)
            self._start_transmit(now)

    def _negotiate(self, now: int) -> None:
        self.s.phy.negotiated = 0
        self._link_changed(now)
        self.at(now + LINK_TICKS, "link")

    def _negotiated(self, now: int) -> None:
        self.s.phy.negotiated = 1
        self._link_changed(now)

    def plug_cable(self, plugged: bool, now: int) -> None:
        """Somebody plugs the cable in, or pulls it; the link follows at once."""
        self.s.phy.cable = int(plugged)
        self._link_changed(now)

    # --- interrupts ---

    def _cause(self, bits: int, now: int) -> None:
        self.s.regs["ICR"] |= bits & regs.CAUSES
        self._update(now)

    def _update(self, now: int) -> None:
        """Make the pin follow ICR and IMS; ITR keeps a new interrupt back."""
        s = self.s
        if not s.regs["ICR"] & s.regs["IMS"]:
            if s.intx:
                self.set_intx(0, now)
        elif not s.intx:
            if now < s.quiet_until:
                self.at(s.quiet_until, "interrupt")
                return
            s.quiet_until = now + s.regs["ITR"] * 256
            self.set_intx(1, now)

    def _read_icr(self, now: int) -> int:
        value = self.s.regs["ICR"]
        self.s.regs["ICR"] = 0
        self._update(now)
        return value

    def _write_icr(self, value: int, now: int) -> None:
        self.s.regs["ICR"] &= ~value
        self._update(now)

    def _write_ims(self, value: int, now: int) -> None:
        self.s.regs["IMS"] |= value & regs.CAUSES
        self._update(now)

    def _write_imc(self, value: int, now: int) -> None:
        self.s.regs["IMS"] &= ~value
        self._update(now)

    def _write_itr(self, value: int, now: int) -> None:
        """A shorter interval, or none, holds for the interrupt that is being kept back as well."""
        s = self.s
        s.regs["ITR"] = value & 0xFFFF
        s.quiet_until = min(s.quiet_until, now + s.regs["ITR"] * 256)
        self._update(now)

    def _delay(self, which: str, ticks: int, absolute: int, now: int) -> None:
        """(Re)start a delay timer and, if it does not run, the one that limits it."""
        self.at(now + ticks, f"{which}-delay")
        if absolute and self.clock.due(self.name, f"{which}-absolute") is None:
            self.at(now + absolute, f"{which}-absolute")

    def _rx_done(self, now: int) -> None:
        self.cancel("rx-delay")
        self.cancel("rx-absolute")
        self._cause(regs.RXT0, now)

    def _tx_done(self, now: int) -> None:
        self.cancel("tx-delay")
        self.cancel("tx-absolute")
        self._cause(regs.TXDW, now)

    def _write_rdtr(self, value: int, now: int) -> None:
        self.s.regs["RDTR"] = value & 0xFFFF
        if value & regs.FLUSH and self.clock.due(self.name, "rx-delay") is not None:
            self._rx_done(now)

    def _write_tidv(self, value: int, now: int) -> None:
        self.s.regs["TIDV"] = value & 0xFFFF
        if value & regs.FLUSH and self.clock.due(self.name, "tx-delay") is not None:
            self._tx_done(now)

    # --- reception ---

    def _write_rctl(self, value: int, now: int) -> None:
        before = self.s.regs["RCTL"]
        self.s.regs["RCTL"] = value & _MASKS["RCTL"]
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
            self._arrive(frame, now)

    def _arrive(self, frame: bytes, now: int) -> None:
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
        counters[_size_class("PRC", size)] += 1
        if target[0] & 1:
            counters["BPRC" if target == _BROADCAST else "MPRC"] += 1
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
        if rctl & regs.RCTL_MPE or (target == _BROADCAST and rctl & regs.RCTL_BAM):
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

    # --- transmission ---

    def _write_tctl(self, value: int, now: int) -> None:
        self.s.regs["TCTL"] = value & _MASKS["TCTL"]
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
        counters[_size_class("PTC", size)] += 1
        if frame[0] & 1:
            counters["BPTC" if frame[:6] == _BROADCAST else "MPTC"] += 1
        if good:  # a frame with a wrong check sequence is dropped by whoever gets it
            if beside.loops_back(s.phy):
                self._arrive(frame, now)
            elif self.on_transmit is not None:
                self.on_transmit(frame, now)
        return wire_ticks(len(frame))


def _size_class(which: str, size: int) -> str:
    for limit in (64, 127, 255, 511, 1023):
        if size <= limit:
            return f"{which}{limit}"
    return f"{which}1522"


def vars_of(value: Any) -> dict[str, Any]:
    """Fields of part of a state, as it came from a file (a dict) or from `plain` (the same)."""
    return dict(value) if isinstance(value, dict) else dict(vars(value))
