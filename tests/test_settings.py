"""Every environment variable: default, valid, refused with its name, and what a training inherits."""

import os
import pwd
import re
from collections.abc import Mapping
from pathlib import Path

import msgspec
import pytest

from dpiped.errors import SettingsError
from dpiped.settings import (
    AF_UNIX_PATH_LIMIT,
    OF_THE_SERVICE_MANAGER,
    RUN_MARKER,
    HttpSettings,
    ServiceManager,
    Settings,
    environment_after_reload,
    environment_of_helpers,
    expand,
    launcher_candidates,
    load,
    load_http,
    load_service_manager,
    socket_path,
    training_environment,
)
from tests.helpers import HERE

BASE = {"HOME": "/home/ann", "DIFFPIPE_SOCKET": "/run/t.sock"}


def loaded(**variables: str) -> Settings:
    return load(BASE | variables)


def field(settings: Settings, name: str) -> object:
    value: object = settings
    for part in name.split("."):
        value = value[part] if isinstance(value, dict) else getattr(value, part)
    return value


DEFAULTS: dict[str, object] = {
    "workspace": Path("/workspace"),
    "state_dir": Path("/workspace/diffpipe"),
    "socket": "/run/t.sock",
    "socket_group": None,
    "allowed_roots": (Path("/workspace"), Path("/opt"), Path("/home/ann")),
    "app_dirs": (Path("/workspace/apps/diffusion-pipe"), Path("/opt/pilot/repos/diffusion-pipe")),
    "deepspeed_bin": None,
    "config": None,
    "num_gpus": 1,
    "resume": "auto",
    "extra_args": (),
    "on_exit": "stop",
    "stop_timeout": 20.0,
    "save_timeout": 600.0,
    "hang_timeout": None,
    "log_lines": 2000,
    "log_bytes": 4 << 20,
    "pass_env": (),
    "training_env": {"NCCL_P2P_DISABLE": "1", "NCCL_IB_DISABLE": "1"},
    "tensorboard_in_training": True,
    "tensorboard_host": "127.0.0.1",
    "tensorboard_port": 4444,
    "tensorboard_url": None,
    "tensorboard_root": Path("/workspace/logs/tensorboard"),
    "logdir": Path("/workspace/logs/diffusion-pipe"),
    "tensorboard_sources": {
        "trainpilot": Path("/workspace/logs/TrainPilot"),
        "kohya": Path("/workspace/outputs"),
        "ai-toolkit": Path("/workspace/outputs/ai-toolkit"),
    },
}
VALID: list[tuple[str, str, str, object]] = [
    ("WORKSPACE_ROOT", "/w", "workspace", Path("/w")),
    ("DIFFPIPE_STATE_DIR", "/s", "state_dir", Path("/s")),
    ("DIFFPIPE_SOCKET", "/tmp/x.sock", "socket", "/tmp/x.sock"),
    ("DIFFPIPE_SOCKET_GROUP", "root", "socket_group", 0),
    ("DIFFPIPE_SOCKET_GROUP", " 4242 ", "socket_group", 4242),
    ("DIFFPIPE_ALLOWED_ROOTS", "/a:/b::", "allowed_roots", (Path("/a"), Path("/b"))),
    ("DIFFPIPE_APP_DIR", "/app", "app_dirs", (Path("/app"), Path("/opt/pilot/repos/diffusion-pipe"))),
    ("DIFFPIPE_REPO_DIR", "/r", "app_dirs", (Path("/workspace/apps/diffusion-pipe"), Path("/r"))),
    ("DEEPSPEED_BIN", "/venv/bin/deepspeed", "deepspeed_bin", "/venv/bin/deepspeed"),
    ("DIFFPIPE_CONFIG", "/c.toml", "config", Path("/c.toml")),
    ("DIFFPIPE_RESUME", "auto", "resume", "auto"),
    ("DIFFPIPE_RESUME", " never ", "resume", "never"),
    ("NUM_GPUS", "2", "num_gpus", 2),
    ("DIFFPIPE_NUM_GPUS", " 4 ", "num_gpus", 4),
    ("DIFFPIPE_EXTRA_ARGS", "--a 'b c' d", "extra_args", ("--a", "b c", "d")),
    ("DIFFPIPE_ON_EXIT", "detach", "on_exit", "detach"),
    ("DIFFPIPE_ON_EXIT", "stop", "on_exit", "stop"),
    ("DIFFPIPE_STOP_TIMEOUT", "0.5", "stop_timeout", 0.5),
    ("DIFFPIPE_SAVE_TIMEOUT", "86400", "save_timeout", 86400.0),
    ("DIFFPIPE_HANG_TIMEOUT", "0", "hang_timeout", None),
    ("DIFFPIPE_HANG_TIMEOUT", " 1800 ", "hang_timeout", 1800.0),
    ("DIFFPIPE_LOG_LINES", "1", "log_lines", 1),
    ("DIFFPIPE_LOG_BYTES", "65536", "log_bytes", 65536),
    ("DIFFPIPE_PASS_ENV", "FOO, BAR_*,,", "pass_env", ("FOO", "BAR_*")),
    ("NCCL_P2P_DISABLE", "0", "training_env.NCCL_P2P_DISABLE", "0"),
    ("NCCL_IB_DISABLE", "0", "training_env.NCCL_IB_DISABLE", "0"),
    ("DIFFPIPE_TENSORBOARD", "0", "tensorboard_in_training", False),
    ("DIFFPIPE_TENSORBOARD_HOST", "0.0.0.0", "tensorboard_host", "0.0.0.0"),
    ("DIFFPIPE_PORT", "6006", "tensorboard_port", 6006),
    *(
        ("DIFFPIPE_TENSORBOARD_URL", f" {url} ", "tensorboard_url", url)
        for url in ("http://10.0.0.1:4444", "https://pod-4444.example.org/tb/?a=b#c", "HTTPS://[::1]:1/")
    ),
    ("TENSORBOARD_ROOT_LOGDIR", "/tb", "tensorboard_root", Path("/tb")),
    ("DIFFPIPE_LOGDIR", "/ld", "logdir", Path("/ld")),
    ("TRAINPILOT_TENSORBOARD_LOGDIR", "/t1", "tensorboard_sources.trainpilot", Path("/t1")),
    ("KOHYA_TENSORBOARD_LOGDIR", "/t2", "tensorboard_sources.kohya", Path("/t2")),
    ("AI_TOOLKIT_TENSORBOARD_LOGDIR", "/t3", "tensorboard_sources.ai-toolkit", Path("/t3")),
]
PATH_VARIABLES = [
    "WORKSPACE_ROOT",
    "DIFFPIPE_STATE_DIR",
    "DIFFPIPE_SOCKET",
    "DIFFPIPE_ALLOWED_ROOTS",
    "DIFFPIPE_APP_DIR",
    "DIFFPIPE_REPO_DIR",
    "DIFFPIPE_CONFIG",
    "TENSORBOARD_ROOT_LOGDIR",
    "DIFFPIPE_LOGDIR",
    "TRAINPILOT_TENSORBOARD_LOGDIR",
    "KOHYA_TENSORBOARD_LOGDIR",
    "AI_TOOLKIT_TENSORBOARD_LOGDIR",
]
INVALID: list[tuple[str, str, str]] = [
    *((name, "relative/path", "absolute path") for name in PATH_VARIABLES),
    *((name, "/with\0nul", "absolute path") for name in PATH_VARIABLES),
    ("DIFFPIPE_ALLOWED_ROOTS", "/a:b", "absolute path"),
    ("DIFFPIPE_CONFIG", "~nobody-of-that-name/x.toml", "DIFFPIPE_CONFIG"),
    *(
        (name, text, "whole number from 1 to 64")
        for name in ("NUM_GPUS", "DIFFPIPE_NUM_GPUS")
        for text in ("0", "65", "two", "1.5", "-1")
    ),
    ("DIFFPIPE_SOCKET_GROUP", "no-such-group", "name or the number of a group"),
    ("DIFFPIPE_SOCKET_GROUP", str(2**32), "name or the number of a group"),
    ("DIFFPIPE_EXTRA_ARGS", "--a 'b", "words as a shell reads them"),
    ("DIFFPIPE_ON_EXIT", "kill", "stop or detach"),
    ("DIFFPIPE_RESUME", "1", "auto or never"),
    *(
        (name, text, "seconds, from 0.1 to 86400")
        for name in ("DIFFPIPE_STOP_TIMEOUT", "DIFFPIPE_SAVE_TIMEOUT")
        for text in ("0", "soon", "nan", "inf", "-3", "86401")
    ),
    *(
        ("DIFFPIPE_HANG_TIMEOUT", text, "seconds (0: never) from 0 to 604800")
        for text in ("soon", "nan", "inf", "-3", "604801")
    ),
    ("DIFFPIPE_LOG_LINES", "0", "whole number from 1"),
    ("DIFFPIPE_LOG_BYTES", "65535", "whole number from 65536"),
    ("DIFFPIPE_TENSORBOARD", "yes", "1 or 0"),
    ("DIFFPIPE_PORT", "65536", "whole number from 1 to 65535"),
    *(
        ("DIFFPIPE_TENSORBOARD_URL", text, "http or https address")
        for text in (
            "example.org",
            "//example.org",
            "ftp://example.org",
            "javascript:alert(1)//http://x",
            "http://",
            "http:///path",
            "http://:80/",
            "http://h:65536",
            "http://h:0",
            "http://[::1",
            "http://a b/",
            "http://h/\x07",
            "https://ann:secret@example.org/",
            "http://h/" + "x" * 2048,
        )
    ),
]


