"""What our kernels hand over is what Linux 7.2.13 handed over when it was given the same orders.

The recordings of Linux are read by the same decoder, so facts are compared with facts: sessions, files,
contents, and how many pages it took to say so. Where a recording was not kept, the numbers of its account
are given here.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any

import pytest

from kho.handover import Handover
from kho.image import open_image
from luo.check import check
from luo.state import Luo, payload_bytes
from tests.luo.images import RECORDED
from tests.userspace import rig

PAIRS = [("old", "new"), ("new", "old")]
KEPT = ("c1-1x4k", "c3-3sess", "c10-reserve_mem")


def facts(handover: Handover) -> dict[str, Any]:
    """Everything but addresses and the kernel's name."""
    luo = Luo.read(handover)
    blocks = handover.preserved.count_by_order()
    out: dict[str, Any] = {
        "subtrees": [(s.name, s.size) for s in handover.subtrees],
        "fdt_size": handover.fdt_size,
        "kexec_count": handover.metadata.kexec_count if handover.metadata else None,
        "metadata_pages": sum(n << order for order, n in blocks.items()) - payload_bytes(handover) // 4096,
        "reserve_mem": [(r.name, r.size) for r in handover.reserve_mem],
    }
    if not handover.reserve_mem:  # where a region lies decides into which blocks it is cut
        out["blocks"] = blocks
    if luo is not None:
        out["number"] = luo.liveupdate_num
        out["flbs"] = luo.flb_page.flbs if luo.flb_page else None
        out["sessions"] = [
            (s.name, s.count, [file_facts(handover, f) for f in s.files]) for s in luo.sessions
        ]
    return out


def file_facts(handover: Handover, file: Any) -> tuple[Any, ...]:
    m = file.memfd
    assert m is not None
    return (
        file.token, file.compatible, m.size, m.pos, m.seals, m.flags, m.nr_folios, m.descriptor.flags,
        m.descriptor.order, m.descriptor.total_pages, sorted(set(m.folio_flags.tolist())), m.folio_counts(),
        m.folio_index.tolist(), m.sha256(handover.reader),
    )  # fmt: skip


def recording(config: str, name: str = "before-kexec") -> tuple[dict[str, Any], dict[str, Any]]:
    """What was ordered, and the facts of what was handed over."""
    place = RECORDED / config
    known = json.loads((place / f"{name}.json").read_text("utf-8"))
    memory = open_image(place / f"{name}.pruned.raw.zst").memory
    assert memory is not None
    return known, facts(Handover.read(memory, int(known["kho_fdt_pa"], 16)))


def at_the_jump(r: rig.Rig, generation: int) -> Handover:
    """Run to the jump; what is handed over breaks no invariant."""
    r.run_to(generation, "kexec:jump")
    handover = r.handover(generation)
    assert check(handover, "J").violations == []
    return handover


def retrieved(text: str) -> list[str]:
    """What `lu s2` says, without durations."""
    return [re.sub(r" ns=\d+", "", line) for line in text.split("\n") if line.startswith("@@")]


def digests(handover: Handover) -> dict[str, str | None]:
    luo = Luo.read(handover)
    return {
        f"{s.name}/{f.token:#x}": f.memfd.sha256(handover.reader)
        for s in (luo.sessions if luo else ())
        for f in s.files
        if f.memfd is not None
    }


@pytest.mark.parametrize("kernels", PAIRS, ids="-".join)
@pytest.mark.parametrize("config", KEPT)
def test_the_same_orders_make_the_same_handover(config: str, kernels: tuple[str, str]) -> None:
    known, linux = recording(config)
    lines = " ".join(known["spec"])
    extra = [word for word in known["cmdline"].split() if word.startswith(("kho_scratch", "reserve_mem"))]
    spec = rig.Spec(kernels, before=[f"lu s1 {lines}"], after=[f"lu s2 {lines}"], cmdline=" ".join(extra))
    with rig.Rig(spec) as r:
        handover = at_the_jump(r, 0)
        assert facts(handover) == linux
        assert digests(handover) == known["expected_sha256"]
        outcome = r.finish().check()
    s2 = RECORDED.parent / "probe" / f"{config}.s2.txt"
    assert retrieved(outcome.output()) == retrieved(s2.read_text())


