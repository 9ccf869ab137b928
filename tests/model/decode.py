"""What a stopped kernel of the project has of LUO and of preserved files, as plain data: `state(view)`.

Everything is read from the guest's memory, by the debug information of the release that runs and by the
decoders of `kho` and `luo`; the kernel is never asked. Raises UnknownLayout where something is not what it
must be.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

from emu.debug.guest import UnknownLayout
from emu.debug.luo_rules import File
from emu.debug.own_structures import Structures
from emu.debug.view import PG_PINNED, View
from kho.handover import Handover
from kho.setup_data import ScratchList
from luo.abi import MEMFD, MEMFD_COMPATIBLE
from luo.state import Luo
from luo.testfile import TEST_COMPATIBLE
from tests.model.luo import PAGE, digest

SLOT_BASE = 100
"""First descriptor of the agent's slots (kernels/user/tests/agent.c)."""
SLOTS = 40


def handover(view: View) -> Handover:
    """What the kernel preserves now, as KHO has it."""
    fdt = view.phys(view.member(view.symbol("kho_out"), "kho_out", "fdt"))
    areas = view.phys(view.variable("kho_scratch"))
    return Handover.read(
        view.machine.memory, fdt, ScratchList(areas, 16 * view.variable("kho_scratch_cnt", 4))
    )


def signed(value: int, bits: int = 32) -> int:
    return value - (1 << bits) if value >> (bits - 1) else value


class Decoder:
    """One state. Inodes of memfds are numbered in the order in which they are met."""

    def __init__(self, view: View) -> None:
        self.view = view
        self.s = Structures(view)
        self.numbers: dict[int, int] = {}
        self.contents: list[Any] = []
        self.session_ops = self.s.local("luo_session.c", "session_fops")
        self.test_ops = self.s.local("luo_test.c", "test_fops")
        self.page_size = view.struct("page").size
        self.vmemmap = view.variable("vmemmap_base")

    def _raw(self, address: int, struct: str) -> Any:
        """A function that gives a member of a structure, which is read once."""
        layout = self.view.struct(struct)
        raw = self.view.read(address, layout.size)

        def get(member: str) -> int:
            found = layout[member]
            return int.from_bytes(raw[found.offset : found.offset + found.size], "little")

        return get

    # ---- processes -----------------------------------------------------------------------------

    def tables(self) -> list[dict[int, int]]:
        """(slot: file) of the agent and each of its children, in the order of their start."""
        s, view = self.s, self.view
        out = []
        for process in s.entries(view.symbol("all_processes"), "process", "all"):
            get = self._raw(process, "process")
            tasks = s.entries(process + view.struct("process").offset("tasks"), "task", "in_process")
            if get("zombie") or len(tasks) != 1:
                raise UnknownLayout(f"process {get('pid')} has {len(tasks)} threads")
            files = view.member(tasks[0], "task", "files")
            size, fd = view.member(files, "files", "size"), view.member(files, "files", "fd")
            count = max(0, min(SLOTS, size - SLOT_BASE))
            raw = view.read(fd + 8 * SLOT_BASE, 8 * count)
            words = [int.from_bytes(raw[8 * i : 8 * i + 8], "little") for i in range(count)]
            out.append({i: word for i, word in enumerate(words) if word})
        return out

    # ---- files -----------------------------------------------------------------------------------

    def file(self, address: int) -> Any:
        get = self._raw(address, "file")
        ops = get("ops")
        if ops == self.session_ops:
            session = get("private")
            name = self.s.text(session + self.view.struct("luo_session").offset("name"), 64)
            return ("session", name, bool(self.view.member(session, "luo_session", "retrieved")))
        if ops == self.test_ops:
            test = self._raw(get("private"), "test_file")
            return (
                TEST_COMPATIBLE, signed(test("value"), 64), signed(test("preserve")), signed(test("freeze"))
            )  # fmt: skip
        inode = get("inode")
        if inode not in self.numbers:
            self.numbers[inode] = len(self.numbers)
            self.contents.append(self.memfd(inode))
        return (MEMFD_COMPATIBLE, self.numbers[inode], get("pos"))

    def memfd(self, inode: int) -> Any:
        shmem = self.view.member(inode, "inode", "shmem")
        if not shmem:
            raise UnknownLayout(f"the file at {inode:#x} has no memory")
        get = self._raw(shmem, "shmem")
        pages, pinned = self.pages(shmem + self.view.struct("shmem").offset("mapping"))
        return (
            self.view.member(inode, "inode", "size"), get("seals"), bool(get("frozen")), pinned, pages
        )  # fmt: skip

    def pages(self, mapping: int) -> tuple[dict[int, str], bool]:
        """(index: digest) of the pages of a file, and whether one is pinned."""
        get = self._raw(mapping, "mapping")
        found: dict[int, str] = {}
        pinned = False
        if get("root"):
            shift = 9 * (get("height") - 1)
            for slot in self._slots(get("root"), shift, 0):
                index, folio = slot
                page = self._raw(folio, "page")
                if page("index") != index or page("mapping") != mapping or page("order"):
                    raise UnknownLayout(f"the page {index} of a file is another one's, or large")
                pinned |= bool(page("flags") & PG_PINNED)
                phys = (folio - self.vmemmap) // self.page_size * PAGE
                found[index] = digest(self.view.machine.memory.read(phys, PAGE).tobytes())
        if len(found) != get("nr_pages"):
            raise UnknownLayout(f"{len(found)} pages of a file, {get('nr_pages')} are counted")
        return found, pinned

    def _slots(self, node: int, shift: int, base: int) -> Any:
        raw = self.view.machine.memory.read(self.view.phys(node), PAGE).view("<u8")
        for i in raw.nonzero()[0].tolist():
            value, index = int(raw[i]), base + (i << shift)
            if value & 1:
                yield index, value - 1
            else:
                yield from self._slots(value, shift - 9, index)

    # ---- sessions ----------------------------------------------------------------------------------

    def outgoing(self) -> list[Any]:
        return [(s.name, [self._entry(f) for f in s.files]) for s in self.s.sessions("outgoing")]

    def _entry(self, f: File) -> Any:
        if f.compatible == TEST_COMPATIBLE:
            record: Any = signed(
                int.from_bytes(self.view.machine.memory.read(f.data, 8).tobytes(), "little"), 64
            )
        else:
            raw = self.view.machine.memory.read(f.data, MEMFD.size).tobytes()
            pos, size, seals, _, folios, _ = MEMFD.unpack(raw)
            record = (pos, size, seals, folios)
        return (f.token, self.file(f.file), record)

    def incoming(self) -> list[Any]:
        out = []
        for session in self.s.sessions("incoming"):
            given = bool(self.view.member(session.address, "luo_session", "retrieved"))
            files = []
            for f in session.files:
                status = signed(self.view.member(f.address, "luo_file", "retrieve_status"))
                files.append((f.token, f.compatible, status, self.file(f.file) if f.file else None))
            out.append((session.name, given, files))
        return out


