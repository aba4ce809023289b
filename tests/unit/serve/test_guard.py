"""Who is let in, how much of a request is read, and what is told of those that are not."""

import contextlib
import socket
import time

import httpx
import openai
import pytest

import fixtures_server
from tunesmith.errors import RecipeError
from tunesmith.serve.guard import BEYOND, KEY_VARIABLE
from tunesmith.serve.options import Serving

CHAT = {"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 3}


@contextlib.contextmanager
def serving(**options):
    with fixtures_server.running(fixtures_server.served(**options)) as server:
        yield server


@pytest.fixture(scope="module")
def server():
    with serving(max_body_bytes=2000, receive_seconds=0.5) as running:
        yield running


def post(server, path="/v1/chat/completions", **options):
    return httpx.post(f"{server.address}{path}", **options)


def error_of(answer, status):
    assert answer.status_code == status and answer.headers["x-request-id"]
    error = answer.json()["error"]
    assert sorted(error) == ["code", "message", "param", "type"]
    return error


def test_a_key_is_asked_for_where_there_are_keys(tmp_path, monkeypatch):
    file = tmp_path / "keys"
    file.write_text("first-key\nsecond-key\n")
    monkeypatch.setenv(KEY_VARIABLE, "third-key")
    with serving(api_key_file=str(file)) as server:
        for key in ("first-key", "second-key", "third-key"):
            assert server.client(key).models.list().data
        for key in ("wrong", "first-key second-key", "first-ke"):
            with pytest.raises(openai.AuthenticationError) as caught:
                server.client(key).models.list()
            assert caught.value.code == "invalid_api_key"
        for path in ("/v1/models", "/metrics", "/v1/chat/completions", "/openapi.json"):
            assert httpx.get(f"{server.address}{path}").status_code == 401
        assert httpx.get(f"{server.address}/v1/models", headers={"Authorization": "Basic first-key"}).status_code == 401
        assert httpx.get(f"{server.address}/health").status_code == 200
        assert not any("key" in str(line) for line in server.lines)


def test_a_file_without_keys_is_refused(tmp_path):
    (tmp_path / "keys").write_text("\n")
    for name, said in (("keys", "has no key in it"), ("none", "cannot be read")):
        with pytest.raises(RecipeError, match=said), serving(api_key_file=str(tmp_path / name)):
            pass


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b"{", "is no JSON"),
        (b"[1]", "must be a JSON object"),
        (b"\xff\xfe", "is no JSON"),
        (b'{"messages": [{"role": "user", "content": "\\ud800"}]}', "surrogate"),
        (b"[" * 1999, "is no JSON"),
        (b"", "is no JSON"),
        (b"{}", "messages: is required"),
    ],
)
def test_a_bad_body_is_said_to_be_one(server, body, said):
    error = error_of(post(server, content=body), 400)
    assert said in error["message"] and error["type"] == "invalid_request_error"


def test_a_large_body_is_not_read(server):
    large = {"messages": [{"role": "user", "content": "x" * 3000}]}
    assert error_of(post(server, json=large), 413)["code"] == "request_too_large"
    parts = (b"x" * 500 for _ in range(8))  # sent in chunks, whose number it does not say
    assert error_of(post(server, content=parts), 413)["code"] == "request_too_large"


