"""Invariants of a live update that show only while kernels run: `RuntimeChecker`.

It watches an unmodified Linux from the entries of its functions (arguments in registers) and looks into
its structures (`emu.debug.linux`) at those points and at the moments J, K, F and the end. It changes
nothing of the run. What cannot be seen is listed with the reason; a structure that is not as Linux 7.2 has
it is believed in nothing and makes the invariants that need it "not checked".

The rows are in parts, an idea each (`Sender`, `Flbs`, `Boot`, `Restores`, `Files`), which share one `State`.
"""

from __future__ import annotations

from emu.debug import entries
from emu.debug.guest import UnknownLayout
from emu.debug.linux_boot import Boot
from emu.debug.linux_files import Files
from emu.debug.linux_flb import Flbs
from emu.debug.linux_restore import NOT_ALL_FINISHED, Restores
from emu.debug.linux_sender import Sender
from emu.debug.linux_state import KernelSeen, Received
from emu.debug.linux_watch import Watch
from emu.debug.struct_pages import StructPages
from emu.debug.symbols import Symbols
from emu.errors import AddressError
from emu.machine import Machine
from kho.handover import Handover
from luo.state import Luo

OBSERVED: dict[str, str] = {
    "INV-3": "",
    "INV-17": "nothing was serialized",
    "INV-18": "the kernel has no FLB",
    "INV-22": "no serialization failed",
    "INV-26": "",
    "INV-27": "no file was preserved",
    "INV-32": "",
    "INV-33": "",
    "INV-34": "",
    "INV-35": "",
    "INV-36": "",
    "INV-37": "no block was restored",
    "INV-38": "no block was restored",
    "INV-39": "",
    "INV-40": "/dev/liveupdate was not used in the new kernel",
    "INV-41": "no file was retrieved",
    "INV-42": "no session was retrieved",
    "INV-43": "no session with files was finished",
    "INV-44": "the kernel has no FLB",
    "INV-45": NOT_ALL_FINISHED,
    "INV-46": "/dev/liveupdate was not used",
    "INV-47": "nothing was serialized",
    "INV-48": "no file was frozen",
    "INV-49": "nothing was serialized",
    "INV-50": "",
}
"""What the run can tell, and why it did not where the occasion did not come (empty: it always comes)."""
FUNCTIONS = entries.places(Sender, Flbs, Boot, Restores, Files)
"""Functions of the kernel that are watched."""


class RuntimeChecker(Watch):
    """Watches a run. ``symbols`` of generation n is ``symbols[min(n, last)]``; a kernel without is not
    watched.

    Tell it the moments with `moment`; `report` gives what was found of an update.
    """

    def __init__(self, machine: Machine, symbols: list[Symbols | None]) -> None:
        super().__init__(machine, symbols, OBSERVED)
        self.sender, self.flbs = Sender(self), Flbs(self)
        self.boot, self.restores, self.files = Boot(self), Restores(self), Files(self)
        self.install()

    def moment(self, when: str, generation: int, handover: Handover | None) -> None:
        """A moment of an update: J (with the handover), K, F; or "end" of the run."""
        self.look_anew()
        if when == "J":
            self._jump(handover)
        elif self.running is None:
            return
        elif when == "K":
            self.boot.adopt()
        elif when == "F":
            self.boot.adopted()
        elif when == "end":
            self._conclude("end")

    def _jump(self, handover: Handover | None) -> None:
        s, next_kernel = self.state, self.state.kernel.generation + 1
        if self.running is not None:
            self._conclude("J")
            if handover is not None:
                self._check_jump(handover)
        received: Received | None = None
        if handover is None:
            s.blind[next_kernel] = "the handover could not be read at J"
        else:
            received = Received.of(handover, self.machine.snapshot())
        s.jumps += 1
        s.kernel = KernelSeen(next_kernel, received)
        self.install()

    def _check_jump(self, handover: Handover) -> None:
        luo = Luo.read(handover)
        if luo is not None and luo.understood:
            self.sender.check_serialized(luo)
            self.flbs.check_users(luo)
            self.sender.check_files(luo)
        self.sender.check_locked(handover)
        if handover.scratch is not None:
            self.sender.check_scratch_type(handover.scratch, "J")

    def _conclude(self, when: str) -> None:
        """The kernel is left, or the run is over."""
        k = self.state.kernel
        if k.concluded:
            return
        k.concluded = True
        if k.received is None or not k.initialised:
            return
        if when == "end":
            self.sender.check_scratch_type(k.received.scratch, when)
        self.restores.settle()
        self.files.settle()
        self.boot.conclude()
        self.flbs.conclude()
        self.restores.conclude()

    def struct_pages(self) -> StructPages | None:
        """Where the running kernel's struct pages are; None where that is not known."""
        try:
            return self.linux.struct_pages()
        except (UnknownLayout, AddressError):
            return None


__all__ = ["FUNCTIONS", "OBSERVED", "RuntimeChecker"]
