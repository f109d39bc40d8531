"""Each view of the page: how it looks at both widths in both themes, whether all can use it, what it refuses.

The screenshots lie in `.screenshots/` afterwards.
"""

import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from starlette.applications import Starlette
from starlette.routing import Mount

from dpipectl.http.app import create_app
from tests.browser import NARROW, WIDE, Browser
from tests.harness import Workspace, free_port
from tests.helpers import wait_until
from tests.web import MODELS, Shim

pytestmark = pytest.mark.timeout(120)

HOSTILE = "<script>window.pwned = 1</script><img src=x onerror='window.pwned = 2'>"


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """A Chromium for all views."""
    made = Browser()
    yield made
    made.close()


class Scene:
    """A workspace with a history: completed, failed, stopped with a checkpoint, and one that runs."""

    def __init__(self) -> None:
        self.workspace = Workspace(DIFFPIPE_CONFIG="")
        self.workspace.start_daemon(SCRIPT=json.dumps({"until": str(self.workspace.go)}))
        self.shim = Shim(self.workspace)
        self.page = f"{self.shim.base}/dpipe/"
        self.completed = self._ended(self.config("curve", points=1500, parts=6, steps=1500))
        self.failed = self._ended(self.config("raises"))
        self.stopped = self._stopped()
        self.form = self._models()
        self.active = self._started()

    def config(self, behaviour: str, **script: object) -> Path:
        return self.workspace.config(behaviour, behaviour, **script)

    def _ended(self, config: Path) -> str:
        run = self.workspace.start(config)
        self.workspace.until_ended(run)
        return run

    def _stopped(self) -> str:
        run = self.workspace.start(self.config("well_behaved", until=str(self.workspace.go)))
        self.workspace.until_step(3)
        self.workspace.json("stop", "--save")
        return run

    def _models(self) -> dict[str, Any]:
        """A form with nothing wrong in it."""
        models = self.workspace.root / "models"
        models.mkdir()
        for name in MODELS:
            (models / name).write_text("weights")
        return self.shim.form(wandb_run_name="a bear", epochs=50)

    def _started(self) -> str:
        assert self.shim.post("/train/start", self.form)[0] == 200
        self.workspace.until_step(3)
        run: str = self.shim.get("/status")[1]["run"]["id"]
        return run

    def close(self) -> None:
        self.workspace.close()


@pytest.fixture(scope="module")
def scene() -> Iterator[Scene]:
    """See `Scene`."""
    made = Scene()
    yield made
    made.close()


def go(browser: Browser, scene: Scene, view: str, awaited: str, text: str = "") -> None:
    """Opens the view anew, with what this browser remembers, and waits for it."""
    browser.open("about:blank")
    browser.open(scene.page + view)
    browser.until(awaited, text)
    browser.size(WIDE)


def prepare(browser: Browser, scene: Scene, name: str) -> None:
    """Brings a view before the eyes."""
    match name:
        case "running":
            go(browser, scene, "", ".plot .smooth")
            browser.until(".log .line")
        case "completed":
            go(browser, scene, f"#/runs/{scene.completed}", ".plot .epoch")
        case "failed":
            go(browser, scene, f"#/runs/{scene.failed}", ".failure", "illegal memory access")
            browser.press("Show it in the log", ".failure")
            browser.until(".log .here")
            browser.press("Settings and record")
            browser.until(".config pre")
        case "history":
            go(browser, scene, "#/runs", ".runs tbody tr")
        case "form":
            go(browser, scene, "#/new", '[data-group="monitoring"]')
            browser.fill("epochs", "many")
            browser.fill("enable_wandb", True)
            browser.press("Check", ".bottom")
            browser.until("#error-epochs")
        case "preview":
            go(browser, scene, f"#/new/{scene.active}", '[data-group="monitoring"]')
            browser.until(".toast", "Filled in")
            browser.press("TOML preview", ".bottom")
            browser.until("dialog pre", "[model]")
        case "stop":
            go(browser, scene, "", ".status .bar-text", "Step")
            browser.press("Stop…")
            browser.until("dialog")
        case _:
            raise AssertionError(name)


@pytest.mark.parametrize("name", ["running", "completed", "failed", "history", "form", "preview", "stop"])
def test_a_view_looks_right_and_can_be_used_by_all(browser: Browser, scene: Scene, name: str) -> None:
    prepare(browser, scene, name)
    for theme in ("light", "dark"):
        browser.theme(theme)
        for width in (WIDE, NARROW):
            browser.size(width)
            browser.picture(f"{name}-{theme}-{width}")
            needed = browser.run("return document.documentElement.scrollWidth")
            assert needed <= width, f"the page needs {needed} pixels"
        assert browser.violations() == []
    browser.size(WIDE)
    browser.theme("light")
    assert browser.console() == []
