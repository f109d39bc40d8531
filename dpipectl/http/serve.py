"""`dpipectl serve`: the application on a port or a Unix socket.

Why: an address that others reach without a token is refused before it is bound; a port that is taken is said
with its name. The socket is bound here, so that nothing else has to be believed about it.

Known gap: no TLS; a reverse proxy or an SSH tunnel does that.
"""

import argparse
import asyncio
import contextlib
import gc
import ipaddress
import os
import signal
import socket
import stat
from collections.abc import Iterator
from types import FrameType
from typing import NoReturn

import msgspec
import uvicorn
from starlette.applications import Starlette

from dpipectl.http.app import PREFIX, create_app, standalone
from dpipectl.http.guard import Policy
from dpipectl.http.patience import Connection
from dpiped import limits
from dpiped.errors import SettingsError
from dpiped.settings import AF_UNIX_PATH_LIMIT, HttpSettings, load_http, token_in

BACKLOG = 2048
GRACE = 2
"""Seconds that answers on their way get when the server ends."""
KEEP_ALIVE = 75


def run(options: argparse.Namespace) -> int:
    """Serves until SIGTERM or SIGINT. Raises SettingsError."""
    # The client has switched it off for the sake of its start; a server lives long.
    gc.enable()
    limits.raise_files()
    settings = _settings(options)
    policy = Policy(settings.token, settings.hosts, None if settings.unix else settings.host)
    app = create_app(policy)
    # Also before the server is there to be told.
    signal.signal(signal.SIGTERM, _leave)
    listening = _bind(settings)
    made = _identity(settings.unix) if settings.unix else None
    config = uvicorn.Config(
        standalone(app),
        http=Connection,
        loop="uvloop",
        ws="none",
        lifespan="off",
        access_log=False,
        server_header=False,
        proxy_headers=False,
        log_level="warning",
        timeout_keep_alive=KEEP_ALIVE,
        timeout_graceful_shutdown=GRACE,
    )
    where = settings.unix or f"http://{_shown(settings.host)}:{settings.port}{PREFIX}/"
    print(f"dpipectl serve: listening on {where}", flush=True)
    try:
        with asyncio.Runner(loop_factory=config.get_loop_factory()) as runner:
            runner.run(_Server(config, app).serve(sockets=[listening]))
    finally:
        if settings.unix:
            _remove_own(settings.unix, made)
    return 0


def _leave(number: int, frame: FrameType | None) -> NoReturn:
    del number, frame
    raise SystemExit(0)


class _Server(uvicorn.Server):
    """Ends its streams when it is told to end, as they never end by themselves; and ends with exit code 0."""

    def __init__(self, config: uvicorn.Config, app: Starlette) -> None:
        super().__init__(config)
        self._app = app

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """uvicorn's own would end the process by the same signal again."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._end)
        yield

    def _end(self) -> None:
        self._app.state.feed.close()
        # Whoever waits for the daemon is told that it can't be waited for any more.
        self._app.state.daemon.close()
        # A second signal does not wait for answers on their way.
        self.force_exit = self.should_exit
        self.should_exit = True


def _settings(options: argparse.Namespace) -> HttpSettings:
    """The environment's, and over them the command line's. Raises SettingsError."""
    settings = load_http()
    if options.host is not None:
        settings = msgspec.structs.replace(settings, host=options.host, unix=None)
    if options.port is not None:
        if not 1 <= options.port <= 65535:
            raise SettingsError("--port takes a number from 1 to 65535", field="--port")
        settings = msgspec.structs.replace(settings, port=options.port, unix=None)
    if options.unix is not None:
        settings = msgspec.structs.replace(settings, unix=os.path.abspath(options.unix))  # noqa: PTH100
    if options.token_file is not None:
        token = token_in(options.token_file, "--token-file")
        settings = msgspec.structs.replace(settings, token=token)
    return settings


def _bind(settings: HttpSettings) -> socket.socket:
    """Raises SettingsError for an address that can't be used, or not without a token."""
    if settings.unix:
        return _bind_unix(settings.unix)
    name = "DIFFPIPE_HTTP_HOST"
    try:
        found = socket.getaddrinfo(
            settings.host, settings.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
    except OSError as error:
        raise SettingsError(
            f"{name} takes an address of this machine, not {settings.host!r}: {error.strerror}", field=name
        ) from error
    family, _, _, _, address = found[0]
    if settings.token is None and not ipaddress.ip_address(str(address[0]).partition("%")[0]).is_loopback:
        raise SettingsError(
            f"{settings.host} is reached by others, so a token is needed",
            field="DIFFPIPE_HTTP_TOKEN",
            hint="set DIFFPIPE_HTTP_TOKEN or DIFFPIPE_HTTP_TOKEN_FILE, or listen on 127.0.0.1 only",
        )
    made = socket.socket(family, socket.SOCK_STREAM)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if family == socket.AF_INET6:
        made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
    try:
        made.bind(address)
    except OSError as error:
        made.close()
        name = "DIFFPIPE_HTTP_PORT" if settings.port else name
        raise SettingsError(
            f"{name}: {settings.host} port {settings.port} can't be used: {error.strerror}",
            field=name,
            hint="choose another port: dpipectl serve --port N",
        ) from error
    made.listen(BACKLOG)
    return made


def _bind_unix(path: str) -> socket.socket:
    """Mode 0600 from its first moment. What a server that was killed has left is replaced."""
    name = "DIFFPIPE_HTTP_SOCKET"
    if len(os.fsencode(path)) > AF_UNIX_PATH_LIMIT:
        raise SettingsError(f"{name} takes a path of at most {AF_UNIX_PATH_LIMIT} bytes", field=name)
    made = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    before = os.umask(0o177)
    try:
        _remove_stale(path, name)
        made.bind(path)
        made.listen(BACKLOG)
    except OSError as error:
        made.close()
        raise SettingsError(f"{name}: {path} can't be used: {error.strerror}", field=name) from error
    finally:
        os.umask(before)
    return made


def _identity(path: str) -> tuple[int, int] | None:
    try:
        found = os.lstat(path)
    except FileNotFoundError:
        return None
    return found.st_dev, found.st_ino


def _remove_own(path: str, made: tuple[int, int] | None) -> None:
    """A successor may have put its own socket there meanwhile."""
    if made is not None and _identity(path) == made:
        os.unlink(path)  # noqa: PTH108


def _remove_stale(path: str, name: str) -> None:
    try:
        is_socket = stat.S_ISSOCK(os.lstat(path).st_mode)
    except FileNotFoundError:
        return
    if not is_socket:
        raise SettingsError(f"{name}: {path} is no socket; it is left alone", field=name)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            os.unlink(path)  # noqa: PTH108
            return
    raise SettingsError(f"{name}: another server listens on {path}", field=name)


def _shown(host: str) -> str:
    return f"[{host}]" if ":" in host else host
