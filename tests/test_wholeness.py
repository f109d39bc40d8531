"""Whole files and folders of a checkpoint, told from those that were cut off or never reached the disk."""

import importlib.util
import io
import os
import struct
import zipfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dpiped.wholeness import flaw, flaw_of_file, stages_of
from tests.helpers import require
from tests.test_logs import CALM
from tests.trainers.app.train import write_weights


def archive(content: bytes, comment: bytes = b"") -> bytes:
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w") as opened:
        opened.comment = comment
        opened.writestr("archive/data/0", content)
    return made.getvalue()


def as_zip64(plain: bytes) -> bytes:
    """The same as torch writes it for large files: the larger records before the one at the end."""
    entries, length, offset = struct.unpack("<10xHII2x", plain[-22:])
    body, at = plain[:-22], len(plain) - 22
    record = struct.pack("<4sQHHIIQQQQ", b"PK\6\6", 44, 45, 45, 0, 0, entries, entries, length, offset)
    locator = struct.pack("<4sIQI", b"PK\6\7", 0, at, 1)
    end = struct.pack("<4sHHHHIIH", b"PK\5\6", 0, 0, entries, entries, 0xFFFFFFFF, 0xFFFFFFFF, 0)
    return body + record + locator + end


def says(folder: Path, data: bytes) -> str | None:
    path = folder / "file.pt"
    path.write_bytes(data)
    return flaw_of_file(path)


CONTENTS = st.one_of(
    st.binary(max_size=300),
    # What is saved may hold an archive itself.
    st.binary(max_size=40).map(archive),
    st.just(bytes(200)),
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("files")


@CALM
@given(content=CONTENTS, comment=st.binary(max_size=40), larger=st.booleans(), data=st.data())
def test_a_whole_archive_is_whole_and_one_cut_or_zeroed_anywhere_is_not(
    folder: Path, content: bytes, comment: bytes, larger: bool, data: st.DataObject
) -> None:
    whole = as_zip64(archive(content)) if larger else archive(content, comment)
    assert says(folder, whole) is None
    cut = data.draw(st.integers(0, len(whole) - 1))
    wrong = says(folder, whole[:cut])
    assert wrong in ("is empty", "is no file of torch's", "is cut off") and (cut or wrong == "is empty")
    # From there on the blocks never reached the disk; a comment's last bytes are not the archive's.
    zeroed = whole[:cut] + bytes(len(whole) - cut)
    if zeroed.rstrip(b"\0") != whole.rstrip(b"\0") and cut < len(whole) - len(comment) - 22:
        assert says(folder, zeroed) is not None


@CALM
@given(st.binary(max_size=80))
def test_whatever_the_bytes_are_the_answer_is_one_of_these(folder: Path, data: bytes) -> None:
    for bytes_ in (data, b"PK\3\4" + data, b"PK\3\4" + data + archive(b"")[-22:]):
        wrong = says(folder, bytes_)
        assert wrong in (
            None,
            "is empty",
            "is nothing but zeros",
            "is no file of torch's",
            "is cut off",
        )
    assert says(folder, bytes(len(data) + 1)) == "is nothing but zeros"


def test_torchs_own_files(tmp_path: Path) -> None:
    require(importlib.util.find_spec("torch") is not None, "torch is not installed")
    import torch

    path = tmp_path / "file.pt"
    for newer in (True, False):
        torch.save({"weights": torch.ones(1000)}, path, _use_new_zipfile_serialization=newer)
        assert flaw_of_file(path) is None
        for size in (path.stat().st_size - 1, 2000, 4) if newer else (0,):
            os.truncate(path, size)
            assert flaw_of_file(path) == ("is cut off" if newer else "is empty")


def test_what_is_no_file_is_none_and_keeps_nobody_waiting(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    assert flaw_of_file(tmp_path / "pipe") == "is no file"
    assert flaw_of_file(tmp_path) == "is no file"
    assert flaw_of_file(tmp_path / "none") == "is missing"


def test_the_files_of_every_stage_and_rank_have_to_be_there(tmp_path: Path) -> None:
    names = ["layer_00-model_states.pt", "mp_rank_00_model_states.pt", "mp_rank_01_model_states.pt"]
    zero = [f"bf16_zero_pp_rank_{r}_mp_rank_0{s}_optim_states.pt" for r in range(2) for s in range(2)]
    for name in (*names, *zero):
        write_weights(tmp_path / name)
    # Of no interest to DeepSpeed.
    (tmp_path / "notes.pt").touch()
    (tmp_path / "offloaded_tensors").mkdir()
    assert flaw(tmp_path, 2) is None and stages_of(tmp_path) == 2
    assert flaw(tmp_path, 3) == (
        "mp_rank_02_model_states.pt (there are 2 pipeline stages of the 3 wanted) is missing"
    )
    assert flaw(tmp_path, 1, {"layer_07-model_states.pt"}) == "layer_07-model_states.pt is missing"
    (tmp_path / zero[2]).unlink()
    assert flaw(tmp_path) == "zero_pp_rank_1_mp_rank_00_optim_states.pt is missing"
    (tmp_path / zero[3]).unlink()
    assert flaw(tmp_path) is None, "it was written by one replica"
    (tmp_path / zero[1]).write_bytes(bytes(100))
    assert flaw(tmp_path) == f"{zero[1]} is nothing but zeros"
    (tmp_path / names[1]).unlink()
    assert flaw(tmp_path) == "mp_rank_00_model_states.pt is missing"
