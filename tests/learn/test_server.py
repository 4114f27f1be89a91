"""The server: what it answers, what it refuses, and that it stops."""

from __future__ import annotations

import http.client
import json
import signal
import socket

import pytest

pytest.importorskip("starlette", reason="the learn extra is not installed")
pytest.importorskip("httpx2", reason="httpx2, which starlette's test client uses, is not installed")

from starlette.testclient import TestClient

from lastlayer.learn import api
from lastlayer.learn.command import _listen, main
from lastlayer.learn.server import MAX_BODY, application

PORT = 4321
HOST = f"127.0.0.1:{PORT}"


@pytest.fixture
def client():
    return TestClient(application(PORT), base_url=f"http://{HOST}")


def test_the_page_and_its_files(client):
    for path, kind in [("/", "text/html"), ("/static/app.js", "text/javascript"), ("/static/style.css", "text/css")]:
        found = client.get(path)
        assert found.status_code == 200
        assert found.headers["content-type"].startswith(kind)
    for path in ("/static/nothing.js", "/static/../server.py", "/static/%2e%2e%2fserver.py", "/api", "/server.py"):
        assert client.get(path).status_code == 404


def test_every_file_that_the_page_names_is_there(client):
    import re

    names = set(re.findall(r'(?:src|href)="(/static/[^"]+)"', client.get("/").text))
    scripts = [name for name in names if name.endswith(".js")]
    while scripts:
        text = client.get(scripts.pop()).text
        found = {f"/static/{name}" for name in re.findall(r'from "\./([^"]+)"', text)}
        scripts += found - names
        names |= found
    assert len(names) >= 6
    for name in names:
        assert client.get(name).status_code == 200, name


@pytest.mark.parametrize("lesson", api.lessons(), ids=lambda lesson: lesson["slug"])
def test_an_answer_is_what_the_function_says(client, lesson):
    state = {field["name"]: field["default"] for field in lesson["fields"]}
    found = client.post(f"/api/lessons/{lesson['slug']}", json=state)
    assert found.status_code == 200
    assert found.json() == json.loads(json.dumps(api.answer(lesson["slug"], state)))


def test_all_lessons_are_described(client):
    assert client.get("/api/lessons").json() == json.loads(json.dumps(api.lessons()))


@pytest.mark.parametrize(
    ("body", "error"),
    [
        (b'{"logits": [1, "x", 2]}', "logits[1]: expected a number from −1000 to 1000, got 'x'"),
        (b'{"logits": [1, 2]}', "logits: expected 3 numbers, got a list of 2"),
        (b'{"temperature": 0}', "temperature: expected a number from 0.001 to 1000, got 0"),
        (b'{"temperature": NaN}', "temperature: expected a number from 0.001 to 1000, got 'nan'"),
        (b'{"temperature": 1e999}', "temperature: expected a number from 0.001 to 1000, got ∞"),
        (b'{"temperature": ' + b"9" * 400 + b"}", "temperature: expected a number from 0.001 to 1000, got "),
        (b'{"none": 1}', "'none' is no field of the lesson softmax, which has logits, temperature, constant"),
        (b"[1]", "expected an object of fields and values, got list"),
        (b"{", "expected JSON"),
        (b"\xff", "expected JSON"),
        (b"[" * 50_000, "expected JSON"),
    ],
)
def test_bad_input_is_told_in_one_line(client, body, error):
    found = client.post("/api/lessons/softmax", content=body, headers={"content-type": "application/json"})
    assert found.status_code == 400
    assert found.json()["error"].startswith(error)
    assert "\n" not in found.json()["error"]


def test_a_mistake_names_its_field(client):
    found = client.post("/api/lessons/loss", json={"logits": [[0, 0, 0, 0]] * 5 + [[0, 0, "?", 0]]})
    assert found.json()["field"] == "logits"
    assert found.json()["index"] == [5, 2]


def test_what_is_not_there(client):
    assert client.post("/api/lessons/none", json={}).status_code == 404
    assert client.get("/api/lessons/softmax").status_code == 405
    assert client.put("/static/app.js", content=b"x").status_code == 405


@pytest.mark.parametrize(
    "host", ["example.org", "127.0.0.1", "127.0.0.1:1", f"127.0.0.2:{PORT}", f"{HOST}.example.org", ""]
)
def test_a_foreign_host_is_refused(client, host):
    for found in (client.get("/", headers={"host": host}), client.post("/api/lessons/softmax", headers={"host": host})):
        assert found.status_code == 403
        assert "error" in found.json()


