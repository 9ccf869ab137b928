"""Sessions and their files: block chains of 80-byte and 64-byte entries."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from kho import block
from kho.block import BlockChain
from kho.handover import Handover
from kho.memory import WritableMemory
from luo.abi import FILE, FILE_COMPATIBLE_SIZE, MEMFD_COMPATIBLE, SESSION, SESSION_NAME_SIZE
from luo.abi_devices import IOMMUFD_COMPATIBLE, VFIO_COMPATIBLE
from luo.devices import VfioDevice, read_vfio
from luo.flb import text
from luo.iommu import Iommufd, read_iommufd
from luo.memfd import Memfd, read_memfd
from luo.testfile import TEST_COMPATIBLE, read_test_file

Decoded = Memfd | Iommufd | VfioDevice | None
HANDLERS: dict[str, Callable[[Handover, int, int], Decoded]] = {
    MEMFD_COMPATIBLE: read_memfd,
    TEST_COMPATIBLE: read_test_file,
    IOMMUFD_COMPATIBLE: read_iommufd,
    VFIO_COMPATIBLE: read_vfio,
}
"""Decoders of file types by compatible string: (handover, data handle, owner) -> what the file is."""


@dataclass
class File:
    """struct luo_file_ser at `phys`. `decoded` is what the handler's data say, if they could be read."""

    phys: int
    compatible: str
    data: int
    token: int
    decoded: Decoded = None

    @property
    def memfd(self) -> Memfd | None:
        """The file, if it is one in memory."""
        return self.decoded if isinstance(self.decoded, Memfd) else None

    @property
    def iommufd(self) -> Iommufd | None:
        """The file, if it is one of /dev/iommu."""
        return self.decoded if isinstance(self.decoded, Iommufd) else None

    @property
    def vfio(self) -> VfioDevice | None:
        """The file, if it is a PCI function's."""
        return self.decoded if isinstance(self.decoded, VfioDevice) else None


@dataclass
class Session:
    """struct luo_session_ser at `phys`; `files_phys` and `count` are as stored."""

    phys: int
    name: str
    files_phys: int
    count: int
    chain: BlockChain | None = None
    files: list[File] = field(default_factory=list)


def read_sessions(handover: Handover, head: int) -> tuple[list[Session], BlockChain]:
    """Decode all sessions with their files. Findings: INV-15, INV-19 (sessions), INV-16, INV-20 (files),
    INV-12.
    """
    findings = handover.findings
    taken: dict[int, str] = {}
    chain = block.read_chain(handover.reader, head, SESSION.size, taken, "the session chain")
    _report(handover, chain, links="INV-15", counts="INV-19", lost="INV-19", what="session block")
    owner = handover.preserved.owner("LUO session blocks")
    for page in chain.blocks:
        handover.own_page(owner, page.phys, lost="INV-15", what="a session block")
    sessions: list[Session] = []
    names: set[bytes] = set()
    for phys, entry in chain.entries:
        raw, files_phys, count = SESSION.unpack(entry)
        name, nul, _ = raw.partition(b"\0")
        if not nul or not name:
            findings.add("INV-19", f"the name of a session is {'empty' if nul else 'without end'}", phys)
        elif name in names:
            findings.add("INV-19", f'two sessions have the name "{text(name)}"', phys)
        names.add(name)
        session = Session(phys, text(name), files_phys, count)
        sessions.append(session)
        _read_files(handover, session, taken)
    return sessions, chain


def _read_files(handover: Handover, session: Session, taken: dict[int, str]) -> None:
    findings = handover.findings
    if (session.files_phys == 0) != (session.count == 0):
        findings.add(
            "INV-20",
            f'session "{session.name}" counts {session.count} files, its chain is at {session.files_phys:#x}',
            session.phys,
        )
        if not session.files_phys:
            return
    label = f'session "{session.name}"'
    chain = session.chain = block.read_chain(handover.reader, session.files_phys, FILE.size, taken, label)
    _report(handover, chain, links="INV-16", counts="INV-16", lost="INV-20", what="file block")
    owner = handover.preserved.owner(f"{label} file blocks")
    for page in chain.blocks:
        handover.own_page(owner, page.phys, lost="INV-12", what="a file block")
    entries = chain.entries
    if chain.complete and len(entries) != session.count and session.count:
        findings.add(
            "INV-20", f"{label} counts {session.count} files, its chain has {len(entries)}", session.phys
        )
    tokens: set[int] = set()
    for phys, entry in entries:
        raw, data, token = FILE.unpack(entry)
        name, nul, _ = raw.partition(b"\0")
        file = File(phys, text(name), data, token)
        session.files.append(file)
        if token in tokens:
            findings.add("INV-20", f"{label} has the token {token:#x} twice", phys)
        tokens.add(token)
        handler = HANDLERS.get(file.compatible) if nul else None
        if not nul:
            findings.add("INV-20", "the compatible string of a file is without end", phys)
        elif handler is None:
            findings.add("INV-20", f'no file handler is known for "{file.compatible}"', phys)
        else:
            file.decoded = handler(handover, data, handover.preserved.owner(f"{label} file {token:#x}"))


def _report(handover: Handover, chain: BlockChain, *, links: str, counts: str, lost: str, what: str) -> None:
    groups = (
        (links, chain.bad_links),
        (counts, chain.bad_counts),
        (lost, chain.lost),
        ("INV-12", chain.foreign),
    )
    for id, found in groups:
        for message, phys in found:
            handover.findings.add(id, f"{what}: {message}", phys)


# --- writing ------------------------------------------------------------------------------------------------


def pack_session(name: str, files_phys: int = 0, count: int = 0) -> bytes:
    """An 80-byte entry. ValueError when the name does not fit with its NUL."""
    raw = name.encode("ascii")
    if not 0 < len(raw) < SESSION_NAME_SIZE:
        raise ValueError(f"a session name has 1 to {SESSION_NAME_SIZE - 1} characters")
    return SESSION.pack(raw, files_phys, count)


def pack_file(data: int, token: int, compatible: str = MEMFD_COMPATIBLE) -> bytes:
    """A 64-byte entry. ValueError when the compatible string does not fit with its NUL."""
    raw = compatible.encode("ascii")
    if not len(raw) < FILE_COMPATIBLE_SIZE:
        raise ValueError(f"a compatible string has at most {FILE_COMPATIBLE_SIZE - 1} characters")
    return FILE.pack(raw, data, token)


def write_files(memory: WritableMemory, allocate: Callable[[], int], entries: Sequence[bytes]) -> list[int]:
    """Write a chain of packed files; the addresses of its blocks, the head first."""
    return block.write_chain(memory, allocate, entries, FILE.size)


def write_sessions(
    memory: WritableMemory, allocate: Callable[[], int], entries: Sequence[bytes]
) -> list[int]:
    """Write a chain of packed sessions; the addresses of its blocks, the head first."""
    return block.write_chain(memory, allocate, entries, SESSION.size)
