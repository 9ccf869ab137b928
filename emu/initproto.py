"""What the host tells the project's init, and what that tells the host.

`Plan.encode` writes the file /luemu/plan that `kernels/user/plan.c` reads; `RecordReader` reads the records
that `kernels/user/record.c` writes to the second serial port. The formats are described in
`plan.h` and `record.h` there. Knows nothing of machines: bytes in, records out.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

from emu.errors import ConfigError, EmuError

PLAN_PATH = "/luemu/plan"
PLAN_MAGIC = "luemu-plan 1"
PLAN_BYTES_MAX = 131072
PLAN_PROGRAMS_MAX = 64
PLAN_NEXT_MAX = 64
PLAN_WORDS_MAX = 8192
PLAN_UPDATES_MAX = 1_000_000

# Linux keeps the initrd that it was booted with here if `retain_initrd` is on its command line: the next
# kernel is given the same one, so that the initramfs need not contain itself.
RETAINED_INITRD = "/sys/firmware/initrd"

RECORD_MAGIC = b"LU"
RECORD_VERSION = 1
RECORD_HEADER = struct.Struct("<2sBBII")  # magic, type, version, sequence, payload length
RECORD_PAYLOAD_MAX = 262144

PORT = "init's serial port"  # where a RecordError was found

HELLO, START, OUTPUT, EXIT, WARNING, ERROR, KEXEC, DONE = range(1, 9)


class RecordError(EmuError):
    """The bytes on init's port are no records: another program writes there, or the kernel prints there."""

    kind = "bad-records"


# --- the plan ---


def _word(text: str, what: str) -> str:
    """One escaped word of a plan. Text that is not UTF-8 comes from the command line with surrogateescape."""
    raw = text.encode("utf-8", "surrogateescape")
    if b"\0" in raw:
        raise ConfigError("contains a NUL byte", what)
    if not raw:
        return "%-"
    return "".join(chr(b) if 0x21 <= b <= 0x7E and b != 0x25 else f"%{b:02X}" for b in raw)


@dataclass(frozen=True)
class NextKernel:
    """What init loads for the next generation; paths are those inside the machine."""

    kernel: str
    cmdline: str
    initrd: str | None = RETAINED_INITRD


@dataclass(frozen=True)
class Plan:
    """Orders for init: programs to run before and after each update, and what to kexec into.

    ``next[i]`` starts generation ``i + 1``, the last one all later generations as well. init adds
    ``luemu.generation=N`` to the command line. With `terminal`, `shell` runs on it after the other programs
    of each generation.
    """

    updates: int = 1
    before: Sequence[Sequence[str]] = ()
    after: Sequence[Sequence[str]] = ()
    next: Sequence[NextKernel] = ()
    terminal: str | None = None
    shell: Sequence[str] = ("/bin/sh",)

    def encode(self) -> bytes:
        """Return the file. Raises ConfigError for anything that init would refuse."""
        if not 0 <= self.updates <= PLAN_UPDATES_MAX:
            raise ConfigError(f"must be 0 to {PLAN_UPDATES_MAX}, not {self.updates}", "number of updates")
        if self.updates and not self.next:
            raise ConfigError("an update needs a next kernel", "plan")
        if len(self.before) + len(self.after) > PLAN_PROGRAMS_MAX:
            raise ConfigError(f"at most {PLAN_PROGRAMS_MAX} programs before and after an update", "plan")
        if len(self.next) > PLAN_NEXT_MAX:
            raise ConfigError(f"{len(self.next):,}; with programs at most {PLAN_NEXT_MAX}", "--updates")
        lines: list[list[str]] = [["updates", str(self.updates)]]
        for when, programs in (("before", self.before), ("after", self.after)):
            for argv in programs:
                if not argv or not argv[0]:
                    raise ConfigError("no program to run", when)
                lines.append([when, *(_word(a, when) for a in argv)])
        for n in self.next:
            if not n.kernel or n.initrd in ("", "-"):
                raise ConfigError("the path of the next kernel or of its initrd is empty", "plan")
            initrd = "-" if n.initrd is None else _word(n.initrd, "initrd")
            lines.append(["next", _word(n.kernel, "kernel"), initrd, _word(n.cmdline, "command line")])
        if self.terminal is not None:
            if not self.terminal or not self.shell or not self.shell[0]:
                raise ConfigError("needs a terminal and a program", "interactive")
            shell = (_word(a, "shell") for a in self.shell)
            lines.append(["interactive", _word(self.terminal, "terminal"), *shell])
        if sum(len(words) + 1 for words in lines) > PLAN_WORDS_MAX:
            raise ConfigError(f"more than {PLAN_WORDS_MAX} words", "plan")
        data = "".join(" ".join(words) + "\n" for words in [[PLAN_MAGIC], *lines]).encode("ascii")
        if len(data) > PLAN_BYTES_MAX:
            raise ConfigError(f"{len(data)} bytes, more than {PLAN_BYTES_MAX}", "plan")
        return data


