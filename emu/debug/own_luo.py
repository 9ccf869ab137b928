"""Invariants of LUO that show only while one of the project's kernels runs: a `LuoChecker` for each kernel.

Part of `emu.debug.own`, which tells it when a function is entered or an event announced, and judges. What a
kernel does about files and sessions is compared with what was serialized, never with what it says of itself;
a structure that is not what it must be is a row that is not checked.
"""

from __future__ import annotations

from emu.debug import entries
from emu.debug.own_luo_files import Files
from emu.debug.own_luo_flb import Flbs
from emu.debug.own_luo_sender import Sender
from emu.debug.own_part import Arguments, Judge, Registers
from kho.handover import Handover
from luo.state import Luo

NO_FLB = "the kernel has no FLB"
OBSERVED: dict[str, str] = {
    "INV-17": "nothing was serialized",
    "INV-18": NO_FLB,
    "INV-22": "no serialization failed",
    "INV-27": "no file was preserved",
    "INV-40": "/dev/liveupdate was not used in the new kernel",
    "INV-41": "no file was retrieved",
    "INV-42": "no session was retrieved",
    "INV-43": "no session with files was finished",
    "INV-44": NO_FLB,
    "INV-46": "/dev/liveupdate was not used",
    "INV-47": "nothing was serialized",
    "INV-48": "no file was frozen",
    "INV-50": "LUO is off",
}
"""What the run can tell, and why it did not where the occasion did not come."""

_PLACES = entries.places(Sender, Files, Flbs)
EVENTS = [name for name in _PLACES if ":" in name]
FUNCTIONS = [name for name in _PLACES if ":" not in name]


class LuoChecker:
    """Watches LUO in one kernel; ``handover`` is what that was handed, None if nothing or unknown."""

    def __init__(self, judge: Judge, handover: Handover | None) -> None:
        luo = Luo.read(handover) if handover is not None else None
        self._luo = luo if luo is not None and luo.understood else None
        damaged = handover is not None and bool(handover.findings.counts)
        self._sender, self._flbs = Sender(judge), Flbs(judge)
        self._files = Files(judge, self._luo, damaged)
        self._calls = entries.table(self._sender, self._files, self._flbs)

    def called(self, name: str, registers: Registers, arguments: Arguments = ()) -> None:
        """A function of `FUNCTIONS` is entered, or an event of `EVENTS` announced."""
        for method in self._calls[name]:
            method(registers, arguments)

    def jump(self, handover: Handover) -> None:
        """J."""
        luo = Luo.read(handover)
        if luo is not None and luo.understood:
            self._sender.jump(luo)
            if self._sender.serialized == "done":
                self._flbs.check_users(luo, self._sender.outgoing)

    def conclude(self) -> None:
        """The kernel is left, or the run is over."""
        self._files.conclude()
        if self._luo is not None and self._files.all_finished:
            self._flbs.conclude(self._luo)


__all__ = ["EVENTS", "FUNCTIONS", "OBSERVED", "LuoChecker"]
