"""Paths of requests and configs are confined to the allowed roots, looked at where they lead."""

from pathlib import Path

import pytest

from dpiped.errors import InvalidInput
from dpiped.paths import confine


def test_a_path_is_looked_at_where_it_leads(tmp_path: Path) -> None:
    root, sibling = tmp_path / "root", tmp_path / "root-but-other"
    root.mkdir()
    sibling.mkdir()
    (root / "in").symlink_to(root / "real")
    (root / "leaves").symlink_to(sibling)
    (sibling / "enters").symlink_to(root)
    good = {
        root / "a/b": root / "a/b",
        root: root,
        root / "x/../y": root / "y",
        root / "in": root / "real",
        sibling / "enters/z": root / "z",
    }
    for path, leads_to in good.items():
        assert confine(str(path), "config", [root]) == leads_to
    for path in (root / "../root-but-other", sibling, root / "leaves/f", root / "..", Path("/")):
        with pytest.raises(InvalidInput) as refused:
            confine(str(path), "config", [root])
        assert refused.value.field == "config"
        assert "outside the allowed roots" in refused.value.message
        assert "DIFFPIPE_ALLOWED_ROOTS" in (refused.value.hint or "")


def test_a_root_that_is_a_link_itself_is_followed(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "root").symlink_to(tmp_path / "real")
    found = confine(str(tmp_path / "root/f"), "config", [tmp_path / "root"])
    assert found == tmp_path / "real/f"


@pytest.mark.parametrize("text", ["", "  ", "a\0b", "/" + "x/" * 2100, "relative", "./relative", "~/x"])
def test_what_is_no_absolute_path_is_refused(text: str) -> None:
    with pytest.raises(InvalidInput) as refused:
        confine(text, "some.field", [Path("/")])
    assert refused.value.field == "some.field"
    assert "some.field" in refused.value.message


def test_relative_paths_cannot_climb_out_of_the_roots(tmp_path: Path) -> None:
    assert confine("a", "f", [tmp_path], tmp_path / "base") == tmp_path / "base/a"
    with pytest.raises(InvalidInput):
        confine("../../a", "f", [tmp_path], tmp_path / "base")


def test_a_link_to_itself_is_refused(tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    with pytest.raises(InvalidInput) as refused:
        confine(str(tmp_path / "loop"), "config", [tmp_path])
    assert refused.value.field == "config"