def test_every_setting_has_its_default() -> None:
    settings = loaded()
    assert {name: getattr(settings, name) for name in settings.__struct_fields__} == DEFAULTS


@pytest.mark.parametrize(("variable", "text", "name", "value"), VALID)
def test_a_variable_sets_its_setting_and_no_other(variable: str, text: str, name: str, value: object) -> None:
    settings = loaded(**{variable: text})
    assert field(settings, name) == value
    if variable != "WORKSPACE_ROOT":
        top = name.partition(".")[0]
        assert {n: v for n, v in msgspec.structs.asdict(settings).items() if n != top} == {
            n: v for n, v in DEFAULTS.items() if n != top
        }


@pytest.mark.parametrize("variable", sorted({row[0] for row in VALID} - {"DIFFPIPE_SOCKET"}))
def test_an_empty_variable_means_the_default(variable: str) -> None:
    assert loaded(**{variable: ""}) == loaded()


@pytest.mark.parametrize(("variable", "text", "takes"), INVALID)
def test_a_wrong_value_is_refused_with_the_name_and_what_it_takes(
    variable: str, text: str, takes: str
) -> None:
    with pytest.raises(SettingsError) as refusal:
        loaded(**{variable: text})
    assert refusal.value.field == variable
    assert variable in refusal.value.message
    assert takes in refusal.value.message


