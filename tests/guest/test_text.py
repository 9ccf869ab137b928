"""lib/vsprintf.c, lib/kstrtox.c, lib/string.c and kernel/printk.c against the C library, Python and the
rules of Linux.
"""

from __future__ import annotations

import ctypes
import re

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tests.guest.lib_host import load

LIBC = ctypes.CDLL(None)
EINVAL, E2BIG, ERANGE = -22, -7, -34
LENGTHS = {"": 32, "h": 16, "hh": 8, "l": 64, "ll": 64, "z": 64, "j": 64, "t": 64}


def libc_format(fmt: str, *args: int | bytes, room: int = 512) -> bytes:
    values = [ctypes.c_char_p(a) if isinstance(a, bytes) else ctypes.c_uint64(a % 2**64) for a in args]
    buf = ctypes.create_string_buffer(room)
    LIBC.snprintf(buf, ctypes.c_size_t(room), fmt.encode(), *values)
    return buf.value


@given(
    st.text("-+ #0", max_size=4),
    st.none() | st.integers(0, 40),
    st.none() | st.integers(0, 40),
    st.sampled_from(sorted(LENGTHS)),
    st.sampled_from("diuxXo"),
    st.integers(-(2**63), 2**64 - 1) | st.sampled_from([0, 1, -1, 7, 8, 127, 128, 2**31, 2**63]),
)
@example("#", None, 0, "", "o", 0)
@example("0", 12, 3, "l", "d", -5)
def test_integers_are_formatted_like_the_c_library_does(
    flags: str, width: int | None, precision: int | None, length: str, kind: str, value: int
) -> None:
    fmt = "%" + flags + (str(width) if width else "") + (f".{precision}" if precision is not None else "")
    fmt += length + kind
    assert load().format(f"<{fmt}>", value) == libc_format(f"<{fmt}>", value), f"{fmt!r} of {value}"


@given(st.integers(-(2**31), 2**31 - 1), st.integers(0, 30))
def test_integers_are_formatted_like_python_does(value: int, width: int) -> None:
    for fmt in (f"%{width}d", f"%-{width + 1}d", f"%0{width + 1}d", "%+d", "% d"):
        assert load().format(fmt, value) == (fmt % value).encode(), fmt
    for fmt in (f"%{width}x", f"%0{width + 1}X"):
        assert load().format(fmt, value % 2**32) == (fmt % (value % 2**32)).encode(), fmt


TEXT = st.binary(max_size=30).filter(lambda b: 0 not in b)


@given(TEXT, st.booleans(), st.integers(0, 40), st.none() | st.integers(0, 40))
def test_strings_are_formatted_like_the_c_library_does(
    text: bytes, left: bool, width: int, precision: int | None
) -> None:
    fmt = (
        "%" + "-" * left + (str(width) if width else "") + (f".{precision}" if precision is not None else "")
    )
    fmt += "s|%c"
    assert load().format(fmt, text, 65) == libc_format(fmt, text, 65)


@given(st.integers(-60, 60), st.integers(-5, 60), st.integers(-1000, 1000))
def test_width_and_precision_may_be_arguments(width: int, precision: int, value: int) -> None:
    fmt = "%*.*d|%-*s|"
    args = (width % 2**32, precision % 2**32, value, width % 2**32, b"x")
    assert load().format(fmt, *args) == libc_format(fmt, *args)


@given(TEXT, st.integers(0, 40))
def test_the_buffer_is_kept_to(text: bytes, room: int) -> None:
    got = load().format("%s%d", text, 12345, room=room)
    whole = text + b"12345"
    assert got == (whole[: room - 1] if room else b"%d" % len(whole))


@pytest.mark.parametrize(
    "fmt, args, text",
    [
        ("%p", (0xFFFF888000000001,), "0xffff888000000001"),
        ("%p", (0,), "0x0000000000000000"),
        ("%pS+", (0xFFFFFFFF81000000,), "0xffffffff81000000+"),
        ("%pe", (2**64 - 12,), "-12"),
        ("%s", (None,), "(null)"),
        ("%.3s", (None,), "(nu"),
        ("100%%", (), "100%"),
        ("%q", (), "%q"),
        ("%", (), "%"),
        ("%-", (), "%-"),
        ("%.", (), "%."),
        ("%l", (), "%l"),
        ("", (), ""),
    ],
)
def test_extensions_and_what_is_no_format(fmt: str, args: tuple[int | None, ...], text: str) -> None:
    assert load().format(fmt, *args) == text.encode()


def memparse(text: bytes) -> tuple[int, bytes]:
    end = ctypes.c_char_p()
    value = int(load().c.memparse(text, ctypes.byref(end)))
    return value, end.value or b""


