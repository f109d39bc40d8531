"""From a request to the daemon and back: its reply, or the problem that its error is.

Why: every endpoint asks, and every one has to turn each of the daemon's errors into the right status; done in
one place, none of them can forget one.

Known gap: none.
"""

from typing import TypeVar

from starlette.requests import Request

from dpipectl import forms
from dpipectl.client import Failed
from dpipectl.http import answers, reading
from dpipectl.http.daemon import Daemon
from dpiped.errors import DpipedError
from dpiped.messages import AnyRequest, Form

_R = TypeVar("_R")
LAUNCH_WAIT = 90.0
"""Seconds that the daemon may take to launch a training."""


def daemon(request: Request) -> Daemon:
    """The application's connection."""
    found: Daemon = request.app.state.daemon
    return found


async def ask(
    request: Request,
    asked: AnyRequest,
    kind: type[_R],
    wait: float = 0.0,
    sent: str = "",
    refused: int = answers.STATUS["refused"],
) -> _R:
    """The daemon's reply. Raises Problem; `sent` and `refused` are those of `answers.of_error`."""
    try:
        return await daemon(request).ask(asked, kind, wait)
    except (DpipedError, Failed) as error:
        raise answers.of_error(error, sent, refused) from error


async def form(request: Request) -> tuple[Form, str]:
    """The form in the body, and the body's text. Unknown fields are ignored. Raises Problem."""
    data, sent = await reading.body(request)
    try:
        return forms.convert(data, ignore_unknown=True), sent
    except DpipedError as error:
        raise answers.of_error(error, sent) from error
