"""A model that is asked over HTTP: whole answers, answers in pieces, and log-probabilities of given tokens.

Our own server, vLLM, llama.cpp and Ollama all know `/chat/completions`. Prompts as tokens are known to the first three,
log-probabilities of a prompt (`echo` of `/completions`) to the first two; what a server lacks is said when it is asked.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from queue import Empty, SimpleQueue
from threading import Thread
from typing import TYPE_CHECKING, Any, TypeVar

from tunesmith.engine.model import load_tokenizer
from tunesmith.errors import ModelError, RecipeError
from tunesmith.generate.asked import Sampling
from tunesmith.generate.endpoint import CHAT, TEXTS, Endpoint, Rejected, Server, choices, chosen, is_address, text_of
from tunesmith.generate.engine import Generator, Prompt, Reply, fitted, without_oldest
from tunesmith.generate.load import locate
from tunesmith.generate.parse import Call, Said
from tunesmith.generate.speech import Speech
from tunesmith.recipe import Model

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SCORED_TOGETHER = 8  # sequences of a request for log-probabilities
LONG = ("maximum context length", "context_length_exceeded", "exceeds the available context size")
OURS = {"top_k": -1, "min_p": 0.0, "repetition_penalty": 1.0}  # what OpenAI's server lacks, and what changes nothing
HAS = "What it is asked and writes itself is measured: predict with token_accuracy=false, chat, gsm8k, needle"
Turns = Sequence[Mapping[str, Any]]
Made = TypeVar("Made")


@dataclass(frozen=True)
class Addressed:
    """A model of a server. `tokenizer` is that model's, where prompts are sent as tokens."""

    endpoint: Endpoint
    name: str
    context_tokens: int | None
    how: Server
    tokenizer: "PreTrainedTokenizerBase | None"

    @classmethod
    def open(cls, address: str, how: Server) -> "Addressed":
        """The model at an address, which is http://HOST:PORT/v1, and behind a # its name where there are several.

        Raises:
            RecipeError: the address, its key or the tokenizer is none.
            ModelError: the server cannot be reached, or has no such model.
        """
        endpoint = Endpoint.of(address, how)
        told = chosen(endpoint, address)
        length = told.get("max_model_len")
        tokenizer = None
        if how.tokenizer is not None:
            place = locate(how.tokenizer)
            tokenizer = load_tokenizer(Model(path=place, tokenizer=place))
        return cls(endpoint, str(told["id"]), length if isinstance(length, int) else None, how, tokenizer)

    def drawn(self, sampling: Sampling) -> dict[str, Any]:
        """How an answer is drawn, by OpenAI's names. Raises RecipeError for what OpenAI's own server lacks."""
        body: dict[str, Any] = {
            "max_tokens": sampling.max_new_tokens,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
        }
        ours = {"top_k": sampling.top_k or -1, "min_p": sampling.min_p}
        ours["repetition_penalty"] = sampling.repetition_penalty
        other = next((name for name, value in ours.items() if value != OURS[name]), None)
        if self.how.only_openai and other is not None:
            raise RecipeError(
                f"{other}={ours[other]} is no option of OpenAI's own server: leave server.only_openai out"
            )
        body |= {} if self.how.only_openai else ours
        for name in ("presence_penalty", "frequency_penalty", "logit_bias", "stop", "seed"):
            value = getattr(sampling, name)
            if value not in (0.0, {}, (), None) or (name == "seed" and value == 0):
                body[name] = list(value) if name == "stop" else value
        if sampling.json_schema is not None:
            named = {"name": "answer", "schema": sampling.json_schema, "strict": True}
            body["response_format"] = {"type": "json_schema", "json_schema": named}
        if sampling.regex is not None:
            body["structured_outputs"] = {"regex": sampling.regex}
        return body

    def asked(self, messages: Turns, tools: Turns, sampling: Sampling) -> dict[str, Any]:
        """The body of a request that answers a conversation."""
        body = {"model": self.name, "messages": as_openai(messages)} | self.drawn(sampling)
        if sampling.logprobs is not None:
            body |= {"logprobs": True} | ({"top_logprobs": sampling.logprobs} if sampling.logprobs else {})
        return body | ({"tools": [dict(tool) for tool in tools]} if tools else {})

    def answer(self, messages: Turns, tools: Turns, sampling: Sampling) -> tuple[Reply, int]:
        """A conversation answered by the server's own template, and how many of its oldest turns had no room.

        Raises:
            ModelError: see `Endpoint.post`.
        """
        answer, dropped = self._fitting(
            messages, lambda kept: self.endpoint.post(CHAT, self.asked(kept, tools, sampling))
        )
        choice = choices(self.endpoint, CHAT, answer, "message")[0]
        listed = (choice.get("logprobs") or {}).get("content") or ()
        logprobs = tuple(one["logprob"] for one in listed)
        return self._reply(answer, choice, text_of(choice["message"].get("content")), logprobs), dropped

    def speak(self, messages: Turns, tools: Turns, sampling: Sampling) -> Speech:
        """A conversation answered in pieces, as they come. Raises ModelError."""

        def begin(kept: Turns) -> tuple[Any, Iterator[Any]]:
            body = self.asked(kept, tools, sampling) | {"stream": True, "stream_options": {"include_usage": True}}
            events = self.endpoint.events(CHAT, body)
            return next(events, None), events

        (first, events), dropped = self._fitting(messages, begin)
        return _Streamed(self.endpoint, first, events, dropped)

    def prompt(self, messages: Turns, tools: Turns, max_new_tokens: int) -> Prompt:
        """A conversation as tokens of the model, as `Generator.prompt` makes them."""
        assert self.tokenizer is not None, "prompts are sent as messages"
        return fitted(self.tokenizer, messages, tools, max_new_tokens, self.context_tokens)

    def complete(self, ids: Sequence[int], sampling: Sampling) -> Reply:
        """What goes on behind some tokens. Raises ModelError."""
        room = None if self.context_tokens is None else max(1, self.context_tokens - len(ids))
        most = sampling.max_new_tokens if room is None else min(room, sampling.max_new_tokens)
        body: dict[str, Any] = {"model": self.name, "prompt": list(ids)}
        body |= self.drawn(sampling.model_copy(update={"max_new_tokens": most}))
        body |= {} if sampling.logprobs is None else {"logprobs": sampling.logprobs}
        answer = self.endpoint.post(TEXTS, body)
        choice = choices(self.endpoint, TEXTS, answer, "text")[0]
        logprobs = tuple((choice.get("logprobs") or {}).get("token_logprobs") or ())
        return self._reply(answer, choice, text_of(choice["text"]), logprobs)

    def sampled(self, messages: Turns, each: Sequence[Sampling], tools: Turns = ()) -> Iterator[Reply]:
        """Answers to one conversation, each drawn in its own way."""
        yield from self.in_order([partial(self._one, messages, tools, sampling) for sampling in each])

    def _one(self, messages: Turns, tools: Turns, sampling: Sampling) -> Reply:
        if self.tokenizer is None:
            return self.answer(messages, tools, sampling)[0]
        return self.complete(self.prompt(messages, tools, sampling.max_new_tokens).ids, sampling)

    def scores(self, sequences: Sequence[tuple[Sequence[int], int]]) -> Iterator[list[list[float]]]:
        """For each of some (tokens, n) the log-probabilities of its n last tokens, some sequences at a time.

        Raises:
            ModelError: the server tells none of a prompt.
        """
        groups = [sequences[at : at + SCORED_TOGETHER] for at in range(0, len(sequences), SCORED_TOGETHER)]
        for group, told in zip(groups, self.in_order([partial(self._scored, group) for group in groups]), strict=True):
            yield [one["token_logprobs"][len(ids) - n : len(ids)] for one, (ids, n) in zip(told, group, strict=True)]

    def likeliest(self, ids: Sequence[int], answer: Sequence[int]) -> list[bool]:
        """Whether each token of an answer is the likeliest one behind those before it. Raises as `scores`."""
        (told,) = self._scored([([*ids, *answer], len(answer))])
        places = range(len(ids), len(ids) + len(answer))
        tops = [max((told["top_logprobs"][at] or {}).values(), default=float("inf")) for at in places]
        return [told["token_logprobs"][at] >= top for at, top in zip(places, tops, strict=True)]

    def in_order(self, jobs: Sequence[Callable[[], Made]]) -> Iterator[Made]:
        """What jobs give, in their order, `max_concurrent` at a time; where one fails, what waits is not begun."""
        futures: list[Future[Made]] = [Future() for _ in jobs]
        waiting: SimpleQueue[tuple[Future[Made], Callable[[], Made]]] = SimpleQueue()
        for pair in zip(futures, jobs, strict=True):
            waiting.put(pair)
        for _ in range(min(self.how.max_concurrent, len(jobs))):
            Thread(target=_work, args=(waiting,), daemon=True).start()  # Ctrl-C does not wait for a slow server
        try:
            for future in futures:
                yield future.result()
        finally:
            for future in futures:
                future.cancel()

    def _fitting(self, messages: Turns, ask: Callable[[Turns], Made]) -> tuple[Made, int]:
        """What is answered to a conversation without the oldest exchanges that the server has no room for."""
        kept = list(messages)
        while True:
            try:
                return ask(kept), len(messages) - len(kept)
            except Rejected as error:
                kept = without_oldest(kept) if any(one in str(error) for one in LONG) else []
                if not kept:
                    raise

    def _reply(self, answer: Any, choice: Mapping[str, Any], text: str, logprobs: tuple[float, ...]) -> Reply:
        number = (answer.get("usage") or {}).get("completion_tokens", 0)
        return Reply(text, "length" if choice.get("finish_reason") == "length" else "stop", number, logprobs)

    def _scored(self, group: Sequence[tuple[Sequence[int], int]]) -> list[dict[str, Any]]:
        """What the server tells of the tokens of some prompts."""
        prompts = [list(ids) for ids, _ in group]
        body = {"model": self.name, "prompt": prompts, "echo": True, "logprobs": 1, "max_tokens": 0, "temperature": 0}
        place = self.endpoint.place(TEXTS)
        try:
            answer = self.endpoint.post(TEXTS, body)
        except Rejected as error:
            longest = max(map(len, prompts))
            if longest == self.context_tokens:  # vLLM keeps room for a token more than it is asked for
                raise ModelError(
                    f"{place} refuses a text of {longest} tokens, as long as its context ({error}): ask it for shorter "
                    f"ones, as in perplexity.max_tokens={longest - 1}"
                ) from None
            raise ModelError(
                f"{place} gives no log-probabilities of a text that it is given ({error}). {HAS}"
            ) from None
        told = [one.get("logprobs") or {} for one in choices(self.endpoint, TEXTS, answer, "text")]
        logps = [one.get("token_logprobs") or [] for one in told]
        if len(told) != len(prompts) or not all(_fits(*pair) for pair in zip(logps, prompts, strict=True)):
            raise ModelError(
                f"{place} gives no log-probabilities of a text that it is given: of prompts of "
                f"{[len(one) for one in prompts]} tokens it told {[len(one) for one in logps]}. {HAS}"
            )
        return told