def test_with_no_session_four_pages_are_handed_over() -> None:
    _, linux = recording("c00-nosession")
    with rig.Rig(rig.Spec(("old", "new"))) as r:
        assert facts(at_the_jump(r, 0)) == linux


def test_with_luo_off_two_pages_are_handed_over() -> None:
    _, linux = recording("c01-luo-off")
    with rig.Rig(rig.Spec(("new", "old"), cmdline=f"{rig.SCRATCH} liveupdate=off")) as r:
        assert facts(at_the_jump(r, 0)) == linux


@pytest.mark.parametrize("kernels", [("old", "new", "old"), ("new", "old", "new")], ids="-".join)
def test_a_chain_hands_over_the_same_twice(kernels: tuple[str, ...]) -> None:
    """Numbers and counts go up, and nothing is left of the round before."""
    lines = " ".join(recording("c9-chain", "before-kexec.round1")[0]["spec"])
    with rig.Rig(rig.Spec(kernels, before=[f"lu s1 {lines}"], after=[f"lu s2 {lines}"])) as r:
        for generation in (0, 1):
            handover = at_the_jump(r, generation)
            assert facts(handover) == recording("c9-chain", f"before-kexec.round{generation + 1}")[1]
        r.finish().check()


# ---- those of which only the account was kept -------------------------------------------------------------


@dataclass(frozen=True)
class Account:
    """A recording: RAM in MiB, orders, preserved blocks by order, number of sessions and of files."""

    memory: int
    spec: str
    blocks: dict[int, int]
    sessions: int
    files: int


ACCOUNTS = {
    "c2-1m-64m": Account(256, "S:vm F:0x10:1M:all F:0x11:64M:all:nosha", {0: 16715}, 1, 2),
    "c4-sparse": Account(128, "S:sparse F:1:1M:p3+200", {0: 265}, 1, 1),
    "c5-emptyfile": Account(128, "S:empty F:1:0:none", {0: 7}, 1, 1),
    "c6-many": Account(128, "NS:60 NF:130", {0: 529}, 60, 130),
    "c8-falloc": Account(128, "S:fa F:1:64K:falloc F:2:64K:none", {0: 44}, 1, 2),
    "c12-600m-hole": Account(1024, "S:big F:1:600M:none:nosha", {0: 154209}, 1, 1),
    "c13-511m-hole": Account(1024, "S:big F:1:511M:none:nosha", {0: 131336}, 1, 1),
    "c14-51s-63f": Account(128, "NS:51 NF:63", {0: 258}, 51, 63),
}


@pytest.mark.parametrize("config", ACCOUNTS)
def test_as_many_pages_as_in_the_account(config: str) -> None:
    account = ACCOUNTS[config]
    spec = rig.Spec(
        ("old", "new"), before=[f"lu s1 {account.spec}"], after=[f"lu s2 {account.spec}"],
        memory=account.memory << 20,
    )  # fmt: skip
    with rig.Rig(spec) as r:
        handover = at_the_jump(r, 0)
        luo = Luo.read(handover)
        assert luo is not None
        assert handover.preserved.count_by_order() == account.blocks
        assert len(luo.sessions) == account.sessions
        assert sum(len(s.files) for s in luo.sessions) == account.files
        r.finish().check()


@pytest.mark.parametrize("kernels", PAIRS, ids="-".join)
def test_large_folios_are_handed_over_as_they_are(kernels: tuple[str, str]) -> None:
    """8 MiB in four folios of order 9, as in the recording c7-thp; contents arrive."""
    lines = "S:huge F:1:8M:all:mmap"
    with rig.Rig(rig.Spec(kernels, before=[f"lu s1 {lines}"], after=[f"lu s2 {lines}"])) as r:
        handover = at_the_jump(r, 0)
        assert handover.preserved.count_by_order() == {0: 9, 9: 4}
        before = digests(handover)
        outcome = r.finish().check()
    (line,) = outcome.lines("@@T retrieve_fd")
    assert f"st_blocks={8 << 11}" in line and f"sha256={before['huge/0x1']}" in line
