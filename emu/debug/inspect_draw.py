"""A handover as a tree of lines, for people."""

from __future__ import annotations

import sys

from emu.debug import inspect_devices
from emu.debug.output import Branch, Paint, amount, clean, size
from kho.abi import PAGE_SIZE
from kho.check import Report
from kho.handover import Handover
from kho.image import Image
from luo import Luo
from luo.abi import SEAL_NAMES
from luo.abi_devices import IOMMU_COMPATIBLE, PCI_COMPATIBLE
from luo.sessions import File

LINES_MAX = 20  # of one kind in the tree, unless --all


def draw(image: Image, handover: Handover, report: Report, *, summary: bool = False) -> Branch:
    """The tree."""
    paint = Paint(sys.stdout)
    tree = Branch(f"{paint('bold', clean(str(image.path)))} ({image.format})")
    where = "" if handover.fdt_phys is None else f" at {handover.fdt_phys:#x}"
    kho = tree.add(f"{paint('bold', 'KHO')} {handover.compatible}, FDT{where}, {handover.fdt_size} bytes")
    metadata = handover.metadata
    if metadata is not None:
        kho.add(
            f'kexec-metadata: from "{clean(metadata.previous_release)}", kexec count {metadata.kexec_count}'
        )
    if handover.bare:
        kho.add(f"tree root {handover.tree.root:#x} (a bare FDT: no memory to look at)")
    else:
        _draw_memory(kho, handover)
    subtrees = kho.add(amount(len(handover.subtrees), "sub-tree"))
    for subtree in handover.subtrees:
        subtrees.add(f"{clean(subtree.name)} at {subtree.phys:#x}, {subtree.size} bytes")
    for region in handover.reserve_mem:
        tree.add(f"reserve_mem {clean(region.name)} at {region.phys:#x}, {size(region.size)}")
    if handover.kho_test is not None:
        test = handover.kho_test
        verdict = {
            True: "checksum right",
            False: paint("red", "checksum wrong"),
            None: "checksum not computed",
        }
        known = None if summary else test.csum_ok(handover.reader)
        tree.add(f"kho_test: {amount(test.nr_folios, 'folio')}, {size(test.bytes)}, {verdict[known]}")
    for area in handover.luemu_test.areas if handover.luemu_test is not None else ():
        tree.add(f"luemu_test {clean(area.name)}: {size(area.size)}")
    luo = Luo.read(handover)
    if luo is not None:
        _draw_luo(tree, handover, luo, paint, summary)
    phys, order = handover.unexplained()
    if len(phys):
        lines = tree.add(paint("yellow", f"{amount(len(phys), 'block')} that no known format explains"))
        _draw_blocks(lines, list(zip(phys.tolist(), order.tolist(), strict=True)), summary)
    draw_violations(tree, report, paint)
    return tree


def _draw_memory(kho: Branch, handover: Handover) -> None:
    nodes = len(handover.tree.node_phys)
    kho.add(
        f"tree root {handover.tree.root:#x}, {amount(nodes, 'node')}, {size(nodes * PAGE_SIZE)}"
        + ("" if handover.tree_is_whole else ", damaged")
    )
    preserved = handover.preserved
    blocks = kho.add(f"preserved: {size(preserved.bytes)} in {amount(len(preserved), 'block')}")
    for order, count in preserved.count_by_order().items():
        blocks.add(f"order {order:2} ({size(PAGE_SIZE << order)}): {count:,}")
    if handover.scratch is None:
        kho.add("scratch: nothing in the image says where (--scratch ADDR,LEN)")
        return
    names = ("low", "global")
    scratch = kho.add(f"scratch: {size(sum(area.size for area in handover.scratch))}")
    for number, area in enumerate(handover.scratch):
        name = names[number] if number < 2 else f"node {number - 2}"
        scratch.add(f"{name}: {area.phys:#x}, {size(area.size)}")


def _draw_luo(tree: Branch, handover: Handover, luo: Luo, paint: Paint, summary: bool) -> None:
    files = sum(len(session.files) for session in luo.sessions)
    branch = tree.add(
        f"{paint('bold', 'LUO')} {clean(luo.compatible)}, live update {luo.liveupdate_num}, "
        f"{amount(len(luo.sessions), 'session')}, {amount(files, 'file')}"
    )
    shown = luo.sessions[:LINES_MAX] if not summary else []
    for session in shown:
        line = branch.add(
            f'session "{paint("cyan", clean(session.name))}": {amount(len(session.files), "file")}'
        )
        for file in session.files[:LINES_MAX]:
            line.add(_file_line(handover, file))
        if len(session.files) > LINES_MAX:
            line.add(f"and {amount(len(session.files) - LINES_MAX, 'more file')} (--json lists all)")
    if not summary and len(luo.sessions) > LINES_MAX:
        branch.add(f"and {amount(len(luo.sessions) - LINES_MAX, 'more session')} (--json lists all)")
    for flb in luo.flb_page.flbs if luo.flb_page else []:
        line = branch.add(f'FLB "{clean(flb.compatible)}": data {flb.data:#x}, {amount(flb.count, "user")}')
        if luo.iommu is not None and flb.compatible == IOMMU_COMPATIBLE and not summary:
            inspect_devices.draw_iommu(line, luo.iommu)
        if luo.pci is not None and flb.compatible == PCI_COMPATIBLE and not summary:
            inspect_devices.draw_pci(line, luo.pci)


def _file_line(handover: Handover, file: File) -> str:
    memfd = file.memfd
    what = inspect_devices.file_line(file)
    if what is not None:
        return f"token {file.token:#x}: {clean(file.compatible)}, {what}"
    if memfd is None:
        return f"token {file.token:#x}: {clean(file.compatible)}, data {file.data:#x}, not decoded"
    parts = [f"token {file.token:#x}: {clean(file.compatible)}", size(memfd.size)]
    if memfd.pos:
        parts.append(f"pos {memfd.pos}")
    if memfd.seals:
        names = [name for bit, name in enumerate(SEAL_NAMES) if memfd.seals >> bit & 1]
        parts.append("seals " + "+".join(names or [hex(memfd.seals)]))
    counts = memfd.folio_counts()
    if set(counts) - {0}:
        parts.append(" ".join(f"{count}×order {order}" for order, count in counts.items()))
    digest = memfd.sha256(handover.reader)
    parts.append(f"sha256 {digest[:16]}…" if digest else "contents incomplete")
    return ", ".join(parts)


def _draw_blocks(branch: Branch, blocks: list[tuple[int, int]], summary: bool) -> None:
    shown = blocks[: 0 if summary else LINES_MAX]
    for phys, order in shown:
        branch.add(f"{phys:#x}, order {order} ({size(PAGE_SIZE << order)})")
    if len(blocks) > len(shown) and shown:
        branch.add(f"and {len(blocks) - len(shown):,} more (--json lists all)")


def draw_violations(tree: Branch, report: Report, paint: Paint) -> None:
    """The verdict as lines below a tree."""
    if not report.violations:
        tree.add(paint("green", f"{amount(len(report.checked), 'invariant')} of moment {report.moment} hold"))
        return
    lines = tree.add(paint("red", f"{amount(len(report.violations), 'violation')} at moment {report.moment}"))
    for violation in report.violations:
        where = "" if violation.phys is None else f" at {violation.phys:#x}"
        lines.add(f"{paint('red', violation.id)}{where}: {clean(violation.message)}")


__all__ = ["draw", "draw_violations"]
