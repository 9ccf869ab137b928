"""What must not be called ok. Each clause of the verdict is broken on purpose, on the project's own kernels.

A small update is stopped, memory or code of the guest is changed behind its back, and the run goes on: what
is wrong has to be found, by the host where the guest cannot see it, and named with invariant and page.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from emu.debug.invariants import OBSERVED as OBSERVED_IN_LINUX
from emu.debug.own import OBSERVED
from emu.machine import StopKind
from kernels.build import project_root
from kho.abi import RESTORE_MAGIC
from tests.run.stages import Outcome, Stage, stage

XOR_EAX_RET = "31c0c3"
CLI_HLT = "faf4"


def with_reason(outcome: Outcome, text: str) -> None:
    assert not outcome.ok
    assert any(text in reason for reason in outcome.reasons), outcome.reasons


# --- untouched ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("where", ["before_jump", "after_jump"])
def test_untouched(where: str, request: pytest.FixtureRequest) -> None:
    """What all other tests differ from."""
    outcome = request.getfixturevalue(where).go_on()
    assert (outcome.ok, outcome.reasons, outcome.violations) == (True, [], [])
    assert set(OBSERVED) <= set(outcome.checked)
    assert set(outcome.not_checked) <= {"INV-4", *(set(OBSERVED_IN_LINUX) - set(OBSERVED)), *LUO_ROWS}


LUO_ROWS = {f"INV-{n}" for n in (14, 15, 16, 19, 20, 21, 23, 24, 25)}
"""Rows of a handover that has LUO's state."""

# --- what the guest says ------------------------------------------------------------------------------


def test_the_guest_says_no(after_jump: Stage) -> None:
    """The host finds nothing; the guest's own verdict is enough."""

    def act(s: Stage) -> None:
        s.at("init:begin", lambda s: s.write(s.view.symbol("failure"), b"the test wants it\0"))

    outcome = after_jump.go_on(act)
    assert outcome.violations == []
    assert outcome.reasons == ["kernel 1 (new) says that it failed: the test wants it"]


def power_off_instead(s: Stage, function: str) -> None:
    """The function becomes machine_power_off."""
    target = s.view.symbol("machine_power_off")
    s.code(function, "48b8" + target.to_bytes(8, "little").hex() + "ffe0")  # movabs $target, %rax; jmp *%rax


def test_no_verdict(after_jump: Stage) -> None:
    """The text on the console would be as good as any: it is the probe that counts."""
    outcome = after_jump.go_on(lambda s: s.at("init:begin", lambda s: power_off_instead(s, "workload_run")))
    assert outcome.violations == [] and outcome.reasons == ["no kernel gave a verdict"]


def test_the_verdict_of_another_kernel(before_jump: Stage) -> None:
    """The old kernel is content with itself, and never updates."""
    s = stage("init:begin")
    outcome = s.go_on(lambda s: s.code("chain_line", XOR_EAX_RET))
    s.update.machine.close()
    assert "the verdict is that of kernel 0, not of the last one, 1" in outcome.reasons
    assert "the host saw 0 of 1 updates" in outcome.reasons


def test_the_guest_hangs(after_jump: Stage) -> None:
    outcome = after_jump.go_on(lambda s: s.at("init:begin", lambda s: s.code("workload_run", CLI_HLT)))
    assert outcome.document["end"]["kind"] == StopKind.DEADLOCK.value
    with_reason(outcome, "the run ended by deadlock in phase userspace")
    assert outcome.document["panic"] is None and "workload_run" in outcome.document["epitaph"]


