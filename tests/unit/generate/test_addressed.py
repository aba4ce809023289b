"""A model behind an address says what the same model says in this process; what a server lacks is said in a line."""

import io
import json
import threading
import time
from contextlib import contextmanager
from dataclasses import replace
from http.server import BaseHTTPRequestHandler

import pytest
from rich.console import Console

import fixtures_authors
import fixtures_models
import fixtures_server
from fixtures_values import tiny_values
from tunesmith.cli.main import main
from tunesmith.errors import ModelError, RecipeError
from tunesmith.evaluate import evaluate, read
from tunesmith.generate import judge
from tunesmith.generate.addressed import Addressed, as_openai
from tunesmith.generate.asked import Chatting, Sampling
from tunesmith.generate.endpoint import MOST_BYTES, Server, server_of
from tunesmith.generate.load import locate
from tunesmith.generate.terminal import chat
from tunesmith.prediction.options import Prediction
from tunesmith.prediction.predict import predict

ROWS = [{"instruction": f"What is {i} and two?", "output": f"It is {i + 2}."} for i in range(6)]
QUESTIONS = [{"question": f"{i} + 1?", "A": str(i), "B": str(i + 1), "C": "no", "answer": "B"} for i in range(6)]
KEY = "k-0123456789abcdef"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    model = fixtures_models.tiny_model(max_position_embeddings=fixtures_server.CONTEXT)
    return fixtures_models.save_model(tmp_path_factory.mktemp("addressed") / "model", model)


@pytest.fixture(scope="module")
def address():
    with fixtures_server.running(fixtures_server.served(alone=False)) as running:
        yield f"{running.address}/v1"


@pytest.fixture
def rows(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return path


@contextmanager
def scripted(answer, models=("m",)):
    """A server that answers what `answer(path, body)` says: a mapping, or (code, mapping). With what it was asked."""
    got = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            got.append((self.path, body))
            self.told(answer(self.path, body))

        def do_GET(self):
            self.told({"data": [{"id": name} for name in models]})

        def told(self, found):
            code, found = found if isinstance(found, tuple) else (200, found)
            content = found if isinstance(found, bytes) else json.dumps(found).encode()
            self.send_response(code)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_):
            pass

    with fixtures_authors.listening(Handler) as address:
        yield address, got


def predictions(place, file, out, **options):
    how = Prediction(**{"max_new_tokens": 8, "device": "cpu", "dtype": "float32", **options})
    predict(str(place), str(file), out, how, None, lambda _: None)
    return [json.loads(line) for line in (out / "predictions.jsonl").read_text().splitlines()]


def test_a_table_of_predictions_is_headed_by_the_name_of_the_servers_model(address, rows, tmp_path):
    predictions(address, rows, tmp_path / "out")
    assert json.loads((tmp_path / "out" / "results.json").read_text())["name"] == "tiny"
    assert (tmp_path / "out" / "results.md").read_text().splitlines()[2] == "| measure | tiny |"


@pytest.mark.parametrize("drawn", [{}, {"temperature": 1.0, "top_p": 0.9, "seed": 3}, {"stop": ["e"], "logprobs": 0}])
def test_predictions_by_address_are_those_of_this_process(folder, address, rows, tmp_path, drawn):
    here = predictions(folder, rows, tmp_path / "here", **drawn)
    by_tokens = predictions(address, rows, tmp_path / "tokens", server={"tokenizer": str(folder)}, **drawn)
    said = predictions(address, rows, tmp_path / "said", **drawn)
    for ours, theirs, told in zip(here, by_tokens, said, strict=True):
        logprobs = ours.pop("logprobs", []), theirs.pop("logprobs", []), told.pop("logprobs", [])
        assert theirs == ours
        assert told["prediction"] == ours["prediction"] and told["finish"] == ours["finish"]
        assert len(logprobs[0]) == (ours["tokens"] if "logprobs" in drawn else 0)
        assert logprobs[1] == pytest.approx(logprobs[0], abs=1e-4) == logprobs[2]


def test_turns_without_room_are_left_out_in_the_same_way(folder, address, tmp_path):
    turns = [
        turn
        for at in range(12)
        for turn in (
            {"role": "user", "content": f"What is {at} and two, and what is the name of the long river that runs?"},
            {"role": "assistant", "content": f"It is {at + 2}, and it runs to the sea."},
        )
    ]
    file = tmp_path / "rows.jsonl"
    file.write_text(json.dumps({"messages": turns}) + "\n")
    (here,) = predictions(folder, file, tmp_path / "here")
    (told,) = predictions(address, file, tmp_path / "said")
    assert here["dropped_turns"] > 0
    assert (told["prediction"], told["dropped_turns"]) == (here["prediction"], here["dropped_turns"])


