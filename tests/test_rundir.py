"""Records of a run: written whole or not at all, read back, refused when damaged."""

import stat
import subprocess
import sys
import threading
from pathlib import Path

import msgspec
import pytest
from msgspec import Struct

from dpiped import rundir
from dpiped.errors import RunDamaged
from dpiped.rundir import Concluded, Exit, Identity, Launched, Spec, StopAsked, TrainDir

SPEC = Spec(
    run="20260304-050607-ab12",
    created=1.5,
    argv=("/bin/deepspeed", "ä b"),
    cwd="/w",
    env={"A": "hidden-by-dpiped"},
    source="/w/t.toml",
    digest="d",
    output_dir="/w/out",
)
RECORDS: list[tuple[Struct, str]] = [
    (SPEC, "spec.json"),
    (Launched(Identity(1, 2, "b"), Identity(3, 4, "b"), 5.5), "started.json"),
    (TrainDir("/w/out/x"), "train_dir.json"),
    (StopAsked("save", "a user", 1.0, 2.0, "b"), "stop.json"),
    (Exit(None, 9, 1.0, peak_memory_bytes=7, leftovers=2), "exit.json"),
    (Concluded("failed", "why", None, step=3), "outcome.json"),
]
KINDS = [(type(record), name) for record, name in RECORDS]


@pytest.mark.parametrize(
    ("record", "name"), RECORDS, ids=lambda value: value if isinstance(value, str) else ""
)
def test_a_record_is_read_back_as_it_was_written(tmp_path: Path, record: Struct, name: str) -> None:
    assert rundir.read(tmp_path, type(record)) is None
    rundir.write(tmp_path, record)
    assert [path.name for path in tmp_path.iterdir()] == [name]
    assert rundir.read(tmp_path, type(record)) == record
    assert stat.S_IMODE((tmp_path / name).stat().st_mode) == 0o600


def test_a_record_with_fields_of_a_newer_version_is_read(tmp_path: Path) -> None:
    rundir.write(tmp_path, SPEC)
    newer = msgspec.json.decode((tmp_path / "spec.json").read_bytes()) | {"colour": "blue"}
    (tmp_path / "spec.json").write_bytes(msgspec.json.encode(newer))
    assert rundir.read(tmp_path, Spec) == SPEC


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b"null", b"{}", b'{"run": 3}', b"\xff\xfe", b"\0" * 100])
@pytest.mark.parametrize(("kind", "name"), KINDS, ids=lambda value: value if isinstance(value, str) else "")
def test_a_damaged_record_names_its_file(tmp_path: Path, kind: type[Struct], name: str, data: bytes) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(RunDamaged) as damaged:
        rundir.read(tmp_path, kind)
    assert damaged.value.field == name
    assert str(tmp_path / name) in damaged.value.message


def test_a_record_that_cannot_be_opened_is_damaged(tmp_path: Path) -> None:
    (tmp_path / "exit.json").mkdir()
    with pytest.raises(RunDamaged) as damaged:
        rundir.read(tmp_path, Exit)
    assert damaged.value.field == "exit.json"


FULL_DISK = """
import resource, signal, sys
from pathlib import Path
from dpiped import rundir
resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))
try:
    rundir.write_file(Path(sys.argv[1]), b"new" * 1000)
except OSError as error:
    print(error.strerror)
"""


def test_a_write_that_fails_half_way_leaves_the_old_file_and_no_litter(tmp_path: Path) -> None:
    path = tmp_path / "stop.json"
    rundir.write_file(path, b"old")
    done = subprocess.run(
        [sys.executable, "-c", FULL_DISK, str(path)], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "File too large"
    assert path.read_bytes() == b"old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["stop.json"]


def test_a_rename_that_fails_leaves_no_litter(tmp_path: Path) -> None:
    (tmp_path / "stop.json").mkdir()
    (tmp_path / "stop.json/inside").touch()
    with pytest.raises(OSError, match=r"stop\.json"):
        rundir.write_file(tmp_path / "stop.json", b"new")
    assert [entry.name for entry in tmp_path.iterdir()] == ["stop.json"]


def test_a_run_of_the_same_name_is_never_touched(tmp_path: Path) -> None:
    rundir.create(tmp_path / "run", {"a": b"1"}, SPEC)
    with pytest.raises(OSError, match="run"):
        rundir.create(tmp_path / "run", {"a": b"2"}, SPEC)
    assert (tmp_path / "run/a").read_bytes() == b"1"
    assert [entry.name for entry in tmp_path.iterdir()] == ["run"]


def test_room_is_reserved_used_once_and_given_back(tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    rundir.create(run_dir, {}, SPEC)

    def reserved() -> set[str]:
        return {path.name for path in run_dir.glob(".*")}

    before = reserved()
    assert {name.split(".")[1] for name in before} == {"started", "train_dir", "stop", "exit", "outcome"}
    for writing in range(1, 5):
        asked = StopAsked("term", "x", 1.0, float(writing), "b")
        rundir.write(run_dir, asked)
        assert rundir.read(run_dir, StopAsked) == asked
        left = len([name for name in reserved() if name.startswith(".stop.")])
        assert left == max(3 - writing, 0)
    assert {name for name in before if ".stop." not in name} == reserved()
    # An editor's folder is none of ours, and no reason not to conclude.
    (run_dir / ".ipynb_checkpoints").mkdir()
    rundir.conclude(run_dir, Concluded("completed", None, 1.0))
    (run_dir / ".ipynb_checkpoints").rmdir()
    assert reserved() == set()
    assert rundir.read(run_dir, Concluded) == Concluded("completed", None, 1.0)


def test_writing_where_there_is_no_directory_raises(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        rundir.write(tmp_path / "missing", SPEC)


def test_a_reader_sees_the_old_or_the_new_record_never_half_of_one(tmp_path: Path) -> None:
    versions = [TrainDir("/w/" + letter * 20_000) for letter in "ab"]
    rundir.write(tmp_path, versions[0])
    stop = threading.Event()

    def write_on() -> None:
        number = 0
        while not stop.is_set():
            number += 1
            rundir.write(tmp_path, versions[number % 2])

    writer = threading.Thread(target=write_on)
    writer.start()
    try:
        seen = {rundir.read(tmp_path, TrainDir) for _ in range(2000)}
    finally:
        stop.set()
        writer.join()
    assert seen <= set(versions)
    assert rundir.read(tmp_path, TrainDir) in versions


def test_a_replaced_file_does_not_widen_its_mode(tmp_path: Path) -> None:
    path = tmp_path / "spec.json"
    path.write_text("old")
    path.chmod(0o644)
    rundir.write_file(path, b"new")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_runs_are_named_newest_first(tmp_path: Path) -> None:
    ids = ["20260304-050607-ab12", "20251231-235959-ffff", "20260304-050608-0001"]
    for name in (*ids, ".hidden"):
        (tmp_path / name).mkdir()
    (tmp_path / "20270101-000000-file").touch()
    (tmp_path / "20270101-000000-link").symlink_to(tmp_path / ids[0])
    assert rundir.names(tmp_path) == [ids[2], ids[0], ids[1]]
    assert rundir.names(tmp_path / "missing") == []