def test_a_body_that_does_not_come_is_not_waited_for(server):
    host, port = server.address.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port))) as connection:
        connection.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 50\r\n\r\n{")
        start = time.monotonic()
        assert b"408" in connection.recv(1000).splitlines()[0] and time.monotonic() - start < 20


def test_headers_that_do_not_come_are_not_waited_for(server):
    host, port = server.address.removeprefix("http://").split(":")
    for begun in (b"", b"GET /health HT", b"GET /health HTTP/1.1\r\nHost: x\r\n\r\nGET /hea"):
        with socket.create_connection((host, int(port)), timeout=20) as connection:
            connection.sendall(begun)
            start, seen = time.monotonic(), b""
            while part := connection.recv(1000):
                seen += part
            assert 0.4 < time.monotonic() - start < 10 and seen.startswith(b"HTTP/1.1 200" if b"Host" in begun else b"")


def test_a_connection_that_is_used_is_kept(server):
    with httpx.Client() as client:
        end = time.monotonic() + 2.5  # of which no half second is without a request
        while time.monotonic() < end:
            assert client.get(f"{server.address}/health").status_code == 200
            time.sleep(0.1)
        (connection,) = server.connections
        assert connection


def test_an_unknown_path_or_method_is_said(server):
    assert "Did you mean '/v1/chat/completions'" in error_of(post(server, "/v1/chat/completion"), 404)["message"]
    error_of(httpx.get(f"{server.address}/v1/chat/completions"), 405)
    fixtures_server.until(lambda: server.lines[-1]["status"] == 405)  # a line is written behind its answer


def test_a_full_queue_says_when_to_come_again(monkeypatch):
    with serving(max_waiting=1) as server:
        release = fixtures_server.threading.Event()
        server.served.worker.call(release.wait)
        answers = []
        threads = [
            fixtures_server.threading.Thread(target=lambda: answers.append(post(server, json=CHAT, timeout=60)))
            for _ in range(2)
        ]
        for thread in threads:
            thread.start()
        fixtures_server.until(lambda: server.served.worker.num_waiting == 2)
        busy = post(server, json=CHAT)
        assert error_of(busy, 503)["code"] == "overloaded" and busy.headers["retry-after"] == "1"
        assert "tunesmith_waiting 2" in httpx.get(f"{server.address}/metrics").text
        release.set()
        for thread in threads:
            thread.join()
        assert [answer.status_code for answer in answers] == [200, 200]
        assert BEYOND > 2


def test_more_answers_than_there_is_room_for_are_refused():
    with serving(max_waiting=1) as server:
        refused = error_of(post(server, json=CHAT | {"n": 3}), 400)  # to come again would be of no use
        assert refused["param"] == "n" and "3 answers were asked for, and this server takes 2" in refused["message"]
        many = {"prompt": ["a", "b", "c"], "max_tokens": 2}
        assert error_of(post(server, "/v1/completions", json=many), 400)["param"] == "prompt"
        assert post(server, json=CHAT | {"n": 2}).status_code == 200


def test_pages_may_ask_where_they_are_told_to():
    origin = {"Origin": "http://page.example"}
    with serving() as server:
        assert "access-control-allow-origin" not in post(server, json=CHAT, headers=origin).headers
    with serving(cors_origin=("http://page.example",)) as server:
        asked = origin | {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization"}
        before = httpx.options(f"{server.address}/v1/chat/completions", headers=asked)
        assert before.status_code == 200
        allowed = "access-control-allow-origin"
        assert before.headers[allowed] == post(server, json=CHAT, headers=origin).headers[allowed] == origin["Origin"]
        assert allowed not in post(server, json=CHAT, headers={"Origin": "http://other.example"}).headers


def test_what_was_done_is_counted():
    with serving() as server:
        for _ in range(2):
            assert post(server, json=CHAT | {"temperature": 0}).status_code == 200
        post(server, "/v1/nothing")
        fixtures_server.until(lambda: len(server.lines) == 3)  # they are counted behind their answers
        lines = httpx.get(f"{server.address}/metrics").text.splitlines()
    numbers = dict(line.rsplit(" ", 1) for line in lines if not line.startswith("#"))
    assert numbers['tunesmith_requests_total{path="/v1/chat/completions",status="200"}'] == "2"
    assert numbers['tunesmith_requests_total{path="other",status="404"}'] == "1"
    assert numbers["tunesmith_generated_tokens_total"] == "6"
    assert numbers["tunesmith_first_token_seconds_count"] == "2" == numbers["tunesmith_queue_seconds_count"]
    assert numbers['tunesmith_request_seconds_bucket{le="+Inf"}'] == numbers["tunesmith_request_seconds_count"] == "3"
    assert float(numbers["tunesmith_request_seconds_sum"]) > float(numbers["tunesmith_first_token_seconds_sum"]) > 0


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"port": "70000"}, "port: must be less than or equal to 65535"),
        ({"max_running": "0"}, "max_running: must be greater than or equal to 1"),
        ({"adapter": ("justaname",)}, "adapter.0: must be NAME=FOLDER"),
        ({"adapter": ("a b=folder",)}, "adapter.0: must be NAME=FOLDER, with a name that has no blank in it"),
        ({"embedding_pooling": "max"}, "embedding_pooling: must be 'mean' or 'last'"),
    ],
)
def test_options_have_bounds(options, said):
    with pytest.raises(RecipeError, match=said):
        Serving(**options)


def test_an_adapters_name_is_said_once():
    with pytest.raises(RecipeError, match="^--adapter: the name 'a' is said twice, for x and y"):
        _ = Serving(adapter=("a=x", "a=y")).adapters
