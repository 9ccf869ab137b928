"""The first program, faults of programs, and programs that mean the kernel harm."""

from __future__ import annotations

import re

import pytest

from emu.initramfs import Initramfs
from tests.userspace.programs import INSTRUCTIONS_LONG, RELEASES, boot, on_kernel, program


def alone(release: str, cmdline: str, init: bytes | None = None, where: str = "/init") -> list[str]:
    """What a kernel prints whose first program is exits.c, or other contents."""
    fs = Initramfs()
    fs.add_dir("/dev")
    fs.add_device("/dev/console", 5, 1)
    fs.add_file(where, program("exits").read_bytes() if init is None else init, 0o755)
    return boot(release, fs.build(), cmdline)


def panic_of(console: list[str]) -> str:
    found = [line for line in console if line.startswith("Kernel panic: ")]
    assert found, "no panic:\n" + "\n".join(console[-30:])
    return found[0].removeprefix("Kernel panic: ")


@pytest.mark.parametrize("release", RELEASES)
@pytest.mark.parametrize(
    ("arguments", "code"),
    [("7", 0x700), ("0", 0), ("fault", 11), ("threads", 0x900)],
)
def test_the_end_of_init_is_a_panic(arguments: str, code: int, release: str) -> None:
    console = alone(release, f"loglevel=4 -- {arguments}")
    assert panic_of(console) == f"Attempted to kill init! exitcode={code:#010x}"


def test_init_is_not_killed_by_signals() -> None:
    console = alone("old", "loglevel=4 -- kill")
    assert "still there" in console, "a signal without a handler did something to process 1"
    assert panic_of(console).startswith("Attempted to kill init! exitcode=0x00000000")


def test_arguments_of_init() -> None:
    console = alone("old", "loglevel=4 other=x -- 5  two three")
    assert [line for line in console if line.startswith("argument")] == [
        "argument 1 '5'", "argument 2 'two'", "argument 3 'three'",
    ]  # fmt: skip


def test_init_by_name() -> None:
    assert "exitcode=0x00000700" in panic_of(alone("old", "init=/other", where="/other"))
    assert "exitcode=0x00000700" in panic_of(alone("old", "rdinit=/other init=/nothing", where="/other"))
    assert "exitcode=0x00000700" in panic_of(alone("old", "", where="/sbin/init"))


def test_requested_init_is_missing() -> None:
    assert panic_of(alone("old", "init=/nothing", where="/x")) == "Requested init /nothing failed (error -2)."


def test_init_that_is_no_program() -> None:
    console = alone("old", "loglevel=4", b"no program\n")
    assert "Failed to execute /init (error -8)" in console
    assert panic_of(console).startswith("No working init found.")


@pytest.mark.parametrize("release", RELEASES)
def test_faults_are_logged(release: str) -> None:
    """In the words of Linux, once, with the place in the file."""
    fs = Initramfs()
    fs.add_standard(program("runner"))
    fs.add_file("/t/exits", program("exits").read_bytes(), 0o755)
    fs.add_file("/tests", b"/t/exits fault\n")
    console = boot(release, fs.build(), "")
    lines = [line for line in console if "segfault" in line]
    assert len(lines) == 1, f"one line for one fault, not {lines}"
    assert re.fullmatch(
        r"exits\[\d+\]: segfault at 1234 ip [0-9a-f]{16} sp 00007f[0-9a-f]{10} error 6 "
        r"in exits\[[0-9a-f]+\+[0-9a-f]+\]",
        lines[0],
    )


ENDS = {
    "step over a system call": "killed by 5",
    "the same, handled": "exited 0",
    "mov ss, system call": "killed by 5",
    "flags": "exited 0",
    "no stack": "killed by 11",
    "segments": "exited 0",
    "32-bit code": "exited 0",
    "random code": "exited 0",
    "jumps": "exited 0",
    "system call at the end": "killed by 11",
    "random frames": "exited 0",
    "spoiled frames": "exited 0",
    "endless handlers": "killed by 11",
    "endless faults": "killed by 11",
    "handler in the kernel": "killed by 11",
    "no restorer": "killed by 11",
    "storm": "exited 0",
    "recursion": "killed by 11",
    "all memory": "killed by 9",
    "all memory, and others": "exited 0",
    "fork bomb": "killed by 9",
    "thread bomb": "exited 0",
    "timer storm": "exited 0",
    "limited processes": "exited 4",
    "exec itself": "exited 5",
    "vfork, parent killed": "killed by 9",
}
"""What hostile.c tries, and how it ends."""


def check_attempts(release: str, arguments: str) -> None:
    (ran,) = on_kernel(release, f"hostile {arguments}", instructions=INSTRUCTIONS_LONG)
    said = [line for line in ran.lines if not line.startswith("Out of memory: Killed process")]
    assert said == [f"{what}: {end}" for what, end in ENDS.items()], "kernels/user/tests/hostile.c"
    assert ran.end == "exited 0"


def test_hostile_programs() -> None:
    check_attempts("old", "once")


def check_stress(release: str, rounds: int) -> None:
    (ran,) = on_kernel(release, f"stress {rounds}", instructions=INSTRUCTIONS_LONG)
    assert ran.lines == ["failures 0, counter 0, handled 1, children left 0"]
    assert ran.end == "exited 0"


@pytest.mark.parametrize("release", RELEASES)
def test_everything_at_once(release: str) -> None:
    check_stress(release, 40)


@pytest.mark.campaign
@pytest.mark.parametrize("release", RELEASES)
def test_everything_at_once_for_long(release: str) -> None:
    check_stress(release, 1500)


@pytest.mark.campaign
@pytest.mark.parametrize("release", RELEASES)
def test_hostile_programs_leave_nothing_behind(release: str) -> None:
    """The second round needs no more memory than the first."""
    check_attempts(release, "")


@pytest.mark.campaign
@pytest.mark.parametrize("release", RELEASES)
@pytest.mark.parametrize("first", range(0, 100, 10))
def test_random_system_calls(first: int, release: str) -> None:
    (ran,) = on_kernel(release, f"hostile random {first} 10", instructions=INSTRUCTIONS_LONG)
    assert ran.lines[-1] == "random calls survived"