def page_cache(view: View) -> int:
    """Pages of all files."""
    return view.number(Structures(view).local("pagecache.c", "total_pages"))


def state(view: View, other_pages: int = 0) -> dict[str, Any]:
    """What `tests.model.luo.Luo.state` says should be. ``other_pages``: of the page cache, no memfd's."""
    d = Decoder(view)
    slots = [{slot: d.file(at) for slot, at in table.items()} for table in d.tables()]
    outgoing = d.outgoing()
    incoming = d.incoming()
    kept = handover(view)
    if kept.findings.counts:
        raise UnknownLayout(f"what is preserved is not well-formed: {kept.findings.counts}")
    return {
        "device is open": bool(view.number(d.s.local("luo_core.c", "device_open"), 4)),
        "slots": slots, "memfds": d.contents, "outgoing": outgoing, "incoming": incoming,
        "preserved": dict(Counter(kept.preserved.order.tolist())),
        "page cache": page_cache(view) - other_pages,
    }  # fmt: skip


def handed_over(view: View) -> list[Any]:
    """The sessions that are written down, at the jump: name; of each file token, kind, record, contents."""
    kept = handover(view)
    luo = Luo.read(kept)
    if luo is None or kept.findings.counts:
        raise UnknownLayout(f"what is handed over is not well-formed: {kept.findings.counts}")
    out = []
    for session in luo.sessions:
        files = []
        for f in session.files:
            m, contents = f.memfd, digest(b"")
            record: Any
            if f.compatible == TEST_COMPATIBLE:
                record = signed(int.from_bytes(kept.reader.bytes(f.data, 8), "little"), 64)
            else:
                assert m is not None and m.complete
                contents = digest(b"".join(p.tobytes() for p in m.contents(kept.reader)))
                record = (m.pos, m.size, m.seals, m.nr_folios)
            files.append((f.token, f.compatible, record, contents))
        out.append((session.name, files))
    return out
