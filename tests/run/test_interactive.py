"""Runs with a shell on the console, Debian's static busybox, and an update by Debian's kexec, a dynamic
program: nothing of that was made here.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import kernels
from emu.debug.options import Options
from tests.oracles import require
from tests.run.typed import LIMIT, Typist

MEMORY = 256 << 20


def options(release: str, **changes: object) -> Options:
    files = [(require("busybox"), "/bin/sh")]
    o = Options(release, release, interactive=True, updates=0, files=files, memory=MEMORY)
    o.max_instructions = LIMIT
    for name, value in changes.items():
        setattr(o, name, value)
    return o


def test_the_end_of_input_ends_the_session() -> None:
    console = Typist.open(options("old"))
    console.wait("/ # ")
    console.update.machine.send(b"\x04")
    result = console.finish()
    assert (result.ok, result.reasons) == (True, [])
    console.close()


@pytest.mark.parametrize(("old", "new"), [("old", "new"), ("new", "old"), ("new", "new")])
def test_kexec_from_kexec_tools_performs_the_update(old: str, new: str) -> None:
    """Typed at the prompt. It has its loader and libraries with it, and the cache is none the worse."""
    console = Typist.open(
        options(
            old, new=new, updates=1, before=["cache start 4M"], after=["cache check"], programs=["cache"],
            files=[(require("busybox"), "/bin/sh"), (require("kexec"), "/sbin/kexec"),
                   (kernels.binary(f"{new}.bzImage"), "/kernel")],
        )
    )  # fmt: skip
    console.prompt()
    assert console.say("cat /sys/kernel/kexec_loaded") == "0\n"
    command = "kexec -s -l /kernel --initrd=/sys/firmware/initrd --reuse-cmdline"
    assert "kexec-bzImage64: kernel at" in console.say(f"{command} --append=luemu.generation=1")
    assert console.say("cat /sys/kernel/kexec_loaded") == "1\n"
    console.type("kexec -e")
    console.wait("KHO: found kexec handover data.")
    assert re.search(r"KHO: exec from: \S+-luemu \(count 1\)", console.wait("count 1)"))
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
    console = Typist.open(o)
    console.wait("/ # ")
    assert console.say("kexec --version") == "/bin/sh: kexec: not found\n"
    console.close()


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("kexec -e", "Nothing has been loaded!"),
        ("kexec -s -l /nosuch", "Failed to open file /nosuch"),
        ("kexec -s -l /bin/sh", "Invalid memory segment"),
    ],
)
def test_kexec_that_fails(command: str, message: str) -> None:
    o = options("old")
    o.files = [*o.files, (require("kexec"), "/sbin/kexec")]
    console = Typist.open(o)
    console.prompt()
    assert message in console.say(command)
    assert console.say("cat /sys/kernel/kexec_loaded") == "0\n"
    console.close()


def test_files_of_the_host(tmp_path: Path) -> None:
    (tmp_path / "data").write_bytes(b"from the host\n")
    o = options("old")
    o.files = [*o.files, (tmp_path / "data", "/etc/data")]
    console = Typist.open(o)
    console.wait("/ # ")
    assert console.say("cat /etc/data") == "from the host\n"
    console.close()
