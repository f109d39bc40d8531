"""The page over connections that die without a word: it asks again, or says that nobody answers."""

import re
from collections.abc import Callable, Iterator

import pytest

from dpipectl.client import MARGIN, TIMEOUT
from dpipectl.http.api import SERIES_WAIT
from dpipectl.http.asking import LAUNCH_WAIT
from dpipectl.http.pages import FOLDER
from tests.browser import Browser
from tests.harness import Workspace
from tests.helpers import wait_until
from tests.relay import Relay
from tests.web import Shim

pytestmark = pytest.mark.timeout(90)

HASTE = (
    "const whole = AbortSignal.timeout.bind(AbortSignal); AbortSignal.timeout = (time) => whole(time / 50)"
)
"""Nobody wants to wait for minutes here."""


@pytest.fixture
def relay(workspace: Workspace) -> Iterator[Relay]:
    """On the way to a shim before a running daemon."""
    workspace.start_daemon()
    made = Relay(Shim(workspace).port)
    yield made
    made.close()


def lose(relay: Relay, request: bytes, passes: int, sent: Callable[[], None] = lambda: None) -> None:
    """Has the connection die on which such a request comes next; `sent` has it sent."""
    before = relay.lost
    relay.passes, relay.loses = passes, request
    sent()
    wait_until(lambda: relay.lost > before, f"a request for {request!r}")
    relay.loses = b""


def last_step(browser: Browser) -> int:
    """How far the curve has come."""
    return int(browser.find(".chart .frame")[0].get_attribute("aria-valuemax") or 0)


def test_a_connection_that_dies_without_a_word_stops_neither_log_nor_curve(
    workspace: Workspace, relay: Relay, browser: Browser
) -> None:
    workspace.start(workspace.config("well_behaved", until=str(workspace.go)))
    browser.open(f"http://127.0.0.1:{relay.port}/dpipe/")
    browser.until(".log .line")
    browser.until(".plot .smooth")
    browser.run(HASTE)
    # At once, and in the midst of the answer.
    for passes in (0, 400):
        lose(relay, b"/lines?", passes)
        before = browser.log_lines()[-1]
        wait_until(lambda: browser.log_lines()[-1] != before, "the log goes on")  # noqa: B023
    lose(relay, b"/series?", 0)
    reached = last_step(browser)
    wait_until(lambda: last_step(browser) > reached, "the curve goes on")
    lose(relay, b"/train/save?", 0, lambda: browser.press("Save now"))
    browser.until(".toast.error", "The server does not answer.")
    assert browser.console() == []


def test_the_page_waits_longer_than_the_server() -> None:
    """Or it would take an answer that is on its way for none."""
    text = (FOLDER / "api.js").read_text()
    table = text.partition("const LIMITS = {")[2].partition("}")[0]
    limits = {
        name: int(time.replace("_", "")) / 1000 for name, time in re.findall(r"(\w+): ([0-9_]+)", table)
    }
    others = int(text.partition("const LIMIT = ")[2].partition(";")[0].replace("_", "")) / 1000
    question = 2 * TIMEOUT
    launch = LAUNCH_WAIT + MARGIN
    assert limits.keys() == {"lines", "series", "start", "resume", "check"}
    assert question < limits["lines"] < others
    # The status, the stop, and how the run stands then.
    assert others > question + TIMEOUT + question
    assert limits["start"] > launch and limits["resume"] > launch and limits["check"] > 2 * launch
    # Asked twice it takes longer, but a daemon that went away has a part of it read already.
    assert limits["series"] > SERIES_WAIT + MARGIN
    saving = int(re.findall(r"SAVE_WAIT = (\d+)", (FOLDER / "actions.js").read_text())[0])
    assert others > saving + MARGIN
