"""The workload of our kernels on the machine: chains of updates, their verdict, and everything that
`break=` can do wrong.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache

import pytest

import kernels
from emu import Machine
from emu.boot import Boot
from emu.initramfs import Initramfs
from emu.machine import Stop, StopKind

MIB = 1 << 20
REGIONS = "reserve_mem=64K:4K:one reserve_mem=1M:2M:two"
PAGE_CHANGED = r"page \d+ at 0x[0-9a-f]+ changed, at byte \d+"


@dataclass(frozen=True)
class Run:
    """Everything that a run printed, and how it ended."""

    text: str
    stop: Stop
    instructions: int

    @property
    def verdict(self) -> str:
        """The last line."""
        return self.text.rstrip("\n").rsplit("\n", 1)[-1]

    def kernels(self) -> list[str]:
        """What each kernel of the chain printed."""
        return re.split(r"^(?=luemu kernel )", self.text, flags=re.MULTILINE)[1:]

    def count(self, pattern: str) -> int:
        return len(re.findall(pattern, self.text, re.MULTILINE))


@cache
def image(release: str, form: str = "bzImage") -> bytes:
    return kernels.binary(f"{release}.{form}").read_bytes()


@cache
def run(chain: str, cmdline: str, memory: int = 256 * MIB, form: str = "bzImage", extra: str = "") -> Run:
    """Boot the first release of `chain` (names with spaces between them) and let it update to the others.
    `extra` replaces the chain file.
    """
    first, *rest = chain.split()
    files = Initramfs()
    for release in sorted(set(rest)):
        files.add_file(f"/boot/{release}", image(release))
    if rest or extra:
        lines = extra or "".join(f"/boot/{release}\n" for release in rest)
        files.add_file("/boot/chain", lines.encode())
    with Machine(memory) as machine:
        machine.boot(Boot(image(first, form), cmdline, files.build()))
        stop = machine.run(max_instructions=3_000_000_000)
        text = machine.console.decode("latin-1").replace("\r\n", "\n")
        return Run(text, stop, machine.instructions)


def failed(result: Run, reason: str) -> None:
    """The verdict must be that reason, and end the machine."""
    assert re.fullmatch(f"luemu: verdict FAILED: (?:{reason})", result.verdict), result.text[-3000:]
    assert result.stop.kind is StopKind.POWER_OFF


# ---- what must go well


@pytest.mark.parametrize("chain", ["old new", "new old", "old old", "new new"])
def test_every_pair_of_releases_updates(chain: str) -> None:
    result = run(chain, f"kho=on {REGIONS}")
    assert result.verdict == "luemu: verdict ok", result.text[-3000:]
    assert result.stop.kind is StopKind.POWER_OFF
    a, b = result.kernels()
    for line in re.findall(r"^test_kho: order +\d+: .*$", a, re.MULTILINE):
        assert line in b, "what was saved in an order is what was restored"
    saved = re.search(r"saved (\d+ folios, 2048 pages, checksum \w+, digest \w+)", a)
    assert saved and f"test_kho: restored {saved[1]}\n" in b
    assert "test_kho: KHO restore succeeded\n" in b
    assert "vmalloc@0 restored: 600 pages" in b and "vmalloc@1 restored: 1024 pages in blocks of order 9" in b
    assert "reserve_mem region one verified" in b and "reserve_mem region two verified" in b


def test_no_page_is_lost_in_a_chain_of_ten_updates() -> None:
    result = run("old new new old new old old new old new new", f"kho=on {REGIONS}")
    assert result.verdict == "luemu: verdict ok", result.text[-3000:]
    texts = result.kernels()
    assert len(texts) == 11
    assert [int(t) for t in re.findall(r"exec from: \S+ \(count (\d+)\)", result.text)] == list(range(1, 11))
    managed = [int(n) for n in re.findall(r"^luemu: (\d+) pages managed", result.text, re.MULTILINE)]
    # a kernel leaves alone what nobody restores: FDT, metadata and list of regions of the one before
    releases = [re.match(r"luemu kernel (\S+)", t) for t in texts]
    for release in {r[1] for r in releases if r}:
        later = [n for n, r in list(zip(managed, releases, strict=True))[1:] if r and r[1] == release]
        assert max(later) - min(later) <= 2, f"{release}: managed pages {later}"
    assert len(set(re.findall(r"saved .* digest (\w+)", result.text))) == 10, "contents are others each time"


def test_self_tests_pass_before_and_after_an_update() -> None:
    result = run("new old", "kho=on selftest=on")
    assert result.verdict == "luemu: verdict ok", result.text[-3000:]
    for name in ("lib", "mm", "sched", "kho"):
        assert result.count(rf"^selftest {name}: \d+ checks, 0 failed$") == 2, name


def test_without_a_chain_there_is_a_verdict_and_nothing_is_saved() -> None:
    result = run("old", "kho=on")
    assert result.verdict == "luemu: verdict ok"
    assert "test_kho" not in result.text


def test_without_kho_the_next_kernel_starts_cold_and_says_so() -> None:
    failed(run("old new", "kho=off"), "kernel 1 of the chain got no handover")


def test_the_test_can_be_switched_off() -> None:
    result = run("old new", "kho=on test_kho=off")
    assert result.verdict == "luemu: verdict ok"
    assert "test_kho: " not in result.text


@pytest.mark.parametrize(
    "order, mem, folios", [(0, "1M", 256), (9, "16M", 8), (10, "8M", 2), (10, "10M", 2), (3, "33K", 1)]
)
def test_order_and_total_can_be_given(order: int, mem: str, folios: int) -> None:
    result = run("old new", f"kho=on test_kho.order={order} test_kho.max_mem={mem}")
    assert result.verdict == "luemu: verdict ok", result.text[-3000:]
    assert result.count(rf"^test_kho: order +{order}: {folios} folios, ") == 2
    assert result.count(rf"^test_kho: (saved|restored) {folios} folios, ") == 2


def test_what_is_no_size_or_order_is_told() -> None:
    result = run("old", "kho=on test_kho.order=11 test_kho.max_mem=lots test_kho=maybe break=everything")
    for name in ("test_kho.order", "test_kho.max_mem", "test_kho"):
        assert f"invalid for parameter `{name}'" in result.text
    assert "Malformed early option 'break'" in result.text


def test_contents_follow_the_seed() -> None:
    digests = {
        seed: re.findall(r"digest (\w+)", run("old new", f"kho=on {seed}").text)
        for seed in ("", "seed=1", "seed=2")
    }
    assert digests[""] == digests["seed=1"] != digests["seed=2"]


def test_a_line_of_the_chain_may_have_a_command_line() -> None:
    line = '/boot/new kho=on quiet_it_is_not "a word" luemu.generation=7\n'
    result = run("old new", "kho=on seed=9", extra=line)
    assert result.verdict == "luemu: verdict ok", result.text[-3000:]
    assert 'Command line: kho=on quiet_it_is_not "a word" luemu.generation=1\n' in result.kernels()[1]


# ---- what must not


@pytest.mark.parametrize(
    "lines, reason",
    [
        ("/boot/missing\n", "there is no kernel /boot/missing in the initramfs"),
        ("/boot\n", "there is no kernel /boot in the initramfs"),
        ("boot/new\n", "there is no kernel boot/new in the initramfs"),
        ("/boot/chain\n", r"kexec_file_load of /boot/chain: error -8"),
        ("/boot/new " + "x" * 2040 + "\n", "the command line of /boot/new is too long"),
    ],
)
def test_a_chain_that_cannot_go_on_fails(lines: str, reason: str) -> None:
    failed(run("old new", "kho=on", extra=lines), reason)


def test_more_memory_than_there_is_fails_and_names_the_error() -> None:
    failed(run("old new", "kho=on test_kho.max_mem=1G"), "the KHO test cannot save: error -12")


# ---- negative controls: what is done wrong is seen by the next kernel, with item and page

BROKEN = {
    **{f"folio{n}": rf"folio \d+ \(order {n} at 0x[0-9a-f]+\) was not preserved" for n in range(11)},
    **{f"corrupt{n}": rf"folio \d+ \(order {n} at 0x[0-9a-f]+\): {PAGE_CHANGED}" for n in range(11)},
    "folio2:3": r"folio \d+ \(order 2 at 0x[0-9a-f]+\) was not preserved",
    "corrupt5:1": rf"folio \d+ \(order 5 at 0x[0-9a-f]+\): {PAGE_CHANGED}",
    "vmalloc": f"vmalloc@0: {PAGE_CHANGED}",
    "vmalloc:599": f"vmalloc@0: {PAGE_CHANGED}",
    "vmallocpage:511": "vmalloc@0: 600 pages cannot be restored",
    "reserve_mem": f"reserve_mem region one: {PAGE_CHANGED}",
    "reserve_mem:1": f"reserve_mem region two: {PAGE_CHANGED}",
    "blob": f"payload of sub-tree luemu_test: {PAGE_CHANGED}",
    "blob:255": f"payload of sub-tree luemu_test: {PAGE_CHANGED}",
    "node": "sub-tree luemu_test is not there",
    "tree": "vmalloc@1: 1024 pages cannot be restored",  # the first leaf has the largest blocks
    "tree:2": r"folio \d+ \(order \d+ at 0x[0-9a-f]+\) was not preserved",
    "treenode": "kernel 1 of the chain got no handover",
    "scratch": "kernel 1 of the chain got no handover|scratch area 0 is .*",
    "scratch:1": "kernel 1 of the chain got no handover|scratch area 2 is .*",
}


@pytest.mark.parametrize("what", BROKEN)
def test_what_is_broken_is_caught_and_named(what: str) -> None:
    result = run("old new", f"kho=on {REGIONS} break={what}")
    failed(result, BROKEN[what])
    old, new = result.kernels()
    done = re.search(r"^test_kho: break: .*$", old, re.MULTILINE)
    assert done, "the old kernel does not say what it broke"
    # the same item by number and the same page by address
    item = re.search(r"folio (\d+)|leaf (\d+)|vmalloc page (\d+)", done[0])
    page = re.search(r"(?<= at )0x[0-9a-f]+", done[0])
    if page and not what.startswith(("node", "tree", "scratch")):
        assert page[0] in new, f"{done[0]!r} is not what was found:\n{result.verdict}"
    if item and item[1]:
        assert f"folio {item[1]} " in result.verdict


@pytest.mark.parametrize("what", ["digest", "digest:1", "digest:3"])
def test_a_segment_with_another_digest_is_not_entered(what: str) -> None:
    result = run("old new", f"kho=on break={what}")
    assert result.stop.kind is StopKind.DEADLOCK
    assert len(result.kernels()) == 1, "the next kernel was entered"
    assert "digest" in result.verdict, result.text[-500:]


def test_a_kernel_of_the_middle_that_finds_an_error_ends_the_chain() -> None:
    chain = "/boot/new kho=on\n/boot/old kho=on break=corrupt4\n/boot/new kho=on\n/boot/old kho=on\n"
    result = run("old new old", "kho=on", extra=chain)
    failed(result, BROKEN["corrupt4"])
    assert len(result.kernels()) == 4, "the third update was the broken one, and the last"


def test_what_cannot_be_broken_is_an_error() -> None:
    failed(run("old new", "kho=on break=folio10:5"), "break=folio10: there are only 2 folios")
    failed(run("old new", "kho=on break=reserve_mem:7"), "break=reserve_mem: there is no region 7")
