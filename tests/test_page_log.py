"""The page's log and curve in use: followed, paused, selected in, copied, searched; and odd runs."""

from itertools import count
from pathlib import Path
from typing import Any

import pytest
from selenium.webdriver.common.keys import Keys

from tests.browser import Browser
from tests.gpu_machine import Machine, line
from tests.harness import Workspace
from tests.helpers import wait_until
from tests.web import Shim

pytestmark = pytest.mark.timeout(90)

RATE = 200
SCROLL = "document.querySelector('.log .view')"
AT_END = f"return {SCROLL}.scrollHeight - {SCROLL}.scrollTop - {SCROLL}.clientHeight < 30"


def open_run(browser: Browser, workspace: Workspace, behaviour: str, **script: Any) -> str:
    """Starts the run and opens the page on it."""
    workspace.start_daemon()
    shim = Shim(workspace)
    run = workspace.start(workspace.config(behaviour, until=str(workspace.go), **script))
    browser.open(f"{shim.base}/dpipe/")
    browser.until(".log .line")
    return run


def newest(browser: Browser) -> int:
    """The number of the last paced line in the window."""
    numbers = [line.split()[1] for line in browser.log_lines() if line.endswith("paced trainer")]
    return int(numbers[-1]) if numbers else -1


def missed(browser: Browser) -> int:
    """How many lines the page says to have come while it was paused."""
    return int(browser.text(".log .below").split()[0].replace(",", ""))


