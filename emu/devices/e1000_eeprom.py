"""What is beside the MAC of an 82540EM: its EEPROM of 64 words (93C46) and its gigabit PHY (88E1011).

Both are driven by a few bits of the MAC: the EEPROM by EECD, a wire at a time, or by EERD, a word at a time;
the PHY by MDIC. Both answer at once. What of this is state is in the two dataclasses; the functions here know
neither the MAC nor time. The PHY has a cable, and what autonegotiation finds on it: 1000 Mb/s full duplex.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from emu.devices.e1000_regs import EE_CS, EE_DI, EE_SK

WORDS = 64
_ADDRESS_BITS = 6
CHECKSUM = 0xBABA
"""The sum of all words, modulo 2^16 (5.6.35)."""


def contents(mac: bytes, subsystem: tuple[int, int], device: tuple[int, int]) -> list[int]:
    """The words of a new EEPROM (5.6). ``subsystem`` and ``device``: vendor first."""
    words = [0xFFFF] * WORDS
    words[0:3] = [int.from_bytes(mac[i : i + 2], "little") for i in (0, 2, 4)]
    words[3], words[10], words[15] = 0, 0x446B, 0x3040
    words[11:15] = [subsystem[1], subsystem[0], device[1], device[0]]
    words[WORDS - 1] = CHECKSUM - sum(words[: WORDS - 1]) & 0xFFFF
    return words


@dataclass
class EepromState:
    """Words, and where a Microwire transfer is."""

    words: list[int]
    pins: int = 0  # SK, CS, DI as last driven
    out: int = 1  # DO
    shift: int = 0  # what came in since the start bit, the start bit first
    bits: int = 0  # how many; 0 before the start bit
    reading: int = 0  # bits of `data` that are still to come out
    data: int = 0
    writable: int = 0


def drive(s: EepromState, pins: int) -> None:
    """Software moves SK, CS and DI (EECD bits)."""
    rising = pins & EE_SK and not s.pins & EE_SK
    if not pins & EE_CS:
        if s.pins & EE_CS:
            _end(s)
        s.bits = s.shift = s.reading = 0
        s.out = 1  # ready
    elif rising:
        if s.reading:
            s.reading -= 1
            s.out = s.data >> s.reading & 1
            if not s.reading:  # the next word follows by itself
                address = s.shift + 1 & WORDS - 1
                s.shift, s.data, s.reading = s.shift & ~(WORDS - 1) | address, s.words[address], 16
        elif s.bits or pins & EE_DI:
            if s.bits < 3 + _ADDRESS_BITS + 16:
                s.shift = s.shift << 1 | bool(pins & EE_DI)
                s.bits += 1
            if s.bits == 3 + _ADDRESS_BITS and s.shift >> _ADDRESS_BITS == 0b110:
                s.data, s.reading, s.out = s.words[s.shift & WORDS - 1], 16, 0  # a dummy 0 comes first
    s.pins = pins


def _end(s: EepromState) -> None:
    """CS falls: a command that changes the EEPROM is carried out."""
    opcode_bits = 3 + _ADDRESS_BITS
    if s.bits == opcode_bits:
        opcode, address = s.shift >> _ADDRESS_BITS, s.shift & WORDS - 1
        if opcode == 0b100:
            top = address >> _ADDRESS_BITS - 2
            if top in (0, 3):  # EWDS, EWEN
                s.writable = int(top == 3)
            elif top == 2 and s.writable:  # ERAL
                s.words = [0xFFFF] * WORDS
        elif opcode == 0b111 and s.writable:
            s.words[address] = 0xFFFF
    elif s.bits == opcode_bits + 16 and s.writable:
        opcode, address = s.shift >> _ADDRESS_BITS + 16, s.shift >> 16 & WORDS - 1
        if opcode == 0b101:
            s.words[address] = s.shift & 0xFFFF
        elif opcode == 0b100 and address >> _ADDRESS_BITS - 2 == 1:  # WRAL
            s.words = [s.shift & 0xFFFF] * WORDS


PHY_ADDRESS = 1
CONTROL, STATUS, ID1, ID2, ADVERTISE, PARTNER, EXPANSION = 0, 1, 2, 3, 4, 5, 6
GIGABIT_CONTROL, GIGABIT_STATUS, EXTENDED_STATUS = 9, 10, 15
SPECIFIC_CONTROL, SPECIFIC_STATUS, INTERRUPT_STATUS = 16, 17, 19
CONTROL_RESET, CONTROL_LOOPBACK, CONTROL_POWER_DOWN, CONTROL_RESTART = 1 << 15, 1 << 14, 1 << 11, 1 << 9
_POWER_ON = {
    CONTROL: 0x1140, STATUS: 0x7949, ID1: 0x0141, ID2: 0x0C20, ADVERTISE: 0x0DE1, EXPANSION: 0x0004,
    7: 0x2001, GIGABIT_CONTROL: 0x0E00, EXTENDED_STATUS: 0x3000, SPECIFIC_CONTROL: 0x0068, 20: 0x0D60,
}  # fmt: skip
_WRITABLE = (0, 4, 7, 9, 16, 18, 20, 24, 26, 29, 30)


@dataclass
class PhyState:
    """Registers, and the cable."""

    regs: list[int] = field(default_factory=lambda: [_POWER_ON.get(i, 0) for i in range(32)])
    cable: int = 1  # 0: unplugged
    negotiated: int = 1
    lost: int = 0  # the link was lost since STATUS was last read


def link(s: PhyState) -> bool:
    """Whether the PHY has a link."""
    return bool(s.cable and s.negotiated and not s.regs[CONTROL] & CONTROL_POWER_DOWN)


def loops_back(s: PhyState) -> bool:
    """Whether what is sent comes back."""
    return bool(s.regs[CONTROL] & CONTROL_LOOPBACK)


def phy_read(s: PhyState, register: int) -> int:
    """A register by MDIC."""
    up = link(s)
    if register == STATUS:  # link status latches low, 22.2.4.2.13 of IEEE 802.3
        value = s.regs[STATUS] | (0x20 if up else 0) | (4 if up and not s.lost else 0)
        s.lost = int(not up)
        return value
    if register == PARTNER:
        return 0x45E1 if up else 0
    if register == EXPANSION:
        return s.regs[EXPANSION] | (3 if up else 0)
    if register == GIGABIT_STATUS:
        return 0x3C00 if up else 0
    if register == SPECIFIC_STATUS:  # 1000 Mb/s, full duplex, resolved, link
        return 0xAC00 if up else 0
    if register == INTERRUPT_STATUS:
        value, s.regs[register] = s.regs[register], 0
        return value
    return s.regs[register]


def phy_write(s: PhyState, register: int, value: int) -> bool:
    """Write a register by MDIC; whether autonegotiation begins anew, with the link down meanwhile."""
    if register not in _WRITABLE:
        return False
    if register != CONTROL:
        s.regs[register] = value
        return False
    if value & CONTROL_RESET:
        s.regs = PhyState().regs
        return True
    s.regs[CONTROL] = value & ~CONTROL_RESTART
    return bool(value & CONTROL_RESTART)
