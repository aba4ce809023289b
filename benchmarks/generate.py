"""Tokens a second of 1, 8 and 64 answers at once, beside transformers' own `generate` on a padded batch.

    python benchmarks/generate.py --model builtin:tiny
    python benchmarks/generate.py --model DIR --answers 1 8 --new-tokens 32 --rounds 2

Both make the likeliest tokens of the same prompts, so many of each, and their text; they take turns. `together` is how
many times the tokens a second of one answer alone.
"""

import contextlib
import itertools
import random
import statistics
import sys
from typing import Any

import measure

COLUMNS = ("answers", "prompt tokens", "tokens a second", "together", "transformers", "times as fast")


def main() -> None:
    """Measure, and print the table."""
    parser = measure.parser(__doc__)
    parser.add_argument("--answers", type=int, nargs="*", default=[1, 8, 64], help="answers at once")
    parser.add_argument("--prompt-tokens", type=int, default=60, help="tokens of a prompt, on average")
    parser.add_argument("--new-tokens", type=int, default=64, help="tokens of an answer")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--profile", action="store_true", help="where the time of the most answers goes, on stderr")
    arguments = parser.parse_args()
    with contextlib.redirect_stdout(sys.stderr):
        rows = measured(arguments)
    measure.report(
        f"Generation with {arguments.model}, {arguments.new_tokens} tokens each", COLUMNS, rows, arguments.json
    )


def measured(arguments: Any) -> list[tuple[Any, ...]]:
    """The lines of the table."""
    from tunesmith.generate.engine import Generator

    generator = Generator.open(arguments.model, arguments.device)
    generator.model.generation_config.eos_token_id = None  # all answers have the length that is asked
    words, size = len(generator.tokenizer), arguments.prompt_tokens
    contenders: dict[Any, Any] = {}
    for number in arguments.answers:
        for name, run in (("tunesmith", ours), ("transformers", theirs)):
            seeds = itertools.count()  # each round has prompts of its own, of which nothing was read before

            def turn(run: Any = run, number: int = number, seeds: Any = seeds) -> list[str]:
                return run(generator, prompts(words, size, number, next(seeds)), arguments.new_tokens)

            contenders[name, number] = turn
    for number in arguments.answers:
        pairs = zip(contenders["tunesmith", number](), contenders["transformers", number](), strict=True)
        print(f"{sum(our == their for our, their in pairs)} of {number} answers are equal", file=sys.stderr)
    taken = measure.seconds_in_turn(contenders, arguments.rounds)
    if arguments.profile:
        profiled(contenders["tunesmith", max(arguments.answers)])
    found = []
    for number in arguments.answers:
        one = [seconds / arguments.answers[0] for seconds in taken["tunesmith", arguments.answers[0]]]
        our, their = taken["tunesmith", number], taken["transformers", number]
        tokens = number * arguments.new_tokens
        found.append(
            (
                number,
                sum(map(len, prompts(words, size, number, 1))),
                tokens / statistics.median(our),
                measure.ratio([seconds / number for seconds in our], one),
                tokens / statistics.median(their),
                measure.ratio(our, their),
            )
        )
    return found


def prompts(vocabulary: int, tokens: int, number: int, seed: int) -> list[tuple[int, ...]]:
    """Random prompts whose lengths, the same for all seeds, spread as those of people's do."""
    draw = random.Random(0)
    sizes = [max(4, int(tokens * draw.lognormvariate(-0.125, 0.5))) for _ in range(number)]
    draw = random.Random(seed)
    return [tuple(draw.randrange(10, vocabulary) for _ in range(size)) for size in sizes]


def ours(generator: Any, asked: list[tuple[int, ...]], new_tokens: int) -> list[str]:
    """The answers of a batch that starts empty."""
    from tunesmith.generate.asked import Sampling
    from tunesmith.generate.batch import Batch, Request

    batch = Batch(generator.decoder, generator.tokenizer, frozenset())
    how = Sampling(max_new_tokens=new_tokens)
    streams = [batch.add(Request(prompt, how)) for prompt in asked]
    while batch.waiting or batch.running:
        batch.step()
    return ["".join(piece.text for piece in stream) for stream in streams]


def theirs(generator: Any, asked: list[tuple[int, ...]], new_tokens: int) -> list[str]:
    """The answers of transformers' `generate` to prompts that are filled up on the left."""
    import torch

    longest = max(map(len, asked))
    ids = torch.tensor([[0] * (longest - len(prompt)) + [*prompt] for prompt in asked])
    mask = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in asked])
    device = generator.model.device
    made = generator.model.generate(
        input_ids=ids.to(device),
        attention_mask=mask.to(device),
        max_new_tokens=new_tokens,
        do_sample=False,
        pad_token_id=0,
        repetition_penalty=1.0,
    )
    return generator.tokenizer.batch_decode(made[:, longest:], skip_special_tokens=True)


def profiled(run: Any) -> None:
    """Print where the time of a run goes."""
    import cProfile
    import pstats

    profile = cProfile.Profile()
    profile.runcall(run)
    pstats.Stats(profile, stream=sys.stderr).sort_stats("tottime").print_stats(40)


if __name__ == "__main__":
    main()