@pytest.mark.parametrize(
    ("task", "words"),
    [
        ("multiple_choice", ["multiple_choice.data={questions}"]),
        ("perplexity", ["perplexity.num_samples=2", "perplexity.max_tokens=64"]),
        ("gsm8k", ["gsm8k.data={sums}", "gsm8k.max_new_tokens=8", "gsm8k.num_shots=1"]),
        ("needle", ["needle.lengths=[128]", "needle.depths=[0.5]", "needle.num_samples=2", "needle.max_new_tokens=4"]),
    ],
)
def test_evaluations_by_address_are_those_of_this_process(folder, address, tmp_path, task, words):
    (tmp_path / "questions.jsonl").write_text("\n".join(map(json.dumps, QUESTIONS)))
    sums = [{"question": f"What is {i} and 1?", "answer": f"It is {i + 1}.\n#### {i + 1}"} for i in range(3)]
    (tmp_path / "sums.jsonl").write_text("\n".join(map(json.dumps, sums)))
    words = [one.format(questions=tmp_path / "questions.jsonl", sums=tmp_path / "sums.jsonl") for one in words]
    words += [f"cache_dir={tmp_path}/cache", "device=cpu", "dtype=float32", f"server.tokenizer={folder}"]
    found = [
        evaluate(str(place), *read([task], words), tmp_path / name, print)["tasks"][task]
        for name, place in (("here", folder), ("there", address))
    ]
    for name, value in found[0]["metrics"].items():
        assert found[1]["metrics"][name] == pytest.approx(value, rel=1e-5)
    here, there = ((tmp_path / name / f"{task}.jsonl").read_text().splitlines() for name in ("here", "there"))
    for one, other in zip(map(json.loads, here), map(json.loads, there), strict=True):
        for item, value in one.items():
            assert other[item] == (value if isinstance(value, str | None) else pytest.approx(value, rel=1e-4))
    assert found[1]["context_tokens"] == fixtures_server.CONTEXT


def test_evaluation_needs_the_tokenizer(address, tmp_path, capsys):
    assert main(["evaluate", address, "--task", "perplexity"]) == 1
    assert "say server.tokenizer=PATH" in capsys.readouterr().err


def without_scores(path, body):
    """As a server does that knows no echo: it goes on with the text, as if nothing else was asked."""
    prompts = body["prompt"] if isinstance(body["prompt"][0], list) else [body["prompt"]]
    return {"choices": [{"index": at, "text": "x", "finish_reason": "stop"} for at in range(len(prompts))]}


@pytest.mark.parametrize("answer", [without_scores, lambda path, body: (400, {"error": "no echo"})])
def test_a_server_without_scores_is_told_with_what_can_be_had(folder, answer, rows, tmp_path):
    with scripted(answer) as (address, got):
        how = read(["perplexity"], [f"server.tokenizer={folder}", "perplexity.num_samples=1"])
        with pytest.raises(ModelError, match="no log-probabilities of a text that it is given.*gsm8k, needle"):
            evaluate(address, *how, None, print)
    body = got[0][1]
    assert (body["echo"], body["max_tokens"], body["model"]) == (True, 0, "m")


def test_a_text_as_long_as_the_context_that_a_server_refuses_is_told_as_too_long():
    with scripted(lambda path, body: (400, {"error": "at least 1 is longer than the maximum"})) as (address, _):
        model = replace(Addressed.open(address, Server()), context_tokens=8)
        with pytest.raises(ModelError, match=r"refuses a text of 8 tokens, as long.*maximum.*perplexity.max_tokens=7$"):
            next(model.scores([(range(8), 7)]))
        with pytest.raises(ModelError, match="gives no log-probabilities"):
            next(model.scores([(range(7), 6)]))


def talk(place, lines, **options):
    out, notes = io.StringIO(), io.StringIO()
    how = Chatting(max_new_tokens=8, **options)
    consoles = Console(file=out, force_terminal=False, width=300), Console(file=notes, force_terminal=False, width=300)
    chat(str(place), "Be brief.", how, None, (), *consoles, lines=io.StringIO(lines))
    return out.getvalue(), notes.getvalue()


def test_a_chat_by_address_is_that_of_this_process(folder, address):
    lines = "Hello?\nWhat is two and three?\n/params temperature=1.0\nAnd four?\n/regenerate\n"
    here, there = talk(folder, lines, seed=5), talk(address, lines, seed=5)
    assert there[0] == here[0] and here[0].strip()
    assert "the model tiny of a server" in there[1]


