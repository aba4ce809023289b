"""What is served: a model that says words, with adapters beside it, or one that judges; and what requests call them."""

import asyncio
import re
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any, TypeVar

from tunesmith.data import refuse
from tunesmith.data.prompt import prompt_ids, prompt_text
from tunesmith.data.sides import source_ids
from tunesmith.engine.model import num_rows
from tunesmith.errors import RecipeError, near
from tunesmith.formats.messages import Messages
from tunesmith.generate.alone import encodes
from tunesmith.generate.answer_format import AnswerFormat, find
from tunesmith.generate.choose import decoder_for
from tunesmith.generate.constraint import Form, Forms
from tunesmith.generate.engine import Generator
from tunesmith.generate.judge import Judge
from tunesmith.generate.load import locate, stored_head
from tunesmith.generate.text import HALF_CHARACTER
from tunesmith.generate.worker import Worker
from tunesmith.serve.held import Tools, form_of
from tunesmith.serve.lengths import BYTE_LEVEL, letters, longest_token, written
from tunesmith.serve.options import Serving
from tunesmith.serve.problem import Problem, too_long, too_many_letters
from tunesmith.serve.requests import Drawn

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Found = TypeVar("Found")

LONG_BYTES = 2**16  # of a request: twice as much English took a tokenizer a third of a second
BYTE = re.compile(r"<0x([0-9A-F]{2})>")  # a token that is a byte, where others are texts
DRAWN = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")  # what a generation config may say of it


@dataclass(frozen=True)
class Speaker:
    """A model as requests call it: the base, or one of its adapters, with the tokenizer of its folder."""

    name: str
    tokenizer: "PreTrainedTokenizerBase"
    adapter: str | None = None

    @cached_property
    def written(self) -> AnswerFormat:
        """How its chat template writes answers."""
        return find(self.tokenizer)

    @cached_property
    def longest_token(self) -> tuple[int, int] | None:
        """Letters that one token stands for at most, if that is known: see `lengths`."""
        return longest_token(self.tokenizer)

    @cached_property
    def hidden(self) -> re.Pattern[str]:
        """Special tokens that are no text, where others are."""
        special = {token.content for token in self.tokenizer.added_tokens_decoder.values() if token.special}
        hidden = sorted(special - self.written.special, key=len, reverse=True)
        return re.compile("|".join(map(re.escape, hidden)) or r"(?!)")

    def needs_special(self, with_tools: bool) -> bool:
        """Whether special tokens are wanted as text, because parts of an answer are told by them."""
        how = self.written.reasoning
        marks = self.written.lead + ("" if how is None else how.open + how.close)
        return bool(self.written.special) and (with_tools or any(one in marks for one in self.written.special))

    def spelled(self, token: int) -> tuple[str, list[int]]:
        """A token as text and as bytes, which may be a part of a character."""
        text = str(self.tokenizer.decode([token]))
        piece = str(self.tokenizer.convert_ids_to_tokens(token))
        if piece.startswith("▁") and not text.startswith(" "):  # the first of a text is written without its blank
            text = f" {text}"
        if HALF_CHARACTER not in text:
            return text, list(text.encode())
        if (byte := BYTE.fullmatch(piece)) is not None:
            return text, [int(byte[1], 16)]
        of_byte_level = [BYTE_LEVEL.get(character) for character in piece]
        return text, [byte for byte in of_byte_level if byte is not None]


