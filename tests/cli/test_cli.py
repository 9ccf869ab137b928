"""The command line as a user meets it: in a process of its own, with pipes and terminals around it."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from emu.cli import main
from emu.machine import Machine
from tests.cli.guests import endless_loop
from tests.luo.images import RECORDED

ROOT = Path(__file__).resolve().parent.parent.parent
IMAGE = RECORDED / "c1-1x4k" / "second-kernel-kho_populate.pruned.raw.zst"
COMMANDS = ("run", "inspect", "check", "selftest")


@dataclass(frozen=True)
class Done:
    status: int
    out: str
    err: str


def environment(**changes: str) -> dict[str, str]:
    keep = {k: v for k, v in os.environ.items() if k not in ("NO_COLOR", "TERM", "COLUMNS")}
    return keep | {"TERM": "xterm"} | changes


def luemu(*words: str | Path, **changes: str) -> Done:
    done = subprocess.run(
        [sys.executable, "-m", "emu", *words],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        check=False,
        cwd=ROOT,
        env=environment(**changes),
        timeout=120,
    )
    return Done(done.returncode, done.stdout.decode(), done.stderr.decode())


Call = Callable[..., Done]


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Call:
    """The same in this process, which is quicker."""

    def called(*words: str | Path) -> Done:
        monkeypatch.setattr(sys, "argv", ["luemu", *map(str, words)])
        try:
            status = main()
        except SystemExit as e:
            status = e.code if isinstance(e.code, int) else 1
        shown = capsys.readouterr()
        return Done(status, shown.out, shown.err)

    return called


# --- help ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_a_command(command: str) -> None:
    done = luemu(command, "--help")
    assert done.status == 0 and done.err == ""
    assert done.out.startswith(f"usage: luemu {command} ")
    assert "example" in done.out and f"  luemu {command} " in done.out
    assert "--json" in done.out


def test_help_names_all_commands() -> None:
    done = luemu("--help")
    assert done.status == 0 and all(f"luemu {command} " in done.out for command in COMMANDS)


def test_version() -> None:
    done = luemu("--version")
    assert done.status == 0 and done.err == ""
    assert done.out.startswith("luemu ") and done.out.count("\n") == 1


def test_no_command() -> None:
    done = luemu()
    assert done.status == 2 and "usage: luemu" in done.out + done.err


# --- bad usage -------------------------------------------------------------------------------------


BAD_USAGE: list[list[str]] = [
    ["nosuch"],
    ["run", "--nosuch"],
    ["run", "--old", "k", "--memory", "banana"],
    ["run", "--old", "k", "--memory", "-1"],
    ["run", "--old", "k", "--updates", "1.5"],
    ["run", "--old", "k", "--updates", "0", "--after", "true"],
    ["run", "--old", "k", "--file", "nocolon"],
    ["run", "--old", "k", "--file", "a:relative"],
    ["run", "--old", "k", "--save", "P9"],
    ["run", "--old", "k", "--save", "P99=file"],
    ["run", "--old", "k", "--dump", "Q=file"],
    ["run", "--old", "k", "--before", "'unfinished"],
    ["run", "--old", "k", "--before", ""],
    ["run", "--old", "k", "--max-instructions", "many"],
    ["run", "--old", "k", "--record-input", "file"],
    ["run", "--old", "k", "--replay-input", "file"],
    ["run", "--old", "k", "--interactive", "--record-input", "a", "--replay-input", "b"],
    ["run", "--upd", "0"],
    ["run", "--old", "k", "--memory", "9" * 5000],
    ["run", "--old", "k", "--updates", "0x10000000000000000"],
    ["run", "--old", "k", "--updates", "1000001"],
    ["run", "--old", "k", "--cmdline", "two\nlines"],
    ["run", "--old", "k", "--raw", "--save", "J=file"],
    ["run", "--workload", "kho", "--preserve", "4095"],
    ["run", "--updates", "65"],
    ["inspect"],
    ["inspect", "--fdt", "zz", "image"],
    ["inspect", "--scratch", "1", "image"],
    ["check", "--moment", "X", "image"],
    ["selftest", "--memory", "12Q"],
    ["selftest", "--max-instructions", ""],
    ["selftest", "--memory", "1000"],
]


def name_of(words: list[str]) -> str:
    return " ".join(words)[:60]


def test_whose_bad_usage_it_is(call: Call) -> None:
    assert call("--nosuch", "run").err == "luemu: unrecognized arguments: --nosuch (see luemu --help)\n"
    done = call("run", "--nosuch")
    assert done.err == "luemu run: unrecognized arguments: --nosuch (see luemu run --help)\n"


@pytest.mark.parametrize("words", BAD_USAGE, ids=name_of)
def test_bad_usage_is_one_line(words: list[str], call: Call) -> None:
    done = call(*words)
    assert (done.status, done.out) == (2, ""), done
    assert done.err.startswith("luemu") and done.err.count("\n") == 1
    assert "Traceback" not in done.err


@pytest.mark.parametrize("words", BAD_USAGE[1:], ids=name_of)
def test_bad_usage_as_json(words: list[str], call: Call) -> None:
    done = call(*words, "--json")
    assert (done.status, done.err) == (2, ""), done
    document = json.loads(done.out)
    assert document["ok"] is False and document.keys() == {"ok", "error"}
    assert document["error"].keys() == {"kind", "message", "where"}
    assert document["error"]["kind"] and document["error"]["message"]


# --- bad input -------------------------------------------------------------------------------------


def bad_files(tmp_path: Path) -> dict[str, Path]:
    (tmp_path / "folder").mkdir()
    (tmp_path / "empty").write_bytes(b"")
    (tmp_path / "text").write_bytes(b"this is no kernel and no dump\n" * 100)
    os.mkfifo(tmp_path / "fifo")  # nobody writes: opening it would wait for ever
    files = {kind: tmp_path / kind for kind in ("missing", "folder", "text", "fifo")}
    return files | {"device": Path("/dev/zero"), "nul": tmp_path / "a\0b"}


TAKES_A_FILE = [
    ["run", "--old", "{}"],
    ["run", "--old", "{loop}", "--new", "{}"],
    ["run", "--old", "{loop}", "--symbols", "{}"],
    ["run", "--old", "{loop}", "--initramfs", "{}"],
    ["run", "--old", "{loop}", "--file", "{}:/bin/x"],
    ["run", "--old", "{loop}", "--replay-input", "{}", "--interactive"],
    ["inspect", "{}"],
    ["check", "{}"],
    ["selftest", "--elf", "{}"],
]
UNREADABLE = [
    (words, kind)
    for words in TAKES_A_FILE
    for kind in ("missing", "folder", "text", "fifo", "device", "nul")
    if kind != "text" or ("--new" not in words and "--file" not in words)  # those take any file
]


@pytest.mark.parametrize(("words", "kind"), UNREADABLE, ids=[" ".join([*w, kind]) for w, kind in UNREADABLE])
def test_unreadable_files(words: list[str], kind: str, tmp_path: Path, call: Call) -> None:
    path = bad_files(tmp_path)[kind]
    loop = endless_loop(tmp_path / "loop.elf")
    filled = [w.replace("{}", str(path)).replace("{loop}", str(loop)) for w in words]
    done = call(*filled, "--json")
    assert done.status == 2, done
    document = json.loads(done.out)
    assert document["ok"] is False and document["error"]["message"]
    if kind != "text":
        assert str(path) in document["error"]["where"] + document["error"]["message"]
    plain = call(*filled)
    assert plain.status == 2 and plain.out == "" and plain.err.count("\n") == 1, plain


def test_what_is_wrong_with_an_image_names_it(tmp_path: Path, call: Call) -> None:
    """Also where it is the whole file, and whatever stands in the .json beside it."""
    image = tmp_path / "zeros.raw"
    image.write_bytes(bytes(1 << 16))
    for beside in ("", '{"kho_fdt_pa": 1e400}', '{"kho_fdt_pa": "x"}', '{"scratch": [[1]]}', "[" * 100_000):
        (tmp_path / "zeros.json").write_text(beside)
        for command in ("inspect", "check"):
            done = call(command, image)
            assert done.status == 2 and done.err.splitlines()[-1].startswith(f"luemu: {image}: no root FDT")
            assert done.err.count("\n") == 2 and "zeros.json is ignored: " in done.err, done
            assert json.loads(call(command, "--json", image).out)["error"]["where"] == str(image)


def test_files_that_cannot_be_written(tmp_path: Path, call: Call) -> None:
    loop = endless_loop(tmp_path / "loop.elf")
    nowhere = tmp_path / "nosuch" / "file"
    words = ["run", "--old", str(loop), "--updates", "0", "--max-instructions", "100K", "--json"]
    full = Path("/dev/full")
    for path in (nowhere, full, tmp_path):
        for option in (["--trace", str(path)], ["--save", f"1000={path}"], ["--dump", f"1000={path}"]):
            done = call(*words, *option)
            assert done.status == 2, (option, done)
            assert json.loads(done.out)["error"]["where"].startswith(str(path)), (option, done)
    assert full.is_char_device(), "a device is not replaced by a file"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["loop.elf"]
    for path in (nowhere, tmp_path):
        done = call(*words[:-1], "--interactive", "--record-input", str(path))
        assert (done.status, done.err.count("\n")) == (2, 1) and str(path) in done.err, done


def test_files_that_would_be_written_twice(
    tmp_path: Path, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also the .json beside one. It is said before the run, and nothing is there afterwards."""
    monkeypatch.chdir(tmp_path)
    loop = endless_loop(tmp_path / "loop.elf")
    words = ["run", "--old", str(loop), "--updates", "0", "--max-instructions", "2000"]
    for options, both in (
        ("--dump 10=x.raw --dump 20=x.raw.zst", "--dump: x.json would be written twice"),
        ("--save 10=x --dump 20=x", "--dump: x would be written by --save as well"),
        (f"--save 10=x --save 20={tmp_path}/x", f"--save: {tmp_path}/x would be written twice"),
        ("--trace x --save 10=./x", "--save: x would be written by --trace as well"),
        ("--trace x.json --dump 10=x.raw", "--dump: x.json would be written by --trace as well"),
        ("--trace loop.elf", "--trace: loop.elf is what --old reads"),
    ):
        done = call(*words, *options.split())
        assert (done.status, done.out, done.err) == (2, "", f"luemu: {both}\n"), options
    assert sorted(p.name for p in tmp_path.iterdir()) == ["loop.elf"]


