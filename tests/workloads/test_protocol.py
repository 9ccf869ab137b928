"""The text protocol of memcached, as the cache speaks it: against its documentation, and a plain model."""

from __future__ import annotations

import random
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.workloads.service import Client, serving

MIB = 1 << 20


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    # the name of a socket has to be short
    with tempfile.TemporaryDirectory() as place, serving(Path(place)) as found:
        yield found


@pytest.fixture
def c(path: Path) -> Iterator[Client]:
    with Client(path) as client:
        client.say(b"flush_all\r\n", b"OK\r\n")
        yield client


def test_set_and_get(c: Client) -> None:
    c.say(b"get a\r\n", b"END\r\n")
    c.say(b"set a 5 0 3\r\nabc\r\n", b"STORED\r\n")
    c.say(b"get a\r\n", b"VALUE a 5 3\r\nabc\r\nEND\r\n")
    c.say(b"set a 4294967295 0 0\r\n\r\n", b"STORED\r\n")
    c.say(b"get a b a\r\n", b"VALUE a 4294967295 0\r\n\r\nVALUE a 4294967295 0\r\n\r\nEND\r\n")


def test_any_bytes(c: Client) -> None:
    value = bytes(range(256)) + b"\r\nget a\r\n"
    c.say(b"set a 0 0 %d\r\n%s\r\n" % (len(value), value), b"STORED\r\n")
    c.say(b"get a\r\n", b"VALUE a 0 %d\r\n%s\r\nEND\r\n" % (len(value), value))


def test_add_and_replace(c: Client) -> None:
    c.say(b"replace a 0 0 1\r\nx\r\n", b"NOT_STORED\r\n")
    c.say(b"add a 0 0 1\r\n1\r\n", b"STORED\r\n")
    c.say(b"add a 0 0 1\r\n2\r\n", b"NOT_STORED\r\n")
    c.say(b"replace a 9 0 2\r\n33\r\n", b"STORED\r\n")
    c.say(b"get a\r\n", b"VALUE a 9 2\r\n33\r\nEND\r\n")


def test_append_and_prepend(c: Client) -> None:
    c.say(b"append a 0 0 1\r\nx\r\nprepend a 0 0 1\r\nx\r\n", b"NOT_STORED\r\nNOT_STORED\r\n")
    c.say(b"set a 7 0 2\r\nbc\r\nappend a 0 0 2\r\nde\r\n", b"STORED\r\nSTORED\r\n")
    c.say(b"prepend a 3 0 1\r\na\r\n", b"STORED\r\n")
    c.say(b"get a\r\n", b"VALUE a 7 5\r\nabcde\r\nEND\r\n")


def test_compare_and_swap(c: Client) -> None:
    c.say(b"cas a 0 0 1 1\r\nx\r\n", b"NOT_FOUND\r\n")
    c.say(b"set a 0 0 1\r\n1\r\n", b"STORED\r\n")
    c.socket.sendall(b"gets a\r\n")
    unique = int(c.until(b"END\r\n").split(b"\r\n")[0].split()[4])
    c.say(b"cas a 0 0 1 %d\r\n2\r\n" % (unique + 1), b"EXISTS\r\n")
    c.say(b"cas a 0 0 1 %d\r\n3\r\n" % unique, b"STORED\r\n")
    c.say(b"cas a 0 0 1 %d\r\n4\r\n" % unique, b"EXISTS\r\n")
    c.say(b"get a\r\n", b"VALUE a 0 1\r\n3\r\nEND\r\n")


def test_counting(c: Client) -> None:
    c.say(b"incr n 1\r\ndecr n 1\r\n", b"NOT_FOUND\r\nNOT_FOUND\r\n")
    c.say(b"set n 2 0 2\r\n10\r\nincr n 5\r\n", b"STORED\r\n15\r\n")
    c.say(b"decr n 6\r\nget n\r\n", b"9\r\nVALUE n 2 2\r\n9 \r\nEND\r\n")
    c.say(b"decr n 100\r\nincr n 18446744073709551615\r\nincr n 1\r\n", b"0\r\n18446744073709551615\r\n0\r\n")
    c.say(b"set n 0 0 1\r\nx\r\nincr n 1\r\n",
          b"STORED\r\nCLIENT_ERROR cannot increment or decrement non-numeric value\r\n")  # fmt: skip
    for delta in (b"-1", b"x", b"18446744073709551616", b"1.5"):
        c.say(b"incr n %s\r\n" % delta, b"CLIENT_ERROR invalid numeric delta argument\r\n")


def test_delete(c: Client) -> None:
    c.say(b"delete a\r\n", b"NOT_FOUND\r\n")
    c.say(b"set a 0 0 1\r\nx\r\ndelete a\r\nget a\r\n", b"STORED\r\nDELETED\r\nEND\r\n")
    c.say(b"set a 0 0 1\r\nx\r\ndelete a 0\r\ndelete a 1\r\n",
          b"STORED\r\nDELETED\r\nCLIENT_ERROR bad command line format\r\n")  # fmt: skip