def until_newer(browser: Browser, by: int = RATE // 4) -> None:
    before = newest(browser)
    wait_until(lambda: newest(browser) >= before + by, f"lines after {before}")


def in_order(browser: Browser) -> None:
    """No line of the window is missing or there twice."""
    numbers = [int(line.split()[1]) for line in browser.log_lines() if line.endswith("paced trainer")]
    assert numbers == list(range(numbers[0], numbers[0] + len(numbers)))


def test_the_log_is_followed_paused_and_followed_again(workspace: Workspace, browser: Browser) -> None:
    open_run(browser, workspace, "paced", rate=RATE, lines=100_000)
    wait_until(lambda: newest(browser) > 100, "more lines than fit")
    until_newer(browser)
    assert browser.run(AT_END)
    view = browser.find(".log .view")[0]

    view.send_keys(Keys.PAGE_UP)
    browser.until(".log .below", "new line")
    tops: list[float] = [0]

    def rests() -> bool:
        """Scrolling by a key is an animation."""
        tops.append(browser.run(f"return {SCROLL}.scrollTop"))
        return tops[-1] == tops[-2]

    wait_until(rests, "it has scrolled", every=0.1)
    top = tops[-1]
    wait_until(lambda: missed(browser) > RATE // 4, "new lines are counted")
    assert browser.run(f"return {SCROLL}.scrollTop") == top, "what is in view stays where it is"

    browser.run(f"{SCROLL}.scrollTop = {SCROLL}.scrollHeight")
    wait_until(lambda: browser.text(".log .below") == "", "who scrolls to the end follows again")
    until_newer(browser)
    assert browser.run(AT_END)

    view.send_keys(Keys.HOME)
    browser.until(".log .below")
    wait_until(rests, "it has scrolled", every=0.1)
    browser.press("End", ".log")
    until_newer(browser)
    in_order(browser)

    select = (
        "const lines = [...document.querySelectorAll('.log .line')].slice(-12);"
        "getSelection().setBaseAndExtent(lines[0].firstChild, 0, lines[2].firstChild, 4);"
        "return String(getSelection())"
    )
    selected = browser.run(select)
    browser.until(".log .below", "new line")
    wait_until(lambda: missed(browser) > RATE, "many come")
    assert browser.run("return String(getSelection())") == selected != ""
    assert browser.run("return getSelection().anchorNode.isConnected")
    browser.press("Copy", ".log")
    browser.until(".log .tools [role=status]", "3 lines copied")
    browser.run("getSelection().removeAllRanges()")
    browser.press("Beginning", ".log")
    wait_until(lambda: "line 0 of a paced trainer" in browser.log_lines(), "its beginning")
    in_order(browser)
    assert browser.console() == []


def slow_network(browser: Browser, milliseconds: float) -> None:
    browser.driver.execute_cdp_cmd("Network.enable", {})
    asked = {"offline": False, "latency": milliseconds, "downloadThroughput": -1, "uploadThroughput": -1}
    browser.driver.execute_cdp_cmd("Network.emulateNetworkConditions", asked)


COUNTED = """
    const whole = fetch;
    window.asked = 0;
    window.fetch = (...given) => {
        const answer = whole(...given);
        if (String(given[0]).includes("/lines")) {
            window.asked += 1;
            if (window.leaving) location.hash = window.leaving;
            window.leaving = null;
        }
        return answer;
    };"""
"""Has the page count its requests for lines, and leave for `leaving` while the next one is on its way."""


def asked_meanwhile(browser: Browser, milliseconds: int = 2000) -> int:
    """How many requests for lines the page makes in that time."""
    browser.run(
        "window.more = null; const before = window.asked;"
        "setTimeout(() => (window.more = window.asked - before), arguments[0])",
        milliseconds,
    )
    wait_until(lambda: browser.run("return window.more !== null"), "the time is over")
    more: int = browser.run("return window.more")
    return more


def test_a_log_that_is_truncated_is_followed_from_its_new_beginning(
    workspace: Workspace, browser: Browser
) -> None:
    texts = [f"line {number} of the old log" for number in range(200)]
    run = open_run(browser, workspace, "says", texts=texts, quiet_after=0)
    wait_until(lambda: texts[-1] in browser.log_lines(), "the old log's end")
    browser.run(COUNTED)
    # As logrotate's copytruncate does; the training prints on, at first less than there was.
    with (workspace.runs_dir / run / "output.log").open("r+b") as log:
        log.truncate(0)
        log.write(b"a line of the new log\nlast words")
    wait_until(lambda: browser.log_lines() == ["a line of the new log"], "the new log alone")
    browser.until(".log .now", "last words")
    assert asked_meanwhile(browser) == 0, "nothing more is there to be read"
    with (workspace.runs_dir / run / "output.log").open("ab") as log:
        log.write(b" and\n" + b"".join(b"line %d\n" % number for number in range(1200)))
    wait_until(lambda: browser.log_lines()[-1:] == ["line 1199"], "what follows")
    assert len(browser.log_lines()) == 1202 and browser.log_lines()[1] == "last words and"
    assert browser.console() == []


def test_a_log_opens_over_a_slow_link_whatever_is_told_meanwhile(
    workspace: Workspace, browser: Browser, library: Path
) -> None:
    machine = Machine(workspace, library)
    machine.says("ok", line(1, 0))
    machine.start(EVERY_IDLE="0.05", EVERY_ACTIVE="0.05")
    # A log that grows is read on from where it is; this one has to be opened.
    config = workspace.config("says", texts=["all there is"], until=str(workspace.go), quiet_after=0)
    run = workspace.start(config)
    browser.open(f"{Shim(workspace).base}/dpipe/#/runs")
    browser.until(".runs tbody tr")
    wait_until(lambda: "all there is" in workspace.log_text(run), "the log")
    slow_network(browser, 1500)
    browser.run("location.hash = arguments[0]", f"#/runs/{run}")
    used = count(1)

    def opened() -> bool:
        """The GPU holds something else each time, which is told."""
        machine.says("ok", line(next(used) % 70, 0))
        return browser.log_lines() != []

    wait_until(opened, "the log is opened", every=0.2)
    slow_network(browser, 0)
    assert browser.console() == []


def test_a_log_that_is_left_asks_for_nothing_more(workspace: Workspace, browser: Browser) -> None:
    open_run(browser, workspace, "paced", rate=RATE, lines=100_000)
    until_newer(browser)
    slow_network(browser, 300)
    browser.run(COUNTED)
    browser.run("window.leaving = '#/runs'")
    browser.until(".runs tbody tr")
    assert asked_meanwhile(browser) == 0
    slow_network(browser, 0)
    assert browser.console() == []


def test_a_search_changed_while_it_runs_counts_right(workspace: Workspace, browser: Browser) -> None:
    workspace.start_daemon()
    workspace.until_ended(workspace.start(workspace.config("chatty", lines=2000, steps=1)))
    browser.open(f"{Shim(workspace).base}/dpipe/")
    browser.until(".log .line")
    field = browser.find("#log-search")[0]
    slow_network(browser, 300)
    field.send_keys("line 1")
    browser.until(".search output", "Searching")
    field.send_keys("23", Keys.ENTER, Keys.ENTER)
    # 123 and 1230 to 1239. The window has the last 500 lines, so the last one comes first, then the first.
    browser.until(".search output", "1 of 11")
    browser.until(".log .here", "line 123 of")
    slow_network(browser, 0)
    field.send_keys(Keys.CONTROL, "a", Keys.NULL, "no such line")
    browser.until(".search output", "No match")
    highlighted = "return [...(CSS.highlights.get('found') ?? [])].length"
    wait_until(lambda: browser.run(highlighted) == 0, "nothing is highlighted any more")


def test_a_bar_is_live_and_the_last_words_stay(workspace: Workspace, browser: Browser) -> None:
    workspace.start_daemon()
    shim = Shim(workspace)
    workspace.start(workspace.config("bar", go=str(workspace.go)))
    browser.open(f"{shim.base}/dpipe/")
    browser.until(".log .now", "100%|█████| 5/5")
    workspace.go.touch()
    browser.until(".status .pill", "Completed")
    wait_until(lambda: "TRAINING COMPLETE!" in browser.log_lines(), "the rest of the log")
    assert browser.text(".log .now") == ""
    run = workspace.start(workspace.config("unfinished"))
    browser.until("#run-title", run)
    browser.until(".status .pill", "Failed")
    browser.until(".log .now", "last words")
    browser.driver.refresh()
    browser.until(".log .now", "last words")
    assert browser.console() == []


def test_losses_that_can_not_be_drawn_are_said_to_be(workspace: Workspace, browser: Browser) -> None:
    texts = ["steps: 1 loss: nan iter time (s): 1 samples/sec: 1"]
    open_run(browser, workspace, "says", texts=texts, quiet_after=0)
    browser.until(".chart .quiet", "the training has diverged")
    browser.until(".status .warning", "the loss is nan at step 1")
    workspace.json("stop", "--now")
    texts = ["steps: 1 loss: 0.0 iter time (s): 1 samples/sec: 1"]
    run = workspace.start(workspace.config("says", until=str(workspace.go), texts=texts, quiet_after=0))
    browser.until("#run-title", run)
    browser.until(".plot .dot")
    browser.run("document.querySelectorAll('.chart input[type=checkbox]')[0].click()")
    browser.until(".chart .quiet", "nothing to show on a log scale")
    assert browser.console() == []


def test_an_address_that_is_none_leads_to_the_page(shim: Shim, browser: Browser) -> None:
    for hash_, title in (
        ("#/runs/%E0%A4%A", "Runs"),
        ("#/zzz", "Nothing has run yet"),
        ("#/runs/..", "Runs"),
        ("#/new/%zz", "New training"),
        ("#nonsense", "Nothing has run yet"),
    ):
        browser.open("about:blank")
        browser.open(f"{shim.base}/dpipe/{hash_}")
        browser.until("main h1", title)
    browser.open(f"{shim.base}/dpipe/#/runs/20260101-000000-0000000")
    browser.until("main .error", "there is no run")
    assert all("status of 404" in line for line in browser.console())
