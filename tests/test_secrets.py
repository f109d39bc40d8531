"""What is secret or private stays so: variables, files of a run, whatever the umask is."""

import os
import re
import signal
import stat
from pathlib import Path

import msgspec
import pytest

from dpipectl.launching import environment
from dpiped import messages, redaction, settings
from dpiped.errors import InvalidInput
from dpiped.form import Form
from dpiped.rundir import Launched, read
from dpiped.sources import Wanted
from tests.harness import BIN, Workspace, processes_of_run
from tests.helpers import HERE, wait_until
from tests.test_wandb_key import KEY, WANDB, holders
from tests.web import Shim

FORM = "dataset_path config_dir output_dir transformer_path vae_path llm_path clip_path".split()
SECRET = "s3cr3t-of-the-test-0123456789"


def of_process(pid: int, what: str) -> bytes:
    try:
        return Path(f"/proc/{pid}/{what}").read_bytes()
    except OSError:
        return b""


def holding(root: Path) -> list[Path]:
    """Files below `root` in which the secret stands."""
    files = [path for path in root.rglob("*") if path.is_file() and not path.is_symlink()]
    return [path for path in files if SECRET.encode() in path.read_bytes()]


def test_a_secret_of_a_run_is_in_its_environment_and_nowhere_else(workspace: Workspace) -> None:
    workspace.start_daemon(DAEMONS_TOKEN=SECRET, HF_TOKEN=SECRET)
    given = ("--env", f"MY_API_KEY={SECRET}", "--env", "PLAIN=shown")
    run = workspace.start(workspace.config(until=str(workspace.go)), *given)
    workspace.until_step(2)
    launched = read(workspace.runs_dir / run, Launched)
    assert launched is not None
    first = launched.runner
    variables = of_process(launched.child.pid, "environ").split(b"\0")
    assert {f"{name}={SECRET}".encode() for name in ("MY_API_KEY", "HF_TOKEN")} <= set(variables)
    assert not any(each.startswith(b"DAEMONS_TOKEN=") for each in variables), "it is not on the allow-list"
    pids = [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()]
    assert not [pid for pid in pids if SECRET.encode() in of_process(pid, "cmdline")]
    # Another runner has nothing to launch.
    os.kill(first.pid, signal.SIGKILL)

    def another() -> Launched | None:
        found = read(workspace.runs_dir / run, Launched)
        return found if found and found.runner != first else None

    successor = wait_until(another, "another runner")
    assert successor is not None
    assert SECRET.encode() not in of_process(successor.runner.pid, "environ")
    assert successor.runner.pid in processes_of_run(run)
    shown = workspace.json("show", run)
    assert shown["env"] == {"MY_API_KEY": redaction.HIDDEN, "PLAIN": "shown"}
    shim = Shim(workspace)
    asked = ("/status", "/runs", f"/runs/{run}", f"/runs/{run}/config", f"/runs/{run}/log", "/metrics")
    for path in asked:
        assert SECRET not in shim.client.get(path).text
    # Refused, it is not said either; nor where it stands in the place of a name.
    for word in (f"9={SECRET}", SECRET, f"{SECRET}=="):
        code, out, err = workspace.ctl("start", "--config", "/x", "--env", word)
        assert code == 5 and SECRET not in out + err and "NAME=VALUE" in err
    workspace.go.touch()
    workspace.until_ended(run)
    assert holding(workspace.root) == []


def test_nothing_that_is_printed_for_a_fault_shows_it() -> None:
    wanted = Wanted(config=Path("/c.toml"), env={"MY_API_KEY": SECRET})
    assert SECRET not in repr(wanted) and "/c.toml" in repr(wanted)
    start = messages.Start("/c.toml", env={"MY_API_KEY": SECRET})
    form = msgspec.convert(dict.fromkeys(FORM, "x") | {"wandb_api_key": SECRET}, Form)
    for each in (start, form, messages.StartForm(form), Wanted(form=form)):
        assert SECRET not in repr(each)
    with pytest.raises(InvalidInput) as refused:
        environment(["A=1", SECRET])
    assert SECRET not in refused.value.message and "number 2" in refused.value.message


@pytest.mark.parametrize("launcher", ["#!/nowhere/python\n", "#!/bin/false\n"], ids=["no program", "fails"])
def test_a_launch_that_fails_leaves_no_key(workspace: Workspace, launcher: str) -> None:
    (workspace.root / "bin/deepspeed").write_text(launcher)
    workspace.start_daemon()
    shim = Shim(workspace)
    shim.post("/train/start", shim.form(**WANDB))
    run = workspace.json("runs")[0]["id"]
    assert workspace.until_ended(run)["outcome"] == "failed"
    assert holders(workspace.root) == [] and KEY not in workspace.daemon_log()


# --- modes


@pytest.mark.parametrize("umask", ["000", "077"])
def test_what_is_written_is_private_whatever_the_umask(workspace: Workspace, umask: str) -> None:
    config = workspace.config(steps=3, copies=True)
    board = {"DIFFPIPE_CONFIG": "", "DIFFPIPE_TENSORBOARD": "1"} if umask == "000" else {}
    workspace.start_daemon("/bin/sh", "-c", f"umask {umask}; exec {BIN / 'dpiped'}", **board)
    run = workspace.start(config)
    workspace.until_ended(run)
    shim = Shim(workspace)
    workspace.env["SCRIPT"] = "{}"
    assert shim.post("/train/start", shim.form(config_dir="fresh"))[0] == 200
    assert workspace.ctl("stop", "--now")[0] == 0
    if board:
        wait_until((workspace.root / "diffpipe/tensorboard.log").exists, "TensorBoard's own log")
    workspace.end_daemon()
    state = workspace.root / "diffpipe"
    found = [state, *state.rglob("*"), workspace.root / "run", *(workspace.root / "run").iterdir()]
    assert {path.name for path in found} >= {
        "spec.json",
        "output.log",
        "runner.log",
        "exit.json",
        "stop.json",
    }
    modes = {path: stat.S_IMODE(path.lstat().st_mode) for path in found}
    assert {path for path, mode in modes.items() if mode & 0o077} == set()
    assert {mode for path, mode in modes.items() if path.is_dir()} == {0o700}
    # They hold no key, and other programs read them.
    published = list((workspace.root / "configs/fresh").iterdir())
    assert {stat.S_IMODE(path.stat().st_mode) for path in published} == {0o644} and len(published) == 2


# --- the document


def test_the_document_names_the_environment_as_it_is_and_tests_that_there_are() -> None:
    text = (HERE.parent / "docs/security.md").read_text()
    for name in ("ENVIRONMENT_FOR_TRAINING", "ENVIRONMENT_FOR_TENSORBOARD"):
        told = re.search(rf"<!-- {name}, [^\n]*-->\n```\n(.*?)```", text, re.DOTALL)
        assert told is not None and told[1].split() == getattr(settings, name)
    named = set(re.findall(r"`(test_\w+)`", text))
    code = "\n".join(path.read_text() for path in HERE.glob("test_*.py"))
    assert len(named) > 30 and named - set(re.findall(r"^def (test_\w+)", code, re.MULTILINE)) == set()
