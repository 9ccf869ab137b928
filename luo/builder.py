"""Put LUO state on a `kho.builder.HandoverBuilder`: sessions, memfds with contents, FLBs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from kho.abi import PAGE_SIZE
from kho.builder import HandoverBuilder
from luo.abi import LUO_SUBTREE
from luo.flb import Flb, pack_page
from luo.memfd import write_memfd
from luo.sessions import pack_file, pack_session, write_files, write_sessions
from luo.state import pack_state


@dataclass
class FileToMake:
    """A memfd: contents and what else is preserved of it. `orders` are those of its folios, in file order."""

    token: int
    contents: bytes = b""
    pos: int = 0
    seals: int = 0
    orders: Sequence[int] | None = None
    """None: folios of order 0."""


@dataclass
class SessionToMake:
    """A session."""

    name: str
    files: list[FileToMake] = field(default_factory=list)


def add_luo(
    builder: HandoverBuilder,
    sessions: Sequence[SessionToMake] = (),
    *,
    number: int = 1,
    flbs: Sequence[Flb] = (),
) -> int:
    """Write all of it and register the sub-tree "LUO"; returns the address of luo_ser.

    `builder.addresses` gets ``state``, ``flbs``, ``session_block:N``, ``file_block:NAME:N`` and for each file
    ``record:NAME:TOKEN``, ``array:NAME:TOKEN``, ``chunk:NAME:TOKEN``, ``folio:NAME:TOKEN:N``.
    """
    at = builder.addresses
    state = builder.allocate_preserved()
    flb_page = builder.allocate_preserved()
    builder.memory.write(flb_page, pack_page(flbs))
    entries = []
    for session in sessions:
        files = [pack_file(_add_memfd(builder, session.name, file), file.token) for file in session.files]
        blocks = write_files(builder.memory, builder.allocate_preserved, files)
        for number_of_block, block in enumerate(blocks):
            at[f"file_block:{session.name}:{number_of_block}"] = block
        entries.append(pack_session(session.name, blocks[0] if blocks else 0, len(files)))
    blocks = write_sessions(builder.memory, builder.allocate_preserved, entries)
    for number_of_block, block in enumerate(blocks):
        at[f"session_block:{number_of_block}"] = block
    builder.add_subtree(LUO_SUBTREE, pack_state(number, blocks[0] if blocks else 0, flb_page), state)
    at["state"], at["flbs"] = state, flb_page
    return state


def _add_memfd(builder: HandoverBuilder, session: str, file: FileToMake) -> int:
    pages = -(-len(file.contents) // PAGE_SIZE)
    orders = list(file.orders) if file.orders is not None else [0] * pages
    folios = []
    offset = 0
    for number, order in enumerate(orders):
        phys = builder.allocate_preserved(order)
        size = PAGE_SIZE << order
        builder.memory.write(phys, file.contents[offset : offset + size].ljust(size, b"\0"))
        builder.addresses[f"folio:{session}:{file.token}:{number}"] = phys
        folios.append((phys, order))
        offset += size
    record, used = write_memfd(
        builder.memory, builder.allocate, folios, len(file.contents), pos=file.pos, seals=file.seals
    )
    for page in used:
        builder.preserve(page)
    key = f"{session}:{file.token}"
    builder.addresses[f"record:{key}"] = record
    if folios:
        array_pages = -(-len(folios) * 16 // PAGE_SIZE)
        builder.addresses[f"array:{key}"] = used[1]
        builder.addresses[f"chunk:{key}"] = used[1 + array_pages]
    return record
