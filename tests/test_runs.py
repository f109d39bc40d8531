"""A run's life through the real daemon, runner and client: start, follow, stop, save, resume, outcomes."""

import json
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest

from dpiped import messages
from tests.harness import BIN, Workspace, processes_of_run
from tests.helpers import wait_until

pytestmark = pytest.mark.timeout(60)


def test_a_run_completes_and_leaves_its_records(dpiped: Workspace) -> None:
    run = dpiped.start(dpiped.config(steps=5))
    ended = dpiped.until_ended(run)
    assert (ended["outcome"], ended["exit_code"], ended["step"]) == ("completed", 0, 5)
    assert {path.name for path in (dpiped.runs_dir / run).iterdir()} >= {
        "spec.json",
        "training_config.toml",
        "dataset_config.toml",
        "started.json",
        "output.log",
        "exit.json",
        "outcome.json",
    }
    assert (dpiped.runs_dir / run).stat().st_mode & 0o777 == 0o700
    assert all(path.stat().st_mode & 0o077 == 0 for path in (dpiped.runs_dir / run).iterdir())
    assert processes_of_run(run) == []
    last = dpiped.status()["last_run"]
    assert (last["id"], last["outcome"], last["exit_code"], last["signal"]) == (run, "completed", 0, None)


def test_a_run_that_goes_on_is_listed_with_the_figures_of_now(dpiped: Workspace) -> None:
    run = dpiped.start(dpiped.config(until=str(dpiped.go)))
    step = dpiped.until_step(3)["step"]
    for found in (dpiped.json("runs")[0], dpiped.json("show", run)):
        assert found["state"] == "running" and found["ended_at"] is None
        assert found["step"] >= step and found["epoch"] == 1 and 0 < found["loss"] < 1
    dpiped.go.touch()
    ended = dpiped.until_ended(run)
    assert dpiped.json("runs")[0]["step"] == ended["step"] > step


def test_the_launcher_gets_its_flags_and_a_free_port_twice(dpiped: Workspace) -> None:
    run = dpiped.start(dpiped.config(steps=1), "--num-gpus", "2", "--", "--some", "thing")
    dpiped.until_ended(run)
    argv = dpiped.json("show", run)["argv"]
    port = argv[2].removeprefix("--master_port=")
    snapshot = str(dpiped.runs_dir / run / "training_config.toml")
    assert argv[1:] == [
        "--num_gpus=2",
        f"--master_port={port}",
        "train.py",
        "--deepspeed",
        "--config",
        snapshot,
        "--master_port",
        port,
        "--some",
        "thing",
    ]


def test_six_simultaneous_starts_give_one_run_and_five_refusals(dpiped: Workspace) -> None:
    config = str(dpiped.config(steps=1_000_000))
    words = [str(BIN / "dpipectl"), "--json", "start", "--config", config]

    def start(_: int) -> subprocess.CompletedProcess[str]:
        return subprocess.run(words, env=dpiped.env, capture_output=True, text=True, check=False)

    with ThreadPoolExecutor(6) as pool:
        done = list(pool.map(start, range(6)))
    assert sorted(each.returncode for each in done) == [0, 4, 4, 4, 4, 4]
    refusals = [json.loads(each.stdout)["error"] for each in done if each.returncode == 4]
    assert {refusal["message"] for refusal in refusals} == {"A training process is already running."}
    assert {refusal["code"] for refusal in refusals} == {"refused"}
    assert len(list(dpiped.runs_dir.iterdir())) == 1


@pytest.mark.parametrize("how", [(), ("--now",)])
@pytest.mark.parametrize("behaviour", ["well_behaved", "stubborn", "nameless"])
def test_after_stop_no_process_is_left(workspace: Workspace, behaviour: str, how: tuple[str, ...]) -> None:
    workspace.start_daemon(DIFFPIPE_STOP_TIMEOUT="1")
    run = workspace.start(workspace.config(behaviour, steps=1_000_000))
    workspace.until_step(3)
    before = sleepers_below(workspace)
    assert processes_of_run(run)
    code, out, _ = workspace.ctl("stop", *how)
    assert code == 0 and "stopped" in out
    assert processes_of_run(run) == []
    assert [pid for pid in before if Path(f"/proc/{pid}").exists()] == []
    assert workspace.status()["state"] == "idle"


