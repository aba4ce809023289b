"""A conversation as two sequences: what an encoder reads, and what a decoder writes.

The decoder's is the last learned answer; the encoder's are the turns before it. Where the tokenizer has a chat template
both are written by it; where it has none, the encoder's is the text of the turns and nothing else, a line end between
two, with the tokens that the tokenizer puts around a text, and the answer is ended by EOS.

The answer begins with the token that starts a decoder. It is no word of the answer, and is asked for the first one; so
here as everywhere a position is asked for the token after it, and the encoder's sequence is asked for nothing.
"""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from tunesmith.component import name_of
from tunesmith.data import loss
from tunesmith.data.loss import Learned
from tunesmith.data.place import weigh
from tunesmith.data.prompt import prompt_ids
from tunesmith.errors import RecipeError, Skipped, near
from tunesmith.recipe_data import Data, Loss
from tunesmith.seams import Objective, Template
from tunesmith.templates._apply import apply
from tunesmith.templates.jinja import Jinja
from tunesmith.types import Message, Sample, Tokens

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

NAMES = ("source", "answer")  # of the two sequences

DOCUMENT = "a document, which has no prompt"
NO_PROMPT = "its answer has no prompt"
EMPTY_ANSWER = "empty answer"
UNWRITTEN = "has tools, tool calls or reasoning, which only a chat template writes"
LONG_SOURCE = "its prompt is longer than data.max_tokens"
LONG_ANSWER = "its answer is longer than data.max_tokens"


def prepared(
    template: Template, objective: Objective, tokenizer: "PreTrainedTokenizerBase"
) -> "PreTrainedTokenizerBase":
    """The tokenizer as a template prepares it; an objective that encodes needs no template where none is named.

    Raises:
        TemplateError: as `Template.prepare`.
        RecipeError: the tokenizer does not know a language of the objective.
    """
    if not type(objective).encodes:
        return template.prepare(tokenizer)
    bare = type(template) is Jinja and template.file is None and tokenizer.chat_template is None
    return _speaking(objective, tokenizer if bare else template.prepare(tokenizer))


def _speaking(objective: Any, tokenizer: "PreTrainedTokenizerBase") -> "PreTrainedTokenizerBase":
    """The tokenizer with the objective's languages, where it names some."""
    wanted = {name: getattr(objective, name) for name in ("src_lang", "tgt_lang") if getattr(objective, name)}
    for name, language in wanted.items():
        if name not in tokenizer.init_kwargs:
            raise RecipeError(
                f"objective.{name}: the tokenizer of {tokenizer.name_or_path} marks no language (it was "
                f"{language!r}): leave it out"
            )
        if language not in tokenizer.get_vocab():
            known = [token for token in tokenizer.all_special_tokens if "_" in token]
            raise RecipeError(f"objective.{name}: there is no language {language!r}. {near(language, known)}")
    if wanted:
        tokenizer = copy.deepcopy(tokenizer)
        for name, language in wanted.items():
            setattr(tokenizer, name, language)
    return tokenizer


def refuse(data: Data, objective: Objective, tokenizer: "PreTrainedTokenizerBase") -> None:
    """Raise RecipeError for options of the data that two sequences do not go with."""
    name = name_of(objective)
    if data.loss != Loss():
        raise RecipeError(f"data.loss: the objective {name} learns the last answer and nothing else: leave it out")
    if data.overlong == "split":
        raise RecipeError(f"data.overlong=split divides conversations, and {name} learns one answer: say drop")
    if data.overlong == "truncate" and tokenizer.chat_template is not None:
        raise RecipeError(
            f"data.overlong=truncate: {name} shortens a prompt that is its turns' text alone, and a chat template "
            "writes this one: say drop"
        )


def parts(
    template: Template, sample: Sample, tokenizer: "PreTrainedTokenizerBase"
) -> list[tuple[Sample, tuple[Learned, ...]]]:
    """What a sample is trained as: the texts of source and answer of each conversation it is divided into.

    Raises:
        Skipped: there is no prompt or no answer in it, or what only a chat template can write.
        TemplateError: as `Template.write`.
    """
    if sample.is_document:
        raise Skipped(DOCUMENT)
    whole = [replace(sample, branches=(turns,)) for turns in template.divide(sample.branches[0])]
    write = _plain if tokenizer.chat_template is None else _templated
    return [(one, write(template, one, tokenizer)) for one in whole]


def answer_place(turns: Sequence[Message]) -> int | None:
    """Which turn is the last learned answer; None where there is none."""
    places = [place for place, turn in enumerate(turns) if turn.role == "assistant" and turn.weight]
    return places[-1] if places else None


def learns_earlier(sample: Sample) -> bool:
    """Whether answers before the last one would be learned, if a sample were all of a conversation."""
    return sum(turn.role == "assistant" and bool(turn.weight) for turn in sample.branches[0]) > 1


def _divided(sample: Sample) -> tuple[tuple[Message, ...], Message]:
    """The turns before the answer, and the answer. Raises Skipped."""
    turns = sample.branches[0]
    place = answer_place(turns)
    if place is None:
        raise Skipped(loss.NO_TURN)
    answer = turns[place]
    if not _text(answer.content).strip() and not answer.tool_calls and not answer.reasoning:
        raise Skipped(EMPTY_ANSWER)
    if not any(_text(turn.content).strip() for turn in turns[:place]):
        raise Skipped(NO_PROMPT)
    return turns[:place], answer


