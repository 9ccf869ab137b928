"""FLBs of a kernel of the project: INV-18 of the one that hands over, INV-44 of the one that takes over."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from functools import partial

from emu.debug import luo_rules
from emu.debug.entries import at
from emu.debug.guest import UnknownLayout
from emu.debug.luo_rules import Session
from emu.debug.own_part import Arguments, Judge, Part, Registers
from luo.state import Luo


class Flbs(Part):
    """Who uses them, and what is called of them."""

    def __init__(self, judge: Judge) -> None:
        super().__init__(judge)
        self._names: dict[int, str] = {}
        self._calls: Counter[tuple[str, int]] = Counter()
        self._watched: set[int] = set()

    def check_users(self, luo: Luo, outgoing: Sequence[Session] | None) -> None:
        """INV-18, at J; ``outgoing`` are the sessions that were serialized."""
        if luo.flb_page is None:
            return
        try:
            known: dict[int, str] | None = self.structures().flbs()
        except UnknownLayout:
            known = None
        if known == {} and not luo.flb_page.flbs:
            return
        with self.judge.checking("INV-18", sender=True):
            s = self.structures()
            names = s.flbs()
            if outgoing is None:
                raise UnknownLayout("the sessions that were serialized are not known")
            handlers = Counter(f.handler for session in outgoing for f in session.files)
            users: Counter[str] = Counter()
            for handler, files in handlers.items():
                for flb in s.flbs_of(handler):
                    if flb not in names:
                        raise UnknownLayout(f"{flb:#x} is no FLB that is registered")
                    users[names[flb]] += files
            for message, phys in luo_rules.wrong_users(users, luo.flb_page):
                self.judge.violate("INV-18", "J", message, phys, sender=True)

    @at("liveupdate_register_flb")
    def _register(self, r: Registers, arguments: Arguments) -> None:
        """liveupdate_register_flb(handler, flb): watch its own retrieve and finish from now on."""
        with self.checking("INV-44"):
            self._watch(r["rsi"])

    @at("liveupdate_flb_get_incoming")
    def _asked(self, r: Registers, arguments: Arguments) -> None:
        """liveupdate_flb_get_incoming(flb, …), which a core calls before any handler needs it, and whether or
        not there is something for it."""
        if r["rdi"] not in self._names:
            with suppress(UnknownLayout):
                self._watch(r["rdi"])

    def _watch(self, flb: int) -> None:
        s = self.structures()
        self._names[flb] = s.flb_name(flb)
        ops = s.view.member(flb, "liveupdate_flb", "ops")
        for what in ("retrieve", "finish"):
            function = s.view.member(ops, "liveupdate_flb_ops", what)
            if function not in self._watched:
                self._watched.add(function)
                self.judge.watch(function, partial(self._called, what))

    def _called(self, what: str, r: Registers, arguments: Arguments) -> None:
        """An FLB's own retrieve or finish is called, with a struct liveupdate_flb_args."""
        with self.checking("INV-44"):
            s = self.structures()
            flb = s.view.member(r["rdi"], "liveupdate_flb_args", "flb")
            for message in luo_rules.wrong_flb_call(what, flb, self._names.get(flb, "?"), self._calls):
                self.broken("INV-44", message, s.where(flb))

    def conclude(self, luo: Luo) -> None:
        """All files of what was handed over are finished."""
        if luo.flb_page is not None:
            for message, phys in luo_rules.unfinished_flbs(self._names, luo.flb_page, self._calls):
                self.broken("INV-44", message, phys)


__all__ = ["Flbs"]
