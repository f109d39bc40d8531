"""TOML that the old `toml` package reads back unchanged: train.py reads its configs with that package.

Why: `toml` 0.10 misreads valid TOML, some of it without a word: an apostrophe in an inline table empties a
whole list, a list with 1 and 0.99 is refused, a value beginning with two quotes becomes empty. So what is
written keeps to the part that it reads well (no inline tables, every special character as an escape), and is
then read back with that very package and compared. What does not come back as it was is refused, never
trained.

A config that a user wrote is launched as it stands, so it is read with that package as well (`misreading`).

Known gap: nested tables below [[arrays of tables]] are not written; no config of ours has one. What is
misread in a user's config of more than 256 KiB is not found.
"""

import re
import tomllib
from collections.abc import Iterator
from typing import Any

import toml
import tomli_w

from dpiped import tomltext

LONGEST = 256 << 10
"""Characters of a config that is read with the package to see what it makes of it."""
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


def misreading(text: str) -> str | None:
    """Where the package reads this TOML otherwise than it is meant, or why not at all. None if it reads it.

    Nothing is said of a text that is longer than `LONGEST`, since the package may take minutes for it.
    """
    if len(text) > LONGEST:
        return None
    try:
        read = _plain(toml.loads(text))
    except Exception as error:  # noqa: BLE001 - whatever it stumbles over, train.py would as well
        return f"can't be read: {error}"
    found = _difference(_plain(tomltext.loads(text)), read)
    return f"{found} is read as something else" if found is not None else None


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


def _difference(meant: Any, read: Any, key: str = "") -> str | None:
    """The first key, dotted, of which two values differ; "" for the whole. A number is what it counts."""
    if isinstance(meant, dict) and isinstance(read, dict):
        for name in meant.keys() | read.keys():
            inner = f"{key}.{name}" if key else name
            if name not in meant or name not in read:
                return inner
            if (found := _difference(meant[name], read[name], inner)) is not None:
                return found
        return None
    if isinstance(meant, list) and isinstance(read, list) and len(meant) == len(read):
        pairs = enumerate(zip(meant, read, strict=True))
        return next(filter(None, (_difference(*pair, f"{key}[{index}]") for index, pair in pairs)), None)
    # The sign of -0.0 is lost, and nan is not equal to itself.
    same = type(meant) is type(read) and (meant == read or repr(meant) == repr(read))
    return None if same else key


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
