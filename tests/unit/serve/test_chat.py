"""Chats of the official client with a server on loopback are those that the model would have alone."""

import json

import httpx
import openai
import pytest
import torch

import fixtures_server

HELLO = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Hello, how are you today?"}]
WARMTH = {
    "type": "function",
    "function": {
        "name": "warmth",
        "parameters": {"type": "object", "properties": {"place": {"type": "string"}}, "required": ["place"]},
    },
}
CALL = {"id": "c1", "type": "function", "function": {"name": "warmth", "arguments": {"place": "Köln"}}}
SAYS_CALL = f"Let me see.<call>{json.dumps(CALL, ensure_ascii=False)}</call>"


@pytest.fixture(scope="module")
def server():
    with fixtures_server.running(fixtures_server.served()) as running:
        yield running


def ask(server, messages=HELLO, **options):
    return server.client().chat.completions.create(model="tiny", messages=messages, **options)


def test_a_greedy_answer_is_the_models_own(server):
    alone = fixtures_server.served().generator
    found = ask(server, temperature=0, max_tokens=20)
    assert found.choices[0].message.content == alone.complete(HELLO, max_new_tokens=20)
    ids = alone.complete_ids(HELLO, max_new_tokens=20)
    prompt = alone.prompt(HELLO, 20).ids
    assert (found.usage.prompt_tokens, found.usage.completion_tokens) == (len(prompt), len(ids))
    assert found.usage.total_tokens == len(prompt) + len(ids)
    assert found.choices[0].finish_reason == ("length" if len(ids) == 20 else "stop")
    assert found.model == "tiny" and found.object == "chat.completion"


def test_without_a_limit_an_answer_fills_the_context(server, monkeypatch):
    fixtures_server.scripted(monkeypatch, server, "the moon " * 500)
    found = ask(server)
    assert found.usage.total_tokens == fixtures_server.CONTEXT and found.choices[0].finish_reason == "length"


def test_a_stream_is_the_whole_answer_in_pieces(server):
    options = {"temperature": 1.2, "seed": 3, "max_tokens": 30, "n": 2}
    whole = ask(server, **options)
    assert whole.choices[0].message.content != whole.choices[1].message.content
    said, finish, last = ["", ""], [None, None], None
    for chunk in ask(server, stream=True, stream_options={"include_usage": True}, **options):
        assert last is None, "the usage is the last chunk"
        last = chunk.usage
        for choice in chunk.choices:
            said[choice.index] += choice.delta.content or ""
            finish[choice.index] = choice.finish_reason or finish[choice.index]
    assert said == [choice.message.content for choice in whole.choices]
    assert finish == [choice.finish_reason for choice in whole.choices]
    assert last == whole.usage


def test_log_probabilities_are_the_models_own(server):
    alone = fixtures_server.served().generator
    found = ask(server, temperature=0, max_tokens=6, logprobs=True, top_logprobs=3)
    ids = alone.complete_ids(HELLO, max_new_tokens=6)
    prompt = alone.prompt(HELLO, 6).ids
    with torch.no_grad():
        logits = alone.model(torch.tensor([[*prompt, *ids]])).logits[0, len(prompt) - 1 : -1]
    logps = torch.log_softmax(logits.float(), dim=-1)
    told = found.choices[0].logprobs.content
    assert [one.token for one in told] == [alone.tokenizer.decode([token]) for token in ids]
    for row, token, one in zip(logps, ids, told, strict=True):
        assert one.logprob == pytest.approx(row[token].item(), abs=1e-4)
        assert [top.logprob for top in one.top_logprobs] == pytest.approx(row.topk(3).values.tolist(), abs=1e-4)
    streamed = [
        one.token
        for chunk in ask(server, temperature=0, max_tokens=6, logprobs=True, stream=True)
        if chunk.choices[0].logprobs
        for one in chunk.choices[0].logprobs.content
    ]
    assert streamed == [one.token for one in told]


def test_bytes_of_half_characters_are_the_tokens_own(server, monkeypatch):
    tokenizer = server.served.generator.tokenizer
    ids = tokenizer("🙂 é")["input_ids"]
    assert len(ids) > 3
    fixtures_server.scripted(monkeypatch, server, "🙂 é")
    found = ask(server, logprobs=True, max_tokens=20)
    assert found.choices[0].message.content == "🙂 é"
    assert bytes(byte for one in found.choices[0].logprobs.content for byte in one.bytes).decode() == "🙂 é"


