"""Somebody at the serial console: a busybox shell on one of our kernels, typed at and watched.

Time is the machine's own, so a session is the same each time it is run.
"""

from __future__ import annotations

import subprocess
from types import TracebackType

import kernels
from emu import Machine
from emu.boot import Boot
from emu.initproto import Plan
from emu.initramfs import Initramfs
from emu.machine import Stop, StopKind
from tests.oracles import require
from tests.userspace.programs import kernel

RAM = 128 << 20
PROMPT = "@@ "
WHERE = "\x1b[6n"
"""The shell's question for the cursor's place, which nobody here answers."""
STEP_TICKS = 5_000_000
"""Virtual time between two looks at the console (ns)."""
SECONDS_MAX = 60
INSTRUCTIONS_MAX = 6_000_000_000


def initramfs(plan: Plan, files: dict[str, bytes] | None = None) -> bytes:
    """The project's init with a plan, and Debian's busybox under all its names."""
    busybox = require("busybox")
    fs = Initramfs()
    fs.add_standard(kernels.binary("init"))
    fs.add_file("/bin/busybox", busybox.read_bytes(), 0o755)
    names = subprocess.run([busybox, "--list"], capture_output=True, text=True, check=True).stdout.split()
    for name in names:
        if name != "busybox":
            fs.add_symlink(f"/bin/{name}", "busybox")
    for path, data in (files or {}).items():
        fs.add_file(path, data, 0o755)
    fs.write_plan(plan)
    return fs.build()


class Console:
    """A shell on ttyS0. `run` a command, or `type` keys and `expect` text."""

    def __init__(
        self, release: str, cmdline: str = "loglevel=4", files: dict[str, bytes] | None = None
    ) -> None:
        plan = Plan(0, terminal="/dev/ttyS0", shell=("/bin/sh",))
        self.machine = Machine(memory=RAM)
        self.machine.boot(Boot(kernel(release), cmdline, initramfs(plan, files)))
        self.seen = 0
        self.expect("# ")
        # a prompt that nothing else has
        self.type("stty rows 40 columns 200; PS1='@@'' '\r")
        self.expect(PROMPT)

    def __enter__(self) -> Console:
        return self

    def __exit__(self, *exc: type[BaseException] | BaseException | TracebackType | None) -> None:
        self.machine.close()

    def text(self) -> str:
        """What came since the last `expect`."""
        return self.machine.console.decode("utf-8", "replace")[self.seen :]

    def type(self, keys: str) -> None:
        """Press keys; nothing runs yet."""
        self.machine.send(keys.encode("latin-1"))

    def wait(self, seconds: float) -> Stop:
        """Let virtual time pass."""
        return self.machine.run(self.machine.ticks + int(seconds * 1e9), max_instructions=INSTRUCTIONS_MAX)

    def expect(self, text: str, seconds: float = SECONDS_MAX) -> str:
        """Run until this is on the screen; everything since the last time, up to and with it."""
        end = self.machine.ticks + int(seconds * 1e9)
        while text not in self.text():
            stop = self.machine.run(self.machine.ticks + STEP_TICKS, max_instructions=INSTRUCTIONS_MAX)
            assert stop.kind is StopKind.UNTIL and self.machine.ticks < end, (
                f"{text!r} did not come: {stop}; since the last prompt there is\n{self.text()[-3000:]}"
            )
        shown = self.text()
        shown = shown[: shown.index(text) + len(text)]
        self.seen += len(shown)
        return shown

    def prompt(self) -> list[str]:
        """Wait for the prompt; the lines before it."""
        shown = self.expect(PROMPT).removesuffix(PROMPT).replace(WHERE, "")
        return shown.replace("\r\n", "\n").split("\n")[:-1]

    def run(self, command: str) -> list[str]:
        """The lines that a command shows."""
        self.type(command + "\r")
        lines = self.prompt()
        assert lines and lines[0].endswith(command), f"the command was echoed as {lines[:1]}"
        return lines[1:]

    def leave(self) -> None:
        """End the shell; init then switches off."""
        self.type("exit\r")
        stop = self.wait(SECONDS_MAX)
        assert stop.kind is StopKind.POWER_OFF, f"{stop}\n{self.text()[-2000:]}"
