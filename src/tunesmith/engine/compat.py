"""What a run depends on and libraries keep private or name in an old way, in one place."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from transformers import TrainingArguments


@contextmanager
def peft_warnings() -> Iterator[None]:
    """Raise what peft only warns of when weights are missing; hide its use of an old name."""
    with warnings.catch_warnings():
        warnings.filterwarnings("error", ".*missing adapter keys")
        # peft 0.21 asks transformers 5.23 by an old name (PeftModel.__init__); goes when it uses the new one
        warnings.filterwarnings("ignore", ".*is_gradient_checkpointing", FutureWarning)
        yield


def attention_of(model: Any) -> str:
    """The name of the attention implementation that a model runs; transformers 5 has a setter and no getter."""
    return str(model.config._attn_implementation)


def one_device(args: "TrainingArguments") -> None:
    """Keep a process to its first GPU.

    transformers 5.23 wraps a model in nn.DataParallel when a process sees several GPUs, and has no option against it;
    its Trainer sets this same attribute for a model that is spread over GPUs (Trainer.__init__).
    """
    args._n_gpu = min(args.n_gpu, 1)


def int8_product(x: "torch.Tensor", y: "torch.Tensor") -> "torch.Tensor":
    """The int32 product of two int8 matrices; torch 2.10 to 2.13 have it under a private name alone."""
    import torch

    return torch._int_mm(x, y)