def answering(path: str, how: Server, device: str = "auto") -> Generator | Addressed:
    """Who answers: the model of a run, folder, hub id or server. Raises RunError, ModelError, RecipeError."""
    return Addressed.open(path, how) if is_address(path) else Generator.open(path, device)


def _fits(told: Sequence[Any], prompt: Sequence[int]) -> bool:
    """Whether these are the log-probabilities of a prompt; some servers cannot but make one token more."""
    numbers = all(isinstance(one, int | float) for one in told[1 : len(prompt)])
    return numbers and len(told) in (len(prompt), len(prompt) + 1)


def _work(waiting: "SimpleQueue[tuple[Future[Any], Callable[[], Any]]]") -> None:
    while True:
        try:
            future, job = waiting.get_nowait()
        except Empty:
            return
        if future.set_running_or_notify_cancel():
            try:
                future.set_result(job())
            except BaseException as error:  # noqa: BLE001  # whoever waits for it is told
                future.set_exception(error)


def as_openai(messages: Turns) -> list[dict[str, Any]]:
    """Turns as OpenAI has them: arguments of calls are JSON texts, and every call and its result has an id."""
    found, open_calls, number = [], list[str](), 0
    for turn in map(dict, messages):
        if turn.get("tool_calls"):
            calls = []
            for call in turn["tool_calls"]:
                number += 1
                function, said = call["function"], call["function"].get("arguments", {})
                arguments = said if isinstance(said, str) else json.dumps(said, ensure_ascii=False)
                told = {"id": call.get("id") or f"call_{number}", "type": "function"}
                calls.append(told | {"function": {"name": function["name"], "arguments": arguments}})
            open_calls += [call["id"] for call in calls]
            turn["tool_calls"] = calls
        if turn["role"] == "tool" and open_calls:
            first = open_calls.pop(0)
            turn["tool_call_id"] = turn.get("tool_call_id") or first
        found.append(turn)
    return found