def test_the_guest_panics(after_jump: Stage) -> None:
    """The kernel jumps to where nothing is: reason, registers, backtrace with lines, disassembly."""

    def act(s: Stage) -> None:
        # push %rbp; mov %rsp, %rbp; xor %eax, %eax; mov $-0x21524111, %rax; mov %al, (%rax)
        code = "554889e531c048c7c0efbeadde8800"
        s.at("init:begin", lambda s: s.code("check_free_lists", code))

    outcome = after_jump.go_on(act)
    panic = outcome.document["panic"]
    assert outcome.reasons[0] == f"kernel 1 (new) panicked: {panic['reason']}"
    assert (panic["release"], panic["phase"], panic["vector"]) == ("7.2.2-luemu", "workload", 14)
    assert (
        panic["rip"]["symbol"] == "check_free_lists+0xd" and panic["registers"]["cr2"] == 0xFFFFFFFFDEADBEEF
    )
    callers = [frame["symbol"].partition("+")[0] for frame in panic["backtrace"]]
    assert "workload_run" in callers or "check_accounts" in callers, callers
    assert any("workload.c:" in frame["line"] for frame in panic["backtrace"])
    marked = [line for line in panic["disassembly"] if line.startswith("=>")]
    assert len(marked) == 1 and "mov byte ptr [rax], al" in marked[0]
    text = outcome.document["epitaph"]
    assert panic["reason"] in text and "check_free_lists+0xd" in text and "called from:" in text


def test_the_purgatory_refuses(before_jump: Stage) -> None:
    """A byte of the next kernel changes on the way: its digest is wrong, and it is never entered."""

    def spoil(s: Stage) -> None:
        image = s.update.examined[-1].image
        assert image is not None
        s.flip(image.segments[0][0])

    def act(s: Stage) -> None:
        def copied(machine: Any, address: int) -> None:
            spoil(s)

        def jumps(s: Stage) -> None:
            image = s.update.examined[-1].image
            assert image is not None
            s.machine.probe(image.start, copied)

        s.at("kexec:jump", jumps)

    outcome = before_jump.go_on(act)
    with_reason(outcome, "the purgatory refused the next kernel: segment 0, 4096 bytes at 0x")
    with_reason(outcome, "update 1 was not examined at K")


def test_the_budget() -> None:
    s = stage("init:begin", max_instructions=20_000_000)
    outcome = s.go_on()
    s.update.machine.close()
    with_reason(outcome, "the run ended by budget in phase ")


# --- the handover -------------------------------------------------------------------------------------


def root_fdt(s: Stage) -> int:
    view = s.view
    return view.phys(view.member(view.symbol("kho_out"), "kho_out", "fdt"))


def test_no_root_fdt_at_the_jump(before_jump: Stage) -> None:
    outcome = before_jump.go_on(lambda s: s.flip(root_fdt(s)))
    assert "INV-6" in outcome.ids
    with_reason(outcome, "the handover of update 1 cannot be read at J: ")


def test_nothing_is_handed_over() -> None:
    s = stage("init:begin", cmdline="kho=off")
    outcome = s.go_on()
    s.update.machine.close()
    with_reason(outcome, "the handover of update 1 cannot be read at J")


def test_the_new_kernel_boots_cold(after_jump: Stage) -> None:
    """It finds nothing where setup_data should be, and says that it failed; the host says what is lost."""
    outcome = after_jump.go_on(lambda s: s.code("kho_populate", "c3"))
    with_reason(outcome, "kernel 1 (new) did not take the handover: it boots cold, everything is lost")


def test_the_test_is_not_run(after_jump: Stage) -> None:
    """The guest restores nothing and finds its accounts in order; the host misses every block."""
    outcome = after_jump.go_on(lambda s: s.code("test_kho_init", XOR_EAX_RET))
    with_reason(outcome, "of the blocks of kho_test")
    with_reason(outcome, "of the blocks of luemu_test")
    assert outcome.ids == set() and not any("says that it failed" in r for r in outcome.reasons)


def test_the_host_writes(after_jump: Stage) -> None:
    """Even where nothing is: between J and F nobody but the guest has business in its memory."""

    def act(s: Stage) -> None:
        s.machine.memory.write(0x9000, b"x", by="a test")

    outcome = after_jump.go_on(act)
    assert outcome.violations == []
    assert outcome.reasons == ["the host wrote to memory between J and F: 1 bytes at 0x9000 (a test)"]


def test_the_host_writes_later(after_jump: Stage) -> None:
    def write(s: Stage) -> None:
        s.machine.memory.write(0x9000, b"x", by="a test")

    assert after_jump.go_on(lambda s: s.at("init:begin", write)).ok


