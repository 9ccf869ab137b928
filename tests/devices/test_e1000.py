"""Intel 82540EM, by its manual: rings, filters, interrupts, EEPROM, PHY, statistics, resets."""

from __future__ import annotations

import struct
import zlib

import pytest

from emu.devices.e1000 import FETCH_TICKS, LINK_TICKS, wire_ticks
from emu.devices.e1000_eeprom import contents
from tests.devices.nic_rig import (
    BAM,
    BSEX,
    CTRL,
    ECAM,
    EECD,
    EERD,
    EN,
    EOP,
    IC,
    ICR,
    ICS,
    IDE,
    IFCS,
    IMC,
    IMS,
    ITR,
    LPE,
    LSC,
    MDAC,
    MDIC,
    MPE,
    MTA,
    OTHER,
    OUR_MAC,
    PBA,
    PORT,
    RA,
    RADV,
    RCTL,
    RDH,
    RDT,
    RDTR,
    RS,
    RSRPD,
    RX_RING,
    RXCSUM,
    RXDMT0,
    RXO,
    RXT0,
    SECRC,
    STATUS,
    TADV,
    TCTL,
    TDH,
    TDT,
    TIDV,
    TX_RING,
    TXDW,
    TXQE,
    UPE,
    VFTA,
    VLE,
    NicBoard,
    frame,
)  # fmt: skip

MULTICAST = bytes.fromhex("01005e123456")
BROADCAST = b"\xff" * 6


def board(**ring: int) -> NicBoard:
    """With both rings."""
    b = NicBoard()
    b.receive_ring(**ring)
    b.transmit_ring()
    return b


# --- identity, configuration space, I/O ---


def test_identity_and_capabilities() -> None:
    b = NicBoard()
    at = ECAM | 2 << 15
    assert (b.read(at), b.read(at + 8)) == (0x100E8086, 0x02000003)
    assert b.read(at + 0x2C) == 0x11001AF4 and b.read(at + 0x3D, 1) == 1
    b.cfg(0x10, 0xFFFFFFFF)
    b.cfg(0x18, 0xFFFFFFFF)
    assert (b.read(at + 0x10), b.read(at + 0x18)) == (0xFFFE0000, 0xFFFFFFC1)
    assert b.read(at + 0x34, 1) == 0xDC and b.read(at + 0xDC, 2) == 1, "power management, and nothing else"


def test_registers_by_ports() -> None:
    b = NicBoard()
    b.bus.port_write(PORT, 4, RA, 0)
    assert b.bus.port_read(PORT, 4, 0) == RA
    assert b.bus.port_read(PORT + 4, 4, 0) == int.from_bytes(OUR_MAC[:4], "little")
    b.bus.port_write(PORT, 4, RDTR, 0)
    b.bus.port_write(PORT + 4, 4, 77, 0)
    assert b.r(RDTR) == 77
    b.bus.port_write(PORT, 4, RDTR + 1, 0)
    b.bus.port_write(PORT + 4, 4, 78, 0)
    b.bus.port_write(PORT + 4, 2, 79, 0)
    assert b.r(RDTR) == 77, "only whole registers"


def test_old_places_of_registers() -> None:
    b = NicBoard()
    b.w(0x128, 5)
    b.w(0x438, 6)
    b.w(0x200, 7)
    assert (b.r(RDT), b.r(TDT), b.r(MTA)) == (5, 6, 7)
    assert b.r(0x40) == b.r(RA)


def test_partial_writes_do_nothing_and_unknown_registers_are_zero() -> None:
    b = NicBoard()
    b.w(RDTR, 0x1234)
    b.w(RDTR, 0xFF, 1)
    b.w(RDTR + 2, 0xFFFF, 2)
    assert b.r(RDTR) == 0x1234 and b.r(RDTR, 1) == 0x34 and b.r(RDTR + 1, 1) == 0x12
    b.w(0x1F000, 0xFFFFFFFF)
    assert b.r(0x1F000) == 0 and b.r(0x5FFC) == 0


# --- EEPROM and PHY ---


def microwire(b: NicBoard, bits: str, out: int = 0) -> list[int]:
    """Clock bits in with CS high, then ``out`` bits out."""
    seen = []
    for bit in bits + "0" * out:
        pins = 2 | (4 if bit == "1" else 0)
        b.w(EECD, 0x40 | pins)
        b.w(EECD, 0x40 | pins | 1)
        seen.append(b.r(EECD) >> 3 & 1)
    return seen[len(bits) :]


