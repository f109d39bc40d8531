"""TOML from elsewhere, read in a time that grows with its length only.

Why: the time that Python's parser takes grows with the square of a key's dotted parts; a file of a mebibyte
that is one such key would keep the daemon for an hour. No config has a key of many parts.

Known gap: none.
"""

import re
import tomllib
from typing import Any

LARGEST_KEY = 16
"""Dots."""
_STRING_OR_COMMENT = re.compile(
    r'"""(?:[^"\\]|\\[\s\S]|"(?!""))*+(?:"{3,5}|\\?\Z)'
    r"|'''(?:[^']|'(?!''))*+(?:'{3,5}|\Z)"
    r'|"(?:[^"\\\n]|\\.)*+"'
    r"|'[^'\n]*+'"
    r"|#[^\n]*+"
)
_LONG_KEY = re.compile(rf"(?:\.[ \t]*+[\w-]++[ \t]*+){{{LARGEST_KEY + 1}}}")


class LongKey(ValueError):
    """A key of more dotted parts than any config or form has."""


def loads(text: str) -> dict[str, Any]:
    """What the text says. Raises LongKey, another ValueError, RecursionError."""
    if _LONG_KEY.search(_STRING_OR_COMMENT.sub("s", text)):
        raise LongKey(f"a key has more than {LARGEST_KEY} dots")
    return tomllib.loads(text)