def sleepers_below(workspace: Workspace) -> list[int]:
    """Pids of `sleep` below the run's runner: the nameless trainer's child carries no marker."""
    run = workspace.status()["run"]["id"]
    runner = json.loads((workspace.runs_dir / run / "started.json").read_text())["runner"]["pid"]
    family = psutil.Process(runner).children(recursive=True)
    return [process.pid for process in family if process.name() == "sleep"]


def test_a_killed_launcher_leaves_no_rank_and_is_no_success(dpiped: Workspace) -> None:
    run = dpiped.start(dpiped.config("launcher_killed"))
    ended = dpiped.until_ended(run)
    assert ended["outcome"] == "failed"
    assert ended["signal"] == signal.SIGKILL
    assert processes_of_run(run) == []


@pytest.mark.parametrize(
    ("behaviour", "outcome", "phrase"),
    [
        ("raises", "failed", "illegal memory access"),
        ("early_end", "failed", "did not complete"),
        ("killed", "failed", "exit code 0, but the training did not complete"),
    ],
)
def test_outcomes(dpiped: Workspace, behaviour: str, outcome: str, phrase: str) -> None:
    ended = dpiped.until_ended(dpiped.start(dpiped.config(behaviour)))
    assert ended["outcome"] == outcome
    assert phrase in ended["reason"]


def test_a_caching_hang_is_said_while_it_lasts_and_is_a_failure_when_stopped(dpiped: Workspace) -> None:
    run = dpiped.start(dpiped.config("caching_hang"))
    warning = wait_until(lambda: dpiped.status()["run"]["warning"], "the warning")
    assert "no images/videos" in warning
    dpiped.ctl("stop")
    ended = dpiped.until_ended(run)
    assert ended["outcome"] == "failed"
    assert "caching died" in ended["reason"]


def test_cache_only_completes_without_a_completion_line(dpiped: Workspace) -> None:
    ended = dpiped.until_ended(dpiped.start(dpiped.config(), "--", "--cache_only"))
    assert ended["outcome"] == "completed"


def test_stop_save_leaves_a_checkpoint_and_resume_goes_on_from_it(dpiped: Workspace) -> None:
    config = dpiped.config(until=str(dpiped.go))
    run = dpiped.start(config)
    dpiped.until_step(5)
    assert dpiped.ctl("stop", "--save")[0] == 0
    ended = dpiped.until_ended(run)
    assert ended["outcome"] == "stopped" and f"global_step{ended['step']}" in ended["reason"]
    (dpiped.root / "outputs/zzz-stray-file").write_text("sorts last")
    (dpiped.root / "outputs/zzzz-stray-dir").mkdir()
    (Path(ended["train_dir"]) / "save_quit").touch()
    again = dpiped.json("resume")
    assert again["resumed_from"] == run
    dpiped.until_step(ended["step"] + 3)
    dpiped.go.touch()
    resumed = dpiped.until_ended(again["run"])
    assert (resumed["outcome"], resumed["train_dir"]) == ("completed", ended["train_dir"])
    assert f"steps: {ended['step'] + 1} " in dpiped.log_text(again["run"])
    assert "steps: 1 " not in dpiped.log_text(again["run"])
    assert dpiped.json("show", again["run"])["config"] == str(dpiped.root / "configs/train.toml")


def test_a_resumed_run_goes_on_as_it_began(dpiped: Workspace) -> None:
    config = dpiped.config(steps=1_000_000)
    config.write_text("pipeline_stages = 2\n" + config.read_text())
    words = ("--num-gpus", "2", "--env", "MINE=1", "--env", "MY_TOKEN=hush")
    first = dpiped.start(config, *words, "--", "--trust_cache", "--regenerate_cache")
    dpiped.until_step(2)
    assert dpiped.ctl("stop", "--save")[0] == 0
    error = dpiped.json("resume", code=5)["error"]
    assert error["field"] == "env" and "MY_TOKEN" in error["message"] and "--env MY_TOKEN=" in error["hint"]
    again = dpiped.json("resume", "--env", "MY_TOKEN=hush", "--", "--reset_dataloader")
    assert again["resumed_from"] == first
    shown = dpiped.json("show", again["run"])
    assert shown["argv"][1] == "--num_gpus=2"
    assert shown["argv"][-2:] == ["--trust_cache", "--reset_dataloader"]
    assert shown["env"] == {"MINE": "1", "MY_TOKEN": "hidden-by-dpiped"}
    assert dpiped.ctl("stop")[0] == 0
    third = dpiped.json("resume", first, "--num-gpus", "4", "--env", "MY_TOKEN=")["run"]
    assert dpiped.json("show", third)["argv"][1] == "--num_gpus=4"


