"""DMA in mid-execution: at the tick it is due, whatever the run was cut into, snapshotted, saved or restored."""

from __future__ import annotations

import functools
import random
import struct
from pathlib import Path

import pytest

from emu.devices.edu import DMA_TICKS, Edu
from emu.dma import DmaLog
from emu.errors import ConfigError, ImageError
from emu.machine import Machine, StopKind
from tests.machine.guest import CODE, DATA, STACK, flat, run_sliced, selftest

DEVICES = ("edu", "vtd")
EDU_CONFIG, BAR = 0xB0000000 | 3 << 15, 0xD0000000
SOURCE, TARGET = DATA, DATA + 0x10000

SETUP = f"""
    mov edi, {EDU_CONFIG}
    mov dword ptr [rdi + 0x10], {BAR}
    mov word ptr [rdi + 4], 6
    mov edi, {BAR}
"""


def start(source: int, destination: int, count: int, command: int) -> str:
    """Registers of a transfer; the last store starts it."""
    return f"""
    mov dword ptr [rdi + 0x80], {source}
    mov dword ptr [rdi + 0x88], {destination}
    mov dword ptr [rdi + 0x90], {count}
    mov dword ptr [rdi + 0x98], {command | 1}
    """


# Moves a page in; moves it out over memory that a loop reads, which notes when it saw the first byte change;
# then over the loop's own code, which returns another value from then on.
WATCH = f"""
{SETUP}
{start(SOURCE, 0x40000, 64, 0)}
1:  test dword ptr [rdi + 0x98], 1
    jnz 1b
    mov ebx, {TARGET}
    xor ecx, ecx
{start(0x40000, TARGET, 64, 2)}
    rdtsc
    mov r8d, eax
2:  inc rcx
    cmp byte ptr [rbx], 0
    je 2b
    rdtsc
    mov r9d, eax
    sub r9d, r8d
{start(0x40020, CODE + 0x801, 4, 2)}
    call 3f
4:  mov r10d, eax
    call 3f
    cmp eax, r10d
    je 4b
    hlt
    .org 0x800
3:  mov eax, 0x11111111
    inc r11
    ret
"""


def watching() -> Machine:
    m = flat(WATCH, devices=DEVICES)
    m.memory.write(SOURCE, bytes(range(1, 65)), by="test")
    return m


@functools.cache
def watched() -> tuple[str, dict[str, int], int, bytes]:
    """Final hash, registers, tick, and the DMA log."""
    with watching() as m:
        log = DmaLog()
        m.platform.dma.observers.append(log)
        stop = m.run(max_instructions=100_000)
        assert stop.kind is StopKind.DEADLOCK, stop
        return m.state_hash(), m.registers(), m.ticks, log.records().tobytes()


def test_memory_changes_between_two_instructions_at_the_exact_tick() -> None:
    _, registers, _, log = watched()
    records = DmaLog()
    records._parts.append(log)
    ticks = records.records()["tick"].tolist()
    assert registers["r9"] in range(DMA_TICKS + 64, DMA_TICKS + 64 + 4), "seen within one round of the loop"
    assert registers["r9"] == 2 + 3 * registers["rcx"], "a round has three instructions"
    assert len(ticks) == 3 and ticks[1] - ticks[0] > DMA_TICKS


def test_code_changes_between_two_instructions() -> None:
    _, registers, _, _ = watched()
    assert registers["r10"] == 0x11111111
    assert registers["rax"] == int.from_bytes(bytes(range(33, 37)), "little")
    assert registers["r11"] > DMA_TICKS // 7


@pytest.mark.parametrize("seed", range(6))
def test_random_slicing(seed: int) -> None:
    with watching() as m:
        run_sliced(m, seed, steps=(1, 2, 3, 50, 700))
        assert (m.state_hash(), m.registers(), m.ticks) == watched()[:3], f"seed {seed}"


def test_every_cut_around_the_transfer() -> None:
    """Stopped at each tick from before the transfer that the loop waits for until after it."""
    with watching() as m:
        log = DmaLog()
        m.platform.dma.observers.append(log)
        m.run(max_instructions=100_000)
        due = int(log.records()["tick"][1])
    with watching() as m:
        m.run(until=due - 8)
        for tick in range(due - 7, due + 8):
            m.run(until=tick)
            # An event is due before the instruction at its tick.
            seen = m.memory.copy(TARGET, 1) != b"\0"
            assert not seen or tick >= due, f"tick {tick} of {due}: too early"
            assert seen or tick <= due, f"tick {tick} of {due}: too late"
        m.run(max_instructions=100_000)
        assert m.state_hash() == watched()[0]


def test_snapshots_in_the_middle_of_transfers() -> None:
    draw = random.Random(1)
    with watching() as m:
        snapshots = []
        for _ in range(12):
            m.run(until=m.ticks + draw.randint(1, 700))
            snapshots.append((m.snapshot(), m.state_hash()))
        m.run(max_instructions=100_000)
        for snapshot, state_hash in draw.sample(snapshots, len(snapshots)):
            m.restore(snapshot)
            assert m.state_hash() == state_hash
            m.run(max_instructions=100_000)
            assert m.state_hash() == watched()[0]


def test_saved_in_the_middle_of_a_transfer(tmp_path: Path) -> None:
    with watching() as m:
        m.run(until=1500)
        assert any(device == "edu" for device, _, _ in m.clock.state()), "no transfer runs: nothing is shown"
        m.save(tmp_path / "m")
        before = m.state_hash()
    with Machine.load(tmp_path / "m") as m:
        assert m.description.devices == DEVICES and m.state_hash() == before
        m.run(max_instructions=100_000)
        assert (m.state_hash(), m.registers(), m.ticks) == watched()[:3]


