"""Invariants of LUO that show only while one of the project's kernels runs: a `LuoChecker` for each kernel.

Part of `emu.debug.own`, which tells it when a function is entered or an event announced, and judges. It looks
into LUO's structures by the debug information of the release that runs; lists are believed only if they are
linked both ways and have as many entries as are counted, structures only if they are what they must be. What
is not, is a row that is not checked. What a kernel does about files and sessions is compared with what was
serialized, never with what it says of itself.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from emu.debug.guest import UnknownLayout
from emu.debug.view import PG_PINNED, View
from emu.machine import Machine
from kho.abi import PAGE_SIZE
from kho.handover import Handover
from kho.memory import Reader
from luo.memfd import Memfd
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

_SERIALIZE, _SESSION, _FLB = "luo_serialize.c", "luo_session.c", "luo_flb.c"
_NAME, _COMPATIBLE = 64, 48
_LIST_MAX, _BLOCKS_MAX = 1 << 20, 10_000
_KERNEL_SPACE = 0xFFFF_8000_0000_0000

FUNCTIONS: dict[str, str] = {
    # function of the kernel: method here, called at each entry
    "luo_session_serialize": "_serialize",
    "luo_file_freeze": "_freeze_files",
    "luo_file_unfreeze": "_unfreeze_files",
    "luo_preserve_file": "_mutates",
    "luo_file_unpreserve_files": "_mutates",
    "luo_retrieve_file": "_mutates",
    "luo_file_finish": "_finish_files",
    **{f"{kind}_freeze": "_freeze" for kind in ("memfd", "iommufd", "vfio")},
    **{f"{kind}_retrieve": "_retrieve" for kind in ("memfd", "iommufd", "vfio")},
    **{f"{kind}_finish": "_finish" for kind in ("memfd", "iommufd", "vfio")},
    "memfd_preserve": "_preserve",
    "kho_preserve_vmalloc": "_preserve_array",
    "memfd_unpreserve": "_unpreserve",
    "luo_open": "_open",
    "luo_ioctl": "_ioctl",
    "luo_release": "_release",
    "fd_install": "_fd_install",
    "liveupdate_register_flb": "_flb_register",
    "liveupdate_flb_get_incoming": "_flb_asked",
}
EVENTS: dict[str, str] = {
    "luo:session_serialize": "_serialize_locked",
    "luo:session_create": "_mutates",
    "luo:session_deserialize": "_deserialize",
    "luo:session_retrieve": "_asks",
    "kexec:shutdown": "_shutdown",
}

Registers = dict[str, int]
Call = Callable[[Registers, tuple[int, ...]], None]


class Judge(Protocol):
    """Who keeps the results, and watches the machine."""

    machine: Machine

    def view(self) -> View:
        """The kernel's structures, now."""

    def checking(self, id: str, sender: bool = False) -> AbstractContextManager[None]:
        """A row is being checked."""

    def unknown(self, id: str, reason: str, sender: bool = False) -> None:
        """A row can not be checked."""

    def violate(self, id: str, when: str, message: str, phys: int | None, sender: bool = False) -> None:
        """A row is broken."""

    def watch(self, address: int, call: Call) -> None:
        """Call when this address of the running kernel is reached."""


@dataclass(frozen=True)
class File:
    """struct luo_file. ``compatible`` is empty where nobody knows it."""

    address: int
    handler: int
    compatible: str
    file: int
    data: int
    token: int
    refused: bool


@dataclass(frozen=True)
class Session:
    """struct luo_session; ``set`` is the address of its struct luo_file_set."""

    address: int
    name: str
    set: int
    files: list[File]


@dataclass(frozen=True)
class _Preserved:
    """A memfd as it was when it was preserved."""

    size: int
    array: bytes
    inode: int