def test_save_returns_the_checkpoint_and_the_training_goes_on(dpiped: Workspace) -> None:
    dpiped.start(dpiped.config(steps=1_000_000))
    dpiped.until_step(2)
    saved = dpiped.json("save")["checkpoint"]
    again = dpiped.json("save")["checkpoint"]
    step = int(saved.removeprefix("global_step"))
    assert int(again.removeprefix("global_step")) > step
    assert dpiped.status()["state"] == "running"


def test_stop_save_before_there_is_anything_to_save_just_stops(dpiped: Workspace) -> None:
    run = dpiped.start(dpiped.config(caching_seconds=60.0))
    wait_until(lambda: dpiped.status()["run"]["phase"] == "caching", "caching")
    assert dpiped.json("save", code=4)["error"]["code"] == "refused"
    assert dpiped.ctl("stop", "--save")[0] == 0
    assert dpiped.until_ended(run)["outcome"] == "stopped"


def test_a_save_that_never_comes_falls_to_the_next_rung(dpiped: Workspace) -> None:
    run = dpiped.start(dpiped.config("bar"))
    wait_until(lambda: dpiped.status()["run"]["train_dir"], "the directory")
    assert dpiped.ctl("stop", "--save", "--timeout", "0.5")[0] == 0
    ended = dpiped.until_ended(run)
    assert ended["outcome"] == "stopped"
    assert not (Path(ended["train_dir"]) / "save_quit").exists()


def test_resume_refuses_what_can_not_be_resumed(dpiped: Workspace) -> None:
    assert dpiped.json("resume", code=5)["error"]["code"] == "unknown_run"
    failed = dpiped.start(dpiped.config("raises"))
    dpiped.until_ended(failed)
    assert "holds no checkpoint" in dpiped.json("resume", code=5)["error"]["message"]
    done = dpiped.start(dpiped.config(steps=3))
    dpiped.until_ended(done)
    assert "has completed" in dpiped.json("resume", done, code=5)["error"]["message"]


def test_the_train_directory_is_recognised_among_others(dpiped: Workspace) -> None:
    (dpiped.root / "outputs/20991231_00-00-00").mkdir()
    run = dpiped.start(dpiped.config(steps=3))
    found = Path(dpiped.until_ended(run)["train_dir"])
    assert (found / "training_config.toml").read_text().startswith(f"# dpiped run {run}\n")


def test_a_bar_is_visible_before_its_newline(dpiped: Workspace) -> None:
    run = dpiped.start(dpiped.config("bar", steps=2, go=str(dpiped.go)))
    whole = "100%|█████| 5/5"
    wait_until(lambda: dpiped.json("logs", run)["current"].strip().startswith(whole), "the unfinished line")
    dpiped.go.touch()
    assert dpiped.until_ended(run)["outcome"] == "completed"
    lines = dpiped.json("logs", run, "-n", "1000")["lines"]
    assert sum("100%" in line for line in lines) == 1


def test_every_line_of_a_chatty_run_once_through_the_cursor(dpiped: Workspace) -> None:
    run = dpiped.start(dpiped.config("chatty", lines=50_000, steps=2))
    client = dpiped.client()
    lines: list[str] = []
    after, eof = 0, False
    while not eof:
        reply = client.call(messages.ReadLog(run, after=after, limit=5000, seen=after, wait=2.0), 2.0)
        assert isinstance(reply, messages.LogLines)
        lines += reply.lines
        after, eof = reply.next, reply.eof
    client.close()
    assert lines == dpiped.log_text(run).splitlines()
    # More than fits into one reply, asked for as a tail.
    assert dpiped.ctl("logs", run, "-n", "49000")[1].splitlines() == lines[-49000:]
    raw = subprocess.run(
        [str(BIN / "dpipectl"), "logs", run, "--raw", "--all"],
        env=dpiped.env,
        capture_output=True,
        check=True,
    ).stdout
    assert raw == (dpiped.runs_dir / run / "output.log").read_bytes()


