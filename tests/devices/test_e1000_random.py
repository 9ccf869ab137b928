"""The network card against a second model, by random programs of registers, descriptors and frames.

The second model is written from the manual a second time, as simply as possible and without time: after each
operation the card gets all the time it can use, and then memory, frames, registers and counters must be the
same. It shares no code with the first.
"""

from __future__ import annotations

import binascii
import random
import struct
from collections import Counter

import pytest

from tests.devices.nic_rig import (
    BSEX,
    CTRL,
    ICR,
    ICS,
    IMC,
    IMS,
    LPE,
    MTA,
    OTHER,
    OUR_MAC,
    PBA,
    RA,
    RCTL,
    RDBAL,
    RDH,
    RDLEN,
    RDT,
    RX_RING,
    SECRC,
    TDBAL,
    TDH,
    TDLEN,
    TDT,
    TX_RING,
    VFTA,
    NicBoard,
)  # fmt: skip

COUNT = 16
BUFFERS, DATA = 0x200000, 0x600000
MULTICAST = bytes.fromhex("01005e123456")
BROADCAST = b"\xff" * 6
COUNTERS = {
    "GPRC": 0x4074, "BPRC": 0x4078, "MPRC": 0x407C, "GPTC": 0x4080, "RUC": 0x40A4, "ROC": 0x40AC,
    "TPR": 0x40D0, "TPT": 0x40D4, "MPTC": 0x40F0, "BPTC": 0x40F4, "RNBC": 0x40A0, "MPC": 0x4010,
    "TSCTC": 0x40F8,
}  # fmt: skip


def ones(data: bytes) -> int:
    """The ones' complement sum, word by word."""
    total = 0
    for i in range(0, len(data), 2):
        total += int.from_bytes(data[i : i + 2].ljust(2, b"\0"), "big")
        total = (total & 0xFFFF) + (total >> 16)
    return total


def with_sum(frame: bytes, start: int, at: int, end: int) -> bytes:
    if at + 2 > len(frame) or start >= len(frame) or 0 < end < start:
        return frame
    value = ones(frame[start : end + 1 if end else None]) ^ 0xFFFF
    return frame[:at] + struct.pack(">H", value or 0xFFFF) + frame[at + 2 :]