# --- records ---


@dataclass(frozen=True)
class Hello:
    """init has begun in this generation."""

    generation: int
    release: str
    version: str


@dataclass(frozen=True)
class Start:
    """Program number `program` of this boot is about to run."""

    program: int
    when: str
    argv: tuple[str, ...]


@dataclass(frozen=True)
class Output:
    """Bytes that a program, or a child it left behind, wrote to its standard output or error."""

    program: int
    data: bytes


@dataclass(frozen=True)
class Exit:
    """A program exited with a status or was killed by a signal; the other is None."""

    program: int
    status: int | None
    signal: int | None


@dataclass(frozen=True)
class Failure:
    """init could not do something; after a fatal one it powers off."""

    fatal: bool
    tried: str
    errno: int
    errno_name: str
    text: str

    def __str__(self) -> str:
        return f"{self.tried}: {self.errno_name} ({self.text})" if self.errno else self.tried


@dataclass(frozen=True)
class Kexec:
    """The next kernel is loaded and init reboots into it, as this generation."""

    generation: int
    kernel: str
    initrd: str | None
    cmdline: str


@dataclass(frozen=True)
class Done:
    """The plan is carried out; init powers off."""

    generation: int


Record = Hello | Start | Output | Exit | Failure | Kexec | Done

_NUMBER = re.compile(r"0|[1-9][0-9]{0,9}")
_WHEN = ("before", "after", "interactive")


def _number(text: str) -> int:
    if not _NUMBER.fullmatch(text):
        raise RecordError(f"a number in a record is {text!r}")
    return int(text)


def _optional(text: str) -> int | None:
    return None if text == "-" else _number(text)


class _Fields:
    """Takes NUL-terminated text fields off a payload."""

    def __init__(self, kind: int, payload: bytes) -> None:
        self.kind = kind
        self.payload = payload

    def text(self) -> str:
        head, end, self.payload = self.payload.partition(b"\0")
        if not end:
            raise RecordError(f"a record of type {self.kind} ends in the middle of a field")
        return head.decode("utf-8", "surrogateescape")

    def rest(self) -> tuple[str, ...]:
        found = []
        while self.payload:
            found.append(self.text())
        return tuple(found)

    def end(self) -> None:
        if self.payload:
            raise RecordError(f"a record of type {self.kind} has {len(self.payload)} bytes too many")


def decode_record(kind: int, payload: bytes) -> Record:
    """Decode one record. Raises RecordError."""
    f = _Fields(kind, payload)
    record: Record
    if kind == HELLO:
        record = Hello(_number(f.text()), f.text(), f.text())
    elif kind == START:
        program, when, argv = _number(f.text()), f.text(), f.rest()
        if when not in _WHEN or not argv:
            raise RecordError(f"a program that runs {when!r} with {len(argv)} arguments")
        record = Start(program, when, argv)
    elif kind == OUTPUT:
        record = Output(_number(f.text()), f.payload)
        f.payload = b""
    elif kind == EXIT:
        record = Exit(_number(f.text()), _optional(f.text()), _optional(f.text()))
        if (record.status is None) == (record.signal is None):
            raise RecordError("a program that ended both ways, or neither")
    elif kind in (WARNING, ERROR):
        record = Failure(kind == ERROR, f.text(), _number(f.text()), f.text(), f.text())
    elif kind == KEXEC:
        generation, kernel, initrd, cmdline = _number(f.text()), f.text(), f.text(), f.text()
        record = Kexec(generation, kernel, None if initrd == "-" else initrd, cmdline)
    elif kind == DONE:
        record = Done(_number(f.text()))
    else:
        raise RecordError(f"no record has type {kind}")
    f.end()
    return record


