"""ControlPilot's four calls, against the contract, line by line. Quoted lines are the contract's."""

import json
import tomllib
from pathlib import Path
from typing import Any

import pytest

from tests.harness import Workspace, processes_of_run
from tests.helpers import TRAINERS, wait_until
from tests.web import MODELS, Shim

RUNNING = "A training process is already running."


def fields_of(detail: Any) -> list[str]:
    """The names of a 422: "`detail` is a list and the field's name is in `loc`"."""
    assert isinstance(detail, list) and detail
    for each in detail:
        assert each.keys() == {"loc", "msg", "type"}
        assert each["loc"][0] in ("body", "query", "header") and isinstance(each["msg"], str)
    return [each["loc"][-1] for each in detail]


def start(shim: Shim, **fields: Any) -> tuple[int, Any]:
    return shim.post("/train/start", shim.form(**fields))


# "calls validate, then start; shows `Running...`, `Stopped.`, `Error: <detail>`"


def test_the_sequence_of_the_tab(shim: Shim) -> None:
    root = shim.workspace.root
    form = shim.form()
    (root / "models").mkdir()
    for name in ("transformer_path", "vae_path", "clip_path"):
        Path(form[name]).touch()
    asked = {name: form[name] for name in MODELS}
    # '200 `{"ok": bool, "missing": [{"field": name, "path": as given}, …]}`'
    answer = {"ok": False, "missing": [{"field": "llm_path", "path": form["llm_path"]}]}
    assert shim.post("/train/validate", asked) == (200, answer)
    # "a folder counts as present"
    Path(form["llm_path"]).mkdir()
    assert shim.post("/train/validate", asked) == (200, {"ok": True, "missing": []})

    # '200 `{"status": "started", "pid": N, "config": "<config_dir>/training_config.toml"}`'
    status, started = shim.post("/train/start", form)
    assert status == 200 and started.keys() == {"status", "pid", "config"}
    assert started["status"] == "started" and started["config"] == f"{root}/configs/training_config.toml"
    pid = started["pid"]
    assert isinstance(pid, int)
    command = Path(f"/proc/{pid}/cmdline").read_text().split("\0")
    assert command[1].endswith("bin/deepspeed")

    # "GET /dpipe/train/logs[?limit=500][&pid=N]: 200 `{"pid": N or null, "lines": [str, …]}`"
    def logs() -> Any:
        status, found = shim.get("/train/logs", limit=500)
        assert status == 200 and found.keys() == {"pid", "lines"} and found["pid"] == pid
        return found["lines"] if len(found["lines"]) > 5 else None

    lines = wait_until(logs, "lines")
    assert lines[0] == "using video_clip_mode=single_beginning"
    assert shim.get("/train/logs", pid=pid)[1]["pid"] == pid

    # "400 `A training process is already running.`"
    assert shim.post("/train/start", form) == (400, {"detail": RUNNING})

    # '200 `{"status": "stopped", "pid": N}`'
    run = shim.workspace.status()["run"]["id"]
    assert shim.post("/train/stop") == (200, {"status": "stopped", "pid": pid})
    # "stop ends the whole process group"
    assert processes_of_run(run) == []
    # 'nothing running → 200 `{"status": "noop", "detail": "No training process tracked."}`'
    noop = {"status": "noop", "detail": "No training process tracked."}
    assert shim.post("/train/stop") == (200, noop)
    # "the tail of the active or the most recent run"
    assert shim.get("/train/logs")[1]["pid"] == pid


# --- POST /dpipe/train/validate


