"""Ports of a PC that swallow what is written: the POST display, and the delay ports that go with it.

Port 0x80 shows progress codes of firmware; ports 0x80 and 0xED are also written to pass a microsecond. Real
chipsets keep the byte (ICH9 data sheet 13.2, reserved DMA page registers), so it reads back.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from emu.clock import Clock
from emu.devices.device import Device, Region


@dataclass
class PostState:
    """Last byte of each port."""

    code: int = 0
    delay: int = 0


class Post(Device):
    """Ports 0x80 and 0xED."""

    s: PostState

    def __init__(self, clock: Clock, name: str = "post") -> None:
        super().__init__(name, clock)
        self.s = PostState()

    def regions(self) -> Sequence[Region]:
        """One byte each."""
        return (
            Region("io", 0x80, 1, self._read_code, self._write_code, width=1),
            Region("io", 0xED, 1, self._read_delay, self._write_delay, width=1),
        )

    def reset(self, now: int) -> None:
        """Power-on."""
        self.s = PostState()

    def _read_code(self, offset: int, size: int, now: int) -> int:
        return self.s.code

    def _write_code(self, offset: int, size: int, value: int, now: int) -> None:
        self.s.code = value

    def _read_delay(self, offset: int, size: int, now: int) -> int:
        return self.s.delay

    def _write_delay(self, offset: int, size: int, value: int, now: int) -> None:
        self.s.delay = value