class Served:
    """A model and who is who. `worker` runs its answers; `ask` runs what is done with tokenizers."""

    def __init__(
        self, options: Serving, name: str, judge: Judge | None = None, generator: Generator | None = None
    ) -> None:
        self.options, self.name, self.judge = options, name, judge
        self.created = int(time.time())
        self.asking = ThreadPoolExecutor(1, "tunesmith-asking")
        self._asking_long = ThreadPoolExecutor(1, "tunesmith-asking-long")
        self._making_forms = Lock()
        self.speakers: dict[str, Speaker] = {}
        self._generator = generator
        self._forms: dict[str, Forms] = {}
        self._worker: Worker | None = None
        if generator is not None:
            self._worker = Worker(generator.batch(), options.max_waiting)
            self.speakers[name] = Speaker(name, generator.tokenizer)
            for adapter in options.adapters:
                self.speakers[adapter] = Speaker(adapter, generator.written(adapter).tokenizer, adapter)

    @classmethod
    def open(cls, path: str, options: Serving) -> "Served":
        """What `path` names, loaded, with the adapters of the options. Raises RunError, ModelError, RecipeError."""
        name = options.name or called(path)
        place = locate(path)
        if name in options.adapters:
            raise RecipeError(f"--adapter: {name!r} is the model's own name: say another, or --name")
        if Path(place).is_dir() and stored_head(place) is not None:
            return cls(options, name, judge=Judge.open(path, options.device))
        opened = Generator.open(path, options.device, adapters=options.adapters)
        decoder = decoder_for(opened.model, most=options.max_running, cache_tokens=options.cache_tokens)
        return cls(options, name, generator=Generator(opened.model, opened.tokenizer, decoder))

    @property
    def names(self) -> list[str]:
        """What requests may call a model."""
        return list(self.speakers) or [self.name]

    @property
    def generator(self) -> Generator:
        """The model that says words. Raises Problem when it says values."""
        if self._generator is None:
            raise Problem(f"{self.name} judges texts and says none: ask /v1/score", code="unsupported")
        return self._generator

    @property
    def worker(self) -> Worker:
        """The thread of that model."""
        assert self._worker is not None, "a generator was asked for"
        return self._worker

    @property
    def running(self) -> Worker | None:
        """The thread of the model, if it has one."""
        return self._worker

    def check(self, name: str | None) -> None:
        """Raise Problem for a name that nothing has."""
        if name is not None and name not in self.names:
            raise Problem(
                f"there is no model {name!r}. {near(name, self.names)}", 404, param="model", code="model_not_found"
            )

    def speaker(self, name: str | None) -> Speaker:
        """Who a request calls. Raises Problem."""
        self.check(name)
        assert self.generator is not None
        return self.speakers[name or self.name]

    def forms(self, speaker: Speaker) -> Forms:
        """What answers of a speaker can be held to, for one thread at a time: see `form`."""
        if speaker.name not in self._forms:
            self._forms[speaker.name] = Forms(speaker.tokenizer, self.generator.written(speaker.adapter).stops)
        return self._forms[speaker.name]

    def form(self, speaker: Speaker, body: Drawn, tools: Tools = ()) -> Form | None:
        """What the answers to a request are held to. Raises as `form_of`."""
        with self._making_forms:
            return form_of(self.forms(speaker), body, tools)

    async def ask(self, work: Callable[[], Found], body_bytes: int) -> Found:
        """What some work with tokenizers gives, for a request of so many bytes.

        A text that the context has just room for may take seconds; such requests wait for one another, and no short
        one for them: a tokenizer leaves the interpreter to others while it cuts.
        """
        thread = self._asking_long if body_bytes > LONG_BYTES else self.asking
        return await asyncio.get_running_loop().run_in_executor(thread, work)

    @cached_property
    def context(self) -> int | None:
        """Tokens of a prompt and its answer together at most; None where nothing bounds them."""
        bounds = (self.generator.context_tokens, self.generator.decoder.most_tokens)
        return min((one for one in bounds if one is not None), default=None)

    @cached_property
    def rows(self) -> int:
        """How many tokens the model has embeddings for."""
        return num_rows(self.generator.model)

    @cached_property
    def drawn(self) -> dict[str, Any]:
        """What the model's generation config says of how answers are drawn."""
        config = self.generator.model.generation_config
        return {name: value for name in DRAWN if (value := getattr(config, name, None)) is not None}

    def conversation(
        self, speaker: Speaker, messages: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]]
    ) -> list[int]:
        """The tokens of a conversation to be answered: it is read and written as the same row of a data set is.

        Raises:
            DataError, TemplateError: it cannot be.
            Problem: it holds more than text, or nothing.
        """
        row = {"messages": list(messages)} | ({"tools": list(tools)} if tools else {})
        sample = Messages().read(row)
        held = refuse.media(":", sample)
        if held is not None:
            raise Problem(f"the conversation {held.partition(', ')[0]}, and this server reads text", param="messages")
        turns = [turn.spoken() for turn in sample.branches[0]]
        if encodes(self.generator.model):
            ids = source_ids(speaker.tokenizer, turns, sample.tools)
        else:
            if self._may_be_long(sum(len(str(turn)) for turn in turns)):
                self._refuse_long(speaker, prompt_text(speaker.tokenizer, turns, sample.tools), "messages")
            ids = prompt_ids(speaker.tokenizer, turns, sample.tools)
        if not ids:
            raise Problem("there is nothing to answer: the prompt is empty", param="messages")
        return ids

    def _may_be_long(self, characters: int) -> bool:
        """Whether a text of so many characters is worth a look at how they are cut."""
        return self.context is not None and characters > self.context

    def _refuse_long(self, speaker: Speaker, text: str, param: str) -> None:
        """Raise Problem for a text that has more letters than the context's tokens can stand for."""
        longest, context = speaker.longest_token, self.context
        if context is None or longest is None or len(text) <= context * min(longest):
            return
        found = letters(written(speaker.tokenizer, text))
        if any(number > context * most for number, most in zip(found, longest, strict=True)):
            raise too_many_letters(len(text), context, param)

    def room(self, num_prompt: int, wanted: int | None, param: str) -> int:
        """Tokens that an answer gets which wants so many. Raises Problem when there are not so many."""
        most = self.options.max_tokens
        if wanted is not None and most is not None and wanted > most:
            raise Problem(f"max_tokens is {wanted}, and this server makes {most} at most", param="max_tokens")
        context = self.context
        if context is None:
            return wanted if wanted is not None else most or 4096
        left = context - (1 if encodes(self.generator.model) else num_prompt)
        if num_prompt > context or left < (1 if wanted is None else wanted):
            raise too_long(num_prompt, 1 if wanted is None else wanted, context, param)
        return wanted if wanted is not None else min(left, most or left)

    def tokens(self, speaker: Speaker, texts: Any, param: str) -> list[list[int]]:
        """A text or its tokens, or several of them, as tokens. Raises Problem when one is empty or no token."""
        some: list[Any] = [texts] if isinstance(texts, str) or isinstance(texts[0], int) else texts
        found: list[list[int]] = []
        for number, one in enumerate(some):
            if isinstance(one, str) and self._may_be_long(len(one)):
                self._refuse_long(speaker, one, param)
            ids = list(speaker.tokenizer(one, verbose=False)["input_ids"]) if isinstance(one, str) else one
            if not ids:
                raise Problem(f"{param}: the text at {number} is empty", param=param)
            if max(ids) >= self.rows:
                raise Problem(f"{param}: there is no token {max(ids)}: the model has {self.rows}", param=param)
            found.append(ids)
        return found

    def start(self) -> None:
        """Begin to answer."""
        if self._worker is not None:
            self._worker.start()

    def end(self) -> None:
        """Answer no more: who waits is told so. It takes as long as the step that is being made."""
        if self._worker is not None:
            self._worker.stop(0)

    def close(self) -> None:
        """End the threads, behind what each is at."""
        self.end()
        self.asking.shutdown(cancel_futures=True)
        self._asking_long.shutdown(cancel_futures=True)


def called(path: str) -> str:
    """What a model is called that nobody has named: the last part of its path, or its hub id."""
    folder = Path(path).expanduser()
    if not folder.exists():
        return path
    folder = folder.resolve()
    return folder.parent.name if folder.name == "final" else folder.name
