"""The page in Chromium before a real daemon, shim and DeepSpeed training: a person's way, faults included."""

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from dpiped.logs import shown_all
from tests.browser import Browser
from tests.harness import Workspace, processes_of_run, with_real_launcher
from tests.helpers import wait_until
from tests.test_training import command, quick_config, steps_in
from tests.web import Shim

# The very first launch on a machine compiles a C++ part of DeepSpeed. Alone, as a failure's time is measured.
pytestmark = [pytest.mark.alone, pytest.mark.timeout(240)]

FORM = {
    "model_type": "dpiped",
    "dataset_path": "example/data",
    "dtype": "float32",
    "epochs": 1000,
    "save_every": 1000,
    "eval_every": 1000,
    "eval_before_first_step": False,
    "batch_size": 4,
    "gradient_accumulation_steps": 1,
    "num_repeats": 1,
    "resolutions_input": "[32]",
    "optimizer_type": "adamw",
    "learning_rate": "1e-3",
    "warmup_steps": 2,
}
AWAY = ("net::ERR_", "status of 503")
"""What Chromium itself notes of every request that nobody answered while shim or daemon were away."""


@pytest.fixture
def real() -> Iterator[Workspace]:
    """A workspace with a daemon that finds the real launcher."""
    workspace = with_real_launcher(DIFFPIPE_CONFIG="")
    yield workspace
    workspace.close()


def shown_step(browser: Browser) -> int:
    """The step on the progress bar's text; 0 for none."""
    digits = browser.text(".bar-text").removeprefix("Step ").partition(";")[0].partition(" of ")[0]
    return int(digits.replace(",", "")) if digits.replace(",", "").isdecimal() else 0


def until_moving(browser: Browser, by: int = 3) -> None:
    """Waits until the page shows further steps."""
    before = shown_step(browser)
    wait_until(lambda: shown_step(browser) >= before + by, f"steps after {before}", 60)


def points(browser: Browser) -> int:
    """How many points the loss curve has. (Up to 800 steps, each step is one.)"""
    drawn: str = browser.run("return document.querySelector('.plot .raw')?.getAttribute('d') ?? ''")
    return drawn.count("M") + drawn.count("L")


def no_doubt(browser: Browser, log: bytes) -> None:
    """The log's window is the end of the log, and the curve has each of its steps once."""
    lines = shown_all(log)[:-1]

    def same() -> bool:
        window = browser.log_lines()
        return len(window) > 20 and window == lines[-len(window) :]

    wait_until(same, "the log's window is the end of the log")
    steps = steps_in(log.decode())
    wait_until(lambda: points(browser) == len(steps), "each step is on the curve once")


def icon(browser: Browser) -> str:
    """What the tab shows."""
    drawn: str = browser.run("return document.querySelector('link[rel=icon]').href")
    return drawn


def curves(browser: Browser, run: str, other: str) -> None:
    """TensorBoard, as the history opens it, shows that run's curves and no other's."""
    browser.press("Runs", "nav")
    link = wait_until(lambda: browser.find(f'[data-run="{run}"] a[target]'), "the link to TensorBoard")
    browser.open(str(link[0].get_attribute("href")))
    text = "return document.body.innerText"
    wait_until(lambda: f"diffpipe/{run}" in browser.run(text), "TensorBoard's list of runs", 40)
    assert other not in browser.run(text)


def start_by_form(browser: Browser, shim: Shim) -> None:
    browser.open(f"{shim.base}/dpipe/")
    browser.until("main h1", "Nothing has run yet")
    browser.press("New training", "nav")
    browser.until('[data-group="monitoring"]')
    for field, value in FORM.items():
        browser.fill(field, value)
    browser.press("Check", ".bottom")
    browser.until(".toast", "Nothing is wrong with it.")
    browser.press("Start", ".bottom")


def the_run(workspace: Workspace) -> str:
    run: str = workspace.status()["run"]["id"]
    return run


