"""LUO's rows of one of the project's kernels as the one that takes over: INV-40 to 43 and 46."""

from __future__ import annotations

from collections import Counter

from emu.debug import luo_rules
from emu.debug.entries import at
from emu.debug.guest import UnknownLayout
from emu.debug.own_part import Arguments, Judge, Part, Registers, handle
from emu.debug.own_structures import NAME_SIZE
from luo.state import Luo

_SESSION = "luo_session.c"


class Files(Part):
    """/dev/liveupdate, and what is asked of it. ``luo``: what was handed over, ``damaged`` if not whole."""

    def __init__(self, judge: Judge, luo: Luo | None, damaged: bool) -> None:
        super().__init__(judge)
        self._luo = luo
        self._damaged = damaged
        self._names = {s.name for s in luo.sessions} if luo is not None else set()
        self._files = luo_rules.serialized(luo)
        self._opening: int | None = None
        self._opened: int | None = None
        self._deserialized = self._compared = False
        self._asked: Counter[str] = Counter()
        self._granted: set[str] = set()
        self._retrieved: set[int] = set()
        self._finishing: dict[int, list[int]] = {}
        self._begun: dict[int, int] = {}
        """of each set: files when its finish began"""
        self._finished: set[int] = set()

    @property
    def all_finished(self) -> bool:
        """Whether nothing is left of the sessions that were handed over, if there were any."""
        return bool(self._names) and len(self._finished) >= len(self._files)

    # ---- the device ----------------------------------------------------------------------------

    @at("luo_open")
    def _open(self, r: Registers, arguments: Arguments) -> None:
        """luo_open(inode, file)."""
        self._opening = r["rsi"]

    @at("luo:session_deserialize")
    def _deserialize(self, r: Registers, arguments: Arguments) -> None:
        """The device was found free."""
        self._deserialized = True
        with self.checking("INV-46"):
            if self._opened not in (None, self._opening):
                where = self.structures().where(self._opening or 0)
                self.broken("INV-46", "/dev/liveupdate is opened while it is open", where)

    @at("luo_ioctl")
    def _ioctl(self, r: Registers, arguments: Arguments) -> None:
        """luo_ioctl(file, …): whoever calls it has opened the device."""
        with self.checking("INV-46"):
            if self._opened not in (None, r["rdi"]):
                where = self.structures().where(r["rdi"])
                self.broken("INV-46", "two open files of /dev/liveupdate are used", where)
        self._opened = r["rdi"]
        self._compare()

    @at("luo_release")
    def _release(self, r: Registers, arguments: Arguments) -> None:
        if self._opened == r["rdi"]:
            self._opened = None
        self._compare()

    def _compare(self) -> None:
        """INV-40: once, when the sessions have been built."""
        if self._compared or not self._deserialized or self._luo is None:
            return
        self._compared = True
        with self.checking("INV-40"):
            if self._damaged:
                raise UnknownLayout("the handover is damaged: what of it is refused is the kernel's choice")
            s = self.structures()
            for message, where in luo_rules.not_as_serialized(s, s.sessions("incoming"), self._luo):
                self.broken("INV-40", message, where)

    # ---- sessions ------------------------------------------------------------------------------

    @at("luo:session_retrieve")
    def _asks(self, r: Registers, arguments: Arguments) -> None:
        """luo:session_retrieve(name)."""
        with self.checking("INV-42"):
            self._asked[self.structures().text(arguments[0], NAME_SIZE)] += 1

    @at("fd_install")
    def _fd_install(self, r: Registers, arguments: Arguments) -> None:
        """fd_install(fd, file): from here on a program has it. A session that it asked for, perhaps."""
        if not self._asked:
            return
        with self.checking("INV-42"):
            s = self.structures()
            if s.view.member(r["rsi"], "file", "ops") != s.local(_SESSION, "session_fops"):
                return
            session = s.view.member(r["rsi"], "file", "private")
            if not s.view.member(session, "luo_session", "retrieved"):
                return  # a new one
            name = s.text(session + s.view.struct("luo_session").offset("name"), NAME_SIZE)
            where = s.where(session)
            if not self._asked[name]:
                self.broken("INV-42", f'session "{name}" is given, and nobody asked for it', where)
            elif name not in self._names:
                self.broken("INV-42", f'session "{name}" is given, and was not handed over', where)
            elif name in self._granted:
                self.broken("INV-42", f'session "{name}" is given a second time', where)
            self._granted.add(name)

    # ---- files ---------------------------------------------------------------------------------

    @at("memfd_retrieve", "iommufd_retrieve", "vfio_retrieve")
    def _retrieve(self, r: Registers, arguments: Arguments) -> None:
        with self.checking("INV-41"):
            file = handle(self.structures(), r["rdi"])
            message = luo_rules.wrong_retrieve(file, self._files, self._retrieved, self._finished)
            if message:
                self.broken("INV-41", message, file)
            self._retrieved.add(file)

    @at("luo_file_finish")
    def _finish_files(self, r: Registers, arguments: Arguments) -> None:
        """luo_file_finish(set): all its files, the last one first, or none."""
        file_set = r["rdi"]
        self._finish_complete(file_set)
        s = self.structures()
        try:
            files = [f.data for f in s.files(file_set) if f.handler and not f.refused]
        except UnknownLayout as e:
            self.judge.unknown("INV-43", str(e))
            return
        if files:
            self._finishing[file_set], self._begun[file_set] = files, len(files)

    def _finish_complete(self, file_set: int) -> None:
        left, all_ = self._finishing.pop(file_set, []), self._begun.pop(file_set, 0)
        message = luo_rules.unfinished(left, all_)
        if message:
            self.broken("INV-43", message, left[-1])

    @at("memfd_finish", "iommufd_finish", "vfio_finish")
    def _finish(self, r: Registers, arguments: Arguments) -> None:
        with self.checking("INV-43"):
            file = handle(self.structures(), r["rdi"])
            mine = next((left for left in self._finishing.values() if file in left), [])
            message = luo_rules.wrong_finish(file, self._files, self._finished, mine)
            if message:
                self.broken("INV-43", message, file)
            if file in mine:
                mine.remove(file)
            self._finished.add(file)

    def conclude(self) -> None:
        """The kernel is left, or the run is over."""
        for file_set in list(self._finishing):
            self._finish_complete(file_set)


__all__ = ["Files"]