def deselect(b: NicBoard) -> None:
    b.w(EECD, 0x40)


def word_by_wire(b: NicBoard, address: int) -> int:
    bits = microwire(b, f"110{address:06b}", 16)
    deselect(b)
    return int("".join(map(str, bits)), 2)


def word_by_register(b: NicBoard, address: int) -> int:
    b.w(EERD, address << 8 | 1)
    value = b.r(EERD)
    assert value & 0x10, "EERD is not done"
    return value >> 16


def test_eeprom_both_ways() -> None:
    b = NicBoard()
    b.w(EECD, 0x40)
    assert b.r(EECD) & 0x1C0 == 0x1C0, "granted, and there is one"
    b.w(EECD, 0)
    assert not b.r(EECD) & 0x80
    words = [word_by_register(b, i) for i in range(64)]
    assert words == [word_by_wire(b, i) for i in range(64)]
    assert words == contents(OUR_MAC, (0x1AF4, 0x1100), (0x8086, 0x100E))
    assert sum(words) & 0xFFFF == 0xBABA
    assert struct.pack("<3H", *words[:3]) == OUR_MAC


def test_eeprom_reads_on_and_forgets_what_was_cut_off() -> None:
    b = NicBoard()
    bits = microwire(b, f"110{62:06b}", 48)
    deselect(b)
    words = [int("".join(map(str, bits[i : i + 16])), 2) for i in (0, 16, 32)]
    assert words == [word_by_register(b, i) for i in (62, 63, 0)]
    microwire(b, "11000")
    deselect(b)
    assert word_by_wire(b, 1) == word_by_register(b, 1)
    microwire(b, "0000110000000")  # zeros before the start bit are nothing
    deselect(b)
    assert word_by_wire(b, 2) == word_by_register(b, 2)


def test_eeprom_is_written_only_when_enabled() -> None:
    b = NicBoard()
    before = word_by_register(b, 9)
    microwire(b, f"101{9:06b}{0x1234:016b}")
    deselect(b)
    assert word_by_register(b, 9) == before
    microwire(b, "100110000")
    deselect(b)
    microwire(b, f"101{9:06b}{0x1234:016b}")
    deselect(b)
    assert word_by_register(b, 9) == 0x1234
    microwire(b, f"111{9:06b}")
    deselect(b)
    assert word_by_register(b, 9) == 0xFFFF
    microwire(b, "100000000")
    deselect(b)
    microwire(b, f"101{9:06b}{0x4321:016b}")
    deselect(b)
    assert word_by_register(b, 9) == 0xFFFF
    b.w(CTRL, 1 << 26)
    assert word_by_register(b, 9) == 0xFFFF, "a reset does not change it"


def phy(b: NicBoard, register: int) -> int:
    b.w(MDIC, 2 << 26 | 1 << 21 | register << 16)
    value = b.r(MDIC)
    assert value >> 28 & 5 == 1, f"MDIC {value:#x}"
    return value & 0xFFFF


def set_phy(b: NicBoard, register: int, value: int) -> None:
    b.w(MDIC, 1 << 26 | 1 << 21 | register << 16 | value)


def test_phy() -> None:
    b = NicBoard()
    assert (phy(b, 2), phy(b, 3)) == (0x0141, 0x0C20)
    assert phy(b, 1) & 0x24 == 0x24 and phy(b, 17) & 0xEC00 == 0xAC00
    set_phy(b, 4, 0x01E1)
    assert phy(b, 4) == 0x01E1
    set_phy(b, 2, 0)
    assert phy(b, 2) == 0x0141, "read-only"
    b.w(MDIC, 2 << 26 | 2 << 21)
    assert b.r(MDIC) >> 30 & 1, "nobody at address 2"
    b.w(IMS, MDAC)
    b.w(MDIC, 2 << 26 | 1 << 21 | 1 << 29)
    assert b.irq() and b.r(ICR) == MDAC


