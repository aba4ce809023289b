"""The memory ladder: predicted peaks of a 1.5B and a 7B model by adapter, checkpointing and optimizer, as a page.

    python benchmarks/memory_ladder.py > /tmp/page && mv /tmp/page docs/guide/memory-ladder.md

Nothing is loaded: the models are the shapes below, and the device is a CUDA one with bfloat16.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

TOKENS = 2048
PROMISE = 8e9  # bytes, in which Llama-2-7B trains
MODELS: dict[str, dict[str, Any]] = {
    "Qwen2.5-1.5B": {
        "model_type": "qwen2",
        "hidden_size": 1536,
        "intermediate_size": 8960,
        "num_hidden_layers": 28,
        "num_attention_heads": 12,
        "num_key_value_heads": 2,
        "vocab_size": 151_936,
        "tie_word_embeddings": True,
    },
    "Llama-2-7B": {
        "model_type": "llama",
        "hidden_size": 4096,
        "intermediate_size": 11_008,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 32,
        "vocab_size": 32_000,
        "tie_word_embeddings": False,
    },
}
DPO: dict[str, Any] = {"objective": "dpo"}
ADAPTERS: dict[str, tuple[dict[str, Any], Any, dict[str, Any]]] = {  # with the sections that are not those of sft
    "full": ({"type": "full"}, None, {}),
    "full, dpo": ({"type": "full"}, None, DPO),
    "full, dpo, reference in every step": ({"type": "full"}, None, DPO | {"reference": {"compute": "step"}}),
    "freeze, 2 layers": ({"type": "freeze", "num_layers": 2}, None, {}),
    "lora, r 16": ({"type": "lora", "r": 16}, None, {}),
    "lora, r 16, dpo": ({"type": "lora", "r": 16}, None, DPO),
    "lora, r 16, on nf4": ({"type": "lora", "r": 16}, "bnb_4bit", {}),
}
COLUMNS = [(checkpointing, optimizer) for checkpointing in (False, True) for optimizer in ("adamw", "adamw8bit")]
PAGE = """\
# The memory ladder

The peak of a training step of {tokens:,} tokens, of which all are learned, on one CUDA device that computes in
bfloat16. **Every number of these tables is predicted** (p), from the shapes alone: no CUDA device has measured them
yet. The model behind them is that of `tunesmith plan`, which was compared with measured peaks on a CPU (below). The
command is `python benchmarks/memory_ladder.py`.

{tables}
Weights that are trained themselves (`full`, `freeze`) are float32, with bfloat16 copies for products, as
`model.dtype: auto` has them. Beside an adapter the base is bfloat16, or nf4 with double quantisation: 4.127 bits a
weight, while the embeddings and the head stay bfloat16. Each cell has {driver:.1f} GB for CUDA's driver and
libraries, which is an assumption. The nf4 row takes products of a base in 4 bits as those of other frozen weights
here: a weight is widened when it is used, and nothing of it is kept. The rows `dpo` have chosen and rejected answers
in the same {tokens:,} tokens; what their reference says is made once, before the first step, or in every step by a
second whole model. Beside an adapter the reference is the model itself, with its adapter off. Not counted are what
loading a model and rounding its weights needs for a moment, and the gaps that an allocator leaves.

## The 8 GB promise

Llama-2-7B on nf4 with double quantisation, LoRA of rank 16 on every linear layer, `activation_checkpointing: true`,
`adamw8bit`, {tokens:,} tokens: **{promise:.2f} GB are predicted, so by this prediction 8 GB {holds}**. The peak is at
{moment}:

{parts}

## Plan against reality

Eighteen combinations of adapter, checkpointing, optimizer and dtype are trained with random weights on a CPU; what
torch's allocator gives and takes back in a step is recorded, and its peak compared with the prediction. The command
stands below each table; `--compiled` adds norms and gated pairs that are compiled.

{measured}"""
MEASURED = Path(__file__).parents[1] / "docs" / "guide" / "memory-ladder.md"
BEGIN = "<!-- measured -->"


def main() -> None:
    """Print the page."""
    from tunesmith.planner.memory import CONTEXT

    tables = "\n".join(line for name in MODELS for line in table(name))
    peak = predicted("Llama-2-7B", "lora, r 16, on nf4", True, "adamw8bit").peak
    parts = [f"| {name} | {size / 1e9:.2f} |" for name, size in peak.parts.items() if size >= 5e6]
    page = PAGE.format(
        tokens=TOKENS,
        tables=tables,
        driver=CONTEXT["cuda"] / 1e9,
        promise=peak.total / 1e9,
        holds="hold" if peak.total <= PROMISE else "do not hold",
        moment=peak.name,
        parts="\n".join(["| part | GB (p) |", "|---|---|", *parts]),
        measured=BEGIN + MEASURED.read_text(encoding="utf-8").partition(BEGIN)[2],  # as it was measured last
    )
    print(page, end="")


def table(name: str) -> Iterator[str]:
    """A model's table, as lines of Markdown."""
    yield f"## {name}'s shape, GB\n"
    heads = (f"{optimizer}, {'checkpointing' if again else 'no checkpointing'}" for again, optimizer in COLUMNS)
    yield f"| | {' | '.join(heads)} |"
    yield f"|---|{'---|' * len(COLUMNS)}"
    for adapter in ADAPTERS:
        peaks = (predicted(name, adapter, again, optimizer).peak.total for again, optimizer in COLUMNS)
        yield f"| {adapter} | {' | '.join(f'{peak / 1e9:.2f} p' for peak in peaks)} |"
    yield ""


def predicted(name: str, adapter: str, checkpointing: bool, optimizer: str) -> Any:
    """The estimate of one cell."""
    from tunesmith.defaults import Device, resolve
    from tunesmith.planner import memory
    from tunesmith.recipe import Recipe

    options, quantization, sections = ADAPTERS[adapter]
    recipe = Recipe(
        model={"path": "builtin:tiny", "quantization": quantization},  # whose config is replaced
        data={"train": "builtin:identity", "max_tokens": TOKENS},
        adapter=options,
        optimizer=optimizer,
        train={"device": "cuda", "activation_checkpointing": checkpointing, "row_tokens": TOKENS},
        **sections,
    )
    device = Device("cuda", "a CUDA device", True)
    recipe = resolve(recipe, device).recipe
    return memory.estimate(recipe, shape(name, adapter, recipe), device)


def shape(name: str, adapter: str, recipe: Any, known: dict[tuple[str, str], Any] = {}) -> Any:  # noqa: B006
    """A model's shape with an adapter, made once."""
    from transformers import AutoConfig

    from tunesmith.planner.shapes import shape_of

    if (name, adapter) not in known:
        known[name, adapter] = shape_of(recipe, AutoConfig.for_model(**MODELS[name]))
    return known[name, adapter]


if __name__ == "__main__":
    main()
