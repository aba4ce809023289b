"""Completions, embeddings and scores are what the model itself says of the same tokens."""

import base64
import time

import httpx
import numpy as np
import openai
import pytest
import torch

import fixtures_models
import fixtures_server
from fixtures_values import tiny_values
from tunesmith.generate import judge
from tunesmith.generate.asked import Sampling
from tunesmith.generate.readings import CHUNK_TOKENS

TEXTS = ["The river runs to the sea.", "Hello", "你好 🙂"]


@pytest.fixture(scope="module")
def server():
    with fixtures_server.running(fixtures_server.served()) as running:
        yield running


@pytest.fixture(scope="module")
def alone():
    return fixtures_server.served().generator


def complete(server, **options):
    return server.client().completions.create(model="tiny", **({"temperature": 0} | options))


def made(generator, text, **sampling):
    """The text and the tokens that a model goes on with."""
    ids = tuple(generator.tokenizer(text, verbose=False)["input_ids"])
    prompt = type(generator.prompt([{"role": "user", "content": "x"}], 1))(ids, 0)
    pieces = list(generator.batch().add(generator.request(prompt, Sampling(**sampling))))
    return "".join(piece.text for piece in pieces), [token.id for piece in pieces for token in piece.tokens]


def test_texts_and_tokens_are_gone_on_with(server, alone):
    expected = [made(alone, text, max_new_tokens=9)[0] for text in TEXTS]
    assert [choice.text for choice in complete(server, prompt=TEXTS, max_tokens=9).choices] == expected
    ids = [alone.tokenizer(text)["input_ids"] for text in TEXTS]
    found = complete(server, prompt=ids, max_tokens=9)
    assert [choice.text for choice in found.choices] == expected
    assert found.usage.prompt_tokens == sum(map(len, ids))
    assert complete(server, prompt=ids[0], max_tokens=9).choices[0].text == expected[0]
    said = [""] * len(TEXTS)
    for chunk in complete(server, prompt=TEXTS, max_tokens=9, stream=True):
        said[chunk.choices[0].index] += chunk.choices[0].text
    assert said == expected


def test_several_answers_to_each_of_several_prompts(server, alone):
    found = complete(server, prompt=TEXTS[:2], n=2, temperature=1, seed=5, max_tokens=8).choices
    expected = [made(alone, text, max_new_tokens=8, temperature=1, seed=s)[0] for text in TEXTS[:2] for s in (5, 6)]
    assert [choice.text for choice in found] == expected and [choice.index for choice in found] == [0, 1, 2, 3]


@pytest.mark.parametrize("stream", [False, True])
def test_an_echo_tells_what_the_model_says_of_the_prompt(server, alone, stream):
    text = "The moon and the river. " * 40  # longer than one pass
    ids = alone.tokenizer(text, verbose=False)["input_ids"]
    assert CHUNK_TOKENS < len(ids) < 500
    tail, more = made(alone, text, max_new_tokens=3)
    found = complete(server, prompt=text, max_tokens=3, echo=True, logprobs=2, stream=stream)
    parts = [one.choices[0] for one in (found if stream else [found])]
    assert "".join(one.text for one in parts) == text + tail
    with torch.no_grad():
        logits = alone.model(torch.tensor([[*ids, *more]])).logits[0].float()
    logps = torch.log_softmax(logits, dim=-1)
    told = {key: [] for key in ("tokens", "token_logprobs", "top_logprobs", "text_offset")}
    for one in parts:
        for key, value in (one.logprobs.model_dump() if one.logprobs else {}).items():
            told[key] += value
    texts = [alone.tokenizer.decode([token]) for token in (*ids, *more)]
    assert all(
        own == text or (own.startswith("bytes:") and "\ufffd" in text)
        for own, text in zip(told["tokens"], texts, strict=True)
    )
    expected = [row[token].item() for row, token in zip(logps, (*ids, *more)[1:], strict=False)]
    assert told["token_logprobs"][0] is None and told["top_logprobs"][0] is None
    assert told["token_logprobs"][1:] == pytest.approx(expected, abs=2e-4)
    best = [row.max().item() for row in logps[:-1]]
    assert [max(top.values()) for top in told["top_logprobs"][1:]] == pytest.approx(best, abs=2e-4)
    assert told["text_offset"][:3] == [0, len(told["tokens"][0]), len(told["tokens"][0] + told["tokens"][1])]


def test_a_prompt_alone_can_be_judged(server):
    found = complete(server, prompt="Hello you", max_tokens=0, echo=True, logprobs=0)
    assert found.choices[0].text == "Hello you" and found.usage.completion_tokens == 0
    assert len(found.choices[0].logprobs.tokens) == found.usage.prompt_tokens
    assert found.choices[0].finish_reason == "length"


@pytest.mark.parametrize("asked", [{"prompt": [1, 999_999]}, {"prompt": ""}, {"prompt": "x", "max_tokens": 0}])
def test_what_cannot_be_gone_on_with_is_refused(server, asked):
    with pytest.raises(openai.BadRequestError):
        complete(server, **asked)


