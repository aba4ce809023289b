"""A model under examination: how likely it finds tokens, and what it answers. Every task of an evaluation asks this.

Log-probabilities are made as in training: sequences lie in packed rows, and only asked positions meet the head.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from tunesmith.data.batch import join
from tunesmith.data.prompt import prompt_ids
from tunesmith.engine import kernels, rope
from tunesmith.engine.model import base_of
from tunesmith.engine.scores import Scorer
from tunesmith.errors import ModelError
from tunesmith.generate.batch import Request
from tunesmith.generate.engine import Generator
from tunesmith.generate.load import load
from tunesmith.generate.sampling import Sampling
from tunesmith.recipe import Dtype
from tunesmith.recipe_rope import RopeScaling
from tunesmith.types import Batch

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

ROW_TOKENS = 4096  # of sequences that are read in one pass, unless one alone is longer
Sequence_ = tuple[Sequence[int], int]  # tokens, and how many of the last ones are asked for


@dataclass(frozen=True)
class Subject:
    """A causal model with its tokenizer and its kernels."""

    model: Any
    tokenizer: "PreTrainedTokenizerBase"
    kernels: kernels.Kernels

    @classmethod
    def open(
        cls, path: str, device: str = "auto", dtype: Dtype | None = None, rope_scaling: RopeScaling | None = None
    ) -> "Subject":
        """The model of a run, checkpoint, adapter or model folder, or hub id; `rope_scaling` stretches its positions.

        Raises:
            RunError, ModelError: it cannot be loaded, or has an encoder or a head for values.
            RecipeError: the scaling does not go with it.
        """
        model, tokenizer = load(path, device, dtype, rope_scaling=rope_scaling)
        if base_of(model).config.is_encoder_decoder:
            raise ModelError(f"{path} has an encoder and a decoder, and evaluation reads models of one: choose another")
        return cls(model, tokenizer, kernels.choose(model))

    @property
    def context_tokens(self) -> int | None:
        """The longest sequence the model was made for; None where its config does not say."""
        return rope.context_of(base_of(self.model).config)

    def logps(self, sequences: Sequence[Sequence_]) -> list[torch.Tensor]:
        """For each of some (tokens, n) the log-probabilities of its n last tokens: [n] float32 each, on the CPU.

        A first token, which nothing stands before, cannot be asked for.
        """
        found: list[torch.Tensor] = []
        for row in _rows(sequences):
            found += self._row(row)
        return found

    @torch.no_grad()
    def _row(self, sequences: Sequence[Sequence_]) -> list[torch.Tensor]:
        assert isinstance(self.kernels.scorer, Scorer), "it says words"
        joined = join([_laid(tokens, asked) for tokens, asked in sequences])
        device = base_of(self.model).device
        moved: dict[str, Any] = {
            name: one.to(device) if isinstance(one, torch.Tensor) else one for name, one in joined.items()
        }
        logps = self.kernels.scorer(self.model, Batch(**moved)).logps[0]  # [T]
        asked = logps[moved["asked"]].cpu()
        return list(asked.split([number for _, number in sequences]))

    def prompt(self, question: str, begun: str = "") -> list[int]:
        """A question as tokens; `begun` stands behind it where there is no chat template, so that the text goes on."""
        said = question if self.tokenizer.chat_template else question + begun
        return prompt_ids(self.tokenizer, [{"role": "user", "content": said}])

    def answer(self, question: str, begun: str, max_new_tokens: int) -> str:
        """The model's likeliest answer to what `prompt` makes of a question, as text, also beyond its context."""
        request = Request(tuple(self.prompt(question, begun)), Sampling(max_new_tokens=max_new_tokens))
        with self.kernels.generating(self.model):
            stream = Generator(self.model, self.tokenizer).batch().add(request)
            return "".join(piece.text for piece in stream)

    def ids(self, text: str) -> list[int]:
        """A text's tokens, without any that the tokenizer puts around it."""
        return list(self.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])

    @property
    def begin(self) -> tuple[int, ...]:
        """The tokens that the tokenizer puts before a text."""
        bos = self.tokenizer.bos_token_id
        return (bos,) if bos is not None and self.tokenizer("a")["input_ids"][0] == bos else ()


def _rows(sequences: Sequence[Sequence_]) -> Iterator[list[Sequence_]]:
    """The sequences in order, as many in a row as fit."""
    row: list[Sequence_] = []
    room = ROW_TOKENS
    for one in sequences:
        if row and len(one[0]) > room:
            yield row
            row, room = [], ROW_TOKENS
        row.append(one)
        room -= len(one[0])
    if row:
        yield row


def _laid(tokens: Sequence[int], asked: int) -> dict[str, np.ndarray]:
    """A sequence as a packed row of its own, of which the last tokens are asked for."""
    assert 0 < asked < len(tokens), "something is asked, and something stands before it"
    ids = np.asarray(tokens, np.int64)
    weight = np.zeros(len(ids), np.float32)
    weight[-asked - 1 : -1] = 1
    return {
        "input_ids": ids,
        "target": np.append(ids[1:], 0),
        "weight": weight,
        "lengths": np.asarray([len(ids)]),
        "prefix": np.zeros((1, 2), np.int64),
        "label": np.asarray([np.nan], np.float32),
        "branch": np.zeros(1, np.int64),
    }
