"""The serial console, typed at: the terminal itself, and a session at a shell that was not made here."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from emu.machine import StopKind
from tests.userspace.console import Console
from tests.userspace.programs import RELEASES


@pytest.fixture
def console() -> Iterator[Console]:
    with Console("new") as c:
        yield c


@pytest.mark.parametrize("release", RELEASES)
def test_a_session(release: str) -> None:
    """What somebody does at a shell. Each command's lines are known beforehand."""
    with Console(release) as c:
        assert c.run("echo hello") == ["hello"]
        assert c.run("tty; id -u; pwd") == ["/dev/ttyS0", "0", "/"]
        assert c.run("seq 20 | grep 1 | sort -rn | head -3 | tr '\\n' ' '; echo") == ["19 18 17 "]
        assert c.run("cd /tmp; for i in a b c; do echo $i > $i.txt; done; cat *.txt; ls") == [
            "a", "b", "c", "a.txt  b.txt  c.txt",
        ]  # fmt: skip
        assert c.run("cat < a.txt >> b.txt 2>/dev/null; cat b.txt; wc -l < b.txt") == ["b", "a", "2"]
        assert c.run("cat nothing; echo $?") == ["cat: can't open 'nothing': No such file or directory", "1"]
        assert c.run("cat nothing 2>&1 | wc -l; false | true; echo $?") == ["1", "0"]
        c.type("cat <<END\rone $((1 + 2))\rtwo $(echo three)\rEND\r")
        lines = c.prompt()
        assert [line for line in lines if line.startswith(("one 3", "two three"))] == ["one 3", "two three"]
        assert c.run('f() { echo "f $1"; return 3; }; f x; echo $?') == ["f x", "3"]
        assert c.run("ln -s a.txt s; readlink s; rm s; mv a.txt z; ls") == ["a.txt", "b.txt  c.txt  z"]
        assert c.run("mkdir -p d/e; touch d/e/f; find d; rm -r d; ls -d d") == [
            "d", "d/e", "d/e/f", "ls: d: No such file or directory",
        ]  # fmt: skip
        assert c.run("mkdir m; mount -t tmpfs none m; touch m/x; ls m; umount m; ls m; rmdir m") == ["x"]
        assert "through" in c.run("mkfifo p; echo through > p & cat p; wait; rm p")
        assert c.run("dd if=/dev/zero bs=1k count=4 2>/dev/null | md5sum | cut -c1-8") == ["620f0b67"]
        c.leave()


def test_jobs(console: Console) -> None:
    c = console
    c.type("sleep 1000\r")
    c.wait(0.5)
    c.type("\x1a")
    assert "[1]+  Stopped" in c.expect("@@ ")
    assert c.run("jobs") == ["[1]+  Stopped                    sleep 1000"]
    assert c.run("bg") == ["[1] sleep 1000"]
    assert c.run("jobs") == ["[1]+  Running                    sleep 1000"]
    c.type("fg\r")
    c.expect("fg\r\nsleep 1000\r\n")
    c.wait(0.2)
    c.type("\x03")
    assert c.prompt() == ["^C"]
    assert c.run("echo $?; jobs") == ["130"]
    c.run("sleep 100 & sleep 200 &")
    assert len(c.run("jobs")) == 2
    assert c.run("kill %1 %2; wait; jobs; echo $?")[-1] == "0"
    c.leave()


@pytest.mark.parametrize(("key", "shown", "status"), [("\x03", "^C", "130"), ("\x1c", "^\\Quit", "131")])
def test_keys_kill_the_foreground(console: Console, key: str, shown: str, status: str) -> None:
    console.type("cat\r")
    console.wait(0.3)
    console.type(key)
    assert console.prompt()[1:] == [shown]
    assert console.run("echo $?") == [status]


def test_a_signal_key_does_not_reach_the_background(console: Console) -> None:
    console.run("sleep 50 &")
    console.type("sleep 1000\r")
    console.wait(0.3)
    console.type("\x03")
    console.prompt()
    assert console.run("jobs") == ["[1]+  Running                    sleep 50"]


def test_end_of_file(console: Console) -> None:
    console.type("cat > /tmp/f; echo left\r")
    console.wait(0.3)
    console.type("one\rtwo\x04\x04")
    assert console.prompt()[-1] == "twoleft"
    assert console.run("cat /tmp/f; echo; wc -c < /tmp/f") == ["one", "two", "7"]
    console.type("\x04")
    assert console.wait(20).kind is StopKind.POWER_OFF


@pytest.mark.parametrize(
    ("keys", "line"),
    [
        ("abc\x7f\x7fx\r", "ax"),
        ("one two\x17three\r", "one three"),
        ("gone\x15kept\r", "kept"),
        ("tab\t\x7f!\r", "tab!"),
        ("literal \x16\x03\r", "literal \x03"),
        ("again\x12!\r", "again!"),
    ],
)
def test_editing_a_line(console: Console, keys: str, line: str) -> None:
    """In the kernel's line editor: the shell's own is not involved while cat reads."""
    console.type("cat > /tmp/f\r")
    console.wait(0.3)
    console.type(keys + "\x04")
    console.prompt()
    shown = console.run("hexdump -ve '1/1 \"%02x\"' /tmp/f; echo")
    assert shown == [(line + "\n").encode().hex()]