@pytest.mark.parametrize("pooling", ["mean", "last"])
def test_an_embedding_is_of_the_last_hidden_states(alone, pooling):
    with fixtures_server.running(fixtures_server.served(embedding_pooling=pooling)) as server:
        found = server.client().embeddings.create(model="tiny", input=TEXTS)  # the client asks for base64
        raw = server.client().embeddings.create(model="tiny", input=TEXTS[0], encoding_format="float")
        told = httpx.post(f"{server.address}/v1/embeddings", json={"input": "x", "encoding_format": "base64"}).json()
    for one, text in zip(found.data, TEXTS, strict=True):
        ids = torch.tensor([alone.tokenizer(text)["input_ids"]])
        with torch.no_grad():
            states = alone.model.model(ids).last_hidden_state[0]
        expected = states.mean(0) if pooling == "mean" else states[-1]
        assert one.embedding == pytest.approx((expected / expected.norm()).tolist(), abs=1e-5)
    assert raw.data[0].embedding == pytest.approx(found.data[0].embedding, abs=1e-5)
    assert len(np.frombuffer(base64.b64decode(told["data"][0]["embedding"]), "<f4")) == 32
    assert found.usage.prompt_tokens == sum(len(alone.tokenizer(text)["input_ids"]) for text in TEXTS)


def test_an_embedding_is_not_cut(server):
    create = server.client().embeddings.create
    assert len(create(model="tiny", input="x", dimensions=32).data[0].embedding) == 32
    with pytest.raises(openai.BadRequestError, match="have 32 numbers"):
        create(model="tiny", input="x", dimensions=8)
    with pytest.raises(openai.BadRequestError) as caught:
        create(model="tiny", input=[5] * 600)
    assert caught.value.code == "context_length_exceeded"


def test_the_models_are_listed(server):
    client = server.client()
    assert [model.id for model in client.models.list()] == ["tiny"]
    assert client.models.retrieve("tiny").max_model_len == fixtures_server.CONTEXT
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("tinny")


@pytest.mark.parametrize(("labels", "tokens"), [(1, False), (3, False), (3, True)])
def test_a_judge_says_what_it_says_of_a_file(tmp_path, labels, tokens):
    folder = fixtures_models.save_model(tmp_path / "judge", tiny_values(labels=labels, tokens=tokens))
    row = {"prompt": "Hi", "answers": ["good day", "no"]} if labels == 1 else "the cat sat"
    (tmp_path / "rows.jsonl").write_text("{}")
    opened = judge.Judge.open(str(folder), "cpu")
    rows = [("a", row if isinstance(row, dict) else {"text": row})]
    (expected,) = (
        {key: value for key, value in one.items() if key != "where"} for one in judge.scored(opened, iter(rows))
    )
    served = fixtures_server.Served.open(str(folder), fixtures_server.Serving(device="cpu"))
    with fixtures_server.running(served) as server:
        found = httpx.post(f"{server.address}/v1/score", json={"model": "judge", "input": [row, row]}).json()
        assert [one | {"index": 0} for one in found["data"]] == [{"object": "score", "index": 0} | expected] * 2
        wrong = httpx.post(f"{server.address}/v1/score", json={"input": {"answers": [7]}})
        if labels == 1:  # a row that cannot be ranked is named, as in a file
            assert "no prompt beside it" in wrong.json()["data"][0]["dropped"]
        else:
            assert wrong.status_code == 400 and "input[0]" in wrong.json()["error"]["message"]
        chat = httpx.post(
            f"{server.address}/v1/chat/completions", json={"messages": [{"role": "user", "content": "x"}]}
        )
        assert chat.status_code == 400 and "/v1/score" in chat.json()["error"]["message"]
        assert httpx.get(f"{server.address}/health").status_code == 200


def test_rows_that_nobody_waits_for_are_not_judged(tmp_path, monkeypatch):
    folder = fixtures_models.save_model(tmp_path / "judge", tiny_values(labels=1))
    looked = []

    def slowly(by, rows):
        for where, _ in rows:
            looked.append(where)
            time.sleep(0.05)
            yield {"where": where}

    monkeypatch.setattr(judge, "scored", slowly)
    served = fixtures_server.Served.open(str(folder), fixtures_server.Serving(device="cpu"))
    with fixtures_server.running(served) as server:
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(f"{server.address}/v1/score", json={"input": ["x"] * 1000}, timeout=0.5)
        fixtures_server.until(lambda: server.lines and server.lines[-1]["status"] == 499)
        assert len(httpx.post(f"{server.address}/v1/score", json={"input": ["x"]}, timeout=20).json()["data"]) == 1
    assert 1 < len(looked) < 900


def test_words_are_not_scores(server):
    answer = httpx.post(f"{server.address}/v1/score", json={"input": "x"})
    assert answer.status_code == 400 and "serve a reward model" in answer.json()["error"]["message"]
