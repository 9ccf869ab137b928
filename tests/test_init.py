"""The formats that the host and init share: what one side writes, the other's own code reads.

init's C is compiled for the host by the project's toolchain; the programs that it runs here are the host's.
"""

from __future__ import annotations

import itertools
import struct
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from emu import initproto as ip
from emu.errors import ConfigError, EmuError
from kernels import build

PARTS = build.Target(
    name="test-init-parts",
    output="build/tests/init_parts",
    sources=(
        "tests/guest/init_parts.c", "kernels/user/plan.c", "kernels/user/record.c", "kernels/user/run.c",
    ),
    inputs=("kernels/user/*.h",),
    flags=build.LINUX_PROGRAM,
)  # fmt: skip

WORD = st.text(st.characters(exclude_characters="\0"), max_size=12)
ARGV = st.tuples(WORD.filter(bool), st.lists(WORD, max_size=4)).map(lambda t: [t[0], *t[1]])
PATH = WORD.filter(lambda s: s not in ("", "-"))
NEXT = st.builds(ip.NextKernel, kernel=PATH, cmdline=WORD, initrd=st.none() | PATH)
PLAN = st.builds(
    ip.Plan,
    updates=st.integers(0, 5),
    before=st.lists(ARGV, max_size=3),
    after=st.lists(ARGV, max_size=3),
    next=st.lists(NEXT, min_size=1, max_size=4),
    terminal=st.none() | WORD.filter(bool),
    shell=ARGV,
)


@pytest.fixture(scope="module")
def parts() -> Path:
    path = build.build(build.project_root(), PARTS)
    assert path is not None
    return path


def parse(parts: Path, data: bytes) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run([parts, "parse"], input=data, capture_output=True, check=False, timeout=60)


def understood(plan: ip.Plan) -> bytes:
    """What init_parts prints for a plan that init understands as it was meant."""
    fields: list[str] = [str(plan.updates)]
    for when, programs in (("before", plan.before), ("after", plan.after)):
        for argv in programs:
            fields += [when, *argv, "\n"]
    for g in range(1, min(plan.updates, len(plan.next) + 1) + 1):
        n = plan.next[min(g, len(plan.next)) - 1]
        fields += ["next", n.kernel, n.initrd if n.initrd is not None else "(none)", n.cmdline, "\n"]
    if plan.terminal is not None:
        fields += [plan.terminal, "interactive", *plan.shell, "\n"]
    return b"".join(f.encode("utf-8", "surrogateescape") + b"\0" for f in fields)


# --- the plan ---


@given(plan=PLAN)
@example(plan=ip.Plan(0, [["a", "", " ", "%", "%-", "\n", "\udcff", "é"]], terminal="/dev/ttyS0"))
def test_init_reads_the_plan_that_the_host_writes(parts: Path, plan: ip.Plan) -> None:
    run = parse(parts, plan.encode())
    assert (run.returncode, run.stderr) == (0, b"")
    assert run.stdout == understood(plan)