def test_validate_order_paths_and_refusals(shim: Shim) -> None:
    root = shim.workspace.root
    # "order transformer, vae, llm, clip; `path` echoed as sent"
    asked = {
        "clip_path": "models/$NO_SUCH_VARIABLE",
        "llm_path": "models/../models/l",
        "vae_path": "models/v",
        "transformer_path": f"{root}/models/t",
        # "unknown fields ignored"
        "epochs": None,
    }
    status, found = shim.post("/train/validate", asked)
    assert status == 200
    assert found["missing"] == [{"field": name, "path": asked[name]} for name in MODELS]
    # "Relative paths are taken from the workspace; `~` and `$VAR` are expanded"
    (root / "models").mkdir()
    (root / "models/v").touch()
    asked |= {"llm_path": "$WORKSPACE_ROOT/models/v", "clip_path": "${WORKSPACE_ROOT}/models/none"}
    status, found = shim.post("/train/validate", asked)
    assert [each["field"] for each in found["missing"]] == ["transformer_path", "clip_path"]
    # "Empty or outside the allowed roots → 400", "blank or outside → 400"
    for path in ("", "  ", "/etc/passwd", "../x", "/etc", f"{root}-sibling/x", "~root/../../etc/x"):
        status, found = shim.post("/train/validate", asked | {"vae_path": path})
        assert status == 400 and "vae_path" in found["detail"], path
    # "symlinks are resolved before the check"
    (root / "models/out").symlink_to("/etc")
    assert shim.post("/train/validate", asked | {"vae_path": "models/out/passwd"})[0] == 400
    # "all required strings"
    status, found = shim.post("/train/validate", {"transformer_path": 1, "vae_path": "x", "llm_path": None})
    assert status == 422 and fields_of(found["detail"]) == ["transformer_path", "llm_path", "clip_path"]


def test_home_is_an_allowed_root_and_is_what_the_tilde_means(workspace: Workspace) -> None:
    home = workspace.root / "home"
    home.mkdir()
    (home / "model").touch()
    del workspace.env["DIFFPIPE_ALLOWED_ROOTS"]
    workspace.env["HOME"] = str(home)
    workspace.start_daemon()
    shim = Shim(workspace)
    asked = dict.fromkeys(MODELS, "~/model") | {"llm_path": "/opt"}
    assert shim.post("/train/validate", asked) == (200, {"ok": True, "missing": []})


# --- POST /dpipe/train/start


def test_a_body_error_comes_before_everything(shim: Shim) -> None:
    assert start(shim)[0] == 200
    # "start: a body error (422) comes before everything; the running-already refusal comes before the path
    # checks"
    for field, value in (("betas", "x"), ("wandb_run_name", '""x'), ("video_clip_mode", '"')):
        status, found = start(shim, **{field: value})
        assert status == 422 and fields_of(found["detail"]) == [field]
    assert start(shim, dataset_path="/etc") == (400, {"detail": RUNNING})


@pytest.mark.parametrize(
    ("field", "value"),
    [
        # "null for a number is one (the page sends it for an emptied field)"
        *((name, None) for name in ("epochs", "batch_size", "learning_rate", "rank", "eps", "min_ar")),
        ("epochs", ""),
        ("epochs", 0),
        ("save_every", 0),
        ("eval_every", 0),
        ("steps_per_print", 0),
        ("checkpoint_every_n_minutes", 0),
        ("epochs", 1.5),
        ("epochs", True),
        ("learning_rate", "fast"),
        ("enable_wandb", "yes"),
        # "422 betas/resolutions/frames/AR that are not JSON lists"
        ("betas", "0.9"),
        ("resolutions_input", "512"),
        ("frame_buckets", "{}"),
        ("ar_buckets", "wide"),
        # "blank or spaced tokens in dtype, save_dtype, video_clip_mode, partition_method, optimizer_type"
        *((name, "") for name in ("dtype", "save_dtype", "video_clip_mode", "optimizer_type")),
        *((name, "a b") for name in ("dtype", "save_dtype", "partition_method", "optimizer_type")),
        ("video_clip_mode", " "),
        ("partition_method", "parameters\n"),
        ("dataset_path", None),
        ("wandb_run_name", 3),
    ],
)
def test_a_field_that_does_not_fit_is_named(shim_module: Shim, field: str, value: object) -> None:
    status, found = start(shim_module, **{field: value})
    assert status == 422 and fields_of(found["detail"]) == [field]
    assert found["detail"][0]["msg"].startswith(f"{field} takes ")


@pytest.fixture(scope="module")
def shim_module() -> Any:
    workspace = Workspace()
    workspace.start_daemon()
    yield Shim(workspace)
    workspace.close()