def test_fill_in_start_watch_through_every_fault_resume_save_stop_and_history(
    real: Workspace, browser: Browser
) -> None:
    quick_config(real)
    shim = Shim(real)
    start_by_form(browser, shim)
    browser.until(".status .pill", "Running", 60)
    wait_until(lambda: browser.fact("phase") == "Training", "the phase", 90)
    run = the_run(real)
    wait_until(lambda: shown_step(browser) >= 3 and points(browser) >= 3, "steps and a curve", 60)
    wait_until(lambda: any("steps: 3 loss: " in line for line in browser.log_lines()), "the log of step 3")
    assert browser.fact("loss") != "–" and "samples/s" in browser.fact("speed")
    before = points(browser)
    until_moving(browser)
    wait_until(lambda: points(browser) > before, "the curve moves")
    assert "dpiped" in browser.driver.title and "loss" in browser.driver.title
    assert browser.console() == []
    running = icon(browser)
    assert running.startswith("data:image/svg+xml")

    browser.driver.refresh()
    browser.until(".status .pill", "Running")
    assert browser.text("#run-title") == run
    until_moving(browser)

    shim.kill()
    browser.until(".banner", "connection to the server is lost")
    shim.start()
    wait_until(lambda: browser.text(".banner") == "", "the stream is back", 20)
    until_moving(browser)

    real.kill_daemon()
    browser.until(".banner", "dpiped does not answer")
    assert browser.text(".status .pill") == "Running", "what was known stays in view"
    real.start_daemon()
    wait_until(lambda: browser.text(".banner") == "", "the daemon is back")
    until_moving(browser)

    browser.press("Save now")
    browser.until(".toast:last-child", "Saved: global_step", 40)
    until_moving(browser)
    rank = next(pid for pid in processes_of_run(run) if "--local_rank=0" in command(pid))
    os.kill(rank, signal.SIGKILL)
    killed = time.monotonic()
    browser.until(".failure", "SIGKILL", 10)
    assert time.monotonic() - killed < 3.0
    browser.until(".status .pill", "Failed")
    wait_until(lambda: "Failed" in browser.driver.title, "the tab says it too")
    assert icon(browser) != running
    no_doubt(browser, (real.runs_dir / run / "output.log").read_bytes())
    browser.press("Show it in the log", ".failure")
    browser.until(".log .here")

    again = resume(browser, real, run)
    saved = stop(browser, again)
    history(browser, run, again, saved)
    noted = [line for line in browser.console() if not any(each in line for each in AWAY)]
    assert noted == []
    curves(browser, run, again)


def resume(browser: Browser, real: Workspace, run: str) -> str:
    """Goes on from the run by the page, after a save that was cut off. The new run's id."""
    (Path(real.json("show", run)["train_dir"]) / "epoch1/tmp").mkdir(parents=True)
    browser.press("Resume…")
    browser.until("dialog", f"of run {run}")
    assert "The form's settings are the same." in browser.text("dialog")
    browser.press("Resume", "dialog")
    browser.until(".toast.error", "Removed epoch1/tmp of ")
    browser.until(".status .pill", "Running", 60)
    again = the_run(real)
    assert again != run and browser.text("#run-title") == again
    wait_until(lambda: shown_step(browser) > 0 and points(browser) > 0, "steps go on", 90)
    first = steps_in(real.log_text(again))[0]
    assert first == int(real.json("show", run)["checkpoint"].removeprefix("global_step")) + 1
    browser.until(".plot .earlier")
    return again


def stop(browser: Browser, run: str) -> str:
    """Saves and stops by the page. The checkpoint's name."""
    until_moving(browser)
    browser.press("Stop…")
    said = browser.until("dialog", "The last checkpoint is global_step")
    assert "Stopping without saving loses " in said
    assert browser.run("return document.activeElement.textContent") == "Save and stop"
    browser.press("Save and stop", "dialog")
    browser.until(".status .pill", "Stopped", 60)
    assert processes_of_run(run) == []
    checkpoint = browser.fact("checkpoint")
    assert checkpoint.startswith("global_step")
    return checkpoint


def history(browser: Browser, run: str, again: str, saved: str) -> None:
    browser.press("Runs", "nav")
    browser.until(f'[data-run="{again}"]', "Stopped")
    rows = browser.find(".runs tbody tr")
    assert [row.get_attribute("data-run") for row in rows] == [again, run]
    assert saved in rows[0].text and f"goes on from {run}" in rows[0].text
    assert "Failed" in rows[1].text and "SIGKILL" in rows[1].text
    steps = browser.text(f'[data-run="{again}"] [data-cell="steps"]').replace("Steps", "").strip()
    assert int(steps.replace(",", "")) >= int(saved.removeprefix("global_step"))
    browser.press(run, ".runs")
    browser.until("#run-title", run)
    browser.until(".failure", "SIGKILL")
    browser.press("Settings and record")
    browser.until(".config pre", "output_dir")