def test_a_dump_that_is_called_json(tmp_path: Path, call: Call) -> None:
    """It is not replaced by its description."""
    loop = endless_loop(tmp_path / "loop.elf")
    dump = tmp_path / "dump.json"
    call("run", "--old", loop, "--updates", "0", "--max-instructions", "2000", "--dump", f"10={dump}")
    assert dump.stat().st_size == 512 << 20
    assert json.loads((tmp_path / "dump.json.json").read_text())["instructions"] == 10


def test_recorded_input_that_is_none(tmp_path: Path, call: Call) -> None:
    loop = endless_loop(tmp_path / "loop.elf")
    words = ["run", "--old", str(loop), "--updates", "0", "--max-instructions", "100K", "--json"]
    log = tmp_path / "log"
    for text in ("[1]", "7", '[1, "zz"]', '{"a": 1}', '["1e9", ""]', "[1e999, \"\"]", "[" * 100_000,
                 '[20, "61"]\n[19, "61"]', '[-1, "61"]', "\udcff"):  # fmt: skip
        log.write_bytes(text.encode("utf-8", "surrogateescape"))
        done = call(*words, "--interactive", "--replay-input", str(log))
        assert done.status == 2, (text[:50], done)
        assert json.loads(done.out)["error"] | {"message": ""} == {
            "kind": "bad-image", "message": "", "where": str(log)
        }  # fmt: skip


