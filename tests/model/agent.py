"""A machine whose init is the agent: one order at a time, over the second serial port, and its answer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from emu.boot import Boot
from emu.debug.guest import UnknownLayout
from emu.debug.view import View
from emu.initramfs import Initramfs
from emu.machine import Machine, Snapshot, StopKind
from tests.model import decode
from tests.userspace import rig
from tests.userspace.binaries import binary

MEMORY = 64 << 20
CMDLINE = f"{rig.CMDLINE} luo_test=file kho_scratch=12M,0,0"
RELEASES = ("old", "new")
PATIENCE = 20 * 10**9
"""Virtual time that an order may take, in ns."""


@dataclass(frozen=True)
class Moment:
    """A state of the machine, and what the host knows of it."""

    snapshot: Snapshot
    release: str
    loaded: str | None


class Agent:
    """Booted and opened; `release` runs. `start` goes back to that state, in either release."""

    def __init__(self) -> None:
        files = Initramfs()
        files.add_standard(binary("agent"))
        for name in RELEASES:
            files.add_file(f"/luemu/{name}", rig.kernel(name).kexec_image)
        self.machine = Machine(MEMORY)
        self.machine.serial_sinks.append(self._written)
        self._line = bytearray()
        self.release = RELEASES[0]
        self._started: dict[str, Moment] = {}
        self._other_pages: dict[str, int] = {}
        self.loaded: str | None = None
        self.jumped: list[Any] = []
        """one: what was written down when the last kernel was left"""
        for name in RELEASES:
            self._watch_jump(name)
        self.machine.boot(Boot(rig.kernel(self.release).image, CMDLINE, files.build()))
        self._ready()
        self._started_now()
        self.load("new")
        self.reboot()
        self._started_now()

    def close(self) -> None:
        self.machine.close()

    def remember(self) -> Moment:
        """What `restore` goes back to."""
        return Moment(self.machine.snapshot(), self.release, self.loaded)

    def restore(self, moment: Moment) -> None:
        """The machine as it was."""
        self.release, self.loaded = moment.release, moment.loaded
        self.machine.restore(moment.snapshot)

    def start(self, release: str) -> None:
        """A release that was handed nothing, the device open."""
        self.restore(self._started[release])

    def _started_now(self) -> None:
        self._other_pages[self.release] = decode.page_cache(self.view())
        self._started[self.release] = self.remember()

    # ---- the machine -----------------------------------------------------------------------------

    def _written(self, port: int, value: int, now: int) -> None:
        if port == 1:
            self._line.append(value)
            if value == ord("\n"):
                self.machine.stop()

    def _watch_jump(self, name: str) -> None:
        (probe,) = rig.kernel(name).probes.at("kexec:jump")

        def hit(machine: Machine, address: int) -> None:
            if self.release == name and not self.jumped:
                self.jumped.append(decode.handed_over(self.view()))

        self.machine.probe(probe.address, hit)

    def _answer(self, what: str) -> str:
        stop = self.machine.run(self.machine.ticks + PATIENCE)
        if stop.kind is not StopKind.REQUEST:
            said = self.machine.console.decode(errors="replace")[-3000:]
            raise AssertionError(f"no answer to {what!r}: {stop}\n{said}")
        answer = self._line.decode(errors="replace").strip()
        self._line.clear()
        return answer

    def order(self, text: str) -> str:
        """Carries it out and returns what the agent says."""
        self.machine.send(text.encode() + b"\n", 1)
        return self._answer(text)

    def number(self, text: str) -> int:
        """The same, for orders that are answered by a number alone."""
        return int(self.order(text))

    def load(self, release: str) -> None:
        """The kernel that the next reboot goes into."""
        assert self.number(f"load /luemu/{release} {CMDLINE}") == 0
        self.loaded = release

    def reboot(self) -> int:
        """0 and the device is open in the next kernel, or why the reboot failed."""
        assert self.loaded is not None
        self.jumped.clear()
        answer = self.order("reboot")
        if answer != "ready":
            assert not self.jumped, "the jump came before an error"
            return int(answer)
        self.release, self.loaded = self.loaded, None
        assert self.jumped, "the kernel was left without a jump"
        assert self.number("open") == 0
        return 0

    def _ready(self) -> None:
        assert self._answer("boot") == "ready"
        assert self.number("open") == 0

    def disable(self, function: str) -> None:
        """From now on the function of the running kernel does nothing, and returns 0."""
        symbols = rig.kernel(self.release).symbols
        assert symbols is not None
        address = symbols.address(function)
        for file in ("luo_memfd.c", "luo_session.c"):
            address = symbols.local(file, function) if address is None else address
        assert address is not None, f"the kernel has no function {function}"
        self.machine.memory.write(self.view().phys(address), b"\x31\xc0\xc3", by="test")  # xor eax, eax; ret

    # ---- what is in its memory -------------------------------------------------------------------

    def view(self) -> View:
        return View(self.machine, rig.kernel(self.release))

    def state(self) -> Any:
        """Decoded; a sentence where it can not be."""
        try:
            return decode.state(self.view(), self._other_pages[self.release])
        except UnknownLayout as e:
            return f"the kernel's memory is not as it must be: {e}"


__all__ = ["RELEASES", "Agent"]
