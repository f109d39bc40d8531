"""TOML that the old `toml` package reads back unchanged: train.py reads its configs with that package.

Why: `toml` 0.10 misreads valid TOML, some of it without a word: an apostrophe in an inline table empties a
whole list, a list with 1 and 0.99 is refused, a value beginning with two quotes becomes empty. So what is
written keeps to the part that it reads well (no inline tables, every special character as an escape), and is
then read back with that very package and compared. What does not come back as it was is refused, never
trained.

Known gap: nested tables below [[arrays of tables]] are not written; no config of ours has one.
"""

import re
import tomllib
from collections.abc import Iterator
from typing import Any

import toml
import tomli_w

from dpiped import tomltext

_STRING = re.compile(r'"(?:[^"\\\n]|\\.)*"')
_PLAIN = re.compile(r"[A-Za-z0-9/_.:+@%~ -]")
_FIRST_SAFE = "\u00a1"
"""From here on (no-break space and below are not) the package takes every character as it is."""


def write(data: dict[str, Any]) -> str:
    """The text of a table whose lists of tables are written as [[key]] blocks."""
    blocks = {key: value for key, value in data.items() if _is_tables(value)}
    parts = [tomli_w.dumps({key: value for key, value in data.items() if key not in blocks})]
    for key, tables in blocks.items():
        parts += [f"\n[[{key}]]\n{tomli_w.dumps(table)}" for table in tables]
    return _STRING.sub(_escaped, "".join(parts))


def misread(data: dict[str, Any]) -> list[str]:
    """Dotted keys whose values the package does not read back as they are; none for what can be said."""
    if _reads(data):
        return []
    wrong = [key for key, value in _leaves(data) if not _reads({"value": value})]
    return wrong or list(data)


def says(text: str, data: dict[str, Any]) -> bool:
    """Does the text say this by the rules of TOML? Compared as text: nan is nan, 1 neither 1.0 nor true."""
    try:
        return repr(tomltext.loads(text)) == repr(data)
    except ValueError:
        return False


def quoted(text: str) -> str:
    """The string as `write` writes it."""
    return f'"{"".join(map(_character, text))}"'


def _reads(data: dict[str, Any]) -> bool:
    """Compared as text: there 1 is neither 1.0 nor true."""
    try:
        read = toml.loads(write(data))
    except (toml.TomlDecodeError, IndexError, ValueError):
        return False
    return repr(_plain(read)) == repr(_plain(data))


def _plain(value: Any) -> Any:
    """Dictionaries of the package's own kinds, and tuples, as the plain ones; keys in one order."""
    if isinstance(value, dict):
        return {key: _plain(value[key]) for key in sorted(value)}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    return value


def _is_tables(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(each, dict) for each in value)


def _leaves(data: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in data.items():
        if isinstance(value, dict):
            yield from _leaves(value, f"{prefix}{key}.")
        elif _is_tables(value):
            for index, table in enumerate(value):
                yield from _leaves(table, f"{prefix}{key}[{index}].")
        else:
            yield prefix + key, value


def _escaped(found: re.Match[str]) -> str:
    value: str = tomllib.loads(f"value = {found.group()}")["value"]
    return quoted(value)


def _character(character: str) -> str:
    if character == "\\":
        return "\\\\"
    if character >= _FIRST_SAFE or _PLAIN.match(character):
        return character
    return f"\\u{ord(character):04x}"
