"""Reading a TOML table: every key is asked for once, with what it takes; what is left over is refused.

Why: a misspelt key, or one that another trainer knows and this one does not, would otherwise be ignored
and found out after hours. Each error is one line that names the key and says what it takes.

Known gap: only the first error of a file is told.
"""

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

MOST = 2**31 - 1
"""No number of a config is larger; it leaves room for what is reckoned from it."""


class ConfigError(Exception):
    """What was asked for can't be done; the text is one line for a person."""


class Table:
    """One TOML table; `name` is put before its keys in errors (`optimizer.`)."""

    def __init__(self, data: Any, name: str = "") -> None:
        if not isinstance(data, dict):
            raise ConfigError(f"{name.rstrip('.')} takes a table, not {data!r}")
        self._data = dict(data)
        self.name = name

    def __contains__(self, key: str) -> bool:
        return key in self._data

    def rest(self) -> dict[str, Any]:
        """All keys not asked for yet, which then count as asked for."""
        rest, self._data = self._data, {}
        return rest

    def raw(self, key: str, default: Any = None) -> Any:
        """The value as it is; None or `default` if it isn't there."""
        return self._data.pop(key, default)

    def refuse(self, key: str, value: Any, takes: str) -> ConfigError:
        """The error for a value that won't do."""
        got = "is missing; it" if value is None else ""
        tail = "" if value is None else f", not {value!r}"
        return ConfigError(f"{self.name}{key} {got} takes {takes}{tail}".replace("  ", " "))

    def integer(self, key: str, default: int | None = None, least: int = 1) -> int:
        """A whole number of at least `least`; required if there is no default."""
        value = self.raw(key, default)
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            raise self.refuse(key, value, f"a whole number from {least} on")
        if value > MOST:
            raise self.refuse(key, value, f"a whole number up to {MOST}")
        return value

    def optional_integer(self, key: str) -> int | None:
        """As `integer`, or None if the key isn't there."""
        return self.integer(key) if key in self else None

    def number(self, key: str, default: float | None = None, least: float = 0.0) -> float:
        """A finite number of at least `least`."""
        value = self.raw(key, default)
        if not isinstance(value, int | float) or isinstance(value, bool):
            raise self.refuse(key, value, f"a number from {least:g} on")
        if not least <= value <= MOST:  # nor is "not a number" between them
            raise self.refuse(key, value, f"a number from {least:g} to {MOST}")
        return float(value)

    def optional_number(self, key: str) -> float | None:
        """As `number`, but more than 0, or None if the key isn't there."""
        if key not in self:
            return None
        value = self.number(key)
        if value == 0:
            raise self.refuse(key, value, "a number above 0")
        return value

    def text(self, key: str, default: str | None = None) -> str:
        """A string."""
        value = self.raw(key, default)
        if not isinstance(value, str):
            raise self.refuse(key, value, "a string")
        return value

    def fraction(self, key: str, default: float) -> float:
        """A number from 0 to below 1."""
        value = self.number(key, default)
        if value >= 1:
            raise self.refuse(key, value, "a number from 0 to below 1")
        return value

    def flag(self, key: str, default: bool) -> bool:
        """true or false."""
        value = self.raw(key, default)
        if not isinstance(value, bool):
            raise self.refuse(key, value, "true or false")
        return value

    def choice(self, key: str, options: tuple[str, ...], default: str | None = None) -> str:
        """One of `options`."""
        value = self.raw(key, default)
        if value not in options:
            raise self.refuse(key, value, " or ".join(repr(option) for option in options))
        return str(value)

    def finish(self, neutral: Mapping[str, tuple[Any, ...]]) -> None:
        """Refuses every key not asked for, unless `neutral` has it with values that ask for nothing."""
        for key, value in self._data.items():
            if key not in neutral:
                raise ConfigError(f"{self.name}{key} is not a key that this trainer knows")
            if value not in neutral[key]:
                raise ConfigError(f"{self.name}{key} = {value!r} is not supported by this trainer yet")


def read_toml(path: Path, key: str) -> tuple[dict[str, Any], bytes]:
    """The file that `key` names, and its bytes. Raises ConfigError if it can't be read or is no TOML."""
    try:
        content = path.read_bytes()
        return tomllib.loads(content.decode("utf-8-sig")), content
    except FileNotFoundError as error:
        raise ConfigError(f"{key}: there is no file {path}") from error
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{key}: {path} can't be read: {error}") from error
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{key}: {path} is not TOML: {error}") from error


def absolute(table: Table, key: str, default: str | None = None) -> Path:
    """A path; a relative one would lead into the installed package, where the launcher runs us."""
    try:
        path = Path(table.text(key, default)).expanduser()
    except RuntimeError as error:
        raise ConfigError(f"{table.name}{key}: {error}") from error
    if not path.is_absolute():
        raise ConfigError(f"{table.name}{key} takes an absolute path, not {str(path)!r}")
    return path