def test_pieces_calls_and_reasoning_of_a_stream(tmp_path):
    def deltas(path, body):
        parts = [
            {"role": "assistant", "content": ""},
            {"reasoning_content": "Let me "},
            {"reasoning": "see."},
            {"content": "Half"},
            {"tool_calls": [{"index": 0, "id": "c1", "function": {"name": "add", "arguments": '{"a": '}}]},
            {"tool_calls": [{"index": 0, "function": {"arguments": "1}"}}]},
        ]
        events = [{"choices": [{"index": 0, "delta": part, "finish_reason": None}]} for part in parts]
        events.append({"choices": [{"index": 0, "delta": {}, "finish_reason": "tool_calls"}]})
        events.append({"choices": [], "usage": {"completion_tokens": 7}})
        ended = b"" if body["messages"][0]["content"] == "no end" else b"data: [DONE]\n\n"
        kept = events[:4] if not ended else events
        return b": a comment\n\n" + b"".join(b"data: " + json.dumps(one).encode() + b"\n\n" for one in kept) + ended

    with scripted(deltas) as (address, got):
        model = Addressed.open(address, Server())
        speech = model.speak([{"role": "user", "content": "x"}], (), Sampling())
        said = list(speech)
        whole = sum(said[1:], said[0])
        assert (whole.reasoning, whole.content, speech.finish, speech.num_tokens) == ("Let me see.", "Half", "stop", 7)
        assert [(call.name, dict(call.arguments), call.id) for call in whole.calls] == [("add", {"a": 1}, "c1")]
        with pytest.raises(ModelError, match="broke off its answer"):
            list(model.speak([{"role": "user", "content": "no end"}], (), Sampling()))
    assert got[0][1]["stream_options"] == {"include_usage": True}


def test_an_error_in_a_stream_is_told(tmp_path):
    with scripted(lambda path, body: b'data: {"error": {"message": "out of memory"}}\n\n') as (address, _):
        with pytest.raises(ModelError, match="ended its answer: .*out of memory"):
            Addressed.open(address, Server()).speak([{"role": "user", "content": "x"}], (), Sampling())


def test_calls_and_their_results_are_as_openai_has_them():
    call = {"type": "function", "function": {"name": "add", "arguments": {"a": "é"}}}
    turns = [
        {"role": "user", "content": "x"},
        {"role": "assistant", "content": "", "tool_calls": [call, {**call, "id": "own"}]},
        {"role": "tool", "content": "1"},
        {"role": "tool", "content": "2"},
    ]
    found = as_openai(turns)
    assert [one["id"] for one in found[1]["tool_calls"]] == ["call_1", "own"]
    assert found[1]["tool_calls"][0]["function"]["arguments"] == '{"a": "é"}'
    assert [one.get("tool_call_id") for one in found] == [None, None, "call_1", "own"]
    assert "id" not in turns[1]["tool_calls"][0]


def test_so_many_requests_are_on_their_way_and_none_behind_an_error():
    running, most, lock = [], [], threading.Lock()

    def slow(path, body):
        with lock:
            running.append(1)
            most.append(len(running))
        time.sleep(0.05)
        with lock:
            running.pop()
        if body["messages"][0]["content"] == "4":
            return 400, {"error": {"message": "never"}}
        choice = {"message": {"content": body["messages"][0]["content"]}, "finish_reason": "stop"}
        return {"choices": [choice], "usage": {"completion_tokens": 1}}

    with scripted(slow) as (address, got):
        model = Addressed.open(address, Server(max_concurrent=3))

        def ask(number):
            return lambda: model.answer([{"role": "user", "content": str(number)}], (), Sampling())[0].text

        assert list(model.in_order([ask(number) for number in (0, 1, 2, 3, 5, 6)])) == list("012356")
        assert max(most) == 3
        got.clear()
        with pytest.raises(ModelError, match="refuses: HTTP 400"):
            list(model.in_order([ask(number) for number in (4, *range(5, 60))]))
        time.sleep(0.2)
        assert len(got) < 12


def test_a_busy_server_is_asked_again(rows, tmp_path, monkeypatch):
    monkeypatch.setattr("tunesmith.generate.endpoint.FIRST_WAIT_SECONDS", 0.01)
    seen = []

    def busy(path, body):
        seen.append(1)
        if len(seen) % 2:
            return 503, {"error": {"message": "busy"}}
        return {"choices": [{"message": {"content": "yes"}, "finish_reason": "stop"}]}

    with scripted(busy) as (address, _):
        found = predictions(address, rows, tmp_path / "out", server={"max_concurrent": 1})
    assert [row["prediction"] for row in found] == ["yes"] * 6 and len(seen) == 12


def test_a_model_is_named_behind_the_address():
    with scripted(lambda path, body: {}, models=("one", "a/b:c")) as (address, _):
        assert Addressed.open(f"{address}/#a/b:c", Server()).name == "a/b:c"
        with pytest.raises(ModelError, match=r"has the models a/b:c, one: name one, as in http.*/v1#NAME"):
            Addressed.open(address, Server())
        with pytest.raises(ModelError, match=r"has no model 'onee'\. Did you mean 'one'"):
            Addressed.open(f"{address}#onee", Server())


