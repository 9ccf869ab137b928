"""Somebody at the console of a run (`luemu run --interactive`), who types when the prompt is there."""

from __future__ import annotations

from dataclasses import dataclass

from emu.debug.options import Options
from emu.debug.update import Update
from emu.debug.verdict import Result
from emu.machine import StopKind

PROMPT = "/ # "
WHERE = "\x1b[6n"
"""A shell asks the terminal where its cursor is, and this one does not answer."""
STEP = 2_000_000
LIMIT = 8_000_000_000


@dataclass
class Typist:
    """An update with a shell on its console."""

    update: Update
    read: int = 0
    """characters of the console that were waited for"""

    @classmethod
    def open(cls, options: Options) -> Typist:
        return cls(Update(options))

    @property
    def text(self) -> str:
        """What has come out of it, with one kind of line end."""
        text = self.update.machine.console.decode("utf-8", "replace").replace("\r\n", "\n")
        return text.replace(WHERE, "")

    def wait(self, text: str) -> str:
        """Run until this appears after what was seen; what came up to its end."""
        m = self.update.machine
        while text not in self.text[self.read :]:
            stop = self.update.advance(m.ticks + STEP)
            # a guest that waits for what is typed, with no timer, is one that has said all it had to say
            asleep = stop.kind is StopKind.DEADLOCK and bool(m.registers()["rflags"] & 0x200)
            assert stop.kind is StopKind.UNTIL or (asleep and text in self.text[self.read :]), (
                f"{text!r} did not come: {stop}\n{self.text[-3000:]}"
            )
        end = self.text.index(text, self.read) + len(text)
        found, self.read = self.text[self.read : end], end
        return found

    def prompt(self) -> None:
        """Wait for the shell, and tell it that lines are long: it would break them."""
        self.wait(PROMPT)
        self.type("stty cols 500")
        self.wait(PROMPT)

    def pause(self, ticks: int) -> None:
        """Let that much time pass."""
        stop = self.update.advance(self.update.machine.ticks + ticks)
        assert stop.kind is StopKind.UNTIL, stop

    def type(self, line: str) -> None:
        """Keys, and Enter. Control characters as they are."""
        self.update.machine.send(line.encode() + b"\r")

    def say(self, line: str) -> str:
        """A command at the prompt; what it wrote, without the echo, up to the next prompt."""
        self.type(line)
        answer = self.wait(PROMPT).removesuffix(PROMPT)
        echo, _, rest = answer.partition("\n")
        assert echo.strip() == line, f"{line!r} was echoed as {echo!r}"
        return rest

    def finish(self) -> Result:
        """The rest of the run."""
        return self.update.run()

    def close(self) -> None:
        self.update.machine.close()
