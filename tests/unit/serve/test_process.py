"""`tunesmith serve` as a process: adapters by name, keys, and an end that finishes what runs."""

import json
import signal
import socket
import subprocess
import sys
import threading
import time
import warnings

import httpx
import openai
import pytest

import fixtures_models
import fixtures_server
from tunesmith.cli.main import main
from tunesmith.generate.engine import Generator
from tunesmith.generate.load import load

HELLO = [{"role": "user", "content": "Hello, how are you today?"}]
ENDLESS = {str(fixtures_models.SPECIAL.index("<|im_end|>")): -100}  # never the token that ends an answer


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A base model, and two adapters of it with templates of their own."""
    place = tmp_path_factory.mktemp("served")
    base = fixtures_models.save_model(place / "base", fixtures_models.tiny_model(max_position_embeddings=8192))
    for seed, name in enumerate(("first", "second"), 1):
        model = fixtures_models.tiny_model(max_position_embeddings=8192)
        model.name_or_path = str(base)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # peft's, of tied embeddings that are adapted
            fixtures_models.tiny_lora(model, seed=seed).save_pretrained(place / name)
        fixtures_models.tiny_tokenizer(fixtures_models.CHATML.replace("assistant", name)).save_pretrained(place / name)
    return place


def chat(address, model, **options):
    with openai.OpenAI(base_url=f"{address}/v1", api_key="secret", max_retries=0, timeout=60) as client:
        options = {"temperature": 0, "max_tokens": 12} | options
        return client.chat.completions.create(model=model, messages=HELLO, **options).choices[0].message.content


def test_each_request_has_its_adapter_and_ends_finish_what_runs(folders, tmp_path):
    adapters = [f"--adapter={name}={folders / name}" for name in ("first", "second")]
    with fixtures_server.process(str(folders / "base"), *adapters, TUNESMITH_API_KEY="secret") as (
        child,
        address,
        said,
    ):
        assert "is served as base, first, second at" in said and "secret" not in said
        assert httpx.get(f"{address}/v1/models").status_code == 401
        listed = httpx.get(f"{address}/v1/models", headers={"Authorization": "Bearer secret"}).json()["data"]
        assert [(one["id"], one["parent"]) for one in listed] == [("base", None), ("first", "base"), ("second", "base")]
        found, threads = {}, []
        for name in ("base", "first", "second") * 2:
            threads.append(threading.Thread(target=lambda n=name: found.setdefault(n, []).append(chat(address, n))))
            threads[-1].start()
        for thread in threads:
            thread.join()
        for name, answers in found.items():  # each by its own template, and as with its adapter alone
            alone = Generator(*load(str(folders / name)))
            assert answers == [alone.complete(HELLO, max_new_tokens=12)] * 2
        assert len({answers[0] for answers in found.values()}) == 3
        body = {"model": "first", "messages": HELLO, "max_tokens": 300, "stream": True, "logit_bias": ENDLESS}
        options = {"json": body, "headers": {"Authorization": "Bearer secret"}, "timeout": 60}
        with httpx.stream("POST", f"{address}/v1/chat/completions", **options) as stream:
            lines = stream.iter_lines()
            next(lines)
            child.send_signal(signal.SIGTERM)
            last = [line for line in lines if line]
        assert last[-1] == "data: [DONE]" and json.loads(last[-2][6:])["choices"][0]["finish_reason"] == "length"
        assert child.wait(30) == 0
        log = [json.loads(line) for line in child.stdout.read().splitlines()]
        assert log[-1]["status"] == 200 and log[-1]["completion_tokens"] == 300
        assert "Hello" not in str(log) and "secret" not in str(log)


@pytest.mark.parametrize(("grace", "signals"), [(0.3, 1), (300, 2)])
def test_answers_that_are_ended_say_so(folders, grace, signals):
    with fixtures_server.process(str(folders / "base"), f"--grace-seconds={grace}", "--host=0.0.0.0") as (
        child,
        address,
        said,
    ):
        assert "whoever reaches 0.0.0.0 can use it" in child.stderr.readline()
        body = {"messages": HELLO, "max_tokens": 8000, "stream": True, "logit_bias": ENDLESS}
        address = address.replace("0.0.0.0", "127.0.0.1")
        with httpx.stream("POST", f"{address}/v1/chat/completions", json=body, timeout=60) as stream:
            lines = stream.iter_lines()
            next(lines)
            start = time.monotonic()
            child.send_signal(signal.SIGTERM)
            if signals == 2:
                time.sleep(0.5)  # uvicorn looks for the first one each 0.1 seconds
                child.send_signal(signal.SIGTERM)
            last = [line for line in lines if line]
        assert last[-1] == "data: [DONE]"
        error = json.loads(last[-2][6:])["error"]
        assert error["code"] == "overloaded" and "the server stopped before the answer's end" in error["message"]
        assert child.wait(30) == 0 and time.monotonic() - start < 30
        assert child.stderr.read() == ""
        line = json.loads(child.stdout.read().splitlines()[-1])
        assert line["finish"] == ["error"] and line["completion_tokens"] < 8000


def test_what_cannot_be_served_is_one_line(folders, capsys, tmp_path):
    base = str(folders / "base")
    for words, said in (
        ([str(tmp_path / "nothing")], "nothing"),
        ([base, "--port=99999"], "port: must be less than or equal to 65535"),
        ([base, "--prot=1"], "there is no option --prot. Did you mean '--port'"),
        ([base, f"--adapter=base={folders / 'first'}"], "'base' is the model's own name"),
        ([base, f"--adapter=a={tmp_path}"], "is no adapter"),
    ):
        assert main(["serve", *words]) in (1, 2)
        error = capsys.readouterr().err
        assert said in error and error.count("\n") == 1


def test_a_taken_port_is_said_before_the_model_is_loaded(capsys):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        assert main(["serve", "nothing/at/all", f"--port={taken.getsockname()[1]}"]) == 1
    assert "cannot be listened at: Address already in use" in capsys.readouterr().err


def test_help_says_every_option_without_loading_a_server():
    code = (
        "import sys; from tunesmith.cli.main import main; main(['serve', '--help']);"
        "assert not {'fastapi', 'torch', 'uvicorn'} & sys.modules.keys(), 'loaded'"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    for name in fixtures_server.Serving.model_fields:
        assert f"--{name.replace('_', '-')}" in found.stdout
