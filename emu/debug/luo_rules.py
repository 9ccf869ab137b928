"""What LUO's rows demand, whatever a kernel's structures look like: pure functions that say what is wrong.

`emu.debug.linux_files` and its neighbours bring what an unmodified Linux has, `emu.debug.own_luo` what the
project's kernels have. Neither believes a kernel: it is compared with what was serialized.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from emu.debug.guest import UnknownLayout
from emu.machine import Machine
from kho.abi import PAGE_SIZE
from kho.memory import Bytes
from luo.flb import FlbPage
from luo.memfd import Memfd
from luo.state import Luo

BLOCKS_MAX = 10_000

Problems = Iterator[tuple[str, int | None]]
"""(message, physical address)"""


@dataclass(frozen=True)
class File:
    """struct luo_file. ``file`` is the address of its struct file, 0 before it is retrieved; ``data`` the
    handle of what was serialized; ``compatible`` is empty where nobody knows it. ``handler`` and ``refused``:
    of the project's kernels."""

    address: int
    compatible: str
    file: int
    data: int
    token: int
    handler: int = 0
    refused: bool = False


@dataclass(frozen=True)
class Session:
    """struct luo_session; ``file_set`` is the address of its struct luo_file_set."""

    address: int
    name: str
    file_set: int
    files: list[File]


class Structures(Protocol):
    """A stopped kernel."""

    def where(self, address: int) -> int | None:
        """Physical address of a virtual one, None if there is none."""

    def inode(self, file: int) -> int:
        """struct inode of a struct file."""


@dataclass(frozen=True)
class SerializedFile:
    """A file of a handover at J."""

    session: str
    token: int
    memfd: Memfd | None

    def __str__(self) -> str:
        return f'file {self.token:#x} of session "{self.session}"'


def serialized(luo: Luo | None) -> dict[int, SerializedFile]:
    """The files of a handover by handle."""
    sessions = luo.sessions if luo is not None else []
    return {f.data: SerializedFile(s.name, f.token, f.memfd) for s in sessions for f in s.files}


def blocks(machine: Machine, head: int) -> Iterator[tuple[int, int, Bytes]]:
    """(address, count, entries) of each block of a chain, by physical address. Raises UnknownLayout."""
    at = head
    for _ in range(BLOCKS_MAX):
        if not at:
            return
        raw = machine.memory.read(at, PAGE_SIZE)
        following, count = (int(w) for w in raw[:16].view("<u8"))
        yield at, count, raw[16:]
        at = following
    raise UnknownLayout(f"the blocks from {head:#x} on do not end")


# ---- sessions and files --------------------------------------------------------------------------


def not_unique(s: Structures, sessions: Sequence[Session]) -> Problems:
    """INV-17: names, tokens and objects."""
    names: set[str] = set()
    objects: set[int] = set()
    for session in sessions:
        if session.name in names:
            yield f'two sessions have the name "{session.name}"', s.where(session.address)
        names.add(session.name)
        tokens: set[int] = set()
        for file in session.files:
            where = s.where(file.address)
            if file.token in tokens:
                yield f'session "{session.name}" has the token {file.token:#x} twice', where
            tokens.add(file.token)
            inode = s.inode(file.file)
            if inode in objects:
                yield f'the file {file.token:#x} of session "{session.name}" is preserved twice', where
            objects.add(inode)


def not_as_serialized(s: Structures, sessions: Sequence[Session], luo: Luo) -> Problems:
    """INV-40: what a kernel made of the sessions that it was handed."""
    names, sent_names = [one.name for one in sessions], [one.name for one in luo.sessions]
    if names != sent_names:
        at = _first_difference(names, sent_names)
        where = s.where(sessions[at].address) if at < len(sessions) else luo.sessions[at].phys
        yield f"the sessions are not those serialized: number {at} is another one", where
        return
    for one, other in zip(sessions, luo.sessions, strict=True):
        for file in one.files:
            if file.refused:
                message = f'the file {file.token:#x} of session "{one.name}" is refused, and is whole'
                yield message, s.where(file.address)
        there = [(f.token, f.data, f.compatible) for f in one.files]
        sent = [(f.token, f.data, f.compatible) for f in other.files]
        if there != sent:
            at = _first_difference(there, sent)
            where = s.where(one.files[at].address) if at < len(there) else other.files[at].phys
            which = f"number {at} is another one"
            yield f'the files of session "{one.name}" are not those serialized: {which}', where


def _first_difference(one: Sequence[object], other: Sequence[object]) -> int:
    shorter = min(len(one), len(other))
    return next((i for i in range(shorter) if one[i] != other[i]), shorter)


def wrong_retrieve(handle: int, files: Mapping[int, SerializedFile], *done: Collection[int]) -> str:
    """INV-41: a file's handler is asked to retrieve it; ``done``: those retrieved or finished already."""
    if handle not in files:
        return "a file is retrieved that was not serialized"
    return f"the {files[handle]} is retrieved again" if any(handle in d for d in done) else ""


def wrong_finish(
    handle: int, files: Mapping[int, SerializedFile], finished: Collection[int], left: Sequence[int]
) -> str:
    """INV-43: a file's handler is asked to finish it; ``left``: handles of its session that are to come, the
    next one last."""
    if handle not in files:
        return "a file is finished that was not serialized"
    if handle in finished:
        return "a file is finished again"
    if not left or left[-1] != handle:
        return "a file is finished out of turn, or without finish of its session"
    return ""


def unfinished(left: Sequence[int], all_: int) -> str:
    """INV-43: a finish that began must have gone on to its end; one that was refused has not begun."""
    return f"{len(left)} of {all_} files of a session were not finished" if 0 < len(left) != all_ else ""


# ---- FLBs ----------------------------------------------------------------------------------------


def wrong_users(users: Mapping[str, int], page: FlbPage) -> Problems:
    """INV-18: each FLB's count is the number of files that need it."""
    counts = {flb.compatible: flb.count for flb in page.flbs}
    for name in sorted(users.keys() | counts.keys()):
        count, has = counts.get(name, 0), users.get(name, 0)
        if has != count:
            yield f'FLB "{name}" counts {count} users and has {has}', page.phys


def wrong_flb_call(what: str, flb: int, name: str, calls: Counter[tuple[str, int]]) -> Iterator[str]:
    """INV-44: an FLB's own retrieve or finish is called, which is noted in ``calls``."""
    if what == "finish" and not calls["retrieve", flb]:
        yield f'FLB "{name}" is finished and was never retrieved'
    if calls[what, flb]:
        yield f'{what} of FLB "{name}" is called again'
    calls[what, flb] += 1


def unfinished_flbs(names: Mapping[int, str], page: FlbPage, calls: Counter[tuple[str, int]]) -> Problems:
    """INV-44: all files are finished, so is each FLB that was handed over; ``names`` by address."""
    handed = {flb.compatible for flb in page.flbs}
    for flb, name in names.items():
        if name in handed and not calls["finish", flb]:
            yield f'FLB "{name}" is not finished, and its files are', page.phys


__all__ = [
    "File", "SerializedFile", "Session", "blocks", "not_as_serialized", "not_unique", "serialized",
    "unfinished", "unfinished_flbs", "wrong_finish", "wrong_flb_call", "wrong_retrieve", "wrong_users",
]  # fmt: skip
