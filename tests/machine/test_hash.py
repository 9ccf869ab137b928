"""`state_hash` covers everything: each part of the state, changed alone, changes it.

The parts are found by walking the state, so a field that a device gains is covered without being named here.
"""

from __future__ import annotations

import copy
from typing import Any

import pytest

from emu.cpu import STATE_WORDS
from emu.machine import Machine
from tests.machine.guest import DATA, flat, selftest


def busy_machine() -> Machine:
    """Timers armed, interrupts pending, a queue of events, a filled TLB."""
    m = selftest("do=ticks")
    m.run(until=400_000)
    m.send(b"input")
    return m


def leaves(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    if isinstance(value, dict):
        return [leaf for key in value for leaf in leaves(value[key], (*path, key))]
    if isinstance(value, list):
        return [leaf for i, item in enumerate(value) for leaf in leaves(item, (*path, i))]
    return [path]


def get(state: Any, path: tuple[Any, ...]) -> Any:
    for key in path:
        state = state[key]
    return state


def flipped(value: Any) -> Any:
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return value ^ 1
    if isinstance(value, bytes):
        return bytes([value[0] ^ 1]) + value[1:] if value else b"\1"
    if isinstance(value, str):
        return value + "x"
    if value is None:
        return 1
    raise AssertionError(f"not plain data: {value!r}")


def test_every_word_of_the_cpu() -> None:
    with busy_machine() as m:
        cpu = m.cpus[0]
        words = cpu.words()
        before = m.state_hash()
        seen = {before}
        for i, name in enumerate(STATE_WORDS):
            changed = list(words)
            changed[i] ^= 1 << (16 if name == "dr7" else 0)  # bit 0 of DR7 arms a breakpoint
            cpu.load_words(changed)
            assert cpu.words() == changed, f"{name} is not kept"
            seen.add(m.state_hash())
            assert len(seen) == i + 2, f"{name} is not hashed"
            cpu.load_words(words)
            assert m.state_hash() == before, name


@pytest.mark.parametrize("bit", [b for b in range(22) if b not in (1, 3, 5, 15)])
def test_every_defined_flag(bit: int) -> None:
    with flat("nop") as m:
        m.run(until=0)
        before = m.state_hash()
        m.cpus[0].set_registers(rflags=2 | 1 << bit)
        assert m.registers()["rflags"] == 2 | 1 << bit
        assert m.state_hash() != before


def test_every_field_of_every_device() -> None:
    with busy_machine() as m:
        state = m.platform.state()
        before = m.state_hash()
        paths = leaves(state)
        assert len(paths) > 250
        seen = {before}
        for i, path in enumerate(paths):
            changed = copy.deepcopy(state)
            at = get(changed, path[:-1])
            at[path[-1]] = flipped(at[path[-1]])
            for device in m.platform.devices:
                device.load(changed[device.name])
            m.bus.load(changed["bus"])
            seen.add(m.state_hash())
            assert len(seen) == i + 2, f"{path} is not hashed"
            for device in m.platform.devices:
                device.load(state[device.name])
            m.bus.load(state["bus"])
        assert m.state_hash() == before


def test_every_device_has_only_plain_data_that_comes_back() -> None:
    with busy_machine() as m:
        for device in m.platform.devices:
            state = device.state()
            for path in leaves(state):
                assert type(get(state, path)) in (int, bool, bytes, str, type(None)), (device.name, path)
            kinds = {path: type(get(state, path)) for path in leaves(state)}
            device.load(state)
            assert device.state() == state
            assert {path: type(get(device.state(), path)) for path in leaves(state)} == kinds, device.name
            # the loaded state is a copy
            for path in leaves(state):
                if len(path) > 1:
                    before = copy.deepcopy(device.state())
                    at = get(state, path[:-1])
                    at[path[-1]] = flipped(at[path[-1]])
                    assert device.state() == before, (device.name, path)
                    break


def test_every_pending_event() -> None:
    with busy_machine() as m:
        m.clock.at(m.ticks + 5, "rtc", "test")
        m.clock.at(m.ticks + 5, "pit", "test")
        m.clock.at(m.ticks + 6, "pit", "test2")
        events = m.clock.state()
        assert len(events) >= 4
        seen = {m.state_hash()}
        variants = [[*events[:i], *events[i + 1 :]] for i in range(len(events))]
        for i, (device, name, when) in enumerate(events):
            assert isinstance(when, int)
            variants.append([*events[:i], [device, name, when + 1], *events[i + 1 :]])
        for i, variant in enumerate(variants):
            m.clock.load(variant)
            seen.add(m.state_hash())
            assert len(seen) == i + 2, variant
        m.clock.load(list(reversed(events)))
        assert m.state_hash() in seen, "not the order in which they were scheduled"


def test_the_clock() -> None:
    with flat("nop\n" * 100) as a, flat("nop\n" * 100) as b:
        assert a.state_hash() == b.state_hash()
        hashes = {a.state_hash()}
        a._time.ticks += 1
        hashes.add(a.state_hash())
        a._time.skipped += 1
        hashes.add(a.state_hash())
        assert len(hashes) == 3


def test_every_translation() -> None:
    with busy_machine() as m:
        cpu = m.cpus[0]
        pairs = cpu.tlb()
        assert len(pairs) >= 40
        before = m.state_hash()
        for i in range(0, min(len(pairs), 120), 2):
            cpu.load_tlb([*pairs[:i], *pairs[i + 2 :]])
            assert m.state_hash() != before, "one less"
            for part, bit in ((0, 1), (1, 1 << 20), (1, 2)):
                changed = list(pairs)
                changed[i + part] ^= bit
                if changed[i + part] in pairs[::2] and part == 0:
                    continue
                cpu.load_tlb(changed)
                assert m.state_hash() != before, f"entry {i // 2}, part {part}, bit {bit:#x}"
        cpu.load_tlb(pairs)
        assert cpu.tlb() == pairs
        assert m.state_hash() == before


def test_the_order_in_which_translations_were_made_is_not_state() -> None:
    with busy_machine() as m:
        pairs = m.cpus[0].tlb()
        before = m.state_hash()
        rows = [pairs[i : i + 2] for i in range(0, len(pairs), 2)]
        m.cpus[0].load_tlb([word for row in reversed(rows) for word in row])
        assert m.state_hash() == before


@pytest.mark.parametrize(
    "phys", [0, 7, 0x9FFFF, 0xC0000, 0x100000, 0x7FFFFFFF, 0x100000000, 0x17FFFFFFF, 0x1FFFFFFFF]
)
def test_one_bit_of_memory(phys: int) -> None:
    with Machine(6 << 30) as m:
        m.memory.write(0x300000, b"something", by="test")
        before = m.state_hash()
        (old,) = m.memory.read(phys, 1)
        for bit in range(8):
            m.memory.write(phys, bytes([int(old) ^ 1 << bit]), by="test")
            assert m.state_hash() != before
        m.memory.write(phys, bytes([int(old)]), by="test")
        assert m.state_hash() == before


def test_equal_pages_in_other_places_are_another_state() -> None:
    hashes = set()
    for places in [(), (1, 2), (1, 3), (1,), (2,), (3,)]:
        with Machine(64 << 20) as m:
            for page in places:
                m.memory.write(0x200000 + 4096 * page, b"the same in each", by="test")
            hashes.add(m.state_hash())
    assert len(hashes) == 6


def test_an_untouched_page_equals_a_zero_page() -> None:
    with Machine(64 << 20) as a, Machine(64 << 20) as b:
        a.memory.write(0x1000000, bytes(1 << 20), by="test")
        assert a.state_hash() == b.state_hash()
        a.memory.write(0x1000000, b"x" * 5000, by="test")
        assert a.state_hash() != b.state_hash()
        a.memory.write(0x1000000, bytes(5000), by="test")
        assert a.state_hash() == b.state_hash()


def test_guest_stores_are_seen_by_the_hash() -> None:
    """A store with the same TLB and registers but another value."""
    hashes = set()
    for value in (1, 2):
        with flat(f"mov edi, {DATA}\nmov al, {value}\nmov [rdi], al\nmov al, 0\nhlt") as m:
            m.run(until=2)
            m.state_hash()
            m.run(until=100)
            m.memory.write(0x10000, bytes(64), by="test")  # the code differs too
            hashes.add(m.state_hash())
    assert len(hashes) == 2


def test_the_description() -> None:
    made = [
        Machine(2 << 20),
        Machine(3 << 20),
        Machine(2 << 20, strict_memory=True),
        Machine(2 << 20, rtc_epoch=5),
    ]
    assert len({m.state_hash() for m in made}) == 4
    for m in made:
        m.close()


def test_the_serial_log_and_probes_are_not_state() -> None:
    with busy_machine() as m:
        before = m.state_hash()
        m.serial[0].clear()
        m.probe(0x200000, lambda m, a: None)
        assert m.state_hash() == before
