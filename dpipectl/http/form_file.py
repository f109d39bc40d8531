"""A form that was saved as a file, read for a page: JSON or TOML.

Why: a browser has no TOML parser, and a form that was saved last year may have fields that there are no more.
So what is known is given as it stands, for the page to fill its fields with; what is not is named. Nothing is
checked here but the syntax: that is done when the form is used.

A text may not be long, and no request waits for another one's.

Known gap: comments are lost.
"""

import asyncio
import re
from typing import Annotated, Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from dpipectl.http import answers, reading
from dpipectl.http.answers import document
from dpiped import tomltext
from dpiped.messages import Form

SECRETS = ("wandb_api_key",)
"""Fields that are left out: a key belongs into no file."""
LARGEST_TEXT = 65536
"""Characters. A form has some hundred short lines."""
_AT_BYTE = re.compile(r"\(byte (\d+)\)")


class FormText(msgspec.Struct, frozen=True):
    """The content of a file: a JSON object if it begins with `{`, else TOML."""

    text: Annotated[str, msgspec.Meta(max_length=LARGEST_TEXT)]

    def __repr__(self) -> str:
        return "FormText(...)"


class FormRead(msgspec.Struct, frozen=True):
    """`form` are the known fields, not checked, and `toml` the same as TOML, without those that are null.

    `unknown` are the other fields' names, `dropped` those whose values are secret.
    """

    form: dict[str, Any]
    unknown: tuple[str, ...]
    dropped: tuple[str, ...]
    toml: str


async def form(request: Request) -> Response:
    """What a saved form says."""
    data, _ = await reading.body(request)
    try:
        text = msgspec.convert(data, FormText).text
    except msgspec.ValidationError as error:
        takes = f"takes a text of at most {LARGEST_TEXT} characters" if "text" in data else "is required"
        raise answers.of_fields([("text", takes)]) from error
    return await asyncio.to_thread(_answer, text)


def _answer(text: str) -> Response:
    """Raises Problem."""
    is_json = text.lstrip("\ufeff \t\r\n").startswith("{")
    try:
        return document(_read(_json(text) if is_json else _toml(text)))
    except RecursionError as error:
        raise answers.of_fields([("text", "is nested too deep")]) from error
    except OverflowError as error:
        raise answers.of_fields([("text", "has a number that is too long")]) from error
    except (ValueError, TypeError) as error:
        said = f"is not {'JSON' if is_json else 'TOML'}: {error}"
        raise answers.of_fields([("text", said)]) from error


def _read(data: dict[str, Any]) -> FormRead:
    """Raises OverflowError for a number that can't be written."""
    import tomli_w

    known = {name: data[name] for name in data if name in Form.__struct_fields__ and name not in SECRETS}
    try:
        toml = tomli_w.dumps(_without_null(known))
    except ValueError as error:
        raise OverflowError(str(error)) from error
    return FormRead(
        form=known,
        unknown=tuple(name for name in data if name not in Form.__struct_fields__),
        dropped=tuple(name for name in SECRETS if name in data),
        toml=toml,
    )


def _json(text: str) -> dict[str, Any]:
    """Raises ValueError that names the line, OverflowError."""
    raw = text.lstrip("\ufeff").encode()
    try:
        data: dict[str, Any] = msgspec.json.decode(raw, type=dict[str, Any])
    except msgspec.DecodeError as error:
        if "Integer value out of range" in str(error):
            raise OverflowError(str(error)) from error
        at = _AT_BYTE.search(str(error))
        if at is None and "truncated" not in str(error):
            raise
        line = raw.count(b"\n", 0, int(at[1]) if at else len(raw)) + 1
        raise ValueError(f"{error} (line {line})") from error
    return data


def _toml(text: str) -> dict[str, Any]:
    """Raises ValueError that names the line, RecursionError, OverflowError."""
    import tomllib

    text = text.removeprefix("\ufeff")
    try:
        return tomltext.loads(text)
    except tomltext.LongKey:
        raise
    except tomllib.TOMLDecodeError as error:
        said = str(error).replace("at end of document", f"at line {text.count(chr(10)) + 1}, the last one")
        raise ValueError(said) from error
    except ValueError as error:
        # Python's own limit for the digits of a number.
        raise OverflowError(str(error)) from error


def _without_null(value: Any) -> Any:
    """TOML has none."""
    if isinstance(value, dict):
        return {name: _without_null(inner) for name, inner in value.items() if inner is not None}
    if isinstance(value, list):
        return [_without_null(inner) for inner in value if inner is not None]
    return value