@pytest.mark.parametrize(
    "text, value, rest",
    [
        (b"0", 0, b""),
        (b"4096", 4096, b""),
        (b"64k", 64 << 10, b""),
        (b"0x10M,", 16 << 20, b","),
        (b"010G:", 8 << 30, b":"),
        (b"1t", 1 << 40, b""),
        (b"1P", 1 << 50, b""),
        (b"2E", 2 << 60, b""),
        (b"16E", 0, b""),  # modulo 2^64, as in Linux
        (b"1KM", 1 << 10, b"M"),
        (b"K", 0, b""),
        (b"", 0, b""),
        (b"-1", 0, b"-1"),
        (b"0xZ", 0, b"xZ"),
        (b"089", 0, b"89"),
        (b"18446744073709551617", 1, b""),
        (b" 1", 0, b" 1"),
    ],
)
def test_sizes(text: bytes, value: int, rest: bytes) -> None:
    assert memparse(text) == (value, rest)


@given(
    st.integers(0, 2**64 - 1),
    st.sampled_from([("%d", 0), ("0x%x", 0), ("0x%X", 16), ("%x", 16), ("0%o", 0), ("%d", 10)]),
)
def test_numbers_are_read_back(value: int, form: tuple[str, int]) -> None:
    out = ctypes.c_uint64()
    text = (form[0] % value).encode()
    for suffix in (b"", b"\n"):
        assert load().c.kstrtou64(text + suffix, form[1], ctypes.byref(out)) == 0, text
        assert out.value == value
    assert load().c.kstrtou64(b"+" + text, form[1], ctypes.byref(out)) == 0


@pytest.mark.parametrize(
    "text, base, error",
    [
        (b"", 0, EINVAL),
        (b"\n", 0, EINVAL),
        (b"+", 0, EINVAL),
        (b"++1", 0, EINVAL),
        (b"-1", 0, EINVAL),
        (b" 1", 0, EINVAL),
        (b"1 ", 0, EINVAL),
        (b"1\n\n", 0, EINVAL),
        (b"0x", 0, EINVAL),
        (b"0x", 16, EINVAL),
        (b"12a", 10, EINVAL),
        (b"09", 0, EINVAL),
        (b"1k", 0, EINVAL),
        (b"18446744073709551616", 10, ERANGE),
        (b"0x10000000000000000", 0, ERANGE),
        (b"99999999999999999999999999x", 10, ERANGE),
    ],
)
def test_what_is_no_number_leaves_the_result_alone(text: bytes, base: int, error: int) -> None:
    out = ctypes.c_uint64(0x1234)
    assert load().c.kstrtou64(text, base, ctypes.byref(out)) == error
    assert out.value == 0x1234


@pytest.mark.parametrize("text, value", [(t, True) for t in (b"1", b"y", b"Yes", b"true", b"on", b"oN", b"E")]
                         + [(t, False) for t in (b"0", b"n", b"No", b"false", b"off", b"OF", b"d")]
                         + [(t, None) for t in (b"", b"o", b"ox", b"2", b"-", b" 1")])  # fmt: skip
def test_switches_are_told_by_their_first_characters(text: bytes, value: bool | None) -> None:
    out = ctypes.c_bool()
    assert load().c.kstrtobool(text, ctypes.byref(out)) == (EINVAL if value is None else 0)
    assert value is None or out.value is value


# ---- memory and strings


@given(st.binary(min_size=1, max_size=100), st.data())
def test_moves_within_a_buffer(data: bytes, draw: st.DataObject) -> None:
    n = draw.draw(st.integers(0, len(data)))
    src, dst = (draw.draw(st.integers(0, len(data) - n)) for _ in range(2))
    buf = ctypes.create_string_buffer(data, len(data))
    at = ctypes.addressof(buf)
    p, size = ctypes.c_void_p, ctypes.c_size_t
    load().c.memmove(p(at + dst), p(at + src), size(n))
    want = bytearray(data)
    want[dst : dst + n] = data[src : src + n]
    assert buf.raw == bytes(want), f"memmove({dst}, {src}, {n})"


@given(st.integers(0, 70), st.integers(0, 9), st.integers(-300, 300))
def test_fills_and_copies_touch_nothing_else(n: int, at: int, value: int) -> None:
    buf = ctypes.create_string_buffer(b"\x11" * 100, 100)
    load().c.memset(ctypes.c_void_p(ctypes.addressof(buf) + at), value, ctypes.c_size_t(n))
    want = b"\x11" * at + bytes([value % 256]) * n + b"\x11" * (100 - at - n)
    assert buf.raw == want
    copy = ctypes.create_string_buffer(b"\x22" * 100, 100)
    load().c.memcpy(ctypes.c_void_p(ctypes.addressof(copy) + at), buf, ctypes.c_size_t(n))
    assert copy.raw == b"\x22" * at + want[:n] + b"\x22" * (100 - at - n)