class Structures:
    """LUO's structures in a stopped kernel. Raises UnknownLayout."""

    def __init__(self, view: View) -> None:
        self.view = view
        self._handlers: dict[int, str] = {0: ""}

    def where(self, address: int) -> int | None:
        """Physical address for a message, None if there is none."""
        try:
            return self.view.phys(address)
        except UnknownLayout:
            return None

    def local(self, file: str, name: str) -> int:
        """Address of a variable of one source file."""
        symbols = self.view.kernel.symbols
        address = symbols.local(file, name) if symbols is not None else None
        if address is None:
            raise UnknownLayout(f"the kernel has no {name} in {file}")
        return address

    def text(self, address: int, size: int) -> str:
        """A string that ends inside its field."""
        raw, nul, _ = self.view.read(address, size).partition(b"\0")
        if not nul:
            raise UnknownLayout(f"the string at {address:#x} does not end")
        return raw.decode("ascii", "backslashreplace")

    def entries(self, head: int, struct: str, member: str = "list") -> list[int]:
        """Structures of a struct list_head, by address."""
        offset = self.view.struct(struct).offset(member)
        out: list[int] = []
        last, at = head, self.view.number(head)
        while at != head:
            following, before = self._link(at)
            if before != last or len(out) == _LIST_MAX:
                raise UnknownLayout(f"the list at {head:#x} is not linked both ways")
            out.append(at - offset)
            last, at = at, following
        if self.view.number(head + 8) != last:
            raise UnknownLayout(f"the list at {head:#x} is not linked both ways")
        return out

    def _link(self, at: int) -> tuple[int, int]:
        if at < _KERNEL_SPACE or at % 8:
            raise UnknownLayout(f"{at:#x} is no entry of a list")
        raw = self.view.read(at, 16)
        return int.from_bytes(raw[:8], "little"), int.from_bytes(raw[8:], "little")

    def header(self, which: str) -> int:
        """The "incoming" or "outgoing" sessions."""
        members = self.view.struct("luo_sessions").members
        if not {"lock", "count", "list", "blocks", "sessions_pa"} <= members.keys():
            raise UnknownLayout("struct luo_sessions is another one")
        return self.view.symbol(f"luo_{which}")

    def sessions(self, which: str) -> list[Session]:
        """All of them, in order."""
        at = self.header(which)
        layout = self.view.struct("luo_sessions")
        offset = self.view.struct("luo_session").offset
        found = self.entries(at + layout.offset("list"), "luo_session")
        count = self.view.number(at + layout.offset("count"))
        if len(found) != count:
            raise UnknownLayout(f"there are {len(found)} {which} sessions, {count} are counted")
        out: list[Session] = []
        for session in found:
            name = self.text(session + offset("name"), _NAME)
            if not name:
                raise UnknownLayout(f"the session at {session:#x} has no name")
            files = session + offset("file_set")
            out.append(Session(session, name, files, self.files(files)))
        return out

    def files(self, file_set: int) -> list[File]:
        """Files of a struct luo_file_set, in order."""
        layout = self.view.struct("luo_file_set")
        found = self.entries(file_set + layout.offset("files"), "luo_file")
        count = self.view.number(file_set + layout.offset("count"))
        if len(found) != count:
            raise UnknownLayout(f"there are {len(found)} files in a set, {count} are counted")
        file = self.view.struct("luo_file")
        refused = self.view.kernel.layouts.offset("luo_file", "owner.refused")
        out: list[File] = []
        for at in found:
            raw = self.view.read(at, file.size)

            def word(member: str, raw: bytes = raw) -> int:
                return int.from_bytes(raw[file.offset(member) :][:8], "little")

            handler = word("handler")
            name = self._handler(handler)
            out.append(File(at, handler, name, word("file"), word("data"), word("token"), bool(raw[refused])))
        return out

    def _handler(self, at: int) -> str:
        if at not in self._handlers:
            name = self.text(
                at + self.view.struct("liveupdate_file_handler").offset("compatible"), _COMPATIBLE
            )
            if not name or not name.isprintable():
                raise UnknownLayout(f"the structure at {at:#x} is no handler of files")
            self._handlers[at] = name
        return self._handlers[at]

    def inode(self, file: int) -> int:
        """struct inode of a struct file."""
        inode = self.view.member(file, "file", "inode")
        if inode < _KERNEL_SPACE:
            raise UnknownLayout(f"the structure at {file:#x} is no open file")
        return inode

    def blocks(self, block_set: int) -> Iterator[tuple[int, int, NDArray[np.uint8]]]:
        """(address, count, entries) of each block of a struct kho_block_set."""
        at = self.view.member(block_set, "kho_block_set", "head")
        for _ in range(_BLOCKS_MAX):
            if not at:
                return
            raw = self.view.machine.memory.read(at, PAGE_SIZE)
            following, count = (int(w) for w in raw[:16].view("<u8"))
            yield at, count, raw[16:]
            at = following
        raise UnknownLayout("the blocks of a set do not end")

    def owner(self, mutex: int) -> int:
        """The thread that holds a struct mutex, 0 if none does."""
        return self.view.member(mutex, "mutex", "owner")

    def flbs(self) -> dict[int, str]:
        """Names of all FLBs, by address."""
        offset = self.view.struct("liveupdate_flb").offset("compatible")
        found = self.entries(self.local(_FLB, "flbs"), "liveupdate_flb")
        return {flb: self.text(flb + offset, _COMPATIBLE) for flb in found}

    def flbs_of(self, handler: int) -> list[int]:
        """FLBs that a handler's files need."""
        link = self.view.struct("link")
        if not {"list", "flb"} <= link.members.keys():
            raise UnknownLayout("struct link is not that of LUO's FLBs")
        head = handler + self.view.struct("liveupdate_file_handler").offset("flbs")
        return [self.view.member(at, "link", "flb") for at in self.entries(head, "link")]


