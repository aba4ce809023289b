"""A plan's memory against a step's: predicted and measured peaks on a CPU, for twelve or more combinations.

What torch's allocator gives and takes back is recorded by its profiler in the second step, when the optimizer's state
is there; weights and state are added. Bytes are counted, not timed: the machine and what else it does change nothing.
The models have Qwen2's layers, random weights, and rows in sequences of --longest tokens, all of which are learned.
"""

import gc
import sys
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import measure

COLUMNS = ("adapter", "checkpointing", "optimizer", "dtype", "compiled", "predicted MB", "measured MB", "error %", "at")
ADAPTERS: dict[str, dict[str, Any]] = {
    "full": {"type": "full"},
    "lora": {"type": "lora", "r": 16},
    "freeze": {"type": "freeze", "num_layers": 2},
}
SHAPE = {
    "hidden_size": 256,
    "intermediate_size": 704,
    "num_hidden_layers": 6,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 8192,
    "tie_word_embeddings": True,
}
CASES = [
    (adapter, checkpointing, optimizer, dtype, False)
    for adapter in ADAPTERS
    for checkpointing, optimizer, dtype in (
        (False, "adamw", "float32"),
        (True, "adamw", "float32"),
        ("selective", "adamw", "float32"),
        (2, "adamw8bit", "bfloat16"),
        (False, "adamw8bit", "bfloat16"),
        (True, "adamw8bit", "bfloat16"),
    )
]
COMPILED = [
    ("lora", False, "adamw", "float32", True),
    ("lora", "selective", "adamw", "bfloat16", True),
    ("full", True, "adamw", "float32", True),
    ("full", False, "adamw8bit", "bfloat16", True),
]

OBJECTIVES = [  # twelve of other objectives, each with another choice of the rest
    (adapter, *rest, False, objective)
    for adapter, rests in {
        "full": ((True, "adamw", "float32"), (False, "adamw8bit", "bfloat16"), (2, "lion", "float32")),
        "lora": (("selective", "adamw", "bfloat16"), (False, "adamw", "float32"), (True, "adamw8bit", "bfloat16")),
        "freeze": ((2, "lion", "bfloat16"), ("selective", "adamw8bit", "float32"), (False, "adamw", "bfloat16")),
    }.items()
    for objective, rest in zip(("dpo", "orpo", "simpo", "dft"), (*rests, rests[0]), strict=True)
]


def main() -> None:
    """Print the table; exit with 1 when a prediction is off by more than a tenth."""
    parser = measure.parser(__doc__)
    parser.add_argument("--tokens", type=int, default=512, help="tokens of the row")
    parser.add_argument("--longest", type=int, default=256, help="tokens of its sequences")
    parser.add_argument("--words", type=int, default=8192, help="the vocabulary; with few, the peak is not the head's")
    parser.add_argument("--objectives", action="store_true", help="twelve combinations with other objectives than sft")
    parser.add_argument("--compiled", action="store_true", help="compiled norms and gates too: takes minutes")
    arguments = parser.parse_args()
    shape, rows = SHAPE | {"vocab_size": arguments.words}, []
    chosen = OBJECTIVES if arguments.objectives else [*CASES, *(COMPILED if arguments.compiled else [])]
    for case in chosen:
        predicted, found, where = compared(case, shape, arguments.tokens, arguments.longest)
        rows.append((*case, predicted / 1e6, found / 1e6, 100 * (predicted / found - 1), where))
        print(*rows[-1], file=sys.stderr)
    title = f"Peak memory of a step of {arguments.tokens:,} tokens, sequences of {arguments.longest:,}, {shape}"
    shown = [(*row[:-4], f"{row[-4]:.1f}", f"{row[-3]:.1f}", f"{row[-2]:+.1f}", row[-1]) for row in rows]
    columns = (*COLUMNS[:5], "objective", *COLUMNS[5:]) if arguments.objectives else COLUMNS
    measure.report(title, columns, [tuple(str(cell).lower() for cell in row) for row in shown], arguments.json)
    if any(abs(row[-2]) > 10 for row in rows):
        sys.exit(1)