class Model:
    """The card as its manual has it, with memory of its own."""

    def __init__(self, memory: bytearray) -> None:
        self.memory = memory
        self.rctl = self.ctrl = self.icr = self.ims = 0
        self.addresses = {OUR_MAC}
        self.mta: set[int] = set()
        self.vlans: set[int] = set()
        self.rx = [0, 0]  # head, tail
        self.tx = [0, 0]
        self.waiting: list[tuple[bytes, int, int]] = []
        self.room = 48 << 10
        self.sent: list[bytes] = []
        self.counters: Counter[str] = Counter()
        self.packet = b""
        self.options = 0
        self.context = bytes(16)

    # --- reception ---

    @property
    def buffer(self) -> int:
        code = self.rctl >> 16 & 3
        if self.rctl & BSEX:
            return {0: 2048, 1: 16384, 2: 8192, 3: 4096}[code]
        return {0: 2048, 1: 1024, 2: 512, 3: 256}[code]

    def arrive(self, frame: bytes) -> None:
        if not self.rctl & 2:
            return
        self.counters["TPR"] += 1
        to = frame[:6]
        exact = to in self.addresses
        if to[0] & 1:
            value = int.from_bytes(to, "little")
            low = {0: 36, 1: 35, 2: 34, 3: 32}[self.rctl >> 12 & 3]
            hashed = value >> low & 0xFFF in self.mta
            fine = exact or hashed or self.rctl & 16 or (to == BROADCAST and self.rctl & 0x8000)
        else:
            fine = exact or self.rctl & 8
        if not fine:
            return
        if len(frame) < 60:
            self.counters["RUC"] += 1
            return
        if len(frame) > (16380 if self.rctl & LPE else 1518):
            self.counters["ROC"] += 1
            return
        tagged = frame[12:14] == b"\x81\x00"
        (tag,) = struct.unpack(">H", frame[14:16])
        if tagged and self.rctl & 1 << 18:
            if tag & 0xFFF not in self.vlans:
                return
            if self.rctl & 1 << 19 and bool(tag & 0x1000) != bool(self.rctl & 1 << 20):
                return
        self.counters["GPRC"] += 1
        if to == BROADCAST:
            self.counters["BPRC"] += 1
        elif to[0] & 1:
            self.counters["MPRC"] += 1
        stored = frame if self.rctl & SECRC else frame + struct.pack("<I", binascii.crc32(frame))
        status, special = 1 | 4 | (0 if exact else 0x80), 0
        if tagged and self.ctrl & 1 << 30:
            stored, status, special = stored[:12] + stored[16:], status | 8, tag
        if not self.waiting and self.fits(stored):
            self.store(stored, status, special)
            return
        self.counters["RNBC"] += 1
        if sum(len(one) for one, _, _ in self.waiting) + len(stored) > self.room:
            self.counters["MPC"] += 1
            self.icr |= 0x40
        else:
            self.waiting.append((stored, status, special))

    def fits(self, frame: bytes) -> bool:
        return bool(self.rctl & 2) and (self.rx[1] - self.rx[0]) % COUNT * self.buffer >= len(frame)

    def store(self, frame: bytes, status: int, special: int) -> None:
        pieces = [frame[i : i + self.buffer] for i in range(0, len(frame), self.buffer)]
        for i, piece in enumerate(pieces):
            at = RX_RING + 16 * self.rx[0]
            (address,) = struct.unpack_from("<Q", self.memory, at)
            self.memory[address : address + len(piece)] = piece
            last = 2 if i == len(pieces) - 1 else 0
            struct.pack_into("<HHBBH", self.memory, at + 8, len(piece), 0, status | last, 0, special)
            self.rx[0] = (self.rx[0] + 1) % COUNT
        self.icr |= 0x80
        if (self.rx[1] - self.rx[0]) % COUNT <= COUNT >> 1 + (self.rctl >> 8 & 3):
            self.icr |= 0x10

    def settle(self) -> None:
        while self.waiting and self.fits(self.waiting[0][0]):
            self.store(*self.waiting.pop(0))

    # --- transmission ---

    def transmit(self) -> None:
        if self.tx[0] == self.tx[1]:
            return
        while self.tx[0] != self.tx[1]:
            at = TX_RING + 16 * self.tx[0]
            self.descriptor(bytes(self.memory[at : at + 16]))
            if self.memory[at + 11] & 0x18:
                self.memory[at + 12] |= 1
                self.icr |= 1
            self.tx[0] = (self.tx[0] + 1) % COUNT
        self.icr |= 2

    def descriptor(self, d: bytes) -> None:
        address, low = struct.unpack_from("<QI", d)
        command = d[11]
        if command & 0x20 and low >> 20 & 15 == 0:
            self.context = d
            self.counters["TSCTC"] += command >> 2 & 1
            return
        if command & 0x20 and low >> 20 & 15 != 1:
            return
        length = low & (0xFFFFF if command & 0x20 else 0xFFFF)
        if command & 0x20 and not self.packet:
            self.options = d[13]
        self.packet += bytes(self.memory[address : address + length])
        if not command & 1:
            return
        packet, self.packet = self.packet, b""
        tag = d[14:16] if command & 0x40 and self.ctrl & 1 << 30 else b""
        if not command & 0x20:
            if command & 4:
                packet = with_sum(packet, d[13], d[10], 0)
            self.send(packet, tag)
            return
        ips, ipw, ipe, ts, tw, te, word, _, header, mss = struct.unpack("<BBHBBHIBBH", self.context)
        frames = [packet]
        if command & 4 and mss:
            body = packet[header:]
            frames = []
            for n, start in enumerate(range(0, max(len(body), 1), mss)):
                f = bytearray(packet[:header] + body[start : start + mss])
                self.headers(f, word, n, start, start + mss >= len(body))
                total = self.field(f, tw, 2) + (len(f) - ts & 0xFFFF)
                if self.options & 2:
                    self.patch(f, tw, 2, (total & 0xFFFF) + (total >> 16))
                frames.append(bytes(f))
        for one in frames:
            if self.options & 1:
                one = with_sum(one, ips, ipw, ipe)
            if self.options & 2:
                one = with_sum(one, ts, tw, te)
            self.send(one, tag)

    def headers(self, f: bytearray, word: int, number: int, start: int, last: bool) -> None:
        ips, ts = self.context[0], self.context[4]
        if word >> 25 & 1:
            self.patch(f, ips + 2, 2, len(f) - ips)
            self.patch(f, ips + 4, 2, self.field(f, ips + 4, 2) + number)
        else:
            self.patch(f, ips + 4, 2, len(f) - ips - 40)
        if word >> 24 & 1:
            self.patch(f, ts + 4, 4, self.field(f, ts + 4, 4) + start)
            if not last:
                self.patch(f, ts + 13, 1, self.field(f, ts + 13, 1) & ~9)
        else:
            self.patch(f, ts + 4, 2, len(f) - ts)

    @staticmethod
    def field(f: bytearray, at: int, size: int) -> int:
        return int.from_bytes(f[at : at + size], "big")

    @staticmethod
    def patch(f: bytearray, at: int, size: int, value: int) -> None:
        if at + size <= len(f):
            f[at : at + size] = (value & (1 << 8 * size) - 1).to_bytes(size, "big")

    def send(self, frame: bytes, tag: bytes) -> None:
        if tag:
            frame = frame[:12] + b"\x81\x00" + tag[::-1] + frame[12:]
        if not frame:
            return
        frame = frame.ljust(60, b"\0")
        self.sent.append(frame)
        self.counters["TPT"] += 1
        self.counters["GPTC"] += 1
        if frame[:6] == BROADCAST:
            self.counters["BPTC"] += 1
        elif frame[0] & 1:
            self.counters["MPTC"] += 1