def test_start_waits_for_nothing_but_the_launch_and_follow_ends_with_the_outcome(dpiped: Workspace) -> None:
    words = [str(BIN / "dpipectl"), "start", "--config", str(dpiped.config(until=str(dpiped.go))), "--follow"]
    following = subprocess.Popen(words, env=dpiped.env, stdout=subprocess.PIPE, text=True)
    assert following.stdout is not None
    assert any("  training  " in line for line in following.stdout)
    dpiped.go.touch()
    assert "completed at step" in following.stdout.read()
    assert following.wait(30) == 0
    code, out, _ = dpiped.ctl("start", "--config", str(dpiped.config("raises")), "--follow")
    assert code == 1
    assert "illegal memory access" in out


def test_logs_follow_ends_with_the_run_and_gives_each_line_once(dpiped: Workspace) -> None:
    run = dpiped.start(dpiped.config(steps=40))
    code, out, _ = dpiped.ctl("logs", "-f", "--all")
    assert code == 0
    assert out == dpiped.log_text(run)


def test_the_trainings_environment_is_the_allow_list(workspace: Workspace) -> None:
    workspace.start_daemon(PYTHONPATH="/nowhere", VIRTUAL_ENV="/venv", HF_HOME="/hf", MINE="1", UNLISTED="x")
    run = workspace.start(workspace.config(steps=1_000_000), "--env", "MINE=2", "--env", "MY_TOKEN=hush")
    pid = workspace.until_step(1)["pid"]
    env = dict(
        entry.split("=", 1) for entry in Path(f"/proc/{pid}/environ").read_text().split("\0") if "=" in entry
    )
    assert env["PATH"].startswith(str(Path(workspace.env["DEEPSPEED_BIN"]).parent) + ":")
    assert (env["HF_HOME"], env["MINE"], env["MY_TOKEN"]) == ("/hf", "2", "hush")
    assert (env["NCCL_P2P_DISABLE"], env["NCCL_IB_DISABLE"]) == ("1", "1")
    assert not {"PYTHONPATH", "VIRTUAL_ENV", "UNLISTED", "DIFFPIPE_SOCKET"} & set(env)
    assert "hush" not in (workspace.runs_dir / run / "spec.json").read_text()
    assert workspace.json("show", run)["env"] == {"MINE": "2", "MY_TOKEN": "hidden-by-dpiped"}


def test_a_launcher_that_can_not_be_executed_is_a_clear_failure(workspace: Workspace) -> None:
    bad = workspace.root / "deepspeed"
    bad.write_text("#!/nonexistent/python\n")
    bad.chmod(0o755)
    workspace.start_daemon(DEEPSPEED_BIN=str(bad))
    error = workspace.json("start", "--config", str(workspace.config()), code=1)["error"]
    assert error["code"] == "launch_failed" and "can't be launched" in error["message"]
    assert workspace.status()["state"] == "idle"


def test_wrong_input_names_the_field_and_leaves_nothing_behind(dpiped: Workspace) -> None:
    config = dpiped.config()
    config.write_text(config.read_text().replace("epochs = 1", "epochs = 0", 1))
    error = dpiped.json("start", "--config", str(config), code=5)["error"]
    assert error["field"] == "epochs" and "from 1 on" in error["message"]
    error = dpiped.json("start", "--config", "/etc/hosts", code=5)["error"]
    assert error["field"] == "config" and "outside the allowed roots" in error["message"]
    error = dpiped.json("start", "--config", str(dpiped.root / "none.toml"), code=5)["error"]
    assert error["field"] == "config"
    assert list(dpiped.runs_dir.iterdir()) == []
    assert list((dpiped.root / "outputs").iterdir()) == []


def test_the_daemon_imports_neither_torch_nor_tensorboard() -> None:
    code = (
        "import sys, dpiped.daemon, dpiped.runner\n"
        "print([name for name in ('torch', 'tensorboard', 'deepspeed', 'numpy') if name in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.strip() == "[]"
