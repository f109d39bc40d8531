"""Each view of the page: how it looks at both widths in both themes, whether all can use it, what it refuses.

The screenshots lie in `.screenshots/` afterwards.
"""

import json
import re
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from selenium.webdriver.common.keys import Keys
from starlette.applications import Starlette
from starlette.routing import Mount

from dpipectl.http.app import create_app
from dpipectl.http.pages import FOLDER
from tests.browser import NARROW, WIDE, Browser
from tests.gpu_machine import Machine, line
from tests.harness import Workspace, free_port
from tests.helpers import wait_until
from tests.web import MODELS, Shim

pytestmark = pytest.mark.timeout(120)

TOKEN = "correct-horse-battery-staple"
HOSTILE = "<script>window.pwned = 1</script><img src=x onerror='window.pwned = 2'>"


def with_models(shim: Shim, **fields: Any) -> dict[str, Any]:
    """A form with nothing wrong in it."""
    models = shim.workspace.root / "models"
    models.mkdir()
    for name in MODELS:
        (models / name).write_text("weights")
    return shim.form(**fields)


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
        self.form = with_models(self.shim, wandb_run_name="a bear", epochs=50)
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


def fill_as_in(browser: Browser, scene: Scene, run: str) -> None:
    """Fills the form with that run's settings; it asks before it replaces what was filled in."""
    go(browser, scene, f"#/new/{run}", '[data-group="monitoring"]')
    browser.until("dialog, .toast")
    if browser.find("dialog"):
        browser.press("Replace", "dialog")
    browser.until(".toast", "Filled in")


def prepare(browser: Browser, scene: Scene, request: pytest.FixtureRequest, name: str) -> None:
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
            fill_as_in(browser, scene, scene.active)
            browser.press("TOML preview", ".bottom")
            browser.until("dialog pre", "[model]")
        case "stop":
            go(browser, scene, "", ".status .bar-text", "Step")
            browser.press("Stop…")
            browser.until("dialog")
        case "login":
            locked = Shim(scene.workspace, DIFFPIPE_HTTP_TOKEN=TOKEN)
            browser.open(f"{locked.base}/dpipe/")
            browser.until("#token")
        case "lost":
            other = Shim(scene.workspace)
            browser.open(f"{other.base}/dpipe/#/runs/{scene.completed}")
            browser.until(".plot .smooth")
            other.kill()
            browser.until(".banner", "connection to the server is lost")
        case "welcome":
            browser.open(f"{request.getfixturevalue('shim').base}/dpipe/")
            browser.until("main h1", "Nothing has run yet")
        case "resume":
            scene.workspace.json("stop")
            fill_as_in(browser, scene, scene.active)
            browser.fill("epochs", 77)
            browser.open(f"{scene.page}#/runs/{scene.stopped}")
            browser.press("Resume…")
            browser.until("dialog table", "epochs")
        case _:
            raise AssertionError(name)


# The last one stops the run that is active.
VIEWS = (
    *("running", "completed", "failed", "history", "form", "preview", "stop"),
    *("login", "lost", "welcome", "resume"),
)
REFUSED = "status of 401"
"""What Chromium notes of a request that wanted a token."""
NOTED = {"login": REFUSED, "lost": "net::ERR_"}


@pytest.mark.parametrize("name", VIEWS)
def test_a_view_looks_right_and_can_be_used_by_all(
    browser: Browser, scene: Scene, request: pytest.FixtureRequest, name: str
) -> None:
    prepare(browser, scene, request, name)
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
    assert [noted for noted in browser.console() if not (name in NOTED and NOTED[name] in noted)] == []


# --- the form

WRONG = [
    ("dataset_path", "nowhere", "takes one that exists"),
    ("config_dir", "../up", "takes a path below"),
    ("output_dir", "/etc", "takes a path below"),
    ("transformer_path", "/etc/passwd", "takes a path below"),
    ("vae_path", "missing.safetensors", "takes a file or folder that exists"),
    ("num_gpus", "0", "takes a whole number from 1 to 64"),
    ("pipeline_stages", "3", "divides the number of GPUs"),
    ("epochs", "1.5", "takes a whole number from 1 to 1000000"),
    ("batch_size", "", "takes a whole number from 1"),
    ("gradient_accumulation_steps", "-1", "takes a whole number from 1"),
    ("gradient_clipping", "lots", "takes a number from 0"),
    ("warmup_steps", "1e3.5", "takes a whole number from 0"),
    ("learning_rate", "0", "takes a number above 0 to 100"),
    ("optimizer_type", "two words", "takes one word"),
    ("betas", "[0.9", "takes"),
    ("rank", "99999999", "takes a whole number from 1"),
    ("dtype", "int3", "takes"),
    ("resolutions_input", "[1, 2, 3, 4]", "takes"),
    ("frame_buckets", "33", "takes"),
    ("min_ar", "0", "takes a number above 0"),
    ("save_dtype", "half a byte", "takes one word"),
    ("resume_from_checkpoint", "20260101_00-00-00", "there is no folder"),
]