def test_a_checksum_is_wrong_at_the_jump(before_jump: Stage) -> None:
    """Contents that change before the jump: the host knows their sum."""

    def act(s: Stage) -> None:
        s.at("machine_kexec", lambda s: s.flip(first_saved_folio(s) + 100))

    outcome = before_jump.go_on(act)
    with_reason(outcome, "the folios of kho_test have not their checksum at J of update 1")


def first_saved_folio(s: Stage) -> int:
    from kho.handover import Handover

    handover = Handover.read(s.machine.memory, root_fdt(s), search=False)
    assert handover.kho_test is not None
    return int(handover.kho_test.phys[0])


# --- invariants ---------------------------------------------------------------------------------------


def head(s: Stage, which: str) -> int:
    """First page of a preserved block: of a folio that will be restored, or of the FDT, which never is."""
    return s.folio() if which == "folio" else int(s.handover.fdt_phys)


def set_private(s: Stage, phys: int, value: int) -> None:
    s.set_member(s.page(phys), "page", "private", value)


def spoil_scratch_array(s: Stage) -> None:
    """The list that came with kexec: the last area is one unit smaller."""
    phys = s.update.examined[-1].image.segments[0][0]  # type: ignore[union-attr]
    table = np.frombuffer(s.machine.memory.read(phys, 48).tobytes(), "<u8").copy()
    table[5] -= 4 << 20
    s.poke(phys, table.tobytes())


def reserve(s: Stage, change: Callable[[np.ndarray[Any, Any]], None]) -> None:
    """Change the region of memblock.reserved that holds the first folio: base, size, flags."""
    view = s.view
    at, region = view.symbol("memblock"), view.struct("memblock_region")
    first = view.member(at, "memblock", "reserved.regions")
    folio = s.folio()
    regions = view.regions("reserved")
    number = next(
        i for i, (low, high) in enumerate(zip(regions.base.tolist(), regions.end.tolist(), strict=True))
        if low <= folio < high
    )  # fmt: skip
    where = first + number * region.size
    words = np.frombuffer(view.read(where, 24), "<u8").copy()
    change(words)
    s.write(where, words.tobytes())


def clear_noinit(words: np.ndarray[Any, Any]) -> None:
    words[2] &= ~np.uint64(0x10)


def give_more_scratch(s: Stage) -> None:
    """All of memory passes for scratch, so that memblock allocates anywhere."""
    view = s.view
    at = view.symbol("memblock")
    first = view.member(at, "memblock", "memory.regions")
    region = view.struct("memblock_region")
    for i in range(view.member(at, "memblock", "memory.cnt")):
        where = first + i * region.size + region.offset("flags")
        s.write(where, (view.number(where, 4) | 0x40).to_bytes(4, "little"))


def restore_another(s: Stage, phys: int, order: int = 0) -> None:
    """The next folio that is restored is this one, which looks as if it were preserved."""
    set_private(s, phys, RESTORE_MAGIC << 32 | order)
    s.machine.cpus[0].set_registers(rdi=phys)


def spoil_metadata(s: Stage) -> None:
    """The count in the blob of kexec-metadata that this kernel hands over."""
    from kho.handover import Handover

    handover = Handover.read(s.machine.memory, root_fdt(s), search=False)
    subtree = handover.subtree("kexec-metadata")
    assert subtree is not None
    s.poke(subtree.phys + 69, (9).to_bytes(4, "little"))


def pageblock_of_scratch(s: Stage) -> None:
    view = s.view
    found = view.scratch_list()
    assert found is not None
    area = next(a for a in found[1] if a.size)
    s.write(view.variable("pageblock_type") + (area.phys >> 21), b"\0")


def managed_grows(s: Stage) -> None:
    zone = s.view.symbol("zones")
    s.set_member(zone, "zone", "managed_pages", s.view.member(zone, "zone", "managed_pages") + 1)