class Both:
    """The card and the model, with the same memory and operations."""

    def __init__(self, seed: int) -> None:
        self.draw = random.Random(seed)
        self.board = b = NicBoard()
        b.ram.bytes[DATA : DATA + 0x20000] = list(self.draw.randbytes(0x20000))
        b.ram.put(DATA, BROADCAST)
        b.ram.put(DATA + 0x100, MULTICAST)
        self.model = Model(bytearray(b.ram.bytes[: 8 << 20].tobytes()))
        for i in range(COUNT):
            self.memory(RX_RING + 16 * i, struct.pack("<QQ", BUFFERS + 16384 * i, 0))
        b.w(RDBAL, RX_RING)
        b.w(RDLEN, 16 * COUNT)
        b.w(TDBAL, TX_RING)
        b.w(TDLEN, 16 * COUNT)
        b.w(0x400, 10)
        self.did = ""
        self.control()

    def memory(self, at: int, data: bytes) -> None:
        self.board.ram.put(at, data)
        self.model.memory[at : at + len(data)] = data

    def control(self) -> None:
        draw = self.draw
        value = SECRC * draw.randrange(2) | LPE * draw.randrange(2) | draw.choice([0, 2, 2, 2, 2])
        value |= draw.choice([0, 0, 8, 16, 0x8000]) | draw.randrange(4) << 12 | draw.randrange(3) << 8
        value |= draw.choice([0, BSEX]) | draw.randrange(4) << 16 | draw.choice([0, 0, 1, 3, 7]) << 18
        if not value & BSEX and draw.random() < 0.5:
            value &= ~(3 << 16)
        self.board.w(RCTL, value)
        self.model.rctl = value

    def address(self) -> bytes:
        return self.draw.choice([OUR_MAC, OUR_MAC, OUR_MAC, OTHER, MULTICAST, BROADCAST])

    def step(self) -> None:
        draw, b, m = self.draw, self.board, self.model
        what = draw.choice("aaaaaarrttttttcifmvpq")
        self.did = what
        if what == "a":
            for _ in range(draw.randrange(1, 9)):
                size = draw.choice([60, 60, 64, 59, 1514, 1518, 1519, 2048, 4000, 9014])
                kind = (
                    b"\x81\x00" + draw.choice([b"\x00\x07", b"\x10\x07", b"\x00\x08"])
                    if draw.random() < 0.3
                    else b"\x88\xb5"
                )
                frame = (self.address() + OTHER + kind + draw.randbytes(size))[:size]
                b.arrive(frame)
                m.arrive(frame)
        elif what == "r":  # give back some of the descriptors that are software's
            free = (m.rx[1] - m.rx[0]) % COUNT
            m.rx[1] = (m.rx[1] + draw.randrange(COUNT - free)) % COUNT
            b.w(RDT, m.rx[1])
        elif what == "t":
            for _ in range(draw.randrange(1, 6)):
                if (m.tx[1] - m.tx[0]) % COUNT == COUNT - 1:
                    break
                self.memory(TX_RING + 16 * m.tx[1], self.descriptor())
                m.tx[1] = (m.tx[1] + 1) % COUNT
            b.w(TDT, m.tx[1])
        elif what == "c":
            self.control()
        elif what == "i":
            register = draw.choice([ICS, IMS, IMC, ICR])
            value = draw.getrandbits(17)
            b.w(register, value)
            if register == ICS:
                m.icr |= value
            elif register == IMS:
                m.ims |= value
            else:
                m.icr, m.ims = (m.icr & ~value, m.ims) if register == ICR else (m.icr, m.ims & ~value)
        elif what == "f":
            m.addresses = {OUR_MAC, draw.choice([OTHER, OUR_MAC, MULTICAST])}
            other = next(iter(m.addresses - {OUR_MAC}), bytes(6))
            b.w(RA + 16, int.from_bytes(other[:4], "little"))
            b.w(RA + 20, int.from_bytes(other[4:], "little") | 1 << 31)
            m.addresses.add(other)
        elif what == "m":
            low = draw.choice([36, 35, 34, 32])
            bit = int.from_bytes(MULTICAST, "little") >> low & 0xFFF
            m.mta = {bit}
            for i in range(128):
                b.w(MTA + 4 * i, 1 << (bit & 31) if i == bit >> 5 else 0)
        elif what == "v":
            vlan = draw.choice([7, 8])
            m.vlans = {vlan}
            b.w(VFTA, 1 << vlan)
            m.ctrl = draw.choice([0, 1 << 30])
            b.w(CTRL, 1 << 6 | m.ctrl)
        elif what == "p":
            size = draw.choice([2, 12, 48])
            b.w(PBA, size)
            m.room = size << 10
        self.board.after(4_000_000)
        m.settle()
        m.transmit()

    def descriptor(self) -> bytes:
        draw = self.draw
        if draw.random() < 0.2:
            header = draw.choice([54, 0, 20, 255])
            mss = draw.choice([0, 100, 536, 1460])
            places = (14, 24, 33, 34, draw.choice([50, 40, 253]), draw.choice([0, 0, 80]))
            word = draw.getrandbits(20) | (0x20 | draw.randrange(8)) << 24
            return struct.pack("<BBHBBHIBBH", *places, word | 0xFFFF, 0, header, mss)
        address = DATA + draw.choice([0, 0x100, draw.randrange(0x10000), draw.randrange(0x10000)])
        size = draw.choice([1, 14, 60, 100, 1000, 1514])
        command = (
            draw.choice([0, 1, 1, 1]) | 2 | draw.choice([0, 4]) | draw.choice([0, 8]) | draw.choice([0, 0x40])
        )
        if draw.random() < 0.5:
            where, start = draw.choice([24, 50, 200]), draw.choice([14, 34, 100])
            return struct.pack("<QHBBBBH", address, size, where, command, 0, start, draw.getrandbits(16))
        word = size | draw.choice([1, 1, 1, 1, 2]) << 20 | (command | 0x20) << 24
        return struct.pack("<QIBBH", address, word, 0, draw.randrange(4), draw.getrandbits(16))

    def compare(self) -> None:
        b, m = self.board, self.model
        assert [one for _, one in b.sent] == m.sent, "frames that were sent"
        b.sent.clear()
        m.sent.clear()
        theirs = [m.rx[0], m.tx[0], m.icr, m.ims, int(bool(m.icr & m.ims))]
        ours = [b.r(RDH), b.r(TDH), b.nic.s.regs["ICR"], b.r(IMS), int(b.irq())]
        assert ours == theirs, f"RDH, TDH, ICR, IMS, interrupt: {ours}, the model has {theirs}"
        assert b.ram.bytes[: 8 << 20].tobytes() == m.memory, "memory"

    def compare_counters(self) -> None:
        ours = {name: self.board.r(at) for name, at in COUNTERS.items()}
        assert ours == {name: self.model.counters[name] for name in COUNTERS}
        self.model.counters.clear()


def run(seed: int, count: int) -> Counter[str]:
    both = Both(seed)
    total: Counter[str] = Counter()
    for number in range(count):
        both.step()
        try:
            both.compare()
            if not number % 50:
                total += both.model.counters
                both.compare_counters()
        except AssertionError as e:
            raise AssertionError(f"seed {seed}, operation {number} ({both.did}): {e}") from None
    return total


@pytest.mark.parametrize("seed", range(4))
def test_random_programs(seed: int) -> None:
    total = run(seed, 500)
    missing = [name for name in COUNTERS if not total[name]]
    assert not missing, f"never counted: {missing}"


@pytest.mark.campaign
@pytest.mark.parametrize("seed", range(1000, 1020))
def test_many_random_programs(seed: int) -> None:
    run(seed, 5000)