def compared(case: tuple[Any, ...], shape: dict[str, Any], tokens: int, longest: int) -> tuple[int, int, str]:
    """The predicted and the measured peak in bytes, and the moment where it is predicted."""
    import transformers

    from tunesmith.defaults import Device, resolve
    from tunesmith.planner import memory, shapes
    from tunesmith.recipe import Recipe

    adapter, checkpointing, optimizer, dtype, compiles, *objective = case
    recipe = Recipe(
        model={"path": "builtin:tiny", "dtype": dtype},  # whose config is replaced
        data={"train": "builtin:identity", "max_tokens": longest},
        objective=objective[0] if objective else "sft",
        adapter=ADAPTERS[adapter],
        optimizer=optimizer,
        train={"row_tokens": tokens, "activation_checkpointing": checkpointing, "compile": compiles},
    )
    device = Device("cpu", "CPU", False)
    recipe = resolve(recipe, device).recipe
    config = transformers.Qwen2Config(**shape)
    predicted = memory.estimate(recipe, shapes.shape_of(recipe, config), device).peak
    return predicted.total, measured(recipe, config), predicted.name


def measured(recipe: Any, config: Any) -> int:
    """The most bytes that a step of a resolved recipe holds, in its second step; of several processes, in this one."""
    import torch
    from torch.profiler import ProfilerActivity, profile

    from tunesmith.adapted import precision
    from tunesmith.engine import kernels, memory, pool, shared_out, tensor, zero
    from tunesmith.engine.activations import checkpoint_activations
    from tunesmith.planner import shapes

    torch.manual_seed(0)
    warnings.filterwarnings("ignore", ".*is_gradient_checkpointing", FutureWarning)  # peft 0.21, of an old name
    model = shapes.built(recipe, config)
    checkpoint_activations(model, recipe.train)
    tensor.share_out(model, recipe, "cpu")
    begun, _ = zero.begin(model, recipe.optimizer.build(model), recipe, "cpu")
    ops, _ = kernels.elementwise(model, shared_out.compiles(recipe))
    with precision(recipe, "cpu"):
        scorer = kernels.choose(model, ops).scorer
    shared_out.rest(model)  # the optimizer has what is a process's own
    model.train()
    optimizer = recipe.optimizer.build(model)
    tensor.step_apart(optimizer)
    if begun is not None:
        begun.engine.module.scorer, scorer = scorer, zero.EngineScorer(begun.engine)
    batch = in_pairs(memory.random_batch(model, recipe.data.max_tokens, recipe.train.row_tokens))
    likelihood = recipe.objective.is_likelihood()
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    alike = [[one for one in trained if hasattr(one, "to_local") == parts] for parts in (False, True)]

    def step() -> None:
        with precision(recipe, "cpu"):
            scores = scorer(model, batch, likelihood=likelihood)
        loss = recipe.objective.loss(scores, batch).total / recipe.objective.count(batch)
        if begun is not None:
            begun.engine.set_gradient_accumulation_boundary(True)
            begun.engine.backward(loss, scale_wrt_gas=False)
            begun.engine.step()
            return
        loss.backward()
        for some in alike:
            torch.nn.utils.clip_grad_norm_(some, 1.0)
        optimizer.step()
        optimizer.zero_grad()

    step()
    pool.POOL.forget()  # what products use again is asked for anew, and so is counted
    states = (value for state in optimizer.state.values() for value in state.values())
    held_by = [*model.parameters(), *model.buffers(), *states, *vars_of(batch)] if begun is None else gc.get_objects()
    tensors = map(own, filter(torch.is_tensor, held_by))
    before = {one.untyped_storage().data_ptr(): one.untyped_storage().nbytes() for one in tensors}
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        step()
    changes = (one for one in recorded.profiler.kineto_results.events() if one.name() == "[memory]")
    held = most = sum(before.values())
    for change in sorted(changes, key=lambda one: one.start_ns()):
        held += change.nbytes()
        most = max(most, held)
    return most


def own(tensor: Any) -> Any:
    """What this process has of a tensor."""
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor


def in_pairs(batch: Any) -> Any:
    """A batch whose sequences are chosen and rejected answers in turn, with a reference's numbers for them."""
    import torch

    sides = torch.arange(len(batch.branch)) % 2
    return replace(batch, branch=sides.to(batch.branch), reference=torch.zeros_like(batch.weight))


def vars_of(batch: Any) -> list[Any]:
    """The tensors of a batch."""
    return [getattr(batch, name) for name in batch.__slots__]


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent))
    main()