def test_expiry(c: Client) -> None:
    c.say(b"set a 0 -1 1\r\nx\r\nget a\r\n", b"STORED\r\nEND\r\n")
    c.say(b"set a 0 100 1\r\nx\r\nget a\r\n", b"STORED\r\nVALUE a 0 1\r\nx\r\nEND\r\n")
    c.say(b"touch a -1\r\nget a\r\ntouch a 5\r\n", b"TOUCHED\r\nEND\r\nNOT_FOUND\r\n")
    c.say(b"set a 0 100 1\r\nx\r\ngat 0 a\r\n", b"STORED\r\nVALUE a 0 1\r\nx\r\nEND\r\n")
    c.say(b"gat -1 a\r\nget a\r\n", b"VALUE a 0 1\r\nx\r\nEND\r\nEND\r\n")
    c.say(b"set a 0 1000000000 1\r\nx\r\nget a\r\n", b"STORED\r\nEND\r\n")  # a time, long ago


def test_noreply(c: Client) -> None:
    c.say(b"set a 0 0 1 noreply\r\nx\r\nadd a 0 0 1 noreply\r\ny\r\nincr a 1 noreply\r\nget a\r\n",
          b"CLIENT_ERROR cannot increment or decrement non-numeric value\r\n"
          b"VALUE a 0 1\r\nx\r\nEND\r\n")  # fmt: skip
    c.say(b"touch a 0 noreply\r\ndelete a noreply\r\nflush_all noreply\r\nget a\r\n", b"END\r\n")


def test_the_rest(c: Client) -> None:
    c.say(b"version\r\nverbosity 1\r\n", b"VERSION 1.6-luemu\r\nOK\r\n")
    c.say(b"set a 0 0 1\r\nx\r\nflush_all\r\nget a\r\n", b"STORED\r\nOK\r\nEND\r\n")
    c.say(b"set a 0 0 1\r\nx\r\nflush_all 1000\r\nget a\r\n", b"STORED\r\nOK\r\nVALUE a 0 1\r\nx\r\nEND\r\n")
    assert c.stat("curr_items") == 1 and c.stat("bytes") == 2
    c.socket.sendall(b"quit\r\nget a\r\n")
    assert c.gone()


@pytest.mark.parametrize(
    ("line", "answer"),
    [
        (b"", b"ERROR"),
        (b"nosuch", b"ERROR"),
        (b"GET a", b"ERROR"),
        (b"get", b"ERROR"),
        (b"stats nosuch", b"ERROR"),
        (b"set a 0 0", b"ERROR"),
        (b"incr a", b"ERROR"),
        (b"set a x 0 1", b"CLIENT_ERROR bad command line format"),
        (b"set a 0 0 -1", b"CLIENT_ERROR bad command line format"),
        (b"set a 4294967296 0 1", b"CLIENT_ERROR bad command line format"),
        (b"set a 0 0 1 2 3", b"CLIENT_ERROR bad command line format"),
        (b"cas a 0 0 1 x", b"CLIENT_ERROR bad command line format"),
        (b"get " + b"k" * 251, b"CLIENT_ERROR bad command line format"),
        (b"set " + b"k" * 251 + b" 0 0 1", b"CLIENT_ERROR bad command line format"),
        (b"touch a x", b"CLIENT_ERROR invalid exptime argument"),
        (b"gat x a", b"CLIENT_ERROR invalid exptime argument"),
        (b"flush_all x", b"CLIENT_ERROR bad command line format"),
        (b"get " + b"k" * 9000, b"CLIENT_ERROR line too long"),
    ],
    ids=lambda value: value[:20].decode(),
)
def test_a_line_that_is_no_command(c: Client, line: bytes, answer: bytes) -> None:
    """It is refused, and the next one is understood."""
    c.say(line + b"\r\n", answer + b"\r\n")
    c.say(b"version\r\n", b"VERSION 1.6-luemu\r\n")


def test_the_longest_key(c: Client) -> None:
    key = b"k" * 250
    c.say(b"set %s 0 0 1\r\nx\r\n" % key, b"STORED\r\n")
    c.say(b"get %s\r\n" % key, b"VALUE %s 0 1\r\nx\r\nEND\r\n" % key)


def test_a_value_that_ends_wrong(c: Client) -> None:
    """It is not stored; what was there before is."""
    c.say(b"set a 0 0 1\r\nx\r\n", b"STORED\r\n")
    c.say(b"set a 0 0 3\r\nabcdef\r\n", b"CLIENT_ERROR bad data chunk\r\n")
    c.say(b"get a\r\n", b"VALUE a 0 1\r\nx\r\nEND\r\n")


def test_the_largest_value(c: Client) -> None:
    value = random.Random(1).randbytes(MIB)
    c.say(b"set a 0 0 %d\r\n%s\r\n" % (MIB, value), b"STORED\r\n")
    c.say(b"get a\r\n", b"VALUE a 0 %d\r\n%s\r\nEND\r\n" % (MIB, value))
    c.say(b"set a 0 0 %d\r\n%sx\r\n" % (MIB + 1, value), b"SERVER_ERROR object too large for cache\r\n")
    c.say(b"get a\r\n", b"END\r\n")  # an old value must not outlive a newer one


