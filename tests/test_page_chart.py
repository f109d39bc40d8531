"""What the page draws as a loss curve: what there was, on a scale of what is drawn."""

from collections.abc import Iterable
from typing import Any

import pytest

from tests.browser import Browser
from tests.harness import Workspace
from tests.helpers import wait_until
from tests.test_page_log import open_run
from tests.web import Shim

pytestmark = pytest.mark.timeout(90)


def printed(losses: Iterable[tuple[int, float]]) -> list[str]:
    """What train.py prints of these steps."""
    return [f"steps: {step} loss: {loss} iter time (s): 1 samples/sec: 1" for step, loss in losses]


def drawn(browser: Browser, name: str) -> str:
    """A line of the curve as its moves and lines, such as MLLM."""
    script = "return document.querySelector(arguments[0])?.getAttribute('d') ?? ''"
    return "".join(each for each in browser.run(script, f".plot .{name}") if each.isalpha())


def losses_beside(browser: Browser) -> list[float]:
    """What the scale has marks at."""
    marks = "return [...document.querySelectorAll('.plot .mark[text-anchor=end]')].map((e) => e.textContent)"
    return [float(each) for each in browser.run(marks)]


def resumed(workspace: Workspace) -> tuple[str, str]:
    """A run that went far beyond the checkpoint that the next one goes on from, and that next one."""
    losses = [(1, 0.1), (2, 0.2), (400, 900.0)]
    script: dict[str, Any] = {"until": str(workspace.go), "quiet_after": 0}
    first = workspace.start(workspace.config("says", texts=printed(losses), **script))
    workspace.until_step(400)
    workspace.json("stop", "--save")
    losses = [(3, 0.3), (4, 0.25)]
    config = workspace.config("says", "next", texts=printed(losses), **script)
    second: str = workspace.json("resume", first, "--config", str(config))["run"]
    return first, second


def test_earlier_runs_are_drawn_on_the_scale_of_what_is_drawn(workspace: Workspace, browser: Browser) -> None:
    workspace.start_daemon()
    shim = Shim(workspace)
    first, second = resumed(workspace)
    # Nobody answers about the earlier run at first.
    browser.driver.execute_cdp_cmd("Network.enable", {})
    browser.driver.execute_cdp_cmd("Network.setBlockedURLs", {"urls": [f"*{first}/series*"]})
    browser.open(f"{shim.base}/dpipe/")
    browser.until("#run-title", second)
    wait_until(lambda: drawn(browser, "raw") == "ML", "the curve")
    failed = (
        "return performance.getEntriesByType('resource').some("
        "(each) => each.responseStatus === 0 && each.name.includes(arguments[0]))"
    )
    wait_until(lambda: browser.run(failed, f"{first}/series"), "a request that failed")
    assert browser.find(".plot .earlier") == []
    browser.driver.execute_cdp_cmd("Network.setBlockedURLs", {"urls": []})
    wait_until(lambda: drawn(browser, "earlier") == "ML", "the earlier run, as far as this one has come")
    assert 0 < max(losses_beside(browser)) < 1
    assert browser.console() == []


def test_no_line_leads_across_steps_without_a_loss(workspace: Workspace, browser: Browser) -> None:
    nan = float("nan")
    losses = [0.5, 0.4, 0.3, nan, nan, 0.6, nan, 0.2, 0.1]
    open_run(browser, workspace, "says", texts=printed(enumerate(losses, 1)), quiet_after=0)
    wait_until(lambda: drawn(browser, "raw") == drawn(browser, "smooth") == "MLLMML", "three stretches")
    assert len(browser.find(".plot .dot")) == 1, "the one that is alone"
    assert browser.find(".plot .band") == []
    workspace.json("stop", "--now")

    losses = [nan if 800 < step <= 1200 else 1 / step for step in range(1, 2001)]
    config = workspace.config(
        "says", until=str(workspace.go), texts=printed(enumerate(losses, 1)), quiet_after=0
    )
    run = workspace.start(config)
    browser.until("#run-title", run)
    wait_until(lambda: len(browser.find(".plot .band")) == 2, "two stretches, each with its band")
    wait_until(lambda: drawn(browser, "raw").count("M") == 2, "and its line")
    # Without what is not above zero there is nothing to lead a line to, either.
    workspace.json("stop", "--now")
    config = workspace.config(
        "says", until=str(workspace.go), texts=printed(enumerate([1, 2, 0, 3, 4], 1)), quiet_after=0
    )
    run = workspace.start(config)
    browser.until("#run-title", run)
    wait_until(lambda: drawn(browser, "raw") == "MLLLL", "the curve")
    browser.run("document.querySelectorAll('.chart input[type=checkbox]')[0].click()")
    wait_until(lambda: drawn(browser, "raw") == "MLML", "the curve on a log scale")
    assert browser.console() == []
