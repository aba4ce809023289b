"""`/v1/completions`: texts, or their tokens, are gone on with."""

import asyncio
import secrets
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse, Response

from tunesmith.generate.batch import Piece, Request
from tunesmith.generate.readings import prompt_scores
from tunesmith.generate.sampling import Token
from tunesmith.generate.text import HALF_CHARACTER
from tunesmith.serve.answering import FAILED, Account, Answers, Events, account_of, while_there
from tunesmith.serve.chat import DONE, event, refuse_bias, refuse_many, several, usage
from tunesmith.serve.problem import of
from tunesmith.serve.requests import Completion
from tunesmith.serve.served import Served, Speaker


@dataclass(frozen=True)
class Plan:
    """What is to be done for a request: answers to each prompt by turns, `n` to the first, `n` to the second."""

    body: Completion
    speaker: Speaker
    prompts: tuple[tuple[int, ...], ...]
    texts: tuple[str, ...]  # of the prompts
    requests: tuple[Request, ...]

    @property
    def num_prompt(self) -> int:
        """Tokens of all prompts."""
        return sum(map(len, self.prompts))


def plan(served: Served, body: Completion) -> Plan:
    """What a request asks for. Raises Problem."""
    speaker = served.speaker(body.model)
    prompts = served.tokens(speaker, body.prompt, "prompt")
    refuse_many(served, len(prompts) * body.n, "n" if body.n > 1 else "prompt")
    refuse_bias(served, body.logit_bias)
    form, requests = served.form(speaker, body), list[Request]()
    for ids in prompts:
        most = served.room(len(ids), max(1, body.max_tokens), "prompt")
        sampling = body.sampling(served.drawn, most, body.logprobs)
        requests += several(Request(tuple(ids), sampling, speaker.adapter, grammar=form), body.n)
    texts = tuple(str(speaker.tokenizer.decode(ids, skip_special_tokens=True)) for ids in prompts) if body.echo else ()
    if body.echo and isinstance(body.prompt, str):
        texts = (body.prompt,)
    elif body.echo and isinstance(body.prompt[0], str):
        texts = tuple(map(str, body.prompt))
    return Plan(body, speaker, tuple(map(tuple, prompts)), texts, tuple(requests))


class Choice:
    """One answer in the making, as OpenAI tells it."""

    def __init__(self, plan: Plan, index: int) -> None:
        self.index = index
        self.text, self.tokens = "", list[Token]()
        self.finish: str | None = None if plan.body.max_tokens else "length"
        self._plan = plan
        self._offset = 0

    def begin(self, prompt: Sequence[Token]) -> tuple[str, list[Token]]:
        """What is told before the answer: the prompt, where it is asked for."""
        if self._plan.body.echo:
            self.text, self.tokens = self._plan.texts[self.index // self._plan.body.n], list(prompt)
        return self.text, self.tokens

    def take(self, piece: Piece) -> None:
        """Go on with a piece."""
        self.text += piece.text
        self.tokens += piece.tokens
        self.finish = piece.finish

    def told(self, text: str, tokens: Sequence[Token]) -> dict[str, Any]:
        """The choice, of so much of its text and tokens."""
        logprobs = self._logprobs(tokens) if self._plan.body.logprobs is not None else None
        return {"index": self.index, "text": text, "logprobs": logprobs, "finish_reason": self.finish}

    def _logprobs(self, tokens: Sequence[Token]) -> dict[str, Any]:
        speaker, offsets = self._plan.speaker, list[int]()
        for token in tokens:
            offsets.append(self._offset)
            self._offset += len(speaker.spelled(token.id)[0])
        top = [{_named(speaker, one): value for one, value in reversed(token.top)} or None for token in tokens]
        return {
            "tokens": [_named(speaker, token.id) for token in tokens],
            "token_logprobs": [token.logprob for token in tokens],
            "top_logprobs": top,
            "text_offset": offsets,
        }


def _named(speaker: Speaker, token: int) -> str:
    """The text of a token; its bytes, as OpenAI wrote them here, where they are no whole characters."""
    text, raw = speaker.spelled(token)
    return "bytes:" + "".join(f"\\x{byte:02x}" for byte in raw) if HALF_CHARACTER in text else text


async def answer(served: Served, body: Completion, request: HttpRequest) -> Response:
    """Go on with texts. Raises Problem."""
    account = account_of(request)
    planned = await while_there(request, served.ask(partial(plan, served, body), account.body_bytes))
    account.model, account.stream, account.prompt_tokens = planned.speaker.name, body.stream, planned.num_prompt
    echoed = await while_there(request, _echoed(served, planned))
    choices = [Choice(planned, index) for index in range(len(planned.requests))]
    begun = [choice.begin(echoed[choice.index // body.n]) for choice in choices]
    head = {
        "id": f"cmpl-{secrets.token_hex(12)}",
        "object": "text_completion",
        "created": int(time.time()),
        "model": account.model,
    }
    answers = Answers(served.worker, planned.requests if body.max_tokens else (), account)
    if body.stream:
        return Events(_events(head, answers, choices, begun, planned, account), answers.close)
    try:
        await while_there(request, _read(answers, choices))
    finally:
        answers.close()
    account.finish = [choice.finish or "" for choice in choices]
    told = [choice.told(choice.text, choice.tokens) for choice in choices]
    return JSONResponse(head | {"choices": told, "usage": usage(planned.num_prompt, account.generated_tokens)})


async def _echoed(served: Served, planned: Plan) -> list[Sequence[Token]]:
    """The tokens of each prompt, with their log-probabilities where prompts are told with them."""
    body = planned.body
    if not body.echo or body.logprobs is None:
        return [()] * len(planned.prompts)
    found: list[Sequence[Token]] = []
    for ids in planned.prompts:
        job = partial(prompt_scores, served.generator, ids, body.logprobs, planned.speaker.adapter)
        future: Any = served.worker.call(job)
        found.append(await asyncio.wrap_future(future))
    return found


async def _read(answers: Answers, choices: Sequence[Choice]) -> None:
    async for index, piece in answers:
        choices[index].take(piece)


async def _events(
    head: Mapping[str, Any],
    answers: Answers,
    choices: Sequence[Choice],
    begun: Sequence[tuple[str, list[Token]]],
    planned: Plan,
    account: Account,
) -> AsyncIterator[bytes]:
    """The events of a stream."""
    counted = planned.body.stream_options.include_usage
    none_yet = {"usage": None} if counted else {}
    for choice, (text, tokens) in zip(choices, begun, strict=True):
        if text or tokens:
            yield event({**head, "choices": [choice.told(text, tokens)], **none_yet})
    try:
        async for index, piece in answers:
            choice = choices[index]
            choice.take(piece)
            if piece.text or piece.finish is not None or (piece.tokens and planned.body.logprobs is not None):
                yield event({**head, "choices": [choice.told(piece.text, piece.tokens)], **none_yet})
            if choice.finish is not None:
                account.finish.append(choice.finish)
    except Exception as error:  # noqa: BLE001  # the stream has begun: its end tells what went wrong
        account.problem = str(error)
        account.finish.append(FAILED)
        yield event(of(error).body)
        yield DONE
        return
    if counted:
        yield event({**head, "choices": [], "usage": usage(planned.num_prompt, account.generated_tokens)})
    yield DONE