@dataclass
class RecordReader:
    """Turns the bytes of init's port, in any pieces, into records.

    After a RecordError the reader is unusable: every further `feed` raises it again. Its state is plain data.
    """

    pending: bytes = b""
    sequence: int = 0
    offset: int = 0  # of `pending` in the stream
    broken: str = ""

    _FIRST: ClassVar[int] = 0

    def feed(self, data: bytes) -> list[Record]:
        """Take more bytes and return the records that are now complete. Raises RecordError."""
        if self.broken:
            raise RecordError(self.broken, PORT)
        self.pending += data
        found: list[Record] = []
        try:
            while (record := self._next()) is not None:
                found.append(record)
        except RecordError as e:
            self.broken = f"at byte {self.offset}: {e.message}"
            if found:  # these came before the damage; the next call reports it
                return found
            raise RecordError(self.broken, PORT) from None
        return found

    def _next(self) -> Record | None:
        head = self.pending[: RECORD_HEADER.size]
        if not RECORD_MAGIC.startswith(head[:2]) or (len(head) > 2 and not HELLO <= head[2] <= DONE):
            raise RecordError(f"no record but {head!r}; does something else write to this port?")
        if len(head) < RECORD_HEADER.size:
            return None
        _, kind, version, sequence, length = RECORD_HEADER.unpack(head)
        if version != RECORD_VERSION:
            raise RecordError(f"a record of version {version}, not {RECORD_VERSION}")
        if length > RECORD_PAYLOAD_MAX:
            raise RecordError(f"a record of {length} bytes, more than {RECORD_PAYLOAD_MAX}")
        expected = self._FIRST if kind == HELLO else self.sequence
        if sequence != expected or (kind != HELLO and expected == self._FIRST):
            raise RecordError(f"record {sequence} of type {kind} where {expected} was due")
        end = RECORD_HEADER.size + length
        if len(self.pending) < end:
            return None
        record = decode_record(kind, self.pending[RECORD_HEADER.size : end])
        self.pending = self.pending[end:]
        self.offset += end
        self.sequence = sequence + 1
        return record

    def close(self) -> None:
        """The stream has ended. Raises RecordError if it did so in the middle of a record."""
        if self.broken:
            raise RecordError(self.broken, PORT)
        if self.pending:
            message = f"the last record is cut off after {len(self.pending)} bytes"
            raise RecordError(message, PORT)


@dataclass
class ProgramRun:
    """One program that ran in the machine, as `luemu run --json` reports it."""

    generation: int
    when: str
    argv: tuple[str, ...]
    status: int | None = None
    signal: int | None = None
    output: bytes = b""

    @property
    def ended(self) -> bool:
        """Whether it has exited or was killed."""
        return self.status is not None or self.signal is not None

    @property
    def ok(self) -> bool:
        """Whether it exited with status 0."""
        return self.status == 0


@dataclass
class Transcript:
    """What init has said so far, put together: generations, programs with their output, failures, the end."""

    generations: list[Hello] = field(default_factory=list)
    programs: list[ProgramRun] = field(default_factory=list)
    kexecs: list[Kexec] = field(default_factory=list)
    warnings: list[Failure] = field(default_factory=list)
    error: Failure | None = None
    done: bool = False
    _boot: list[ProgramRun] = field(default_factory=list, repr=False)

    def add(self, records: Iterable[Record]) -> None:
        """Take records in the order of their arrival. Raises RecordError if they make no sense together."""
        for r in records:
            if isinstance(r, Hello):
                self.generations.append(r)
                self._boot = []
            elif not self.generations:
                raise RecordError("a record before the first HELLO", PORT)
            elif isinstance(r, Start):
                if r.program != len(self._boot):
                    raise RecordError(f"program {r.program} starts after {len(self._boot)}", PORT)
                self._boot.append(ProgramRun(self.generations[-1].generation, r.when, r.argv))
                self.programs.append(self._boot[-1])
            elif isinstance(r, Output):
                self._program(r.program).output += r.data
            elif isinstance(r, Exit):
                program = self._program(r.program)
                if program.ended:
                    raise RecordError(f"program {r.program} ends twice", PORT)
                program.status, program.signal = r.status, r.signal
            elif isinstance(r, Failure):
                if r.fatal:
                    self.error = r
                else:
                    self.warnings.append(r)
            elif isinstance(r, Kexec):
                self.kexecs.append(r)
            else:
                self.done = True

    def _program(self, number: int) -> ProgramRun:
        if number >= len(self._boot):
            raise RecordError(f"program {number} has not started", PORT)
        return self._boot[number]
