"""`/v1/chat/completions`: a conversation is answered, whole or in pieces."""

import json
import secrets
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse, Response

from tunesmith.generate.batch import Piece, Request
from tunesmith.generate.parse import Call, Parser, Said
from tunesmith.generate.sampling import Token
from tunesmith.serve.answering import FAILED, Account, Answers, Events, account_of, while_there
from tunesmith.serve.problem import Problem, of
from tunesmith.serve.requests import Chat
from tunesmith.serve.served import Served, Speaker

DONE = b"data: [DONE]\n\n"


@dataclass(frozen=True)
class Plan:
    """What is to be done for a request."""

    body: Chat
    speaker: Speaker
    tools: tuple[Mapping[str, Any], ...]  # that may be called
    requests: tuple[Request, ...]  # one for each answer

    @property
    def num_prompt(self) -> int:
        """Tokens of the prompt."""
        return len(self.requests[0].prompt)


def plan(served: Served, body: Chat) -> Plan:
    """What a request asks for. Raises Problem, and what reading and writing the conversation raises."""
    speaker = served.speaker(body.model)
    refuse_many(served, body.n, "n")
    shown = [] if body.tool_choice == "none" else [tool.model_dump(exclude_none=True) for tool in body.tools]
    ids = served.conversation(speaker, body.messages, shown)
    tools = tuple(shown) if speaker.written.calls is not None else ()
    wanted = body.max_tokens if body.max_completion_tokens is None else body.max_completion_tokens
    most = served.room(len(ids), wanted, "messages")
    refuse_bias(served, body.logit_bias)
    sampling = body.sampling(served.drawn, most, (body.top_logprobs or 0) if body.logprobs else None)
    form = served.form(speaker, body, shown)
    request = Request(tuple(ids), sampling, speaker.adapter, speaker.needs_special(bool(tools)), form)
    return Plan(body, speaker, tools, several(request, body.n))


def several(request: Request, number: int) -> tuple[Request, ...]:
    """A request, so many times; a seed that is said counts up, as equal draws are of no use."""
    seed = request.sampling.seed
    if seed is None:
        return (request,) * number
    seeds = [request.sampling.model_copy(update={"seed": seed + place}) for place in range(number)]
    return tuple(replace(request, sampling=sampling) for sampling in seeds)


def refuse_many(served: Served, answers: int, param: str) -> None:
    """Raise Problem for more answers than there is ever room for: to ask again later would be of no use."""
    most = served.worker.most
    if answers > most:
        raise Problem(f"{param}: {answers} answers were asked for, and this server takes {most} at most", param=param)


def refuse_bias(served: Served, bias: Mapping[int, float]) -> None:
    """Raise Problem for a bias of a token that the model has not."""
    wrong = [token for token in bias if not 0 <= token < served.rows]
    if wrong:
        raise Problem(f"logit_bias: there is no token {wrong[0]}: the model has {served.rows}", param="logit_bias")


class Choice:
    """One answer in the making, as OpenAI tells it."""

    def __init__(self, plan: Plan, index: int) -> None:
        self.index = index
        self.said = Said()
        self.tokens: list[Token] = []
        self.finish: str | None = None
        self._plan = plan
        self._special = plan.requests[index].special
        self._parser = Parser(plan.speaker.written, plan.tools)

    def take(self, piece: Piece) -> Said:
        """What a piece adds to it."""
        text = self._plan.speaker.hidden.sub("", piece.text) if self._special else piece.text
        new = self._parser.feed(text)
        if piece.finish is not None:
            new += self._parser.end()
        self.said += new
        self.tokens += piece.tokens
        if piece.finish is not None:
            self.finish = "tool_calls" if self.said.calls and piece.finish == "stop" else piece.finish
        return new

    def logprobs(self, tokens: Sequence[Token]) -> dict[str, Any] | None:
        """The log-probabilities of some of its tokens, where they are asked for."""
        if not self._plan.body.logprobs:
            return None
        return {"content": [told(self._plan.speaker, token) for token in tokens], "refusal": None}

    def whole(self) -> dict[str, Any]:
        """All of it."""
        said = self.said
        message: dict[str, Any] = {"role": "assistant", "content": said.content or (None if said.calls else "")}
        message["refusal"] = None
        if said.reasoning:
            message["reasoning_content"] = said.reasoning
        if said.calls:
            message["tool_calls"] = [call_of(self._plan.speaker, call) for call in said.calls]
        logprobs = self.logprobs(self.tokens)
        return {"index": self.index, "message": message, "logprobs": logprobs, "finish_reason": self.finish}

    def delta(self, new: Said) -> dict[str, Any]:
        """What is new, for a stream."""
        found: dict[str, Any] = {}
        if new.reasoning:
            found["reasoning_content"] = new.reasoning
        if new.content:
            found["content"] = new.content
        if new.calls:
            before = len(self.said.calls) - len(new.calls)
            calls = enumerate(new.calls, before)
            found["tool_calls"] = [{"index": place} | call_of(self._plan.speaker, call) for place, call in calls]
        return found