def test_the_workspace_moves_all_that_lies_in_it() -> None:
    settings = loaded(WORKSPACE_ROOT="/w")
    assert settings.state_dir == Path("/w/diffpipe")
    assert settings.allowed_roots == (Path("/w"), Path("/opt"), Path("/home/ann"))
    assert settings.app_dirs[0] == Path("/w/apps/diffusion-pipe")
    assert settings.tensorboard_root == Path("/w/logs/tensorboard")
    assert settings.logdir == Path("/w/logs/diffusion-pipe")
    assert settings.tensorboard_sources["kohya"] == Path("/w/outputs")


def test_our_own_number_of_gpus_wins() -> None:
    assert loaded(NUM_GPUS="8", DIFFPIPE_NUM_GPUS="2").num_gpus == 2


def test_a_number_of_gpus_that_does_not_count_is_not_looked_at() -> None:
    assert loaded(NUM_GPUS="nonsense", DIFFPIPE_NUM_GPUS="3").num_gpus == 3


def test_a_home_that_is_the_root_allows_nothing() -> None:
    assert loaded(HOME="/").allowed_roots == (Path("/workspace"), Path("/opt"))


def test_a_user_without_a_home_has_no_root_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.setattr("os.getuid", lambda: 54321)
    assert loaded(HOME="").allowed_roots == (Path("/workspace"), Path("/opt"))


