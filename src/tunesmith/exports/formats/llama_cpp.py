"""A .gguf file as llama.cpp itself reads it, where `llama-cpp-python` is installed.

Letters: P tokens of the prompt, K tokens of the answer, V vocabulary.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tunesmith.exports.checks.compare import Unlike

PACKAGE, HOW = "llama_cpp", "pip install llama-cpp-python"
COST = 10 / 127  # of the largest logit: it also rounds what is multiplied with rounded weights, to 8 bits


def is_installed() -> bool:
    """Whether llama-cpp-python is."""
    return find_spec(PACKAGE) is not None


@contextmanager
def opened(file: Path, context: int) -> Iterator["LlamaCpp"]:
    """A file in llama.cpp, for so many tokens. Raises RunError for one that it does not read."""
    from llama_cpp import Llama

    try:
        model = Llama(str(file), n_ctx=context, logits_all=True, verbose=False, n_gpu_layers=0, type_k=0, type_v=0)
    except ValueError as error:
        raise Unlike(f"llama.cpp does not read it ({error}): it may need a newer llama-cpp-python") from error
    try:
        yield LlamaCpp(model)
    finally:
        model.close()


class LlamaCpp:
    """A loaded model."""

    def __init__(self, model: Any) -> None:
        self._model = model

    def logits(self, prompt: Sequence[int], tokens: Sequence[int]) -> torch.Tensor:
        """What it gives each token of an answer: [K, V] float32."""
        self._model.reset()
        self._model.eval([*prompt, *tokens[:-1]])
        rows = np.array(self._model.scores[len(prompt) - 1 : len(prompt) + len(tokens) - 1])
        return torch.from_numpy(rows).float()

    def greedy(self, prompt: Sequence[int], most: int) -> tuple[int, ...]:
        """The most likely answer of so many tokens, whatever ends it."""
        self._model.reset()
        self._model.eval(list(prompt))
        tokens: list[int] = []
        while True:
            tokens.append(int(self._model.scores[self._model.n_tokens - 1].argmax()))
            if len(tokens) == most:
                return tuple(tokens)
            self._model.eval(tokens[-1:])

    def ids(self, text: str) -> tuple[int, ...]:
        """How it reads a text in which special tokens are written out."""
        return tuple(self._model.tokenize(text.encode(), add_bos=False, special=True))

    def ends(self, ids: Sequence[int]) -> Mapping[int, bool]:
        """Whether an answer ends at each of some tokens."""
        from llama_cpp import llama_cpp

        vocab = llama_cpp.llama_model_get_vocab(self._model.model)
        return {at: bool(llama_cpp.llama_vocab_is_eog(vocab, at)) for at in ids}
