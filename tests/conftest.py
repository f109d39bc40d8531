"""Fixtures shared by the tests with real processes."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.harness import Workspace
from tests.trainings import Launcher, Setup, make_setup
from tests.web import LONG, Shim


@pytest.fixture
def workspace() -> Iterator[Workspace]:
    """Directories and environment, no daemon yet."""
    made = Workspace()
    yield made
    made.close()


@pytest.fixture
def dpiped(workspace: Workspace) -> Workspace:
    """A workspace with a running daemon."""
    workspace.start_daemon(SCRIPT=LONG)
    return workspace


@pytest.fixture(scope="module")
def launch(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Launcher]:
    """Starts trainings of the embedded trainer; those that still run are ended."""
    launcher = Launcher(tmp_path_factory.mktemp("logs"))
    yield launcher
    launcher.close()


@pytest.fixture
def setup(tmp_path: Path) -> Setup:
    """Config files and pictures for the embedded trainer."""
    return make_setup(tmp_path)


@pytest.fixture
def shim(dpiped: Workspace) -> Shim:
    """A shim before a running daemon; both end with the workspace."""
    return Shim(dpiped)
