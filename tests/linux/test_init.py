"""init on an unmodified Linux, in QEMU: whole chains, byte-exact output, and each way to fail."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from emu.initproto import NextKernel, Plan
from emu.initramfs import Initramfs
from tests.linux import qemu
from tests.linux.build import SELFTESTS, LinuxBuild
from tests.oracles import require

pytestmark = pytest.mark.linux

SPEC = ("S:one", "F:0x1:4K:all", "F:0x2:64K:p1+3:pos=5")
SAME = NextKernel(qemu.NEXT_KERNEL, qemu.CMDLINE)


def hashes(output: bytes) -> list[bytes]:
    return [w for w in output.split() if w.startswith(b"sha256=")]


@pytest.mark.parametrize("updates", [0, 1, 3])
def test_a_chain_of_updates(linux: LinuxBuild, tmp_path: Path, updates: int) -> None:
    plan = Plan(updates, [["lu", "s1", *SPEC]], [["lu", "s2", *SPEC]], [SAME])
    result = qemu.run(linux, qemu.initramfs(linux, plan), tmp_path)
    t = result.transcript
    assert t.error is None and t.done and result.powered_off and not t.warnings
    assert [h.generation for h in t.generations] == list(range(updates + 1))
    assert {h.release for h in t.generations} == {"7.2.13-kho"}
    expected_cmdlines = [f"{qemu.CMDLINE} luemu.generation={g}" for g in range(1, updates + 1)]
    assert [k.cmdline for k in t.kexecs] == expected_cmdlines
    ran = [(p.generation, p.when) for p in t.programs]
    expected = [(0, "before")]
    for g in range(1, updates + 1):
        expected += [(g, "after")] + ([(g, "before")] if g < updates else [])
    assert ran == expected
    assert all(p.ok for p in t.programs), [p.output for p in t.programs]
    assert len({tuple(hashes(p.output)) for p in t.programs}) == 1 and len(hashes(t.programs[0].output)) == 2


@pytest.mark.parametrize("name", SELFTESTS)
def test_linux_own_selftests(linux: LinuxBuild, tmp_path: Path, name: str) -> None:
    """They leave the kexec between their two stages to an operator: here that is init."""
    program = f"/st/{name}"
    plan = Plan(1, [[program, "--stage", "1"]], [[program, "--stage", "2"]], [SAME])
    if name == "liveupdate":
        plan = Plan(0, [[program]])
    archive = qemu.initramfs(linux, plan)
    archive.add_host_file(linux.selftest(name), program)
    t = qemu.run(linux, archive, tmp_path).transcript
    assert t.done and t.error is None
    assert all(p.ok for p in t.programs), [p.output[-500:] for p in t.programs]
    assert len(t.programs) == 1 + (name != "liveupdate")


def test_output_is_byte_exact_while_the_kernel_prints(linux: LinuxBuild, tmp_path: Path) -> None:
    noise = "(for i in $(seq 1 50); do echo KERNELSAYS >/dev/kmsg; sleep 0.01; done) & "
    plan = Plan(0, [["sh", "-c", noise + "seq 1 30000"], ["sh", "-c", "exit 7"], ["sh", "-c", "kill -9 $$"]])
    result = qemu.run(linux, qemu.initramfs(linux, plan), tmp_path)
    seq, status, killed = result.transcript.programs
    assert seq.output == "".join(f"{i}\n" for i in range(1, 30001)).encode()
    assert "KERNELSAYS" in result.console
    assert (status.status, status.signal) == (7, None)
    assert (killed.status, killed.signal) == (None, 9)


def test_what_programs_find(linux: LinuxBuild, tmp_path: Path) -> None:
    script = "echo $PATH; id -u; ulimit -Sn; ulimit -Hn; tty; cat /proc/self/mounts; ls /dev/liveupdate"
    script += "; read x || echo eof"
    result = qemu.run(linux, qemu.initramfs(linux, Plan(0, [["sh", "-c", script]])), tmp_path)
    lines = result.transcript.programs[0].output.decode().splitlines()
    assert lines[:3] == ["/bin:/sbin", "0", "1024"] and int(lines[3]) >= 20_000
    assert lines[4] == "not a tty" and lines[-1] == "eof"
    mounted = {(w[2], w[1]) for line in lines if len(w := line.split()) == 6}
    assert mounted >= {
        ("proc", "/proc"), ("sysfs", "/sys"), ("devtmpfs", "/dev"), ("tmpfs", "/tmp"),
        ("debugfs", "/sys/kernel/debug"),
    }  # fmt: skip


@pytest.mark.parametrize(
    ("plan", "error"),
    [
        (Plan(0, [["nosuch"]]), "run nosuch: ENOENT (No such file or directory)"),
        (Plan(1, next=[NextKernel("/none", "")]), "open /none: ENOENT (No such file or directory)"),
        (Plan(1, next=[NextKernel("/init", "")]), "kexec_file_load: ENOEXEC (Exec format error)"),
        (
            Plan(1, next=[NextKernel(qemu.NEXT_KERNEL, "", "/none")]),
            "open /none: ENOENT (No such file or directory)",
        ),
        (
            Plan(1, next=[NextKernel(qemu.NEXT_KERNEL, "x" * 2040)]),
            "put the generation on the next command line: E2BIG (Argument list too long)",
        ),
    ],
)
def test_what_init_can_not_do_is_said_and_ends_the_run(
    linux: LinuxBuild, tmp_path: Path, plan: Plan, error: str
) -> None:
    result = qemu.run(linux, qemu.initramfs(linux, plan), tmp_path)
    assert str(result.transcript.error) == error
    assert not result.transcript.done and result.powered_off


def test_a_broken_plan_is_said(linux: LinuxBuild, tmp_path: Path) -> None:
    archive = qemu.initramfs(linux, Plan(0))
    archive.add_file("/luemu/plan", b"luemu-plan 1\nupdates many\n")
    result = qemu.run(linux, archive, tmp_path)
    message = 'read /luemu/plan line 2: "updates" takes one number: EINVAL (Invalid argument)'
    assert str(result.transcript.error) == message


def test_a_shell_on_the_console(linux: LinuxBuild, tmp_path: Path) -> None:
    plan = Plan(0, terminal="/dev/ttyS0", shell=["/bin/sh", "-i"])
    # What is typed before Linux opens the port is lost: first as many empty lines as the port can hold.
    typed = b"\n" * 64 + b"tty; echo sum $((6 * 7)); exit 3\n"
    result = qemu.run(linux, qemu.initramfs(linux, plan), tmp_path, typed=typed)
    shell = result.transcript.programs[0]
    assert (shell.when, shell.status, shell.output) == ("interactive", 3, b"")
    assert "sum 42" in result.console and "/dev/ttyS0" in result.console


def test_a_base_initramfs_keeps_its_links(linux: LinuxBuild, tmp_path: Path) -> None:
    """A user's archive with a merged /usr, under ours."""
    base = Initramfs()
    base.add_host_file(require("busybox"), "/usr/bin/busybox")
    base.add_symlink("/bin", "usr/bin")
    base.add_symlink("/usr/bin/sh", "busybox")
    archive = Initramfs()
    archive.add_base(base.build("gzip"))
    for path, entry in qemu.initramfs(linux, Plan(0)).entries.items():
        if path in ("init", "dev/console"):
            archive.entries[path] = entry
    archive.add_file("/bin/data", b"over it")
    archive.write_plan(Plan(0, [["sh", "-c", "busybox sha256sum /usr/bin/data"]]))
    result = qemu.run(linux, archive, tmp_path)
    assert result.transcript.programs[0].output.split()[0].decode() == hashlib.sha256(b"over it").hexdigest()