def test_localhost_is_this_machine(client):
    assert client.get("/", headers={"host": f"localhost:{PORT}"}).status_code == 200


@pytest.mark.parametrize(
    "origin", ["https://example.org", "null", "http://127.0.0.1:1", f"https://{HOST}", f"http://{HOST}.a"]
)
def test_a_foreign_origin_is_refused(client, origin):
    found = client.post("/api/lessons/softmax", json={}, headers={"origin": origin})
    assert found.status_code == 403
    assert client.get("/", headers={"origin": origin}).status_code == 403


def test_the_own_origin_is_not(client):
    assert client.post("/api/lessons/softmax", json={}, headers={"origin": f"http://{HOST}"}).status_code == 200


def test_only_json_is_taken(client):
    """A form of another site can send text/plain without asking; application/json it cannot."""
    found = client.post("/api/lessons/softmax", content=b"{}", headers={"content-type": "text/plain"})
    assert found.status_code == 415


def test_a_large_request_is_refused(client):
    def parts():
        for _ in range(MAX_BODY // 1024 + 1):
            yield b" " * 1024

    headers = {"content-type": "application/json"}
    fits = b"{}" + b" " * (MAX_BODY - 2)
    assert client.post("/api/lessons/softmax", content=fits, headers=headers).status_code == 200
    assert client.post("/api/lessons/softmax", content=fits + b" ", headers=headers).status_code == 413
    # Without a length, in pieces.
    assert client.post("/api/lessons/softmax", content=parts(), headers=headers).status_code == 413
    wrong = {**headers, "content-length": "-1"}
    assert client.post("/api/lessons/softmax", content=b"{}", headers=wrong).status_code == 413


@pytest.mark.parametrize("path", ["/", "/api/lessons", "/static/app.js", "/nothing"])
def test_every_answer_keeps_the_page_to_itself(client, path):
    headers = client.get(path).headers
    policy = headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert headers["x-content-type-options"] == "nosniff"
    assert "access-control-allow-origin" not in headers


def test_a_failure_inside_is_told_and_does_not_stop_the_server(monkeypatch):
    def fail(slug, given):
        raise RuntimeError("secret")

    monkeypatch.setattr(api, "answer", fail)
    client = TestClient(application(PORT), base_url=f"http://{HOST}", raise_server_exceptions=False)
    found = client.post("/api/lessons/softmax", json={})
    assert found.status_code == 500
    assert "secret" not in found.text
    assert "error" in found.json()


def test_the_real_one_serves_this_machine_only(serve):
    process, address = serve("--port", "0")
    assert address.startswith("http://127.0.0.1:")
    port = int(address.rsplit(":", 1)[1])
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    connection.request("GET", "/api/lessons")
    assert len(json.loads(connection.getresponse().read())) == 10
    connection.close()
    # Another loopback address would reach a server that listens on every interface.
    with pytest.raises(OSError, match="refused"):
        socket.create_connection(("127.0.0.2", port), timeout=5)
    process.send_signal(signal.SIGINT)
    assert process.wait(10) in (0, 130)
    assert process.stderr.read() == ""


def test_it_stops_with_a_connection_open(serve):
    process, address = serve()
    connection = socket.create_connection(("127.0.0.1", int(address.rsplit(":", 1)[1])), timeout=10)
    process.send_signal(signal.SIGINT)
    assert process.wait(10) in (0, 130)
    connection.close()
    assert process.stderr.read() == ""


def test_small_packets_are_sent_at_once():
    """asyncio sets TCP_NODELAY only on sockets that name their protocol; without it each answer takes 40 ms more."""
    with _listen(0) as listening:
        assert listening.proto == socket.IPPROTO_TCP


def test_a_port_in_use_is_told_in_one_line(serve, capsys):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert main(["--no-browser", "--port", str(port)]) == 2
    told = capsys.readouterr().err
    assert told == f"lastlayer learn: --port {port}: Address already in use\n"


def test_a_port_that_is_none(capsys):
    assert main(["--port", "-1"]) == 2
    assert "--port: expected a number from 0" in capsys.readouterr().err


def test_what_is_not_installed_is_named(monkeypatch, capsys):
    import importlib.util

    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name == "uvicorn" else find(name, *rest)
    )
    assert main(["--no-browser"]) == 2
    assert capsys.readouterr().err == 'lastlayer learn: uvicorn not installed: pip install "lastlayer[learn]"\n'