def test_link_goes_and_comes() -> None:
    b = NicBoard()
    b.w(IMS, LSC)
    assert b.r(STATUS) & 2
    b.nic.plug_cable(False, 0)
    assert not b.r(STATUS) & 2 and b.irq() and b.r(ICR) == LSC and not b.irq()
    b.nic.plug_cable(True, 0)
    assert phy(b, 1) & 4 == 0, "latched low"
    assert phy(b, 1) & 4 and b.r(ICR) == LSC
    set_phy(b, 0, 0x1200)
    assert not b.r(STATUS) & 2 and b.r(ICR) == LSC and phy(b, 17) == 0
    b.after(LINK_TICKS - 1)
    assert not b.r(STATUS) & 2
    b.after(1)
    assert b.r(STATUS) & 2 and b.r(ICR) == LSC
    b.w(CTRL, 0)
    assert not b.r(STATUS) & 2, "without SLU the MAC does not look at the PHY"
    b.w(CTRL, 1 << 6 | 1 << 31)
    b.after(2 * LINK_TICKS)
    assert not b.r(STATUS) & 2, "the PHY is held in reset"
    b.w(CTRL, 1 << 6)
    b.after(LINK_TICKS)
    assert b.r(STATUS) & 2


def test_nothing_arrives_or_leaves_without_a_link() -> None:
    b = board()
    b.nic.plug_cable(False, 0)
    b.arrive(frame())
    b.legacy(frame(), EOP | IFCS | RS)
    assert b.go() == [] and b.take() is None and b.r(TDH) == 0
    b.nic.plug_cable(True, b.now)
    b.after(100_000)
    assert len(b.sent) == 1 and b.r(TDH) == 1


# --- receiving ---


def test_a_frame_is_in_memory_when_it_has_arrived() -> None:
    b = board()
    b.w(IMS, RXT0)
    b.to(5_000)
    one = frame(100)
    b.arrive(one)
    got = b.take()
    assert got is not None and got.data == one
    assert got.status & 0x83 == 3 and got.errors == 0
    assert b.wire.changes == [(1, 5_000)] and b.r(RDH) == 1
    assert b.r(ICR) & RXT0 and not b.irq()
    records = b.log.records()
    assert [int(t) for t in records["tick"]] == [5_000] * 3
    assert [(int(r["iova"]), int(r["size"]), int(r["write"])) for r in records] == [
        (RX_RING, 8, 0), (0x200000, 100, 1), (RX_RING, 16, 1),
    ]  # fmt: skip


