"""Who may ask, and for how much: address, origin, token, sizes, strange paths."""

import json
import os
import socket
import stat
import subprocess
import time
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dpipectl.http import guard
from tests.harness import BIN, Workspace
from tests.helpers import wait_until
from tests.web import MODELS, Shim, read

TOKEN = "correct-horse-battery-staple"


@pytest.fixture(scope="module")
def open_shim() -> Any:
    """A shim on 127.0.0.1 without a token."""
    workspace = Workspace()
    workspace.start_daemon()
    yield Shim(workspace)
    workspace.close()


@pytest.fixture(scope="module")
def locked_shim() -> Any:
    """A shim with a token."""
    workspace = Workspace()
    workspace.start_daemon()
    yield Shim(workspace, DIFFPIPE_HTTP_TOKEN=TOKEN, DIFFPIPE_HTTP_HOSTS="gpu.example.org, other.example.org")
    workspace.close()


def refused_start(workspace: Workspace, *words: str, **variables: str) -> Any:
    """The error with which `serve` refuses to begin."""
    done = subprocess.run(
        [str(BIN / "dpipectl"), "--json", "serve", *words],
        env=workspace.env | variables,
        capture_output=True,
        text=True,
        timeout=20,
        check=False,
    )
    assert done.returncode == 5, done.stderr
    return json.loads(done.stdout)["error"]


# --- origin and host


@pytest.mark.parametrize(
    "headers",
    [
        {"origin": "https://evil.example"},
        {"origin": "null"},
        {"origin": "http://localhost:1"},
        {"origin": "http://localhost"},
        {"sec-fetch-site": "cross-site"},
        {"sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate"},
        {"sec-fetch-site": "same-site"},
        {"origin": "file://"},
    ],
)
def test_a_post_from_another_sites_page_is_refused(open_shim: Shim, headers: dict[str, str]) -> None:
    for path in ("/train/start", "/train/stop", "/train/save", "/login", "/train/validate"):
        status, found = read(open_shim.client.post(path, headers=headers))
        assert status == 403 and found == {"detail": guard.WRONG_ORIGIN}
    # A simple form of another site, which needs no preflight.
    plain = {"content-type": "text/plain", **headers}
    assert read(open_shim.client.post("/train/start", content="{}", headers=plain))[0] == 403
    assert open_shim.workspace.json("runs") == []


def test_a_post_of_our_own_page_or_of_no_page_is_not(open_shim: Shim) -> None:
    own = {"origin": open_shim.base, "sec-fetch-site": "same-origin"}
    assert read(open_shim.client.post("/train/stop", headers=own))[0] == 200
    assert read(open_shim.client.post("/train/stop", headers={"sec-fetch-site": "none"}))[0] == 200
    assert read(open_shim.client.post("/train/stop"))[0] == 200


def test_what_another_sites_page_includes_is_refused_and_its_links_are_not(open_shim: Shim) -> None:
    included = {"sec-fetch-site": "cross-site", "sec-fetch-mode": "no-cors"}
    frame = {"sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate", "sec-fetch-dest": "iframe"}
    assert read(open_shim.client.get("/status", headers=frame))[0] == 403
    for path in ("/status", "/events", "/runs/last/log"):
        assert read(open_shim.client.get(path, headers=included))[0] == 403
    link = {"sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate"}
    assert read(open_shim.client.get("/status", headers=link))[0] == 200


def test_another_port_of_the_same_address_is_another_site(workspace: Workspace) -> None:
    workspace.start_daemon()
    shim = Shim(workspace, DIFFPIPE_HTTP_HOST="localhost")
    for origin in ("http://localhost:8888", "http://127.0.0.1:8888", "http://localhost"):
        assert read(shim.client.post("/train/stop", headers={"origin": origin}))[0] == 403


def test_a_proxy_may_change_the_host(locked_shim: Shim) -> None:
    behind = {"origin": "https://gpu.example.org", "authorization": f"Bearer {TOKEN}"}
    assert read(locked_shim.client.post("/train/stop", headers=behind))[0] == 200
    evil = behind | {"origin": "https://evil.example.org"}
    assert read(locked_shim.client.post("/train/stop", headers=evil))[0] == 403
    seen = evil | {"origin": "https://pod.example.net", "sec-fetch-site": "same-origin"}
    assert read(locked_shim.client.post("/train/stop", headers=seen))[0] == 200