def test_a_plan_is_readable_text() -> None:
    plan = ip.Plan(1, [["lu", "s1", "S:a b"]], [["x", ""]], [ip.NextKernel("/k", "console=ttyS0 kho=on")])
    assert plan.encode() == (
        b"luemu-plan 1\nupdates 1\nbefore lu s1 S:a%20b\nafter x %-\n"
        b"next /k /sys/firmware/initrd console=ttyS0%20kho=on\n"
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"", "1: the plan is empty"),
        (b"luemu-plan 2\n", "1: not a plan, or one of another version"),
        (b"luemu-plan 1\nupdates 0", "2: the last line has no end"),
        (b"luemu-plan 1\nupdates 1\n", "3: updates without a next kernel"),
        (b"luemu-plan 1\nupdates 0\nupdates 0\n", '3: "updates" twice'),
        (b"luemu-plan 1\nupdates -1\n", '2: "updates" takes one number'),
        (b"luemu-plan 1\nupdates 1000001\n", '2: "updates" takes one number'),
        (b"luemu-plan 1\nupdates 99999999999999\n", '2: "updates" takes one number'),
        (b"luemu-plan 1\nbefore\n", "2: no program"),
        (b"luemu-plan 1\nbefore %-\n", "2: no program"),
        (b"luemu-plan 1\nbefore a  b\n", '2: an empty word (written "%-"), or more than one space'),
        (b"luemu-plan 1\n\n", '2: an empty word (written "%-"), or more than one space'),
        (b"luemu-plan 1\nbefore a%2\n", "2: '%' without two upper-case hex digits"),
        (b"luemu-plan 1\nbefore a%2f\n", "2: '%' without two upper-case hex digits"),
        (b"luemu-plan 1\nbefore a%00\n", "2: a NUL byte in a word"),
        (b"luemu-plan 1\nbefore a\0b\n", "1: a NUL byte in the plan"),
        (b"luemu-plan 1\nbefore \xc3\xa9\n", "2: a byte that has to be escaped"),
        (b"luemu-plan 1\nnext /k -\n", '2: "next" takes a kernel, an initrd or "-", and a command line'),
        (b"luemu-plan 1\ninteractive /dev/ttyS0\n", '2: "interactive" takes a terminal and a program'),
        (b"luemu-plan 1\nhalt\n", "2: unknown order"),
        (b"luemu-plan 1\n" + b"before a\n" * 65, "66: too many programs"),
        (b"luemu-plan 1\n" + b"next a - b\n" * 65, "66: too many kernels"),
        (b"luemu-plan 1\nbefore" + b" a" * 9000 + b"\n", "2: too many words"),
        (b"luemu-plan 1\nbefore " + b"a" * 131072 + b"\n", "1: the plan is too long"),
    ],
)
def test_init_refuses_a_broken_plan(parts: Path, text: bytes, message: str) -> None:
    run = parse(parts, text)
    assert (run.returncode, run.stderr.decode().strip()) == (3, message)


@given(noise=st.binary(max_size=80))
def test_init_survives_any_plan(parts: Path, noise: bytes) -> None:
    assert parse(parts, b"luemu-plan 1\n" + noise).returncode in (0, 3)


@pytest.mark.parametrize(
    "plan",
    [
        ip.Plan(1),
        ip.Plan(-1),
        ip.Plan(ip.PLAN_UPDATES_MAX + 1, next=[ip.NextKernel("/k", "")]),
        ip.Plan(0, [[]]),
        ip.Plan(0, [[""]]),
        ip.Plan(0, [["a\0b"]]),
        ip.Plan(0, [["a"]] * 65),
        ip.Plan(0, [["a"] * 9000]),
        ip.Plan(0, [["a" * ip.PLAN_BYTES_MAX]]),
        ip.Plan(0, next=[ip.NextKernel("", "")]),
        ip.Plan(0, next=[ip.NextKernel("/k", "", "-")]),
        ip.Plan(0, next=[ip.NextKernel("/k", "")] * 65),
        ip.Plan(0, terminal=""),
        ip.Plan(0, terminal="/dev/ttyS0", shell=[]),
    ],
)
def test_the_host_refuses_what_init_would(plan: ip.Plan) -> None:
    with pytest.raises(ConfigError):
        plan.encode()


# --- running programs, and records ---


def run(parts: Path, *programs: list[str]) -> ip.Transcript:
    done = subprocess.run(
        [parts, "run"], input=ip.Plan(0, programs).encode(), capture_output=True, check=True, timeout=120
    )
    hello = record(ip.HELLO, 0, b"0\0" b"release\0" b"version\0")
    # The test program says no HELLO: its records are moved up by one.
    stream, at = b"", 0
    while at < len(done.stdout):
        magic, kind, version, sequence, length = ip.RECORD_HEADER.unpack_from(done.stdout, at)
        payload = done.stdout[at + 12 : at + 12 + length]
        stream += ip.RECORD_HEADER.pack(magic, kind, version, sequence + 1, length) + payload
        at += 12 + length
    reader, transcript = ip.RecordReader(), ip.Transcript()
    transcript.add(reader.feed(hello + stream))
    reader.close()
    return transcript


