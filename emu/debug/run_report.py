"""The result of `luemu run` on one screen."""

from __future__ import annotations

import shlex
import sys
from typing import Any

from emu.debug.output import Paint, amount, clean, size
from emu.debug.phases import NAMES
from emu.debug.verdict import Result
from emu.debug.workloads import cache_line

UPDATES_SHOWN_MAX = 2
"""A chain of more updates is shown as a table, unless -v wants everything."""
VIOLATIONS_SHOWN_MAX = 20
SESSIONS_SHOWN_MAX = 8


def show(result: Result, *, verbose: bool = False) -> None:
    """The result on one screen; a long chain of updates has a line for each."""
    paint = Paint(sys.stdout)
    many = len(result.updates) > UPDATES_SHOWN_MAX
    if result.phases and (verbose or not many):
        _show_phases(result, paint)
    if many:
        _show_chain(result, paint)
    for i, u in enumerate(result.updates):
        if verbose or not many:
            _show_update(i, u)
    for program in result.programs:
        status = program["status"]
        how = f"signal {program['signal']}" if status is None else f"exit {status}"
        if status is None and program["signal"] is None:
            how = "replaced the kernel" if program["replaced"] else "did not end"
        print(
            f"{program['when']} (kernel {program['generation']}): {clean(shlex.join(program['argv']))}: {how}"
        )
        if verbose or (status != 0 and not program["replaced"]):
            for line in program["output"].splitlines():
                print("  | " + clean(line))
    if result.cache is not None:
        print(f"cache: {cache_line(result.cache)}")
    if result.net is not None:
        _show_net(result.net)
    if result.traffic is not None:
        print(f"traffic: {_traffic_line(result.traffic)}")
    for v in result.violations[:VIOLATIONS_SHOWN_MAX]:
        at = "" if v["phys"] is None else f" ({v['phys']:#x})"
        print(paint("red", f"{v['id']} at {v['moment']}: {clean(v['message'])}{at}"))
    if len(result.violations) > VIOLATIONS_SHOWN_MAX:
        print(paint("red", f"and {len(result.violations) - VIOLATIONS_SHOWN_MAX} more (--json has all)"))
    if result.epitaph:
        print("\n".join(clean(line) for line in result.epitaph.splitlines()))
    print(f"state {result.state_hash} after {result.stop.instructions:,} instructions")
    if result.ok:
        print(paint("green", "ok"))
    else:
        for reason in result.reasons:
            print(paint("red", f"not ok: {clean(reason)}"))


def _show_net(n: dict[str, Any]) -> None:
    print(
        f"net: {n['sent']:,} frames sent, {n['received']:,} received: {n['lost']:,} lost, "
        f"{n['duplicated']:,} duplicated, {n['corrupted']:,} corrupted, {n['reordered']:,} out of order"
    )
    print(
        f"  longest time without a frame {n['longest_gap_instructions']:,} instructions; "
        f"without a look at the ring across an update {n['poll_gap_ticks'] / 1e6:,.3f} ms"
    )
    print(
        f"  that takes {n['ring_needed']:,} of the ring's {n['ring'] - 1:,} descriptors at this rate; "
        f"{n['backlog']:,} had been filled"
    )
    if n["interrupts"]["used"]:
        i = n["interrupts"]
        print(f"  interrupts: {i['signals']:,} signals, {i['spurious']:,} spurious, {i['lost']:,} lost")
    print(f"  {'DMA writes in phase':<24}{'writes':>10}{'microseconds':>15}")
    for phase, writes in n["dma_writes"].items():
        print(f"  {phase:<24}{writes:>10,}{n['phase_ticks'].get(phase, 0) / 1000:>15,.1f}")
    print(f"  {amount(len(n['dma_violations']), 'DMA violation')}")
    for v in n["dma_violations"][:VIOLATIONS_SHOWN_MAX]:
        where = "no page" if v["phys"] is None else f"page {v['phys']:#x} of {v['owner']}"
        print(
            f"  DMA violation: {v['device']} ({v['bdf']}), {where}, phase {v['phase']} of kernel "
            f"{v['kernel']}: {v['reason']} ({v['count']:,} times)"
        )


