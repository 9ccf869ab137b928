"""What is handed over, for people and for comparisons: facts of a decoded handover."""

from __future__ import annotations

from typing import Any

import numpy as np

from emu.debug.inspect_describe import describe_session
from emu.debug.workloads import Ledger
from kho.abi import PAGE_SIZE
from kho.handover import Handover
from kho.memory import Reader
from luo.state import Luo, payload_bytes


def digests(handover: Handover, reader: Reader) -> dict[str, str]:
    """SHA-256 of each complete memfd with the bytes that ``reader`` has, keyed "session/0xtoken"."""
    luo = Luo.read(handover)
    found = {
        f"{session.name}/{file.token:#x}": memfd.sha256(reader)
        for session, file, memfd in (luo.memfds if luo is not None else ())
    }
    return {name: digest for name, digest in found.items() if digest is not None}


def amounts(handover: Handover) -> dict[str, int]:
    """How much is preserved, and what that costs."""
    pages = sum(1 << int(o) for o in handover.preserved.order.tolist())
    return {
        "pages": pages,
        "bytes": pages * PAGE_SIZE,
        "metadata_bytes": pages * PAGE_SIZE - payload_bytes(handover),
        "tree_bytes": len(handover.tree.node_phys) * PAGE_SIZE,
    }


def kept(handover: Handover) -> list[dict[str, Any]]:
    """What is handed over besides LUO's sessions and KHO's own pages: name, bytes, and what there is to say
    of it."""
    out: list[dict[str, Any]] = []
    if handover.kho_test is not None:
        test = handover.kho_test
        orders = np.bincount(test.order.astype(np.int64)).tolist() if len(test.order) else []
        blocks = {str(order): count for order, count in enumerate(orders) if count}
        out.append({"name": "kho_test", "bytes": test.bytes, "folios": test.nr_folios, "orders": blocks})
    if handover.luemu_test is not None:
        out += [{"name": f"luemu_test {a.name}", "bytes": a.size} for a in handover.luemu_test.areas]
    out += [{"name": f"reserve_mem {r.name}", "bytes": r.size, "phys": r.phys} for r in handover.reserve_mem]
    return out


def sessions(handover: Handover) -> list[dict[str, Any]]:
    """LUO's sessions with their files."""
    luo = Luo.read(handover)
    return [] if luo is None else [describe_session(handover, s) for s in luo.sessions]


def ledger(handover: Handover) -> Ledger | None:
    """The account that the cache's client keeps, if it is handed over."""
    luo = Luo.read(handover)
    for session, file, memfd in luo.memfds if luo is not None else ():
        mine = (session.name, file.token) == (Ledger.SESSION, Ledger.TOKEN)
        if mine and memfd.complete and memfd.size <= Ledger.BYTES_MAX:
            return Ledger.parse(b"".join(part.tobytes() for part in memfd.contents(handover.reader)))
    return None


__all__ = ["amounts", "digests", "kept", "ledger", "sessions"]
