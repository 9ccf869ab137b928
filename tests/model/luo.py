"""LUO and the files it preserves as a plain Python model: what orders answer and what is there afterwards.

Written from the interface's rules, not from the kernel's code. Objects are as a program has them: a table of
slots for each process, open files that several slots may share, inodes that several open files may share, and
sessions. There is no reference counting: what nobody can reach any more is gone.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

PAGE = 4096
LARGE_PAGE = 2 << 20
PERM, NOENT, BADF, BUSY, EXIST, INVAL, NOTTY, SRCH = -1, -2, -9, -16, -17, -22, -25, -3
SEAL, SHRINK, GROW, WRITE, FUTURE, EXEC = 1, 2, 4, 8, 16, 32
WRITES = SHRINK | GROW | WRITE | FUTURE
NAME_MAX = 63
SESSIONS_A_BLOCK, FILES_A_BLOCK = 51, 63
RECORDS_A_PAGE = PAGE // 16
FIXED_PAGES = 4
"""Preserved without any session: root FDT, kexec metadata, LUO's state, the page of FLBs."""
MEMFD, TEST = "memfd-v2", "luemu-test-v1"


def pattern(seed: int, start: int, size: int) -> bytes:
    """Bytes [start, start + size) of contents with this seed, as the agent makes them."""
    with np.errstate(over="ignore"):
        z = np.arange(start // 8, (start + size + 7) // 8, dtype=np.uint64)
        z += np.uint64((seed << 40) + 0x9E3779B97F4A7C15)
        z = (z ^ z >> np.uint64(30)) * np.uint64(0xBF58476D1CE4E5B9)
        z ^= z >> np.uint64(27)
    return z.astype("<u8").tobytes()[start % 8 :][:size]


def digest(page: bytes) -> str:
    """What stands for the contents of a page."""
    return "0" if not any(page) else hashlib.blake2b(page, digest_size=6).hexdigest()


@dataclass(eq=False)
class Inode:
    """A memfd, or a file of /dev/luo_test (``kind``)."""

    kind: str
    size: int = 0
    pages: dict[int, bytearray] = field(default_factory=dict)
    seals: int = 0
    executable: bool = True
    value: int = 0
    next_preserve: int = 0
    next_freeze: int = 0


@dataclass(eq=False)
class Open:
    """An open file of an inode."""

    inode: Inode
    pos: int = 0


@dataclass(eq=False)
class Entry:
    """A file of a session. ``record`` is what was written down of it: (position, size, seals, folios) of a
    memfd, the number of a test file. ``file`` is None until an incoming one is retrieved."""

    token: int
    inode: Inode
    file: Open | None
    record: Any
    status: int = 0

    @property
    def pages(self) -> int:
        """Pages that are preserved for it."""
        if self.inode.kind == TEST:
            return 1
        folios = int(self.record[3])
        array = -(-folios // RECORDS_A_PAGE)
        return 1 + folios + array + bool(array)


@dataclass(eq=False)
class Session:
    """``incoming``: from the kernel before; ``given``: it has, or had, a file."""

    name: str
    incoming: bool = False
    given: bool = True
    files: list[Entry] = field(default_factory=list)


Table = dict[int, "Open | Session"]


class Luo:
    """Two kernels' worth of state: what a program did, and what is handed over by `update`."""

    def __init__(self) -> None:
        self.tables: dict[int, Table] = {0: {}}
        self.device: int | None = 0
        self.outgoing: list[Session] = []
        self.incoming: list[Session] = []
        self.may_finish = True
        self.next_retrieve = 0

    # ---- what is there -------------------------------------------------------------------------

    def has(self, process: int, slot: int) -> Open | Session | None:
        return self.tables[process].get(slot)

    def _owner(self, of: Open) -> Entry | None:
        """Who has preserved, or retrieved and not finished, this file. memfds are known by their inodes, test
        files by their open files."""
        for session in (*self.outgoing, *self.incoming):
            for entry in session.files:
                same = entry.inode is of.inode if of.inode.kind == MEMFD else entry.file is of
                if same and entry.file is not None:
                    return entry
        return None

    def frozen(self, inode: Inode) -> bool:
        """Whether the size and the pages of a memfd are fixed."""
        return any(entry.inode is inode for session in self.outgoing for entry in session.files)

    def _pinned(self, inode: Inode) -> bool:
        return self.frozen(inode) and inode.size > 0

    def inodes(self) -> Iterator[Inode]:
        """All that somebody can reach, some several times."""
        for table in self.tables.values():
            for it in table.values():
                if isinstance(it, Open):
                    yield it.inode
        for session in (*self.outgoing, *self.incoming):
            yield from (entry.inode for entry in session.files if entry.file is not None)

    # ---- open files ----------------------------------------------------------------------------

    def _put(self, process: int, slot: int, it: Open | Session) -> int:
        """A slot takes something new; what it had is closed by that."""
        self.close(process, slot)
        self.tables[process][slot] = it
        return 0

    def memfd(self, process: int, slot: int, flags: int) -> int:
        inode = Inode(MEMFD, seals=0 if flags & 2 else SEAL)
        if flags & 8:
            inode.seals, inode.executable = EXEC, False
        return self._put(process, slot, Open(inode))

    def test_file(self, process: int, slot: int) -> int:
        return self._put(process, slot, Open(Inode(TEST)))

    def close(self, process: int, slot: int) -> int:
        it = self.tables[process].pop(slot, None)
        if it is None:
            return BADF
        if isinstance(it, Session) and not any(it in table.values() for table in self.tables.values()):
            self._release(it)
        return 0

    def dup(self, process: int, to: int, slot: int) -> int:
        it = self.has(process, slot)
        if it is None:
            return BADF
        return self._put(process, to, it) if to != slot else 0

    def order_test(self, process: int, slot: int, what: str, value: int) -> int:
        """A line that is written to a test file."""
        it = self.has(process, slot)
        assert isinstance(it, Open)
        if what == "value":
            it.inode.value = value
        elif what == "preserve":
            it.inode.next_preserve = value
        elif what == "freeze":
            it.inode.next_freeze = value
        elif what == "retrieve":
            self.next_retrieve = value
        else:
            self.may_finish = bool(value)
        return len(f"{what} {value}")

    # ---- memfds --------------------------------------------------------------------------------

    def _memfd(self, process: int, slot: int) -> Open | None:
        it = self.has(process, slot)
        assert it is None or (isinstance(it, Open) and it.inode.kind == MEMFD)
        return it

    def write(self, process: int, slot: int, at: int, size: int, seed: int) -> int:
        """Page by page; all that a large page would take at once is allowed, or nothing of it."""
        it = self._memfd(process, slot)
        if it is None:
            return BADF
        inode, data, done = it.inode, pattern(seed, at, size), 0
        while done < size:
            index, offset = divmod(at + done, PAGE)
            n = min(size - done, PAGE - offset)
            grows = at + done + min(size - done, LARGE_PAGE - (at + done) % LARGE_PAGE) > inode.size
            if inode.seals & (WRITE | FUTURE) or (grows and (inode.seals & GROW or self.frozen(inode))):
                return done or PERM
            page = inode.pages.setdefault(index, bytearray(PAGE))
            page[offset : offset + n] = data[done : done + n]
            done += n
            inode.size = max(inode.size, at + done)
        return done

    def seek(self, process: int, slot: int, at: int) -> int:
        it = self._memfd(process, slot)
        if it is None:
            return BADF
        it.pos = at
        return at

    def truncate(self, process: int, slot: int, size: int) -> int:
        it = self._memfd(process, slot)
        if it is None:
            return BADF
        inode = it.inode
        refused = self.frozen(inode) or inode.seals & (SHRINK if size < inode.size else GROW)
        if size != inode.size and refused:
            return PERM
        if size <= inode.size:
            self._zero(inode, size, -(-size // PAGE) * PAGE)
            for index in [i for i in inode.pages if i * PAGE >= size]:
                del inode.pages[index]
        inode.size = size
        return 0

    @staticmethod
    def _zero(inode: Inode, start: int, end: int) -> None:
        for index, page in inode.pages.items():
            low, high = max(start - index * PAGE, 0), min(end - index * PAGE, PAGE)
            if low < high:
                page[low:high] = bytes(high - low)

    def punch(self, process: int, slot: int, at: int, size: int) -> int:
        """fallocate(PUNCH_HOLE | KEEP_SIZE)."""
        it = self._memfd(process, slot)
        if it is None:
            return BADF
        inode = it.inode
        if self.frozen(inode) or inode.seals & (WRITE | FUTURE):
            return PERM
        self._zero(inode, at, at + size)
        for index in range(-(-at // PAGE), (at + size) // PAGE):
            inode.pages.pop(index, None)
        return 0

    def allocate(self, process: int, slot: int, at: int, size: int, keep_size: bool) -> int:
        """fallocate(0 or KEEP_SIZE)."""
        it = self._memfd(process, slot)
        if it is None:
            return BADF
        inode = it.inode
        if self.frozen(inode) or (at + size > inode.size and inode.seals & GROW):
            return PERM
        for index in range(at // PAGE, -(-(at + size) // PAGE)):
            inode.pages.setdefault(index, bytearray(PAGE))
        if not keep_size:
            inode.size = max(inode.size, at + size)
        return 0

    def seal(self, process: int, slot: int, seals: int) -> int:
        it = self._memfd(process, slot)
        if it is None:
            return BADF
        inode = it.inode
        if inode.seals & SEAL:
            return PERM
        if seals & EXEC and inode.executable:
            seals |= WRITES
        if seals & WRITE and not inode.seals & WRITE and self._pinned(inode):
            return BUSY
        inode.seals |= seals
        return 0

    # ---- the device ----------------------------------------------------------------------------

    def open(self, process: int) -> int:
        if self.device is not None:
            return BUSY
        self.device = process
        return 0

    def close_device(self, process: int) -> int:
        if self.device != process:
            return BADF
        self.device = None
        return 0

    def create(self, process: int, slot: int, name: str) -> int:
        if self.device != process:
            return BADF
        if not 0 < len(name) <= NAME_MAX:
            return INVAL
        if any(s.name == name for s in self.outgoing):
            return EXIST
        session = Session(name)
        self.outgoing.append(session)
        return self._put(process, slot, session)

    def retrieve(self, process: int, slot: int, name: str) -> int:
        if self.device != process:
            return BADF
        session = next((s for s in self.incoming if s.name == name), None)
        if session is None:
            return NOENT
        if session.given:
            return INVAL
        session.given = True
        return self._put(process, slot, session)

    # ---- sessions ------------------------------------------------------------------------------

    def _session(self, process: int, slot: int, incoming: bool) -> Session | int:
        it = self.has(process, slot)
        if it is None:
            return BADF
        if not isinstance(it, Session):
            return NOTTY
        return it if it.incoming is incoming else INVAL

    def preserve(self, process: int, slot: int, file: int, token: int) -> int:
        session = self._session(process, slot, incoming=False)
        if isinstance(session, int):
            return session
        if any(entry.token == token for entry in session.files):
            return EXIST
        it = self.has(process, file)
        if it is None:
            return BADF
        if isinstance(it, Session):
            return NOENT
        if self._owner(it) is not None:
            return BUSY
        inode = it.inode
        if inode.kind == TEST:
            answer, inode.next_preserve = inode.next_preserve, 0
            if answer:
                return answer
            session.files.append(Entry(token, inode, it, inode.value))
            return 0
        pages = -(-inode.size // PAGE)
        for index in range(pages):
            inode.pages.setdefault(index, bytearray(PAGE))
        session.files.append(Entry(token, inode, it, (it.pos, inode.size, inode.seals, pages)))
        return 0

    def get(self, process: int, to: int, slot: int, token: int) -> int:
        """LIVEUPDATE_SESSION_RETRIEVE_FD."""
        session = self._session(process, slot, incoming=True)
        if isinstance(session, int):
            return session
        entry = next((e for e in session.files if e.token == token), None)
        if entry is None:
            return NOENT
        if not entry.status:
            if entry.inode.kind == TEST:
                entry.status, self.next_retrieve = self.next_retrieve or 1, 0
            else:
                entry.status = 1
            if entry.status > 0:
                pos = entry.record[0] if entry.inode.kind == MEMFD else 0
                entry.file = Open(entry.inode, pos)
        if entry.status < 0:
            return entry.status
        assert entry.file is not None
        return self._put(process, to, entry.file)

    def finish(self, process: int, slot: int) -> int:
        session = self._session(process, slot, incoming=True)
        if isinstance(session, int):
            return session
        return self._finish(session)

    def _finish(self, session: Session) -> int:
        if not self.may_finish and any(e.inode.kind == TEST for e in session.files):
            return BUSY
        session.files.clear()
        return 0

    def _release(self, session: Session) -> None:
        """Its last slot is gone."""
        if not session.incoming:
            self.outgoing.remove(session)
        elif not self._finish(session):
            self.incoming.remove(session)

    # ---- processes and kernels -------------------------------------------------------------------

    def spawn(self, process: int) -> int:
        """A child with all that the agent has, but the device."""
        self.tables[process] = dict(self.tables[0])
        return 0

    def kill(self, process: int) -> int:
        if process not in self.tables:
            return SRCH
        if self.device == process:
            self.device = None
        for slot in sorted(self.tables[process]):
            self.close(process, slot)
        del self.tables[process]
        return 9

    def reboot(self) -> int:
        """Into a kernel that is loaded: 0 and everything is as in the next one, or a freeze fails and nothing
        has happened."""
        for session in self.outgoing:
            for entry in session.files:
                assert entry.file is not None
                answer, entry.inode.next_freeze = entry.inode.next_freeze, 0
                if answer < 0:
                    return answer
                if entry.inode.kind == MEMFD:
                    _, size, _, folios = entry.record
                    entry.record = (entry.file.pos, size, entry.inode.seals, folios)
        self.incoming = [self._received(session) for session in self.outgoing]
        self.outgoing, self.tables, self.device = [], {0: {}}, None
        self.may_finish, self.next_retrieve = True, 0
        return 0

    @staticmethod
    def _received(session: Session) -> Session:
        files = []
        for entry in session.files:
            old = entry.inode
            if old.kind == TEST:
                new = Inode(TEST, value=entry.record)
            else:
                kept = {i: page for i, page in old.pages.items() if i * PAGE < old.size}
                noexec = bool(old.seals & EXEC and ~old.seals & WRITES)
                new = Inode(MEMFD, old.size, kept, old.seals, executable=not noexec)
            files.append(Entry(entry.token, new, None, entry.record))
        return Session(session.name, incoming=True, given=False, files=files)

    # ---- to compare ------------------------------------------------------------------------------

    def state(self) -> dict[str, Any]:
        """As `tests.model.decode` reads it from a kernel."""
        number: dict[int, int] = {}
        contents: list[Any] = []

        def file(it: Open) -> Any:
            inode = it.inode
            if inode.kind == TEST:
                return (TEST, inode.value, inode.next_preserve, inode.next_freeze)
            if id(inode) not in number:
                number[id(inode)] = len(number)
                pages = {i: digest(bytes(p)) for i, p in sorted(inode.pages.items())}
                contents.append((inode.size, inode.seals, self.frozen(inode), self._pinned(inode), pages))
            return (MEMFD, number[id(inode)], it.pos)

        def slot(it: Open | Session) -> Any:
            return ("session", it.name, it.incoming) if isinstance(it, Session) else file(it)

        tables = [{n: slot(t[n]) for n in sorted(t)} for t in self.tables.values()]
        outgoing, kept = [], Counter({0: FIXED_PAGES + -(-len(self.outgoing) // SESSIONS_A_BLOCK)})
        for s in self.outgoing:
            assert all(e.file is not None for e in s.files)
            outgoing.append((s.name, [(e.token, file(e.file), e.record) for e in s.files if e.file]))
            kept[0] += -(-len(s.files) // FILES_A_BLOCK) + sum(e.pages for e in s.files)
        incoming = [
            (s.name, s.given, [(e.token, e.inode.kind, e.status, e.file and file(e.file)) for e in s.files])
            for s in self.incoming
        ]
        pages = {id(i): len(i.pages) for i in self.inodes()}
        return {
            "device is open": self.device is not None, "slots": tables, "memfds": contents,
            "outgoing": outgoing, "incoming": incoming, "preserved": dict(kept),
            "page cache": sum(pages.values()),
        }  # fmt: skip
