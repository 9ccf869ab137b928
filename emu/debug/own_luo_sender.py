"""LUO's rows of one of the project's kernels as the one that hands over: INV-17, 22, 27, 47, 48 and 50."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import numpy as np

from emu.debug import luo_rules
from emu.debug.entries import at
from emu.debug.guest import UnknownLayout
from emu.debug.luo_rules import Session
from emu.debug.own_part import Arguments, Judge, Part, Registers, handle
from emu.debug.own_structures import Structures
from emu.debug.view import PG_PINNED
from kho.abi import PAGE_SIZE
from kho.memory import Reader
from luo.memfd import Memfd
from luo.state import Luo

_SERIALIZE = "luo_serialize.c"


@dataclass(frozen=True)
class _Preserved:
    """A memfd as it was when it was preserved."""

    size: int
    array: bytes
    inode: int


class Sender(Part):
    """Sessions and files, until they are handed over."""

    SENDER = True

    def __init__(self, judge: Judge) -> None:
        super().__init__(judge)
        self.serialized = ""
        """"", "running", "done" or "failed" """
        self.outgoing: list[Session] | None = None
        """the sessions that were serialized"""
        self._inside = 0
        self._return: int | None = None
        self._frozen: list[int] = []
        self._unfrozen: Counter[int] = Counter()
        self._preserving: int | None = None
        self._preserved: dict[int, _Preserved] = {}
        self._shut_down = False

    @at("luo_preserve_file", "luo_file_unpreserve_files", "luo_retrieve_file", "luo_file_finish",
        "luo:session_create", "luo:session_retrieve")  # fmt: skip
    def _mutates(self, r: Registers, arguments: Arguments) -> None:
        """A call that changes sessions or files: none may get here after the serialization."""
        if self.serialized == "done":
            where = self.structures().where(arguments[0] if arguments else r["rdi"])
            self.broken("INV-47", "sessions or files are changed after the serialization", where)

    # ---- preserving ----------------------------------------------------------------------------

    @at("memfd_preserve")
    def _preserve(self, r: Registers, arguments: Arguments) -> None:
        self._preserving = r["rdi"]

    @at("kho_preserve_vmalloc")
    def _preserve_array(self, r: Registers, arguments: Arguments) -> None:
        """kho_preserve_vmalloc(array, &record->folios), called when all folios are pinned and listed."""
        args, self._preserving = self._preserving, None
        if args is None:
            return
        with self.checking("INV-27"):
            s = self.structures()
            record = r["rsi"] - s.view.struct("memfd_luo_ser").offset("folios")
            if record % PAGE_SIZE:
                raise UnknownLayout(f"{record:#x} is no record of a memfd")
            size = s.view.member(record, "memfd_luo_ser", "size")
            folios = s.view.member(record, "memfd_luo_ser", "nr_folios")
            if not size or not 0 < folios <= -(-size // PAGE_SIZE):
                raise UnknownLayout(f"{record:#x} is no record of a memfd")
            array = s.view.read(r["rdi"], s.view.struct("memfd_luo_folio_ser").size * folios)
            inode = s.inode(s.view.member(args, "liveupdate_file_args", "file"))
            self._preserved[s.view.phys(record)] = _Preserved(size, array, inode)

    @at("memfd_unpreserve")
    def _unpreserve(self, r: Registers, arguments: Arguments) -> None:
        with self.checking("INV-27"):
            self._preserved.pop(handle(self.structures(), r["rdi"]), None)

    # ---- serializing ---------------------------------------------------------------------------

    @at("luo_session_serialize")
    def _serialize(self, r: Registers, arguments: Arguments) -> None:
        """luo_session_serialize(), which waits for all others now."""
        self._inside += 1
        try:
            back = self.judge.view().number(r["rsp"])
        except UnknownLayout:
            return
        if back != self._return:
            self._return = back
            self.judge.watch(back, self._returned)

    @at("luo:session_serialize")
    def _serialize_locked(self, r: Registers, arguments: Arguments) -> None:
        """Nobody else is in LUO."""
        self.serialized, self._frozen, self._unfrozen, self.outgoing = "running", [], Counter(), None
        with self.checking("INV-17"):
            s = self.structures()
            self.outgoing = s.sessions("outgoing")
            for message, where in luo_rules.not_unique(s, self.outgoing):
                self.broken("INV-17", message, where)

    @at("luo_file_freeze")
    def _freeze_files(self, r: Registers, arguments: Arguments) -> None:
        self._frozen.append(r["rdi"])

    @at("luo_file_unfreeze")
    def _unfreeze_files(self, r: Registers, arguments: Arguments) -> None:
        self._unfrozen[r["rdi"]] += 1

    @at("memfd_freeze", "iommufd_freeze", "vfio_freeze")
    def _freeze(self, r: Registers, arguments: Arguments) -> None:
        with self.checking("INV-48"):
            if self._shut_down:
                where = handle(self.structures(), r["rdi"])
                self.broken("INV-48", "a file is frozen after devices began to be shut down", where)

    def _returned(self, r: Registers, arguments: Arguments) -> None:
        """luo_session_serialize() has returned."""
        self._inside -= 1
        if self.serialized != "running":
            return
        failed = bool(r["rax"] & 0xFFFF_FFFF)
        self.serialized = "failed" if failed else "done"
        if failed:
            with self.checking("INV-22"):
                if self._inside:
                    raise UnknownLayout("another one serializes already")
                self._check_undone(self.structures(), r)

    def _check_undone(self, s: Structures, r: Registers) -> None:
        """INV-22: a serialization has failed, and nothing of it may remain."""

        def broken(message: str, phys: int | None) -> None:
            self.broken("INV-22", f"after a failed serialization {message}", phys)

        layout, header = s.view.struct("luo_sessions"), s.header("outgoing")
        where = s.view.number(header + layout.offset("sessions_pa"))
        if s.view.number(where):
            broken("sessions are still handed over", s.where(where))
        for block, count, records in s.blocks(header + layout.offset("blocks")):
            if count or records.any():
                broken("records of sessions remain", block)
        thread = self._thread(s, r)
        lock = s.view.struct("luo_session").offset("lock")
        for session in s.sessions("outgoing"):
            files = session.file_set + s.view.struct("luo_file_set").offset("blocks")
            for block, count, records in s.blocks(files):
                if count or records.any():
                    broken(f'records of the files of session "{session.name}" remain', block)
            if s.owner(session.address + lock) == thread:
                broken(f'session "{session.name}" stays locked', s.where(session.address + lock))
            times = self._unfrozen[session.file_set]
            # the last one was not frozen to the end: that undoes its files itself
            if times != (session.file_set in self._frozen[:-1]):
                message = f'the files of session "{session.name}" are unfrozen {times} times'
                broken(message, s.where(session.address))
        if s.owner(header + layout.offset("lock")) == thread:
            broken("the sessions stay locked", s.where(header))
        gate = s.local(_SERIALIZE, "writing")
        if s.view.number(gate, 1):
            broken("all calls stay locked out", s.where(gate))

    def _thread(self, s: Structures, r: Registers) -> int:
        thread = s.view.member(r["gs.base"], "percpu", "current_thread")
        if s.view.member(r["gs.base"], "percpu", "self") != r["gs.base"]:
            raise UnknownLayout("the running thread is not known")
        return thread

    @at("kexec:shutdown")
    def _shutdown(self, r: Registers, arguments: Arguments) -> None:
        self._shut_down = True

    # ---- J -------------------------------------------------------------------------------------

    def jump(self, luo: Luo) -> None:
        """J, with what is handed over."""
        with self.checking("INV-50"):
            if self.serialized != "done" and luo.sessions_phys:
                self.broken("INV-50", "sessions are handed over that were not serialized", luo.phys)
        if self._preserved:
            with self.checking("INV-27"):
                s, then = self.structures(), self._preserved
                mine = [memfd for _, _, memfd in luo.memfds if memfd.phys in then]
                self._check_folios(s, [m for m in mine if self._check_memfd(s, m, then[m.phys])])
        if self.serialized == "done":
            with self.checking("INV-47"):
                s = self.structures()
                gate = s.local(_SERIALIZE, "writing")
                if not s.view.number(gate, 1) or s.view.number(s.local(_SERIALIZE, "readers")):
                    self.broken("INV-47", "calls are no longer locked out at the jump", s.where(gate))

    def _check_memfd(self, s: Structures, memfd: Memfd, then: _Preserved) -> bool:
        """Size and folios are those of a file when it was preserved; whether the folios are."""
        if memfd.size != then.size:
            message = f"the size of a preserved file changed from {then.size} to {memfd.size}"
            self.broken("INV-27", message, memfd.phys)
        elif s.view.member(then.inode, "inode", "size") != then.size:
            self.broken("INV-27", "a preserved file has another size than its record", s.where(then.inode))
        if memfd.area is None or memfd.area.problems:
            return False
        now = memfd.area.read(Reader(self.judge.machine.memory), 16 * memfd.nr_folios)
        if np.ascontiguousarray(now).tobytes() != then.array:
            message = "the pages of a preserved file are others than those preserved"
            self.broken("INV-27", message, memfd.phys)
            return False
        return True

    def _check_folios(self, s: Structures, memfds: list[Memfd]) -> None:
        """They are pinned, and where they were in their file. All struct pages are read at once."""
        folios = np.concatenate([m.folio_phys for m in memfds] or [np.empty(0, np.uint64)])
        flags, mapping, index = (s.view.page_member(folios, name) for name in ("flags", "mapping", "index"))
        end = 0
        for memfd in memfds:
            mine = slice(end, end := end + len(memfd.folio_phys))
            for phys in memfd.folio_phys[flags[mine] & PG_PINNED == 0].tolist():
                self.broken("INV-27", "a folio of a preserved file is not pinned", phys)
            inode = self._preserved[memfd.phys].inode
            file = s.view.member(inode, "inode", "shmem") + s.view.struct("shmem").offset("mapping")
            left = mapping[mine].view(np.uint64) != np.uint64(file)
            left |= index[mine].view(np.uint64) != memfd.folio_index
            for phys in memfd.folio_phys[left].tolist():
                self.broken("INV-27", "a folio is no longer in the file that was preserved with it", phys)


__all__ = ["Sender"]