def test_a_full_store_loses_nothing_that_it_has(c: Client) -> None:
    value = b"v" * 100_000
    stored = []
    for n in range(100):
        c.socket.sendall(b"set key%d 0 0 %d\r\n%s\r\n" % (n, len(value), value))
        answer = c.until(b"\r\n")
        if answer != b"STORED\r\n":
            assert answer == b"SERVER_ERROR out of memory storing object\r\n"
            break
        stored.append(n)
    assert 20 < len(stored) < 50
    for n in stored:
        c.say(b"get key%d\r\n" % n, b"VALUE key%d 0 %d\r\n%s\r\nEND\r\n" % (n, len(value), value))
    for n in stored:  # room comes back, for values of other sizes too
        c.say(b"delete key%d\r\n" % n, b"DELETED\r\n")
    for n in range(30):
        c.say(b"set small%d 0 0 9\r\n123456789\r\n" % n, b"STORED\r\n")


def test_a_client_that_goes_in_the_middle_of_a_value(path: Path, c: Client) -> None:
    c.say(b"set a 0 0 1\r\nx\r\n", b"STORED\r\n")
    for _ in range(300):  # more than would fit, were they kept
        with Client(path) as other:
            other.socket.sendall(b"set a 0 0 50000\r\n" + b"y" * 100)
    c.say(b"get a\r\n", b"VALUE a 0 1\r\nx\r\nEND\r\n")
    c.say(b"set b 0 0 50000\r\n%s\r\n" % (b"z" * 50000), b"STORED\r\n")


def test_a_client_that_does_not_read(path: Path, c: Client) -> None:
    """Others are served all the same."""
    c.say(b"set a 0 0 500000\r\n%s\r\n" % (b"y" * 500000), b"STORED\r\n")
    with Client(path) as other:
        other.socket.sendall(b"get a a a a a a a a a a\r\n" * 20)
        c.say(b"version\r\n", b"VERSION 1.6-luemu\r\n")


KEYS = st.sampled_from([b"a", b"b", b"key", b"k" * 250])
VALUES = st.binary(max_size=40) | st.integers(0, 200).map(lambda n: b"%d" % n)
COMMANDS = st.one_of(
    st.tuples(st.sampled_from([b"set", b"add", b"replace", b"append", b"prepend"]), KEYS, VALUES),
    st.tuples(st.sampled_from([b"get", b"delete"]), KEYS),
    st.tuples(st.sampled_from([b"incr", b"decr"]), KEYS, st.integers(0, 300)),
)


def model(state: dict[bytes, bytes], command: tuple[object, ...]) -> tuple[bytes, bytes]:
    """What is sent, and what has to come back, by the documentation."""
    verb, key = command[0], command[1]
    assert isinstance(verb, bytes) and isinstance(key, bytes)
    old = state.get(key)
    if verb == b"get":
        return b"get %s\r\n" % key, b"" if old is None else b"VALUE %s 0 %d\r\n%s\r\n" % (key, len(old), old)
    if verb == b"delete":
        state.pop(key, None)
        return b"delete %s\r\n" % key, b"NOT_FOUND\r\n" if old is None else b"DELETED\r\n"
    if verb in (b"incr", b"decr"):
        delta = command[2]
        assert isinstance(delta, int)
        sent = b"%s %s %d\r\n" % (verb, key, delta)
        if old is None:
            return sent, b"NOT_FOUND\r\n"
        digits = old.rstrip(b" ")
        if not digits.isdigit() or len(digits) > 20 or int(digits) >= 1 << 64:
            return sent, b"CLIENT_ERROR cannot increment or decrement non-numeric value\r\n"
        number = int(digits)
        number = (number + delta) % (1 << 64) if verb == b"incr" else max(0, number - delta)
        state[key] = (b"%d" % number).ljust(len(old))
        return sent, b"%d\r\n" % number
    value = command[2]
    assert isinstance(value, bytes)
    sent = b"%s %s 0 0 %d\r\n%s\r\n" % (verb, key, len(value), value)
    if (verb == b"add") == (old is not None) and verb != b"set":
        return sent, b"NOT_STORED\r\n"
    before, after = (b"", b"")
    if old is not None:
        before, after = (old, b"") if verb == b"append" else (b"", old) if verb == b"prepend" else (b"", b"")
    state[key] = before + value + after
    return sent, b"STORED\r\n"


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(COMMANDS, max_size=40), st.randoms(use_true_random=False))
def test_any_sequence_is_answered_as_by_a_plain_model(
    path: Path, commands: list[tuple[object, ...]], dice: random.Random
) -> None:
    """In whatever pieces the bytes arrive."""
    state: dict[bytes, bytes] = {}
    sent, expected = b"flush_all\r\n", b"OK\r\n"
    for command in commands:
        data, answer = model(state, command)
        sent += data
        expected += answer + (b"END\r\n" if command[0] == b"get" else b"")
    with Client(path) as c:
        while sent:
            size = dice.choice((1, 7, 100, len(sent)))
            c.socket.sendall(sent[:size])
            sent = sent[size:]
        assert c.read(len(expected)) == expected
        assert c.stat("curr_items") == len(state)