@pytest.mark.parametrize(
    ("host", "ours"),
    [
        ("localhost", True),
        ("LOCALHOST:7878", True),
        ("127.0.0.1:1", True),
        ("[::1]:7878", True),
        ("192.0.2.7", True),
        ("evil.example", False),
        ("evil.example:7878", False),
        ("localhost.evil.example", False),
        ("127.0.0.1.evil.example", False),
        ("gpu.example.org", False),
        ("", False),
        ("[evil]", False),
    ],
)
def test_requests_to_another_name_are_refused(open_shim: Shim, host: str, ours: bool) -> None:
    status, found = read(open_shim.client.get("/status", headers={"host": host}))
    assert status == (200 if ours else 403) and (ours or found == {"detail": guard.WRONG_HOST})


def test_names_of_ones_own_are_told_by_a_setting(locked_shim: Shim) -> None:
    bearer = {"authorization": f"Bearer {TOKEN}"}
    for name, status in (("gpu.example.org:8443", 200), ("Other.Example.Org", 200), ("x.example.org", 403)):
        assert read(locked_shim.client.get("/status", headers={"host": name, **bearer}))[0] == status


# --- token and cookie


def test_without_the_token_nothing_but_health_and_login(locked_shim: Shim) -> None:
    asked: list[dict[str, str]] = [
        {},
        {"authorization": "Bearer wrong-wrong-wrong-wrong"},
        {"authorization": f"Basic {TOKEN}"},
        {"authorization": "Bearer"},
        {"authorization": f"Bearer {TOKEN}x"},
        {"cookie": f"{guard.COOKIE}={TOKEN}"},
        {"cookie": f"{guard.COOKIE}=1.2"},
        {"cookie": "; ;=;"},
    ]
    for headers in asked:
        for path in ("/status", "/train/logs", "/runs", "/metrics", "/events", "/openapi.json", "/nothing"):
            answer = locked_shim.client.get(path, headers=headers)
            assert answer.status_code == 401 and answer.headers["www-authenticate"] == "Bearer"
        assert read(locked_shim.client.post("/train/start", json={}, headers=headers))[0] == 401
    assert locked_shim.client.get("/health").status_code == 200
    assert locked_shim.client.get("/status", headers={"authorization": f"bearer {TOKEN}"}).status_code == 200


def test_logging_in_sets_a_cookie_that_no_script_reads(locked_shim: Shim) -> None:
    begun = time.monotonic()
    assert locked_shim.post("/login", {"token": "wrong"})[0] == 401
    assert time.monotonic() - begun > 0.4
    assert locked_shim.post("/login", {"token": None})[0] == 422
    with httpx.Client(base_url=f"{locked_shim.base}/dpipe", trust_env=False) as browser:
        answer = browser.post("/login", json={"token": TOKEN})
        assert answer.status_code == 204
        cookie = answer.headers["set-cookie"].lower()
        assert "httponly" in cookie and "samesite=strict" in cookie and "path=/" in cookie
        assert TOKEN not in cookie
        assert browser.get("/status").status_code == 200
        # Other programs on this host have cookies as well, and not all are well formed.
        name = guard.cookie_name(TOKEN)
        session = browser.cookies[name]
        for odd in ('theme={"a":"b"}', "flag", "path=/x", "k[a]=1", "x=\u00e9"):
            given = f"{odd}; {name}={session}".encode()
            assert (
                httpx.get(f"{locked_shim.base}/dpipe/status", headers=[(b"cookie", given)]).status_code == 200
            )
        # It is not the shim that remembers it.
        locked_shim.kill()
        locked_shim.start()
        assert browser.get("/status").status_code == 200
        assert browser.post("/train/stop", headers={"origin": "https://evil.example"}).status_code == 403
        assert browser.post("/logout").status_code == 204
        assert browser.get("/status").status_code == 401


def test_two_on_one_host_do_not_log_each_other_out(locked_shim: Shim) -> None:
    """A browser sends its cookies to every port of a host."""
    other = Shim(locked_shim.workspace, DIFFPIPE_HTTP_TOKEN=TOKEN[::-1])
    with httpx.Client(trust_env=False) as browser:
        for shim, token in ((locked_shim, TOKEN), (other, TOKEN[::-1])):
            assert browser.post(f"{shim.base}/dpipe/login", json={"token": token}).status_code == 204
        for shim in (locked_shim, other):
            assert browser.get(f"{shim.base}/dpipe/status").status_code == 200
        assert browser.post(f"{other.base}/dpipe/logout").status_code == 204
        assert browser.get(f"{other.base}/dpipe/status").status_code == 401
        assert browser.get(f"{locked_shim.base}/dpipe/status").status_code == 200


