"""Rows of a Linux that hands over: INV-3, 17, 22, 27 and 47 to 50.

Calls and structures as in Linux 7.2: `struct liveupdate_file_op_args`, `struct luo_session`,
`struct memfd_luo_ser`, `struct luo_ser`.
"""

from __future__ import annotations

from collections import Counter

import numpy as np

from emu.debug import luo_rules
from emu.debug.entries import at
from emu.debug.guest import UnknownLayout
from emu.debug.linux import MIGRATE_CMA, PIN
from emu.debug.linux_state import Kept, Preserved
from emu.debug.linux_watch import SENDER, Part, Registers
from emu.debug.then import differs
from kho.abi import PAGE_SIZE
from kho.handover import Handover
from kho.memory import Reader
from kho.setup_data import ScratchArea
from luo.abi import LUO_COMPATIBLE
from luo.check import metadata_pages
from luo.memfd import Memfd
from luo.state import Luo

SESSION_SIZE = 80
MUTATING = (
    "luo_preserve_file", "memfd_luo_unpreserve", "luo_file_unpreserve_files", "luo_session_deserialize",
    "luo_session_getfile", "luo_retrieve_file", "luo_file_finish",
)  # fmt: skip
"""Functions that change sessions or files."""


class Sender(Part):
    """Sessions and files, until they are handed over."""

    SIDE, WHEN = SENDER, "J"

    @at(*MUTATING)
    def _mutates(self, r: Registers) -> None:
        """None may get here after the serialization."""
        if self.kernel.serialize == "done":
            where = self.linux.where(r["rdi"])
            self.broken("INV-47", "sessions or files are changed after the serialization", where)

    # ---- preserving ----------------------------------------------------------------------------

    @at("memfd_luo_preserve")
    def _preserve(self, r: Registers) -> None:
        self.kernel.preserving = r["rdi"]

    @at("kho_preserve_vmalloc")
    def _preserve_array(self, r: Registers) -> None:
        """Inside memfd_luo_preserve, when all folios are pinned and listed."""
        k = self.kernel
        args, k.preserving = k.preserving, None
        if args is None:
            return
        with self.checking("INV-27"):
            linux = self.linux
            record = r["rsi"] - 32  # struct memfd_luo_ser: pos, size, seals, flags, nr_folios, folios
            size, seals = linux.number(record + 8), linux.number(record + 16, 4)
            if record % PAGE_SIZE or not size:
                raise UnknownLayout(f"{record:#x} is no record of a memfd")
            array = bytearray()
            want = 16 * -(-size // PAGE_SIZE)
            while len(array) < want and linux.where(r["rdi"] + len(array)) is not None:
                array += linux.read(r["rdi"] + len(array), min(PAGE_SIZE, want - len(array)))
            inode = linux.inode(linux.pointer(args + 16))
            words = np.frombuffer(linux.read(inode, 160), "<u8")
            size_at = tuple(8 * int(i) for i in np.flatnonzero(words == np.uint64(size)))
            k.preserved[linux.phys(record)] = Preserved(size, seals, bytes(array), inode, size_at)

    @at("memfd_luo_unpreserve")
    def _unpreserve(self, r: Registers) -> None:
        with self.checking("INV-27"):
            self.kernel.preserved.pop(self.linux.number(r["rdi"] + 24), None)

    # ---- serializing ---------------------------------------------------------------------------

    @at("luo_session_serialize")
    def _serialize(self, r: Registers) -> None:
        k = self.kernel
        k.serialize, k.frozen, k.unfrozen = "running", [], []
        with self.checking("INV-17"):
            for message, where in luo_rules.not_unique(self.linux, self.linux.sessions("outgoing")):
                self.broken("INV-17", message, where)
        with self.checking("INV-22"):
            self.watch.watch(self.linux.number(r["rsp"]), self._returned)
        self.watch.discard("INV-22", SENDER)

    def _returned(self, r: Registers) -> None:
        if self.kernel.serialize == "running":
            self.serialize_returned(r["rax"] & 0xFFFF_FFFF)

    def serialize_returned(self, value: int) -> None:
        """luo_session_serialize has returned this."""
        self.watch.look_anew()
        self.kernel.serialize = "failed" if value else "done"
        if value:
            with self.checking("INV-22"):
                self._check_undone()

    def _check_undone(self) -> None:
        """INV-22: a serialization has failed, and nothing of it may remain."""
        k, linux = self.kernel, self.linux

        def broken(message: str, phys: int | None) -> None:
            self.broken("INV-22", f"after a failed serialization {message}", phys)

        if linux.number(self._luo_ser() + 16):
            broken("sessions are still handed over", linux.phys(self._luo_ser()) + 16)
        # the counts of these blocks are stale by design: the next serialization writes them anew
        for block, _, records in luo_rules.blocks(self.machine, linux.session_blocks()):
            words = records[: 51 * SESSION_SIZE].reshape(-1, SESSION_SIZE)
            for slot in np.flatnonzero(words.any(axis=1)).tolist():
                broken("the record of a session remains", block + 16 + SESSION_SIZE * slot)
        undone = Counter(file_set for file_set, _ in k.unfrozen)
        for session in linux.sessions("outgoing"):
            for block, count, records in luo_rules.blocks(self.machine, linux.file_blocks(session.file_set)):
                if count or records.any():
                    broken(f'records of the files of session "{session.name}" remain', block)
            times = undone[session.file_set]
            if session.files and times != (session.file_set in k.frozen):
                message = f'the files of session "{session.name}" are unfrozen {times} times'
                broken(message, linux.where(session.address))
        for file_set, failed in k.unfrozen:
            if bool(failed) != (file_set == k.frozen[-1]):
                broken("other files are unfrozen than were frozen", linux.where(file_set))
        if linux.rwsem_writer("luo_session_serialize_rwsem"):
            broken("sessions stay locked", linux.where(linux.symbol("luo_session_serialize_rwsem")))

    def _luo_ser(self) -> int:
        """Virtual address of the struct luo_ser that this kernel hands over."""
        linux = self.linux
        found = linux.pointer(linux.symbol("luo_global") + 8)
        if linux.text(found, 8) != LUO_COMPATIBLE:
            raise UnknownLayout(f"there is no LUO state at {found:#x}")
        return found

    @at("luo_file_freeze")
    def _freeze_files(self, r: Registers) -> None:
        self.kernel.frozen.append(r["rdi"])

    @at("__luo_file_unfreeze")
    def _unfreeze(self, r: Registers) -> None:
        self.kernel.unfrozen.append((r["rdi"], r["rsi"]))

    @at("memfd_luo_freeze")
    def _freeze(self, r: Registers) -> None:
        with self.checking("INV-48"):
            if self.kernel.shut_down or self.linux.flag("kexec_in_progress"):
                where = self.linux.number(r["rdi"] + 24)
                self.broken("INV-48", "a file is frozen after devices began to be shut down", where)

    @at("kernel_restart_prepare")
    def _serialized(self, r: Registers) -> None:
        if self.kernel.serialize == "done":
            self.kernel.end_of_serialize = Kept(self.machine.snapshot())

    @at("device_shutdown")
    def _device_shutdown(self, r: Registers) -> None:
        self.kernel.shut_down = True

    # ---- J -------------------------------------------------------------------------------------

    def check_serialized(self, luo: Luo) -> None:
        """INV-50."""
        with self.checking("INV-50"):
            if self.kernel.serialize != "done" and luo.sessions_phys:
                self.broken("INV-50", "sessions are handed over that were not serialized", luo.phys)

    def check_files(self, luo: Luo) -> None:
        """INV-27: files at J against what was preserved."""
        with self.checking("INV-27"):
            for _, _, memfd in luo.memfds:
                if memfd.phys in self.kernel.preserved:
                    self._check_memfd(memfd, self.kernel.preserved[memfd.phys])
        if not self.kernel.preserved:
            self.watch.discard("INV-27", SENDER)

    def _check_memfd(self, memfd: Memfd, then: Preserved) -> None:
        linux = self.linux

        def broken(message: str, phys: int | None) -> None:
            self.broken("INV-27", message, phys)

        if (memfd.size, memfd.seals) != (then.size, then.seals):
            broken(
                f"the size or seals of a preserved file changed (size {then.size} to {memfd.size})",
                memfd.phys,
            )
        elif len(then.size_at) == 1 and linux.number(then.inode + then.size_at[0]) != then.size:
            broken("a preserved file has another size than its record", linux.where(then.inode))
        if memfd.area is None or memfd.area.problems:
            return
        now = memfd.area.read(Reader(self.machine.memory), 16 * memfd.nr_folios)
        if np.ascontiguousarray(now).tobytes() != then.array[: 16 * memfd.nr_folios]:
            broken("the pages of a preserved file are others than those preserved", memfd.phys)
        linux.check_struct_pages()
        large = memfd.folio_order > 0
        pins = np.where(large, 0, linux.refcount(memfd.folio_phys))
        if large.any():
            pins[large] = linux.pincount(memfd.folio_phys[large]) * PIN
        for phys in memfd.folio_phys[pins < PIN].tolist():
            broken("a folio of a preserved file is not pinned", phys)

    def check_locked(self, handover: Handover) -> None:
        """INV-47 and 49: from the end of the serialization to J."""
        if self.kernel.serialize != "done":
            return
        with self.checking("INV-47"):
            if not self.linux.rwsem_writer("luo_session_serialize_rwsem"):
                where = self.linux.where(self.linux.symbol("luo_session_serialize_rwsem"))
                self.broken("INV-47", "sessions are no longer locked at the jump", where)
        if self.kernel.end_of_serialize is None:
            return
        with self.checking("INV-49"):
            then = self.kernel.end_of_serialize.snapshot
            for phys in metadata_pages(handover).tolist():
                if phys and differs(self.machine, then, phys):
                    message = "a page of metadata changed between the end of the serialization and the jump"
                    self.broken("INV-49", message, phys)

    def check_scratch_type(self, scratch: list[ScratchArea], when: str) -> None:
        """INV-3."""
        with self.checking("INV-3"):
            for area in scratch:
                for phys, kind in self.linux.migratetypes(area.phys, area.size) if area.size else []:
                    if kind != MIGRATE_CMA:
                        message = f"a pageblock of scratch has the migratetype {kind} instead of CMA"
                        self.broken("INV-3", message, phys, when)


__all__ = ["MUTATING", "Sender"]
