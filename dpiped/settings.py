"""Every path and every environment variable, read once, here and nowhere else.

Why: LoRA Pilot configures its services by environment variables. Read all over the code, one of them
is forgotten in one place (as NCCL settings were for runs that the web page started). Here each has
one name, one default, one type and one error that names the variable and what it takes.

The client needs only `socket_path`, so nothing heavy is imported at module level: `pathlib` alone
would cost a quarter of what `dpipectl status` may take.

Known gap: a changed variable needs a restart of the daemon (`dpipectl reload` keeps the environment).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Literal, TypeVar

import msgspec

from dpiped.errors import SettingsError

if TYPE_CHECKING:
    from pathlib import Path

AF_UNIX_PATH_LIMIT = 107
"""Bytes that fit into `sockaddr_un.sun_path` beside the closing NUL (man 7 unix)."""

RUN_MARKER = "DPIPED_RUN_ID"
"""Set in the environment of every process of a run; how strays are recognised."""

VISIBLE_DEVICES = "CUDA_VISIBLE_DEVICES"
"""Which GPUs a training may use; has to be told to deepspeed, which ignores it beside --num_gpus."""
ACCELERATOR = "DS_ACCELERATOR"
"""What deepspeed trains on, if not what it finds: cuda, cpu, ..."""

STARTED_BY = "DPIPED_STARTED_BY"
"""Carries over a re-execution which supervisord started the daemon. Nothing for users to set."""

ENVIRONMENT_FOR_TRAINING = (
    "PATH HOME USER LOGNAME SHELL LANG LANGUAGE LC_* TZ TERM TMPDIR LD_LIBRARY_PATH "
    "CUDA_* NVIDIA_* NCCL_* GLOO_* ROCR_* HIP_* HSA_* TORCH* PYTORCH_* TRITON_* DS_* DEEPSPEED_* OMP_* MKL_* "
    "OPENBLAS_* HF_* HUGGINGFACE_* TRANSFORMERS_* DIFFUSERS_* WANDB_* XDG_CACHE_HOME CC CXX CFLAGS MAX_JOBS "
    "http_proxy https_proxy no_proxy HTTP_PROXY HTTPS_PROXY NO_PROXY "
    "SSL_CERT_FILE SSL_CERT_DIR REQUESTS_CA_BUNDLE"
).split()
"""Names and globs of the daemon's own variables that a training gets (LC_* means all that begin so)."""

ENVIRONMENT_FOR_TENSORBOARD = (
    "PATH HOME USER LOGNAME LANG LANGUAGE LC_* TZ TMPDIR LD_LIBRARY_PATH "
    "PYTHON* VIRTUAL_ENV TENSORBOARD_* TF_*"
).split()
"""The same for TensorBoard, which answers whoever reaches its port and needs no key."""

OF_THE_SERVICE_MANAGER = (
    "NOTIFY_SOCKET WATCHDOG_USEC WATCHDOG_PID LISTEN_FDS LISTEN_PID LISTEN_FDNAMES MAINPID INVOCATION_ID "
    "JOURNAL_STREAM SYSTEMD_EXEC_PID MANAGERPID"
).split()
"""What systemd tells the daemon, and no process that the daemon starts."""

FIRST_LISTENER = 3
"""Where systemd puts the first socket that it hands over (man 3 sd_listen_fds)."""
OWN_LISTENER = "made-by-dpiped"
"""The name of a socket that was handed over by a daemon to the one it re-executed itself as."""

SHORTEST_TOKEN = 16
"""Characters; a shorter one could be guessed."""

LONGEST_URL = 2048

_N = TypeVar("_N", int, float)


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """All settings, typed. Paths are absolute; times are seconds. `load` fills it."""

    workspace: Path
    state_dir: Path
    socket: str
    socket_group: int | None
    allowed_roots: tuple[Path, ...]
    app_dirs: tuple[Path, ...]
    deepspeed_bin: str | None
    config: Path | None
    num_gpus: int
    resume: Literal["auto", "never"]
    extra_args: tuple[str, ...]
    on_exit: Literal["stop", "detach"]
    stop_timeout: float
    save_timeout: float
    hang_timeout: float | None
    log_lines: int
    log_bytes: int
    pass_env: tuple[str, ...]
    training_env: dict[str, str]
    tensorboard_in_training: bool
    tensorboard_host: str
    tensorboard_port: int
    tensorboard_url: str | None
    tensorboard_root: Path
    logdir: Path
    tensorboard_sources: dict[str, Path]

    @property
    def tensorboard_wanted(self) -> bool:
        """False only for a service that trains `DIFFPIPE_CONFIG` with `DIFFPIPE_TENSORBOARD=0`."""
        return self.config is None or self.tensorboard_in_training