def test_a_session_is_of_its_token_and_has_an_end() -> None:
    made = guard.new_session(TOKEN, lambda: 1000.0)
    assert guard.is_session(made, TOKEN, lambda: 1000.0)
    assert guard.is_session(made, TOKEN, lambda: 1000.0 + guard.SESSION_SECONDS - 2)
    assert not guard.is_session(made, TOKEN, lambda: 1000.0 + guard.SESSION_SECONDS + 2)
    assert not guard.is_session(made, TOKEN, lambda: 900.0)
    assert not guard.is_session(made, TOKEN + "x", lambda: 1000.0)
    assert not guard.is_session("2000" + made.removeprefix("1000"), TOKEN, lambda: 2000.0)


@given(st.text(max_size=80))
def test_no_text_is_a_session(text: str) -> None:
    assert not guard.is_session(text, TOKEN, lambda: 1000.0)


# --- where it listens


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1"])
def test_an_address_that_others_reach_needs_a_token(workspace: Workspace, host: str) -> None:
    error = refused_start(workspace, "--host", host)
    assert error["field"] in ("DIFFPIPE_HTTP_TOKEN", "DIFFPIPE_HTTP_HOST"), error
    if host == "0.0.0.0":
        assert error["field"] == "DIFFPIPE_HTTP_TOKEN" and "a token is needed" in error["message"]
        assert refused_start(workspace, DIFFPIPE_HTTP_HOST=host)["field"] == "DIFFPIPE_HTTP_TOKEN"


def test_a_token_in_a_file_of_ones_own(workspace: Workspace) -> None:
    workspace.start_daemon()
    file = workspace.root / "token"
    file.write_text(f"{TOKEN}\n")
    file.chmod(0o644)
    error = refused_start(workspace, "--token-file", str(file))
    assert error["field"] == "--token-file" and "others may read" in error["message"]
    file.chmod(0o600)
    shim = Shim(workspace, DIFFPIPE_HTTP_TOKEN_FILE=str(file))
    assert shim.get("/status")[0] == 401
    assert shim.client.get("/status", headers={"authorization": f"Bearer {TOKEN}"}).status_code == 200
    assert TOKEN not in shim.log()
    assert TOKEN.encode() not in Path(f"/proc/{shim.process.pid}/cmdline").read_bytes()


@pytest.mark.parametrize(
    ("variable", "value", "says"),
    [
        ("DIFFPIPE_HTTP_TOKEN", "short", "at least 16"),
        ("DIFFPIPE_HTTP_TOKEN", "with spaces in it, which is no token", "without spaces"),
        ("DIFFPIPE_HTTP_TOKEN_FILE", "/no/such/file", "can't be read"),
        ("DIFFPIPE_HTTP_TOKEN_FILE", "relative", "an absolute path"),
        ("DIFFPIPE_HTTP_PORT", "0", "from 1 to 65535"),
        ("DIFFPIPE_HTTP_HOST", "no.such.name.invalid", "an address of this machine"),
        ("DIFFPIPE_HTTP_SOCKET", "/tmp/" + "x" * 120, "at most 107 bytes"),
        ("DIFFPIPE_HTTP_SOCKET", "/no/such/folder/s", "can't be used"),
    ],
)
def test_a_wrong_setting_names_itself(workspace: Workspace, variable: str, value: str, says: str) -> None:
    error = refused_start(workspace, **{variable: value})
    assert error["field"] == variable and says in error["message"]
    assert variable != "DIFFPIPE_HTTP_TOKEN" or value not in error["message"]


def test_a_port_that_is_taken_is_said(open_shim: Shim) -> None:
    error = refused_start(open_shim.workspace, "--port", str(open_shim.port))
    assert error["field"] == "DIFFPIPE_HTTP_PORT" and str(open_shim.port) in error["message"]
    assert refused_start(open_shim.workspace, "--port", "70000")["field"] == "--port"


def test_on_a_unix_socket_for_a_proxy(workspace: Workspace) -> None:
    workspace.start_daemon()
    path = workspace.root / "h.sock"
    command = [str(BIN / "dpipectl"), "serve", "--unix", str(path)]
    process = subprocess.Popen(command, env=workspace.env, stdout=subprocess.DEVNULL)
    workspace.started.append(process)
    wait_until(path.exists, "the socket")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    with httpx.Client(transport=httpx.HTTPTransport(uds=str(path)), base_url="http://localhost") as client:
        assert client.get("/dpipe/status").json()["state"] == "idle"
        assert client.get("http://evil.example/dpipe/status").status_code == 403
    assert refused_start(workspace, "--unix", str(path))["message"].endswith(
        f"another server listens on {path}"
    )
    process.kill()
    process.wait()
    # What a killed one has left is replaced; what is no socket is not.
    again = subprocess.Popen(command, env=workspace.env, stdout=subprocess.DEVNULL)
    workspace.started.append(again)
    wait_until(lambda: _connects(path), "the new socket")
    # One that ends leaves the socket of its successor alone.
    path.rename(workspace.root / "moved.sock")
    successor = subprocess.Popen(command, env=workspace.env, stdout=subprocess.DEVNULL)
    workspace.started.append(successor)
    wait_until(lambda: path.exists() and _connects(path), "the successor's socket")
    again.terminate()
    assert again.wait(20) == 0 and _connects(path)
    successor.terminate()
    assert successor.wait(20) == 0 and not path.exists()
    path.write_text("mine")
    assert "is no socket" in refused_start(workspace, "--unix", str(path))["message"]
    assert path.read_text() == "mine"