def test_observing_changes_nothing() -> None:
    with watching() as m:
        m.run(max_instructions=100_000)
        assert m.state_hash() == watched()[0], "the reference had an observer, this has none"


# --- with translation and interrupts: the groups of the self-test guest ---


@functools.cache
def whole() -> tuple[str, bytes, int]:
    with selftest("only=edu,vtd", devices=DEVICES) as m:
        stop = m.run(max_instructions=10_000_000)
        assert stop.kind is StopKind.POWER_OFF, stop
        return m.state_hash(), m.console, stop.ticks


@pytest.mark.parametrize("seed", range(3))
def test_translation_and_interrupts_in_random_slices(seed: int) -> None:
    with selftest("only=edu,vtd", devices=DEVICES) as m:
        run_sliced(m, seed, steps=(1, 3, 100, 5_000, 50_000))
        assert (m.state_hash(), m.console, m.ticks) == whole(), f"seed {seed}"


def test_full_caches_survive_snapshots_and_files(tmp_path: Path) -> None:
    with selftest("only=edu,vtd", devices=DEVICES) as m:
        for n in range(1, 40):
            m.run(until=whole()[2] * n // 40)
            if m.platform.extras["vtd"].s.pages and m.platform.extras["vtd"].s.contexts:
                break
        else:
            raise AssertionError("the caches are never filled")
        here, state_hash = m.snapshot(), m.state_hash()
        m.save(tmp_path / "m")
        m.run()
        assert m.state_hash() == whole()[0]
        m.restore(here)
        assert m.state_hash() == state_hash
        m.run()
        assert m.state_hash() == whole()[0]
    with Machine.load(tmp_path / "m") as m:
        assert m.state_hash() == state_hash
        m.run()
        assert m.state_hash() == whole()[0]


# --- the description ---


def test_devices_are_part_of_the_description() -> None:
    hashes = []
    for devices in ((), ("edu",), ("vtd",), ("vtd", "edu"), ("bridge",), ("bridge", "bridge/edu")):
        with Machine(2 << 20, devices=devices) as m:
            hashes.append(m.state_hash())
    assert len(set(hashes)) == len(hashes)
    with Machine(2 << 20, devices=("edu", "vtd")) as m:
        assert m.state_hash() == hashes[3], "their order says nothing"


def test_a_plain_pc_is_what_it_was() -> None:
    with Machine(2 << 20) as m:
        assert set(m.description.plain()) == {"memory", "rtc_epoch", "cpuid_version", "strict_memory"}
        assert not m.platform.extras and m.platform.dma.iommu is None


@pytest.mark.parametrize(
    ("devices", "message"),
    [
        (("floppy",), "no device 'floppy'"),
        (("edu", "edu"), "one 'edu'"),
        (("bridge/edu",), "needs a bridge"),
        (("bridge/bridge", "bridge"), "no device"),
    ],
)
def test_impossible_devices(devices: tuple[str, ...], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Machine(2 << 20, devices=devices)


def test_a_file_with_an_unknown_device_is_refused(tmp_path: Path) -> None:
    with Machine(2 << 20, devices=("edu",)) as m:
        object.__setattr__(m.description, "devices", ("floppy",))
        m.save(tmp_path / "m")
    with pytest.raises(ImageError, match="floppy"):
        Machine.load(tmp_path / "m")


def test_devices_keep_their_places() -> None:
    with Machine(2 << 20, devices=("edu", "bridge", "bridge/edu", "vtd")) as m:
        e, below = m.platform.extras["edu"], m.platform.extras["bridge/edu"]
        assert isinstance(e, Edu) and isinstance(below, Edu)
        assert (e.requester, below.requester) == (0x18, 0)
        bridge = m.platform.extras["bridge"]
        m.bus.mmio_write(0xB0000000 | 1 << 15 | 0x18, 4, 0x090900, 0)
        assert below.requester == 0x900 and bridge.s.config[0x19] == 9
        assert STACK


QUEUE, VTD = DATA + 0x20000, 0xFED90000
# Each round tells the remapping unit to carry out one more descriptor, then calls a function on the same page.
# The fifth descriptor writes its status word into that function.
DOORBELL = f"""
    mov edi, {VTD}
    mov dword ptr [rdi + 0x90], {QUEUE}
    mov dword ptr [rdi + 0x18], {1 << 26}
    xor ecx, ecx
1:  add ecx, 16
    mov dword ptr [rdi + 0x88], ecx
    call 2f
    cmp eax, 0x22222222
    jne 1b
    hlt
    .org 0x800
2:  mov eax, 0x11111111
    ret
"""


def test_code_changed_by_a_store_to_a_device_runs_at_once() -> None:
    with flat(DOORBELL, devices=("vtd",)) as m:
        for i in range(8):
            words = (5 | (0x20 if i == 4 else 0) | 0x22222222 << 32, CODE + 0x804)
            m.memory.write(QUEUE + 16 * i, struct.pack("<QQ", *words), by="test")
        code = m.memory.copy(CODE + 0x800, 6)
        # The status word is aligned: so is the operand it replaces.
        m.memory.write(CODE + 0x800, b"\x90\x90\x90" + code, by="test")
        stop = m.run(max_instructions=10_000)
        assert stop.kind is StopKind.DEADLOCK, stop
        assert m.registers()["rcx"] == 16 * 5, "the function was changed before it was called"
