"""Mutation campaign on the decoder: damaged FDTs and whole handovers give one typed error or listed
violations.

Run as ``python -m tests.kho.mutate --fdts 1000000 --handovers 100000 --seed N``. Case number K of a seed is
always the same, whatever the number of processes; a failure prints the one command that replays it. The cost
of each case is bounded: one that takes longer than `SECONDS_MAX` of CPU is a failure as well.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import random
import signal
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

from kho.abi import PAGE_SIZE
from kho.builder import Built
from kho.errors import KhoError
from kho.fdt import Fdt
from kho.handover import Handover
from kho.memblock import ReservedRegion
from kho.memblock import pack as pack_memblock
from kho.setup_data import ScratchList
from luo.builder import FileToMake, SessionToMake
from luo.check import check
from luo.state import Luo
from tests.luo.images import build, contents, many_sessions

SECONDS_MAX = 5
CHUNK = 500
RECORDED = Path(__file__).parent.parent / "data" / "handovers"
INTERESTING = (
    *range(10), 15, 51, 52, 63, 64, 255, 511, 512, 4095, 4096, 4097, 0x7FFFFFFF, 0xFFFFFFFF,
    1 << 32, 1 << 52, (1 << 63) - 1, 1 << 63, (1 << 64) - 4096, (1 << 64) - 1,
)  # fmt: skip


class TooSlow(BaseException):
    """A case used more CPU time than it may. Not an Exception, so that no handler can swallow it."""


@contextmanager
def cpu_limit(seconds: int) -> Iterator[None]:
    """Raise TooSlow when the block takes more CPU time than that (main thread only)."""

    def expired(signum: int, frame: FrameType | None) -> None:
        raise TooSlow(f"more than {seconds} s of CPU")

    before = signal.signal(signal.SIGVTALRM, expired)
    signal.setitimer(signal.ITIMER_VIRTUAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)


# --- FDTs ---------------------------------------------------------------------------------------------------


def fdt_seeds() -> list[bytes]:
    """Blobs to damage: recorded ones, and one with more structure."""
    blobs = [path.read_bytes() for path in sorted(RECORDED.glob("*/*.dtb"))]
    blobs.append(pack_memblock([ReservedRegion(f"region-{n}", n << 20, 1 << 20) for n in range(8)]))
    return sorted(set(blobs))


def mutate_bytes(rng: random.Random, data: bytearray) -> None:
    """One to six changes: bits, bytes, words of both byte orders, moves, cuts, insertions."""
    for _ in range(rng.choice((1, 1, 1, 2, 3, 6))):
        at = rng.randrange(len(data)) if data else 0
        kind = rng.randrange(8)
        if not data:
            data += rng.randbytes(8)
        elif kind == 0:
            data[at] ^= 1 << rng.randrange(8)
        elif kind == 1:
            data[at] = rng.randrange(256)
        elif kind == 2:
            at &= ~3
            data[at : at + 4] = (rng.choice(INTERESTING) & 0xFFFFFFFF).to_bytes(4, "big")
        elif kind == 3:
            at &= ~3
            old = int.from_bytes(data[at : at + 4], "big")
            data[at : at + 4] = (old + rng.randint(-16, 16) & 0xFFFFFFFF).to_bytes(4, "big")
        elif kind == 4:
            size, to = rng.randint(1, 40), rng.randrange(len(data))
            data[to : to + size] = data[at : at + size]
        elif kind == 5:
            del data[at : at + rng.randint(1, 12)]
        elif kind == 6:
            data[at:at] = rng.randbytes(rng.randint(1, 12))
        else:
            data[at : at + 8] = rng.choice(INTERESTING).to_bytes(8, "little")


def fdt_case(rng: random.Random, seeds: list[bytes]) -> str:
    """One damaged FDT: refused with a FormatError, or read; what was read can be written and read again."""
    data = bytearray(rng.choice(seeds))
    mutate_bytes(rng, data)
    try:
        Handover.from_blob(bytes(data))
        outcome = "root FDT"
    except KhoError as error:
        outcome = f"error: {error.kind}"
    try:
        fdt = Fdt.parse(bytes(data))
    except KhoError:
        return outcome
    again = Fdt.parse(fdt.write())
    assert again.root == fdt.root, "written and read again, the tree is another one"
    return "another FDT" if outcome.startswith("error") else outcome


# --- whole handovers ----------------------------------------------------------------------------------------


@dataclass
class Target:
    """A handover to damage, and the pages worth damaging."""

    built: Built
    pages: list[int]
    pointers: list[int] = field(default_factory=list)


def handover_seeds() -> list[Target]:
    """Small handovers of different shapes."""
    files = [FileToMake(number, contents(number, 5000 * number)) for number in range(3)]
    images = [
        build("K"),
        build("J", sessions=many_sessions(53)),
        build("K", sessions=(SessionToMake("files", files), SessionToMake("thp", [
            FileToMake(1, contents(9, PAGE_SIZE * 9), orders=[3, 0])])), flbs=()),
    ]  # fmt: skip
    targets = []
    for built in images:
        metadata = {built.fdt_phys, built.scratch_list.phys, *(phys for _, phys in built.nodes)}
        metadata |= {
            phys & -PAGE_SIZE for name, phys in built.addresses.items() if not name.startswith("folio")
        }
        if built.setup_data is not None:
            metadata.add(built.setup_data & -PAGE_SIZE)
        pages = sorted(metadata)
        targets.append(Target(built, pages, [*pages, *(phys for phys, _ in built.blocks)]))
    return targets


def used_offset(rng: random.Random, built: Built, page: int) -> int:
    """An offset in the page, mostly where there is something."""
    if rng.random() < 0.1:
        return rng.randrange(PAGE_SIZE)
    nonzero = built.memory.read(page, PAGE_SIZE).nonzero()[0]
    return int(nonzero[rng.randrange(len(nonzero))]) if len(nonzero) else rng.randrange(PAGE_SIZE)


def mutate_page(rng: random.Random, target: Target, undo: list[tuple[int, bytes]]) -> None:
    """One change somewhere in the metadata."""
    built = target.built
    page = rng.choice(target.pages)
    kind = rng.randrange(8)
    at = page + used_offset(rng, built, page)
    if kind == 0:
        new = bytes([int(built.memory.read(at, 1)[0]) ^ 1 << rng.randrange(8)])
    elif kind == 1:
        new = bytes([rng.randrange(256)])
    elif kind == 2:
        at &= ~7
        new = rng.choice(INTERESTING).to_bytes(8, "little")
    elif kind == 3:
        at &= ~7
        new = (rng.choice(target.pointers) + rng.choice((0, 0, 0, 8, -8, 16))).to_bytes(8, "little")
    elif kind == 4:
        at &= ~7
        old = int.from_bytes(built.memory.read(at, 8).tobytes(), "little")
        new = (old + rng.choice((-4096, -16, -1, 1, 16, 4096)) & (1 << 64) - 1).to_bytes(8, "little")
    elif kind == 5:
        at, new = page, built.memory.read(rng.choice(target.pages), PAGE_SIZE).tobytes()
    elif kind == 6:
        at, new = page, rng.choice((bytes(PAGE_SIZE), b"\xff" * PAGE_SIZE, rng.randbytes(PAGE_SIZE)))
    else:
        new = rng.randbytes(rng.randint(1, 64))
        at = min(at, page + PAGE_SIZE - len(new))
    undo.append((at, built.memory.read(at, len(new)).tobytes()))
    built.memory.write(at, new)


def handover_case(rng: random.Random, targets: list[Target]) -> str:
    """One damaged handover: a KhoError, or a tree with its violations; all contents can be asked for."""
    target = rng.choice(targets)
    built = target.built
    undo: list[tuple[int, bytes]] = []
    try:
        for _ in range(rng.choice((1, 1, 1, 2, 3, 8))):
            mutate_page(rng, target, undo)
        address = None if rng.random() < 0.2 else built.fdt_phys
        scratch = (
            ScratchList(built.scratch_list.phys, built.scratch_list.size) if rng.random() < 0.5 else None
        )
        try:
            handover = Handover.read(built.memory, address, scratch, search=rng.random() < 0.4)
            luo = Luo.read(handover)
            report = check(handover, rng.choice(("auto", "J", "K", "F")))
        except KhoError as error:
            return f"error: {error.kind}"
        for session in luo.sessions if luo else []:
            for file in session.files:
                if file.memfd is not None:
                    file.memfd.sha256(handover.reader)
        if handover.kho_test is not None:
            handover.kho_test.csum_ok(handover.reader)
        assert set(report.checked) | set(report.not_checked) >= {v.id for v in report.violations}
        ids = sorted({violation.id for violation in report.violations}, key=lambda id: int(id[4:]))
        return ids[0] + ("+" if len(ids) > 1 else "") if ids else "no violation"
    finally:
        for at, old in reversed(undo):
            built.memory.write(at, old)


# --- running ------------------------------------------------------------------------------------------------

KINDS: dict[str, tuple[Callable[[], list], Callable[[random.Random, list], str]]] = {  # type: ignore[type-arg]
    "fdt": (fdt_seeds, fdt_case),
    "handover": (handover_seeds, handover_case),
}
_seeds: dict[str, list] = {}  # type: ignore[type-arg]


@dataclass
class Failure:
    """A case that gave neither an error of ours nor a report."""

    kind: str
    number: int
    seed: int
    text: str

    def command(self) -> str:
        """What replays it."""
        return f"python -m tests.kho.mutate --replay {self.kind} --case {self.number} --seed {self.seed}"


def run_case(kind: str, seed: int, number: int) -> str:
    """Outcome of one case; raises whatever the decoder should not have raised."""
    make, case = KINDS[kind]
    if kind not in _seeds:
        _seeds[kind] = make()
    return case(random.Random(f"{kind}:{seed}:{number}"), _seeds[kind])


def run_chunk(task: tuple[str, int, int, int]) -> tuple[str, int, Counter[str], Failure | None]:
    """Cases [first, last) of a kind; stops at the first failure."""
    kind, seed, first, last = task
    outcomes: Counter[str] = Counter()
    for number in range(first, last):
        try:
            with cpu_limit(SECONDS_MAX):
                outcomes[run_case(kind, seed, number)] += 1
        except (Exception, TooSlow):
            return kind, number - first, outcomes, Failure(kind, number, seed, traceback.format_exc())
    return kind, last - first, outcomes, None


def tasks(fdts: int, handovers: int, seed: int) -> list[tuple[str, int, int, int]]:
    """All chunks of a run."""
    todo = []
    for kind, count in (("fdt", fdts), ("handover", handovers)):
        todo += [(kind, seed, first, min(count, first + CHUNK)) for first in range(0, count, CHUNK)]
    return todo


def campaign(fdts: int, handovers: int, seed: int, jobs: int) -> Failure | None:
    """Run all cases; prints progress and the distribution of outcomes."""
    totals = {"fdt": fdts, "handover": handovers}
    done: Counter[str] = Counter()
    outcomes = {"fdt": Counter[str](), "handover": Counter[str]()}
    started = shown = time.monotonic()
    print(f"seed {seed}: {fdts} FDTs, {handovers} handovers, {jobs} processes", flush=True)
    with multiprocessing.get_context("spawn").Pool(jobs) as pool:
        for kind, count, found, failure in pool.imap_unordered(run_chunk, tasks(fdts, handovers, seed)):
            done[kind] += count
            outcomes[kind] += found
            if failure is not None:
                pool.terminate()
                print(
                    f"FAILED after {sum(done.values())} cases:\n{failure.text}\nreplay: {failure.command()}"
                )
                return failure
            if time.monotonic() - shown > 10:
                shown = time.monotonic()
                state = ", ".join(f"{done[kind]}/{total} {kind}s" for kind, total in totals.items())
                print(f"{shown - started:6.0f} s: {state}", flush=True)
    for kind, counter in outcomes.items():
        listed = ", ".join(f"{name} {count}" for name, count in counter.most_common())
        print(f"{totals[kind]} {kind}s: {listed}")
    print(f"all well after {time.monotonic() - started:.0f} s")
    return None


def main(arguments: list[str] | None = None) -> int:
    """Command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.kho.mutate", description=__doc__)
    parser.add_argument("--fdts", type=int, default=1_000_000)
    parser.add_argument("--handovers", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--replay", choices=sorted(KINDS), help="run one case only")
    parser.add_argument("--case", type=int, default=0)
    args = parser.parse_args(arguments)
    if args.replay:
        print(run_case(args.replay, args.seed, args.case))
        return 0
    return 1 if campaign(args.fdts, args.handovers, args.seed, args.jobs) else 0


if __name__ == "__main__":
    sys.exit(main())
