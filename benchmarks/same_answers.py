"""Whether a .gguf file says what the merged model says, token by token.

    tunesmith export RUN merged type=merged
    tunesmith export RUN out type=gguf outtype=q8_0
    python benchmarks/same_answers.py merged out/model-q8_0.gguf

Both answer 20 prompts with their 32 likeliest tokens: the merged model in transformers, the file in llama.cpp
(`pip install llama-cpp-python`), or in transformers with `--reader transformers`. Where they part, the place, both
tokens, and what each logit is to both are printed: a lead of the merged model's token that is smaller than what
rounding moved the two logits is a tie that rounding decides.

Letters: K tokens of an answer, V vocabulary.
"""

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from tunesmith.exports.formats import llama_cpp
from tunesmith.generate.alone import logits_of
from tunesmith.generate.engine import Generator, greedy_ids

TOKENS = 32
PROMPTS = (
    "Who are you?", "Name three fruits.", "What is 17 + 25? Explain each step.", "Write a haiku about rain.",
    "Translate to French: good morning, my friend.", "What is the capital of Japan?", "Explain photosynthesis briefly.",
    "Give me a recipe for pancakes.", "Write a Python function that reverses a string.", "What causes tides?",
    "Tell me a joke about cats.", "Summarise the story of Romeo and Juliet.", "How do vaccines work?",
    "List the planets of the solar system.", "What is the difference between a list and a tuple in Python?",
    "Write an email that declines a meeting.", "Why is the sky blue?", "What is a prime number?",
    "Give three tips for better sleep.", "Describe the sea to somebody who has never seen it.",
)  # fmt: skip

Greedy = Callable[[Sequence[int]], Sequence[int]]
Logits = Callable[[Sequence[int], Sequence[int]], torch.Tensor]


def main() -> None:
    """Print each difference, and the sums."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("merged", type=Path)
    parser.add_argument("file", type=Path)
    parser.add_argument("--reader", choices=["llama.cpp", "transformers"], default="llama.cpp")
    parser.add_argument("--dtype", choices=["auto", "float32"], default="float32", help="of the merged model")
    arguments = parser.parse_args()
    merged = Generator.open(str(arguments.merged), "cpu", arguments.dtype)
    if arguments.reader == "llama.cpp":
        with llama_cpp.opened(arguments.file, 1024) as other:
            compare(merged, lambda prompt: other.greedy(prompt, TOKENS), other.logits)
    else:
        read = Generator.open(str(arguments.file), "cpu", "float32").model
        compare(merged, lambda prompt: greedy_ids(read, prompt, TOKENS), lambda *asked: logits_of(read, *asked))


def compare(merged: Generator, greedy: Greedy, logits: Logits) -> None:
    """Ask both everything."""
    same, largest, divergences = 0, 0.0, []
    for number, question in enumerate(PROMPTS, 1):
        prompt = merged.prompt([{"role": "user", "content": question}], TOKENS).ids
        tokens, others = greedy_ids(merged.model, prompt, TOKENS), tuple(greedy(prompt))
        own, other = logits_of(merged.model, prompt, tokens), logits(prompt, tokens)  # [K, V]
        largest = max(largest, (own - other).abs().max().item())
        divergences.append((own.softmax(-1) * (own.log_softmax(-1) - other.log_softmax(-1))).sum(-1).mean().item())
        same += tokens == others
        if tokens != others:
            at = next(at for at, pair in enumerate(zip(tokens, others, strict=True)) if pair[0] != pair[1])
            said = _said(merged, own, other, at, tokens, others)
            print(f"{number:2} {question!r}\n   parts at token {at + 1} of {TOKENS}: {said}")
    mean = sum(divergences) / len(divergences)
    print(f"{same} of {len(PROMPTS)} answers of {TOKENS} tokens are the same; largest logit difference {largest:.3g}, ")
    print(f"mean divergence of the next token {mean:.2g} nats")


def _said(
    merged: Generator, own: torch.Tensor, other: torch.Tensor, at: int, tokens: Sequence[int], others: Sequence[int]
) -> str:
    """Both tokens at the place where two answers part, and their leads."""
    left, right = tokens[at], others[at]
    lead, after = own[at, left] - own[at, right], other[at, left] - other[at, right]
    words = [merged.tokenizer.decode([one]) for one in (left, right)]
    return f"{words[0]!r} leads {words[1]!r} by {lead:.3f} in the merged model, and by {after:.3f} in the file"


if __name__ == "__main__":
    main()