class LuoChecker:
    """Watches LUO in one kernel; ``handover`` is what that was handed, None if nothing or unknown."""

    def __init__(self, judge: Judge, handover: Handover | None) -> None:
        self.judge = judge
        luo = Luo.read(handover) if handover is not None else None
        self._luo = luo if luo is not None and luo.understood else None
        self._damaged = handover is not None and bool(handover.findings.counts)
        sessions = self._luo.sessions if self._luo is not None else []
        self._names = {s.name for s in sessions}
        self._files = {f.data: (s.name, f.token) for s in sessions for f in s.files}
        # as the one that hands over
        self._serialized = ""
        """"", "running", "done" or "failed" """
        self._inside = 0
        self._return: int | None = None
        self._frozen: list[int] = []
        self._unfrozen: Counter[int] = Counter()
        self._outgoing: list[Session] | None = None
        self._preserving: int | None = None
        self._preserved: dict[int, _Preserved] = {}
        self._shut_down = False
        # as the one that receives
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
        self._flb_names: dict[int, str] = {}
        self._flb_calls: Counter[tuple[str, int]] = Counter()
        self._watched: set[int] = set()

    def called(self, name: str, registers: Registers, arguments: tuple[int, ...] = ()) -> None:
        """A function of `FUNCTIONS` is entered, or an event of `EVENTS` announced."""
        method: Call = getattr(self, FUNCTIONS.get(name) or EVENTS[name])
        method(registers, arguments)

    def _structures(self) -> Structures:
        return Structures(self.judge.view())

    def _sender(self, id: str, message: str, phys: int | None) -> None:
        self.judge.violate(id, "J", message, phys, sender=True)

    def _receiver(self, id: str, message: str, phys: int | None) -> None:
        self.judge.violate(id, "run", message, phys)

    # ---- the kernel that hands over ------------------------------------------------------------

    def _mutates(self, r: Registers, arguments: tuple[int, ...]) -> None:
        """A call that changes sessions or files: none may get here after the serialization."""
        if self._serialized == "done":
            where = self._structures().where(arguments[0] if arguments else r["rdi"])
            self._sender("INV-47", "sessions or files are changed after the serialization", where)

    def _preserve(self, r: Registers, arguments: tuple[int, ...]) -> None:
        self._preserving = r["rdi"]

    def _preserve_array(self, r: Registers, arguments: tuple[int, ...]) -> None:
        """kho_preserve_vmalloc(array, &record->folios), called when all folios are pinned and listed."""
        args, self._preserving = self._preserving, None
        if args is None:
            return
        with self.judge.checking("INV-27", sender=True):
            s = self._structures()
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

    def _data(self, s: Structures, args: int) -> int:
        return s.view.member(args, "liveupdate_file_args", "serialized_data")

    def _unpreserve(self, r: Registers, arguments: tuple[int, ...]) -> None:
        with self.judge.checking("INV-27", sender=True):
            self._preserved.pop(self._data(self._structures(), r["rdi"]), None)

    def _serialize(self, r: Registers, arguments: tuple[int, ...]) -> None:
        """luo_session_serialize(), which waits for all others now."""
        self._inside += 1
        try:
            back = self.judge.view().number(r["rsp"])
        except UnknownLayout:
            return
        if back != self._return:
            self._return = back
            self.judge.watch(back, self._returned)

    def _serialize_locked(self, r: Registers, arguments: tuple[int, ...]) -> None:
        """Nobody else is in LUO."""
        self._serialized, self._frozen, self._unfrozen, self._outgoing = "running", [], Counter(), None
        with self.judge.checking("INV-17", sender=True):
            s = self._structures()
            self._outgoing = s.sessions("outgoing")
            self._check_unique(s, self._outgoing)

    def _check_unique(self, s: Structures, sessions: list[Session]) -> None:
        names: set[str] = set()
        objects: set[int] = set()
        for session in sessions:
            if session.name in names:
                self._sender(
                    "INV-17", f'two sessions have the name "{session.name}"', s.where(session.address)
                )
            names.add(session.name)
            tokens: set[int] = set()
            for file in session.files:
                where = s.where(file.address)
                if file.token in tokens:
                    message = f'session "{session.name}" has the token {file.token:#x} twice'
                    self._sender("INV-17", message, where)
                tokens.add(file.token)
                inode = s.inode(file.file)
                if inode in objects:
                    message = f'the file {file.token:#x} of session "{session.name}" is preserved twice'
                    self._sender("INV-17", message, where)
                objects.add(inode)

    def _freeze_files(self, r: Registers, arguments: tuple[int, ...]) -> None:
        self._frozen.append(r["rdi"])

    def _unfreeze_files(self, r: Registers, arguments: tuple[int, ...]) -> None:
        self._unfrozen[r["rdi"]] += 1

    def _freeze(self, r: Registers, arguments: tuple[int, ...]) -> None:
        with self.judge.checking("INV-48", sender=True):
            if self._shut_down:
                where = self._data(self._structures(), r["rdi"])
                self._sender("INV-48", "a file is frozen after devices began to be shut down", where)

    def _returned(self, r: Registers, arguments: tuple[int, ...]) -> None:
        """luo_session_serialize() has returned."""
        self._inside -= 1
        if self._serialized != "running":
            return
        failed = bool(r["rax"] & 0xFFFF_FFFF)
        self._serialized = "failed" if failed else "done"
        if failed:
            with self.judge.checking("INV-22", sender=True):
                if self._inside:
                    raise UnknownLayout("another one serializes already")
                self._check_undone(self._structures(), r)

    def _check_undone(self, s: Structures, r: Registers) -> None:
        """INV-22: a serialization has failed, and nothing of it may remain."""

        def broken(message: str, phys: int | None) -> None:
            self._sender("INV-22", f"after a failed serialization {message}", phys)

        layout, at = s.view.struct("luo_sessions"), s.header("outgoing")
        where = s.view.number(at + layout.offset("sessions_pa"))
        if s.view.number(where):
            broken("sessions are still handed over", s.where(where))
        for block, count, entries in s.blocks(at + layout.offset("blocks")):
            if count or entries.any():
                broken("records of sessions remain", block)
        thread = self._thread(s, r)
        lock = s.view.struct("luo_session").offset("lock")
        for session in s.sessions("outgoing"):
            files = session.set + s.view.struct("luo_file_set").offset("blocks")
            for block, count, entries in s.blocks(files):
                if count or entries.any():
                    broken(f'records of the files of session "{session.name}" remain', block)
            if s.owner(session.address + lock) == thread:
                broken(f'session "{session.name}" stays locked', s.where(session.address + lock))
            times = self._unfrozen[session.set]
            # the last one was not frozen to the end: that undoes its files itself
            if times != (session.set in self._frozen[:-1]):
                message = f'the files of session "{session.name}" are unfrozen {times} times'
                broken(message, s.where(session.address))
        if s.owner(at + layout.offset("lock")) == thread:
            broken("the sessions stay locked", s.where(at))
        gate = s.local(_SERIALIZE, "writing")
        if s.view.number(gate, 1):
            broken("all calls stay locked out", s.where(gate))

    def _thread(self, s: Structures, r: Registers) -> int:
        thread = s.view.member(r["gs.base"], "percpu", "current_thread")
        if s.view.member(r["gs.base"], "percpu", "self") != r["gs.base"]:
            raise UnknownLayout("the running thread is not known")
        return thread

    def _shutdown(self, r: Registers, arguments: tuple[int, ...]) -> None:
        self._shut_down = True

    def jump(self, handover: Handover) -> None:
        """J."""
        luo = Luo.read(handover)
        if luo is None or not luo.understood:
            return
        with self.judge.checking("INV-50", sender=True):
            if self._serialized != "done" and luo.sessions_phys:
                self._sender("INV-50", "sessions are handed over that were not serialized", luo.phys)
        if self._preserved:
            with self.judge.checking("INV-27", sender=True):
                s = self._structures()
                for session in luo.sessions:
                    for file in session.files:
                        if file.memfd is not None and file.memfd.phys in self._preserved:
                            self._check_memfd(s, file.memfd, self._preserved[file.memfd.phys])
        if self._serialized == "done":
            with self.judge.checking("INV-47", sender=True):
                s = self._structures()
                gate = s.local(_SERIALIZE, "writing")
                if not s.view.number(gate, 1) or s.view.number(s.local(_SERIALIZE, "readers")):
                    self._sender("INV-47", "calls are no longer locked out at the jump", s.where(gate))
            self._check_flbs(luo)

    def _check_memfd(self, s: Structures, memfd: Memfd, then: _Preserved) -> None:
        """INV-27: a file at J against what was preserved."""

        def broken(message: str, phys: int | None) -> None:
            self._sender("INV-27", message, phys)

        if memfd.size != then.size:
            broken(f"the size of a preserved file changed from {then.size} to {memfd.size}", memfd.phys)
        elif s.view.member(then.inode, "inode", "size") != then.size:
            broken("a preserved file has another size than its record", s.where(then.inode))
        if memfd.area is None or memfd.area.problems:
            return
        now = memfd.area.read(Reader(self.judge.machine.memory), 16 * memfd.nr_folios)
        if np.ascontiguousarray(now).tobytes() != then.array:
            broken("the pages of a preserved file are others than those preserved", memfd.phys)
            return
        view = s.view
        for phys in memfd.folio_phys[view.page_member(memfd.folio_phys, "flags") & PG_PINNED == 0].tolist():
            broken("a folio of a preserved file is not pinned", phys)
        mapping = view.member(then.inode, "inode", "shmem") + view.struct("shmem").offset("mapping")
        theirs = view.page_member(memfd.folio_phys, "mapping").view(np.uint64)
        index = view.page_member(memfd.folio_phys, "index").view(np.uint64)
        for phys in memfd.folio_phys[(theirs != np.uint64(mapping)) | (index != memfd.folio_index)].tolist():
            broken("a folio is no longer in the file that was preserved with it", phys)

    def _check_flbs(self, luo: Luo) -> None:
        """INV-18: each FLB's count is the number of files that need it."""
        if luo.flb_page is None:
            return
        try:
            known: dict[int, str] | None = self._structures().flbs()
        except UnknownLayout:
            known = None
        if known == {} and not luo.flb_page.flbs:
            return
        with self.judge.checking("INV-18", sender=True):
            s = self._structures()
            names = s.flbs()
            if self._outgoing is None:
                raise UnknownLayout("the sessions that were serialized are not known")
            handlers = Counter(f.handler for session in self._outgoing for f in session.files)
            users: Counter[str] = Counter()
            for handler, files in handlers.items():
                for flb in s.flbs_of(handler):
                    if flb not in names:
                        raise UnknownLayout(f"{flb:#x} is no FLB that is registered")
                    users[names[flb]] += files
            counts = {flb.compatible: flb.count for flb in luo.flb_page.flbs}
            for name in sorted(users.keys() | counts.keys()):
                if users[name] != counts.get(name, 0):
                    message = f'FLB "{name}" counts {counts.get(name, 0)} users and has {users[name]}'
                    self._sender("INV-18", message, luo.flb_page.phys)

    # ---- the kernel that receives: the device ----------------------------------------------------

    def _open(self, r: Registers, arguments: tuple[int, ...]) -> None:
        """luo_open(inode, file)."""
        self._opening = r["rsi"]

    def _deserialize(self, r: Registers, arguments: tuple[int, ...]) -> None:
        """The device was found free."""
        self._deserialized = True
        with self.judge.checking("INV-46"):
            if self._opened not in (None, self._opening):
                where = self._structures().where(self._opening or 0)
                self._receiver("INV-46", "/dev/liveupdate is opened while it is open", where)

    def _ioctl(self, r: Registers, arguments: tuple[int, ...]) -> None:
        """luo_ioctl(file, …): whoever calls it has opened the device."""
        with self.judge.checking("INV-46"):
            if self._opened not in (None, r["rdi"]):
                where = self._structures().where(r["rdi"])
                self._receiver("INV-46", "two open files of /dev/liveupdate are used", where)
        self._opened = r["rdi"]
        self._compare()

    def _release(self, r: Registers, arguments: tuple[int, ...]) -> None:
        if self._opened == r["rdi"]:
            self._opened = None
        self._compare()

    def _compare(self) -> None:
        """INV-40: once, when the sessions have been built."""
        if self._compared or not self._deserialized or self._luo is None:
            return
        self._compared = True
        with self.judge.checking("INV-40"):
            if self._damaged:
                raise UnknownLayout("the handover is damaged: what of it is refused is the kernel's choice")
            s = self._structures()
            self._check_incoming(s, s.sessions("incoming"), self._luo)

    def _check_incoming(self, s: Structures, sessions: list[Session], luo: Luo) -> None:
        names, expected = [one.name for one in sessions], [one.name for one in luo.sessions]
        if names != expected:
            at = _first_difference(names, expected)
            where = s.where(sessions[at].address) if at < len(sessions) else luo.sessions[at].phys
            message = f"the sessions are not those serialized: number {at} is another one"
            self._receiver("INV-40", message, where)
            return
        for one, other in zip(sessions, luo.sessions, strict=True):
            for file in one.files:
                if file.refused:
                    message = f'the file {file.token:#x} of session "{one.name}" is refused, and is whole'
                    self._receiver("INV-40", message, s.where(file.address))
            there = [(f.token, f.data, f.compatible) for f in one.files]
            sent = [(f.token, f.data, f.compatible) for f in other.files]
            if there != sent:
                at = _first_difference(there, sent)
                where = s.where(one.files[at].address) if at < len(there) else other.files[at].phys
                message = (
                    f'the files of session "{one.name}" are not those serialized: number {at} is another one'
                )
                self._receiver("INV-40", message, where)

    # ---- sessions and files ----------------------------------------------------------------------

    def _asks(self, r: Registers, arguments: tuple[int, ...]) -> None:
        """luo:session_retrieve(name)."""
        self._mutates(r, arguments)
        with self.judge.checking("INV-42"):
            self._asked[self._structures().text(arguments[0], _NAME)] += 1

    def _fd_install(self, r: Registers, arguments: tuple[int, ...]) -> None:
        """fd_install(fd, file): from here on a program has it. A session that it asked for, perhaps."""
        if not self._asked:
            return
        with self.judge.checking("INV-42"):
            s = self._structures()
            if s.view.member(r["rsi"], "file", "ops") != s.local(_SESSION, "session_fops"):
                return
            session = s.view.member(r["rsi"], "file", "private")
            if not s.view.member(session, "luo_session", "retrieved"):
                return  # a new one
            name = s.text(session + s.view.struct("luo_session").offset("name"), _NAME)
            where = s.where(session)
            if not self._asked[name]:
                self._receiver("INV-42", f'session "{name}" is given, and nobody asked for it', where)
            elif name not in self._names:
                self._receiver("INV-42", f'session "{name}" is given, and was not handed over', where)
            elif name in self._granted:
                self._receiver("INV-42", f'session "{name}" is given a second time', where)
            self._granted.add(name)

    def _retrieve(self, r: Registers, arguments: tuple[int, ...]) -> None:
        """A handler's retrieve(args)."""
        with self.judge.checking("INV-41"):
            handle = self._data(self._structures(), r["rdi"])
            if handle not in self._files:
                self._receiver("INV-41", "a file is retrieved that was not serialized", handle)
            elif handle in self._retrieved or handle in self._finished:
                name, token = self._files[handle]
                self._receiver(
                    "INV-41", f'the file {token:#x} of session "{name}" is retrieved again', handle
                )
            self._retrieved.add(handle)

    def _finish_files(self, r: Registers, arguments: tuple[int, ...]) -> None:
        """luo_file_finish(set): all its files, the last one first, or none."""
        self._mutates(r, arguments)
        file_set = r["rdi"]
        self._finish_complete(file_set)
        s = self._structures()
        try:
            handles = [f.data for f in s.files(file_set) if f.handler and not f.refused]
        except UnknownLayout as e:
            self.judge.unknown("INV-43", str(e))
            return
        if handles:
            self._finishing[file_set], self._begun[file_set] = handles, len(handles)

    def _finish_complete(self, file_set: int) -> None:
        """A finish that began must have gone on to its end; one that was refused has not begun."""
        left, all_ = self._finishing.pop(file_set, []), self._begun.pop(file_set, 0)
        if left and len(left) != all_:
            message = f"{len(left)} of {all_} files of a session were not finished"
            self._receiver("INV-43", message, left[-1])

    def _finish(self, r: Registers, arguments: tuple[int, ...]) -> None:
        """A handler's finish(args)."""
        with self.judge.checking("INV-43"):
            handle = self._data(self._structures(), r["rdi"])
            mine = next((left for left in self._finishing.values() if handle in left), [])
            if handle not in self._files:
                self._receiver("INV-43", "a file is finished that was not serialized", handle)
            elif handle in self._finished:
                self._receiver("INV-43", "a file is finished again", handle)
            elif not mine or mine[-1] != handle:
                message = "a file is finished out of turn, or without finish of its session"
                self._receiver("INV-43", message, handle)
            if handle in mine:
                mine.remove(handle)
            self._finished.add(handle)

    # ---- FLBs ------------------------------------------------------------------------------------

    def _flb_register(self, r: Registers, arguments: tuple[int, ...]) -> None:
        """liveupdate_register_flb(handler, flb): watch its own retrieve and finish from now on."""
        with self.judge.checking("INV-44"):
            self._flb_watch(r["rsi"])

    def _flb_asked(self, r: Registers, arguments: tuple[int, ...]) -> None:
        """liveupdate_flb_get_incoming(flb, …), which a core calls before any handler needs it, and whether or
        not there is something for it."""
        if r["rdi"] not in self._flb_names:
            with suppress(UnknownLayout):
                self._flb_watch(r["rdi"])

    def _flb_watch(self, flb: int) -> None:
        s = self._structures()
        self._flb_names[flb] = s.text(flb + s.view.struct("liveupdate_flb").offset("compatible"), _COMPATIBLE)
        ops = s.view.member(flb, "liveupdate_flb", "ops")
        for what in ("retrieve", "finish"):
            function = s.view.member(ops, "liveupdate_flb_ops", what)
            if function not in self._watched:
                self._watched.add(function)
                self.judge.watch(function, self._flb_callback(what))

    def _flb_callback(self, what: str) -> Call:
        def called(r: Registers, arguments: tuple[int, ...]) -> None:
            self._flb_called(what, r)

        return called

    def _flb_called(self, what: str, r: Registers) -> None:
        """An FLB's own retrieve or finish is called, with a struct liveupdate_flb_args."""
        with self.judge.checking("INV-44"):
            s = self._structures()
            flb = s.view.member(r["rdi"], "liveupdate_flb_args", "flb")
            name = self._flb_names.get(flb, "?")
            if what == "finish" and not self._flb_calls["retrieve", flb]:
                message = f'FLB "{name}" is finished and was never retrieved'
                self._receiver("INV-44", message, s.where(flb))
            if self._flb_calls[what, flb]:
                self._receiver("INV-44", f'{what} of FLB "{name}" is called again', s.where(flb))
            self._flb_calls[what, flb] += 1

    def conclude(self) -> None:
        """The kernel is left, or the run is over."""
        for file_set in list(self._finishing):
            self._finish_complete(file_set)
        luo = self._luo
        if luo is None or luo.flb_page is None or not self._flb_names or not luo.sessions:
            return
        if len(self._finished) < len(self._files):
            return
        names = {flb.compatible for flb in luo.flb_page.flbs}
        for flb, name in self._flb_names.items():
            if name in names and not self._flb_calls["finish", flb]:
                message = f'FLB "{name}" is not finished, and its files are'
                self._receiver("INV-44", message, luo.flb_page.phys)


def _first_difference(one: list[str] | list[tuple[int, int, str]],
                      other: list[str] | list[tuple[int, int, str]]) -> int:  # fmt: skip
    shorter = min(len(one), len(other))
    return next((i for i in range(shorter) if one[i] != other[i]), shorter)


__all__ = ["EVENTS", "FUNCTIONS", "OBSERVED", "LuoChecker", "Structures"]
