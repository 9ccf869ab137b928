"""What an 82540EM does to the contents of frames: checksums both ways, and cutting of long TCP packets.

Pure functions of bytes; offsets are those that software put into descriptors, and may be anything (8254x
manual 3.2.9, 3.4, 3.5).
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass

from emu.devices.e1000_regs import RX_IPCS, RX_IPE, RX_IXSM, RX_TCPCS, RX_TCPE, RXCSUM_IP, RXCSUM_TCP

SEGMENTS_MAX = 1024
"""Frames that one packet is cut into at most: TCP's smallest segments of 64 KiB are fewer."""
_TCP, _UDP = 6, 17
_FIN, _PSH = 1, 8


def sum16(data: bytes | bytearray | memoryview) -> int:
    """The ones' complement sum of big-endian words, 0 to 0xffff; a last odd byte is an upper half."""
    value = int.from_bytes(data, "big") << (8 if len(data) & 1 else 0)
    return (value % 0xFFFF or 0xFFFF) if value else 0


def insert(frame: bytearray, start: int, where: int, end: int = 0) -> None:
    """Put the checksum of bytes ``start`` to ``end`` (inclusive; 0: the last) at ``where``, if inside.

    What stands at ``where`` is summed too: software puts the sum of the pseudo header there.
    """
    if where + 2 <= len(frame) and start < len(frame) and (start <= end or not end):
        total = sum16(frame[start : end + 1 if end else len(frame)])
        # 0 would mean "no checksum" to UDP; 0xffff is the same number
        frame[where : where + 2] = (0xFFFF - total or 0xFFFF).to_bytes(2, "big")


@dataclass
class Context:
    """A context descriptor (3.3.6): where headers are, and how to cut."""

    ip_start: int = 0
    ip_where: int = 0
    ip_end: int = 0
    start: int = 0
    where: int = 0
    end: int = 0
    payload: int = 0
    tcp: int = 0
    ip4: int = 0
    header: int = 0
    segment: int = 0

    @classmethod
    def unpack(cls, descriptor: bytes) -> Context:
        """From the 16 bytes of a descriptor."""
        ips, ipw, ipe, start, where, end, word, _, header, mss = struct.unpack("<BBHBBHIBBH", descriptor)
        command = word >> 24
        return cls(
            ips, ipw, ipe, start, where, end, word & 0xFFFFF, command & 1, command >> 1 & 1, header, mss
        )


def segments(packet: bytes, c: Context, options: int) -> Iterator[bytearray]:
    """Cut a packet: each frame gets the header, with lengths, identification, sequence and flags made right.

    ``options`` as in a data descriptor: 1 IP checksum, 2 TCP or UDP checksum. The checksum field of the
    prototype holds the sum of the pseudo header without the length, which is added here.
    """
    header, payload = packet[: c.header], packet[c.header :]
    step = max(c.segment, 1)
    for i, at in enumerate(range(0, max(len(payload), 1), step)):
        if i == SEGMENTS_MAX:
            return
        frame = bytearray(header + payload[at : at + step])
        last = at + step >= len(payload)
        if c.ip4:
            _put(frame, c.ip_start + 2, len(frame) - c.ip_start, 2)
            _put(frame, c.ip_start + 4, _get(frame, c.ip_start + 4, 2) + i, 2)
        else:
            _put(frame, c.ip_start + 4, len(frame) - c.ip_start - 40, 2)
        if c.tcp:
            _put(frame, c.start + 4, _get(frame, c.start + 4, 4) + at, 4)
            if not last:
                _put(frame, c.start + 13, _get(frame, c.start + 13, 1) & ~(_FIN | _PSH), 1)
        else:
            _put(frame, c.start + 4, len(frame) - c.start, 2)
        if options & 2:
            total = _get(frame, c.where, 2) + (len(frame) - c.start & 0xFFFF)
            _put(frame, c.where, (total & 0xFFFF) + (total >> 16), 2)
        insert_both(frame, c, options)
        yield frame


def insert_both(frame: bytearray, c: Context, options: int) -> None:
    """The checksums that a data descriptor asks for."""
    if options & 1:
        insert(frame, c.ip_start, c.ip_where, c.ip_end)
    if options & 2:
        insert(frame, c.start, c.where, c.end)


def _get(frame: bytearray, at: int, size: int) -> int:
    return int.from_bytes(frame[at : at + size], "big")


def _put(frame: bytearray, at: int, value: int, size: int) -> None:
    if at + size <= len(frame):
        frame[at : at + size] = (value & (1 << 8 * size) - 1).to_bytes(size, "big")


def check(frame: bytes, wanted: int) -> tuple[int, int]:
    """What a receive descriptor says of a frame's checksums: (status, errors), for the bits of RXCSUM.

    Only IPv4, and TCP or UDP in it that is not fragmented; of all others nothing is said.
    """
    at = 18 if frame[12:14] == b"\x81\x00" else 14
    ip = frame[at:]
    size = (ip[0] & 0xF) * 4 if ip else 0
    if frame[at - 2 : at] != b"\x08\x00" or len(ip) < 20 or ip[0] >> 4 != 4 or not 20 <= size <= len(ip):
        return RX_IXSM, 0
    status = errors = 0
    if wanted & RXCSUM_IP:
        status |= RX_IPCS
        if sum16(ip[:size]) != 0xFFFF:
            errors |= RX_IPE
    total = int.from_bytes(ip[2:4], "big")
    protocol, fragment = ip[9], int.from_bytes(ip[6:8], "big") & 0x3FFF
    if wanted & RXCSUM_TCP and protocol in (_TCP, _UDP) and not fragment and size <= total <= len(ip):
        body = ip[size:total]
        if protocol == _TCP or body[6:8] != b"\0\0":  # UDP without a checksum
            status |= RX_TCPCS
            pseudo = ip[12:20] + bytes((0, protocol)) + len(body).to_bytes(2, "big")
            if sum16(pseudo + body) != 0xFFFF:
                errors |= RX_TCPE
    return status or RX_IXSM, errors
