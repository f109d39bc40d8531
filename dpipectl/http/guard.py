"""Who may ask: address, origin and token are checked before anything else is looked at.

Why: whoever can post to this port starts programs as the daemon's user. A page of another site must not be
able to, through a browser that reaches 127.0.0.1 (its Origin is another one) or through a name that it lets
point there (the Host is another one); and on an address that others reach, nobody without the token.

The cookie is the time it was made at and a signature of it by the token, so it needs no memory and dies with
the token.

Known gap: no limit on guesses; a token has at least 16 characters.
"""

import hashlib
import hmac
import ipaddress
import time
from collections.abc import Callable

from msgspec import Struct
from starlette.datastructures import Headers
from starlette.requests import cookie_parser
from starlette.types import ASGIApp, Receive, Scope, Send

from dpipectl.http.answers import document

COOKIE = "dpiped_session"
SESSION_SECONDS = 30 * 86400
SAFE = frozenset(("GET", "HEAD", "OPTIONS"))
ELSEWHERE = frozenset(("cross-site", "same-site"))
"""Values of Sec-Fetch-Site for a page of another origin."""
LOCAL_NAMES = frozenset(("localhost", "ip6-localhost"))
WRONG_HOST = "This server does not answer to that name (DIFFPIPE_HTTP_HOSTS)."
WRONG_ORIGIN = "A page of another site may not ask for this."
NO_TOKEN = "A token is needed: Authorization: Bearer ..., or log in."


class Policy(Struct, frozen=True):
    """`token` None: everybody who reaches the server may ask. `hosts`: further names; `*` is any.

    `own_name` is the name or address that the server was told to listen on. `check_host` is off where another
    application stands before this one and has checked it.
    """

    token: str | None = None
    hosts: tuple[str, ...] = ()
    own_name: str | None = None
    check_host: bool = True

    def __repr__(self) -> str:
        return "Policy(...)"


class Guard:
    """ASGI middleware. Paths in `open_paths`, and those below `open_folder`, need no token."""

    def __init__(
        self, app: ASGIApp, policy: Policy, open_paths: frozenset[str], open_folder: str | None = None
    ) -> None:
        self._app = app
        self._policy = policy
        self._open = open_paths
        self._open_folder = open_folder

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        names = (*self._policy.hosts, self._policy.own_name or "localhost")
        if self._policy.check_host and not host_is_ours(headers.get("host", ""), names):
            await document({"detail": WRONG_HOST}, 403)(scope, receive, send)
        elif not self._of_our_pages(scope["method"], headers):
            await document({"detail": WRONG_ORIGIN}, 403)(scope, receive, send)
        elif not self._may(scope, headers):
            answer = document({"detail": NO_TOKEN}, 401, {"www-authenticate": "Bearer"})
            await answer(scope, receive, send)
        else:
            await self._app(scope, receive, send)

    def _of_our_pages(self, method: str, headers: Headers) -> bool:
        if method in SAFE:
            # A link on another site may lead here; a picture or a script there may not ask for anything.
            if headers.get("sec-fetch-site") not in ELSEWHERE:
                return True
            kind = headers.get("sec-fetch-mode"), headers.get("sec-fetch-dest", "document")
            return kind == ("navigate", "document")
        return same_origin(headers, self._policy.hosts)

    def _may(self, scope: Scope, headers: Headers) -> bool:
        token = self._policy.token
        if token is None or self._is_open(scope["path"].removeprefix(scope.get("root_path", ""))):
            return True
        scheme, _, given = headers.get("authorization", "").partition(" ")
        if scheme.lower() == "bearer":
            return equal(given.strip(), token)
        return is_session(_cookie(headers, token), token, time.time)

    def _is_open(self, path: str) -> bool:
        return path in self._open or (self._open_folder is not None and path.startswith(self._open_folder))


def host_is_ours(host: str, names: tuple[str, ...]) -> bool:
    """An address, a name of this machine's loopback, or one of `names`.

    An address can't be made to point elsewhere, which is what the check is against.
    """
    name = host.rpartition("]")[0].lstrip("[") if host.startswith("[") else host.partition(":")[0]
    name = name.lower().rstrip(".")
    if name in LOCAL_NAMES or "*" in names or name in {each.lower() for each in names}:
        return True
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def same_origin(headers: Headers, names: tuple[str, ...] = ()) -> bool:
    """Is it asked by no page at all, or by one from this server?

    A browser says that itself (Sec-Fetch-Site, which no page can set), or else names the page's Origin: the
    host that was asked, or one of `names`, for a proxy that does not pass the browser's Host on.
    """
    site = headers.get("sec-fetch-site")
    if site is not None:
        return site not in ELSEWHERE
    origin = headers.get("origin")
    if origin is None:
        return True
    scheme, _, address = origin.lower().partition("://")
    named = {name.lower() for name in names} - {"*"}
    ours = address == headers.get("host", "").lower() or address.partition(":")[0] in named
    return scheme in ("http", "https") and ours


def equal(given: str, token: str) -> bool:
    """Takes equally long wherever they differ."""
    return hmac.compare_digest(given.encode(errors="replace"), token.encode())


def cookie_name(token: str) -> str:
    """All ports of a host share their cookies: another dpiped there has its own token, and its own cookie."""
    return f"{COOKIE}_{hmac.new(token.encode(), b'dpiped cookie', hashlib.sha256).hexdigest()[:8]}"


def new_session(token: str, now: Callable[[], float]) -> str:
    """A cookie's value."""
    made = str(int(now()))
    return f"{made}.{_signature(made, token)}"


def is_session(value: str, token: str, now: Callable[[], float]) -> bool:
    """Was it made with this token, and not too long ago?"""
    made, _, signature = value.partition(".")
    if not made.isdecimal() or len(made) > 12 or not equal(signature, _signature(made, token)):
        return False
    return 0 <= now() - int(made) + 1 <= SESSION_SECONDS


def _signature(made: str, token: str) -> str:
    return hmac.new(token.encode(), f"dpiped session {made}".encode(), hashlib.sha256).hexdigest()


def _cookie(headers: Headers, token: str) -> str:
    return cookie_parser(headers.get("cookie", "")).get(cookie_name(token), "")
