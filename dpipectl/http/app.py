"""The ASGI application: routes, guard, errors.

Why: it is one application for two places: on a port of its own, and mounted in ControlPilot's. So it needs no
start and no end from outside; the connection to the daemon is made by the first request.

    from dpipectl.http.app import create_app
    application.mount("/dpipe", create_app(behind_another=True))

Known gap: mounted, it relies on the outer application for host, origin and password.
"""

import logging
from collections.abc import Awaitable, Callable

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware.gzip import GZipMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import BaseRoute, Mount, Route

from dpipectl.http import answers, openapi, pages
from dpipectl.http.answers import Problem, document
from dpipectl.http.daemon import Daemon
from dpipectl.http.feed import Feed
from dpipectl.http.guard import Guard, Policy
from dpipectl.http.metrics import Metrics
from dpipectl.http.operations import ALL, Operation
from dpiped.settings import socket_path

PREFIX = "/dpipe"
DOCUMENT = "/openapi.json"

log = logging.getLogger("dpipectl.http")


def create_app(
    policy: Policy | None = None, socket: str | None = None, *, behind_another: bool = False
) -> Starlette:
    """The operations without a prefix, to be mounted. `socket` is the daemon's (default: DIFFPIPE_SOCKET).

    `behind_another`: an application before this one has checked who asks, and for which host.
    """
    policy = policy or Policy(check_host=not behind_another)
    daemon = Daemon(socket or socket_path())
    metrics = Metrics(daemon)
    routes = [Route(each.path, _answering(each, metrics), methods=[each.method]) for each in ALL]
    routes.append(Route(DOCUMENT, _document, methods=["GET"]))
    page = pages.Pages()
    files: list[BaseRoute] = [
        Route(pages.ROOT, pages.index, methods=["GET"]),
        # A tunnel to a rented machine may be slow.
        Mount(pages.ASSETS, GZipMiddleware(page)),
    ]
    app = Starlette(routes=[*routes, *files], exception_handlers={HTTPException: _http_error})
    open_paths = frozenset((pages.ROOT, *(each.path for each in ALL if each.open)))
    app.add_middleware(Guard, policy=policy, open_paths=open_paths, open_folder=f"{pages.ASSETS}/")
    # A path is asked for as it is; a redirect would be no JSON.
    app.router.redirect_slashes = False
    app.state.daemon = daemon
    app.state.feed = Feed(daemon)
    app.state.metrics = metrics
    app.state.policy = policy
    app.state.pages = page
    return app


def standalone(app: Starlette) -> Starlette:
    """The application below its prefix, for a server of its own."""
    to_page = [Route(path, _to_page, methods=["GET"]) for path in ("/", PREFIX)]
    routes = [Mount(PREFIX, app), *to_page]
    outer = Starlette(routes=routes, exception_handlers={HTTPException: _http_error})
    outer.router.redirect_slashes = False
    return outer


def _answering(each: Operation, metrics: Metrics) -> Callable[[Request], Awaitable[Response]]:
    """The handler, with its problems as answers, counted."""

    async def answer(request: Request) -> Response:
        try:
            response = await each.handler(request)
        except Problem as problem:
            response = document({"detail": problem.detail}, problem.status)
        except ClientDisconnect:
            # Nobody is there to be answered.
            response = Response(status_code=400)
        except Exception:  # the border: a fault of ours is said in the log, and is no traceback for a client
            log.exception("%s %s failed", each.method, each.path)
            response = document({"detail": answers.INTERNAL}, 500)
        metrics.requests.labels(each.method, each.path, response.status_code).inc()
        return response

    return answer


async def _document(request: Request) -> Response:
    policy: Policy = request.app.state.policy
    return document(openapi.make(request.scope.get("root_path", ""), policy.token is not None))


async def _to_page(request: Request) -> Response:
    """From the server's root, and from the prefix without its slash. Relative, for the sake of proxies."""
    del request
    return RedirectResponse(f"{PREFIX[1:]}/")


async def _http_error(request: Request, error: Exception) -> Response:
    """404 and 405 of the router."""
    del request
    assert isinstance(error, HTTPException)
    headers = dict(error.headers) if error.headers else None
    return document({"detail": error.detail}, error.status_code, headers)
