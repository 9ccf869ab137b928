"""LUO's structures in one of the project's kernels, by the debug information of the release that runs.

Lists are believed only if they are linked both ways and have as many entries as are counted, structures only
if they are what they must be.
"""

from __future__ import annotations

from collections.abc import Iterator

from emu.debug.guest import UnknownLayout
from emu.debug.luo_rules import File, Session, blocks
from emu.debug.view import View
from kho.memory import Bytes

NAME_SIZE = 64
_COMPATIBLE, _LIST_MAX = 48, 1 << 20
_KERNEL_SPACE = 0xFFFF_8000_0000_0000


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
            name = self.text(session + offset("name"), NAME_SIZE)
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
            out.append(
                File(at, name, word("file"), word("data"), word("token"), handler, bool(raw[refused]))
            )
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

    def blocks(self, block_set: int) -> Iterator[tuple[int, int, Bytes]]:
        """(address, count, entries) of each block of a struct kho_block_set."""
        return blocks(self.view.machine, self.view.member(block_set, "kho_block_set", "head"))

    def owner(self, mutex: int) -> int:
        """The thread that holds a struct mutex, 0 if none does."""
        return self.view.member(mutex, "mutex", "owner")

    def flbs(self) -> dict[int, str]:
        """Names of all FLBs, by address."""
        found = self.entries(self.local("luo_flb.c", "flbs"), "liveupdate_flb")
        return {flb: self.flb_name(flb) for flb in found}

    def flb_name(self, flb: int) -> str:
        """Compatible string of an FLB."""
        return self.text(flb + self.view.struct("liveupdate_flb").offset("compatible"), _COMPATIBLE)

    def flbs_of(self, handler: int) -> list[int]:
        """FLBs that a handler's files need."""
        link = self.view.struct("link")
        if not {"list", "flb"} <= link.members.keys():
            raise UnknownLayout("struct link is not that of LUO's FLBs")
        head = handler + self.view.struct("liveupdate_file_handler").offset("flbs")
        return [self.view.member(at, "link", "flb") for at in self.entries(head, "link")]

__all__ = ["NAME_SIZE", "Structures"]
