"""A Weights & Biases key: in the one file that is launched, while it is needed there, and nowhere else."""

import json
import os
import shutil
import stat
import threading
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from dpiped import beneath, redaction
from dpiped.errors import InvalidInput
from tests.harness import Workspace
from tests.helpers import wait_until
from tests.web import Shim

KEY = "0f1e2d3c4b5a69788796a5b4c3d2e1f00f1e2d3c"
WANDB = {
    "enable_wandb": True,
    "wandb_run_name": "cats",
    "wandb_tracker_name": "loras",
    "wandb_api_key": KEY,
}


def holders(root: Path) -> list[tuple[Path, int]]:
    """Every file below `root` that holds the key, with its mode."""
    found = []
    for folder, _, names in os.walk(root):
        for name in names:
            path = Path(folder) / name
            try:
                if path.is_file() and KEY.encode() in path.read_bytes():
                    found.append((path, stat.S_IMODE(path.stat().st_mode)))
            except FileNotFoundError:
                continue
    return found


class Watch:
    """Looks for the key all over the workspace, all the time."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.seen: set[tuple[str, int]] = set()
        self.rounds = 0
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)
        self._thread.start()

    def _look(self) -> None:
        while not self._over.is_set():
            for path, mode in holders(self.root):
                self.seen.add((str(path.relative_to(self.root)), mode))
            self.rounds += 1

    def end(self) -> set[tuple[str, int]]:
        self._over.set()
        self._thread.join()
        return self.seen


@pytest.fixture
def watched(workspace: Workspace) -> Iterator[tuple[Shim, Watch]]:
    script = {"caching_seconds": 0.6, "until": str(workspace.go), "copies": True}
    workspace.env["SCRIPT"] = json.dumps(script)
    workspace.start_daemon()
    shim = Shim(workspace)
    watch = Watch(workspace.root)
    yield shim, watch
    watch.end()


def test_after_a_run_it_is_nowhere_and_meanwhile_in_one_private_file(watched: tuple[Shim, Watch]) -> None:
    shim, watch = watched
    workspace = shim.workspace
    root = workspace.root
    status, started = shim.post("/train/start", shim.form(**WANDB))
    assert status == 200
    run = workspace.status()["run"]["id"]
    snapshot = workspace.runs_dir / run / "training_config.toml"
    # train.py is given it ...
    wait_until(lambda: "wandb login: ok" in workspace.log_text(run), "what the trainer read")
    # ... and while it caches, the file loses it.
    wait_until(lambda: KEY not in snapshot.read_text(), "the file without the key")
    workspace.until_step(3)
    wait_until(lambda: list((root / "outputs").glob("*/epoch1/training_config.toml")), "a saved epoch")
    for path in ("/status", "/runs", f"/runs/{run}", "/train/logs", "/train/defaults", "/metrics"):
        assert KEY not in shim.client.get(path).text
    shown = shim.get(f"/runs/{run}")[1]
    assert shown["form"]["wandb_api_key"] == redaction.HIDDEN and shown["form"]["wandb_run_name"] == "cats"
    assert KEY not in shim.client.post("/train/preview", json=shim.form(**WANDB)).text
    workspace.go.touch()
    workspace.until_ended(run)
    shim.post("/train/start", shim.form(**(WANDB | {"wandb_api_key": f"{KEY} with spaces"})))
    assert holders(root) == []
    assert watch.rounds > 5
    # In its run's directory only, which is made aside first; for its owner alone.
    assert all(name.startswith("diffpipe/runs/") for name, _ in watch.seen) and watch.seen
    assert {mode for _, mode in watch.seen} == {0o600}
    assert all(stat.S_IMODE(path.stat().st_mode) == 0o700 for path in workspace.runs_dir.iterdir())
    published = Path(started["config"])
    assert tomllib.loads(published.read_text())["monitoring"]["wandb_api_key"] == redaction.HIDDEN
    assert stat.S_IMODE(published.stat().st_mode) == 0o644


def test_a_run_that_dies_at_once_leaves_no_key(workspace: Workspace) -> None:
    workspace.env["SCRIPT"] = json.dumps({"behaviour": "dies_at_once"})
    workspace.start_daemon()
    shim = Shim(workspace)
    assert shim.post("/train/start", shim.form(**WANDB))[0] == 200
    run = workspace.json("runs")[0]["id"]
    workspace.until_ended(run)
    assert holders(workspace.root) == []


def run_without_a_daemon(workspace: Workspace, **script: object) -> str:
    """A run with the key, whose daemon was killed before the trainer had said anything."""
    hold = workspace.root / "hold"
    hold.unlink(missing_ok=True)
    workspace.env["SCRIPT"] = json.dumps(script | {"hold": str(hold)})
    workspace.start_daemon()
    shim = Shim(workspace)
    assert shim.post("/train/start", shim.form(**WANDB))[0] == 200
    run: str = workspace.status()["run"]["id"]
    workspace.kill_daemon()
    hold.touch()
    return run


def test_a_daemon_that_was_away_takes_it_out_of_the_copies_as_well(workspace: Workspace) -> None:
    run = run_without_a_daemon(workspace, until=str(workspace.go), copies=True)
    saved = workspace.root / "outputs"
    wait_until(lambda: list(saved.glob("*/epoch1/training_config.toml")), "a saved epoch")
    # What train.py copies is as private as its original.
    assert {mode for _, mode in holders(workspace.root)} == {0o600}
    assert any(path.is_relative_to(saved) for path, _ in holders(workspace.root))
    workspace.start_daemon()
    wait_until(lambda: holders(workspace.root) == [], "no key anywhere")
    assert workspace.status()["run"]["id"] == run
    workspace.go.touch()
    workspace.until_ended(run)
    # One that has ended before a daemon came is cleaned as well.
    workspace.go.unlink()
    workspace.end_daemon()
    run = run_without_a_daemon(workspace, steps=1, copies=True)
    workspace.until_gone(run)
    assert holders(workspace.root) != []
    workspace.start_daemon()
    assert holders(workspace.root) == []


def test_resuming_needs_the_key_again(workspace: Workspace) -> None:
    workspace.env["SCRIPT"] = json.dumps({"copies": True, "until": str(workspace.go)})
    workspace.start_daemon()
    shim = Shim(workspace)
    assert shim.post("/train/start", shim.form(**WANDB))[0] == 200
    workspace.until_step(2)
    assert shim.post("/train/stop", mode="save")[0] == 200
    status, found = shim.post("/train/resume", {})
    assert status == 400 and "monitoring.wandb_api_key" in found["detail"]
    error = workspace.json("resume", code=5)["error"]
    assert error["field"] == "monitoring.wandb_api_key" and "WANDB_API_KEY" in error["hint"]
    assert shim.post("/train/resume", {"wandb_api_key": KEY})[0] == 200
    run = workspace.status()["run"]["id"]
    wait_until(lambda: "wandb login: ok" in workspace.log_text(run), "what the trainer read")
    assert workspace.json("show", run)["env"] == {"WANDB_API_KEY": redaction.HIDDEN}
    shim.post("/train/stop")
    assert holders(workspace.root) == []


def test_a_key_in_the_daemons_environment_will_do(workspace: Workspace) -> None:
    workspace.env["SCRIPT"] = json.dumps({"steps": 3})
    workspace.start_daemon(WANDB_API_KEY=KEY)
    shim = Shim(workspace)
    form = shim.form(**(WANDB | {"wandb_api_key": None}))
    assert shim.post("/train/start", form)[0] == 200
    run = workspace.json("runs")[0]["id"]
    workspace.until_ended(run)
    assert "wandb login: ok" in workspace.log_text(run)
    # And a path can't be made to show it.
    asked = shim.form(transformer_path="models/$WANDB_API_KEY", vae_path="${WANDB_API_KEY}")
    assert KEY not in shim.client.post("/train/preview", json=asked).text
    assert holders(workspace.root) == []


def test_a_config_of_ones_own_is_launched_with_its_key_and_kept_without(workspace: Workspace) -> None:
    workspace.start_daemon()
    config = workspace.config(steps=3)
    text = config.read_text()
    names = "enable_wandb = true\nwandb_run_name = 'r'\nwandb_tracker_name = 't'"
    config.write_text(f"{text}[monitoring]\n{names}\nwandb_api_key = '{KEY}'\n")
    config.chmod(0o600)
    run = workspace.start(config)
    workspace.until_ended(run)
    assert "wandb login: ok" in workspace.log_text(run)
    assert [path for path, _ in holders(workspace.root)] == [config]


# --- taking it out of a text


def toml(key: str = KEY, more: str = "") -> str:
    return f'a = 1\n{more}\n[monitoring]\nenable_wandb = true\nwandb_api_key = "{key}" # mine\n'


def test_hidden_and_put_in_again() -> None:
    text = toml()
    hidden = redaction.hide(text)
    assert KEY not in hidden and tomllib.loads(hidden)["monitoring"]["wandb_api_key"] == redaction.HIDDEN
    assert redaction.insert(hidden, KEY) == text
    assert redaction.hide(hidden) == hidden
    assert redaction.hide("a = 1\n") == "a = 1\n"
    assert KEY not in redaction.hide(toml(more=f"# my key is {KEY}"))


@pytest.mark.parametrize(
    ("quote", "before"),
    [("'", ""), ('"', ""), ("'''", ""), ('"""', ""), ("'''", "\n"), ('"""', "\n"), ('"""', "\\\n  ")],
)
def test_in_any_quotes(quote: str, before: str) -> None:
    other = f'# wandb_api_key = "{KEY[::-1]}"\n'
    text = f"[monitoring]\nenable_wandb = true\nwandb_api_key={quote}{before}{KEY}{quote}\n"
    filled = redaction.insert(redaction.hide(text + other), KEY)
    assert redaction.key_in(tomllib.loads(filled)) == KEY and KEY[::-1] not in filled
    assert redaction.insert(redaction.hide(text), KEY) == text


@pytest.mark.parametrize("comment", [f'# wandb_api_key = "{KEY[::-1]}"', f"#wandb_api_key='{KEY[::-1]}'"])
def test_one_that_is_commented_out_is_hidden_as_well(comment: str) -> None:
    for text in (comment + "\na = 1\n", toml(more=comment)):
        hidden = redaction.hide(text)
        assert KEY[::-1] not in hidden and KEY not in hidden


def test_what_can_not_be_put_in_is_refused() -> None:
    twice = f'b = "{KEY}"\n[monitoring]\nwandb_api_key = ""\n'
    for text in ("a = 1\n", twice):
        with pytest.raises(InvalidInput) as refused:
            redaction.insert(text, KEY)
        assert refused.value.field == redaction.FIELD


def test_on_a_full_disk_it_is_overwritten_where_it_stands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "training_config.toml"
    file.write_text(toml())

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(beneath, "replace_in", full)
    redaction.clean(file)
    assert KEY not in file.read_text() and len(file.read_bytes()) == len(toml())
    assert tomllib.loads(file.read_text())["monitoring"]["wandb_api_key"] == redaction.HIDDEN


def test_a_damaged_run_loses_its_key(workspace: Workspace) -> None:
    run = run_without_a_daemon(workspace, steps=1)
    workspace.until_gone(run)
    assert holders(workspace.root) != []
    (workspace.runs_dir / run / "spec.json").write_text("{")
    shutil.rmtree(workspace.root / "outputs")
    workspace.start_daemon()
    assert holders(workspace.root) == []


def test_odd_files_in_the_output_do_not_keep_a_run_from_being_concluded(workspace: Workspace) -> None:
    workspace.env["SCRIPT"] = json.dumps({"steps": 1_000_000})
    workspace.start_daemon()
    shim = Shim(workspace)
    assert shim.post("/train/start", shim.form(**WANDB))[0] == 200
    workspace.until_step(2)
    made = next((workspace.root / "outputs").iterdir())
    (made / "notes.toml").write_text("a = " + "[" * 5000)
    (made / "more.toml").write_text("a = 1" + "0" * 6000)
    assert shim.post("/train/stop")[1]["status"] == "stopped"
    assert workspace.status()["state"] == "idle" and holders(workspace.root) == []


@pytest.mark.parametrize("key", ["short", "with space", 'quo\\"ted-quoted', "é" * 10, "x" * 300])
def test_what_is_no_key_is_refused_without_being_said(key: str) -> None:
    with pytest.raises(InvalidInput) as refused:
        redaction.hide(toml(key))
    assert refused.value.field == redaction.FIELD and key not in refused.value.message


def test_a_key_that_can_not_be_told_from_the_rest_is_refused() -> None:
    with pytest.raises(InvalidInput) as refused:
        redaction.hide(toml(more=f'wandb = "{KEY}"'))
    assert "can't be hidden" in refused.value.message and KEY not in str(refused.value.hint)


def test_files_that_are_none_of_ours_are_left_alone(tmp_path: Path) -> None:
    files: dict[str, Any] = {"a.toml": b"\xff", "b.toml": b"a = [", "c.toml": b"a = 1\n"}
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    (tmp_path / "d.toml").symlink_to("/etc/hostname")
    redaction.clean_copies(tmp_path)
    # One that can't be cleaned is said, and keeps no other from being cleaned.
    (tmp_path / "e.toml").write_text("[monitoring]\nwandb_api_key = 'none'\n")
    (tmp_path / "epoch1").mkdir()
    (tmp_path / "epoch1/x.toml").write_text(toml())
    with pytest.raises(InvalidInput):
        redaction.clean_copies(tmp_path)
    assert KEY not in (tmp_path / "epoch1/x.toml").read_text()
    assert {name: (tmp_path / name).read_bytes() for name in files} == files
    assert (tmp_path / "d.toml").is_symlink()