@pytest.mark.parametrize("stream", [False, True])
def test_calls_and_reasoning_are_told_apart(server, monkeypatch, stream):
    fixtures_server.scripted(monkeypatch, server, f"<think>I must look.</think>{SAYS_CALL}")
    found = ask(server, tools=[WARMTH], stream=stream, max_tokens=150)
    if stream:
        chunks = [chunk.choices[0] for chunk in found]
        thought = "".join(getattr(one.delta, "reasoning_content", "") for one in chunks)
        content = "".join(one.delta.content or "" for one in chunks)
        calls = [call for one in chunks for call in one.delta.tool_calls or ()]
        finish = chunks[-1].finish_reason
        assert [call.index for call in calls] == [0]
    else:
        message, finish = found.choices[0].message, found.choices[0].finish_reason
        thought, content, calls = message.reasoning_content, message.content, message.tool_calls
    assert (thought, content, finish) == ("I must look.", "Let me see.", "tool_calls")
    (call,) = calls
    assert (call.id, call.type, call.function.name) == ("c1", "function", "warmth")
    assert json.loads(call.function.arguments) == {"place": "Köln"}


def test_a_call_can_be_answered_in_the_next_turn(server, monkeypatch):
    with monkeypatch.context() as patched:
        fixtures_server.scripted(patched, server, SAYS_CALL)
        said = ask(server, tools=[WARMTH], max_tokens=150).choices[0].message
    result = {"role": "tool", "tool_call_id": said.tool_calls[0].id, "content": "4"}
    turns = [*HELLO, said.model_dump(), result]
    asked = [*HELLO, {"role": "assistant", "content": said.content, "tool_calls": [CALL]}, result]
    expected = server.served.generator.prompt(asked, 5, [WARMTH]).ids
    assert ask(server, turns, tools=[WARMTH], max_tokens=5).usage.prompt_tokens == len(expected)


def test_arguments_that_are_no_json_are_text(server):
    """As OpenAI takes them: a model has said so, and is shown what it said."""
    call = {"id": "c1", "type": "function", "function": {"name": "warmth", "arguments": '{"place": "Kö'}}
    turns = [*HELLO, {"role": "assistant", "content": "", "tool_calls": [call]}, {"role": "tool", "content": "4"}]
    found = ask(server, turns, tools=[WARMTH], max_tokens=5)
    speaker = server.served.speakers["tiny"]
    ids = server.served.conversation(speaker, turns, [WARMTH])
    assert found.usage.prompt_tokens == len(ids)
    assert '{\\"place\\": \\"Kö' in speaker.tokenizer.decode(ids)  # a text of the call's JSON


def test_tools_that_may_not_be_called_are_not_shown(server, monkeypatch):
    fixtures_server.scripted(monkeypatch, server, SAYS_CALL)
    found = ask(server, tools=[WARMTH], tool_choice="none", max_tokens=150)
    assert found.choices[0].message.content == SAYS_CALL and not found.choices[0].message.tool_calls
    assert found.usage.prompt_tokens == len(server.served.generator.prompt(HELLO, 5).ids)