def test_the_key_comes_from_a_file_or_the_environment(tmp_path, monkeypatch):
    (tmp_path / "key").write_text(f"{KEY}\n")
    monkeypatch.setenv("MY_KEY", KEY)
    with fixtures_server.running(fixtures_server.served(api_key_file=str(tmp_path / "key"))) as running:
        address = f"{running.address}/v1"
        for how in (Server(key_file=str(tmp_path / "key")), Server(key_variable="MY_KEY")):
            assert Addressed.open(address, how).name == "tiny"
        with pytest.raises(ModelError, match=r"HTTP 401: .*Say server\.key_variable=NAME"):
            Addressed.open(address, Server())
    with pytest.raises(RecipeError, match="key_file: '.*none' cannot be read"):
        Addressed.open(address, Server(key_file=str(tmp_path / "none")))
    with pytest.raises(RecipeError, match="both say where the key is"):
        Server(key_file="x", key_variable="Y")


def test_options_that_openai_lacks_are_left_out_or_refused():
    with scripted(lambda path, body: {}) as (address, _):
        plain, model = Addressed.open(address, Server(only_openai=True)), Addressed.open(address, Server())
    assert plain.drawn(Sampling(seed=0)) == {"max_tokens": 256, "temperature": 0.0, "top_p": 1.0, "seed": 0}
    assert model.drawn(Sampling())["repetition_penalty"] == 1.0  # what the served model would say else
    with pytest.raises(RecipeError, match="top_k=5 is no option of OpenAI's own server"):
        plain.drawn(Sampling(top_k=5))


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        (["max_new_tokens=3"], "max_new_tokens is no option here"),
        (["server=3"], "server=3 says nothing"),
        (["server.timeout=3"], "timeout: no such option"),
    ],
)
def test_words_of_a_server_are_read(options, problem):
    assert server_of(["server.timeout_seconds=3"]).timeout_seconds == 3
    with pytest.raises(RecipeError, match=problem):
        server_of(options)


def test_a_strange_answer_is_one_line(rows, tmp_path):
    answers = ({"choices": []}, {"choices": [{"message": "x"}]}, b"[" * 100_000, b"x" * (MOST_BYTES + 1))
    for number, answer in enumerate(answers):
        with scripted(lambda path, body, answer=answer: answer) as (address, _):
            with pytest.raises(ModelError, match="does not answer as OpenAI's does|more than 4,194,304") as caught:
                predictions(address, rows, tmp_path / str(number))
        assert "\n" not in str(caught.value) and len(str(caught.value)) < 500


def test_where_weights_are_needed_an_address_is_refused(address, tmp_path, rows, capsys):
    with pytest.raises(ModelError, match="is a server's address, and weights are needed here"):
        locate(address)
    assert main(["predict", address, "--out", str(tmp_path / "out")]) == 1
    assert "say FILE" in capsys.readouterr().err


def test_a_judge_by_address_says_what_it_says_here(tmp_path, folder, address, capsys):
    place = fixtures_models.save_model(tmp_path / "judge", tiny_values(labels=1))
    asked = [{"prompt": f"Hi {at}", "answers": ["good day", "no", "well"]} for at in range(20)]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, asked)))
    here = judge.Judge.open(str(place), "cpu")
    expected = list(judge.score(here, str(tmp_path / "rows.jsonl")))
    served = fixtures_server.Served.open(str(place), fixtures_server.Serving(device="cpu"))
    with fixtures_server.running(served) as running:
        there = f"{running.address}/v1"
        assert main(["score", there, str(tmp_path / "rows.jsonl"), "--json", "server.max_retries=0"]) == 0
        assert [json.loads(line) for line in capsys.readouterr().out.splitlines()] == expected
        opened = judge.find(there, Server())
        answers = ["good day", "no", ""]
        turns = [{"role": "user", "content": "Hi"}]
        assert opened.rewards(turns, answers) == pytest.approx(here.rewards(turns, answers))
        words = ["score", there, str(tmp_path / "rows.jsonl"), "--sample", "2", "--model", address, "--json"]
        assert main([*words, "--max-new-tokens", "4"]) == 0
        (first, *_) = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
        own = ["score", str(place), str(tmp_path / "rows.jsonl"), "--sample", "2", "--model", str(folder), "--json"]
        assert main([*own, "--max-new-tokens", "4"]) == 0
        (ours, *_) = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
        assert [one["text"] for one in first["answers"]] == [one["text"] for one in ours["answers"]]
    with pytest.raises(ModelError, match="says words and judges nothing"):
        judge.find(address, Server()).rewards([{"role": "user", "content": "x"}], ["y"])