@given(st.binary(max_size=24), st.binary(max_size=24), st.integers(0, 24))
def test_comparisons_have_the_sign_that_python_has(a: bytes, b: bytes, n: int) -> None:
    def sign(x: bytes, y: bytes) -> int:
        return (x > y) - (x < y)

    n = min(n, len(a), len(b))
    assert load().c.memcmp(a, b, ctypes.c_size_t(n)) == sign(a[:n], b[:n])
    a, b = a.split(b"\0")[0], b.split(b"\0")[0]
    assert load().c.strcmp(a, b) == sign(a, b)
    assert load().c.strncmp(a, b, ctypes.c_size_t(n)) == sign(a[:n], b[:n])


@given(st.text("ab/", max_size=12), st.text("ab", max_size=3))
def test_searches_find_what_python_finds(text: str, what: str) -> None:
    c = load().c
    buf = ctypes.create_string_buffer(text.encode())
    base = ctypes.addressof(buf)
    for name in ("strchr", "strrchr", "strstr", "memchr"):
        getattr(c, name).restype = ctypes.c_void_p
    c.strlen.restype = c.strnlen.restype = ctypes.c_size_t

    def index(found: int | None) -> int:
        return -1 if found is None else found - base

    assert index(c.strstr(buf, what.encode())) == text.find(what)
    assert index(c.strchr(buf, ord("/"))) == text.find("/")
    assert index(c.strrchr(buf, ord("/"))) == text.rfind("/")
    assert index(c.strchr(buf, 0)) == index(c.strrchr(buf, 0)) == len(text)
    assert index(c.memchr(buf, ord("b"), ctypes.c_size_t(len(text)))) == text.find("b")
    assert c.strlen(buf) == len(text)
    assert c.strnlen(buf, ctypes.c_size_t(3)) == min(3, len(text))


@given(st.text("xyz", max_size=12), st.integers(0, 14))
def test_a_copied_string_always_ends(text: str, room: int) -> None:
    c = load().c
    c.strscpy.restype = ctypes.c_ssize_t
    buf = ctypes.create_string_buffer(b"\xee" * 20, 20)
    n = c.strscpy(buf, text.encode(), ctypes.c_size_t(room))
    assert n == (len(text) if len(text) < room else E2BIG)
    kept = text.encode()[: max(room - 1, 0)] + b"\0" * (room > 0)
    assert buf.raw == kept + b"\xee" * (20 - len(kept))


# ---- printk


def say(*messages: bytes, options: bytes = b"") -> str:
    lib = load()
    lib.parse(b"loglevel=7 " + options, early=True)
    lib.console()
    for message in messages:
        lib.c.printk(message)
    return lib.console()


@pytest.mark.parametrize(
    "options, shown",
    [
        (b"", "0123456"),
        (b"quiet", "0123"),
        (b"loglevel=8", "01234567"),
        (b"loglevel=0", ""),
        (b"debug", "01234567"),
        (b"quiet loglevel=5", "01234"),
    ],
)
def test_a_level_decides_what_is_shown(options: bytes, shown: str) -> None:
    assert say(*(b"\x01%d%d\n" % (i, i) for i in range(8)), options=options) == "".join(
        f"{c}\n" for c in shown
    )


def test_a_message_without_level_is_a_warning() -> None:
    assert say(b"seen\n", options=b"loglevel=5") == "seen\n"
    assert say(b"not seen\n", options=b"loglevel=4") == ""


def test_a_continuation_goes_on_in_its_line_and_shares_its_fate() -> None:
    assert say(b"\x016a", b"\x01cb", b"\x01cc\n", b"\x016d\n") == "abc\nd\n"
    assert say(b"\x017a", b"\x01cb\n", b"\x016c\n") == "c\n"


def test_a_line_that_was_not_ended_is_ended_by_the_next_message() -> None:
    assert say(b"\x016a", b"\x016b\n") == "a\nb\n"
    lib = load()
    assert say(b"\x016a") == "a"
    lib.c.printk_flush()
    lib.c.printk_flush()
    assert lib.console() == "\n"


def test_a_message_that_is_too_long_is_cut_and_the_next_one_has_its_own_line() -> None:
    text = say(b"\x016" + b"x" * 5000, b"\x016next\n")
    assert re.fullmatch(r"x{2000,4000}\nnext\n", text)


@pytest.mark.parametrize("value", [b"", b"x", b"7x", b"-1", b"99999999999999999999"])
def test_a_level_that_is_no_number_is_told_and_changes_nothing(value: bytes) -> None:
    lib = load()
    lib.parse(b"loglevel=5", early=True)
    lib.console()
    lib.parse(b"loglevel=" + value, early=True)
    assert lib.console() == "Malformed early option 'loglevel'\n"
    assert say(b"\x016no\n", b"\x014yes\n", options=b"loglevel=5 loglevel=" + value).endswith("yes\n")