def test_the_background_may_not_read(console: Console) -> None:
    console.type("cat &\r")
    console.prompt()
    console.wait(0.5)
    assert "Stopped (tty input)" in " ".join(console.run("jobs"))
    assert console.run("kill -9 %1; wait; echo gone")[-1] == "gone"


def test_flow_control(console: Console) -> None:
    console.run("stty ixon")
    console.type("sleep 1; seq 1000 1200\r")
    console.wait(0.5)
    console.type("\x13")
    console.wait(3)
    assert "1000\r" not in console.text(), "output went on although it was stopped"
    console.type("\x11")
    assert console.prompt()[1:] == [str(n) for n in range(1000, 1201)]


def test_a_paste_is_not_lost(console: Console) -> None:
    """Much more than any buffer holds, at once; whoever sends is held up."""
    text = "".join(f"line {n} " + "x" * (n % 70) + "\r" for n in range(3000))
    console.type("stty -echo; cat > /tmp/f; stty echo\r")
    console.wait(0.3)
    console.type(text + "\x04")
    console.prompt()
    wanted = text.replace("\r", "\n")
    assert console.run("wc -c < /tmp/f; tail -1 /tmp/f") == [str(len(wanted)), wanted.splitlines()[-1]]


def test_kernel_messages_do_not_tear_lines(console: Console) -> None:
    lines = console.run(
        'for i in 1 2 3; do echo "line $i"; echo "<3>message $i" > /dev/kmsg; printf \'half\'; '
        "echo '<3>between' > /dev/kmsg; echo ' rest'; done; seq 500 | tail -1"
    )
    wanted = []
    for i in range(1, 4):
        wanted += [f"line {i}", f"message {i}", "half", "between", " rest"]
    assert lines == [*wanted, "500"]


def test_output_is_out_before_the_machine_is_off(console: Console) -> None:
    """Nobody waits for it: the kernel does."""
    console.type("seq 10000 10500; poweroff -f\r")
    stop = console.wait(30)
    assert stop.kind is StopKind.POWER_OFF
    assert "10499\r\n10500\r\n" in console.text()


def test_a_stopped_terminal_does_not_hold_up_the_end(console: Console) -> None:
    console.run("(sleep 2; poweroff -f) &")
    console.type("sleep 1; echo written; sleep 100\r")
    console.wait(0.5)
    console.type("\x13")
    stop = console.wait(30)
    assert stop.kind is StopKind.POWER_OFF
    assert "written\r\n" not in console.text(), "the terminal was stopped"


def test_the_second_port_passes_every_byte(console: Console) -> None:
    data = bytes(range(256)) * 20
    console.run("stty -F /dev/ttyS1 raw -echo; head -c 5120 < /dev/ttyS1 > /tmp/in &")
    before = len(console.machine.serial[1])
    console.machine.send(data, port=1)
    console.wait(1)
    console.run("cat /tmp/in > /dev/ttyS1; sleep 1")
    assert bytes(console.machine.serial[1])[before:] == data


HANGUP = b"""#!/bin/sh
exec < /dev/ttyS1 > /dev/ttyS1
cut -d' ' -f7 /proc/self/stat > /tmp/hup
(
    trap 'echo hup >> /tmp/hup' HUP
    sleep 2
    read line || echo "end of file" >> /tmp/hup
    echo x || echo "can not write" >> /tmp/hup
    (: < /dev/tty) || echo "no terminal" >> /tmp/hup
    cut -d' ' -f7 /proc/self/stat >> /tmp/hup
) 2> /tmp/errors &
sleep 1
"""


def test_a_terminal_is_hung_up_when_its_leader_ends() -> None:
    with Console("new", files={"/hangup": HANGUP}) as console:
        console.run("setsid /hangup; sleep 3")
        wanted = [str(4 << 8 | 65), "hup", "end of file", "can not write", "no terminal", "0"]
        assert console.run("cat /tmp/hup") == wanted
        assert console.run("echo still > /dev/ttyS1; echo $?") == ["0"]


def test_ps_shows_the_terminal(console: Console) -> None:
    fields = console.run("cut -d' ' -f7 /proc/self/stat; cut -d' ' -f7 /proc/1/stat")
    assert fields == [str(4 << 8 | 64), "0"]


def test_the_same_session_shows_the_same_bytes() -> None:
    shown = []
    for _ in range(2):
        with Console("new") as c:
            c.run("ls -l /dev; ps; cat /proc/meminfo; head -c 16 /dev/urandom | hexdump -C")
            shown.append((c.machine.console, c.machine.instructions))
    assert shown[0] == shown[1]
