"""The directory that train.py makes: recognised, its checkpoints judged, its signal files cleared."""

import os
from pathlib import Path

import pytest

from dpiped import checkpoints
from dpiped.configs import MARK
from dpiped.errors import InvalidInput

RUN = "20260304-050607-ab12"


def make_checkpoint(train_dir: Path, tag: str = "global_step10", at: float = 1000.0) -> Path:
    folder = train_dir / tag
    folder.mkdir(parents=True)
    (folder / "mp_rank_00_model_states.pt").write_bytes(b"model")
    (folder / "layer_00-model_states.pt").write_bytes(b"layer")
    (train_dir / "latest").write_text(tag)
    os.utime(train_dir / "latest", (at, at))
    return train_dir


def mark(folder: Path, run: str = RUN) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "training_config.toml").write_text(f"{MARK}{run}\nepochs = 1\n")
    return folder


def test_the_directory_of_a_run_is_recognised_by_its_mark(tmp_path: Path) -> None:
    mark(tmp_path / "20260304_05-06-09", "20260304-050607-ffff")
    (tmp_path / "20260304_05-06-10").mkdir()
    (tmp_path / "zzz").write_text("a stray file")
    assert checkpoints.find_train_dir(tmp_path, RUN, 0.0) is None
    ours = mark(tmp_path / "20260304_05-06-08")
    assert checkpoints.find_train_dir(tmp_path, RUN, 0.0) == ours


def test_an_older_directory_is_not_looked_into(tmp_path: Path) -> None:
    ours = mark(tmp_path / "20260304_05-06-08")
    os.utime(ours, (1000, 1000))
    assert checkpoints.find_train_dir(tmp_path, RUN, 999.0) == ours
    assert checkpoints.find_train_dir(tmp_path, RUN, 1001.0) is None


def test_no_output_directory_yet_is_no_directory(tmp_path: Path) -> None:
    assert checkpoints.find_train_dir(tmp_path / "missing", RUN, 0.0) is None


def test_a_dangling_link_in_the_output_directory_hides_nothing(tmp_path: Path) -> None:
    (tmp_path / "dangling").symlink_to(tmp_path / "gone")
    ours = mark(tmp_path / "20260304_05-06-08")
    assert checkpoints.find_train_dir(tmp_path, RUN, 0.0) == ours


def test_a_whole_checkpoint_is_the_one_that_latest_names(tmp_path: Path) -> None:
    make_checkpoint(tmp_path, "global_step10")
    make_checkpoint(tmp_path, "global_step20")
    (tmp_path / "latest").write_text("global_step10\n")
    assert checkpoints.complete_checkpoint(tmp_path) == "global_step10"
    assert checkpoints.require_checkpoint(tmp_path, "run") == "global_step10"


def without_latest(folder: Path) -> None:
    (folder / "latest").unlink()


def empty_latest(folder: Path) -> None:
    (folder / "latest").write_text(" \n")


def garbled_latest(folder: Path) -> None:
    (folder / "latest").write_bytes(b"\xff\xfe")


def latest_elsewhere(folder: Path) -> None:
    make_checkpoint(folder.parent / "other")
    (folder / "latest").write_text("../other/global_step10")


def missing_folder(folder: Path) -> None:
    (folder / "latest").write_text("global_step99")


def empty_file(folder: Path) -> None:
    (folder / "global_step10/layer_00-model_states.pt").write_bytes(b"")


def no_model_states(folder: Path) -> None:
    (folder / "global_step10/mp_rank_00_model_states.pt").unlink()


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (without_latest, "holds no checkpoint"),
        (empty_latest, "holds no checkpoint"),
        (garbled_latest, "holds no checkpoint"),
        (latest_elsewhere, "holds no checkpoint"),
        (missing_folder, "global_step99, which is not whole"),
        (empty_file, "global_step10, which is not whole"),
        (no_model_states, "global_step10, which is not whole"),
    ],
    ids=lambda value: getattr(value, "__name__", "says"),
)
def test_an_incomplete_checkpoint_is_refused_with_the_reason(
    tmp_path: Path, damage: object, says: str
) -> None:
    folder = make_checkpoint(tmp_path / "r")
    assert checkpoints.complete_checkpoint(folder) == "global_step10"
    assert callable(damage)
    damage(folder)
    assert checkpoints.complete_checkpoint(folder) is None
    with pytest.raises(InvalidInput) as refused:
        checkpoints.require_checkpoint(folder, "run")
    assert refused.value.field == "run"
    assert says in refused.value.message
    assert folder.name in refused.value.message and str(folder.parent) not in refused.value.message


def test_a_folder_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput) as refused:
        checkpoints.require_checkpoint(tmp_path / "missing", "resume_from_checkpoint")
    assert refused.value.field == "resume_from_checkpoint"
    assert "there is no folder" in refused.value.message
    assert not (tmp_path / "missing").exists()


def test_the_newest_is_the_one_written_last_whatever_its_name(tmp_path: Path) -> None:
    newest = make_checkpoint(tmp_path / "20260101_00-00-00", at=3000.0)
    make_checkpoint(tmp_path / "20260301_00-00-00", at=2000.0)
    (tmp_path / "zzz.txt").write_text("a stray file that sorts last")
    (tmp_path / "zzz").mkdir()
    (tmp_path / "zzzz").symlink_to(tmp_path / "gone")
    no_model_states(make_checkpoint(tmp_path / "20260401_00-00-00", at=9000.0))
    assert checkpoints.newest_resumable(tmp_path) == newest


def test_nothing_to_resume_from(tmp_path: Path) -> None:
    (tmp_path / "zzz").mkdir()
    assert checkpoints.newest_resumable(tmp_path) is None
    assert checkpoints.newest_resumable(tmp_path / "missing") is None


def test_signal_files_are_cleared_and_nothing_else(tmp_path: Path) -> None:
    make_checkpoint(tmp_path)
    for name in ("save", "save_quit", "save_me"):
        (tmp_path / name).touch()
    checkpoints.clear_signal_files(tmp_path)
    checkpoints.clear_signal_files(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["global_step10", "latest", "save_me"]
