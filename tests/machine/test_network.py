"""Frames in mid-execution: a driver of a few instructions echoes a stream of up to 9 KB, whatever the run is cut
into, snapshotted or saved."""

from __future__ import annotations

import functools
import random
from pathlib import Path

import pytest

from emu.machine import Machine, StopKind
from tests.machine.guest import put, run_sliced

CONFIG, BAR = 0xB0000000 | 2 << 15, 0xD0000000
RINGS, BUFFERS = 0x200000, 0x400000
FRAMES, RING, SIZE = 40, 8, 16384
TRAFFIC = f"interval=20000,burst=3,size=60-9000,count={FRAMES},start=ready"

# rsi: buffer address; r12: number of the frame; r13: receive descriptor; r14: transmit descriptor.
ECHO = f"""
    mov edi, {CONFIG}
    mov dword ptr [rdi + 0x10], {BAR}
    mov word ptr [rdi + 4], 6
    mov edi, {BAR}
    mov ebx, {RINGS}
    mov esi, {BUFFERS}
    xor ecx, ecx
1:  mov [rbx], rsi
    mov qword ptr [rbx + 8], 0
    add rbx, 16
    add esi, {SIZE}
    inc ecx
    cmp ecx, {RING}
    jne 1b
    mov dword ptr [rdi + 0x2800], {RINGS}
    mov dword ptr [rdi + 0x2808], {16 * RING}
    mov dword ptr [rdi + 0x2818], {RING - 1}
    mov dword ptr [rdi + 0x3800], {RINGS + 0x1000}
    mov dword ptr [rdi + 0x3808], {16 * RING}
    mov dword ptr [rdi + 0x400], 10
    mov dword ptr [rdi + 0x100], {2 | 1 << 5 | 1 << 16 | 1 << 25 | 1 << 26}
    xor r12d, r12d
2:  mov r13d, r12d
    and r13d, {RING - 1}
    shl r13d, 4
    lea r14, [r13 + {RINGS + 0x1000}]
    add r13, {RINGS}
3:  test byte ptr [r13 + 12], 1
    jz 3b
    mov rax, [r13]
    mov [r14], rax
    movzx eax, word ptr [r13 + 8]
    or eax, 0x0b000000
    mov dword ptr [r14 + 8], eax
    mov dword ptr [r14 + 12], 0
    inc r12d
    mov eax, r12d
    and eax, {RING - 1}
    mov dword ptr [rdi + 0x3818], eax
4:  test byte ptr [r14 + 12], 1
    jz 4b
    mov qword ptr [r13 + 8], 0
    lea eax, [r12 - 1]
    and eax, {RING - 1}
    mov dword ptr [rdi + 0x2818], eax
    cmp r12d, {FRAMES}
    jne 2b
    hlt
"""


def echoing() -> Machine:
    m = Machine(64 << 20, devices=("e1000",), traffic=TRAFFIC)
    put(m, ECHO)
    return m


@functools.cache
def echoed() -> tuple[str, int]:
    """Final hash and tick."""
    with echoing() as m:
        stop = m.run(max_instructions=20_000_000)
        assert stop.kind is StopKind.DEADLOCK, stop
        got = m.traffic.stream()
        assert (m.traffic.s.sent, got.ranges, got.duplicated, m.traffic.s.corrupted) == (
            FRAMES,
            [0, FRAMES],
            0,
            0,
        )
        assert m.platform.card().s.statistics["MPC"] == 0
        return m.state_hash(), m.ticks


def test_all_frames_come_back() -> None:
    assert echoed()[1] > 300_000


@pytest.mark.parametrize("seed", range(3))
def test_random_slicing(seed: int) -> None:
    with echoing() as m:
        run_sliced(m, seed, steps=(3, 700, 5_000, 20_000))
        assert (m.state_hash(), m.ticks) == echoed(), f"seed {seed}"


def test_snapshots_hold_what_is_still_to_be_sent() -> None:
    draw = random.Random(1)
    with echoing() as m:
        kept = []
        for at in range(1, 12):
            m.run(until=echoed()[1] * at // 12)
            kept.append((m.snapshot(), m.state_hash(), m.traffic.s.sent))
        assert len({sent for _, _, sent in kept}) > 6
        for snapshot, state_hash, _ in draw.sample(kept, 5):
            m.restore(snapshot)
            assert m.state_hash() == state_hash
            m.run()
            assert (m.state_hash(), m.ticks) == echoed()


def test_saved_between_frames(tmp_path: Path) -> None:
    with echoing() as m:
        m.run(until=echoed()[1] // 2)
        m.save(tmp_path / "m")
        sent = m.traffic.s.sent
    assert 0 < sent < FRAMES
    with Machine.load(tmp_path / "m") as m:
        m.run()
        assert (m.state_hash(), m.ticks) == echoed()


def test_observing_changes_nothing() -> None:
    with echoing() as m:
        seen: list[int] = []
        m.traffic.taps.append(lambda tick, by_card, frame: seen.append(tick))
        m.platform.dma.observers.append(lambda *piece: None)
        m.run()
        assert (m.state_hash(), m.ticks) == echoed() and len(seen) == 2 * FRAMES