def test_required_fields_and_bodies_that_are_none(shim_module: Shim) -> None:
    status, found = shim_module.post("/train/start", {"epochs": 1})
    required = ["dataset_path", "config_dir", "output_dir", *MODELS]
    assert status == 422 and fields_of(found["detail"]) == required
    assert all(each["type"] == "missing" for each in found["detail"])
    for body in (b"", b"{", b"[]", b"null", b'"x"', b"\xff", b"[" * 100_000):
        answer = shim_module.client.post(
            "/train/start", content=body, headers={"content-type": "application/json"}
        )
        assert answer.status_code == 422 and answer.json()["detail"][0]["loc"] == ["body"], body
    answer = shim_module.client.post("/train/start", data={"epochs": "1"})
    assert answer.status_code == 422 and fields_of(answer.json()["detail"]) == ["content-type"]


def test_paths_and_their_roots(shim: Shim) -> None:
    root = shim.workspace.root
    (root / "datasets/file").touch()
    (root / "outputs/link").symlink_to("/tmp")
    (root / "datasets-more").mkdir()
    # "400 dataset missing or a path outside its root"
    refused = {
        "dataset_path": [
            "none",
            f"{root}/datasets/none",
            f"{root}/datasets/file",
            f"{root}/configs",
            # "a sibling sharing the root's prefix"
            f"{root}/datasets-more",
            # "`..`"
            "../outputs",
            "",
        ],
        "config_dir": [f"{root}/outputs", "/etc", "../datasets", "set/../../x"],
        # "a symlink leading outside"
        "output_dir": [f"{root}/outputs/link/x", "link", f"{root}/configs/x", "/tmp"],
        # "models below the workspace, /opt or the home directory"
        "transformer_path": ["/etc/passwd", "../x", ""],
        "clip_path": ["/tmp/x"],
    }
    for field, values in refused.items():
        for value in values:
            status, found = start(shim, **{field: value})
            assert status == 400 and field in found["detail"], (field, value, found)
            assert str(root) not in found["detail"].replace(value or "-", "")
    assert shim.workspace.json("runs") == []
    assert not (root / "configs/training_config.toml").exists()


def test_relative_paths_are_taken_from_their_own_roots_and_folders_are_made(shim: Shim) -> None:
    root = shim.workspace.root
    status, started = start(
        shim, dataset_path="set", config_dir="mine/now", output_dir="a/b", vae_path="models/v"
    )
    assert (status, started["config"]) == (200, f"{root}/configs/mine/now/training_config.toml")
    written = tomllib.loads(Path(started["config"]).read_text())
    # "`output_dir` stays as asked"
    assert written["output_dir"] == f"{root}/outputs/a/b"
    assert written["dataset"] == f"{root}/configs/mine/now/dataset_config.toml"
    assert written["model"]["vae_path"] == f"{root}/models/v"
    data = tomllib.loads(Path(written["dataset"]).read_text())
    assert data["directory"] == [{"path": f"{root}/datasets/set", "num_repeats": 10}]
    wait_until(lambda: list((root / "outputs/a/b").glob("*/training_config.toml")), "the output")


def test_only_learning_rate_sets_the_rate(shim: Shim) -> None:
    # "only `learning_rate` sets the rate, `lr` is ignored"
    status, started = start(shim, lr=0.5, unheard_of={"x": 1})
    assert status == 200
    assert tomllib.loads(Path(started["config"]).read_text())["optimizer"]["lr"] == 2e-5


def test_the_launched_config_is_the_runs_own(shim: Shim) -> None:
    assert start(shim, epochs=7)[0] == 200
    root = shim.workspace.root
    run = shim.workspace.status()["run"]["id"]
    folder = shim.workspace.runs_dir / run
    # "The launcher is called as `--num_gpus=1 train.py --deepspeed --config FILE`"
    argv = shim.workspace.json("show", run)["argv"]
    assert argv[1] == "--num_gpus=1" and argv[3:6] == ["train.py", "--deepspeed", "--config"]
    # "with the folder that holds train.py as working directory"
    assert shim.workspace.json("show", run)["cwd"] == str(TRAINERS / "app")
    assert argv[6] == str(folder / "training_config.toml")
    launched = tomllib.loads((folder / "training_config.toml").read_text())
    written = tomllib.loads((root / "configs/training_config.toml").read_text())
    assert launched | {"dataset": written["dataset"]} == written
    assert launched["dataset"] == str(folder / "dataset_config.toml")
    # A second start, though refused, touches neither.
    assert start(shim, epochs=9)[0] == 400
    assert tomllib.loads((root / "configs/training_config.toml").read_text())["epochs"] == 7


