"""What the page does to a run: a stop is of the run that it was asked for, a resume goes on as that was."""

import json
from typing import Any

import pytest

from tests.browser import Browser
from tests.harness import Workspace
from tests.helpers import wait_until
from tests.test_page_views import with_models
from tests.web import Shim

pytestmark = pytest.mark.timeout(90)

LIVE = "const { live } = await import('./page/live.js');"
"""What the page knows of the active run."""


def asks_to_stop_a_newborn(browser: Browser) -> None:
    """Opens the dialog as in the moment in which a run has no pid yet."""
    browser.run(LIVE + "live.progress.pid = null; arguments[0].click()", browser.named("Stop…"))
    browser.until("dialog", "loses ")


def test_a_stop_that_comes_too_late_says_so(workspace: Workspace, browser: Browser) -> None:
    workspace.start_daemon(SCRIPT=json.dumps({}))
    shim = Shim(workspace)
    run = workspace.start(workspace.config(until=str(workspace.go)))
    browser.open(f"{shim.base}/dpipe/")
    wait_until(lambda: browser.fact("loss") not in ("", "–"), "a step")
    browser.press("Stop…")
    browser.until("dialog", "loses ")
    first = browser.text("dialog p")
    wait_until(lambda: browser.text("dialog p") not in ("", first), "it is kept up to date")
    workspace.go.touch()
    workspace.until_ended(run)
    browser.until(".status .pill", "Completed")
    browser.press("Save and stop", "dialog")
    browser.until(".toast", "That run has ended already")
    assert browser.run("return document.activeElement.id") == "run-title", "the button is gone"
    assert browser.console() == []


def test_a_stop_is_of_the_run_that_it_was_asked_for(workspace: Workspace, browser: Browser) -> None:
    workspace.start_daemon()
    shim = Shim(workspace)
    first = workspace.start(workspace.config(until=str(workspace.go)))
    browser.open(f"{shim.base}/dpipe/")
    wait_until(lambda: browser.fact("loss") not in ("", "–"), "a step")
    asks_to_stop_a_newborn(browser)
    workspace.go.touch()
    workspace.until_ended(first)
    second = workspace.start(workspace.config(steps=1_000_000))
    browser.until("#run-title", second)
    wait_until(lambda: browser.fact("loss") not in ("", "–"), "a step of the next run")
    browser.press("Stop without saving", "dialog")
    browser.until(".toast", "That run has ended already, so nothing was stopped.")
    status = workspace.status()
    assert (status["state"], status["run"]["id"]) == ("running", second)

    asks_to_stop_a_newborn(browser)
    wait_until(lambda: browser.run(LIVE + "return live.progress.pid"), "its pid is told")
    browser.press("Stop without saving", "dialog")
    browser.until(".status .pill", "Stopped")
    sent = "return performance.getEntriesByType('resource').map((each) => each.name)"
    stops = [name for name in browser.run(sent) if "train/stop" in name]
    assert len(stops) == 1 and f"pid={status['run']['pid']}" in stops[0]
    assert browser.console() == []


def resumed(browser: Browser, workspace: Workspace, run: str, form: dict[str, Any]) -> tuple[str, str]:
    """Goes on from that run, which is shown, with the form. What the dialog said, and the new run."""
    browser.run("localStorage.setItem('dpiped.form', JSON.stringify(arguments[0]))", form)
    browser.press("Resume…")
    said = browser.until("dialog", f"of run {run}")
    browser.press("Resume", "dialog")
    again = wait_until(
        lambda: newest if (newest := workspace.json("runs")[0]["id"]) != run else "", "the new run"
    )
    workspace.until_ended(again)
    return said, again


def test_a_resume_with_the_form_has_as_many_gpus_as_the_run(workspace: Workspace, browser: Browser) -> None:
    workspace.start_daemon(SCRIPT=json.dumps({"steps": 5}))
    shim = Shim(workspace)
    form = with_models(shim, epochs=50)
    status, answer = shim.post("/train/start", form | {"num_gpus": 2})
    assert status == 200, answer
    run = workspace.json("runs")[0]["id"]
    workspace.until_ended(run)
    assert workspace.json("show", run)["num_gpus"] == 2
    browser.open(f"{shim.base}/dpipe/")
    browser.until(".status .pill", "Completed")

    said, again = resumed(browser, workspace, run, form | {"epochs": 60})
    assert "empty for as many as before" in said and "epochs" in said
    assert "pipeline_stages" not in said, "that would be another one with other GPUs"
    assert workspace.json("show", again)["argv"][1] == "--num_gpus=2"

    browser.until("#run-title", again)
    browser.until(".status .pill", "Completed")
    own = form | {"epochs": 70, "num_gpus": 4, "pipeline_stages": 2}
    said, last = resumed(browser, workspace, again, own)
    assert "empty for as many as before; with the form, for its 4" in said
    assert workspace.json("show", last)["argv"][1] == "--num_gpus=4"
    assert browser.console() == []