Case = tuple[str, str, Callable[[Stage], None], set[str], set[str]]
BEFORE: list[Case] = [
    # name, event of the old kernel, what is done there, what is broken, what may follow from it
    ("metadata_changes_after_the_point_of_no_return", "machine_kexec",
     lambda s: s.flip(root_fdt(s) + 4095), {"INV-49"}, set()),
    ("kexec_count_is_not_one_more", "kexec:reboot", spoil_metadata, {"INV-39"}, set()),
    ("pageblock_of_scratch_is_unmovable", "kexec:shutdown", pageblock_of_scratch, {"INV-3"}, set()),
]  # fmt: skip
AFTER: list[Case] = [
    # name, event of the new kernel, …
    ("folio_changes_before_K", "kernel:start", lambda s: s.flip(s.folio() + 77), {"INV-26"}, set()),
    ("folio_changes_before_F", "mm:free_all", lambda s: s.flip(s.folio() + 77), {"INV-26"}, set()),
    ("folio_changes_before_restore", "mm:free_all_done", lambda s: s.flip(s.folio() + 77), {"INV-26"}, set()),
    ("metadata_changes_before_K", "kernel:start",
     lambda s: s.flip(int(s.handover.fdt_phys) + 4095), {"INV-49"}, set()),
    ("free_page_changes_before_K", "kernel:start", lambda s: s.flip(s.free_page()), {"INV-30"}, set()),
    ("free_page_changes_before_it_is_free", "memblock_free_all", lambda s: s.flip(s.free_page()),
     {"INV-30"}, set()),
    ("metadata_changes_before_F", "memblock_free_all",
     lambda s: s.flip(int(s.handover.fdt_phys) + 4095), {"INV-49"}, set()),
    ("scratch_list_is_another", "kernel:start", spoil_scratch_array, {"INV-29"}, {"INV-35", "INV-33"}),
    ("command_line_outside_scratch", "boot:memblock_setup",
     lambda s: s.set_member(s.view.symbol("boot_info"), "boot_info", "cmdline", s.free_page()),
     {"INV-32"}, set()),
    ("boot_params_outside_scratch", "boot:memblock_setup",
     lambda s: s.set_member(s.view.symbol("boot_info"), "boot_info", "boot_params", s.free_page()),
     {"INV-32"}, set()),
    ("allocation_outside_scratch", "mm_core_init", give_more_scratch,
     {"INV-33"}, {"INV-26", "INV-30", "INV-49"}),
    ("preserved_block_without_noinit", "memblock_free_all",
     lambda s: reserve(s, clear_noinit), {"INV-34"}, set()),
    ("scratch_only_is_off_too_early", "mm_core_init",
     lambda s: s.set_member(s.view.symbol("memblock"), "memblock", "scratch_only", 0),
     {"INV-36"}, {"INV-26", "INV-30", "INV-33", "INV-49"}),
    ("scratch_only_while_memory_is_freed", "kernel:start",
     lambda s: s.code("memblock_clear_kho_scratch_only", "c3"), {"INV-36"}, set()),
    ("scratch_only_again", "init:begin",
     lambda s: s.set_member(s.view.symbol("memblock"), "memblock", "scratch_only", 1), {"INV-36"}, set()),
    ("struct_page_without_magic", "mm:free_all",
     lambda s: set_private(s, head(s, "fdt"), 0), {"INV-35"}, {"INV-45"}),
    ("struct_page_with_another_order", "mm:free_all",
     lambda s: set_private(s, head(s, "fdt"), RESTORE_MAGIC << 32 | 1), {"INV-35"}, set()),
    ("preserved_page_in_use", "mm:free_all",
     lambda s: s.set_member(s.page(head(s, "fdt")), "page", "refcount", 1), {"INV-35"}, set()),
    ("preserved_page_is_reserved", "mm:free_all",
     lambda s: s.set_member(s.page(head(s, "fdt")), "page", "flags", 2), {"INV-35"}, set()),
    ("magic_where_nothing_is_preserved", "mm:free_all",
     lambda s: set_private(s, head(s, "fdt") + 4096 * neighbour(s, "fdt"), RESTORE_MAGIC << 32),
     {"INV-35"}, {"INV-45"}),
    ("block_with_another_order_is_restored", "mm:free_all_done",
     lambda s: set_private(s, s.folio(), RESTORE_MAGIC << 32 | 0xA), {"INV-37"}, {"INV-38", "INV-45"}),
    ("magic_appears_later", "init:begin",
     lambda s: set_private(s, head(s, "fdt") + 4096 * neighbour(s, "fdt"), RESTORE_MAGIC << 32),
     {"INV-45"}, set()),
    ("block_of_the_next_kernels_is_lost", "init:begin",
     lambda s: set_private(s, head(s, "fdt"), 0), {"INV-45"}, set()),
    ("restored_block_keeps_its_magic", "init:begin",
     lambda s: set_private(s, s.folio(), RESTORE_MAGIC << 32), {"INV-37"}, set()),
    ("managed_memory_grows_too_much", "mm:free_all_done", managed_grows, {"INV-38"}, set()),
    ("next_kexec_count_is_not_one_more", "init:begin", spoil_metadata, {"INV-39"}, set()),
    ("pageblock_of_scratch_is_unmovable_later", "kernel:verdict", pageblock_of_scratch, {"INV-3"}, set()),
]  # fmt: skip


