"""The directory that train.py makes: recognised, its checkpoints judged, its signal files cleared."""

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from dpiped import checkpoints
from dpiped.checkpoints import Found
from dpiped.configs import MARK
from dpiped.errors import InvalidInput
from tests.trainers.app.train import write_weights

RUN = "20260304-050607-ab12"
NOBODY = 65534


def make_checkpoint(train_dir: Path, tag: str = "global_step10", at: float = 1000.0) -> Path:
    folder = train_dir / tag
    folder.mkdir(parents=True)
    for name in ("mp_rank_00_model_states.pt", "layer_00-model_states.pt", "layer_01-model_states.pt"):
        write_weights(folder / name)
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
    assert checkpoints.require_checkpoint(tmp_path, "run") == Found("global_step10")


def without_latest(folder: Path) -> None:
    (folder / "latest").unlink()


def empty_latest(folder: Path) -> None:
    (folder / "latest").write_text(" \n")


def latest_of_zeros(folder: Path) -> None:
    (folder / "latest").write_bytes(bytes(13))


def garbled_latest(folder: Path) -> None:
    (folder / "latest").write_bytes(b"\xff\xfe")


def latest_elsewhere(folder: Path) -> None:
    make_checkpoint(folder.parent / "other")
    (folder / "latest").write_text("../other/global_step10")


def latest_above(folder: Path) -> None:
    write_weights(folder.parent / "mp_rank_00_model_states.pt")
    (folder / "latest").write_text("..")


def latest_a_pipe(folder: Path) -> None:
    (folder / "latest").unlink()
    os.mkfifo(folder / "latest")


def latest_a_link(folder: Path) -> None:
    """To what is nobody's business, and must not be shown."""
    (folder / "latest").unlink()
    (folder.parent / "token").write_text("hf_a-secret-of-mine")
    (folder / "latest").symlink_to(folder.parent / "token")


def missing_folder(folder: Path) -> None:
    shutil.rmtree(folder / "global_step20")


def a_file_instead(folder: Path) -> None:
    missing_folder(folder)
    (folder / "global_step20").touch()


def empty_file(folder: Path) -> None:
    (folder / "global_step20/layer_00-model_states.pt").write_bytes(b"")


def zeros(folder: Path) -> None:
    (folder / "global_step20/layer_01-model_states.pt").write_bytes(bytes(4096))


def cut_off(folder: Path) -> None:
    path = folder / "global_step20/mp_rank_00_model_states.pt"
    path.write_bytes(path.read_bytes()[:-1])


def no_model_states(folder: Path) -> None:
    """In the checkpoint that `latest` names."""
    tag = (folder / "latest").read_text().strip()
    (folder / tag / "mp_rank_00_model_states.pt").unlink()


def no_layer(folder: Path) -> None:
    (folder / "global_step20/layer_01-model_states.pt").unlink()


DAMAGES = [
    (without_latest, "`latest` is missing"),
    (empty_latest, "`latest` is empty"),
    (latest_of_zeros, "`latest` does not hold a checkpoint's name"),
    (garbled_latest, "`latest` does not hold a checkpoint's name"),
    (latest_elsewhere, "`latest` does not hold a checkpoint's name"),
    (latest_above, "`latest` does not hold a checkpoint's name"),
    (latest_a_pipe, "`latest` is no file"),
    (latest_a_link, "`latest` is no file"),
    (missing_folder, "global_step20, which is not whole (the folder is missing)"),
    (a_file_instead, "global_step20, which is not whole (it is no folder)"),
    (empty_file, "not whole (layer_00-model_states.pt is empty)"),
    (zeros, "not whole (layer_01-model_states.pt is nothing but zeros)"),
    (cut_off, "not whole (mp_rank_00_model_states.pt is cut off)"),
    (no_model_states, "not whole (mp_rank_00_model_states.pt is missing)"),
    (no_layer, "not whole (layer_01-model_states.pt is missing)"),
]


