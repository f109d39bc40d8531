"""Paths that are exchanged for links between their check and their use."""

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from dpiped import beneath, checkpoints, configs, events, paths, redaction
from dpiped.errors import InvalidInput
from dpiped.settings import load

EXCHANGE = """
import ctypes, os, sys
libc = ctypes.CDLL(None, use_errno=True)
here, link = (os.fsencode(each) for each in sys.argv[1:])
print("begun", flush=True)
while True:
    # RENAME_EXCHANGE: there is always one of the two.
    assert libc.renameat2(-100, here, -100, link, 2) == 0, os.strerror(ctypes.get_errno())
"""
SECONDS = 0.3
"""For each way of reading and writing."""


class Place:
    """`folder` in turn a directory and a link to `outside`, which has files of the same names."""

    def __init__(self, root: Path) -> None:
        self.folder, self.outside, link = root / "in/folder", root / "outside", root / "in/link"
        for each in (self.folder, self.outside):
            (each / "epoch1").mkdir(parents=True)
            for name in ("file.toml", "epoch1/file.toml", "save", "events.out.tfevents.1"):
                (each / name).write_text(f'from = "{each.name}"\n')
        link.symlink_to(self.outside)
        self.before = self.look()
        command = [sys.executable, "-c", EXCHANGE, str(self.folder), str(link)]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE)
        assert self.process.stdout is not None and self.process.stdout.readline()

    def look(self) -> dict[str, str]:
        """What there is outside."""
        files = [path for path in sorted(self.outside.rglob("*")) if path.is_file()]
        return {str(path.relative_to(self.outside)): path.read_text() for path in files}

    def meanwhile(self, work: Callable[[], object], refuses: bool = True) -> tuple[set[object], int]:
        """All that came of it, and how often it was refused; both happen, and some time is over then."""
        done: set[object] = set()
        refused = 0
        until, latest = time.monotonic() + SECONDS, time.monotonic() + 20
        while (now := time.monotonic()) < latest and (now < until or not done or refuses > refused):
            try:
                done.add(work())
            except (OSError, InvalidInput):
                refused += 1
        return done, refused


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    made = Place(tmp_path)
    yield made
    made.process.kill()
    made.process.wait()


def test_without_it_the_link_is_followed(place: Place) -> None:
    """Or the tests below would show nothing."""
    found, _ = place.meanwhile((place.folder / "file.toml").read_text, refuses=False)
    assert found == {'from = "folder"\n', 'from = "outside"\n'}


def test_what_is_read_is_never_what_the_link_leads_to(place: Place) -> None:
    file = place.folder / "file.toml"
    read, refused = place.meanwhile(lambda: beneath.read(file, 100))
    assert read == {b'from = "folder"\n'} and refused
    # From the path as it was given: the check, then the reading.
    text, refused = place.meanwhile(
        lambda: configs.read(paths.confine(str(file), "config", [place.folder.parent])).text
    )
    assert text == {'from = "folder"\n'} and refused


def test_nothing_is_written_where_the_link_leads_to(place: Place, tmp_path: Path) -> None:
    board = load({"HOME": "/root", "DIFFPIPE_SOCKET": "/s", "DIFFPIPE_LOGDIR": str(tmp_path / "board")})
    fresh = iter(range(1 << 60))
    works: tuple[Callable[[], object], ...] = (
        lambda: beneath.replace(place.folder / "published.toml", b"x", 0o644),
        lambda: beneath.replace(place.folder / f"{next(fresh)}/published.toml", b"x", 0o644),
        lambda: beneath.touch(place.folder / "save_quit"),
        lambda: checkpoints.clear_signal_files(place.folder),
        lambda: redaction.clean_copies(place.folder),
        lambda: events.link_events(place.folder, events.run_folder(board, f"r{next(fresh)}")),
    )
    for work in works:
        done, refused = place.meanwhile(work)
        assert done and refused
        assert place.look() == place.before
    # A link may be where the run's own links are to be.
    target = place.folder.parent / "real"
    target.mkdir()
    (target / "events.out.tfevents.2").touch()
    done, refused = place.meanwhile(lambda: events.link_events(target, place.folder))
    assert refused
    assert [path for path in place.outside.rglob("*") if path.is_symlink()] == []


def test_no_link_is_written_through_or_removed_from_behind(tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    precious.write_text("mine")
    (tmp_path / "save").symlink_to(precious)
    (tmp_path / "save_quit").symlink_to(tmp_path / "not yet")
    for name in ("save", "save_quit"):
        with pytest.raises(OSError, match="symbolic links"):
            beneath.touch(tmp_path / name)
    assert not (tmp_path / "not yet").exists()
    # In one step: the link goes, not what it leads to.
    beneath.replace(tmp_path / "save", b"new", 0o644)
    assert (tmp_path / "save").read_text() == "new" and precious.read_text() == "mine"
    checkpoints.clear_signal_files(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["precious"]


def test_pipes_devices_and_large_files_are_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "training_config.toml")
    os.mkfifo(tmp_path / "save")
    os.mkfifo(tmp_path / "events.out.tfevents.1")
    began = time.monotonic()
    assert not configs.is_marked(tmp_path / "training_config.toml", "r")
    for odd in (tmp_path / "training_config.toml", tmp_path, Path("/dev/zero")):
        with pytest.raises(InvalidInput, match=r"is not a file|Is a directory"):
            configs.read(odd)
    with pytest.raises(OSError, match="No such device"):
        beneath.touch(tmp_path / "save")
    redaction.clean_copies(tmp_path)
    board = load({"HOME": "/root", "DIFFPIPE_SOCKET": "/s", "DIFFPIPE_LOGDIR": str(tmp_path / "board")})
    assert events.link_events(tmp_path, events.run_folder(board, "r")) == 0
    large = tmp_path / "large.toml"
    with large.open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(InvalidInput, match="larger than 1 MiB"):
        configs.read(large)
    assert time.monotonic() - began < 5


def test_only_resolved_paths_are_taken(tmp_path: Path) -> None:
    for path in (Path("relative"), tmp_path / "a/../b"):
        with pytest.raises(ValueError, match="is not resolved"), beneath.directory(path):
            pass
    with contextlib.suppress(FileNotFoundError):
        beneath.read(tmp_path / "none", 1)
        pytest.fail("there is nothing")
    with beneath.directory(Path("/")) as top:
        assert os.path.samestat(os.fstat(top), Path("/").stat())
