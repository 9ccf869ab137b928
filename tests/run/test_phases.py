"""Phases while other programs run: a phase is that of the task that began it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.linux.build import required
from tests.run.stages import Stage, stage
from tests.userspace.binaries import binary

LIMIT = 3_000_000_000
ONE = "S:one F:0x1:4K:all"


def booted(*events: str, **changes: Any) -> Stage:
    """An update with programs."""
    programs: dict[str, Any] = {
        "before": [f"lu s1 {ONE}"], "after": [f"lu s2 {ONE}"], "cmdline": "kho_scratch=48M,0,0",
        "files": [(binary(name), f"/bin/{name}") for name in ("lu", "spin")],
        "max_instructions": LIMIT,
    }  # fmt: skip
    return stage(*events, **(programs | changes))


@pytest.fixture(scope="module")
def preserving() -> Iterator[Stage]:
    """A program preserves its first file."""
    found = booted("luo:preserve_file")
    yield found
    found.update.machine.close()


def test_another_program_does_not_end_the_load() -> None:
    """It runs all the time; the old kernel reads two files and computes a digest meanwhile."""
    s = booted("syscall_kexec_file_load", before=["spin", f"lu s1 {ONE}"])
    update, seen = s.update, list[str]()
    assert update.observer is not None
    s.at("sha256_final", lambda s: seen.append(update.observer.phase))  # type: ignore[union-attr]
    s.at("kexec:file_load", lambda s: seen.append(update.observer.phase))  # type: ignore[union-attr]
    result = update.run()
    update.machine.close()
    assert result.ok, result.reasons
    assert len(seen) > 1 and set(seen) == {"load"}
    check_taken_up_again([p.id for p in result.phases if p.generation == 0])
    assert [p.id for p in result.phases].count("P21") >= 1


def check_taken_up_again(ids: list[str]) -> None:
    """The load was interrupted by user mode, and nothing else, and went on."""
    first, last = ids.index("P7"), len(ids) - 1 - ids[::-1].index("P7")
    assert last > first, "nobody else ran: this shows nothing"
    assert set(ids[first:last]) == {"P7", "userspace"}


def test_the_load_begins_with_the_call(preserving: Stage) -> None:
    """Reading the files is part of it."""

    def act(s: Stage) -> None:
        observer, seen = s.update.observer, list[str]()
        assert observer is not None
        s.at("kernel_read_file", lambda s: seen.append(observer.phase), count=0)
        s.run_to("kexec:reboot")
        assert seen[-2:] == ["load", "load"], "the kernel and its initramfs"

    assert preserving.go_on(act).ok


@pytest.mark.linux
def test_another_program_does_not_end_the_load_of_linux() -> None:
    build = required()
    entry = "__x64_sys_kexec_file_load"
    s = booted(entry, old=build.bzimage, new=build.bzimage, before=["spin", f"lu s1 {ONE}"])
    assert s.update.observer is not None
    ended = len(s.update.observer.records)
    s.run_to("kernel_kexec")
    s.update.machine.close()
    check_taken_up_again([p.id for p in s.update.observer.records[ended - 1 :]])
