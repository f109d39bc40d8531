"""A raw line of a log as a terminal would show it."""

import time

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from dpiped import logs
from dpiped.logs import shown

CALM = settings(deadline=None)
"""A busy machine is no reason to fail."""


@pytest.mark.parametrize(
    ("raw", "text"),
    [
        (b"", ""),
        (b"plain", "plain"),
        ("käse █".encode(), "käse █"),
        (b"  0%\r 50%\r100%", "100%"),
        (b"100%\rok", "ok0%"),
        (b"a long text\rshort", "shortg text"),
        (b"windows line\r", "windows line"),
        (b"\r\r\r", ""),
        (b"abc   \r", "abc"),
        (b"\x1b[31mred\x1b[0m", "red"),
        (b"\x1b[1;38;5;196mred\x1b[m", "red"),
        (b"\x1b[?25lhidden cursor\x1b[?25h", "hidden cursor"),
        (b"\x1b[A\x1b[2Kup", "up"),
        (b"\x1b]0;title\x07text", "text"),
        (b"\x1b]8;;http://x\x1b\\link\x1b]8;;\x1b\\", "link"),
        (b"bell\x07 null\x00 del\x7f", "bell null del"),
        (b"a\tb", "a\tb"),
        (b"\xff\xfeok", "��ok"),
        (b"lonely \x1b", "lonely "),
    ],
)
def test_a_line_as_a_terminal_shows_it(raw: bytes, text: str) -> None:
    assert shown(raw) == text


@pytest.mark.parametrize(
    ("raw", "text"),
    [
        (b"a long text\r\x1b[Kok", "ok"),
        (b"a long text\x1b[2K\rok", "ok"),
        (b"\x1b(B\x1b[mplain again", "plain again"),
        (b"\x1b[38:2::255:0:0mred\x1b[0m", "red"),
    ],
    ids=["erase to the end", "erase the line", "charset of tput sgr0", "colon parameters"],
)
def test_rarer_escapes_as_a_terminal_shows_them(raw: bytes, text: str) -> None:
    assert shown(raw) == text


def test_no_eight_bit_control_reaches_the_terminal() -> None:
    assert "\x9b" not in shown(b"\xc2\x9b31mred")


@CALM
@given(st.binary(max_size=300))
@example(b"\x1b\x1b[31m[31mx")
@example(b"\x1b\x07[31mx")
def test_no_control_character_reaches_the_terminal(raw: bytes) -> None:
    text = shown(raw.replace(b"\n", b""))
    assert not [char for char in text if (ord(char) < 32 and char != "\t") or ord(char) == 127]


def test_a_very_long_line_is_cut_in_the_middle_and_says_so() -> None:
    text = shown(b"A" * logs.LINE_LIMIT + b"B" * 1000)
    assert text.startswith("A" * 8192) and text.endswith("B" * 1000)
    assert "[1000 characters cut]" in text
    assert shown(b"A" * logs.LINE_LIMIT) == "A" * logs.LINE_LIMIT


def test_a_long_bar_redrawn_for_ever_is_shown_quickly() -> None:
    raw = b"".join(b"\r%5d/99999 %s" % (number, b"#" * 80) for number in range(10_000))
    begun = time.process_time()
    assert shown(raw).startswith(" 9999/99999 ####")
    assert time.process_time() - begun < 0.5
