"""What a run depends on and libraries keep private or name in an old way, in one place."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from torch.utils._python_dispatch import TorchDispatchMode as DispatchMode  # documented, and public nowhere

if TYPE_CHECKING:
    from transformers import TrainingArguments

__all__ = ["DispatchMode", "attention_of", "one_device", "peft_warnings"]


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