@pytest.mark.parametrize(("damage", "says"), DAMAGES, ids=lambda value: getattr(value, "__name__", "says"))
def test_where_latest_leads_to_nothing_whole_the_newest_whole_one_before_it_counts(
    tmp_path: Path, damage: Callable[[Path], None], says: str
) -> None:
    folder = make_checkpoint(tmp_path / "r")
    make_checkpoint(folder, "global_step5")
    make_checkpoint(folder, "global_step20")
    assert checkpoints.look(folder) == Found("global_step20")
    damage(folder)
    of_latest = "`latest` " in says
    assert checkpoints.complete_checkpoint(folder) is None
    found = checkpoints.require_checkpoint(folder, "run")
    assert found.tag == ("global_step20" if of_latest else "global_step10") and says in (found.why or "")
    # And where there is none, the folder is refused, by its name and without its path.
    for step in (5, 10, *([20] if of_latest else [])):
        (folder / f"global_step{step}/mp_rank_00_model_states.pt").write_bytes(b"")
    with pytest.raises(InvalidInput) as refused:
        checkpoints.require_checkpoint(folder, "run")
    assert refused.value.field == "run" and checkpoints.newest_whole(folder) is None
    assert "r can't be resumed: `latest` " in refused.value.message and says in refused.value.message
    assert "no other checkpoint in it is whole" in refused.value.message
    assert str(folder.parent) not in refused.value.message


def test_a_folder_without_any_checkpoint_holds_none(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="it holds no checkpoint"):
        checkpoints.require_checkpoint(tmp_path, "run")


def test_the_newest_goes_by_its_step_and_no_further_than_latest(tmp_path: Path) -> None:
    """Whatever the times are: a copy on another machine has the folders in any order."""
    for step in (100, 9, 30, 20):
        make_checkpoint(tmp_path, f"global_step{step}")
    (tmp_path / "global_step25").symlink_to(tmp_path / "global_step9")
    (tmp_path / "global_step29x").mkdir()
    (tmp_path / "latest").write_text("global_step30\n")
    no_model_states(tmp_path)
    # Somebody went back from step 100 by hand: what is beyond `latest` was given up.
    assert checkpoints.look(tmp_path).tag == "global_step25"
    (tmp_path / "global_step25").unlink()
    assert checkpoints.look(tmp_path).tag == "global_step20"
    (tmp_path / "latest").unlink()
    assert checkpoints.look(tmp_path).tag == "global_step100"


@pytest.fixture
def open_path() -> Iterator[Path]:
    """A folder that every user may look into, unlike pytest's own."""
    made = Path(tempfile.mkdtemp(prefix="dpiped-"))
    made.chmod(0o755)
    yield made
    shutil.rmtree(made)


def test_what_may_not_be_read_is_no_damage(open_path: Path) -> None:
    """Going on from an older one would cost steps where a chmod does."""
    folder = make_checkpoint(open_path / "r")
    folder.chmod(0o755)
    make_checkpoint(folder, "global_step20")
    (folder / "latest").chmod(0o644)
    (folder / "global_step20").chmod(0)
    with as_nobody():
        assert checkpoints.newest_whole(folder) is None
        with pytest.raises(InvalidInput) as refused:
            checkpoints.require_checkpoint(folder, "run")
    assert "r can't be resumed: global_step20 can't be read: Permission denied" in refused.value.message


@contextmanager
def as_nobody() -> Iterator[None]:
    """Root may read everything."""
    if os.getuid() == 0:
        os.seteuid(NOBODY)
    try:
        yield
    finally:
        if os.getuid() == 0:
            os.seteuid(0)


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
    broken = make_checkpoint(tmp_path / "20260401_00-00-00", at=9000.0)
    no_model_states(broken)
    no_model_states(make_checkpoint(tmp_path / "20260201_00-00-00", at=2.0))
    assert checkpoints.newest_resumable(tmp_path) == (newest, (broken,))
    # An older one in it makes it the newest again.
    make_checkpoint(broken, "global_step4", at=9000.0)
    assert checkpoints.newest_resumable(tmp_path) == (broken, ())


def test_nothing_to_resume_from(tmp_path: Path) -> None:
    (tmp_path / "zzz").mkdir()
    assert checkpoints.newest_resumable(tmp_path) == (None, ())
    assert checkpoints.newest_resumable(tmp_path / "missing") == (None, ())


def test_signal_files_are_cleared_and_nothing_else(tmp_path: Path) -> None:
    make_checkpoint(tmp_path)
    for name in ("save", "save_quit", "save_me"):
        (tmp_path / name).touch()
    checkpoints.clear_signal_files(tmp_path)
    checkpoints.clear_signal_files(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["global_step10", "latest", "save_me"]
