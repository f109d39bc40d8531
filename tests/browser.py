"""A real Chromium before a real shim, driven as a person uses it: by what is seen, clicked and typed.

Why: only a browser tells whether the page's modules load, its policy lets it work, its stream comes back, and
nothing is written to the console. Every wait is a `wait_until` with what was waited for.

Screenshots go to `.screenshots/` beside the checkout's other caches.
"""

import base64
import json
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from selenium.webdriver import Chrome, ChromeOptions, ChromeService
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webelement import WebElement

from tests.helpers import HERE, require, wait_until

SCREENSHOTS = HERE.parent / ".screenshots"
AXE = Path(sys.prefix) / "npm/node_modules/axe-core/axe.min.js"
FLAGS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
    "--disable-smooth-scrolling",
)
WIDE, NARROW = 1600, 380
HEIGHTS = {WIDE: 1000, NARROW: 800}
SERIOUS = ("serious", "critical")


class Browser:
    """One Chromium with a profile of its own."""

    def __init__(self) -> None:
        chromium = shutil.which("chromium") or shutil.which("google-chrome")
        driver = shutil.which("chromedriver")
        require(bool(chromium and driver), "chromium and chromedriver are not installed")
        self.profile = tempfile.mkdtemp(prefix="dpiped-chromium-")
        options = ChromeOptions()
        options.binary_location = str(chromium)
        for flag in (*FLAGS, f"--user-data-dir={self.profile}"):
            options.add_argument(flag)
        options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
        options.add_experimental_option(
            "prefs", {"download.default_directory": self.profile, "download.prompt_for_download": False}
        )
        self.driver = Chrome(options=options, service=ChromeService(str(driver)))
        self.driver.set_page_load_timeout(30)
        self.driver.set_script_timeout(30)
        self.size(WIDE)

    def close(self) -> None:
        self.driver.quit()
        shutil.rmtree(self.profile, ignore_errors=True)

    # --- what it looks like

    def size(self, width: int) -> None:
        """The width of the page, in CSS pixels. A window can't be made as narrow as a phone."""
        phone = width == NARROW
        metrics = {"width": width, "height": HEIGHTS[width], "deviceScaleFactor": 1, "mobile": phone}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)

    def theme(self, name: str) -> None:
        """What the system would tell: light or dark."""
        features = [
            {"name": "prefers-color-scheme", "value": name},
            {"name": "prefers-reduced-motion", "value": "reduce"},
        ]
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})

    def picture(self, name: str) -> Path:
        """A screenshot of the whole page."""
        SCREENSHOTS.mkdir(exist_ok=True)
        asked = {"format": "png", "captureBeyondViewport": True}
        data = self.driver.execute_cdp_cmd("Page.captureScreenshot", asked)["data"]
        path = SCREENSHOTS / f"{name}.png"
        path.write_bytes(base64.b64decode(data))
        return path

    # --- what is there

    def open(self, url: str) -> None:
        self.driver.get(url)

    def run(self, script: str, *arguments: Any) -> Any:
        return self.driver.execute_script(script, *arguments)

    def find(self, selector: str) -> list[WebElement]:
        return self.driver.find_elements(By.CSS_SELECTOR, selector)

    def text(self, selector: str) -> str:
        """The visible text of the first match; "" for none."""
        script = (
            "const found = document.querySelector(arguments[0]);"
            "return found?.checkVisibility() ? found.innerText : ''"
        )
        said: str = self.run(script, selector)
        return said

    def fact(self, name: str) -> str:
        """One of the facts on a run's status."""
        return self.text(f'[data-fact="{name}"]')

    def named(self, name: str, within: str = "") -> WebElement:
        """The visible button or link of that name."""
        script = (
            "return [...document.querySelectorAll(arguments[1])].find("
            "(each) => each.innerText.trim() === arguments[0] && each.checkVisibility()) ?? null"
        )
        where = f"{within} button, {within} a, {within} summary"
        found: WebElement = wait_until(lambda: self.run(script, name, where), f"the button {name!r}")
        return found

    def press(self, name: str, within: str = "") -> None:
        self.named(name, within).click()

    def until(self, selector: str, text: str = "", deadline: float = 20) -> str:
        """Waits until the first match is seen and contains the text; gives its whole text."""
        script = (
            "const found = document.querySelector(arguments[0]);"
            "return found?.checkVisibility() && found.textContent.includes(arguments[1])"
            " ? found.innerText || 'shown' : ''"
        )
        said: str = wait_until(
            lambda: self.run(script, selector, text), f"{selector} with {text!r}", deadline
        )
        return said

    def fill(self, field: str, value: object) -> None:
        """Puts a value into a field of the form, as typing does."""
        element = self.find(f"#field-{field}")[0]
        if element.tag_name == "select" or element.get_attribute("type") == "checkbox":
            script = (
                "const [e, v] = arguments; e.type === 'checkbox' ? e.checked = v : e.value = v;"
                "e.dispatchEvent(new Event('change', {bubbles: true}))"
            )
            self.run(script, element, value)
            return
        script = "const [e, v] = arguments; e.value = v; e.dispatchEvent(new Event('input', {bubbles: true}))"
        self.run(script, element, str(value))

    def log_lines(self) -> list[str]:
        """The lines that the log's window has."""
        lines: list[str] = self.run(
            "return [...document.querySelectorAll('.log .lines .line')].map((line) => line.textContent)"
        )
        return lines

    # --- what must not be there

    def console(self) -> list[str]:
        """What was written to the console since it was asked last, warnings and errors only."""
        entries = self.driver.get_log("browser")  # type: ignore[no-untyped-call]
        return [entry["message"] for entry in entries if entry["level"] in ("SEVERE", "WARNING")]

    def violations(self) -> list[str]:
        """What axe-core finds that is serious or critical."""
        require(AXE.is_file(), "axe-core is not installed: make test installs it where there is npm")
        # By the debugger, as the page's policy lets nobody else put a script into it.
        program = {"expression": AXE.read_text(), "returnByValue": True}
        self.driver.execute_cdp_cmd("Runtime.evaluate", program)
        script = "axe.run(document, {resultTypes: ['violations']}).then(r => JSON.stringify(r.violations))"
        asked = {"expression": script, "awaitPromise": True, "returnByValue": True}
        answer = self.driver.execute_cdp_cmd("Runtime.evaluate", asked)
        assert "exceptionDetails" not in answer, answer
        found = json.loads(answer["result"]["value"])
        return list(_described(found))


def _described(found: list[dict[str, Any]]) -> Iterator[str]:
    for each in found:
        if each["impact"] in SERIOUS:
            for node in each["nodes"]:
                yield f"{each['id']}: {node['html'][:200]} {node['failureSummary']}"