def test_files_of_luemu_are_not_replaced(tmp_path: Path, call: Call) -> None:
    loop = endless_loop(tmp_path / "loop.elf")
    for guest in ("/init", "/luemu/kernel", "//init", "/x/../luemu/plan", "/luemu"):
        done = call("run", "--old", str(loop), "--updates", "0", "--file", f"{loop}:{guest}")
        assert (done.status, done.err.count("\n")) == (2, 1) and "luemu's own" in done.err, done


def test_no_address_space_for_the_memory(tmp_path: Path) -> None:
    """A limit of the process is one line, not a traceback."""
    loop = endless_loop(tmp_path / "loop.elf")
    done = subprocess.run(
        ["sh", "-c", 'ulimit -v 8000000 && exec "$@"', "sh", sys.executable, "-m", "emu", "run",
         "--old", loop, "--updates", "0", "--memory", "64G"],
        cwd=ROOT, env=environment(), check=False, capture_output=True, text=True,
    )  # fmt: skip
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1), done
    assert "address space" in done.stderr


def test_moments_by_instruction_number_while_input_is_replayed(tmp_path: Path, call: Call) -> None:
    """They are kept where they are asked for, not when all input has been typed."""
    loop = endless_loop(tmp_path / "loop.elf")
    log = tmp_path / "log"
    log.write_text("".join(f'[{tick}, "61"]\n' for tick in (1000, 2000, 3000)))
    words = ["run", "--old", str(loop), "--updates", "0", "--max-instructions", "10K", "--interactive"]
    kept = {at: tmp_path / f"{at}.luemu" for at in (0, 999, 1000, 1500, 3000, 4000, 10240)}
    saves = [word for at, path in kept.items() for word in ("--save", f"{at}={path}")]
    done = call(*words, "--replay-input", str(log), *saves)
    assert done.status == 1 and "never got there" not in done.out, done
    for at, path in kept.items():
        with Machine.load(path) as m:
            assert m.instructions == at
    late = call(*words, "--replay-input", str(log), "--save", f"10241={tmp_path / 'late'}")
    assert "the run never got there" in late.out and not (tmp_path / "late").exists()