@pytest.mark.parametrize(
    ("variable", "says"), [("DEEPSPEED_BIN", "deepspeed"), ("DIFFPIPE_APP_DIR", "train.py")]
)
def test_what_is_not_installed_is_said(workspace: Workspace, variable: str, says: str) -> None:
    workspace.env[variable] = str(workspace.root / "nothing")
    workspace.start_daemon()
    shim = Shim(workspace)
    # "500 deepspeed or train.py missing (said which)"
    status, found = start(shim)
    assert status == 500 and says in found["detail"] and str(workspace.root) not in found["detail"]
    assert workspace.json("runs") == [] and not (workspace.root / "configs/training_config.toml").exists()


def test_six_starts_at_once_make_one_training(shim: Shim) -> None:
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(6) as pool:
        found = list(pool.map(lambda _: start(shim), range(6)))
    assert sorted(status for status, _ in found) == [200, 400, 400, 400, 400, 400]
    assert all(document == {"detail": RUNNING} for status, document in found if status == 400)
    assert len(shim.workspace.json("runs")) == 1


def test_resume_from_checkpoint_names_the_folder(shim: Shim) -> None:
    status, found = start(shim, resume_from_checkpoint=True)
    assert status == 400 and "resume_from_checkpoint" in found["detail"]
    assert start(shim)[0] == 200
    shim.workspace.until_step(2)
    assert shim.post("/train/stop", mode="save")[0] == 200
    first = shim.workspace.json("show", "last")
    folder = Path(first["train_dir"]).name
    # A stray file and another tool's folder, which sort last, are not taken for a checkpoint.
    (shim.workspace.root / "outputs/zzz").touch()
    (shim.workspace.root / "outputs/zzzz").mkdir()
    for value in (True, folder):
        assert start(shim, resume_from_checkpoint=value)[0] == 200
        argv = shim.workspace.json("show", "last")["argv"]
        assert argv[-2:] == ["--resume_from_checkpoint", folder]
        shim.post("/train/stop", mode="kill")
    for value in ("zzzz", "none", "../configs", "/etc"):
        status, found = start(shim, resume_from_checkpoint=value)
        assert status == 400 and "resume_from_checkpoint" in found["detail"], value


# --- POST /dpipe/train/stop


def test_stop_with_another_pid_stops_nothing(shim: Shim) -> None:
    _, started = start(shim)
    # 'another pid → 200 `{"status": "noop", "detail": "Process not found."}`'
    for pid in (1, started["pid"] + 1, 0, -5, 99999999999):
        answer = {"status": "noop", "detail": "Process not found."}
        assert shim.post("/train/stop", pid=pid) == (200, answer)
    assert shim.workspace.status()["state"] == "running"
    assert shim.post("/train/stop", pid="x")[0] == 422
    assert shim.post("/train/stop", pid=started["pid"]) == (200, {"status": "stopped", "pid": started["pid"]})


def test_stopped_means_that_nothing_is_left(workspace: Workspace) -> None:
    workspace.env["SCRIPT"] = json.dumps({"behaviour": "stubborn"})
    workspace.env["DIFFPIPE_STOP_TIMEOUT"] = "0.5"
    workspace.start_daemon()
    shim = Shim(workspace)
    assert start(shim)[0] == 200
    run = workspace.status()["run"]["id"]
    wait_until(lambda: "stubborn" in shim.get("/train/logs")[1]["lines"], "it runs")
    status, found = shim.post("/train/stop", wait=0)
    assert status == 202 and found["status"] == "stopping"
    assert shim.post("/train/stop")[1]["status"] == "stopped"
    assert processes_of_run(run) == []