@pytest.mark.parametrize("size", [256, 512, 1024, 2048, 4096, 8192, 16384])
def test_long_frames_over_several_buffers(size: int) -> None:
    control = {256: 3 << 16, 512: 2 << 16, 1024: 1 << 16, 2048: 0}.get(size)
    if control is None:
        control = BSEX | {4096: 3, 8192: 2, 16384: 1}[size] << 16
    b = NicBoard()
    b.receive_ring(48, EN | LPE | SECRC | control, size)
    for length in (60, size - 1, size, size + 1, 2 * size, 9014, 9216):
        if not 60 <= length <= 16000:
            continue
        one = frame(length, mark=length & 0xFF)
        b.arrive(one)
        parts = b.take_all()
        assert b"".join(p.data for p in parts) == one
        assert [len(p.data) for p in parts[:-1]] == [size] * (-(-length // size) - 1)
        assert [p.status & 2 for p in parts] == [0] * (len(parts) - 1) + [2]
        b.give(len(parts))


def test_check_sequence_is_kept_unless_stripped() -> None:
    b = board(control=EN)
    one = frame(64)
    b.arrive(one)
    got = b.take()
    assert got is not None and got.data == one + struct.pack("<I", zlib.crc32(one))


def test_sizes_that_are_not_accepted() -> None:
    b = board()
    b.arrive(frame(59), frame(1519), frame(1518), frame(60))
    assert [len(got.data) for got in b.take_all()] == [1518, 60]
    assert (b.r(0x40A4), b.r(0x40AC), b.r(0x4074), b.r(0x40D0)) == (1, 1, 2, 4)


@pytest.mark.parametrize(
    ("to", "control", "accepted"),
    [
        (OUR_MAC, EN, True), (OTHER, EN, False), (OTHER, EN | UPE, True), (OTHER, EN | MPE, False),
        (BROADCAST, EN, False), (BROADCAST, EN | BAM, True), (BROADCAST, EN | MPE, True),
        (MULTICAST, EN, False), (MULTICAST, EN | BAM | UPE, False), (MULTICAST, EN | MPE, True),
        (OUR_MAC, 0, False),
    ],
)  # fmt: skip
def test_address_filters(to: bytes, control: int, accepted: bool) -> None:
    b = board(control=control | SECRC)
    b.arrive(frame(to=to))
    got = b.take()
    assert (got is not None) == accepted
    if got is not None:
        assert bool(got.status & 0x80) == (to != OUR_MAC), "passed by another filter than the exact one"


@pytest.mark.parametrize(("offset", "bits"), [(0, (36, 47)), (1, (35, 46)), (2, (34, 45)), (3, (32, 43))])
def test_multicast_hash(offset: int, bits: tuple[int, int]) -> None:
    b = board(control=EN | SECRC | offset << 12)
    value = int.from_bytes(MULTICAST, "little")
    hashed = value >> bits[0] & (1 << bits[1] - bits[0] + 1) - 1
    b.w(MTA + 4 * (hashed >> 5), 1 << (hashed & 31))
    other = MULTICAST[:4] + bytes((MULTICAST[4] ^ 0x40, MULTICAST[5]))
    b.arrive(frame(to=MULTICAST), frame(to=other))
    assert [got.data[:6] for got in b.take_all()] == [MULTICAST]
    assert b.r(0x407C) == 1


def test_more_addresses() -> None:
    b = board()
    b.w(RA + 8 * 15, int.from_bytes(OTHER[:4], "little"))
    b.w(RA + 8 * 15 + 4, int.from_bytes(OTHER[4:], "little"))
    b.arrive(frame(to=OTHER))
    assert b.take() is None, "not valid"
    b.w(RA + 8 * 15 + 4, int.from_bytes(OTHER[4:], "little") | 1 << 31)
    b.w(RA + 4, 0)
    b.arrive(frame(to=OTHER), frame())
    assert [got.data[:6] for got in b.take_all()] == [OTHER]


def vlan(tag: int, size: int = 64) -> bytes:
    one = frame(size)
    return one[:12] + struct.pack(">HH", 0x8100, tag) + one[12:]


def test_vlan() -> None:
    b = board(control=EN | SECRC | 1 << 18)
    b.arrive(vlan(0x0123))
    assert b.take() is None
    b.w(VFTA + 4 * (0x123 >> 5), 1 << (0x123 & 31))
    b.arrive(vlan(0x0123), vlan(0x0124), frame())
    assert [got.data for got in b.take_all()] == [vlan(0x0123), frame()]
    b.w(CTRL, 1 << 6 | 1 << 30)
    b.arrive(vlan(0x6123))
    got = b.take()
    assert got is not None and got.data == frame(64) and got.special == 0x6123 and got.status & 8
    b.w(RCTL, EN | SECRC | 1 << 18 | 1 << 19)  # only with CFI 0
    b.arrive(vlan(0x1123), vlan(0x2123))
    assert [got.special for got in b.take_all()] == [0x2123]


def test_frames_wait_for_descriptors_and_then_for_room() -> None:
    b = board(count=8)
    b.w(PBA, 2)
    b.w(IMS, RXO)
    frames = [frame(500, mark=i) for i in range(14)]
    b.arrive(*frames)
    assert len(b.take_all()) == 7 and b.r(RDH) == b.r(RDT) == 7
    assert b.irq() and b.r(ICR) & RXO
    assert (b.r(0x40A0), b.r(0x4010)) == (7, 3), "RNBC, MPC"
    b.give(3)
    assert b.take() is None
    b.after(FETCH_TICKS)
    assert [got.data for got in b.take_all()] == frames[7:8]
    b.after(10 * FETCH_TICKS)
    assert [got.data for got in b.take_all()] == frames[8:10]
    b.give(4)
    b.arrive(frame(mark=99))
    b.after(10 * FETCH_TICKS)
    assert [got.data for got in b.take_all()] == [frames[10], frame(mark=99)], "in their order"


def test_null_descriptors_are_used_up() -> None:
    b = board()
    b.ram.put(RX_RING, bytes(16))
    b.arrive(frame())
    first, second = b.take_all()
    assert (first.data, first.status & 3) == (b"", 1) and (second.data, second.status & 3) == (frame(), 3)


@pytest.mark.parametrize(
    ("head", "tail", "length"), [(16, 3, 256), (0, 16, 256), (0, 5, 0), (0xFFFF, 0xFFFE, 0x80)]
)
def test_impossible_rings_receive_and_send_nothing(head: int, tail: int, length: int) -> None:
    b = board()
    for base in (0x2808, 0x3808):
        b.w(base, length)
        b.w(base + 8, head)
        b.w(base + 16, tail)
    b.arrive(frame())
    b.after(1_000_000)
    assert len(b.log) == 0 and b.sent == []


def test_without_bus_mastering_frames_wait() -> None:
    b = board()
    b.cfg(4, 3, 2)
    b.arrive(frame())
    b.legacy(frame(), EOP | IFCS)
    assert b.go() == [] and len(b.log) == 0
    b.cfg(4, 7, 2)
    b.after(100_000)
    assert len(b.take_all()) == 1 and len(b.sent) == 1


def ip(payload: bytes, protocol: int, bad: int = 0) -> bytes:
    """An IPv4 packet in a frame; ``bad``: 1 a wrong IP checksum."""
    head = bytearray(
        struct.pack(
            ">BBHHHBBH4s4s", 0x45, 0, 20 + len(payload), 1, 0, 64, protocol, 0, b"\x0a\0\0\1", b"\x0a\0\0\2"
        )
    )
    total = sum(struct.unpack(">10H", head))
    total = (total & 0xFFFF) + (total >> 16)
    head[10:12] = (0xFFFF - total ^ bad).to_bytes(2, "big")
    return OUR_MAC + OTHER + b"\x08\x00" + bytes(head) + payload


def udp(data: bytes, bad: int = 0) -> bytes:
    body = struct.pack(">HHHH", 1, 2, 8 + len(data), 0) + data
    pseudo = b"\x0a\0\0\1\x0a\0\0\2" + struct.pack(">HH", 17, len(body)) + body
    pseudo += bytes(len(pseudo) % 2)
    total = sum(struct.unpack(f">{len(pseudo) // 2}H", pseudo))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return body[:6] + ((0xFFFF - total ^ bad) or 0xFFFF).to_bytes(2, "big") + data


def test_checksums_of_what_arrives() -> None:
    b = board()
    b.w(RXCSUM, 0x300 | 14)
    cases = [
        (ip(udp(b"x" * 101), 17), 0x60, 0), (ip(udp(b"x" * 40), 17, bad=8), 0x60, 0x40),
        (ip(udp(b"x" * 40, bad=4), 17), 0x60, 0x20), (ip(b"y" * 50, 1), 0x40, 0), (frame(), 4, 0),
    ]  # fmt: skip
    b.arrive(*(one for one, _, _ in cases))
    for got, (one, status, errors) in zip(b.take_all(), cases, strict=True):
        assert (got.data, got.status & 0x64, got.errors) == (one, status, errors)
        words = one[14:] + bytes(len(one) % 2)
        assert (got.sum - sum(struct.unpack(f">{len(words) // 2}H", words))) % 0xFFFF == 0
    b.w(RXCSUM, 0)
    b.arrive(frame())
    got_one = b.take()
    assert got_one is not None and got_one.status & 0x64 == 4


# --- interrupts ---


def test_masks_and_causes() -> None:
    b = NicBoard()
    b.w(ICS, 0xFFFFFFFF)
    assert not b.irq()
    b.w(IMS, LSC)
    assert b.irq() and b.r(IMS) == LSC
    b.w(IMC, LSC)
    assert not b.irq() and b.r(IMS) == 0
    b.w(IMS, LSC | TXDW)
    b.w(ICR, LSC)
    assert b.irq(), "the other cause"
    b.w(ICR, TXDW)
    assert not b.irq()
    assert b.r(ICR) == 0x0001_FFFF & ~(LSC | TXDW)
    assert b.r(ICR) == 0, "cleared by reading"
    assert (b.r(ICS), b.r(IMC)) == (0, 0)


def test_throttling() -> None:
    b = NicBoard()
    b.w(ITR, 100)
    b.w(IMS, LSC)
    b.w(ICS, LSC)
    assert b.irq()
    b.r(ICR)
    b.to(1_000)
    b.w(ICS, LSC)
    assert not b.irq()
    b.to(30_000)
    assert b.wire.changes == [(1, 0), (0, 0), (1, 25_600)]
    b.r(ICR)
    b.w(ICS, LSC)
    assert not b.irq()
    b.w(ITR, 0)
    assert b.irq(), "no longer kept back"


def test_receive_delay_timers() -> None:
    b = board()
    b.w(IMS, RXT0)
    b.w(RDTR, 10)
    b.w(RADV, 25)
    for i in range(5):
        b.to(8_000 * i)
        b.arrive(frame())
    assert b.wire.changes == [(1, 25 << 10)], "the absolute timer"
    b.r(ICR)
    b.to(100_000)
    assert b.wire.changes[2:] == [(1, 32_000 + (10 << 10))], "the packet timer"
    b.r(ICR)
    b.arrive(frame())
    assert not b.irq()
    b.w(RDTR, 1 << 31 | 10)
    assert b.irq(), "flushed"
    b.r(ICR)
    b.w(RSRPD, 64)
    b.w(IMS, 1 << 16)
    b.arrive(frame(64))
    assert b.r(ICR) & 0x10080 == 0x10000, "a small packet"


def test_few_descriptors_left() -> None:
    b = board(count=16, control=EN | SECRC | 1 << 8)
    for i in range(13):
        b.arrive(frame())
        assert bool(b.r(ICR) & RXDMT0) == (15 - i - 1 <= 4), f"{15 - i - 1} of 16 left"


# --- sending ---


def test_legacy_descriptors() -> None:
    b = board()
    b.w(IMS, TXDW | TXQE)
    one, two = frame(100), frame(1514)
    b.legacy(one, EOP | IFCS | RS)
    b.legacy(two[:1000], IFCS)
    b.legacy(two[1000:], EOP | IFCS | RS)
    assert b.go() == [one, two]
    assert [now for now, _ in b.sent] == [FETCH_TICKS, FETCH_TICKS + wire_ticks(100)], "as fast as the wire"
    assert [b.ram.get(TX_RING + 16 * i + 12, 1)[0] & 1 for i in range(3)] == [1, 0, 1]
    assert b.r(TDH) == 3 and b.r(ICR) & 3 == 3


def test_padding_and_given_check_sequence() -> None:
    b = board()
    short = frame(20)
    b.legacy(short, EOP | IFCS)
    b.legacy(frame(80) + struct.pack("<I", zlib.crc32(frame(80))), EOP)
    b.legacy(frame(84), EOP)
    assert b.go() == [short.ljust(60, b"\0"), frame(80)], "and nobody takes a wrong one"
    b.w(TCTL, EN)
    b.legacy(short, EOP | IFCS)
    assert b.go() == [short]


def test_legacy_checksum_and_vlan() -> None:
    b = board()
    packet = ip(udp(b"abc"), 17)
    b.legacy(packet[:24] + b"\0\0" + packet[26:], EOP | IFCS | IC, cso=24, css=14)
    (got,) = b.go()
    want = packet[:24]
    assert got[:24] == want and len(got) == 60
    words = struct.unpack(f">{(len(packet) - 14) // 2}H", got[14 : len(packet) - (len(packet) % 2)])
    total = sum(words) + (packet[-1] << 8 if len(packet) % 2 else 0)
    assert total % 0xFFFF == 0
    b.w(CTRL, 1 << 6 | 1 << 30)
    b.legacy(frame(64), EOP | IFCS | VLE, special=0x0ABC)
    assert b.go() == [vlan(0x0ABC)]


def test_transmit_delay_timers() -> None:
    b = board()
    b.w(IMS, TXDW)
    b.w(TIDV, 10)
    b.w(TADV, 25)
    b.legacy(frame(), EOP | IFCS | RS | IDE)
    b.go(1)
    b.to(50_000)
    assert b.wire.changes == [(1, FETCH_TICKS + (10 << 10))]
    b.r(ICR)
    b.legacy(frame(), EOP | IFCS | RS)
    b.go(1_000)
    assert b.irq(), "without IDE at once"


def test_tail_moved_while_sending_and_ring_wraps() -> None:
    b = board()
    frames = [frame(60 + i, mark=i) for i in range(40)]
    for i in range(0, 40, 10):
        for one in frames[i : i + 10]:
            b.legacy(one, EOP | IFCS | RS)
        b.go(9_000)
    b.after(100_000)
    assert [one for _, one in b.sent] == frames
    times = [now for now, _ in b.sent]
    assert all(y - x >= wire_ticks(len(f)) for x, y, f in zip(times, times[1:], frames, strict=False))


def test_loopback_in_the_phy() -> None:
    b = board()
    set_phy(b, 0, 0x4140)
    b.legacy(frame(200), EOP | IFCS)
    assert b.go() == [] and [got.data for got in b.take_all()] == [frame(200)]
    b.arrive(frame())
    assert b.take() is None, "the cable is not listened to"


# --- statistics, reset, power ---


def test_statistics_are_cleared_by_reading() -> None:
    b = board(control=EN | LPE | BAM | SECRC)
    for size in (60, 61, 123, 124, 251, 252, 507, 508, 1019, 1020, 1518, 9000):
        b.arrive(frame(size))
    b.arrive(frame(to=BROADCAST), frame(to=OTHER))
    assert [b.r(0x405C + 4 * i) for i in range(6)] == [2, 2, 2, 2, 2, 3]
    total = 60 + 61 + 123 + 124 + 251 + 252 + 507 + 508 + 1019 + 1020 + 1518 + 9000 + 60 + 4 * 13
    assert (b.r(0x4088), b.r(0x408C), b.r(0x4088)) == (total, 0, 0)
    assert (b.r(0x40C0), b.r(0x40C4)) == (total + 64, 0), "also of frames for others"
    assert (b.r(0x4074), b.r(0x4078), b.r(0x40D0), b.r(0x4074)) == (13, 1, 14, 0)
    b.legacy(frame(100), EOP | IFCS)
    b.legacy(frame(to=MULTICAST), EOP | IFCS)
    b.go()
    assert (b.r(0x4080), b.r(0x4090), b.r(0x40D4), b.r(0x40C8)) == (2, 168, 2, 168)
    assert (b.r(0x40D8), b.r(0x40DC), b.r(0x40F0), b.r(0x40F4)) == (1, 1, 1, 0)


def test_software_reset() -> None:
    b = board(count=8)
    set_phy(b, 4, 0x01E1)
    b.w(IMS, LSC)
    b.w(ICS, LSC)
    b.w(RA, 0)
    b.arrive(*[frame()] * 20)
    b.w(RDTR, 5)
    b.w(CTRL, 1 << 26 | 1 << 6)
    assert not b.irq() and (b.r(IMS), b.r(ICR), b.r(RCTL), b.r(RDT), b.r(RDTR)) == (0, 0, 0, 0, 0)
    assert b.r(RA) == int.from_bytes(OUR_MAC[:4], "little") and b.r(STATUS) & 2
    assert phy(b, 4) == 0x01E1 and b.r(0x4074) == 0 and not b.r(CTRL) & 1 << 26
    assert b.read(ECAM | 2 << 15 | 4, 2) == 7, "configuration space stays"
    before = len(b.log)
    b.after(10_000_000)
    assert len(b.log) == before, "what waited is gone"


def test_power_states() -> None:
    b = board()
    b.nic.plug_cable(False, 0)
    b.nic.plug_cable(True, 0)
    b.w(IMS, LSC)
    b.w(ICS, LSC)
    b.cfg(0xE0, 3, 2)
    assert b.r(STATUS) == 0xFFFFFFFF, "no BAR in D3hot"
    before = len(b.log)
    b.arrive(frame())
    b.after(1_000_000)
    assert len(b.log) == before and not b.irq()
    b.cfg(0xE0, 0, 2)
    assert b.read(ECAM | 2 << 15 | 4, 2) == 0 and b.read(ECAM | 2 << 15 | 0x10) == 0
    b.cfg(0x10, 0xC0000000)
    b.cfg(4, 7, 2)
    assert (b.r(RCTL), b.r(IMS)) == (0, 0)


def test_state_is_plain_and_complete() -> None:
    """What waits for descriptors and half a packet are part of it; the copy goes on as the original did."""
    b = board(count=8)
    b.arrive(*[frame(mark=i) for i in range(12)])
    assert len(b.take_all()) == 7
    b.legacy(frame(100)[:50], IFCS)
    b.go()
    b.legacy(frame(100)[50:], EOP | IFCS)
    state, events, now = b.nic.state(), b.clock.state(), b.now

    def rest() -> tuple[list[bytes], list[bytes]]:
        b.give(5)
        sent = b.go()
        return sent, [got.data for got in b.take_all()]

    want = [frame(100)], [frame(mark=i) for i in range(7, 12)]
    assert rest() == want
    b.nic.load(state)
    b.clock.load(events)
    b.now, b.next_rx = now, 7
    assert b.nic.state() == state
    assert rest() == want
