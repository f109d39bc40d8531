"""The command line: verbs, options, usage errors, help; no daemon needed."""

import importlib.util
import json
import os
import subprocess
from pathlib import Path

import pytest

from dpipectl import cli
from dpiped.errors import DpipedError
from tests.harness import BIN
from tests.helpers import require


def refused(words: list[str], monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr("sys.argv", ["dpipectl", *words])
    with pytest.raises(SystemExit) as ended:
        cli.parse(words)
    assert isinstance(ended.value.code, int)
    return ended.value.code


USAGE_ERRORS = [
    ["bogus"],
    ["--bogus"],
    ["status", "--bogus"],
    ["status", "extra"],
    ["start"],
    ["start", "train.toml"],
    ["start", "--config"],
    ["start", "--config", "x", "--num-gpus", "two"],
    ["stop", "--save", "--now"],
    ["stop", "--timeout", "soon"],
    ["show"],
    ["runs", "-n", "many"],
    ["logs", "a", "b"],
]


@pytest.mark.parametrize("words", USAGE_ERRORS, ids=" ".join)
def test_a_usage_error_ends_with_2_and_names_the_way_to_the_help(
    words: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert refused(words, monkeypatch) == cli.EXIT_USAGE == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith("dpipectl: ")
    assert "--help" in said.err


@pytest.mark.parametrize("words", USAGE_ERRORS, ids=" ".join)
def test_with_json_a_usage_error_is_one_document_on_stdout(
    words: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert refused(["--json", *words], monkeypatch) == 2
    said = capsys.readouterr()
    assert said.err == ""
    assert json.loads(said.out)["error"]["code"] == "usage"


def test_without_a_verb_the_help_is_shown_and_the_end_is_2(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert refused([], monkeypatch) == 2
    assert "dpipectl status" in capsys.readouterr().out


def test_without_a_verb_json_is_still_json(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert refused(["--json"], monkeypatch) == 2
    assert json.loads(capsys.readouterr().out)["error"]["code"] == "usage"


@pytest.mark.parametrize("verb", sorted(cli.VERBS))
def test_json_may_stand_before_or_after_the_verb(verb: str) -> None:
    needed = {
        "start": ["--config", "c"],
        "validate": ["--form", "f"],
        "show": ["last"],
        "example": ["d"],
    }.get(verb, [])
    assert cli.parse([verb, *needed]).json is False
    assert cli.parse(["--json", verb, *needed]).json is True
    assert cli.parse([verb, *needed, "--json"]).json is True
    assert cli.parse([verb, "--json", *needed]).verb == verb


@pytest.mark.parametrize("verb", sorted(cli.VERBS))
def test_every_verb_has_help_with_an_example(
    verb: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert refused([verb, "--help"], monkeypatch) == 0
    text = capsys.readouterr().out
    assert f"usage: dpipectl {verb}" in text
    examples = text.partition("examples:\n")[2]
    assert f"dpipectl {verb}" in examples or f"dpipectl --json {verb}" in examples
    assert cli.VERBS[verb][0].split(";")[0] in text


def test_the_general_help_lists_every_verb_and_the_exit_codes(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert refused(["--help"], monkeypatch) == 0
    text = capsys.readouterr().out
    listed = text.partition("verbs:")[2].partition("exit codes:")[0]
    assert all(f"    {verb} " in listed for verb in cli.VERBS)
    assert "2 usage" in text and "examples:" in text


def test_the_version_is_shown(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert refused(["--version"], monkeypatch) == 0
    assert capsys.readouterr().out.startswith("dpipectl ")


def test_the_options_of_start() -> None:
    options = cli.parse(
        "start --config flux.toml --num-gpus 2 --env A=1 --env B=2 --follow -- --some_flag --x 1".split()
    )
    assert (options.verb, options.config, options.num_gpus) == ("start", "flux.toml", 2)
    assert (options.env, options.follow) == (["A=1", "B=2"], True)
    assert options.args == ["--some_flag", "--x", "1"]
    plain = cli.parse(["start", "--config", "flux.toml"])
    assert (plain.num_gpus, plain.env, plain.follow, plain.args) == (None, [], False, [])


def test_the_options_of_the_other_verbs() -> None:
    stop = cli.parse(["stop", "--save", "--timeout", "60", "--no-wait"])
    assert (stop.save, stop.now, stop.timeout, stop.no_wait) == (True, False, 60.0, True)
    logs = cli.parse(["logs", "last", "-n", "7", "-f", "--raw"])
    assert (logs.run, logs.lines, logs.follow, logs.raw, logs.all) == ("last", 7, True, True, False)
    assert (cli.parse(["logs"]).run, cli.parse(["logs"]).lines) == (None, 50)
    assert cli.parse(["runs", "-n", "5"]).limit == 5
    assert cli.parse(["show", "7f3a"]).run == "7f3a"
    assert (cli.parse(["wait", "--timeout", "3"]).timeout, cli.parse(["save"]).timeout) == (3.0, 600.0)


def test_resume_takes_a_run_a_config_and_arguments() -> None:
    options = cli.parse("resume 7f3a --config longer.toml --follow -- --reset_optimizer".split())
    assert (options.run, options.config, options.follow) == ("7f3a", "longer.toml", True)
    assert options.args == ["--reset_optimizer"]


def test_resume_without_a_run_passes_its_arguments_on() -> None:
    options = cli.parse(["resume", "--", "--reset_optimizer"])
    assert (options.run, options.args) == (None, ["--reset_optimizer"])


def test_arguments_behind_the_dashes_are_not_ours() -> None:
    options = cli.parse(["start", "--config", "c", "--", "--json", "--follow"])
    assert (options.json, options.follow) == (False, False)
    assert options.args == ["--json", "--follow"]


def kinds_of(base: type[DpipedError]) -> set[type[DpipedError]]:
    return {base}.union(*(kinds_of(kind) for kind in base.__subclasses__()))


def test_every_error_that_a_request_can_meet_has_its_exit_code() -> None:
    codes = {kind.code for kind in kinds_of(DpipedError) if kind.__module__ == DpipedError.__module__}
    assert {"invalid", "unknown_run", "settings"} <= codes
    assert codes - {"internal", "launch_failed", "already_owned", "not_ready"} <= set(cli.EXIT_CODES)
    assert (cli.EXIT_CODES["unreachable"], cli.EXIT_CODES["refused"], cli.EXIT_CODES["invalid"]) == (3, 4, 5)


def test_example_writes_a_config_and_needs_no_daemon(tmp_path: Path) -> None:
    require(importlib.util.find_spec("PIL") is not None, "Pillow is not installed")
    folder = tmp_path / "an example"
    command = [str(BIN / "dpipectl"), "--json", "example", str(folder), "--images", "3", "--length", "quick"]
    env = {**os.environ, "DIFFPIPE_SOCKET": str(tmp_path / "none.sock")}
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout) == {"config": str(folder / "training.toml")}
    assert len(list((folder / "data").glob("*.png"))) == 3
    (folder / "data/mine.txt").write_text("precious")
    again = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    error = json.loads(again.stdout)["error"]
    assert (again.returncode, error["code"]) == (5, "invalid")
    assert "holds other files too, mine.txt for one" in error["message"]
    wrong = subprocess.run([*command, "--images", "0"], env=env, capture_output=True, text=True, check=False)
    assert "--images: takes a whole number" in json.loads(wrong.stdout)["error"]["message"]
