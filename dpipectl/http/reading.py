"""What a request says: its query and its body, checked, with FastAPI's 422 for what does not fit.

Why: every endpoint needs the same few readings, and each of them is where hostile input arrives: a body
larger than memory, a number that is none, JSON nested a million deep.

Known gap: of a parameter that is given twice the last one counts.
"""

import re
from typing import Any

import msgspec
from starlette.requests import Request

from dpipectl.http.answers import Problem, unfit

BODY_LIMIT = 512 << 10
"""Bytes. The largest form is a few KiB; the daemon takes 1 MiB."""
TOO_LARGE = f"the body is larger than {BODY_LIMIT} bytes"
_WHOLE = re.compile(r"[+-]?[0-9]{1,30}")
_NUMBER = re.compile(r"[+-]?([0-9]{1,20}(\.[0-9]{0,30})?|\.[0-9]{1,30})(e[+-]?[0-9]{1,3})?", re.IGNORECASE)


def whole(request: Request, name: str, low: int, high: int, default: int | None) -> int | None:
    """A query parameter. Raises Problem (422)."""
    text = request.query_params.get(name)
    if text is None:
        return default
    if not _WHOLE.fullmatch(text) or not low <= int(text) <= high:
        raise _unfit(name, f"takes a whole number from {low} to {high}", text)
    return int(text)


def seconds(request: Request, name: str, high: float, default: float | None) -> float | None:
    """A query parameter, from 0 on. Raises Problem (422)."""
    text = request.query_params.get(name)
    if text is None:
        return default
    if not _NUMBER.fullmatch(text) or not 0 <= float(text) <= high:
        raise _unfit(name, f"takes seconds from 0 to {high:g}", text)
    return float(text)


def choice(request: Request, name: str, takes: tuple[str, ...], default: str) -> str:
    """A query parameter. Raises Problem (422)."""
    text = request.query_params.get(name)
    if text is not None and text not in takes:
        raise _unfit(name, f"takes {' or '.join(takes)}", text)
    return default if text is None else text


def text(request: Request, name: str, pattern: str, what: str) -> str | None:
    """A query parameter. Raises Problem (422)."""
    found = request.query_params.get(name)
    if found is not None and not re.fullmatch(pattern, found):
        raise _unfit(name, f"takes {what}", found)
    return found


async def body(request: Request) -> tuple[dict[str, Any], str]:
    """The JSON object that was sent, and its text. Raises Problem (413, 422)."""
    raw = await content(request)
    kind = request.headers.get("content-type", "application/json").partition(";")[0].strip().lower()
    if kind != "application/json" and not kind.endswith("+json"):
        raise unfit([(("header", "content-type"), "takes application/json", "value_error")])
    try:
        data = msgspec.json.decode(raw)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        raise unfit([(("body",), f"is not JSON: {error}", "json_invalid")]) from error
    if not isinstance(data, dict):
        raise unfit([(("body",), "takes an object of fields", "value_error")])
    return data, raw.decode()


async def content(request: Request) -> bytes:
    """The body's bytes. Raises Problem (413) as soon as there are too many."""
    length = request.headers.get("content-length", "0")
    if not length.isdecimal() or int(length) > BODY_LIMIT:
        raise Problem(413, TOO_LARGE)
    raw = bytearray()
    async for chunk in request.stream():
        raw += chunk
        if len(raw) > BODY_LIMIT:
            raise Problem(413, TOO_LARGE)
    return bytes(raw)


def _unfit(name: str, takes: str, text: str) -> Problem:
    return unfit([(("query", name), f"{name} {takes}, not {text[:60]!r}", "value_error")])
