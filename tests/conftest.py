"""Fixtures shared by the tests with real processes."""

from collections.abc import Iterator

import pytest

from tests.harness import Workspace


@pytest.fixture
def workspace() -> Iterator[Workspace]:
    """Directories and environment, no daemon yet."""
    made = Workspace()
    yield made
    made.close()


@pytest.fixture
def dpiped(workspace: Workspace) -> Workspace:
    """A workspace with a running daemon."""
    workspace.start_daemon()
    return workspace
