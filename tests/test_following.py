"""Those who watch: behind a long log, without a daemon, on a terminal that knows few letters."""

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from dpipectl import cli
from dpipectl.client import Client, Failed
from dpiped import messages
from dpiped.errors import InvalidInput
from tests.harness import BIN, Workspace
from tests.helpers import wait_until

pytestmark = pytest.mark.timeout(60)


def test_a_follower_that_is_behind_does_not_wait_for_the_log_to_grow(dpiped: Workspace) -> None:
    run = dpiped.start(dpiped.config("chatty", lines=9000, steps=1_000_000, quiet_after=0))
    wait_until(lambda: dpiped.json("logs", run, "-n", "1")["next"] > 200_000, "the whole log")
    client = dpiped.client()
    begun = time.monotonic()
    lines, after = 0, 0
    while lines < 9000:
        got = client.call(messages.ReadLog(run, after=after, limit=500, seen=1 << 40, wait=5.0), 5.0)
        assert isinstance(got, messages.LogLines)
        lines, after = lines + len(got.lines), got.next
    client.close()
    assert time.monotonic() - begun < 5, "not one of the 18 pages waited"


def test_who_waits_without_a_daemon_is_told_so_at_once(workspace: Workspace) -> None:
    begun = time.monotonic()
    assert workspace.json("wait", code=3)["error"]["code"] == "unreachable"
    assert workspace.json("wait", "--timeout", "5", code=3)["error"]["code"] == "unreachable"
    assert time.monotonic() - begun < 5


def test_who_waits_so_long_and_no_longer_does_not_wait_for_a_daemon_either(dpiped: Workspace) -> None:
    dpiped.start(dpiped.config(steps=1_000_000))
    words = [str(BIN / "dpipectl"), "--json", "wait", "--timeout", "4"]
    begun = time.monotonic()
    waiting = subprocess.Popen(words, env=dpiped.env, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    dpiped.until_step(50)
    dpiped.kill_daemon()
    out, _ = waiting.communicate(timeout=30)
    assert waiting.returncode in (1, 3), "its time was up, or the daemon away, whichever it met"
    assert json.loads(out)["error"]["code"] in ("timeout", "unreachable")
    assert time.monotonic() - begun < 15


def test_a_terminal_that_knows_few_letters_gets_question_marks_and_json_is_utf8(dpiped: Workspace) -> None:
    run = dpiped.start(dpiped.config("bar", steps=1, go=str(dpiped.go)))
    whole = "100%|█████| 5/5"
    wait_until(lambda: whole in dpiped.json("logs", run)["current"], "the bar")
    plain = dpiped.env | {"PYTHONIOENCODING": "latin-1"}
    words = [str(BIN / "dpipectl"), "logs", run]
    out = subprocess.run(words, env=plain, capture_output=True, check=True).stdout.decode("latin-1")
    assert "100%|?????| 5/5" in out
    out = subprocess.run([*words, "--json"], env=plain, capture_output=True, check=True).stdout.decode()
    assert whole in json.loads(out)["current"]


def test_a_request_that_is_too_large_is_the_users_error(dpiped: Workspace) -> None:
    much = [word for number in range(40) for word in ("--env", f"A{number}={'x' * 30_000}")]
    error = dpiped.json("start", "--config", str(dpiped.config()), *much, code=5)["error"]
    assert error["code"] == "invalid" and str(messages.REQUEST_BYTES) in error["message"]


def test_words_that_are_not_utf8_are_the_users_error(workspace: Workspace) -> None:
    with pytest.raises(InvalidInput, match="not UTF-8"):
        Client(workspace.env["DIFFPIPE_SOCKET"]).call(messages.ShowRun("\udcff"))


@pytest.mark.parametrize("pair", ["A", "=x", "1A=x", "A-B=x", "Ä=x", ""])
def test_a_variable_that_is_none_is_refused_in_words(dpiped: Workspace, pair: str) -> None:
    error = dpiped.json("start", "--config", str(dpiped.config()), "--env", pair, code=5)["error"]
    assert error["field"] == "env" and "NAME=VALUE" in error["message"]


def test_a_number_out_of_bounds_names_its_field(dpiped: Workspace) -> None:
    for verb in (("start", "--config", str(dpiped.config())), ("resume", "--check")):
        error = dpiped.json(*verb, "--num-gpus", "65", code=5)["error"]
        assert (error["field"], error["message"]) == ("num_gpus", "--num-gpus takes 1 to 64, not 65")
    with pytest.raises(Failed, match="num_gpus: expected `int` >= 1"):
        dpiped.client().call(messages.Start("/c.toml", num_gpus=0))


def test_half_an_option_is_none() -> None:
    words = [sys.executable, "-m", "dpipectl", "--js", "status"]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (cli.EXIT_USAGE, "")


def test_a_loss_that_is_no_number_is_warned_of(dpiped: Workspace) -> None:
    config = dpiped.config(steps=1_000_000)
    config.write_text(config.read_text() + "loss = nan\n")
    dpiped.start(config)
    run = dpiped.until_step(2)
    assert run["loss"] is None, "JSON has no NaN"
    assert "the loss is nan at step" in run["warning"] and "diverged" in run["warning"]


def test_a_file_that_stands_where_the_socket_should_be_is_left_alone(workspace: Workspace) -> None:
    path = Path(workspace.env["DIFFPIPE_SOCKET"])
    path.parent.mkdir(mode=0o700)
    path.write_text("precious")
    done = subprocess.run(
        [str(BIN / "dpiped")], env=workspace.env, capture_output=True, text=True, timeout=20, check=False
    )
    assert done.returncode == 78
    assert "DIFFPIPE_SOCKET" in done.stderr and "no socket" in done.stderr
    assert path.read_text() == "precious"
