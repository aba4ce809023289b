"""A model behind an address is asked as OpenAI's is, again when it is busy, and its key is told to nobody else."""

import json
import socket

import pytest

from fixtures_authors import server
from fixtures_models import tiny_model, tiny_tokenizer
from tunesmith.errors import ModelError, RecipeError
from tunesmith.generate.endpoint import MOST_BYTES, shown
from tunesmith.generate.engine import Generator
from tunesmith.synthesis.author import Address, Local, Reply
from tunesmith.synthesis.options import Synthesis

KEY = "k-0123456789abcdef"
ASK = {"max_new_tokens": 8, "temperature": 0.5, "top_p": 0.9, "seed": 7, "stop": None}


def ask(address, waits=None, stop=None, **options):
    options = Synthesis(model=address, name="large", **options)
    author = Address(options, (waits if waits is not None else []).append)
    return author.write("Is the answer ...\nTask: Judge it", **(ASK | {"stop": stop}))


def choice(content, finish):
    return json.dumps({"choices": [{"message": {"content": content}, "finish_reason": finish}]})


def test_the_request_is_that_of_openai(monkeypatch):
    monkeypatch.setenv("MY_KEY", f" {KEY}\n")
    with server() as (address, got):
        assert ask(address + "/", key_variable="MY_KEY", stop="\n9.") == Reply("Yes", cut=False)
    ((headers, body, path),) = got
    assert path == "/v1/chat/completions" and headers["Authorization"] == f"Bearer {KEY}"
    assert body == {
        "model": "large",
        "messages": [{"role": "user", "content": "Is the answer ...\nTask: Judge it"}],
        "max_tokens": 8,
        "temperature": 0.5,
        "top_p": 0.9,
        "seed": 7,
        "stop": ["\n9."],
    }


