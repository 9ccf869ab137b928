"""Sessions and files that a Linux takes over: INV-26, 40 to 43 and 46.

Handlers get a `struct liveupdate_file_op_args` as in Linux 7.2: handler, retrieved, file, serialized_data.
"""

from __future__ import annotations

from emu.debug import luo_rules
from emu.debug.entries import at
from emu.debug.linux_watch import RECEIVER, Part, Registers
from emu.debug.luo_rules import SerializedFile
from emu.debug.then import differs
from kho.abi import PAGE_SIZE

NAME_SIZE = 64


class Files(Part):
    """/dev/liveupdate, and what is asked of it."""

    SIDE, WHEN = RECEIVER, "run"

    # ---- the device ----------------------------------------------------------------------------

    @at("luo_open")
    def _open(self, r: Registers) -> None:
        self.kernel.opening = r["rsi"]

    @at("luo_session_deserialize")
    def _deserialize(self, r: Registers) -> None:
        """luo_open has found the device free."""
        k = self.kernel
        k.deserialized = True
        with self.checking("INV-46"):
            if k.opened is not None and k.opened != k.opening:
                where = self.linux.where(k.opening or 0)
                self.broken("INV-46", "/dev/liveupdate is opened while it is open", where)

    @at("luo_ioctl")
    def _ioctl(self, r: Registers) -> None:
        """luo_ioctl(file, …): whoever calls it has opened the device."""
        k = self.kernel
        with self.checking("INV-46"):
            if k.opened is not None and k.opened != r["rdi"]:
                where = self.linux.where(r["rdi"])
                self.broken("INV-46", "two open files of /dev/liveupdate are used", where)
        k.opened = r["rdi"]
        self._compare()

    @at("luo_release")
    def _release(self, r: Registers) -> None:
        if self.kernel.opened in (None, r["rsi"]):
            self.kernel.opened = None
        self._compare()

    def _compare(self) -> None:
        """INV-40: once, when the sessions have been built."""
        k = self.kernel
        if k.compared or not k.deserialized or k.received is None or k.received.luo is None:
            return
        k.compared = True
        with self.checking("INV-40"):
            sessions = self.linux.sessions("incoming")
            for message, where in luo_rules.not_as_serialized(self.linux, sessions, k.received.luo):
                self.broken("INV-40", message, where)

    # ---- sessions ------------------------------------------------------------------------------

    @at("luo_session_create")
    def _session_create(self, r: Registers) -> None:
        self.kernel.asking = None

    @at("luo_session_retrieve")
    def _session_retrieve(self, r: Registers) -> None:
        with self.checking("INV-42"):
            self.kernel.asking = self.linux.text(r["rdi"], NAME_SIZE)

    @at("luo_session_getfile")
    def _session_granted(self, r: Registers) -> None:
        """luo_session_getfile(session): a session becomes a file, a new one or one that was asked for."""
        k = self.kernel
        asked, k.asking = k.asking, None
        if asked is None or k.received is None:
            return
        with self.checking("INV-42"):
            name, where = self.linux.text(r["rdi"], NAME_SIZE), self.linux.where(r["rdi"])
            if name != asked or name not in k.received.names:
                self.broken("INV-42", f'"{asked}" was asked for, session "{name}" is given', where)
            elif name in k.granted:
                self.broken("INV-42", f'session "{name}" is given a second time', where)
            k.granted.add(name)

    # ---- files ---------------------------------------------------------------------------------

    @at("memfd_luo_retrieve")
    def _retrieve(self, r: Registers) -> None:
        k = self.kernel
        if k.received is None:
            return
        with self.checking("INV-41"):
            handle = self.linux.number(r["rdi"] + 24)
            message = luo_rules.wrong_retrieve(handle, k.received.files, k.retrieved, k.finished)
            if message:
                self.broken("INV-41", message, handle)
            else:
                self._check_contents(k.received.files[handle])
            k.retrieved.add(handle)

    def _check_contents(self, file: SerializedFile) -> None:
        """INV-26: nothing has written to the file since J."""
        received, memfd = self.kernel.received, file.memfd
        if received is None or memfd is None:
            return
        with self.checking("INV-26"):
            for head, order in zip(memfd.folio_phys.tolist(), memfd.folio_order.tolist(), strict=True):
                for phys in range(head, head + (PAGE_SIZE << max(order, 0)), PAGE_SIZE):
                    if differs(self.machine, received.snapshot, phys):
                        self.broken("INV-26", f"a page of {file} changed since the jump", phys)

    @at("luo_file_finish")
    def _finish_files(self, r: Registers) -> None:
        """luo_file_finish(file_set)."""
        k = self.kernel
        if k.received is None:
            return
        self.settle()
        with self.checking("INV-43"):
            # most sessions are closed after their finish, with no file left
            files = self.linux.files(r["rdi"]) if self.linux.number(r["rdi"] + 72) else []
            k.finishing = [f.data for f in files]
            k.finishing_all = len(files)
        if not k.finishing_all and not k.finished:
            self.watch.discard("INV-43", RECEIVER)

    def settle(self) -> None:
        """INV-43 for the finish that was last."""
        k = self.kernel
        message = luo_rules.unfinished(k.finishing, k.finishing_all)
        if message:
            self.broken("INV-43", message, k.finishing[-1])
        k.finishing, k.finishing_all = [], 0

    @at("memfd_luo_finish")
    def _finish(self, r: Registers) -> None:
        k = self.kernel
        if k.received is None:
            return
        with self.checking("INV-43"):
            handle = self.linux.number(r["rdi"] + 24)
            message = luo_rules.wrong_finish(handle, k.received.files, k.finished, k.finishing)
            if message:
                self.broken("INV-43", message, handle)
            if handle in k.finishing:
                k.finishing.remove(handle)
            k.finished.add(handle)


__all__ = ["Files"]