def _traffic_line(t: dict[str, Any]) -> str:
    out = [f"{amount(t['sent'], 'frame')} sent to the card", f"{t['frames']:,} sent by it"]
    out += [f"{t[what]:,} {what}" for what in ("foreign", "corrupted") if t[what]]
    for number, s in t["streams"].items():
        out.append(
            f"stream {number}: {s['received']:,}, {s['duplicated']} duplicated, {s['reordered']} reordered"
        )
    return "; ".join(out)


def _show_phases(result: Result, paint: Paint) -> None:
    totals: dict[tuple[int, str], list[int]] = {}
    for r in result.phases:
        total = totals.setdefault((r.generation, r.id), [0, 0, 0])
        total[0] += r.instructions
        total[1] += r.ticks
        total[2] += 1
    print(paint("bold", f"{'phase':<22}{'kernel':>7}{'times':>7}{'instructions':>17}{'microseconds':>15}"))
    for (generation, id), (instructions, ticks, count) in totals.items():
        name = NAMES[id] if id == "userspace" else f"{id:<4}{NAMES[id]}"
        print(f"{name:<22}{generation:>7}{count:>7}{instructions:>17,}{ticks / 1000:>15,.1f}")


def _show_chain(result: Result, paint: Paint) -> None:
    head = f"{'update':>6}  {'from':<16}{'to':<16}{'blackout':>14}{'digest':>14}{'preserved':>12}  invariants"
    print(paint("bold", head))
    for i, u in enumerate(result.updates):
        preserved = size(u["preserved"]["bytes"]) if u["preserved"] else "nothing"
        print(
            f"{i + 1:>6}  {_release(u['old']):<16}{_release(u['new']):<16}"
            f"{u['blackout_instructions']:>14,}{u['digest_instructions']:>14,}{preserved:>12}  "
            f"{len(u['checked'])} at {', '.join(u['moments']) or 'no moment'}"
        )


def _release(kernel: dict[str, Any]) -> str:
    return clean(kernel["release"] or "?")


def _show_update(number: int, u: dict[str, Any]) -> None:
    p = u["preserved"]
    print(f"update {number + 1}: {_release(u['old'])} -> {_release(u['new'])}")
    print(
        f"  blackout {u['blackout_instructions']:,} instructions, {u['blackout_ticks'] / 1e6:,.3f} ms; "
        f"of these {u['digest_instructions']:,} for the digest"
    )
    if p:
        print(
            f"  preserved {amount(p['pages'], 'page')} ({size(p['bytes'])}), of these "
            f"{size(p['metadata_bytes'])} metadata; tree {size(p['tree_bytes'])}"
        )
    for kept in u["kept"]:
        print(f"    {clean(kept['name'])}: {size(kept['bytes'])}{_details(kept)}")
    for s in u["sessions"][:SESSIONS_SHOWN_MAX]:
        print(f"  session {clean(s['name'])}: {amount(len(s['files']), 'file')}")
    rest = u["sessions"][SESSIONS_SHOWN_MAX:]
    if rest:
        files = sum(len(s["files"]) for s in rest)
        print(f"  and {amount(len(rest), 'session')} more with {amount(files, 'file')}")
    if u["scratch"] and u["kept"]:
        names = ["low", "global", *(f"node {i}" for i in range(len(u["scratch"]) - 2))]
        areas = [
            f"{name} {size(a['size'])} at {a['phys']:#x}" if a["size"] else f"{name} none"
            for name, a in zip(names, u["scratch"], strict=True)
        ]
        print(f"  scratch: {', '.join(areas)}")
    print(f"  checked {amount(len(u['checked']), 'invariant')} at {', '.join(u['moments']) or 'no moment'}")


def _details(kept: dict[str, Any]) -> str:
    if "folios" not in kept:
        return f" at {kept['phys']:#x}" if "phys" in kept else ""
    orders = sorted(int(order) for order in kept["orders"])
    if not orders:
        return ""
    which = f"order {orders[0]}" if len(orders) == 1 else f"orders {orders[0]} to {orders[-1]}"
    return f" in {amount(kept['folios'], 'folio')} of {which}"


__all__ = ["show"]
