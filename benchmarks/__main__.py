"""`python -m benchmarks [--json] [NAME ...]`. What counts are the ratios, each of one run on one machine."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable

from benchmarks import counting, decode, dma, own_update, plain, preserving, snapshots


def _linux() -> dict[str, float]:
    from benchmarks import linux_update
    from tests.linux.build import find

    built = find()
    if built is None:
        raise SystemExit("benchmarks: the reference Linux is not built: make test-linux builds it")
    return linux_update.run(built.bzimage, built.lu)


BENCHMARKS: dict[str, tuple[Callable[[], dict[str, float]], str]] = {
    "counting": (counting.run, "exact counting as a multiple of none (bars: median 1.3, worst 3.5)"),
    "plain": (plain.run, "our machine as a multiple of the engine by itself (the same bars)"),
    "snapshots": (snapshots.run, "with 100 dirty pages (bars: 500 us, 300 us, ratios 1.5)"),
    "dma": (dma.run, "a frame of 9000 bytes through the remapping unit (bars: 10 x a copy, log 2 x, idle 1)"),
    "decode": (decode.run, "a map of four million order-0 pages (bar: half a second)"),
    "own": (own_update.run, "a chain of our kernels (bars: 2.0 x QEMU TCG, 1.0 x icount)"),
    "preserving": (
        preserving.run,
        "instructions a page, ours and Linux's (bar: no more; flat: 1.06)",
    ),
    "linux": (_linux, "kexec to the second user space (bars: 1.2 x QEMU TCG, 0.5 x icount)"),
}


def main() -> int:
    """Run the named benchmarks, or all."""
    p = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    p.add_argument("names", nargs="*", metavar="NAME", help=", ".join(BENCHMARKS))
    p.add_argument("--json", action="store_true", help="one JSON document on stdout")
    args = p.parse_args()
    unknown = [n for n in args.names if n not in BENCHMARKS]
    if unknown:
        p.error(f"there is no benchmark {unknown[0]!r}; there are {', '.join(BENCHMARKS)}")
    results: dict[str, dict[str, float]] = {}
    for name in args.names or BENCHMARKS:
        run, title = BENCHMARKS[name]
        print(f"{name}: {title}", file=sys.stderr)
        results[name] = run()
        if not args.json:
            for key, value in results[name].items():
                print(f"  {key:<22}{value:>12,.3f}")
    if args.json:
        print(json.dumps(results, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