def test_each_field_filled_wrongly_says_so_beside_itself(browser: Browser, scene: Scene) -> None:
    go(browser, scene, "#/new", '[data-group="monitoring"]')
    for name, value in scene.form.items():
        browser.fill(name, value)
    browser.press("Check", ".bottom")
    browser.until(".toast", "Nothing is wrong with it.")
    said = (
        "return Object.fromEntries([...document.querySelectorAll('.field .error:not([hidden])')]"
        ".map((error) => [error.id.replace('error-', ''), error.textContent]))"
    )
    for name, value, takes in WRONG:
        before = browser.run(f"return document.querySelector('#field-{name}').value")
        browser.fill(name, value)
        browser.press("Check", ".bottom")
        found = wait_until(
            lambda: only if list(only := browser.run(said)) == [name] else {},  # noqa: B023
            f"a message for {name} = {value!r} alone",
        )
        assert takes in found[name], found
        invalid = browser.find("[aria-invalid]")
        assert [each.get_attribute("name") for each in invalid] == [name]
        assert f"error-{name}" in (invalid[0].get_attribute("aria-describedby") or "")
        focused = "return document.activeElement.name"
        wait_until(lambda: browser.run(focused) == name, f"the focus is on {name}")  # noqa: B023
        browser.fill(name, before)
    assert browser.console() == []


def test_the_form_is_remembered_without_its_key_saved_and_loaded(browser: Browser, scene: Scene) -> None:
    go(browser, scene, "#/new", '[data-group="monitoring"]')
    key = "0123456789abcdef" * 2
    for name, value in {"epochs": 7, "enable_wandb": True, "wandb_api_key": key, "rank": 8}.items():
        browser.fill(name, value)
    browser.driver.refresh()
    browser.until('[data-group="monitoring"]')
    value = "return document.querySelector(arguments[0]).value"
    assert browser.run(value, "#field-epochs") == "7" and browser.run(value, "#field-wandb_api_key") == ""
    assert key not in browser.run("return JSON.stringify(localStorage)")
    for kind in ("JSON", "TOML"):
        browser.press(f"Save {kind}")
        file = Path(browser.profile) / f"dpiped-form.{kind.lower()}"
        wait_until(file.exists, f"the form as {kind}")
        assert "wandb_api_key" not in file.read_text() and "7" in file.read_text()
        browser.fill("epochs", 8)
        browser.find("input[type=file]")[0].send_keys(str(file))
        wait_until(lambda: browser.run(value, "#field-epochs") == "7", f"loaded from {kind}")
        file.unlink()
    broken = Path(browser.profile) / "broken.toml"
    broken.write_text("epochs = = 3\n")
    browser.find("input[type=file]")[0].send_keys(str(broken))
    browser.until(".toast.error", "line 1")
    # The one note is of that refusal.
    assert len([line for line in browser.console() if "status of 422" not in line]) == 0


# --- text from elsewhere


def test_script_in_a_log_a_caption_or_a_name_is_text(browser: Browser) -> None:
    workspace = Workspace(DIFFPIPE_CONFIG="")
    try:
        script = {"behaviour": "says", "texts": [HOSTILE, f"caption: {HOSTILE}"], "until": str(workspace.go)}
        workspace.start_daemon(SCRIPT=json.dumps(script))
        shim = Shim(workspace)
        data = workspace.root / "datasets/<img src=x onerror=alert(1)>"
        data.mkdir()
        (data / "picture.png").touch()
        form = with_models(shim, wandb_run_name=HOSTILE, dataset_path=str(data))
        status, answer = shim.post("/train/start", form)
        assert status == 200, answer
        browser.open(f"{shim.base}/dpipe/")
        wait_until(lambda: HOSTILE in browser.log_lines(), "the log's line")
        assert f"caption: {HOSTILE}" in browser.log_lines()
        browser.press("Settings and record")
        browser.until(".config .record", HOSTILE)
        browser.press("New training like this")
        browser.until(".toast", "Filled in")
        value = "return document.querySelector(arguments[0]).value"
        assert browser.run(value, "#field-wandb_run_name") == HOSTILE
        assert browser.run(value, "#field-dataset_path") == str(data)
        browser.press("Runs", "nav")
        browser.until(".runs tbody tr")
        assert browser.console() == []
        assert browser.run("return window.pwned ?? null") is None
        # And were a string to become HTML some day, the page's policy runs none of it.
        injected = (
            "const s = document.createElement('script');"
            "try { s.append('window.pwned = 3'); document.body.append(s) }"
            "catch (error) { return error.name }"
            "return 'appended'"
        )
        assert browser.run(injected) == "appended"
        into = (
            "try { document.body.innerHTML = arguments[0] } catch (error) { return error.name } return 'set'"
        )
        assert browser.run(into, HOSTILE) == "TypeError"
        assert browser.run("return window.pwned ?? null") is None
        assert any("Trusted" in line or "Content Security Policy" in line for line in browser.console())
    finally:
        workspace.close()


