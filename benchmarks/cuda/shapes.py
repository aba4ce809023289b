"""The models and cases that are measured, rows made for them, and what arithmetic a step is counted as."""

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import repeat
from typing import TYPE_CHECKING, Any

import numpy as np

from tunesmith.data.batch import PackedRow, lay, training_rows
from tunesmith.data.pack import plan_epoch
from tunesmith.types import Tokens

if TYPE_CHECKING:
    from transformers import PretrainedConfig

DENSE_BF16 = 989e12  # FLOP/s of an H100 SXM, without sparsity
MEAN_TOKENS, SPREAD = 300, 0.8  # of made samples: log-normal, as people's rows are
ANSWER = 0.75  # the share of a made sample that is learned

SHAPES: dict[str, dict[str, Any]] = {
    "llama-3.1-8b": {
        "model_type": "llama", "vocab_size": 128256, "hidden_size": 4096, "intermediate_size": 14336,
        "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8, "tie_word_embeddings": False,
    },
    "qwen2.5-7b": {
        "model_type": "qwen2", "vocab_size": 152064, "hidden_size": 3584, "intermediate_size": 18944,
        "num_hidden_layers": 28, "num_attention_heads": 28, "num_key_value_heads": 4, "tie_word_embeddings": False,
    },
    "llama-3.2-1b": {
        "model_type": "llama", "vocab_size": 128256, "hidden_size": 2048, "intermediate_size": 8192,
        "num_hidden_layers": 16, "num_attention_heads": 32, "num_key_value_heads": 8, "tie_word_embeddings": True,
    },
    "tiny": {
        "model_type": "llama", "vocab_size": 384, "hidden_size": 64, "intermediate_size": 96,
        "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "tie_word_embeddings": False,
    },
}  # fmt: skip


@dataclass(frozen=True)
class Case:
    """One line of the table: a process of its own."""

    shape: str
    method: str = "lora"  # lora (r 16, every linear layer), full, or kernels (single products and attentions)
    frozen: str = "bf16"  # how frozen weights are held: bf16 or float8
    attention: str = "auto"  # the kernel of packed attention; auto is what a run chooses
    liger: bool = False

    def __str__(self) -> str:
        """What differs from the plainest case."""
        extras = [self.frozen] if self.method == "lora" else []
        extras += [f"{self.attention} attention"] if self.attention != "auto" else []
        return ", ".join([self.shape, self.method, *extras, *(["liger"] if self.liger else [])])

    def to_json(self) -> str:
        """For the process that measures it."""
        return json.dumps(asdict(self))


CASES = (  # what the bars ask for comes first: a short machine loses the rest
    Case("llama-3.1-8b"),
    Case("llama-3.1-8b", frozen="float8"),
    Case("qwen2.5-7b"),
    Case("llama-3.2-1b", "full"),
    Case("llama-3.1-8b", "kernels"),
    Case("qwen2.5-7b", frozen="float8"),
    Case("llama-3.1-8b", liger=True),
    Case("llama-3.2-1b", "full", liger=True),
    Case("llama-3.1-8b", attention="varlen"),
    Case("llama-3.1-8b", attention="flash3"),
    Case("llama-3.1-8b", attention="flash2"),
    Case("llama-3.1-8b", attention="flex"),
    Case("tiny"),
    Case("tiny", frozen="float8"),
    Case("tiny", "full"),
    Case("tiny", "kernels"),
)


def config_of(shape: str) -> "PretrainedConfig":
    """The transformers config of a shape."""
    from transformers import AutoConfig

    return AutoConfig.for_model(max_position_embeddings=32768, **SHAPES[shape])


class Made:
    """Samples of random ids whose lengths are log-normal; the last part of each is learned."""

    def __init__(self, number: int, most: int, seed: int = 0) -> None:
        random = np.random.default_rng(seed)
        lengths = random.lognormal(np.log(MEAN_TOKENS) - SPREAD**2 / 2, SPREAD, number)
        self.lengths = np.clip(lengths.astype(np.int64), 4, most)
        self.label = np.full(number, np.nan, np.float32)
        self._seed = seed

    def __len__(self) -> int:
        """The number of samples."""
        return len(self.lengths)

    def branches(self, sample: int) -> list[Tokens]:
        """The tokens of a sample."""
        length = int(self.lengths[sample])
        ids = np.random.default_rng([self._seed, sample]).integers(0, 1 << 17, length, np.int32)
        weight = (np.arange(length) >= length * (1 - ANSWER)).astype(np.float32)
        return [Tokens(ids, weight)]


def made_rows(number: int, row_tokens: int) -> Iterator[PackedRow]:
    """So many packed rows of made samples."""
    samples = Made(-(-2 * number * row_tokens // MEAN_TOKENS) + 8, row_tokens)
    plan = plan_epoch(samples.lengths, row_tokens, 1024, np.arange(len(samples)), (0,))
    return (lay(samples, plan.row(index)) for index in range(number))


def rows_of_file(data: str, model: str, number: int, row_tokens: int) -> Iterator[PackedRow]:
    """So many packed rows of a file, as a run lays them, with a model's tokenizer and template."""
    from tunesmith.data.prepare import prepare
    from tunesmith.engine.model import load_tokenizer
    from tunesmith.recipe import Recipe

    recipe = Recipe(
        model=model,
        data={"train": data, "max_tokens": row_tokens, "eval": 0},
        train={"row_tokens": row_tokens, "max_steps": number},
    )
    tokenizer = recipe.data.template.prepare(load_tokenizer(recipe.model))
    store = prepare(recipe, recipe.data.train, tokenizer)
    rows = training_rows(recipe, store, repeat(np.arange(len(store))))
    return (rows[index] for index in range(number))


@dataclass(frozen=True)
class Cost:
    """What a model's step is made of, in parameters."""

    parameters: int  # all, a tied head once
    linear: int  # of the layers' matrices, without the head
    adapters: int
    head: int
    heads: int  # numbers of queries over all layers: layers * heads * head size
    full: bool  # whether the matrices are trained

    @classmethod
    def of(cls, model: Any) -> "Cost":
        """Count a loaded, and perhaps adapted, causal model."""
        from tunesmith.engine.model import base_of

        base = base_of(model)
        config, head = base.config, base.get_output_embeddings().weight
        embeddings = {id(head), id(base.get_input_embeddings().weight)}
        named = dict(model.named_parameters())
        adapters = sum(one.numel() for name, one in named.items() if "lora_" in name)
        parameters = sum(one.numel() for one in named.values()) - adapters
        outside = sum(one.numel() for one in named.values() if id(one) in embeddings or one.ndim < 2)
        size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        heads = config.num_hidden_layers * config.num_attention_heads * size
        return cls(parameters, parameters - outside, adapters, head.numel(), heads, adapters == 0)

    def bar_flops(self, tokens: int) -> float:
        """As the bars are stated: 4 (frozen) or 6 (full) times all parameters, for each token."""
        return (6 if self.full else 4) * self.parameters * tokens

    def real_flops(self, lengths: np.ndarray, asked: int) -> float:
        """What is computed: products of the layers, the head where something is asked, attention by real lengths.

        Forward 2 a parameter and token, backward the same for inputs and again for what is trained.
        """
        tokens, squares = int(lengths.sum()), float((lengths.astype(np.float64) ** 2).sum())
        products = (6 if self.full else 4) * self.linear * tokens + 6 * self.adapters * tokens
        return products + (6 if self.full else 4) * self.head * asked + 3 * 2 * self.heads * squares