def test_a_home_in_a_path_is_expanded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/ann")
    monkeypatch.setenv("SUB", "deep")
    assert loaded(DIFFPIPE_LOGDIR="~/logs/$SUB").logdir == Path("/home/ann/logs/deep")


def test_tensorboard_is_unwanted_only_by_a_service_that_says_so() -> None:
    assert loaded().tensorboard_wanted
    assert loaded(DIFFPIPE_TENSORBOARD="0").tensorboard_wanted
    assert loaded(DIFFPIPE_CONFIG="/c.toml").tensorboard_wanted
    assert not loaded(DIFFPIPE_CONFIG="/c.toml", DIFFPIPE_TENSORBOARD="0").tensorboard_wanted


@pytest.mark.parametrize(
    ("user", "env", "path"),
    [
        (0, {}, "/run/dpiped/dpiped.sock"),
        (0, {"XDG_RUNTIME_DIR": "/run/user/0"}, "/run/dpiped/dpiped.sock"),
        (1000, {"XDG_RUNTIME_DIR": "/run/user/1000"}, "/run/user/1000/dpiped/dpiped.sock"),
        (0, {"DIFFPIPE_SOCKET": "/tmp/s"}, "/tmp/s"),
        (1000, {"DIFFPIPE_SOCKET": "/tmp/s", "XDG_RUNTIME_DIR": "/run/user/1000"}, "/tmp/s"),
    ],
)
def test_the_socket_of_root_and_of_others(
    monkeypatch: pytest.MonkeyPatch, user: int, env: Mapping[str, str], path: str
) -> None:
    monkeypatch.setattr("os.geteuid", lambda: user)
    assert socket_path(env) == path


def test_a_user_without_a_runtime_directory_is_told_what_to_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    with pytest.raises(SettingsError) as refusal:
        socket_path({})
    assert refusal.value.field == "DIFFPIPE_SOCKET"
    assert "DIFFPIPE_SOCKET" in (refusal.value.hint or "")