# --- numbers ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "value"), [("1000", 1000), ("0x1f4", 500), ("2K", 2048), ("0x1k", 1024), ("1M", 1 << 20)]
)
def test_numbers(text: str, value: int, tmp_path: Path, call: Call) -> None:
    loop = endless_loop(tmp_path / "loop.elf")
    done = call("selftest", "--elf", loop, "--memory", "0x40M", "--max-instructions", text, "--json")
    document = json.loads(done.out)
    assert (done.status, document["ok"], document["end"]["kind"]) == (1, False, "budget")
    assert document["instructions"] == value


def test_a_guest_that_loops_for_ever(tmp_path: Path, call: Call) -> None:
    """The limit is a failure that names phase and address."""
    loop = endless_loop(tmp_path / "loop.elf")
    words = ["run", "--old", str(loop), "--updates", "0", "--max-instructions", "1M", "--memory", "64M"]
    document: dict[str, Any] = json.loads(call(*words, "--json").out)
    assert document["ok"] is False
    assert (document["end"]["kind"], document["end"]["instructions"]) == ("budget", 1 << 20)
    assert document["end"]["rip"] == 0x100000
    done = call(*words)
    assert done.status == 1 and "not ok: the run ended by budget in phase cold-boot" in done.out
    assert "0x100000" in done.out and "jmp" in done.out


def test_a_test_that_there_is_not(call: Call) -> None:
    """Nothing failed, but nothing was tested either."""
    done = call("selftest", "only=nosuch")
    assert done.status == 1 and done.out.endswith("no test ran: there is none of that name\nnot ok\n")
    document = json.loads(call("selftest", "only=nosuch", "--json").out)
    assert (document["ok"], document["tests"], document["failed"]) == (False, 0, 0)


