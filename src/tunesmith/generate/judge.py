"""A trained reward model or classifier at work: what it says of texts or words, and the best of several answers."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from tunesmith.data import source
from tunesmith.data.ledger import note, places
from tunesmith.data.render import Renderer
from tunesmith.data.rendered import Rendered
from tunesmith.engine.model import base_of, says_tokens
from tunesmith.engine.values import filled
from tunesmith.errors import DataError, RunError, TemplateError
from tunesmith.formats import _answers, _turns
from tunesmith.formats._fields import Fields
from tunesmith.formats._tags import Tags
from tunesmith.formats.auto import choose
from tunesmith.formats.classes import Classes
from tunesmith.formats.tagged import Tagged
from tunesmith.generate.addressed_judge import AddressedJudge
from tunesmith.generate.asked import Sampling
from tunesmith.generate.endpoint import Server, is_address
from tunesmith.generate.load import RECIPE, load
from tunesmith.objectives.classify import Classify
from tunesmith.objectives.reward import Reward
from tunesmith.objectives.token_classify import TokenClassify
from tunesmith.recipe import Recipe
from tunesmith.recipe_data import Data, Source
from tunesmith.seams import Format, Objective
from tunesmith.types import Message, Sample

if TYPE_CHECKING:
    from tunesmith.generate.addressed import Addressed
    from tunesmith.generate.engine import Generator

TOGETHER = 16  # sequences that are looked at in one pass


class Answers(Format):
    """A prompt and `answers` to be ranked, read as the format `ranked` reads its own."""

    def read(self, row: Mapping[str, Any]) -> Sample:
        """The sample of one row, a branch for each answer. Raises DataError."""
        fields, tags = Fields(row), Tags()
        answers = fields.items("answers")
        if not answers:
            raise fields.wrong("answers", "is empty")
        prompt = _answers.prompt(fields, tags)
        if prompt is None:
            raise fields.wrong("answers", "has no prompt beside it", "answers has no prompt beside it")
        read = [
            _answers.answer(Fields({f"answers[{at}]": one}), f"answers[{at}]", tags) for at, one in enumerate(answers)
        ]
        prompt = _answers.unlearned(prompt)
        return Sample(tuple(_answers.whole(fields, (*prompt, *one)) for one in read), tools=_turns.tools(fields))


@dataclass(frozen=True)
class Judge:
    """A model that says values of conversations, and how it was taught to read them."""

    model: Any
    renderer: Renderer
    names: tuple[str, ...]  # of its values

    @classmethod
    def open(cls, path: str, device: str = "auto") -> "Judge":
        """The judge that a run, checkpoint, adapter or model folder, or a hub id, is.

        A run's rows are read as the run read its own; other folders by their tokenizer's chat template.

        Raises:
            RunError, ModelError: it cannot be loaded, or says words.
        """
        model, tokenizer = load(path, device, values=True)
        config = base_of(model).config
        names = tuple(config.id2label[number] for number in sorted(config.id2label))
        data, file = Data(train=("-",)), Path(path).expanduser() / RECIPE
        if file.is_file():
            data = Recipe.load(str(file)).data
        data = data.model_copy(update={"shared_prefix": False, "overlong": "drop"})
        several = config.problem_type == "multi_label_classification"
        objective: Objective = Reward() if len(names) == 1 else Classify(num_labels=len(names), multi_label=several)
        if says_tokens(model):
            objective = TokenClassify(num_labels=len(names))
        template = data.template
        if file.is_file() or tokenizer.chat_template is not None:
            tokenizer = template.prepare(tokenizer)
        return cls(model.eval(), Renderer(data, objective, tokenizer, to_look=True), names)

    @torch.no_grad()
    def values(self, sequences: Sequence[Any]) -> list[torch.Tensor]:
        """What it says of each sequence of tokens, [labels] float32, or of each of its tokens, [T, labels]."""
        base = base_of(self.model)
        pad = getattr(base.config.get_text_config(), "pad_token_id", None)
        ids = [torch.as_tensor(one, dtype=torch.long, device=base.device) for one in sequences]
        return [one.float().cpu() for part in _some(iter(ids)) for one in filled(self.model, part, pad)]

    def judged(
        self, rows: Sequence[tuple[str, Mapping[str, Any]]], format_: Format, first: bool = True
    ) -> Iterator[tuple[Rendered, Any]]:
        """Rows as tokens, each with the values of its branches [B, labels]; None where it was left out.

        `first` says that a file begins with them: the first of them must be read and written.

        Raises:
            DataError, TemplateError: it cannot be.
        """
        for one in self.renderer.render(rows, format_, first):
            yield one, torch.stack(self.values([tokens.ids for tokens in one.branches])) if one.branches else None

    def rewards(
        self, messages: Sequence[Mapping[str, Any]], answers: Sequence[str], tools: Sequence[Any] = ()
    ) -> list[float]:
        """The reward of each answer to a conversation; an answer that cannot be read has none (-inf)."""
        asked = {"messages": messages, "tools": list(tools)}
        said = [{"role": "assistant", "content": one} for one in answers]  # never turns of its own, whatever it says
        rows = [(f"answer {at}", asked | {"answers": [one]}) for at, one in enumerate(said)]
        values = [values for _, values in self.judged(rows, Answers())]
        return [float("-inf") if one is None else one[0, 0].item() for one in values]


def format_of(row: Mapping[str, Any], names: tuple[str, ...]) -> Format:
    """How rows like this one are read: answers to rank, a text with a class, or what they fit."""
    if "answers" in row:
        return Answers()
    if len(names) > 1 and Classes.fits(row):
        return Classes(classes=names)
    return choose(row)


def score(judge: Judge | AddressedJudge, path: str) -> Iterator[dict[str, Any]]:
    """What a judge says of the rows of a file: see `scored`. Raises DataError, TemplateError."""
    rows = source.read(Source(path=path))
    return scored(judge, rows) if isinstance(judge, Judge) else judge.scored(rows)


def find(path: str, how: Server, device: str = "auto") -> Judge | AddressedJudge:
    """The judge of a run, folder, hub id or server. Raises RunError, ModelError, RecipeError."""
    return AddressedJudge.open(path, how) if is_address(path) else Judge.open(path, device)


def scored(judge: Judge, rows: Iterator[tuple[str, Mapping[str, Any]]]) -> Iterator[dict[str, Any]]:
    """What a judge says of rows, each with where it stands: a JSON object each.

    Of a reward model: `answers` with `answer` (its place in the row), `reward` and `text`, the best first. Of a
    classifier: `label` (a list where several can hold) and `scores`, the probability of each class. Of a classifier of
    words: `tokens`, and `tags`, the class of each, null where a word has no token of its own. Of a row that cannot be
    read or written: `dropped`, and why.

    Raises:
        DataError, TemplateError: the first row cannot be read or written.
    """
    if says_tokens(judge.model):
        yield from _score_words(judge, rows)
        return
    format_: Format | None = None
    for some in _some(rows):
        first = format_ is None
        format_ = format_ or format_of(some[0][1], judge.names)
        if isinstance(format_, Answers) and len(judge.names) == 1:
            for number, (where, row) in enumerate(some):
                yield _ranked(judge, where, row, first and number == 0)
            continue
        for one, values in judge.judged(some, format_, first):
            yield {"where": one.where} | ({"dropped": one.dropped} if values is None else _said(judge, one, values))


class _Words(Format):
    """Words, in `tokens` or a `text` between blanks, whose class is their number in the row: it says where each is."""

    joined_by: str = " "

    def read(self, row: Mapping[str, Any]) -> Sample:
        """The sample of one row. Raises DataError."""
        words = words_of(row)
        return Tagged(joined_by=self.joined_by).read({"tokens": words, "tags": list(range(len(words)))})


def words_of(row: Mapping[str, Any]) -> list[Any]:
    """The words of a row: its `tokens`, or what stands between blanks in its `text`. Raises DataError."""
    fields = Fields(row)
    return fields.items("tokens") if "tokens" in row else fields.text("text").split()


def _score_words(judge: Judge, rows: Iterator[tuple[str, Mapping[str, Any]]]) -> Iterator[dict[str, Any]]:
    """What a classifier of words says of rows."""
    learned = [one.format.joined_by for one in judge.renderer.data.train if isinstance(one.format, Tagged)]
    format_ = _Words(joined_by=learned[0] if learned else " ")
    for number, some in enumerate(_some(rows)):
        for (_, row), (one, values) in zip(some, judge.judged(some, format_, number == 0), strict=True):
            if values is None:
                yield {"where": one.where, "dropped": one.dropped}
                continue
            label, words = one.branches[0].label, words_of(row)
            assert label is not None, "a row of words is kept when one has a token"
            tags: list[str | None] = [None] * len(words)
            for at in np.flatnonzero(label >= 0).tolist():
                tags[label[at]] = judge.names[int(values[0, at].argmax())]
            yield {"where": one.where, "tokens": words, "tags": tags}


def _ranked(judge: Judge, where: str, row: Mapping[str, Any], first: bool = False) -> dict[str, Any]:
    """The answers of a row, the best first, each judged by itself; those that cannot be are named last, and why."""
    try:
        number = len(Answers().read(row).branches)
    except DataError as error:
        return {"where": where, "dropped": str(error)}
    alone = [(where, {**row, "answers": [one]}) for one in Fields(row).items("answers")]
    found, left = [], []
    for at, (one, values) in enumerate(judge.judged(alone, Answers(), first)):
        if values is None:
            left.append({"answer": at, "dropped": one.dropped})
        else:
            text = _answer(judge.renderer.tokenizer, one.branches[0])
            found.append({"answer": at, "reward": values[0, 0].item(), "text": text})
    if len(left) == number:
        return {"where": where, "dropped": left[0]["dropped"]}
    ranked = sorted(found, key=lambda one: -one["reward"])
    return {"where": where, "answers": ranked} | ({"left_out": left} if left else {})


def _some(items: Iterator[Any]) -> Iterator[list[Any]]:
    """The items, some at a time."""
    while found := list(islice(items, TOGETHER)):
        yield found


def _said(judge: Judge, one: Rendered, values: torch.Tensor) -> dict[str, Any]:
    if len(judge.names) == 1:
        texts = [_answer(judge.renderer.tokenizer, tokens) for tokens in one.branches]
        order = values[:, 0].argsort(descending=True, stable=True).tolist()
        return {"answers": [{"answer": at, "reward": values[at, 0].item(), "text": texts[at]} for at in order]}
    several = base_of(judge.model).config.problem_type == "multi_label_classification"
    shares = values[0].sigmoid() if several else values[0].softmax(0)
    holding = [name for name, share in zip(judge.names, shares.tolist(), strict=True) if share > 0.5]
    label = holding if several else judge.names[int(shares.argmax())]
    return {"label": label, "scores": dict(zip(judge.names, shares.tolist(), strict=True))}


def _answer(tokenizer: Any, tokens: Any) -> str:
    """The text of what is learned of a sequence: its answer."""
    return tokenizer.decode(tokens.ids[tokens.weight != 0], skip_special_tokens=True).strip()


def best_of(
    judge: Judge | AddressedJudge,
    generator: "Generator | Addressed",
    messages: Sequence[Mapping[str, Any]],
    number: int,
    *,
    tools: Sequence[Mapping[str, Any]] = (),
    temperature: float = 1.0,
    max_new_tokens: int = 256,
    seed: int = 42,
) -> list[tuple[float, str]]:
    """So many sampled answers of a model to a conversation, each with its reward, the best first.

    Raises:
        RunError: every answer is empty or too long for the reward model.
    """
    each = [
        Sampling(temperature=temperature, max_new_tokens=max_new_tokens, seed=seed + place) for place in range(number)
    ]
    found = generator.sampled(messages, each, tools)
    answers = [one for one in dict.fromkeys(reply.text for reply in found) if one.strip()]
    rewards = judge.rewards(messages, answers, tools) if answers else []
    if not any(map(isfinite, rewards)):
        raise RunError(f"none of {number} answers can be judged: they are empty, or longer than data.max_tokens")
    readable = [pair for pair in zip(rewards, answers, strict=True) if isfinite(pair[0])]
    return sorted(readable, key=lambda pair: -pair[0])


def sampled(
    judge: Judge | AddressedJudge, generator: "Generator | Addressed", path: str, number: int, **options: Any
) -> Iterator[dict[str, Any]]:
    """The best of so many answers of a model to each prompt of a file, a JSON object each, as `score` gives them.

    Raises:
        DataError: the file cannot be read. A row of it that cannot be answered is said, and the next one is read.
    """
    if isinstance(judge, Judge) and (len(judge.names) > 1 or says_tokens(judge.model)):
        raise RunError(f"answers are ranked by a reward model, and this one says {len(judge.names)} classes")
    for where, row in source.read(Source(path=path)):
        try:
            turns, tools = _asked(row)
            found = best_of(judge, generator, [turn.spoken() for turn in turns], number, tools=tools, **options)
        except (DataError, TemplateError, RunError) as error:
            yield {"where": where, "dropped": str(error)}
            continue
        yield {"where": where, "answers": [{"reward": reward, "text": text} for reward, text in found]}


def _asked(row: Mapping[str, Any]) -> tuple[tuple[Message, ...], tuple[Mapping[str, Any], ...]]:
    """The turns of a row before its answer, whether it has answers or not, and its tools. Raises DataError."""
    fields = Fields(row)
    try:
        format_ = choose(row)
    except DataError:  # a prompt alone, or beside answers in no order
        found = _answers.prompt(fields, Tags())
        turns, tools = () if found is None else _answers.whole(fields, found), _turns.tools(fields)
    else:
        sample = format_.read(row)
        turns, tools = sample.branches[0], sample.tools
    while turns and turns[-1].role == "assistant":
        turns = turns[:-1]
    if not turns or turns[-1].role == "text":
        raise DataError(f"the row has no prompt to answer (its columns: {', '.join(row)})", "no prompt")
    return turns, tools


def accounted(found: Iterator[dict[str, Any]], say: Callable[[str], None]) -> Iterator[dict[str, Any]]:
    """What was found of some rows; then says how many were left out, as training does: each reason and its places."""
    scored, dropped = 0, dict[str, Any]()
    for one in found:
        if "dropped" in one:
            note(dropped, one["dropped"], one["where"])
        else:
            scored += 1
        yield one
    if dropped:
        left = sum(entry["count"] for entry in dropped.values())
        say(f"{scored + left:,} rows read, {scored:,} scored")
    for reason, entry in dropped.items():
        say(f"{entry['count']:,} dropped: {reason} ({places(entry)})")


def lines(found: Mapping[str, Any]) -> Iterator[str]:
    """What was found of a row, for people."""
    if "dropped" in found:
        yield f"{found['where']}: not read ({found['dropped']})"
    elif "tags" in found:
        pairs = zip(found["tokens"], found["tags"], strict=True)
        yield f"{found['where']}: {' '.join(f'{word}/{tag}' for word, tag in pairs)}"
    elif "label" in found:
        label = found["label"] if isinstance(found["label"], str) else ", ".join(found["label"]) or "none"
        yield f"{found['where']}: {label} ({max(found['scores'].values()):.1%} is the most likely)"
    else:
        yield f"{found['where']}:"
        yield from (f"  {one['reward']:+.3f}  {' '.join(one['text'].split())}" for one in found["answers"])
        yield from (f"  answer {one['answer']} is not read ({one['dropped']})" for one in found.get("left_out", ()))