def _connects(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as probe:
        return probe.connect_ex(str(path)) == 0


# --- sizes and strange paths


@pytest.mark.parametrize("announced", [True, False])
def test_a_body_of_100_mb_is_refused_and_not_read(open_shim: Shim, announced: bool) -> None:
    size, chunk = 100 << 20, b"x" * (1 << 20)
    before = _memory(open_shim)
    with socket.create_connection(("127.0.0.1", open_shim.port), timeout=30) as connection:
        kind = f"content-length: {size}" if announced else "transfer-encoding: chunked"
        head = (
            f"POST /dpipe/train/start HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n{kind}"
        )
        connection.sendall(f"{head}\r\n\r\n".encode())
        sent = 0
        try:
            while sent < size:
                connection.sendall(chunk if announced else b"%x\r\n%b\r\n" % (len(chunk), chunk))
                sent += len(chunk)
        except OSError:
            # It has closed the connection, as it may.
            pass
        try:
            answer = connection.recv(4096)
        except OSError:
            answer = b""
    assert answer.startswith(b"HTTP/1.1 413") or sent < size // 2
    assert _memory(open_shim) - before < 16 << 20
    status, found = read(open_shim.client.post("/train/start", content=b" " * (513 << 10)))
    assert status == 413 and "larger than" in found["detail"]
    assert open_shim.get("/status")[0] == 200


def _memory(shim: Shim) -> int:
    fields = Path(f"/proc/{shim.process.pid}/statm").read_text().split()
    return int(fields[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.parametrize(
    "path",
    [
        "/runs/..%2f..%2fetc%2fpasswd",
        "/runs/%2e%2e/log",
        "/runs/..",
        "/runs/../../../etc/passwd/log",
        "/runs/%00/log",
        "/runs/a%00b",
        "/runs/" + "x" * 5000,
        "/runs/%ff%fe/log",
        "/runs/last%0d%0aset-cookie:%20x/log",
        "/runs/.lock/log",
        "/%2e%2e/%2e%2e/etc/passwd",
        "//etc/passwd",
    ],
)
def test_no_path_leads_out_of_the_runs(open_shim: Shim, path: str) -> None:
    with socket.create_connection(("127.0.0.1", open_shim.port), timeout=30) as connection:
        connection.sendall(
            f"GET /dpipe{path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n".encode()
        )
        answer = b"".join(iter(lambda: connection.recv(65536), b""))
    assert answer.split()[1] in (b"404", b"400"), answer
    assert b"root:" not in answer and b"set-cookie" not in answer


def test_a_link_in_the_runs_directory_is_no_run(open_shim: Shim) -> None:
    workspace = open_shim.workspace
    (workspace.runs_dir / "20200101-000000-000link").symlink_to("/etc")
    assert open_shim.get("/runs/20200101-000000-000link/lines")[0] == 404
    assert open_shim.get("/runs")[1]["runs"] == []


def test_no_error_names_a_path_of_the_server_or_holds_a_traceback(open_shim: Shim) -> None:
    root = str(open_shim.workspace.root)
    asked = [
        ("/train/start", {"json": open_shim.form(dataset_path="none")}),
        ("/train/start", {"json": open_shim.form(dataset_path="../x")}),
        ("/train/start", {"json": open_shim.form(resume_from_checkpoint=True, dataset_path="set")}),
        ("/train/validate", {"json": dict.fromkeys(MODELS, "../../x")}),
        ("/train/resume", {"json": {}}),
        ("/train/resume", {"json": {"run": "none"}}),
        ("/train/save", {}),
        ("/train/check", {"json": open_shim.form(dataset_path="none", output_dir="../x")}),
    ]
    for path, body in asked:
        answer = open_shim.client.post(path, **body)  # type: ignore[arg-type]
        text = answer.text
        sent = json.dumps(body)
        assert "Traceback" not in text and ".py" not in text
        if root not in sent:
            assert root not in text, text
        else:
            # What was sent may be repeated; nothing else.
            for word in text.replace('"', "'").split("'"):
                assert root not in word or word in sent, text
    for path in ("/runs/none", "/nothing", "/runs/none/log"):
        assert root not in open_shim.client.get(path).text
