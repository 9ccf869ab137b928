"""Debian's static busybox on the console of our kernels, and Debian's dynamically linked kexec: programs that were
not made here, by somebody who types."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import kernels
from emu.debug.update import Options
from tests.oracles import require
from tests.userspace.console import LIMIT, Console

MEMORY = 256 << 20
RELEASES = ["old", "new"]


def options(release: str, **changes: object) -> Options:
    files = [(require("busybox"), "/bin/sh")]
    o = Options(
        old=release, new=release, interactive=True, updates=0, files=files, memory=MEMORY, max_instructions=LIMIT
    )
    for name, value in changes.items():
        setattr(o, name, value)
    return o


@pytest.fixture(scope="module", params=RELEASES)
def shell(request: pytest.FixtureRequest) -> Iterator[Console]:
    """A shell at its prompt."""
    console = Console.open(options(request.param))
    console.wait("BusyBox")
    console.wait("/ # ")
    yield console
    console.close()


@pytest.mark.parametrize(
    ("line", "answer"),
    [
        ("echo hello $((6*7))", "hello 42\n"),
        ("for i in 1 2 3; do echo $i | cat; done", "1\n2\n3\n"),
        ("seq 5 | sort -r | tr '\\n' ' '; echo", "5 4 3 2 1 \n"),
        ("mkdir /tmp/a && cd /tmp/a && echo x > f && cat f; cd /; rm -r /tmp/a; ls /tmp", "x\n"),
        ("cat /nosuch; echo $?", "cat: can't open '/nosuch': No such file or directory\n1\n"),
        ("sh -c 'kill -9 $$'; echo $?", "Killed\n137\n"),
        ("false; echo $?; true; echo $?", "1\n0\n"),
        ("id -u; pwd", "0\n/\n"),
        ("test -c /dev/liveupdate && echo yes", "yes\n"),
        ("head -c 5000 /dev/zero | wc -c", "5000\n"),
        ("echo one > /tmp/f; echo two >> /tmp/f; cat < /tmp/f | while read x; do echo =$x; done", "=one\n=two\n"),
        ("ln -s /tmp/f /tmp/l; readlink /tmp/l; cat /tmp/l | head -n 1; rm /tmp/l", "/tmp/f\none\n"),
        ("find /tmp -type f", "/tmp/f\n"),
        ("sed s/one/three/ /tmp/f | grep -c three", "1\n"),
        ("x=$(echo inner); echo \"<$x>\"; unset x", "<inner>\n"),
        ("(exit 3); echo $?", "3\n"),
        ("sleep 0.1; echo slept", "slept\n"),
        ("cat /proc/self/comm", "cat\n"),
        ("stty | head -n 1", "speed 115200 baud;\n"),
        ("nosuchcommand; echo $?", "sh: nosuchcommand: not found\n127\n"),
        ("ulimit -n", "1024\n"),
    ],
    ids=lambda value: value[:30].replace("/", "_") if isinstance(value, str) else "",
)  # fmt: skip
def test_a_command_answers_as_everywhere(shell: Console, line: str, answer: str) -> None:
    assert shell.say(line) == answer


def test_who_runs(shell: Console) -> None:
    lines = shell.say("ps -o pid,comm").splitlines()
    assert lines[0].split() == ["PID", "COMMAND"]
    assert [line.split()[1] for line in lines[1:]][:2] == ["init", "sh"]


def test_free_space_is_no_more_than_there_is(shell: Console) -> None:
    for line in shell.say("df -k / /dev /tmp").splitlines()[1:]:
        total, used, available = (int(n) for n in line.split()[1:4])
        assert 0 <= used <= total and 0 <= available <= total, line


def test_ctrl_c_ends_what_runs_in_the_foreground(shell: Console) -> None:
    shell.type("sleep 1000; echo not reached")
    shell.wait("not reached\n")  # the echo of what was typed
    shell.update.machine.send(b"\x03")
    assert shell.wait("/ # ").startswith("^C")
    assert shell.say("echo $?") == "130\n"


def test_a_job_is_stopped_and_continued(shell: Console) -> None:
    shell.type("sleep 2")
    shell.wait("sleep 2\n")
    shell.update.machine.send(b"\x1a")
    assert "Stopped" in shell.wait("/ # ")
    assert "Stopped" in shell.say("jobs")
    assert shell.say("fg") == "sleep 2\n"
    assert shell.say("jobs") == ""


def test_lines_are_edited(shell: Console) -> None:
    """Backspace, and the line before by its arrow key."""
    shell.update.machine.send(b"echo helpp\x7fo\r")
    assert shell.wait("/ # ").splitlines()[-2] == "helpo"
    shell.update.machine.send(b"\x1b[A\r")
    assert shell.wait("/ # ").splitlines()[-2] == "helpo"


def test_the_end_of_input_ends_the_session() -> None:
    console = Console.open(options("old"))
    console.wait("/ # ")
    console.update.machine.send(b"\x04")
    result = console.finish()
    assert (result.ok, result.reasons) == (True, [])
    console.close()


@pytest.mark.parametrize(("old", "new"), [("old", "new"), ("new", "old"), ("new", "new")])
def test_kexec_from_kexec_tools_performs_the_update(old: str, new: str) -> None:
    """Typed at the prompt: a dynamic program, with its loader and its libraries. The cache is none the worse."""
    console = Console.open(
        options(
            old, new=new, updates=1, before=["cache start 4194304"], after=["cache check"], programs=["cache"],
            files=[(require("busybox"), "/bin/sh"), (require("kexec"), "/sbin/kexec"),
                   (kernels.binary(f"{new}.bzImage"), "/kernel")],
        )
    )  # fmt: skip
    console.wait("/ # ")
    assert console.say("cat /sys/kernel/kexec_loaded") == "0\n"
    command = "kexec -s -l /kernel --initrd=/sys/firmware/initrd --reuse-cmdline"
    assert console.say(f"{command} --append=luemu.generation=1") == ""
    assert console.say("cat /sys/kernel/kexec_loaded") == "1\n"
    console.type("kexec -e")
    console.wait("KHO: found kexec handover data.")
    assert re.search(r"KHO: exec from: [12]\.0\.0-luemu \(count 1\)", console.wait("count 1)"))
    console.wait("/ # ")
    assert console.say("cat /proc/cmdline").endswith("luemu.generation=1\n")
    console.type("exit")
    result = console.finish()
    assert (result.ok, result.reasons, result.violations) == (True, [], [])
    assert result.cache is not None and result.cache["lost"] == result.cache["corrupted"] == 0
    assert [(p["argv"][0], p["status"], p["replaced"]) for p in result.programs] == [
        ("cache", 0, False), ("/bin/sh", None, True), ("cache", 0, False), ("/bin/sh", 0, False),
    ]  # fmt: skip
    console.close()


def test_kexec_without_its_libraries() -> None:
    """`--no-libs`: the loader that it names is not there."""
    o = options("new", updates=0, libraries=False)
    o.files = [*o.files, (require("kexec"), "/sbin/kexec")]
    console = Console.open(o)
    console.wait("/ # ")
    assert console.say("kexec --version") == "sh: kexec: not found\n"
    console.close()


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("kexec -e", "Nothing has been loaded!"),
        ("kexec -s -l /nosuch", "Cannot open"),
        ("kexec -s -l /bin/sh", "kexec_file_load failed"),
    ],
)
def test_kexec_that_fails(command: str, message: str) -> None:
    o = options("old")
    o.files = [*o.files, (require("kexec"), "/sbin/kexec")]
    console = Console.open(o)
    console.wait("/ # ")
    assert message in console.say(command)
    assert console.say("cat /sys/kernel/kexec_loaded") == "0\n"
    console.close()


def test_files_of_the_host(tmp_path: Path) -> None:
    (tmp_path / "data").write_bytes(b"from the host\n")
    o = options("old")
    o.files = [*o.files, (tmp_path / "data", "/etc/data")]
    console = Console.open(o)
    console.wait("/ # ")
    assert console.say("cat /etc/data") == "from the host\n"
    console.close()