class ServiceManager(msgspec.Struct, frozen=True, kw_only=True):
    """What a service manager, or the daemon before a reload, has told this process.

    `notify` is where to report to; `watchdog` how often at least (seconds). `listener` is a listening
    socket; it is `own` if a daemon has made it.
    """

    notify: str | None = None
    watchdog: float | None = None
    listener: int | None = None
    own: bool = False


def load_service_manager(env: Mapping[str, str] = os.environ) -> ServiceManager:
    """Raises SettingsError for a message that can't be meant for this daemon."""
    me = str(os.getpid())
    read = _Reader(env)
    meant = env.get("WATCHDOG_PID", me) == me
    watchdog = read.integer("WATCHDOG_USEC", 0, 0, 2**62) if meant else 0
    address = env.get("NOTIFY_SOCKET") or None
    if address is not None and address[0] not in "/@":
        raise SettingsError(
            f"NOTIFY_SOCKET takes an absolute path or @NAME, not {address!r}", field="NOTIFY_SOCKET"
        )
    handed = read.integer("LISTEN_FDS", 0, 0, 2**31) if env.get("LISTEN_PID") == me else 0
    if handed > 1:
        raise SettingsError(
            f"LISTEN_FDS: {handed} sockets were handed over; dpiped takes one",
            field="LISTEN_FDS",
            hint="one ListenStream= in dpiped.socket",
        )
    return ServiceManager(
        notify=address,
        watchdog=watchdog / 1e6 if watchdog else None,
        listener=FIRST_LISTENER if handed else None,
        own=env.get("LISTEN_FDNAMES") == OWN_LISTENER,
    )