class _Streamed(Speech):
    """An answer of a server as its events come."""

    def __init__(self, endpoint: Endpoint, first: Any, events: Iterator[Any], dropped_turns: int) -> None:
        self.dropped_turns = dropped_turns
        self._endpoint, self._first, self._events = endpoint, first, events
        self._calls: dict[int, dict[str, str]] = {}
        self._over = False

    def __next__(self) -> Said:
        if self._over:
            raise StopIteration
        event = self._first if self._first is not None else next(self._events, None)
        self._first = None
        if event is None:
            self._over = True
            if self.finish is None:
                raise ModelError(f"{self._endpoint.place(CHAT)} broke off its answer behind {self.num_tokens} tokens")
            return Said(calls=tuple(self._call(call) for call in self._calls.values()))
        self.num_tokens = (event.get("usage") or {}).get("completion_tokens", self.num_tokens)
        listed = event.get("choices")
        return self._piece(listed[0]) if listed else Said()

    def _piece(self, choice: Mapping[str, Any]) -> Said:
        """What one event adds; a call is kept until all of it has come."""
        delta = choice.get("delta") or {}
        content, reasoning = text_of(delta.get("content")), delta.get("reasoning_content", delta.get("reasoning"))
        for told in delta.get("tool_calls") or ():
            call = self._calls.setdefault(told.get("index", len(self._calls)), {"id": "", "name": "", "arguments": ""})
            function = told.get("function") or {}
            call["id"] = told.get("id") or call["id"]
            call["name"] += function.get("name") or ""
            call["arguments"] += function.get("arguments") or ""
        if choice.get("finish_reason"):
            self.finish = "length" if choice["finish_reason"] == "length" else "stop"
        return Said(text_of(reasoning), content)

    def _call(self, call: Mapping[str, str]) -> Call:
        try:
            arguments = json.loads(call["arguments"] or "{}")
        except ValueError:
            arguments = None
        if not isinstance(arguments, dict):
            raise ModelError(f"{self._endpoint.place(CHAT)} calls {call['name']} with {call['arguments']!r}: no object")
        return Call(call["name"], arguments, call["id"] or None)

    def close(self) -> None:
        """Make no more of it: the server sees that nobody reads."""
        self._events.close()  # type: ignore[attr-defined]  # it is a generator