def test_status_signal_and_output_of_programs(parts: Path) -> None:
    t = run(
        parts,
        ["sh", "-c", "echo out; echo err >&2; exit 7"],
        ["sh", "-c", "kill -9 $$"],
        ["true"],
    )
    assert [(p.status, p.signal) for p in t.programs] == [(7, None), (None, 9), (0, None)]
    assert [p.output for p in t.programs] == [b"out\nerr\n", b"", b""]
    assert [p.ok for p in t.programs] == [False, False, True]


def test_output_is_byte_exact(parts: Path) -> None:
    every_byte = "".join(f"\\{b:03o}" for b in range(256))
    t = run(parts, ["printf", every_byte], ["sh", "-c", "head -c 1000000 /dev/zero"])
    assert t.programs[0].output == bytes(range(256))
    assert t.programs[1].output == bytes(1_000_000)


def test_arguments_and_environment(parts: Path) -> None:
    t = run(
        parts,
        ["sh", "-c", 'printf "%s|" "$@"', "name", "", " a  b ", "é%"],
        ["env"],
        ["sh", "-c", "read x; echo $?"],
    )
    assert t.programs[0].argv[-3:] == ("", " a  b ", "é%")
    assert t.programs[0].output.decode() == "| a  b |é%|"
    assert sorted(t.programs[1].output.split()) == [b"HOME=/", b"PATH=/bin:/sbin", b"TERM=vt102"]
    assert t.programs[2].output == b"1\n"  # standard input is empty


def test_a_program_is_done_when_it_exits_not_when_its_children_are(parts: Path) -> None:
    """The child holds the output open for a minute; it writes while a later program runs."""
    t = run(
        parts,
        ["sh", "-c", "(sleep 0.2; echo late; exec sleep 60) & echo now"],
        ["sh", "-c", "sleep 0.6; echo second"],
    )
    assert t.programs[0].status == 0
    assert t.programs[0].output == b"now\nlate\n"
    assert t.programs[1].output == b"second\n"


def test_a_program_that_is_missing(parts: Path) -> None:
    t = run(parts, ["/no/such/program"], ["true"])
    assert not t.programs[0].ended
    assert str(t.warnings[0]) == "/no/such/program: ENOENT (No such file or directory)"
    assert t.programs[1].ok


# --- malformed records ---


def record(kind: int, sequence: int, payload: bytes) -> bytes:
    return ip.RECORD_HEADER.pack(b"LU", kind, 1, sequence, len(payload)) + payload


HELLO = record(ip.HELLO, 0, b"0\0" b"7.2\0" b"#1\0")
STREAM = b"".join(
    [
        HELLO,
        record(ip.START, 1, b"0\0before\0lu\0s1\0"),
        record(ip.OUTPUT, 2, b"0\0some\0bytes\n"),
        record(ip.EXIT, 3, b"0\0" b"0\0" b"-\0"),
        record(ip.WARNING, 4, b"mount /x\0" b"19\0ENODEV\0No such device\0"),
        record(ip.KEXEC, 5, b"1\0/k\0-\0console=ttyS0\0"),
        record(ip.HELLO, 0, b"1\0" b"7.2\0" b"#1\0"),
        record(ip.DONE, 1, b"1\0"),
    ]
)
GOLDEN: list[ip.Record] = [
    ip.Hello(0, "7.2", "#1"),
    ip.Start(0, "before", ("lu", "s1")),
    ip.Output(0, b"some\0bytes\n"),
    ip.Exit(0, 0, None),
    ip.Failure(False, "mount /x", 19, "ENODEV", "No such device"),
    ip.Kexec(1, "/k", None, "console=ttyS0"),
    ip.Hello(1, "7.2", "#1"),
    ip.Done(1),
]


def test_golden_stream() -> None:
    assert ip.RecordReader().feed(STREAM) == GOLDEN
    assert STREAM[:16] == b"LU\x01\x01" + struct.pack("<II", 0, 9) + b"0\0" + b"7."


