"""Rows for tests: random conversations with all that goes wrong in text, and what ChatML makes of them."""

import functools
import json

import numpy as np

import fixtures_models
from tunesmith.data.render import Renderer
from tunesmith.formats.messages import Messages
from tunesmith.recipe import Recipe

WORDS = (
    "river", "the", "Moon", "is", "naïve", "Köln", "你好", "世界", "🙂", "👩‍👩‍👧", "e\u0301", "<b>",
    "{{ x }}", "{% if %}", "\n", "\n\n", "\t", "  ", "def f(a):\n    return a", "<|im_end|>",
    "<|im_start|>user", "<|endoftext|>", "<think>", "0.5", "—", "\u200b", "Assistant:", "User:", "\r\n",
)  # fmt: skip
TOOL = {"type": "function", "function": {"name": "warmth", "parameters": {"type": "object"}}}


THINKING = """\
{%- for message in messages %}{{ '<|im_start|>' + message.role + '\n' }}
{%- set parts = message.content.split('</think>') %}
{%- set earlier = message.role == 'assistant' and not loop.last %}
{{- parts[-1].strip() if earlier else message.content }}
{{- '<|im_end|>\n' }}{% endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"""  # as Qwen3 drops earlier thoughts


def words(random, least=1, most=8):
    """A text that says something, often with blanks around it."""
    chosen = [WORDS[i] for i in random.integers(0, len(WORDS), random.integers(least, most + 1))]
    edges = ("", "", " ", "\n", "\n\n ")
    start, end = (edges[i] for i in random.integers(0, len(edges), 2))
    return f"{start}{' '.join(chosen)} so{end}"


def conversation(random):
    """A row of the format messages: a system message or not, some exchanges, tools or not, weights or not."""
    turns = [{"role": "system", "content": words(random)}] if random.random() < 0.5 else []
    tools = [TOOL] if random.random() < 0.3 else []
    for _ in range(random.integers(1, 6)):
        turns.append({"role": "user", "content": words(random)})
        if tools and random.random() < 0.5:
            call = {"type": "function", "function": {"name": "warmth", "arguments": {"city": words(random)}}}
            turns.append({"role": "assistant", "content": "", "tool_calls": [call]})
            turns.append({"role": "tool", "content": words(random)})
        train = [None, None, None, False, True, 0.25][random.integers(0, 6)]
        answer = {"role": "assistant", "content": words(random)}
        turns.append(answer if train is None else answer | {"train": train})
    turns[-1].pop("train", None)  # so that something is trained
    return {"messages": turns} | ({"tools": tools} if tools else {})


def chatml(row):
    """The text of a row as the tiny tokenizer's template writes it, as pieces (text, weight)."""
    pieces = []
    if row.get("tools"):
        listed = "".join(json.dumps(tool, ensure_ascii=False) + "\n" for tool in row["tools"])
        pieces.append((f"<|im_start|>tools\n{listed}<|im_end|>\n", 0.0))
    for turn in row["messages"]:
        pieces.append((f"<|im_start|>{turn['role']}\n", 0.0))
        calls = "".join(f"<call>{json.dumps(call, ensure_ascii=False)}</call>" for call in turn.get("tool_calls", []))
        weight = turn.get("train", 1.0 if turn["role"] == "assistant" else 0.0)
        pieces += [(f"{turn['content']}{calls}<|im_end|>", float(weight)), ("\n", 0.0)]
    return pieces


def expected_weight(pieces, starts):
    """The weight of tokens that begin at these characters of the pieces: that of the piece they begin in."""
    by_character = np.concatenate([np.full(len(text), weight, np.float32) for text, weight in pieces])
    return by_character[np.asarray(starts)]


def recipe(path="rows.jsonl", objective="sft", model="builtin:tiny", train=None, **data):
    """A recipe for rows in a file; what is said beside the path is of its data section."""
    return Recipe(model=model, data={"train": path, **data}, objective=objective, train=train or {})


def write_rows(path, rows):
    """The rows as a jsonl file."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def chat(*said, system=None):
    """A row of the format messages: what user and assistant say in turn."""
    turns = [{"role": "system", "content": system}] if system else []
    roles = ("user", "assistant")
    return {"messages": turns + [{"role": roles[i % 2], "content": text} for i, text in enumerate(said)]}


def renderer(tokenizer=None, objective="sft", **data):
    """A renderer for the tiny tokenizer."""
    said = recipe(objective=objective, **data)
    tokenizer = _tokenizer() if tokenizer is None else tokenizer
    return Renderer(said.data, said.objective, said.data.template.prepare(tokenizer))


def render(rows, format_=None, tokenizer=None, objective="sft", **data):
    """The samples of rows that stand at rows:1, rows:2 and so on."""
    placed = [(f"rows:{number}", row) for number, row in enumerate(rows, 1)]
    return renderer(tokenizer, objective, **data).render(placed, format_ or Messages())


def tokens_of(text):
    """The tiny tokenizer's ids of a text."""
    return _tokenizer().backend_tokenizer.encode(text, add_special_tokens=False).ids


@functools.cache
def _tokenizer():
    return fixtures_models.tiny_tokenizer()