@pytest.mark.parametrize("letter", ["x", "ä"])
def test_the_length_of_a_socket_path_is_counted_in_bytes(letter: str) -> None:
    width = len(letter.encode())
    longest = "/a" + letter * ((AF_UNIX_PATH_LIMIT - 2) // width)
    assert socket_path({"DIFFPIPE_SOCKET": longest}) == longest
    with pytest.raises(SettingsError) as refusal:
        socket_path({"DIFFPIPE_SOCKET": longest + letter})
    assert refusal.value.field == "DIFFPIPE_SOCKET"
    assert str(AF_UNIX_PATH_LIMIT) in refusal.value.message


def test_every_variable_is_in_the_readme_and_in_the_environment_file() -> None:
    """With the names of what else the code looks at."""
    root = HERE.parent
    read = set(re.findall(r'"([A-Z][A-Z0-9_]{3,})"', (root / "dpiped/settings.py").read_text()))
    rows = re.findall(r"^\| (`[A-Z].*?) \|", (root / "README.md").read_text(), re.M)
    told = {name for row in rows for name in re.findall(r"`([A-Z][A-Z0-9_]+)`", row)}
    named = set(re.findall(r"\b[A-Z][A-Z0-9_]+\b", (root / "etc/systemd/dpiped.env").read_text()))
    assert told and told <= read and told <= named
    of_others = {"HOME", "XDG_RUNTIME_DIR", "CUDA_VISIBLE_DEVICES", "DS_ACCELERATOR", "SUPERVISOR_ENABLED"}
    ours = {"DPIPED_RUN_ID", "DPIPED_STARTED_BY"}
    assert read - told - {*OF_THE_SERVICE_MANAGER} == of_others | ours


@pytest.mark.parametrize(
    "name",
    [
        "PATH",
        "HOME",
        "LC_ALL",
        "CUDA_VISIBLE_DEVICES",
        "NVIDIA_VISIBLE_DEVICES",
        "NCCL_DEBUG",
        "TORCH_HOME",
        "TORCHINDUCTOR_CACHE_DIR",
        "PYTORCH_CUDA_ALLOC_CONF",
        "TRITON_CACHE_DIR",
        "DS_SKIP_CUDA_CHECK",
        "OMP_NUM_THREADS",
        "HF_HOME",
        "HUGGINGFACE_HUB_CACHE",
        "WANDB_MODE",
        "https_proxy",
        "SSL_CERT_FILE",
        "LD_LIBRARY_PATH",
    ],
)
def test_a_training_gets_what_it_needs(name: str) -> None:
    assert training_environment(loaded(), {name: "value"})[name] == "value"


def test_a_training_has_a_home_where_the_daemon_has_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HOME", raising=False)
    assert training_environment(loaded(), {})["HOME"] == pwd.getpwuid(os.getuid()).pw_dir


@pytest.mark.parametrize(
    "name",
    [
        "PYTHONPATH",
        "PYTHONHOME",
        "PYTHONSTARTUP",
        "VIRTUAL_ENV",
        "LD_PRELOAD",
        "DIFFPIPE_CONFIG",
        *OF_THE_SERVICE_MANAGER,
        "AWS_SECRET_ACCESS_KEY",
        "SUPERVISOR_ENABLED",
        "path",
        RUN_MARKER,
    ],
)
def test_a_training_does_not_get_what_belongs_to_the_daemon(name: str) -> None:
    assert name not in training_environment(loaded(), {name: "value"})


def test_what_the_service_manager_says_is_for_the_daemon_alone() -> None:
    env = {"NOTIFY_SOCKET": "/run/n", "LISTEN_PID": "1", "WATCHDOG_USEC": "1", "FOO": "1"}
    assert set(training_environment(loaded(DIFFPIPE_PASS_ENV="*"), env)) - set(env) == {
        "NCCL_P2P_DISABLE",
        "NCCL_IB_DISABLE",
        "HOME",
    }
    assert environment_of_helpers(env) == {"FOO": "1"}


def test_what_the_service_manager_says() -> None:
    assert load_service_manager({}) == ServiceManager()
    me = str(os.getpid())
    said = {"NOTIFY_SOCKET": "@n", "WATCHDOG_USEC": "3000000", "WATCHDOG_PID": me}
    said |= {"LISTEN_PID": me, "LISTEN_FDS": "1", "LISTEN_FDNAMES": "dpiped.socket"}
    assert load_service_manager(said) == ServiceManager(notify="@n", watchdog=3.0, listener=3)
    again = environment_after_reload(True, said)
    assert load_service_manager(again) == ServiceManager(notify="@n", watchdog=3.0, listener=3, own=True)
    assert load_service_manager(environment_after_reload(False, said)).own is False
    # Meant for the process that started this one.
    for_another = {"WATCHDOG_USEC": "3", "WATCHDOG_PID": "1", "LISTEN_PID": "1", "LISTEN_FDS": "7"}
    assert load_service_manager(for_another) == ServiceManager()


@pytest.mark.parametrize(
    ("variable", "text"),
    [("NOTIFY_SOCKET", "relative"), ("WATCHDOG_USEC", "soon"), ("LISTEN_FDS", "2"), ("LISTEN_FDS", "x")],
)
def test_what_the_service_manager_can_not_mean(variable: str, text: str) -> None:
    with pytest.raises(SettingsError) as refusal:
        load_service_manager({"LISTEN_PID": str(os.getpid()), variable: text})
    assert refusal.value.field == variable


def test_nccl_defaults_apply_only_where_the_user_set_nothing() -> None:
    home = {"HOME": "/home/ann"}
    nothing = training_environment(loaded(), home)
    assert nothing == {"NCCL_P2P_DISABLE": "1", "NCCL_IB_DISABLE": "1"} | home
    set_by_user = {"NCCL_P2P_DISABLE": "0", "NCCL_IB_DISABLE": ""} | home
    assert (
        training_environment(loaded(**set_by_user), set_by_user)
        == {
            "NCCL_P2P_DISABLE": "0",
            "NCCL_IB_DISABLE": "1",
        }
        | home
    )


def test_further_variables_are_passed_by_name_or_glob() -> None:
    env = {"FOO": "1", "BAR_A": "2", "BAR_B": "3", "BAZ": "4"}
    passed = training_environment(loaded(DIFFPIPE_PASS_ENV="FOO,BAR_*"), env)
    assert {name: value for name, value in passed.items() if name in env} == {
        "FOO": "1",
        "BAR_A": "2",
        "BAR_B": "3",
    }


def test_the_launcher_named_by_the_user_is_the_only_candidate() -> None:
    assert launcher_candidates(loaded(DEEPSPEED_BIN="/x/deepspeed")) == ["/x/deepspeed"]
    found = launcher_candidates(loaded())
    assert found[0] == "/opt/venvs/core/bin/deepspeed"
    assert found[-1] == "deepspeed"


def test_the_settings_of_the_shim_and_their_defaults(tmp_path: Path) -> None:
    assert load_http({}) == HttpSettings(host="127.0.0.1", port=7878, unix=None, token=None, hosts=())
    file = tmp_path / "token"
    file.write_text("  0123456789abcdef-file \nsecond line\n")
    file.chmod(0o600)
    env = {
        "DIFFPIPE_HTTP_HOST": " ::1 ",
        "DIFFPIPE_HTTP_PORT": "80",
        "DIFFPIPE_HTTP_SOCKET": "/run/h.sock",
        "DIFFPIPE_HTTP_HOSTS": "a.example, b.example",
        "DIFFPIPE_HTTP_TOKEN_FILE": str(file),
    }
    found = load_http(env)
    assert (found.host, found.port, found.unix) == ("::1", 80, "/run/h.sock")
    assert found.hosts == ("a.example", "b.example") and found.token == "0123456789abcdef-file"
    # The variable itself wins over the file; neither is shown.
    assert (
        load_http(env | {"DIFFPIPE_HTTP_TOKEN": "0123456789abcdef-itself"}).token == "0123456789abcdef-itself"
    )
    assert "0123456789" not in repr(found)


def test_a_path_is_expanded_but_no_secret_in_it() -> None:
    env = {"HOME": "/home/me", "DATA": "/data", "WANDB_API_KEY": "/secret", "DATABASE_URL": "db://me:pw@h"}
    env |= {"DB_PASS": "hunter2", "USER": "ann", "MODEL": "a-b.c", "WORDS": "two words"}
    assert expand("$DATA/x/${DATA}", env) == "/data/x//data"
    assert expand("$NOT_SET/x/$", env) == "$NOT_SET/x/$"
    assert expand("$WANDB_API_KEY/${WANDB_API_KEY}", env) == "$WANDB_API_KEY/${WANDB_API_KEY}"
    assert expand("/home/$USER/$DB_PASS/$DATABASE_URL", env) == "/home/ann/$DB_PASS/$DATABASE_URL"
    assert expand("models/${MODEL}/$WORDS", env) == "models/a-b.c/$WORDS"
    assert expand("a~b", env) == "a~b" and expand("~/x").endswith("/x") and "~" not in expand("~/x")
