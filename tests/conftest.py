"""Fixtures shared by the tests with real processes."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.gpu_machine import build_library
from tests.harness import Workspace
from tests.trainings import Launcher, Setup, make_setup
from tests.web import LONG, Shim

if TYPE_CHECKING:
    from tests.browser import Browser

FIRST = (
    "test_trainer_exact test_training test_faults test_page test_systemd test_adapter test_runs "
    "test_trainer.py test_http_schema test_tensorboard test_supervisord test_recovery test_resume "
    "test_http_events test_stopping test_trainer_refusals test_http.py test_controlpilot test_http_guard "
    "test_judge test_gpus test_soak"
).split()
"""What the names of the slow files begin with. A long file that begins last leaves a core idle.

Those that compute and those that wait take turns.
"""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The slow files first, the others as they were found."""

    def place(item: pytest.Item) -> int:
        found = (index for index, start in enumerate(FIRST) if item.path.name.startswith(start))
        return next(found, len(FIRST))

    items.sort(key=place)


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


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with a library in the place of NVIDIA's."""
    return build_library(tmp_path_factory.mktemp("nvml"))


@pytest.fixture(scope="module")
def chromium() -> Iterator["Browser"]:
    """A Chromium for all tests of a file."""
    # Only those that use it pay for its driver.
    from tests.browser import Browser

    made = Browser()
    yield made
    made.close()


@pytest.fixture
def browser(chromium: "Browser") -> "Browser":
    """The same, on an empty page, with nothing written to its console."""
    chromium.open("about:blank")
    chromium.console()
    return chromium