def test_an_incoming_image_is_named_once(tmp_path: Path, call: Call) -> None:
    done = call("run", "--incoming", tmp_path / "x")
    assert (done.status, done.err) == (2, f"luemu: {tmp_path / 'x'}: No such file or directory\n")


# --- pipes and terminals ---------------------------------------------------------------------------


def on_terminal(*words: str | Path, **changes: str) -> tuple[int, str]:
    """Run with stdout on a terminal: (status, what it showed)."""
    mine, its = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "emu", *words],
        stdin=subprocess.DEVNULL,
        stdout=its,
        stderr=subprocess.PIPE,
        cwd=ROOT,
        env=environment(**changes),
    )
    os.close(its)
    shown = b""
    with contextlib.suppress(OSError):  # EIO: the other side is closed
        while data := os.read(mine, 65536):
            shown += data
    os.close(mine)
    _, err = process.communicate(timeout=60)
    assert err == b""
    return process.returncode, shown.decode()


def test_a_terminal_can_be_left_at_any_time(tmp_path: Path) -> None:
    """Also before there is a shell: in raw mode Ctrl-C is a character like any other. What is typed meanwhile
    is no reason to stay."""
    loop = endless_loop(tmp_path / "loop.elf")
    mine, its = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "emu", "run", "--old", loop, "--updates", "0", "--interactive"],
        stdin=its, stdout=subprocess.PIPE, stderr=its, cwd=ROOT, env=environment(),
    )  # fmt: skip
    os.close(its)
    try:
        shown = b""
        while b"Ctrl-] leaves" not in shown:
            shown += os.read(mine, 100)
        for _ in range(600):  # until the terminal is in raw mode
            os.write(mine, b"\x03ls\r\x1d")
            if process.poll() is not None:
                break
            time.sleep(0.1)
        out, _ = process.communicate(timeout=60)
    finally:
        process.kill()
        os.close(mine)
    assert process.returncode == 1 and b"the console was left with Ctrl-]" in out


def test_colour_on_a_terminal_only() -> None:
    status, shown = on_terminal("check", IMAGE)
    assert status == 0 and "\033[32m" in shown
    assert "\033" not in luemu("check", IMAGE).out
    assert "\033" not in on_terminal("check", IMAGE, NO_COLOR="1")[1]
    assert "\033" not in on_terminal("check", IMAGE, TERM="dumb")[1]


def test_no_progress_in_a_pipe(tmp_path: Path) -> None:
    loop = endless_loop(tmp_path / "loop.elf")
    done = luemu("run", "--old", loop, "--updates", "0", "--max-instructions", "100M", "--memory", "64M")
    assert done.err == "" and "\r" not in done.out and "\033" not in done.out


@pytest.mark.parametrize("words", [["inspect", "--json"], ["inspect"], ["check"]], ids=" ".join)
def test_the_reader_goes_away(words: list[str]) -> None:
    """Like `luemu inspect FILE | head -1`: no complaint."""
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "wb") as pipe:
        done = subprocess.run(
            [sys.executable, "-m", "emu", *words, IMAGE],
            stdout=pipe,
            stderr=subprocess.PIPE,
            check=False,
            cwd=ROOT,
            env=environment(),
        )
    assert (done.returncode, done.stderr) == (1, b"")


@pytest.mark.parametrize("words", [["inspect", IMAGE], ["check", "--json", "/nosuch"], ["run", "--help"]])
def test_output_that_cannot_be_written(words: list[str | Path]) -> None:
    """One line, and not the status of what was found, which nobody could read."""
    with Path("/dev/full").open("wb") as full:
        done = subprocess.run(
            [sys.executable, "-m", "emu", *words],
            stdout=full,
            stderr=subprocess.PIPE,
            check=False,
            cwd=ROOT,
            env=environment(PYTHONUNBUFFERED=""),
        )
    message = b"luemu: stdout: cannot be written: No space left on device\n"
    assert (done.returncode, done.stderr) == (2, message)


