"""FLBs of a Linux: INV-18 of the kernel that hands over, INV-44 of the one that receives.

Structures as in Linux 7.2: `struct liveupdate_flb` (ops, compatible), `struct liveupdate_flb_ops` (preserve,
unpreserve, retrieve, finish), `struct liveupdate_flb_op_args` (flb, data, obj).
"""

from __future__ import annotations

from functools import partial

from emu.debug import luo_rules
from emu.debug.entries import at
from emu.debug.guest import UnknownLayout
from emu.debug.linux_sender import MUTATING
from emu.debug.linux_watch import RECEIVER, SENDER, Part, Registers
from luo.state import Luo


class Flbs(Part):
    """Who uses them, and what is called of them."""

    SIDE, WHEN = RECEIVER, "run"

    # ---- users ---------------------------------------------------------------------------------

    @at("luo_flb_file_preserve")
    def _preserve(self, r: Registers) -> None:
        self.kernel.flb_pending = r["rdi"]

    @at(*MUTATING)
    def _not_pending(self, r: Registers) -> None:
        self.kernel.flb_pending = None

    @at("memfd_luo_preserve")
    def _preserved(self, r: Registers) -> None:
        k = self.kernel
        if k.flb_pending is not None:
            for flb, handlers in k.flbs.items():
                k.flb_users[flb] += k.flb_pending in handlers
        k.flb_pending = None

    @at("liveupdate_flb_get_outgoing")
    def _get(self, r: Registers) -> None:
        self.kernel.flb_held = True

    @at("liveupdate_flb_put_outgoing")
    def _put(self, r: Registers) -> None:
        if self.kernel.flb_pending is None:
            self.kernel.flb_users[r["rdi"]] -= 1

    def check_users(self, luo: Luo) -> None:
        """INV-18, at J."""
        k = self.kernel
        if luo.flb_page is None or not (k.flbs or luo.flb_page.flbs) or k.serialize != "done":
            return
        with self.watch.checking("INV-18", SENDER):
            if k.flb_held:
                raise UnknownLayout("an FLB was asked for, and whether it was given does not show")
            users = {k.flb_names.get(flb, "?"): count for flb, count in k.flb_users.items() if count}
            for message, phys in luo_rules.wrong_users(users, luo.flb_page):
                self.watch.violate("INV-18", SENDER, "J", message, phys)

    # ---- calls ---------------------------------------------------------------------------------

    @at("liveupdate_register_flb")
    def _register(self, r: Registers) -> None:
        """liveupdate_register_flb(handler, flb)."""
        self.learn(r["rsi"])
        self.kernel.flbs.setdefault(r["rsi"], set()).add(r["rdi"])

    @at("liveupdate_unregister_flb")
    def _unregister(self, r: Registers) -> None:
        self.kernel.flbs.get(r["rsi"], set()).discard(r["rdi"])

    @at("liveupdate_flb_get_incoming")
    def _ask(self, r: Registers) -> None:
        """liveupdate_flb_get_incoming(flb, …), which may come before it is registered."""
        self.learn(r["rdi"])

    def learn(self, flb: int) -> None:
        """There is an FLB: watch its own retrieve and finish."""
        self.watch.look_anew()
        with self.checking("INV-44"):
            linux = self.linux
            ops = linux.pointer(flb)
            self.kernel.flb_names[flb] = linux.text(flb + 8, 48)
            for offset, what in ((16, "retrieve"), (24, "finish")):
                self.watch.watch(linux.pointer_any(ops + offset), partial(self.called, what))

    def called(self, what: str, r: Registers) -> None:
        """An FLB's own retrieve or finish is called."""
        self.watch.look_anew()
        k = self.kernel
        with self.checking("INV-44"):
            flb = self.linux.pointer(r["rdi"])
            for message in luo_rules.wrong_flb_call(what, flb, k.flb_names.get(flb, "?"), k.flb_events):
                self.broken("INV-44", message, self.linux.where(flb))

    def conclude(self) -> None:
        """INV-44: an FLB of which all files are finished is finished itself."""
        k = self.kernel
        luo = k.received.luo if k.received is not None else None
        if luo is None or luo.flb_page is None or not k.flbs:
            return
        with self.checking("INV-44"):
            if not luo.sessions or len(k.finished) < len(k.received.files if k.received else ()):
                return
            for message, phys in luo_rules.unfinished_flbs(k.flb_names, luo.flb_page, k.flb_events):
                self.broken("INV-44", message, phys)


__all__ = ["Flbs"]
