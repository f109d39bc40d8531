"""The page: its files, with the headers that keep everything foreign out of it.

Why: a log line, a caption or a run's name is text from elsewhere. The page puts it in as text only, and
should that ever fail, its policy (no inline script, no other origin, no HTML from strings) runs none of it.

The files hold no secret, so they need no token; what they ask for does.

Known gap: the page's first file is not compressed; it has only links.
"""

from pathlib import Path

from starlette.requests import Request
from starlette.responses import Response
from starlette.staticfiles import StaticFiles
from starlette.types import Scope

FOLDER = Path(__file__).with_name("static")
INDEX = "index.html"
ROOT = "/"
ASSETS = "/page"
POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "connect-src 'self'",
        # The icon that shows the state is drawn by the page.
        "img-src 'self' data:",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'self'",
        "require-trusted-types-for 'script'",
        "trusted-types 'none'",
    )
)
HEADERS = {
    "content-security-policy": POLICY,
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    # Asked for anew each time, so that page and server are of one version; unchanged ones answer with 304.
    "cache-control": "no-cache",
}


class Pages(StaticFiles):
    """The folder's files, with our headers."""

    def __init__(self) -> None:
        super().__init__(directory=FOLDER)

    async def get_response(self, path: str, scope: Scope) -> Response:
        response = await super().get_response(path, scope)
        response.headers.update(HEADERS)
        return response


async def index(request: Request) -> Response:
    """The page itself. Its links are relative, so it works below any prefix."""
    pages: Pages = request.app.state.pages
    return await pages.get_response(INDEX, request.scope)
