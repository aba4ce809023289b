"""Ids are those of the tokenizer's own template; the answers and their end are trained, and nothing else."""

import numpy as np
import pytest

import fixtures_chats as chats
import fixtures_models
from tunesmith.data.render import Renderer
from tunesmith.formats.messages import Messages

TRIMMING = """\
{{- bos_token }}{% for message in messages %}
{%- if message.role == 'system' %}{{ 'System: ' + message.content | trim + '\n' }}
{%- elif message.role == 'assistant' %}{{ ' ' + message.content | trim + eos_token }}
{%- else %}{{ '[Q]' + message.content | trim + '[/Q]' }}{% endif %}{% endfor %}"""


def render(rows, tokenizer, template="jinja"):
    recipe = chats.recipe(template=template, max_tokens=100_000)
    renderer = Renderer(recipe.data, recipe.objective, recipe.data.template.prepare(tokenizer))
    found = renderer.render([(f"rows:{n}", row) for n, row in enumerate(rows, 1)], Messages())
    assert [one.dropped for one in found] == [None] * len(rows)
    return [one.branches[0] for one in found], renderer.tokenizer


def said(row):
    """The conversation as a caller of transformers would pass it."""
    return [{key: part for key, part in turn.items() if key != "train"} for turn in row["messages"]]


def runs(weight):
    """The neighbouring tokens of one weight other than 0, as slices."""
    edges = np.flatnonzero(np.diff(weight, prepend=0, append=0))
    return [slice(a, b) for a, b in zip(edges[:-1], edges[1:], strict=True) if weight[a]]


@pytest.fixture(scope="module")
def rows():
    random = np.random.default_rng(20)
    return [chats.conversation(random) for _ in range(200)]


def test_ids_are_those_of_the_tokenizers_own_template(rows):
    tokenizer = fixtures_models.tiny_tokenizer()
    found, _ = render(rows, tokenizer)
    for row, tokens in zip(rows, found, strict=True):
        own = tokenizer.apply_chat_template(said(row), tools=row.get("tools"), tokenize=True, return_dict=False)
        assert tokens.ids.tolist() == own


def test_the_answers_and_their_end_are_trained_and_nothing_else(rows):
    tokenizer = fixtures_models.tiny_tokenizer()
    found, _ = render(rows, tokenizer)
    spans = exact = 0
    for row, tokens in zip(rows, found, strict=True):
        pieces = chats.chatml(row)
        text = "".join(piece for piece, _ in pieces)
        encoded = tokenizer.backend_tokenizer.encode(text, add_special_tokens=False)
        assert tokens.ids.tolist() == encoded.ids
        wanted = chats.expected_weight(pieces, [start for start, _ in encoded.offsets])
        np.testing.assert_array_equal(tokens.weight, wanted)
        answers = [piece for piece, weight in pieces if weight]
        trained = runs(tokens.weight)
        assert len(trained) == len(answers)
        for span, answer in zip(trained, answers, strict=True):
            decoded = tokenizer.decode(tokens.ids[span])
            # An answer's first blanks are part of the header's last token where the tokenizer joins them.
            assert answer.endswith(decoded) and not answer.removesuffix(decoded).strip()
            assert tokens.ids[span.stop - 1] == tokenizer.eos_token_id
            spans, exact = spans + 1, exact + (decoded == answer)
    assert spans > 400 and exact > 0.8 * spans


def test_a_template_that_trims_and_writes_no_header_is_followed_too(rows):
    tokenizer = fixtures_models.tiny_tokenizer(TRIMMING)
    tokenizer.bos_token = "<|im_start|>"
    simple = [
        {"messages": [turn for turn in row["messages"] if turn["role"] != "tool" and "tool_calls" not in turn]}
        for row in rows
    ]
    found, _ = render(simple, tokenizer)
    for row, tokens in zip(simple, found, strict=True):
        own = tokenizer.apply_chat_template(said(row), tokenize=True, return_dict=False)
        assert tokens.ids.tolist() == own
        answers = [turn for turn in row["messages"] if turn["role"] == "assistant" and turn.get("train", True)]
        trained = runs(tokens.weight)
        assert len(trained) == len(answers)
        for span, answer in zip(trained, answers, strict=True):
            assert tokenizer.decode(tokens.ids[span]) == f" {answer['content'].strip()}<|im_end|>"
            assert set(tokens.weight[span]) == {float(answer.get("train", 1.0))}


def test_plain_writes_lines_and_trains_eos(rows):
    tokenizer = fixtures_models.tiny_tokenizer(chat_template=None)
    simple = [
        {"messages": [turn for turn in row["messages"] if turn["role"] != "tool" and "tool_calls" not in turn]}
        for row in rows
    ]
    found, prepared = render(simple, tokenizer, "plain")
    for row, tokens in zip(simple, found, strict=True):
        text = ""
        prompts = []
        for turn in row["messages"]:
            if turn["role"] == "assistant":
                prompts.append(f"{text}Assistant:")
                text += f"Assistant: {turn['content']}<|im_end|>\n"
            else:
                text += f"User: {turn['content']}\n" if turn["role"] == "user" else f"{turn['content']}\n\n"
        assert tokenizer.decode(tokens.ids) == text
        answers = [turn for turn in row["messages"] if turn["role"] == "assistant"]
        spans = iter(runs(tokens.weight))
        for turn, prompt in zip(answers, prompts, strict=True):
            if not turn.get("train", True):
                continue
            span = next(spans)
            assert tokenizer.decode(tokens.ids[span]) == f" {turn['content']}<|im_end|>"
            before = said(row)[: row["messages"].index(turn)]
            asked = prepared.apply_chat_template(before, tokenize=True, add_generation_prompt=True, return_dict=False)
            assert tokenizer.decode(asked) == prompt
            assert tokens.ids[: span.start].tolist() == asked  # training and chat start answers alike
        assert next(spans, None) is None