def environment_after_reload(own: bool, env: Mapping[str, str] = os.environ) -> dict[str, str]:
    """The same variables; they say that the listening socket is FIRST_LISTENER, and whose it is."""
    names = {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": "1"}
    if own:
        return {**env, **names, "LISTEN_FDNAMES": OWN_LISTENER}
    return {**env, **names}


def environment_of_helpers(env: Mapping[str, str] = os.environ) -> dict[str, str]:
    """The daemon's variables for a program that it starts itself, without its service manager's."""
    return {name: value for name, value in env.items() if name not in OF_THE_SERVICE_MANAGER}


def socket_path(env: Mapping[str, str] = os.environ) -> str:
    """Where the daemon listens. Raises SettingsError for a path that AF_UNIX can't hold."""
    path = env.get("DIFFPIPE_SOCKET", "")
    if not path:
        base = "/run" if os.geteuid() == 0 else env.get("XDG_RUNTIME_DIR", "")
        if not base:
            raise SettingsError(
                "DIFFPIPE_SOCKET is not set and there is no XDG_RUNTIME_DIR to derive it from",
                field="DIFFPIPE_SOCKET",
                hint="set DIFFPIPE_SOCKET to a path such as /home/me/dpiped/dpiped.sock",
            )
        path = base + "/dpiped/dpiped.sock"
    if not path.startswith("/") or "\0" in path:
        raise SettingsError(f"DIFFPIPE_SOCKET takes an absolute path, not {path!r}", field="DIFFPIPE_SOCKET")
    if len(os.fsencode(path)) > AF_UNIX_PATH_LIMIT:
        raise SettingsError(
            f"DIFFPIPE_SOCKET is {len(os.fsencode(path))} bytes long; a Unix socket's path takes at most "
            f"{AF_UNIX_PATH_LIMIT}: {path}",
            field="DIFFPIPE_SOCKET",
            hint="choose a shorter path, for instance below /run or /tmp",
        )
    return path


class HttpSettings(msgspec.Struct, frozen=True, kw_only=True):
    """Those of `dpipectl serve`. `unix` is a socket's path, which takes the place of host and port.

    `hosts` are further names that requests may be addressed to.
    """

    host: str
    port: int
    unix: str | None
    token: str | None
    hosts: tuple[str, ...]

    def __repr__(self) -> str:
        """Without the token."""
        return f"HttpSettings({self.unix or self.host}:{self.port})"


def load_http(env: Mapping[str, str] = os.environ) -> HttpSettings:
    """Raises SettingsError, which names the variable and what it takes."""
    read = _Reader(env)
    unix = read.optional_path("DIFFPIPE_HTTP_SOCKET")
    token = env.get("DIFFPIPE_HTTP_TOKEN") or None
    file = read.optional_path("DIFFPIPE_HTTP_TOKEN_FILE")
    if token is None and file is not None:
        token = token_in(str(file), "DIFFPIPE_HTTP_TOKEN_FILE")
    if token is not None:
        check_token(token, "DIFFPIPE_HTTP_TOKEN")
    return HttpSettings(
        host=env.get("DIFFPIPE_HTTP_HOST", "").strip() or "127.0.0.1",
        port=read.integer("DIFFPIPE_HTTP_PORT", 7878, 1, 65535),
        unix=str(unix) if unix else None,
        token=token,
        hosts=read.names("DIFFPIPE_HTTP_HOSTS"),
    )


def token_in(path: str, name: str) -> str:
    """The token in a file that only its owner may read. Raises SettingsError, which names `name`."""
    import stat

    try:
        with open(path, encoding="utf-8") as file:  # noqa: PTH123 - pathlib is slow to import
            mode = os.fstat(file.fileno()).st_mode
            token = file.readline(4096).strip()
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "not UTF-8"
        raise SettingsError(f"{name}: {path} can't be read: {why}", field=name) from error
    if mode & (stat.S_IRWXG | stat.S_IRWXO):
        raise SettingsError(
            f"{name}: others may read {path} (mode {stat.S_IMODE(mode):o})",
            field=name,
            hint=f"chmod 600 {path}",
        )
    return check_token(token, name)


def check_token(token: str, name: str) -> str:
    """The token, if it is worth the name. Raises SettingsError, which names `name`."""
    if len(token) < SHORTEST_TOKEN or not token.isascii() or not token.isprintable() or " " in token:
        raise SettingsError(
            f"{name} takes a token of at least {SHORTEST_TOKEN} ASCII characters without spaces",
            field=name,
            hint="make one with: openssl rand -hex 32",
        )
    return token


def load(env: Mapping[str, str] = os.environ) -> Settings:
    """Reads all variables. Raises SettingsError, which names the variable and what it takes."""
    from pathlib import Path

    read = _Reader(env)
    workspace = read.path("WORKSPACE_ROOT", Path("/workspace"))
    logs = workspace / "logs"
    roots = tuple(dict.fromkeys((workspace, Path("/opt"), *_home(env))))
    return Settings(
        workspace=workspace,
        state_dir=read.path("DIFFPIPE_STATE_DIR", workspace / "diffpipe"),
        socket=socket_path(env),
        socket_group=read.group("DIFFPIPE_SOCKET_GROUP"),
        allowed_roots=read.paths("DIFFPIPE_ALLOWED_ROOTS", roots),
        app_dirs=(
            read.path("DIFFPIPE_APP_DIR", workspace / "apps/diffusion-pipe"),
            read.path("DIFFPIPE_REPO_DIR", Path("/opt/pilot/repos/diffusion-pipe")),
        ),
        deepspeed_bin=env.get("DEEPSPEED_BIN") or None,
        config=read.optional_path("DIFFPIPE_CONFIG"),
        num_gpus=read.integer("DIFFPIPE_NUM_GPUS" if env.get("DIFFPIPE_NUM_GPUS") else "NUM_GPUS", 1, 1, 64),
        resume="never" if read.choice("DIFFPIPE_RESUME", ("auto", "never")) == "never" else "auto",
        extra_args=read.words("DIFFPIPE_EXTRA_ARGS"),
        on_exit="detach" if read.choice("DIFFPIPE_ON_EXIT", ("stop", "detach")) == "detach" else "stop",
        stop_timeout=read.seconds("DIFFPIPE_STOP_TIMEOUT", 20.0),
        save_timeout=read.seconds("DIFFPIPE_SAVE_TIMEOUT", 600.0),
        hang_timeout=read.seconds_or_never("DIFFPIPE_HANG_TIMEOUT"),
        log_lines=read.integer("DIFFPIPE_LOG_LINES", 2000, 1, 1_000_000),
        log_bytes=read.integer("DIFFPIPE_LOG_BYTES", 4 << 20, 1 << 16, 1 << 30),
        pass_env=read.names("DIFFPIPE_PASS_ENV"),
        training_env={name: env.get(name) or "1" for name in ("NCCL_P2P_DISABLE", "NCCL_IB_DISABLE")},
        tensorboard_in_training=read.choice("DIFFPIPE_TENSORBOARD", ("1", "0")) == "1",
        tensorboard_host=env.get("DIFFPIPE_TENSORBOARD_HOST") or "127.0.0.1",
        tensorboard_port=read.integer("DIFFPIPE_PORT", 4444, 1, 65535),
        tensorboard_url=read.url("DIFFPIPE_TENSORBOARD_URL"),
        tensorboard_root=read.path("TENSORBOARD_ROOT_LOGDIR", logs / "tensorboard"),
        logdir=read.path("DIFFPIPE_LOGDIR", logs / "diffusion-pipe"),
        tensorboard_sources={
            "trainpilot": read.path("TRAINPILOT_TENSORBOARD_LOGDIR", logs / "TrainPilot"),
            "kohya": read.path("KOHYA_TENSORBOARD_LOGDIR", workspace / "outputs"),
            "ai-toolkit": read.path("AI_TOOLKIT_TENSORBOARD_LOGDIR", workspace / "outputs/ai-toolkit"),
        },
    )


def under_supervisord(env: Mapping[str, str] = os.environ) -> bool:
    """Was this process started by supervisord? (https://supervisord.org/subprocess.html)"""
    return env.get("SUPERVISOR_ENABLED") == "1"


def launcher_candidates(settings: Settings) -> list[str]:
    """Where the deepspeed launcher is looked for, best first; a bare name is looked up on PATH."""
    import sys
    from pathlib import Path

    if settings.deepspeed_bin:
        return [settings.deepspeed_bin]
    return ["/opt/venvs/core/bin/deepspeed", str(Path(sys.executable).with_name("deepspeed")), "deepspeed"]


def training_environment(settings: Settings, env: Mapping[str, str] = os.environ) -> dict[str, str]:
    """The daemon's variables on the allow-list, with the NCCL defaults; not PYTHON* or VIRTUAL_ENV."""
    # A system service of root's has none, and not all that caches something asks the system's list of users.
    home = os.path.expanduser("~")  # noqa: PTH111 - pathlib's raises for a user without one
    at_home = {"HOME": home} if home.startswith("/") else {}
    return at_home | _passed(env, (*ENVIRONMENT_FOR_TRAINING, *settings.pass_env)) | settings.training_env


def tensorboard_environment(env: Mapping[str, str] = os.environ) -> dict[str, str]:
    """What TensorBoard gets of the daemon's variables: none that is a secret."""
    return without_secrets(_passed(env, ENVIRONMENT_FOR_TENSORBOARD))


def without_secrets(env: Mapping[str, str]) -> dict[str, str]:
    """Those whose names don't say that they are secret, and that hold no password."""
    return {name: value for name, value in env.items() if not is_secret(name) and not holds_password(value)}


def _passed(env: Mapping[str, str], patterns: Sequence[str]) -> dict[str, str]:
    from fnmatch import fnmatchcase

    passed = {k: v for k, v in env.items() if any(fnmatchcase(k, pattern) for pattern in patterns)}
    # Not even where DIFFPIPE_PASS_ENV is `*`.
    return environment_of_helpers(passed)


def is_secret(name: str) -> bool:
    """Does a variable's name say that its value is a secret? TOKENIZERS_PARALLELISM is none."""
    import re

    return re.search(r"KEY|TOKEN(?!IZER)|SECRET|PASSW|CREDENTIAL", name, re.IGNORECASE) is not None


def holds_password(value: str) -> bool:
    """Is it an address with a password or a token in it, a proxy's say? In ssh://git@host there is none."""
    import re

    return re.search(r"""https?://[^\s/?\#"'<>]+@|://[^\s/?\#"'<>:]*:[^\s/?\#"'<>]+@""", value) is not None


def expand(text: str, env: Mapping[str, str] = os.environ) -> str:
    """A path with `~` and `$VAR` replaced, where the variable holds a path or a part of one.

    The result may be shown to who sent the path; what is secret in the environment is none of his business.
    """
    import re

    def value(found: re.Match[str]) -> str:
        name = found["name"] or found["braced"]
        known = env.get(name, "")
        secret = is_secret(name) or re.search(r"PASS|PWD|AUTH|CRED|URL|URI|DSN", name, re.IGNORECASE)
        return known if re.fullmatch(r"[\w./-]+", known) and not secret else found.group()

    return os.path.expanduser(  # noqa: PTH111 - pathlib's raises for a user that does not exist
        re.sub(r"\$(?:(?P<name>[A-Za-z_]\w*)|\{(?P<braced>[A-Za-z_]\w*)\})", value, text)
    )


def _home(env: Mapping[str, str]) -> list[Path]:
    """The home directory; none for a user without one, or whose home is / (which would allow everything)."""
    from pathlib import Path

    try:
        home = Path(env["HOME"]) if env.get("HOME", "").startswith("/") else Path("~").expanduser()
    except RuntimeError:
        return []
    return [] if home.resolve() == Path("/") else [home]


class _Reader:
    """Turns one variable into one typed value, or into an error that names it."""

    def __init__(self, env: Mapping[str, str]) -> None:
        self.env = env

    def optional_path(self, name: str) -> Path | None:
        from pathlib import Path

        text = self.env.get(name, "")
        if not text:
            return None
        try:
            path = Path(os.path.expandvars(text)).expanduser()
        except RuntimeError as error:
            raise SettingsError(f"{name}: {error}", field=name) from error
        if not path.is_absolute() or "\0" in text:
            raise SettingsError(f"{name} takes an absolute path, not {text!r}", field=name)
        return path

    def path(self, name: str, default: Path) -> Path:
        return self.optional_path(name) or default

    def paths(self, name: str, default: tuple[Path, ...]) -> tuple[Path, ...]:
        texts = [text for text in self.env.get(name, "").split(":") if text]
        found = [_Reader({name: text}).optional_path(name) for text in texts]
        return tuple(path for path in found if path) or default

    def integer(self, name: str, default: int, low: int, high: int) -> int:
        text = self.env.get(name, "").strip()
        return self._bounded(name, text, int, low, high, "a whole number") if text else default

    def seconds(self, name: str, default: float) -> float:
        text = self.env.get(name, "").strip()
        return self._bounded(name, text, float, 0.1, 86400, "seconds,") if text else default

    def seconds_or_never(self, name: str) -> float | None:
        text = self.env.get(name, "").strip() or "0"
        return self._bounded(name, text, float, 0, 604800, "seconds (0: never)") or None

    def _bounded(
        self, name: str, text: str, kind: Callable[[str], _N], low: float, high: float, what: str
    ) -> _N:
        try:
            value = kind(text)
        except ValueError:
            value = None
        if value is None or not low <= value <= high:
            raise SettingsError(f"{name} takes {what} from {low:g} to {high:g}, not {text!r}", field=name)
        return value

    def choice(self, name: str, takes: tuple[str, ...]) -> str:
        """The first of `takes` is the default."""
        text = self.env.get(name, "").strip()
        if text and text not in takes:
            raise SettingsError(f"{name} takes {' or '.join(takes)}, not {text!r}", field=name)
        return text or takes[0]

    def group(self, name: str) -> int | None:
        """A group's number, from its name or number."""
        text = self.env.get(name, "").strip()
        if not text:
            return None
        import grp

        try:
            return int(text) if text.isdecimal() and int(text) < 2**32 - 1 else grp.getgrnam(text).gr_gid
        except (KeyError, ValueError) as error:
            raise SettingsError(
                f"{name} takes the name or the number of a group of this machine, not {text!r}",
                field=name,
                hint="`getent group` lists them",
            ) from error

    def url(self, name: str) -> str | None:
        """It is shown to everybody who asks for the status, so it must not hold a password."""
        from urllib.parse import urlsplit

        text = self.env.get(name, "").strip()
        if not text:
            return None
        fits = text.isprintable() and " " not in text and "@" not in text and len(text) <= LONGEST_URL
        try:
            parts = urlsplit(text)
            fits = fits and parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
        except ValueError:
            fits = False
        if not fits:
            raise SettingsError(
                f"{name} takes an http or https address as a browser takes it, without a user's name, "
                f"of at most {LONGEST_URL} characters",
                field=name,
                hint="such as https://example.org/tensorboard/",
            )
        return text

    def words(self, name: str) -> tuple[str, ...]:
        import shlex

        try:
            return tuple(shlex.split(self.env.get(name, "")))
        except ValueError as error:
            raise SettingsError(
                f"{name} takes words as a shell reads them: {error}", field=name, hint="close the quote"
            ) from error

    def names(self, name: str) -> tuple[str, ...]:
        return tuple(part.strip() for part in self.env.get(name, "").split(",") if part.strip())
