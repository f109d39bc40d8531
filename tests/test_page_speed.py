"""The page's budget, and that a long log and a long curve are handled without lag."""

from statistics import median
from typing import Any

import pytest

from tests.browser import Browser
from tests.harness import Workspace
from tests.helpers import wait_until
from tests.web import Shim

pytestmark = [pytest.mark.alone, pytest.mark.timeout(120)]

PAGE_BYTES = 150_000
FIRST_RENDER = 500.0
LAG = 200.0
"""Milliseconds that the page may not answer for, at most. From about there on a person notices."""
LINES = 1_000_000
STEPS = 100_000
DRAWN = 4000
"""Lines that the document may hold."""


def watch_for_lag(browser: Browser) -> None:
    """Has the browser note every task that kept the page from answering for more than 50 ms."""
    browser.run(
        "window.tasks = []; new PerformanceObserver((list) => window.tasks.push(...list.getEntries()"
        ".map((entry) => entry.duration))).observe({type: 'longtask'})"
    )
    # A task that is long, to see that it is noted.
    browser.run("setTimeout(() => { const end = performance.now() + 120; while (performance.now() < end); })")
    wait_until(lambda: longest_task(browser) >= 100, "a long task is noted")
    browser.run("window.tasks = []")


def longest_task(browser: Browser) -> float:
    longest: float = browser.run("return Math.max(0, ...window.tasks)")
    return longest


def lines(browser: Browser) -> int:
    number: int = browser.run("return document.querySelectorAll('.log .lines .line').length")
    return number


MEASURED = """
    const of = (type) => performance.getEntriesByType(type);
    const entries = [...of('navigation'), ...of('resource')];
    const files = entries.filter((entry) => !entry.name.includes('/events'));
    const of_name = (name) => performance.getEntriesByName(name)[0]?.startTime;
    const times = [of_name('first-contentful-paint'), of_name('told')];
    const foreign = entries.filter((entry) => !entry.name.startsWith(location.origin)).length;
    return [files.reduce((sum, entry) => sum + entry.decodedBodySize, 0),
            times.includes(undefined) ? null : Math.max(...times), foreign]"""
"""Bytes of all that was fetched, when it was painted and the state was told, requests to elsewhere."""


TRANSFERRED = "return performance.getEntriesByType('resource').reduce((sum, e) => sum + e.encodedBodySize, 0)"


def test_the_page_is_small_and_shown_at_once(dpiped: Workspace, browser: Browser) -> None:
    shim = Shim(dpiped)
    times = []
    for _ in range(5):
        browser.open("about:blank")
        browser.open(f"{shim.base}/dpipe/")
        browser.until("main h1", "Nothing has run yet")
        wait_until(lambda: browser.run(MEASURED)[1], "it is painted")
        weight, painted, foreign = browser.run(MEASURED)
        assert 20_000 < weight < PAGE_BYTES and foreign == 0
        assert browser.run(TRANSFERRED) < PAGE_BYTES / 2
        times.append(painted)
    assert median(times) < FIRST_RENDER, times
    browser.press("New training", "nav")
    browser.until('[data-group="monitoring"]')
    assert weight < browser.run(MEASURED)[0] < PAGE_BYTES, "with the form's fields and defaults"


def test_a_log_of_a_million_lines_live_and_afterwards(workspace: Workspace, browser: Browser) -> None:
    workspace.start_daemon()
    shim = Shim(workspace)
    browser.open(f"{shim.base}/dpipe/")
    browser.until("main h1", "Nothing has run yet")
    watch_for_lag(browser)
    run = workspace.start(workspace.config("chatty", lines=LINES, until=str(workspace.go)))
    wait_until(
        lambda: browser.log_lines()[-2:-1] != [] and "steps: " in browser.log_lines()[-1], "its end", 60
    )
    assert lines(browser) <= DRAWN
    assert longest_task(browser) < LAG

    browser.press("Beginning", ".log")
    wait_until(lambda: "line 0 of a chatty trainer" in browser.log_lines()[:10], "its beginning")
    before = lines(browser)
    browser.run("const view = document.querySelector('.log .view'); view.scrollTop = view.scrollHeight")
    wait_until(lambda: lines(browser) > before, "further lines when scrolled down")
    window = browser.log_lines()
    assert window[10:] == [f"line {10 + at - 3} of a chatty trainer" for at in range(len(window) - 10)]

    browser.find("#log-search")[0].send_keys("LINE 500000 of")
    wait_until(lambda: browser.text(".search output") == "1 match", "the match is counted", 30)
    browser.press("↓", ".search")
    assert browser.until(".log .here", "line 500000 of a chatty trainer")
    highlighted = "return [...(CSS.highlights.get('found') ?? [])].map(String)"
    wait_until(lambda: browser.run(highlighted) == ["line 500000 of"], "the match is highlighted")
    around = browser.log_lines()
    at = around.index("line 500000 of a chatty trainer")
    assert around[at - 3 : at + 4] == [f"line {n} of a chatty trainer" for n in range(499_997, 500_004)]
    assert lines(browser) <= DRAWN
    browser.press("End", ".log")
    wait_until(lambda: "steps: " in browser.log_lines()[-1], "its end again")
    assert longest_task(browser) < LAG
    assert browser.console() == []
    workspace.json("stop", "--now")
    del run


def points(browser: Browser) -> list[Any]:
    drawn: str = browser.run("return document.querySelector('.plot .raw')?.getAttribute('d') ?? ''")
    return drawn.replace("M", "L").split("L")[1:]


def test_a_curve_of_a_hundred_thousand_steps(workspace: Workspace, browser: Browser) -> None:
    workspace.start_daemon()
    shim = Shim(workspace)
    config = workspace.config("curve", points=STEPS, parts=20, until=str(workspace.go))
    workspace.start(config)
    workspace.until_step(STEPS, deadline=60)
    browser.open(f"{shim.base}/dpipe/")
    browser.until(".plot .smooth")
    watch_for_lag(browser)
    wait_until(
        lambda: int(browser.find(".chart .frame")[0].get_attribute("aria-valuemax") or 0) >= STEPS,
        "all steps",
    )
    assert 400 <= len(points(browser)) <= 800
    assert len(browser.find(".plot .epoch")) == 20 and browser.find(".plot .band")
    before = points(browser)
    wait_until(lambda: points(browser) != before, "it goes on")
    for x in range(100, 700, 5):
        browser.run(
            "document.querySelector('.chart .frame').dispatchEvent("
            "new PointerEvent('pointermove', {clientX: arguments[0], clientY: 400, bubbles: true}))",
            x,
        )
    assert browser.text(".tip").startswith("Step ")
    browser.run("const box = document.querySelectorAll('.chart input[type=checkbox]')[0]; box.click()")
    smoothing = (
        "const range = document.querySelector('#smoothing'); range.value = arguments[0];"
        "range.dispatchEvent(new Event('input'))"
    )
    for weight in (0, 0.5, 0.9, 0.99):
        browser.run(smoothing, weight)
    assert longest_task(browser) < LAG
    assert browser.console() == []
