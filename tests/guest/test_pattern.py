"""lib/pattern.c against a model in numpy, and its checksum against the Internet checksum's definition."""

from __future__ import annotations

import ctypes

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tests.guest.lib_host import Fenced, load

PAGE = 4096
MASK = 2**64 - 1
GOLDEN = 0x9E3779B97F4A7C15


class Pattern(ctypes.Structure):
    _fields_ = (("start", ctypes.c_uint64), ("step", ctypes.c_uint64))


def mix(z: int) -> int:
    """The finishing steps of splitmix64."""
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9 & MASK
    z = (z ^ z >> 27) * 0x94D049BB133111EB & MASK
    return z ^ z >> 31


def make(seed: int, index: int) -> Pattern:
    make_pattern = load().c.make_pattern
    make_pattern.restype = Pattern
    return Pattern.from_buffer_copy(make_pattern(ctypes.c_uint64(seed), ctypes.c_uint64(index)))


def fill(pattern: Pattern, size: int, total: int = 0) -> tuple[bytes, int]:
    c = load().c
    c.pattern_fill.restype = ctypes.c_uint32
    buf = Fenced(b"\xee" * size)
    got = c.pattern_fill(pattern, ctypes.c_void_p(buf.address), ctypes.c_uint64(size), ctypes.c_uint32(total))
    return ctypes.string_at(buf.address, size), got


def checksum(data: bytes, total: int = 0) -> int:
    c = load().c
    c.csum_partial.restype = ctypes.c_uint32
    buf = Fenced(data)
    return int(
        c.csum_partial(ctypes.c_void_p(buf.address), ctypes.c_uint64(len(data)), ctypes.c_uint32(total))
    )


def check(pattern: Pattern, data: bytes) -> int:
    c = load().c
    c.pattern_check.restype = ctypes.c_int64
    buf = Fenced(data)
    return int(c.pattern_check(pattern, ctypes.c_void_p(buf.address), ctypes.c_uint64(len(data))))


def ones_complement(data: bytes, total: int = 0) -> int:
    """RFC 1071 with 32-bit words: add, and every carry comes back in at the other end."""
    for word in np.frombuffer(data, dtype="<u4").tolist():
        total += word
        total = (total & 0xFFFFFFFF) + (total >> 32)
    return total


def words(pattern: Pattern, size: int) -> bytes:
    return b"".join((pattern.start + i * pattern.step & MASK).to_bytes(8, "little") for i in range(size // 8))


@given(st.integers(0, MASK), st.integers(0, MASK))
def test_a_pattern_is_made_of_two_numbers(seed: int, index: int) -> None:
    pattern = make(seed, index)
    start = mix((seed + index * GOLDEN) & MASK)
    assert (pattern.start, pattern.step) == (start, mix((start + GOLDEN) & MASK) | 1)


@given(
    st.integers(0, MASK),
    st.integers(0, MASK),
    st.sampled_from([64, 128, 4096, 4160, 8192]),
    st.integers(0, 2**32 - 1),
)
@example(0, 0, 64, 0)
@example(MASK, 0, 4096, 2**32 - 1)
@example(MASK, 1, 8192, 2**32 - 1)
def test_what_is_written_and_its_sum(start: int, step: int, size: int, total: int) -> None:
    pattern = Pattern(start, step)
    data, got = fill(pattern, size, total)
    assert data == words(pattern, size)
    assert got == ones_complement(data, total) == checksum(data, total)
    assert check(pattern, data) == -1


@given(st.binary(min_size=64, max_size=64), st.integers(0, 2**32 - 1))
@example(b"\0" * 64, 0)
@example(b"\xff" * 64, 0)
@example(b"\xff" * 64, 2**32 - 1)
@example(b"\0" * 63 + b"\x80", 2**31)
def test_any_bytes_have_the_sum_that_linux_has(data: bytes, total: int) -> None:
    assert checksum(data, total) == ones_complement(data, total)


@pytest.mark.parametrize("size", [64, PAGE - 64, PAGE, 3 * PAGE, 3 * PAGE + 128])
def test_any_word_that_is_another_is_found(size: int) -> None:
    pattern = make(1, 2)
    good = words(pattern, size)
    for at in {0, 7, 8, 63, 64, size // 2, PAGE - 1, PAGE, 2 * PAGE + 5, size - 64, size - 1}:
        if at < size:
            bad = bytearray(good)
            bad[at] ^= 0x80
            assert check(pattern, bytes(bad)) == at // 8 * 8
    swapped = bytearray(good)
    swapped[:8], swapped[8:16] = good[8:16], good[:8]
    assert check(pattern, bytes(swapped)) == 0
    assert checksum(bytes(swapped)) == checksum(good), "which is why the sum alone is not enough"


@pytest.mark.parametrize("size", [0, 8, 56])
def test_less_than_a_block_is_nothing(size: int) -> None:
    data, total = fill(make(1, 1), size, 77)
    assert (data, total) == (b"\xee" * size, 77)


def test_random_numbers_are_those_of_xoshiro() -> None:
    """Against the generator's definition, for seed 1 and generation 0."""
    state, x = [], 1
    for _ in range(4):
        x = x + GOLDEN & MASK
        state.append(mix(x))

    def rotate(v: int, n: int) -> int:
        return (v << n | v >> (64 - n)) & MASK

    for number in range(1000):
        want = rotate(state[1] * 5 & MASK, 7) * 9 & MASK
        shifted = state[1] << 17 & MASK
        state[2] ^= state[0]
        state[3] ^= state[1]
        state[1] ^= state[2]
        state[0] ^= state[3]
        state[2] ^= shifted
        state[3] = rotate(state[3], 45)
        assert load().c.get_random_u64() == want, f"number {number}"
