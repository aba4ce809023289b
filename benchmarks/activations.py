"""What a forward pass holds for the backward pass, by `train.activation_checkpointing`, and what that computes again.

Bytes and operations are counted, not timed, so the machine and what else it does change nothing. The model has the
shape of Qwen2.5-0.5B (or fewer layers) and random weights in bfloat16, and is trained by LoRA.
"""

import warnings
from typing import Any

import measure

COLUMNS = ("activation_checkpointing", "KB a token", "share", "operations", "most held in a step, MB")
CHOICES = (False, "selective", 2, 4, True)
SHAPE = {
    "hidden_size": 896,
    "intermediate_size": 4864,
    "num_attention_heads": 14,
    "num_key_value_heads": 2,
    "vocab_size": 151_936,
    "tie_word_embeddings": True,
}


def main() -> None:
    """Print the table."""
    parser = measure.parser(__doc__)
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--tokens", type=int, default=256, help="tokens of the row, in sequences of 128")
    parser.add_argument("--asked", type=float, default=0.3, help="share of its tokens that are learned")
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore", ".*is_gradient_checkpointing", FutureWarning)  # peft 0.21, of an old name
    found = [(choice, *measured(choice, arguments)) for choice in CHOICES]
    _, most, fewest, _ = found[0]
    rows = [(str(c).lower(), held / 1e3, held / most, flops / fewest, peak) for c, held, flops, peak in found]
    title = f"A row of {arguments.tokens:,} tokens through {arguments.layers} layers of Qwen2.5-0.5B's shape, LoRA r 8"
    measure.report(title, COLUMNS, rows, arguments.json)


def measured(choice: bool | int | str, arguments: Any) -> tuple[float, int, float]:
    """Bytes a token that are held between the passes, operations of both, and the most held in MB."""
    import torch
    import transformers
    from torch.utils.flop_counter import FlopCounterMode

    from tunesmith.adapters.lora import LoRA
    from tunesmith.engine import kernels, memory
    from tunesmith.engine.activations import checkpoint_activations
    from tunesmith.recipe_train import Train

    torch.manual_seed(0)
    config = transformers.Qwen2Config(**SHAPE, num_hidden_layers=arguments.layers)
    with torch.device("cpu"):
        model: Any = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    model = LoRA(r=8).apply(model)
    checkpoint_activations(model, Train(activation_checkpointing=choice))
    scorer = kernels.choose(model).scorer
    model.train()
    batch = memory.random_batch(model, 128, arguments.tokens)
    batch.weight[torch.rand(batch.weight.shape) > arguments.asked] = 0
    with memory.LiveTensors() as held:
        loss = scorer(model, batch).logps.sum()
        between = held.live
        loss.backward()
    with FlopCounterMode(display=False) as operations:  # in a step of its own: it keeps tensors alive
        scorer(model, batch).logps.sum().backward()
    return between / arguments.tokens, operations.get_total_flops(), held.peak / 1e6


if __name__ == "__main__":
    main()
