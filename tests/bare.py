"""The least that Starlette on uvicorn can do, to measure the shim beside it: `python -m tests.bare PORT`."""

import sys

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route


async def bare(request: Request) -> JSONResponse:
    del request
    return JSONResponse({"ok": True})


if __name__ == "__main__":
    app = Starlette(routes=[Route("/bare", bare)])
    uvicorn.run(
        app, port=int(sys.argv[1]), http="httptools", loop="uvloop", access_log=False, log_level="warning"
    )