# --- keyboard, prefix, token


def test_everything_by_keyboard(browser: Browser, scene: Scene) -> None:
    go(browser, scene, f"#/runs/{scene.completed}", ".plot .smooth")

    def press(*keys: str) -> None:
        for key in keys:
            browser.run("return document.activeElement").send_keys(key)

    browser.run("document.activeElement.blur()")
    press(Keys.TAB)
    assert browser.run("return document.activeElement.className") == "skip"
    press(Keys.ENTER)
    assert browser.run("return document.activeElement.id") == "main"
    reached: list[str] = []
    for _ in range(40):
        press(Keys.TAB)
        element = (
            "const e = document.activeElement; return e.getAttribute('aria-label') || e.innerText || e.id"
        )
        reached.append(browser.run(element))
        if reached[-1].startswith("Log of the run"):
            break
    for wanted in (
        "TensorBoard",
        "smoothing",
        "Loss by step",
        "Settings and record",
        "Search in the whole",
        "Copy",
    ):
        assert any(each.startswith(wanted) for each in reached), (wanted, reached)
    browser.run("document.querySelector('.chart .frame').focus()")
    press(Keys.HOME, Keys.ARROW_RIGHT)
    said = browser.run("return document.activeElement.getAttribute('aria-valuetext')")
    assert said.startswith("Step ") and "smoothed" in said.lower()
    assert browser.text(".tip").startswith("Step ")
    press(Keys.ESCAPE)
    assert browser.text(".tip") == ""


class Mounted:
    """The application below another prefix, as ControlPilot mounts it."""

    def __init__(self, workspace: Workspace, prefix: str) -> None:
        app = create_app(socket=workspace.env["DIFFPIPE_SOCKET"], behind_another=True)
        self.port = free_port()
        outer = Starlette(routes=[Mount(prefix, app)])
        config = uvicorn.Config(outer, port=self.port, log_level="warning", timeout_graceful_shutdown=1)
        self.server = uvicorn.Server(config)
        self.thread = threading.Thread(target=self.server.run)
        self.thread.start()
        wait_until(lambda: self.server.started, "the outer application serves")

    def close(self) -> None:
        self.server.should_exit = True
        self.thread.join(20)


def test_below_another_prefix(browser: Browser, scene: Scene) -> None:
    mounted = Mounted(scene.workspace, "/apps/dpipe")
    try:
        browser.open(f"http://127.0.0.1:{mounted.port}/apps/dpipe/#/runs/{scene.completed}")
        browser.until(".plot .smooth")
        browser.until(".log .line")
        link = browser.named("Download").get_attribute("href")
        assert link == f"http://127.0.0.1:{mounted.port}/apps/dpipe/runs/{scene.completed}/log"
        browser.press("New training", "nav")
        browser.until('[data-group="monitoring"]')
        assert browser.console() == []
        browser.open("about:blank")
    finally:
        mounted.close()


def test_with_a_token_the_page_asks_for_it_once(browser: Browser, scene: Scene) -> None:
    locked = Shim(scene.workspace, DIFFPIPE_HTTP_TOKEN=TOKEN)
    browser.driver.delete_all_cookies()
    browser.open(f"{locked.base}/dpipe/#/runs/{scene.completed}")
    browser.until("#token")
    browser.find("#token")[0].send_keys("wrong-wrong-wrong-wrong")
    browser.press("Log in", "main")
    browser.until(".login .error", "That is not the token.")
    browser.find("#token")[0].clear()
    browser.find("#token")[0].send_keys(TOKEN)
    browser.press("Log in", "main")
    browser.until(".plot .smooth")
    browser.driver.refresh()
    browser.until(".plot .smooth")
    assert [line for line in browser.console() if REFUSED not in line] == []


def test_gpu_memory_where_there_is_one(browser: Browser, workspace: Workspace, library: Path) -> None:
    machine = Machine(workspace, library)
    machine.says("ok", line(18.2, 97), line(1, 0))
    machine.start(EVERY_IDLE="0.05", EVERY_ACTIVE="0.05")
    workspace.start(workspace.config(until=str(workspace.go)))
    browser.open(f"{Shim(workspace).base}/dpipe/")
    said = "GPU 0: 18.2 of 80.0 GiB, 97 %\nGPU 1: 1.0 of 80.0 GiB, 0 %"
    wait_until(lambda: browser.fact("gpus") == said, "what both GPUs hold")
    machine.says("ok", line(2, 3), line(1, 0))
    wait_until(lambda: browser.fact("gpus").startswith("GPU 0: 2.0 of 80.0 GiB, 3 %"), "what it holds now")
    browser.open("about:blank")


def test_every_module_is_fetched_at_once() -> None:
    """A module that is not named in the page's head costs another way to the server and back."""
    head = (FOLDER / "index.html").read_text()
    assert set(re.findall(r'modulepreload" href="page/([^"]+)"', head)) == {
        path.name for path in FOLDER.glob("*.js")
    }
