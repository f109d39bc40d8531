"""The served document against the server: schemathesis asks for everything that the document allows, and for
what it does not allow, and holds every answer to it.
"""

import json
import os
import re
import subprocess

import pytest

from tests.harness import BIN, Workspace
from tests.helpers import HERE, require
from tests.web import Shim

CASES = 2000
TOKEN = "a-token-of-the-schema-test"


@pytest.mark.timeout(180)
def test_no_5xx_and_no_undocumented_answer(workspace: Workspace) -> None:
    require((BIN / "schemathesis").exists(), "schemathesis is not installed")
    # A daemon that trains: some of the forms are started.
    workspace.env["SCRIPT"] = json.dumps({"steps": 20})
    workspace.start_daemon()
    run = workspace.start(workspace.config(steps=3))
    workspace.until_ended(run)
    shim = Shim(workspace, DIFFPIPE_HTTP_TOKEN=TOKEN)
    command = [str(BIN / "schemathesis"), "--config-file", str(HERE / "schemathesis.toml"), "run"]
    command += [f"{shim.base}/dpipe/openapi.json", "--checks", "all", "--max-examples", "20"]
    command += ["--generation-deterministic", "--no-color"]
    done = subprocess.run(
        command,
        env=os.environ | {"SHIM_TOKEN": TOKEN},
        cwd=workspace.root,
        capture_output=True,
        text=True,
        timeout=170,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-1000:] + shim.log()
    generated = re.search(r"(\d+) generated", done.stdout)
    assert generated is not None and int(generated[1]) >= CASES, done.stdout[-1000:]
    assert "Tested: 25" in done.stdout and "Traceback" not in shim.log() + workspace.daemon_log()
    print(done.stdout[-400:])