def neighbour(s: Stage, which: str) -> int:
    """How many pages behind a preserved one the first is that is not."""
    phys = head(s, which)
    return next(
        n for n in range(1, 64)
        if not s.handover.preserved.touched(np.array([phys + 4096 * n], np.uint64))[0]
    )  # fmt: skip


def check_broken(outcome: Outcome, broken: set[str], follows: set[str]) -> None:
    assert not outcome.ok
    assert broken <= outcome.ids <= broken | follows, outcome.violations
    assert any("violation(s); the first: INV-" in reason for reason in outcome.reasons)
    assert all(phys is not None for id, _, _, phys in outcome.violations if id in broken - {"INV-38"})


@pytest.mark.parametrize("case", BEFORE, ids=[name for name, *_ in BEFORE])
def test_broken_before_the_jump(before_jump: Stage, case: Case) -> None:
    _, event, action, broken, follows = case
    started = event == "kexec:reboot"
    outcome = before_jump.go_on(action if started else lambda s: s.at(event, action))
    check_broken(outcome, broken, follows)


@pytest.mark.parametrize("case", AFTER, ids=[name for name, *_ in AFTER])
def test_broken_after_the_jump(after_jump: Stage, case: Case) -> None:
    _, event, action, broken, follows = case
    started = event == "kernel:start"
    outcome = after_jump.go_on(action if started else lambda s: s.at(event, action))
    check_broken(outcome, broken, follows)


def test_a_block_is_restored_again(after_jump: Stage) -> None:
    """The guest is made to believe that a folio, restored and freed already, is preserved."""
    first, order = after_jump.folio(), after_jump.order()

    def act(s: Stage) -> None:
        seen: list[int] = []

        def restores(s: Stage) -> None:
            seen.append(s.machine.registers()["rdi"])
            if first in seen[:-1] and seen[-1] != first:
                restore_another(s, first, order)

        s.at("kho_restore_folio", restores, count=0)

    outcome = after_jump.go_on(act)
    assert ("INV-37", "run", "a block is restored again", first) in outcome.violations


def test_a_block_is_restored_that_was_not_preserved(after_jump: Stage) -> None:
    page = after_jump.free_page()
    outcome = after_jump.go_on(lambda s: s.at("kho_restore_folio", lambda s: restore_another(s, page)))
    assert ("INV-37", "run", "a block is restored that was not preserved", page) in outcome.violations


def table() -> str:
    """The rows that are observed, and the cases above that break them, as docs/invariants.md has it."""
    cases: dict[str, list[str]] = {id: [] for id in OBSERVED}
    for name, _, _, broken, _ in [*BEFORE, *AFTER]:
        for id in broken & cases.keys():
            cases[id].append(name)
    lines = [f"| {id} | {', '.join(f'*{name}*' for name in names)} |" for id, names in cases.items()]
    return "\n".join(["| id | broken by |", "|---|---|", *lines])


def test_the_table_in_the_docs() -> None:
    text = (project_root() / "docs" / "invariants.md").read_text()
    assert table() in text, "python -m tests.run.test_verdict prints it"


def test_every_observed_row_is_broken_here() -> None:
    rows = set().union(*(broken for _, _, _, broken, _ in [*BEFORE, *AFTER]))
    assert set(OBSERVED) <= rows


if __name__ == "__main__":
    print(table())
