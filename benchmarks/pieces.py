"""What a step holds on each process where a row lies in pieces (`parallel.context`), beside that of a whole row.

    torchrun --standalone --nproc_per_node 2 benchmarks/pieces.py

Bytes are counted, not timed, so the machine and what else it does change nothing. The model has the shape of
Qwen2.5-0.5B (or fewer layers) and random weights in bfloat16, and is trained by LoRA; every process makes the same.
"""

import warnings
from collections.abc import Callable
from typing import Any

import measure
from activations import SHAPE

COLUMNS = ("row", "held between the passes, MB", "most held in a step, MB", "share of a whole row's")


def main() -> None:
    """Print the table, of the process that holds most."""
    parser = measure.parser(__doc__)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--tokens", type=int, default=1024, help="tokens of the row, in sequences of 512")
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore", ".*is_gradient_checkpointing", FutureWarning)  # peft 0.21, of an old name
    from tunesmith.engine import ranks

    ranks.meet("cpu")
    found = measured(arguments)
    rows = [(name, held / 1e6, peak / 1e6, peak / found[0][2]) for name, held, peak in found]
    if ranks.own() == 0:
        title = f"A row of {arguments.tokens:,} tokens through {arguments.layers} layers of Qwen2.5-0.5B's shape"
        measure.report(title, COLUMNS, rows, arguments.json)


def measured(arguments: Any) -> list[tuple[str, int, int]]:
    """Of a whole row and of one in pieces: the bytes held between the passes, and the most in a step."""
    import torch
    import transformers

    from tunesmith.adapters.lora import LoRA
    from tunesmith.engine import context, kernels, memory, ranks
    from tunesmith.recipe import Recipe

    torch.manual_seed(0)
    config = transformers.Qwen2Config(**SHAPE, num_hidden_layers=arguments.layers)
    model: Any = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    model = LoRA(r=8).apply(model)
    scorer = kernels.choose(model).scorer
    parallel = {"context": ranks.number()}
    recipe = Recipe(model="builtin:tiny", data={"train": "builtin:identity"}, parallel=parallel)
    group = context.use(model, scorer, recipe)
    scorers: dict[str, Callable[..., Any]] = {"whole": scorer}
    if group is not None:
        scorers["in pieces"] = context.InPieces(scorer, group)
    model.train()
    batch = memory.random_batch(model, 512, arguments.tokens)
    found = []
    for name, one in scorers.items():
        one(model, batch).logps.sum().backward()  # what is made once
        with memory.LiveTensors() as held:
            loss = one(model, batch).logps.sum()
            between = held.live
            loss.backward()
        found.append((name, *(max(ranks.everyones(value)) for value in (between, held.peak))))
    return found


if __name__ == "__main__":
    main()