def call_of(speaker: Speaker, call: Call) -> dict[str, Any]:
    """A call as OpenAI tells it."""
    characters = 24 if speaker.written.calls is None else speaker.written.calls.id_characters
    made = secrets.token_hex(12) if characters < 24 else f"call_{secrets.token_hex(12)}"
    arguments = json.dumps(call.arguments, ensure_ascii=False)
    function = {"name": call.name, "arguments": arguments}
    return {"id": call.id or made[:characters], "type": "function", "function": function}


def told(speaker: Speaker, token: Token) -> dict[str, Any]:
    """A token with its log-probability, and the likeliest ones."""

    def one(token: int, logprob: float | None) -> dict[str, Any]:
        text, raw = speaker.spelled(token)
        return {"token": text, "logprob": logprob, "bytes": raw}

    return one(token.id, token.logprob) | {"top_logprobs": [one(*top) for top in token.top]}


def usage(prompt: int, generated: int) -> dict[str, int]:
    """The numbers of tokens."""
    return {"prompt_tokens": prompt, "completion_tokens": generated, "total_tokens": prompt + generated}


def event(body: Mapping[str, Any]) -> bytes:
    """One server-sent event."""
    return b"data: " + json.dumps(body, ensure_ascii=False, separators=(",", ":")).encode() + b"\n\n"


async def answer(served: Served, body: Chat, request: HttpRequest) -> Response:
    """Answer a conversation. Raises Problem, and what `plan` raises."""
    account = account_of(request)
    planned = await while_there(request, served.ask(partial(plan, served, body), account.body_bytes))
    account.model, account.stream, account.prompt_tokens = planned.speaker.name, body.stream, planned.num_prompt
    answers = Answers(served.worker, planned.requests, account)
    choices = [Choice(planned, index) for index in range(body.n)]
    head = {"id": f"chatcmpl-{secrets.token_hex(12)}", "created": int(time.time()), "model": account.model}
    if body.stream:
        return Events(_events(head, answers, choices, planned, account), answers.close)
    try:
        await while_there(request, _read(answers, choices))
    finally:
        answers.close()
    account.finish = [choice.finish or "" for choice in choices]
    found: dict[str, Any] = {"object": "chat.completion", "choices": [choice.whole() for choice in choices]}
    return JSONResponse(head | found | {"usage": usage(planned.num_prompt, account.generated_tokens)})


async def _read(answers: Answers, choices: Sequence[Choice]) -> None:
    async for index, piece in answers:
        choices[index].take(piece)


async def _events(
    head: dict[str, Any], answers: Answers, choices: Sequence[Choice], planned: Plan, account: Account
) -> AsyncIterator[bytes]:
    """The events of a stream."""
    counted = planned.body.stream_options.include_usage

    def chunk(choice: Choice, delta: Mapping[str, Any], logprobs: Any = None, finish: str | None = None) -> bytes:
        told = {"index": choice.index, "delta": delta, "logprobs": logprobs, "finish_reason": finish}
        body = head | {"object": "chat.completion.chunk", "choices": [told]}
        return event(body | ({"usage": None} if counted else {}))

    for choice in choices:
        yield chunk(choice, {"role": "assistant", "content": ""})
    try:
        async for index, piece in answers:
            choice = choices[index]
            delta, logprobs = choice.delta(choice.take(piece)), choice.logprobs(piece.tokens)
            if delta or (logprobs and piece.tokens):
                yield chunk(choice, delta, logprobs)
            if choice.finish is not None:
                account.finish.append(choice.finish)
                yield chunk(choice, {}, None, choice.finish)
    except Exception as error:  # noqa: BLE001  # the stream has begun: its end tells what went wrong
        account.problem = str(error)
        account.finish.append(FAILED)
        yield event(of(error).body)
        yield DONE
        return
    if counted:
        numbers = usage(planned.num_prompt, account.generated_tokens)
        yield event(head | {"object": "chat.completion.chunk", "choices": [], "usage": numbers})
    yield DONE
