"""Scratch: parameters, sizes, and what happens to it at the start."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.guest.kho_cases import EINVAL, ENOMEM, KERN, OLD_PAGES
from tests.guest.kho_host import MIB, PAGE, SCRATCH_ALIGN, Kernel, Ram


@pytest.mark.parametrize(
    "value",
    [
        "", "%", "x%", "-1%", "12345678901%", "99999999999", "1,2", "1,2,3,4", "0,0,0", "16M", "1M,2M,", ",,",
        "1M 2M,3M", "bad", "8M,0,0 ", "3000000000%",
    ],
)  # fmt: skip
def test_malformed_kho_scratch(library: Path, ram: Ram, value: str) -> None:
    with Kernel(library, ram) as kernel:
        assert kernel.param("kho_scratch", value) == -EINVAL
        assert kernel.log == ""


@pytest.mark.parametrize(
    ("value", "line"),
    [
        ("48M,0,0", "KHO: scratch areas: lowmem: 48MiB global: 0MiB pernode: 0MiB"),
        ("0,1G,0x100000", "KHO: scratch areas: lowmem: 0MiB global: 1024MiB pernode: 1MiB"),
        ("200%", "KHO: scratch scale is 200%"),
        ("0%", "KHO: scratch scale is 0%"),
    ],
)
def test_kho_scratch_is_confirmed(library: Path, ram: Ram, value: str, line: str) -> None:
    with Kernel(library, ram) as kernel:
        assert kernel.param("kho_scratch", value) == 0
        assert kernel.log == line + "\n"


@pytest.mark.parametrize(
    ("value", "on"),
    [
        ("on", True), ("y", True), ("1", True), ("Enable", True), ("T", True), ("off", False), ("n", False),
        ("0", False), ("Disable", False),
    ],
)  # fmt: skip
def test_spellings_of_kho(library: Path, ram: Ram, value: str, on: bool) -> None:
    with Kernel(library, ram) as kernel:
        assert kernel.param("kho", value) == 0
        assert bool(kernel.lib.kho_is_enabled()) == on


@pytest.mark.parametrize("value", ["", "oo", "x", "2"])
def test_other_spellings_of_kho_change_nothing(library: Path, ram: Ram, value: str) -> None:
    with Kernel(library, ram) as kernel:
        assert kernel.param("kho", "on") == 0
        assert kernel.param("kho", value) == -EINVAL
        assert kernel.lib.kho_is_enabled()


def boot_with(kernel: Kernel, scratch: str, kernel_size: int = 0) -> None:
    assert kernel.param("kho", "on") == 0
    if scratch:
        assert kernel.param("kho_scratch", scratch) == 0
    kernel.lib.host_memory_known()
    if kernel_size:
        assert kernel.lib.memblock_reserve_kern(2 * MIB, kernel_size) == 0
    kernel.lib.kho_memory_init()


def test_explicit_sizes_are_rounded_up(library: Path, ram: Ram) -> None:
    with Kernel(library, ram) as kernel:
        boot_with(kernel, "1,4M,5M")
        sizes = [size for _, size in kernel.scratch()]
        assert sizes == [4 * MIB, 4 * MIB, 8 * MIB]
        assert all(start % SCRATCH_ALIGN == 0 for start, _ in kernel.scratch())


def test_sizes_by_default_are_twice_what_the_boot_took(library: Path, ram: Ram) -> None:
    """low = 2r; nothing is above 4 GiB; the node's share counts the low area as well, and the struct pages of
    all memory, less than 2 MiB here: 2 (r + low) + p."""
    with Kernel(library, ram) as kernel:
        boot_with(kernel, "", 3 * MIB)
        assert [size for _, size in kernel.scratch()] == [8 * MIB, 0, 24 * MIB]


def test_scratch_above_4_gib(library: Path) -> None:
    with Ram((4 << 30) + 64 * MIB, [(MIB, 64 * MIB), (4 << 30, (4 << 30) + 64 * MIB)]) as ram:
        with Kernel(library, ram) as kernel:
            assert kernel.param("kho", "on") == 0
            assert kernel.param("kho_scratch", "100%") == 0
            kernel.lib.host_memory_known()
            assert kernel.lib.memblock_reserve_kern(2 * MIB, 4 * MIB) == 0
            assert kernel.lib.memblock_reserve_kern((4 << 30) + 60 * MIB, 2 * MIB) == 0
            kernel.lib.kho_memory_init()
            (low, low_size), (other, other_size), (_, node_size) = kernel.scratch()
            assert low + low_size <= 4 << 30 and low_size == 4 * MIB
            assert other >= 4 << 30 and other_size == 4 * MIB  # 2 MiB, rounded up
            assert node_size == 16 * MIB  # 4 + 2 + 4 + 4, and the array


def test_zero_per_cent_leaves_kho_on_without_scratch(library: Path, ram: Ram) -> None:
    with Kernel(library, ram) as kernel:
        kernel.boot(scratch="0%")
        assert [size for _, size in kernel.scratch()] == [0, 0, 0]
        assert kernel.lib.kho_is_enabled()


@pytest.mark.parametrize(
    ("scratch", "line"),
    [
        ("1G,0,0", "KHO: Failed to reserve lowmem scratch buffer"),
        ("4M,1G,0", "KHO: Failed to reserve global scratch buffer"),
        ("4M,4M,1G", "KHO: Failed to reserve nid 0 scratch buffer"),
        ("4M,0,15E", "KHO: Failed to reserve nid 0 scratch buffer"),
        ("1000%", "KHO: Failed to reserve lowmem scratch buffer"),
    ],
)
def test_scratch_that_does_not_fit_turns_kho_off(library: Path, ram: Ram, scratch: str, line: str) -> None:
    with Kernel(library, ram) as kernel:
        before: list[tuple[int, int, int]] = []
        boot_with(kernel, scratch, 8 * MIB)
        assert kernel.log.splitlines()[1:] == [
            line,
            "KHO: Failed to reserve scratch area, disabling kexec handover",
        ]
        assert not kernel.lib.kho_is_enabled()
        before = kernel.regions(reserved=True)
        assert before == [(0, MIB, 0), (2 * MIB, 10 * MIB, KERN)], "an area was not given back"


def test_scratch_is_given_to_the_allocator_as_cma(old: Kernel) -> None:
    lines = [line for line in old.log.splitlines() if line.startswith("pageblock")]
    start = old.scratch()[0][0]
    assert lines == [f"pageblock {(start + i * 2 * MIB) // PAGE:#x} type 2" for i in range(4)]
    assert old.lib.host_managed() == 8 * MIB // PAGE


@pytest.mark.parametrize("n", range(8))
def test_kho_init_without_memory_gives_scratch_back(library: Path, ram: Ram, n: int) -> None:
    """Tree root, FDT and five nodes, metadata: whichever is missing, KHO is off and nothing is lost."""
    with Kernel(library, ram, OLD_PAGES) as kernel:
        boot_with(kernel, "8M,0,0")
        kernel.lib.host_memory_given()
        kernel.lib.host_fail_after(n)
        assert kernel.lib.host_initcall(b"kho_init") == -ENOMEM
        kernel.lib.host_fail_after(-1)
        assert not kernel.lib.kho_is_enabled()
        assert kernel.lib.host_managed() == 8 * MIB // PAGE
        assert "type 2" not in kernel.log and "type 1" in kernel.log
        assert kernel.outstanding <= 5, "only pages of the tree may stay"
        assert kernel.lib.host_root_fdt() == 0
