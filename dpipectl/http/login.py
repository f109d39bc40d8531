"""Token in, cookie out: so that a browser, which can't send a header, is let in as well.

Why: the cookie is HttpOnly (no script reads it) and SameSite=Strict (no other site's page sends it).

Known gap: a log-out forgets the cookie in the browser; a copy of it lives until the token is changed.
"""

import asyncio
import time

from starlette.requests import Request
from starlette.responses import Response

from dpipectl.http import guard, reading
from dpipectl.http.answers import Problem, of_fields

WRONG_TOKEN = "That is not the token."
WRONG_TOKEN_COSTS = 0.5
"""Seconds."""


async def login(request: Request) -> Response:
    """Sets the cookie. Without a token on the server there is nothing to log in to."""
    policy: guard.Policy = request.app.state.policy
    data, _ = await reading.body(request)
    if not isinstance(data.get("token"), str):
        raise of_fields([("token", "takes text")])
    if policy.token is not None and not guard.equal(data["token"], policy.token):
        await asyncio.sleep(WRONG_TOKEN_COSTS)
        raise Problem(401, WRONG_TOKEN)
    answer = Response(status_code=204)
    if policy.token is not None:
        answer.set_cookie(
            guard.cookie_name(policy.token),
            guard.new_session(policy.token, time.time),
            max_age=guard.SESSION_SECONDS,
            path="/",
            httponly=True,
            samesite="strict",
            secure=request.url.scheme == "https",
        )
    return answer


async def logout(request: Request) -> Response:
    """Makes the browser forget the cookie."""
    policy: guard.Policy = request.app.state.policy
    answer = Response(status_code=204)
    if policy.token is not None:
        name = guard.cookie_name(policy.token)
        answer.delete_cookie(name, path="/", httponly=True, samesite="strict")
    return answer