def test_a_stop_in_the_moment_of_a_natural_end_is_never_a_500(workspace: Workspace) -> None:
    workspace.env["SCRIPT"] = json.dumps({"steps": 1, "seconds_per_step": 0})
    workspace.start_daemon()
    shim = Shim(workspace)
    for _ in range(8):
        wait_until(lambda: workspace.status()["state"] == "idle", "it has ended")
        assert start(shim)[0] == 200
        status, found = shim.post("/train/stop")
        assert status == 200 and found["status"] in ("stopped", "noop")


# --- GET /dpipe/train/logs


def test_logs_before_any_run_and_their_limits(shim: Shim) -> None:
    assert shim.get("/train/logs") == (200, {"pid": None, "lines": []})
    # "limit=0 or negative is a client's error"
    for limit in ("0", "-1", "x", "", "1.5", "100001", "1e3"):
        status, found = shim.get("/train/logs", limit=limit)
        assert status == 422 and fields_of(found["detail"]) == ["limit"]
    assert shim.get("/train/logs", pid=12345) == (200, {"pid": 12345, "lines": []})
    for pid in (-1, 99999999999):
        assert shim.get("/train/logs", pid=pid) == (200, {"pid": pid, "lines": []})


def test_logs_are_the_newest_oldest_first_with_the_unterminated_line(workspace: Workspace) -> None:
    go = workspace.root / "go"
    script = {"behaviour": "bar", "go": str(go), "steps": 700, "seconds_per_step": 0.001}
    workspace.env["SCRIPT"] = json.dumps(script)
    workspace.start_daemon()
    shim = Shim(workspace)
    _, first = start(shim)

    # "an unterminated last line included"
    def bar() -> Any:
        lines = shim.get("/train/logs")[1]["lines"]
        return lines if lines and lines[-1].endswith("5/5 [00:01<00:00]") else None

    lines = wait_until(bar, "the progress bar")
    assert "\r" not in "".join(lines)
    go.touch()
    wait_until(lambda: workspace.status()["state"] == "idle", "its end")
    # "default limit 500", "oldest first"
    lines = shim.get("/train/logs")[1]["lines"]
    assert len(lines) == 500 and lines[-1] == "TRAINING COMPLETE!"
    steps = [int(line.split()[1]) for line in lines if line.startswith("steps: ")]
    assert steps == sorted(steps) and steps[-1] == 700
    assert shim.get("/train/logs", limit=2)[1]["lines"] == lines[-2:]
    _, second = start(shim)
    # Without a pid: the newest run, not the oldest.
    assert shim.get("/train/logs")[1]["pid"] == second["pid"] != first["pid"]
    assert shim.get("/train/logs", pid=first["pid"])[1]["lines"] == lines


def test_a_long_path_to_a_short_place_is_a_400(shim: Shim) -> None:
    root = shim.workspace.root
    (root / "models/m").mkdir(parents=True)
    (root / "datasets/m").mkdir()
    long = "x" * 200
    (root / "models" / long).symlink_to("m")
    (root / "datasets" / long).symlink_to("m")
    rest = "/".join(["y" * 200] * 21)[: 4096 - len(str(root / "models" / long)) + 5]
    for field, path in (("vae_path", f"models/{long}/{rest}"), ("dataset_path", f"{long}/{rest}")):
        status, found = start(shim, **{field: path})
        assert status == 400 and field in found["detail"]


# "NUL bytes or over-long paths are a 400, never a 500"


@pytest.mark.parametrize("path", ["a\0b", "x" * 5000, "/" + "y" * 300 + "/z", "a/" * 3000, "é" * 2500])
def test_strange_paths_are_a_400(shim_module: Shim, path: str) -> None:
    for field in ("dataset_path", "config_dir", "output_dir", "transformer_path"):
        status, found = start(shim_module, **{field: path})
        assert status == 400 and field in found["detail"]
    status, found = shim_module.post("/train/validate", dict.fromkeys(MODELS, path))
    assert status == 400 and "transformer_path" in found["detail"]
