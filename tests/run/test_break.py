"""Negative controls: every way of `break=` to leave out or corrupt an item ends in exit 1, and in the report
stand the item and the page.
"""

from __future__ import annotations

import json
import re

import pytest

from emu.cli import main
from emu.debug.faults import FAULTS
from kernels.build import project_root

CMDLINE = "reserve_mem=64K:4K:one reserve_mem=64K:4K:two test_kho.max_mem=8M"
AT = r"at 0x[0-9a-f]+"
PAGE = rf"page \d+ {AT} changed, at byte \d+"

SAYS: dict[str, str] = {
    **{f"folio{n}": rf"folio \d+ \(order {n} {AT}\) was not preserved" for n in range(11)},
    **{f"corrupt{n}": rf"folio \d+ \(order {n} {AT}\): {PAGE}" for n in range(11)},
    "vmalloc": f"vmalloc@0: {PAGE}",
    "vmallocpage": r"vmalloc@0: 600 pages cannot be restored",
    "reserve_mem": f"reserve_mem region one: {PAGE}",
    "reserve_mem:1": f"reserve_mem region two: {PAGE}",
    "blob": f"payload of sub-tree luemu_test: {PAGE}",
    "node": "sub-tree luemu_test is not there",
    "tree": "vmalloc@1: 1024 pages cannot be restored",
    "treenode": "INV-8: a leaf is referenced more than once",
    "scratch": r"INV-29: scratch area 0 is 0x[0-9a-f]+\+0x[0-9a-f]+, it was 0x[0-9a-f]+\+0x[0-9a-f]+",
    "scratch:1": r"INV-29: scratch area 2 is 0x[0-9a-f]+\+0x[0-9a-f]+, it was 0x[0-9a-f]+\+0x[0-9a-f]+",
    "digest": rf"segment 0, \d+ bytes {AT}, has the SHA-256 [0-9a-f]+…, not [0-9a-f]+…",
    "digest:3": rf"segment 4, \d+ bytes {AT}, has the SHA-256 [0-9a-f]+…, not [0-9a-f]+…",
}
"""class, and number of the item -> what the reasons say. Segment 1, the purgatory, has no digest."""


def broken(what: str, capsys: pytest.CaptureFixture[str]) -> tuple[list[str], str, str]:
    """Reasons, the line in which the old kernel tells what it breaks, and everything that was reported."""
    words = ["run", "--workload", "kho", "--memory", "128M", "--scratch", "32M,0,16M", "-v", "--json"]
    assert main([*words, "--cmdline", f"{CMDLINE} break={what}"]) == 1
    out, console = capsys.readouterr()
    document = json.loads(out)
    assert document["ok"] is False and document["reasons"]
    said = re.search(r"^(?:test_kho|kexec-bzImage64): break: .*$", console, re.MULTILINE)
    report = json.dumps([document["reasons"], document["violations"]])
    return document["reasons"], said[0] if said else "", report


@pytest.mark.parametrize("what", SAYS)
def test_what_is_broken_is_caught_and_named(what: str, capsys: pytest.CaptureFixture[str]) -> None:
    reasons, said, report = broken(what, capsys)
    assert any(re.search(SAYS[what], reason) for reason in reasons), reasons
    assert said, "the old kernel does not tell what it breaks"
    # the item and the page that were broken are the ones that are reported
    item, page = re.search(r"(?:folio|segment) \d+", said), re.search(r"(?<=at )0x[0-9a-f]+", said)
    if item and page:
        assert any(item[0] in reason and page[0] in reason for reason in reasons), (said, reasons)
    elif page and not what.startswith(("node", "tree")):
        assert page[0] in report or str(int(page[0], 16)) in report, (said, report)


def test_every_class_is_here() -> None:
    """Those that the kernel knows. The ones for devices are in test_net.py."""
    text = (project_root() / "kernels" / "kernel" / "breakage.c").read_text()
    listed = text[text.index("names[] = {") :]
    known = set(re.findall(r'"([\w-]+)"', listed[: listed.index("}")]))
    devices = {fault.breaks for fault in FAULTS.values()}
    assert devices < known
    known -= devices
    known |= {f"{name}{n}" for name in ("folio", "corrupt") for n in range(11)}
    assert len(known) > 22 and {what.partition(":")[0] for what in SAYS} == known


def test_what_cannot_be_broken_proves_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    """Item 99 of a class that has fewer: the run says so, and does not go on."""
    reasons, said, _ = broken("reserve_mem:99", capsys)
    assert not said and any("break" in reason for reason in reasons), reasons
