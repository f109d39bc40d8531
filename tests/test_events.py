"""TensorBoard's directory: links to event files under the run's name; nothing real is ever removed."""

from pathlib import Path

import pytest

from dpiped import events
from dpiped.settings import Settings, load

RUN = "20260304-050607-ab12"
FIRST = "events.out.tfevents.1772600000.host.12.0"
SECOND = "events.out.tfevents.1772700000.host.34.0"


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return load({"WORKSPACE_ROOT": str(tmp_path), "DIFFPIPE_SOCKET": str(tmp_path / "s"), "HOME": "/root"})


@pytest.fixture
def train_dir(tmp_path: Path) -> Path:
    folder = tmp_path / "outputs/cats/20260304_05-06-07"
    folder.mkdir(parents=True)
    (folder / FIRST).write_bytes(b"first")
    (folder / "latest").write_text("global_step3")
    (folder / "global_step3").mkdir()
    (folder / "global_step3" / FIRST).write_bytes(b"not looked for")
    return folder


def test_the_root_gets_one_link_per_trainer(settings: Settings) -> None:
    assert events.prepare_root(settings) == []
    root = settings.tensorboard_root
    assert {path.name: path.readlink() for path in root.iterdir()} == {
        "trainpilot": settings.tensorboard_sources["trainpilot"],
        "kohya": settings.tensorboard_sources["kohya"],
        "ai-toolkit": settings.tensorboard_sources["ai-toolkit"],
        "diffpipe": settings.logdir,
    }
    assert settings.logdir.is_dir()


def test_preparing_again_changes_nothing(settings: Settings) -> None:
    events.prepare_root(settings)
    before = {path: path.lstat().st_ino for path in settings.tensorboard_root.iterdir()}
    assert events.prepare_root(settings) == []
    assert {path: path.lstat().st_ino for path in settings.tensorboard_root.iterdir()} == before


def test_event_files_are_found_through_the_root_under_the_name_of_the_run(
    settings: Settings, train_dir: Path
) -> None:
    events.prepare_root(settings)
    assert events.link_events(train_dir, events.run_folder(settings, RUN)) == 1
    seen = settings.tensorboard_root / "diffpipe" / RUN
    assert [path.name for path in seen.iterdir()] == [FIRST]
    assert (seen / FIRST).read_bytes() == b"first"
    assert not seen.is_symlink()
    assert (seen / FIRST).resolve() == train_dir / FIRST


def test_a_second_event_file_is_linked_later_and_the_first_left_alone(
    settings: Settings, train_dir: Path
) -> None:
    folder = events.run_folder(settings, RUN)
    assert events.link_events(train_dir, folder) == 1
    before = (folder / FIRST).lstat().st_ino
    assert events.link_events(train_dir, folder) == 0
    (train_dir / SECOND).write_bytes(b"second")
    assert events.link_events(train_dir, folder) == 1
    assert sorted(path.name for path in folder.iterdir()) == [FIRST, SECOND]
    assert (folder / FIRST).lstat().st_ino == before


def test_event_files_in_folders_keep_their_place_but_checkpoints_are_passed_over(
    settings: Settings, train_dir: Path
) -> None:
    deep = train_dir / "eval/cats"
    deep.mkdir(parents=True)
    (deep / SECOND).touch()
    (deep / "more").mkdir()
    (deep / "more" / FIRST).touch()
    (train_dir / "back").symlink_to(train_dir)
    folder = events.run_folder(settings, RUN)
    assert events.link_events(train_dir, folder) == 2
    linked = {str(path.relative_to(folder)) for path in folder.rglob("events.*")}
    assert linked == {FIRST, f"eval/cats/{SECOND}"}


def test_nothing_is_made_while_there_is_no_event_file(settings: Settings, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert events.link_events(tmp_path / "empty", events.run_folder(settings, RUN)) == 0
    assert not events.run_folder(settings, RUN).exists()
    with pytest.raises(OSError, match="missing"):
        events.link_events(tmp_path / "missing", events.run_folder(settings, RUN))


def test_a_wrong_link_is_replaced(settings: Settings, tmp_path: Path) -> None:
    root = settings.tensorboard_root
    root.mkdir(parents=True)
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere/kept").touch()
    (root / "kohya").symlink_to(tmp_path / "elsewhere")
    (root / "diffpipe").symlink_to(tmp_path / "gone")
    assert events.prepare_root(settings) == []
    assert (root / "kohya").readlink() == settings.tensorboard_sources["kohya"]
    assert (root / "diffpipe").readlink() == settings.logdir
    assert (tmp_path / "elsewhere/kept").exists()


@pytest.mark.parametrize("name", ["kohya", "diffpipe"])
def test_a_real_directory_or_file_in_place_of_a_link_is_kept_and_said(settings: Settings, name: str) -> None:
    real = settings.tensorboard_root / name
    real.mkdir(parents=True)
    (real / "precious").write_text("data")
    (settings.tensorboard_root / "trainpilot").write_text("a real file")
    problems = events.prepare_root(settings)
    assert (real / "precious").read_text() == "data"
    assert (settings.tensorboard_root / "trainpilot").read_text() == "a real file"
    assert len(problems) == 2
    assert any(str(real) in problem for problem in problems)
    assert any("trainpilot" in problem for problem in problems)


def test_a_run_goes_into_the_real_directory_that_stands_in_place_of_our_link(
    settings: Settings, train_dir: Path
) -> None:
    real = settings.tensorboard_root / "diffpipe"
    real.mkdir(parents=True)
    events.prepare_root(settings)
    events.link_events(train_dir, events.run_folder(settings, RUN))
    assert (real / RUN / FIRST).read_bytes() == b"first"
    assert not (settings.logdir / RUN).exists()


def test_a_log_directory_that_is_the_linked_place_itself_is_fine(settings: Settings, tmp_path: Path) -> None:
    same = load(
        {
            "WORKSPACE_ROOT": str(tmp_path),
            "DIFFPIPE_SOCKET": str(tmp_path / "s"),
            "DIFFPIPE_LOGDIR": str(settings.tensorboard_root / "diffpipe"),
        }
    )
    assert events.prepare_root(same) == []
    assert (settings.tensorboard_root / "diffpipe").is_dir()
    assert not (settings.tensorboard_root / "diffpipe").is_symlink()


def test_what_stands_in_a_runs_folder_is_never_replaced(settings: Settings, train_dir: Path) -> None:
    folder = events.run_folder(settings, RUN)
    folder.mkdir(parents=True)
    (folder / FIRST).write_text("a real file of the same name")
    (folder / SECOND).symlink_to(train_dir / "gone")
    (train_dir / SECOND).touch()
    assert events.link_events(train_dir, folder) == 0
    assert (folder / FIRST).read_text() == "a real file of the same name"


def test_a_root_that_cannot_be_made_is_said(settings: Settings) -> None:
    settings.tensorboard_root.parent.mkdir(parents=True)
    settings.tensorboard_root.write_text("a file in the way")
    problems = events.prepare_root(settings)
    assert any(f"{settings.tensorboard_root} can't be made" in problem for problem in problems)
    assert settings.tensorboard_root.read_text() == "a file in the way"