def test_sampling_options_are_the_generators_own(server):
    alone = fixtures_server.served().generator
    options = {"temperature": 1.5, "top_p": 0.9, "frequency_penalty": 0.5, "presence_penalty": 0.2, "seed": 9}
    more = {"top_k": 50, "min_p": 0.01, "repetition_penalty": 1.1}
    bias = {str(alone.tokenizer("Moon")["input_ids"][0]): 3.0}
    found = ask(server, **options, logit_bias=bias, extra_body=more, max_tokens=25)
    given = options | more | {"logit_bias": {int(key): value for key, value in bias.items()}}
    assert found.choices[0].message.content == alone.complete(HELLO, **given, max_new_tokens=25)
    text = found.choices[0].message.content
    stop = text[len(text) // 2 :][:2]
    stopped = ask(server, **options, logit_bias=bias, extra_body=more, max_tokens=25, stop=stop)
    assert stopped.choices[0].message.content == text[: text.index(stop)]
    assert stopped.choices[0].finish_reason == "stop"


def test_answers_that_nobody_seeded_differ(server):
    found = ask(server, n=3, temperature=1.5, max_tokens=30)
    assert len({choice.message.content for choice in found.choices}) == 3


@pytest.mark.parametrize(
    ("asked", "param", "said"),
    [
        ({"temprature": 1}, "temprature", "Did you mean 'temperature'"),
        ({"temperature": 3}, "temperature", "less than or equal to 2"),
        ({"top_logprobs": 3}, "top_logprobs", "top_logprobs: needs logprobs"),
        ({"logit_bias": {"999999": 1}}, "logit_bias", "no token 999999"),
        ({"tool_choice": "required"}, "tool_choice", "there are no tools"),
        ({"messages": [{"role": "robot", "content": "x"}]}, None, "is 'robot'"),
        ({"messages": [{"role": "user", "content": 7}]}, None, "content"),
        ({"messages": [{"role": "tool", "content": "x"}]}, None, "no turn before it calls one"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]}, "messages",
         "holds image"),
        ({"n": 0}, "n", "greater than or equal to 1"),
    ],
)  # fmt: skip
def test_what_cannot_be_done_is_said(server, asked, param, said):
    with pytest.raises(openai.BadRequestError, match=said) as caught:
        ask(server, **({"messages": HELLO} | {"extra_body": asked}))
    assert caught.value.param == param and caught.value.type == "invalid_request_error"


def test_a_prompt_that_is_too_long_is_refused(server):
    long = [{"role": "user", "content": "The river runs. " * 200}]
    for messages, most in ((long, None), (HELLO, fixtures_server.CONTEXT)):
        with pytest.raises(openai.BadRequestError) as caught:
            ask(server, messages, **({"max_tokens": most} if most else {}))
        assert caught.value.code == "context_length_exceeded"


def test_an_unknown_model_is_refused_with_near_names(server):
    with pytest.raises(openai.NotFoundError, match="Did you mean 'tiny'") as caught:
        server.client().chat.completions.create(model="tinny", messages=HELLO)
    assert caught.value.code == "model_not_found"


def test_a_failing_decoder_is_told_and_the_server_goes_on(server, monkeypatch):
    with monkeypatch.context() as patched:
        patched.setattr(server.served.worker.batch.decoder, "step", lambda *given: 1 / 0)
        with pytest.raises(openai.InternalServerError, match="division by zero"):
            ask(server, max_tokens=5)
        with pytest.raises(openai.APIError, match="division by zero"):
            list(ask(server, max_tokens=5, stream=True))
    assert ask(server, max_tokens=5).usage.completion_tokens > 0
    assert httpx.get(f"{server.address}/health").json() == {"status": "ok"}


def test_a_client_that_goes_frees_its_place(server, monkeypatch):
    many = "the moon " * 30_000  # half a minute of it, whatever else the machine does
    fixtures_server.scripted(monkeypatch, server, many)
    monkeypatch.setitem(vars(server.served), "context", None)
    worker = server.served.worker
    for stream in (True, False):
        before = len(server.lines)
        body = {"messages": HELLO, "max_tokens": 100_000, "stream": stream}
        with httpx.Client(timeout=0.5) as client:
            if stream:
                with client.stream("POST", f"{server.address}/v1/chat/completions", json=body) as answer:
                    pieces = answer.iter_bytes()  # one without a name is closed at once, and the client gone
                    next(pieces)
                    fixtures_server.until(lambda: worker.num_running == 1)
            else:
                with pytest.raises(httpx.ReadTimeout):
                    client.post(f"{server.address}/v1/chat/completions", json=body)
        fixtures_server.until(lambda: worker.num_running == worker.num_waiting == 0)
        fixtures_server.until(lambda before=before: len(server.lines) > before)
        assert server.lines[-1]["status"] == (200 if stream else 499)
        assert server.lines[-1]["completion_tokens"] < 60_000


def test_a_line_is_written_of_each_request_without_its_text(server):
    own = ask(server, temperature=0, max_tokens=4)._request_id

    def written():
        return [one for one in server.lines if one["id"] == own]

    fixtures_server.until(written)  # behind the answer, and maybe behind another's line
    (line,) = written()
    assert line["completion_tokens"] == 4 and line["status"] == 200
    assert line["path"] == "/v1/chat/completions" and line["model"] == "tiny"
    assert line["finish"] == ["length"]
    assert 0 <= line["queued_seconds"] <= line["first_token_seconds"] <= line["seconds"]
    assert "kind" not in json.dumps(server.lines)