@given(cuts=st.lists(st.integers(0, len(STREAM)), max_size=12))
def test_records_in_any_pieces(cuts: list[int]) -> None:
    reader, found = ip.RecordReader(), []
    edges = [0, *sorted(cuts), len(STREAM)]
    for a, b in itertools.pairwise(edges):
        found += reader.feed(STREAM[a:b])
    reader.close()
    assert found == GOLDEN


@pytest.mark.parametrize(
    ("stream", "message"),
    [
        (b"[    0.1] Linux version", "does something else write"),
        (b"LX", "does something else write"),
        (b"LU\x09", "does something else write"),
        (b"LU\x00", "does something else write"),
        (ip.RECORD_HEADER.pack(b"LU", 1, 2, 0, 0), "version 2"),
        (ip.RECORD_HEADER.pack(b"LU", 1, 1, 0, ip.RECORD_PAYLOAD_MAX + 1), "bytes, more than"),
        (record(ip.DONE, 0, b"0\0"), "record 0 of type 8"),
        (record(ip.HELLO, 1, b"0\0a\0b\0"), "where 0 was due"),
        (HELLO + record(ip.DONE, 2, b"0\0"), "where 1 was due"),
        (record(ip.HELLO, 0, b"x\0a\0b\0"), "a number in a record is 'x'"),
        (record(ip.HELLO, 0, b"0\0a\0b"), "ends in the middle of a field"),
        (record(ip.HELLO, 0, b"0\0a\0b\0c\0"), "2 bytes too many"),
        (HELLO + record(ip.EXIT, 1, b"0\0-\0-\0"), "ended both ways, or neither"),
        (HELLO + record(ip.START, 1, b"0\0never\0x\0"), "'never'"),
        (HELLO + record(ip.START, 1, b"0\0before\0"), "0 arguments"),
    ],
)
def test_a_malformed_stream_is_one_typed_error(stream: bytes, message: str) -> None:
    reader = ip.RecordReader()
    with pytest.raises(ip.RecordError, match=message):
        for i in range(len(stream)):
            reader.feed(stream[i : i + 1])
    with pytest.raises(ip.RecordError, match=message):  # and stays one
        reader.feed(STREAM)


def test_records_before_the_damage_are_kept() -> None:
    reader = ip.RecordReader()
    assert reader.feed(HELLO + b"panic") == GOLDEN[:1]
    with pytest.raises(ip.RecordError, match=f"at byte {len(HELLO)}"):
        reader.feed(b"")


def test_a_stream_that_is_cut_off() -> None:
    reader = ip.RecordReader()
    reader.feed(STREAM[:-1])
    with pytest.raises(ip.RecordError, match="cut off"):
        reader.close()


@given(data=st.binary(max_size=100), at=st.integers(0, len(STREAM)), keep=st.integers(0, len(STREAM)))
@settings(max_examples=300)
def test_any_bytes_give_records_or_the_typed_error(data: bytes, at: int, keep: int) -> None:
    reader, transcript = ip.RecordReader(), ip.Transcript()
    try:
        transcript.add(reader.feed(STREAM[:at] + data + STREAM[keep:]))
        reader.close()
    except EmuError as e:
        assert isinstance(e, ip.RecordError)


def test_a_transcript_puts_a_run_together() -> None:
    t = ip.Transcript()
    t.add(GOLDEN)
    assert t.done and t.error is None
    assert [h.generation for h in t.generations] == [0, 1]
    assert t.programs == [ip.ProgramRun(0, "before", ("lu", "s1"), 0, None, b"some\0bytes\n")]
    assert t.kexecs[0].cmdline == "console=ttyS0"


@pytest.mark.parametrize(
    "records",
    [
        [ip.Done(0)],
        [GOLDEN[0], ip.Output(0, b"x")],
        [GOLDEN[0], ip.Start(1, "before", ("a",))],
        [*GOLDEN[:4], ip.Exit(0, 1, None)],
        [*GOLDEN[:4], GOLDEN[6], ip.Output(0, b"of the kernel before")],
    ],
)
def test_records_that_make_no_sense_together(records: list[ip.Record]) -> None:
    refused: Callable[[], None] = lambda: ip.Transcript().add(records)  # noqa: E731
    with pytest.raises(ip.RecordError):
        refused()
