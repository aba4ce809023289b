"""The named families write what the published templates write, and their answers and ends are what is trained.

The digests of the published texts are in `families/`; `make_families.py` says where each comes from.
"""

import json

import numpy as np
import pytest

import fixtures_models
from golden.chats import Shape, conversation
from golden.make_families import OUT, asked, digest
from tunesmith.data.render import Renderer
from tunesmith.errors import TemplateError
from tunesmith.formats.messages import Messages
from tunesmith.recipe import Recipe
from tunesmith.templates._apply import apply
from tunesmith.templates.family import Family, facts, names

GOLDEN = {path.stem: json.loads(path.read_text("utf-8")) for path in sorted(OUT.glob("*.json"))}
every_family = pytest.mark.parametrize("name", names())


def tokenizer_of(name):
    """A tokenizer with the tokens of a family, and the end of text that its models have."""
    golden, found = GOLDEN[name], facts(name)
    tokenizer = fixtures_models.tiny_tokenizer(None)
    needed = (*found.tokens, *found.stop, golden["bos_token"] or "<s>", golden["eos_token"])
    tokenizer.add_tokens([token for token in needed if not token.endswith("_token")], special_tokens=True)
    tokenizer.bos_token, tokenizer.eos_token = golden["bos_token"], golden["eos_token"]
    tokenizer.init_kwargs["eos_token"] = golden["eos_token"]  # as a loaded tokenizer has it
    return tokenizer


def test_every_family_has_its_golden_texts():
    assert names() == list(GOLDEN)
    for golden in GOLDEN.values():
        assert all(len(found) == 100 for found in golden["digests"].values())
        assert len(golden["examples"]) == 2 and golden["reference"]


@every_family
def test_a_family_writes_as_the_published_template_does(name):
    golden, tokenizer = GOLDEN[name], Family(name=name).prepare(tokenizer_of(name))
    shape = Shape(**golden["shape"])
    wrong, compared = [], 0
    for seed in range(100):
        messages, tools = conversation(seed, shape)
        for kind, digests in golden["digests"].items():
            if digests[seed] is None:
                continue
            try:
                found = digest(apply(tokenizer, asked(kind, messages), tuple(tools), prompt=kind == "prompt"))
            except TemplateError:
                found = "refused"
            compared += 1
            if found != digests[seed]:
                wrong.append((seed, kind))
    assert wrong == []
    assert compared >= 100


@every_family
def test_the_examples_are_what_the_digests_are_of(name):
    golden, tokenizer = GOLDEN[name], Family(name=name).prepare(tokenizer_of(name))
    kind = next(iter(golden["digests"]))
    for example in golden["examples"]:
        messages, tools = conversation(example["seed"], Shape(**golden["shape"]))
        assert (messages, tools) == (example["messages"], example["tools"])
        assert apply(tokenizer, asked(kind, messages), tuple(tools), prompt=kind == "prompt") == example[kind]
        assert digest(example[kind]) == golden["digests"][kind][example["seed"]]


def renderer(name):
    """A renderer for a family, with a tokenizer that has its tokens."""
    recipe = Recipe(
        model="builtin:tiny", data={"train": "rows.jsonl", "template": name, "max_tokens": 100_000}, objective="sft"
    )
    return Renderer(recipe.data, recipe.objective, recipe.data.template.prepare(tokenizer_of(name)))


def learned(tokens, tokenizer):
    """The texts of the neighbouring trained tokens."""
    edges = np.flatnonzero(np.diff(tokens.weight, prepend=0, append=0))
    return [tokenizer.decode(tokens.ids[a:b]) for a, b in zip(edges[::2], edges[1::2], strict=True)]


def said(answer):
    """The reasoning and the text of an answer, and what of its calls is its own, without the blanks around them."""
    thought, _, content = answer["content"].rpartition("</think>")
    parts = [answer.get("reasoning_content", thought.removeprefix("<think>")), content]
    for call in answer.get("tool_calls", ()):
        parts += [call["function"]["name"], json.dumps(call["function"]["arguments"], ensure_ascii=False)]
    return [part.strip() for part in parts if part.strip()]


@every_family
def test_the_answers_and_their_ends_are_trained_and_nothing_else(name):
    golden, render, found = GOLDEN[name], renderer(name), facts(name)
    stop = tuple(str(render.tokenizer.eos_token) if end == "eos_token" else end for end in found.stop)
    assert render.tokenizer.eos_token == stop[0]
    answers = 0
    for seed in range(40):
        messages, tools = conversation(seed, Shape(**golden["shape"]))
        if "refused" in [digests[seed] for digests in golden["digests"].values()]:
            continue
        row = {"messages": messages} | ({"tools": tools} if tools else {})
        rendered = render.render([("rows:1", row)], Messages())
        assert [one.dropped for one in rendered] == [None] * len(rendered)
        texts = [text for one in rendered for tokens in one.branches for text in learned(tokens, render.tokenizer)]
        wanted = [turn for turn in messages if turn["role"] == "assistant"]
        assert len(texts) == len(wanted)
        for text, answer in zip(texts, wanted, strict=True):
            assert text.endswith(stop)
            rest = text.removesuffix(next(end for end in stop if text.endswith(end)))
            for part in said(answer):
                before, _, rest = rest.partition(part)
                assert part in text and not set(before) & set("🙂你ïé")
            answers += 1
            if found.reasoning == "not written" and not answer.get("tool_calls"):
                assert text.strip().startswith(answer["content"].strip()) and not rest.strip()
    assert answers >= 60
