"""kernel/params.c: the command line by the rules of Linux."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.guest.lib_host import COMMAND_LINE_MAX, load


@pytest.mark.parametrize(
    "text, calls",
    [
        (b"", []),
        (b"   ", []),
        (b"late", [(b"late", b"")]),
        (b"late=", [(b"late", b"")]),
        (b" late=1\tlate=2\nlate=3 ", [(b"late", b"1"), (b"late", b"2"), (b"late", b"3")]),
        (b"late=a=b", [(b"late", b"a=b")]),
        (b'late="a b"', [(b"late", b"a b")]),
        (b'"late=a b"', [(b"late", b"a b")]),
        (b'late="a b" x=1', [(b"late", b"a b"), (b"x", b"1")]),
        (b'late=a"b c"d x', [(b"late", b'a"b c"d'), (b"x", b"")]),
        (b'late="a" x', [(b"late", b"a"), (b"x", b"")]),
        (b'"late" x', [(b"late", b""), (b"x", b"")]),
        (b'late="never ends x=1', [(b"late", b"never ends x=1")]),
        (b'late="', [(b"late", b"")]),
        (b'"', []),
        (b'""', []),
        (b'late=""', [(b"late", b"")]),
        (b"unit.max_mem=8M", [(b"unit.max_mem", b"8M")]),
        (b"unit.max-mem=8M", [(b"unit.max_mem", b"8M")]),
        (b"dash_ed=1 dash-ed=2", [(b"dash-ed", b"1"), (b"dash-ed", b"2")]),
        (b"lat=1 latex=1 LATE=1 =1 late1", []),
        (b"x=1 -- x=2", [(b"x", b"1")]),
        (b"--x x=1", [(b"x", b"1")]),
        (b"--=1 x=1", [(b"x", b"1")]),
        (b"unknown.option=7 x", [(b"x", b"")]),
    ],
)
def test_words_names_and_values(text: bytes, calls: list[tuple[bytes, bytes]]) -> None:
    assert load().parse(text, early=False) == calls
    assert load().console() == "", "unknown parameters are passed over silently"


def test_early_parameters_are_a_pass_of_their_own() -> None:
    text = b"both=1 late=2 early_one=3"
    assert load().parse(text, early=True) == [(b"both", b"1"), (b"early_one", b"3")]
    assert load().parse(text, early=False) == [(b"both", b"1"), (b"late", b"2")]


def test_what_a_handler_refuses_is_told_and_the_rest_goes_on() -> None:
    assert load().parse(b"early_one=bad both=1", early=True)[-1] == (b"both", b"1")
    assert load().console() == "Malformed early option 'early_one'\n"
    assert load().parse(b"late=bad x=1", early=False)[-1] == (b"x", b"1")
    assert load().console() == "Booting kernel: `bad' invalid for parameter `late'\n"


@pytest.mark.parametrize("word", [b"x ", b"x=1 ", b"late=1234567 ", b"late=" + b"v" * 1000 + b" "])
def test_both_passes_over_the_longest_command_line_fit(word: bytes) -> None:
    text = (word * 1000)[:COMMAND_LINE_MAX]
    count = len(text) // len(word)
    assert len(load().parse(text, early=False)) >= count
    assert load().console() == ""


def split(text: str) -> list[tuple[str, str]]:
    """Names and values, by the rules in words: character by character, as the C code does not do it."""
    found = []
    rest = text.lstrip(" \t\n")
    while rest:
        quoted = rest[0] == '"'
        body, inside = rest[quoted:], quoted
        end = 0
        while end < len(body) and (inside or body[end] not in " \t\n"):
            inside ^= body[end] == '"'
            end += 1
        word, rest = body[:end], body[end:].lstrip(" \t\n")
        name, equals, value = word.partition("=")
        if word == "--":
            break
        if not equals and quoted:
            name = name.removesuffix('"')
        elif value.startswith('"'):
            value = value[1:].removesuffix('"')
        elif quoted:
            value = value.removesuffix('"')
        found.append((name.replace("-", "_"), value))
    return found


@given(st.lists(st.sampled_from([*'x=" -\t', "late", "both", "dash-ed", "--", " ", '="', "x="]), max_size=20))
def test_any_text_is_split_by_the_rules(pieces: list[str]) -> None:
    text = "".join(pieces)
    known = {"x": "x", "late": "late", "both": "both", "dash_ed": "dash-ed"}
    want = [(known[n].encode(), v.encode()) for n, v in split(text) if n in known]
    assert load().parse(text.encode(), early=False) == want, text


@pytest.mark.parametrize(
    "text, value",
    [
        (b"", None),
        (b"n", b""),
        (b"n=1 n=2", b"2"),
        (b"n=1 n", b""),
        (b"m=1", None),
        (b'n="a b"', b"a b"),
        (b"-- n=1", None),
        (b"n=0123456789", b"0123456"),
    ],
)
def test_a_value_is_found_by_name(text: bytes, value: bytes | None) -> None:
    assert load().find(text, b"n", room=8) == value
