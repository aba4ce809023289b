"""What a run depends on and libraries keep private or name in an old way, in one place."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


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