def _plain(template: Template, sample: Sample, tokenizer: "PreTrainedTokenizerBase") -> tuple[Learned, Learned]:
    before, answer = _divided(sample)
    if sample.tools or any(turn.tool_calls or turn.reasoning for turn in (*before, answer)):
        raise Skipped(UNWRITTEN)
    text = _text(answer.content)
    marked = answer.spans
    within = None if marked is None else tuple((a, b, weight * answer.weight) for a, b, weight in marked)
    learned = Learned(text, ((0, len(text), answer.weight),), within, ())
    return Learned(plain_text([turn.content for turn in before]), (), None, ()), learned


def _templated(template: Template, sample: Sample, tokenizer: "PreTrainedTokenizerBase") -> tuple[Learned, Learned]:
    before, answer = _divided(sample)
    alone = (*(replace(turn, train=False, spans=None) for turn in before), answer)
    written = loss.write(Loss(), template, alone, sample.tools, tokenizer)
    ((_, start, end),) = written.answers

    def behind(spans: Sequence[tuple[int, int, float]]) -> tuple[tuple[int, int, float], ...]:
        return tuple((a - start, b - start, weight) for a, b, weight in spans)

    within = None if written.within is None else behind(written.within)
    learned = Learned(written.text[start:end], behind(written.spans), within, ())
    source = apply(tokenizer, [turn.spoken() for turn in before], sample.tools, prompt=True)
    return Learned(source, (), None, ()), learned


def plain_text(contents: Sequence[Any]) -> str:
    """The text of some turns without any markup."""
    return "\n".join(text for text in map(_text, contents) if text)


def _text(content: Any) -> str:
    return content if isinstance(content, str) else "".join(str(part.get("text") or "") for part in content or ())


def source_ids(
    tokenizer: "PreTrainedTokenizerBase", messages: Sequence[Mapping[str, Any]], tools: Sequence[Any] | None = None
) -> list[int]:
    """What the encoder is given of a conversation to be answered; [] where it says nothing.

    Raises:
        TemplateError: the chat template refuses the conversation.
    """
    if tokenizer.chat_template:
        return prompt_ids(tokenizer, messages, tools)
    text = plain_text([turn["content"] for turn in messages])
    return list(tokenizer(text, verbose=False)["input_ids"]) if text.strip() else []


def encode(
    written: Sequence[Learned], tokenizer: "PreTrainedTokenizerBase", objective: Any
) -> list[tuple[Tokens, int]]:
    """Tokenise texts that are sources and answers by turns. The number beside each is of `joined_answers`: none."""
    if not written:
        return []
    options: dict[str, Any] = {
        "add_special_tokens": tokenizer.chat_template is None,
        "return_attention_mask": False,
        "return_token_type_ids": False,
        "verbose": False,
    }
    sources = tokenizer([one.text for one in written[0::2]], **options)["input_ids"]
    answers: Any = tokenizer(text_target=[one.text for one in written[1::2]], **options)
    start = objective.decoder_start_token_id
    assert start is not None, "found before rows are rendered"
    found = []
    for source, learned, encoding in zip(sources, written[1::2], answers.encodings, strict=True):
        ids = np.asarray(source, np.int32)
        found.append((Tokens(ids, np.zeros(len(ids), np.float32)), 0))
        found.append((_answer(learned, encoding, start, tokenizer), 0))
    return found


def _answer(learned: Learned, encoding: Any, start: int, tokenizer: "PreTrainedTokenizerBase") -> Tokens:
    """An answer from the start token to its end. What a tokenizer puts behind EOS (a language) is no part of it."""
    weight, _ = weigh(learned, encoding)
    ids, added = np.asarray(encoding.ids, np.int32), np.asarray(encoding.special_tokens_mask, bool)
    weight[added] = whole = learned.spans[-1][2] if weight.any() else 0.0
    if tokenizer.chat_template is None:
        behind = 1 + int(np.flatnonzero(~added)[-1])  # the first of the tokens that were put behind the text
        ends = behind + np.flatnonzero(ids[behind:] == tokenizer.eos_token_id)
        last = int(ends[0]) if len(ends) else len(ids)
        ids, weight = np.append(ids[:last], tokenizer.eos_token_id), np.append(weight[:last], whole)
    ids = np.concatenate([[start], ids]).astype(np.int32)
    return Tokens(ids, np.concatenate([[0], weight]).astype(np.float32))


def reason(sample: Sample, branches: Sequence[Tokens], limit: int) -> str | None:
    """Why the two sequences of a sample cannot be trained on as they are, if so."""
    source, answer = branches
    if not answer.trained:
        return loss.ONLY_BLANKS
    if len(answer) > limit:
        return LONG_ANSWER
    return LONG_SOURCE if len(source) > limit else None


def shortened(
    sample: Sample, branches: Sequence[Tokens], limit: int, tokenizer: "PreTrainedTokenizerBase"
) -> tuple[Tokens, ...]:
    """The two sequences with as much of the beginning of the prompt as there is room for."""
    before, _ = _divided(sample)
    text = plain_text([turn.content for turn in before])
    ids = np.asarray(tokenizer(text, truncation=True, max_length=limit, verbose=False)["input_ids"], np.int32)
    return Tokens(ids, np.zeros(len(ids), np.float32)), *branches[1:]