def test_characters_that_the_terminal_has_not(tmp_path: Path) -> None:
    """What it cannot show is replaced, in trees by something that looks alike."""
    c3 = RECORDED / "c3-3sess" / "second-kernel-kho_populate.pruned.raw.zst"
    done = luemu("inspect", c3, PYTHONIOENCODING="ascii")
    assert done.status == 0 and done.err == "" and done.out.isascii()
    assert "|-- session" in done.out and "sha256 176b13ffb8fa189c..." in done.out
    odd = os.fsdecode(b"nosuch\xff\n\x1b[31m")
    done = luemu("inspect", tmp_path / odd)
    assert done.status == 2 and done.err.count("\n") == 1 and "\x1b" not in done.err


def interrupted(tmp_path: Path, *more: str) -> tuple[int, bytes, bytes, Path]:
    """An endless run that gets SIGINT: status, stdout, stderr, its trace."""
    loop = endless_loop(tmp_path / "loop.elf")
    trace = tmp_path / "trace"
    process = subprocess.Popen(
        [sys.executable, "-m", "emu", "run", "--old", loop, "--updates", "0", "--trace", trace, *more],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd=ROOT,
        env=environment(),
        # a shell lets what it runs in the background ignore SIGINT, and so would we
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    try:
        while not trace.exists() and process.poll() is None:
            time.sleep(0.02)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    finally:
        process.kill()
    return process.returncode, out, err, trace


def test_interrupted(tmp_path: Path) -> None:
    """Ctrl-C ends an endless run quickly, with one line."""
    status, out, err, trace = interrupted(tmp_path)
    assert (status, out, err) == (1, b"", b"luemu: interrupted\n")
    first = json.loads(trace.read_text().splitlines()[0])
    assert first["event"] == "phase", "what was seen until then is kept"


def test_interrupted_with_json(tmp_path: Path) -> None:
    status, out, err, _ = interrupted(tmp_path, "--json")
    document = json.loads(out)
    assert (status, err, document["ok"]) == (1, b"", False)
    assert document["error"]["kind"] == "interrupted"


def test_killed_while_it_writes(tmp_path: Path) -> None:
    """A dump appears complete or not at all, whatever ends the process; the old one stays until then."""
    loop = endless_loop(tmp_path / "loop.elf")
    dump = tmp_path / "dump.raw.zst"
    dump.write_bytes(b"of yesterday")
    program = (
        "import os, sys, emu.debug.dump as d\nfrom emu.cli import main\n"
        "d._stream = lambda m, out: (out.write(bytes(1 << 20)), out.flush(), os.kill(os.getpid(), 9))\nmain()"
    )
    words: list[str | Path] = ["run", "--old", loop, "--updates", "0", "--memory", "64M"]
    words += ["--dump", f"1000={dump}"]
    done = subprocess.run([sys.executable, "-c", program, *words], cwd=ROOT, env=environment(), check=False)
    assert done.returncode == -signal.SIGKILL
    assert dump.read_bytes() == b"of yesterday" and not (tmp_path / "dump.json").exists()
    done = subprocess.run(
        [sys.executable, "-m", "emu", *words, "--max-instructions", "5000"],
        cwd=ROOT, env=environment(), check=False, capture_output=True,
    )  # fmt: skip
    assert done.returncode == 1 and luemu("inspect", dump).status == 2
    assert sorted(p.name for p in tmp_path.iterdir()) == ["dump.json", "dump.raw.zst", "loop.elf"]


def test_closed_standard_streams(tmp_path: Path) -> None:
    """`<&- >&- 2>&-`: no traceback, and the same status."""
    loop = endless_loop(tmp_path / "loop.elf")
    words = ["run", "--old", str(loop), "--updates", "0", "--max-instructions", "100K", "--interactive"]
    for closed in ("<&-", ">&-", "2>&-", "<&- >&- 2>&-"):
        done = subprocess.run(
            ["sh", "-c", f'"$@" {closed}', "sh", sys.executable, "-m", "emu", *words],
            cwd=ROOT, env=environment(), check=False, capture_output=True,
        )  # fmt: skip
        assert done.returncode == 1 and b"Traceback" not in done.stderr, (closed, done)