def test_no_key_is_sent_unless_it_is_named(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    with server() as (address, got):
        ask(address)
    assert "Authorization" not in got[0][0] and "stop" not in got[0][1]


def test_what_is_cut_off_or_null_is_said_so():
    with server([(200, {}, choice("half", "length")), (200, {}, choice(None, "tool_calls"))]) as (address, _):
        assert ask(address) == Reply("half", cut=True)
        assert ask(address) == Reply("", cut=False)
    with server([(200, {}, choice("a\ud800b", "stop"))]) as (address, _):
        assert ask(address) == Reply("a?b", cut=False)


def test_an_answer_without_end_or_bottom_is_refused():
    endless = json.dumps({"choices": [{"message": {"content": "x" * MOST_BYTES}}]})
    with server([(200, {}, endless), (200, {}, "[" * 100_000)]) as (address, _):
        with pytest.raises(ModelError, match="answers with more than 4,194,304 bytes"):
            ask(address)
        with pytest.raises(ModelError, match=r"does not answer as OpenAI's does: \[\[\["):
            ask(address)


def test_a_busy_server_is_asked_again_after_longer_waits():
    waits = []
    busy = [(503, {}, "busy"), (429, {"Retry-After": "9"}, ""), (500, {"Retry-After": "1"}, "")]
    with server(busy) as (address, got):
        assert ask(address, waits).text == "Yes"
    assert waits == [1, 9, 4] and len(got) == 4  # 1, 2, 4 seconds; 9 as the server said


def test_a_server_that_stays_busy_is_given_up():
    waits = []
    with server([(503, {}, "come back")] * 3) as (address, _):
        with pytest.raises(ModelError, match=r"gave no answer in 3 tries: HTTP 503: come back\. Run the same"):
            ask(address, waits, max_retries=2)
    assert waits == [1, 2]


def test_nobody_at_the_address_is_said():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    waits = []
    with pytest.raises(
        ModelError, match=rf"http://127\.0\.0\.1:{port}/v1/chat/completions cannot be reached: .*refused\. Start"
    ):
        ask(f"http://127.0.0.1:{port}/v1", waits)
    assert not waits


def test_a_server_that_answered_once_is_waited_for():
    waits = []
    with server() as (address, _):
        author = Address(Synthesis(model=address, name="large", max_retries=2), waits.append)
        author.write("Judge it", **(ASK | {"stop": None}))
    with pytest.raises(ModelError, match=r"gave no answer in 3 tries: .*refused"):
        author.write("Judge it", **(ASK | {"stop": None}))
    assert waits == [1, 2]


def test_a_server_that_hangs_is_given_up():
    with socket.create_server(("127.0.0.1", 0)) as silent:
        with pytest.raises(ModelError, match="gave no answer in 1 tries: timed out"):
            ask(f"http://127.0.0.1:{silent.getsockname()[1]}/v1", max_retries=0, timeout_seconds=0.1)


def test_the_key_is_in_no_message(monkeypatch):
    monkeypatch.setenv("MY_KEY", KEY)
    for code, content in ((401, f"wrong key {KEY}"), (200, f'{{"no": "{KEY}"}}'), (503, KEY)):
        with server([(code, {}, content)]) as (address, got), pytest.raises(ModelError, match=r"\*\*\*") as caught:
            ask(address, key_variable="MY_KEY", max_retries=0)
        assert KEY not in str(caught.value) and got[0][0]["Authorization"]


def test_a_refusal_is_not_tried_again(monkeypatch):
    waits = []
    with server([(401, {}, "who are you?")] * 2) as (address, got):
        with pytest.raises(ModelError, match=r"refuses: HTTP 401: who are you\?\. Say key_variable=NAME"):
            ask(address, waits)
    assert waits == [] and len(got) == 1


def test_a_redirect_is_not_followed(monkeypatch):
    monkeypatch.setenv("MY_KEY", KEY)
    with server() as (other, reached), server([(302, {"Location": f"{other}/chat/completions"}, "")]) as (address, _):
        with pytest.raises(ModelError, match="HTTP 302: .*Give the address that it redirects to"):
            ask(address, key_variable="MY_KEY")
    assert reached == []


def test_a_missing_key_is_said_before_anything_is_asked(monkeypatch):
    monkeypatch.delenv("MY_KEY", raising=False)
    with server() as (address, got), pytest.raises(RecipeError, match="environment variable 'MY_KEY' is not set"):
        ask(address, key_variable="MY_KEY")
    monkeypatch.setenv("MY_KEY", "a\nb")
    with pytest.raises(RecipeError, match="'MY_KEY' holds characters that no key has"):
        ask(address, key_variable="MY_KEY")
    assert got == []


def test_an_address_is_shown_without_its_secrets():
    assert shown("https://u:p@host:8/v1?key=1#x") == "https://host:8/v1"


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"model": "http://u:pw@h/v1", "name": "m"}, "synthesis: an address has no user, password or query in it"),
        ({"model": "http://h/v1?key=pw", "name": "m"}, "an address has no user, password or query in it"),
        ({"model": "http:///v1", "name": "m"}, "model is no address"),
        ({"model": "http://h:port/v1", "name": "m"}, "model is no address"),
        ({"model": "http://h/v1"}, "name is required with an address"),
        ({"model": "folder", "name": "m"}, "name belongs to an address"),
        ({"model": "folder", "key_variable": "K"}, "key_variable belongs to an address"),
        ({"model": "folder", "num_prompt_tasks": 2}, r"num_prompt_generated must be below num_prompt_tasks \(2\)"),
    ],
)
def test_options_that_do_not_go_together_are_refused(options, problem):
    with pytest.raises(RecipeError, match=problem) as caught:
        Synthesis(**options)
    assert "pw" not in str(caught.value)


@pytest.fixture(scope="module")
def local():
    return Generator(tiny_model(), tiny_tokenizer())


def test_a_model_of_this_machine_says_what_it_generates(local):
    said = local.complete([{"role": "user", "content": "Hello"}], max_new_tokens=12, temperature=0.5, seed=3, top_p=0.9)
    assert Local(local).write("Hello", **(ASK | {"max_new_tokens": 12, "seed": 3})) == Reply(said, cut=True)
    middle = said[len(said) // 2 :][:2]
    stopped = Local(local).write("Hello", **(ASK | {"max_new_tokens": 12, "seed": 3, "stop": middle}))
    assert stopped == Reply(said[: said.index(middle)], cut=False)
