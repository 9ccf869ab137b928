"""The middle of an 82540EM: registers, resets, link and interrupts; all but the two directions of frames.

`emu.devices.e1000` is where to begin to read.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from emu.clock import Clock
from emu.devices import e1000_eeprom as beside
from emu.devices import e1000_regs as regs
from emu.devices.pci import COMMAND, COMMAND_MASTER, Bar, PciFunction, PciState

FETCH_TICKS = 500
LINK_TICKS = 1_000_000
VENDOR, DEVICE, SUBSYSTEM = 0x8086, 0x100E, (0x1AF4, 0x1100)
MAC = bytes.fromhex("525400123456")
BROADCAST = b"\xff" * 6
MASKS = {name: mask for name, mask, _ in regs.REGISTERS.values()}


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


class Mac(PciFunction):
    """What both directions build on."""

    s: E1000State

    def __init__(self, clock: Clock, slot: int, name: str) -> None:
        super().__init__(
            name, clock, slot, vendor=VENDOR, device=DEVICE, class_code=0x020000, revision=3,
            subsystem=SUBSYSTEM, pin=1,
        )  # fmt: skip
        self.mac = MAC if "/" not in name else MAC[:5] + bytes((MAC[5] + 1,))
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
            "IMC": self._write_imc, "ITR": self._write_itr, "CTRL_EXT": self._write_ctrl_ext,
        }  # fmt: skip
        self._events: dict[str, Callable[[int], None]] = {
            "link": self._negotiated, "interrupt": self._update,
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
        self.s.eeprom = beside.EepromState(**_fields(self.s.eeprom))
        self.s.phy = beside.PhyState(**_fields(self.s.phy))
        self._exact = None

    def config_written(self, offset: int, size: int, now: int) -> None:
        """What waits for the right to master the bus goes on."""
        if offset <= COMMAND < offset + size:
            self._resume(now)

    def event(self, event: str, now: int) -> None:
        """Something is due."""
        self._events[event](now)

    def _resume(self, now: int) -> None:
        """Whatever waited for a link, or for the right to master the bus, goes on."""

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
            self._resume(now)

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


_LIMITS = (64, 127, 255, 511, 1023)
_CLASSES = ("64", "127", "255", "511", "1023", "1522")


def size_class(which: str, size: int) -> str:
    """Name of the counter of frames of ``size`` bytes with check sequence; ``which``: PRC or PTC."""
    return which + _CLASSES[bisect_left(_LIMITS, size)]


def _fields(value: Any) -> dict[str, Any]:
    """Fields of part of a state, as it came from a file (a dict) or from `plain` (the same)."""
    return dict(value) if isinstance(value, dict) else dict(vars(value))
