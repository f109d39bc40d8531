"""What is answered: JSON, always, and errors as `{"detail": ...}`.

Why: ControlPilot's page takes anything but JSON for nothing. And an error may be read by whoever can reach
the port, so it says what was wrong with the request and nothing of the machine: no path but those that were
sent, no traceback, no hint that is meant for the administrator.

Source of the forms: FastAPI, which ControlPilot's clients know: a text, or for what does not fit the schema a
list of `{loc, msg, type}` with status 422.

Known gap: none.
"""

import re
from collections.abc import Iterable
from typing import Any

import msgspec
from starlette.responses import Response

from dpipectl.client import Failed
from dpiped import messages
from dpiped.errors import DpipedError, InvalidForm

STATUS = {
    "invalid": 400,
    "bad_request": 400,
    "unknown_run": 404,
    "refused": 409,
    "run_damaged": 409,
    "invalid_form": 422,
    "not_installed": 500,
    "busy": 503,
    "unreachable": 503,
}
"""By the daemon's error code, whose words are repeated; anything else is a fault of the server, 500."""
NOT_LAUNCHED = "the training could not be launched; the daemon's log and the run's record say why"
INTERNAL = "internal error; the server's log says where"
_PATH = re.compile(r"(?<![\w./~])/(?:[^\s'\"`:;,()]+/)*(?P<name>[^\s'\"`:;,()/]*)")


class Problem(Exception):
    """Ends a request with this status and detail."""

    def __init__(self, status: int, detail: str | list[dict[str, Any]]) -> None:
        super().__init__(str(detail))
        self.status = status
        self.detail = detail


class Finding(msgspec.Struct, frozen=True):
    """One thing that does not fit the schema. `loc` is where: body or query, and the field's name."""

    loc: tuple[str | int, ...]
    msg: str
    type: str


class Detail(msgspec.Struct, frozen=True):
    """An error."""

    detail: str | tuple[Finding, ...]


def document(content: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    """An answer."""
    return Response(msgspec.json.encode(content), status, headers, "application/json")


def unfit(found: Iterable[tuple[tuple[str | int, ...], str, str]]) -> Problem:
    """422 with FastAPI's list, from (loc, msg, type)."""
    return Problem(422, [{"loc": list(loc), "msg": msg, "type": kind} for loc, msg, kind in found])


def of_fields(fields: Iterable[tuple[str, str]]) -> Problem:
    """422 for fields of a body, from (field, what it takes)."""
    return unfit((("body", field), f"{field} {text}", _type(text)) for field, text in fields)


def of_error(error: DpipedError | Failed, sent: str = "", refused: int = STATUS["refused"]) -> Problem:
    """The problem that a daemon's error is. `sent` is the request's own text, whose paths may be repeated."""
    said = error.error if isinstance(error, Failed) else error
    if isinstance(said, InvalidForm):
        return of_fields(said.fields)
    if isinstance(said, messages.Error) and said.fields:
        return of_fields((each.field, each.message) for each in said.fields)
    if said.code in STATUS:
        status = refused if said.code == "refused" else STATUS[said.code]
        return Problem(status, without_paths(said.message, sent))
    return Problem(500, NOT_LAUNCHED if said.code == "launch_failed" else INTERNAL)


def without_paths(text: str, sent: str = "") -> str:
    """The text with every path that was not sent cut to its last part."""
    return _PATH.sub(lambda found: found.group() if found.group() in sent else found["name"] or "/", text)


def _type(text: str) -> str:
    return "missing" if text == "is required" else "value_error"
