"""New tokens: rows of the embeddings for them, and what these begin as.

Letters: D hidden size.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch

from tunesmith.errors import ModelError
from tunesmith.recipe import Model

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def add(model: Model, tokenizer: "PreTrainedTokenizerBase") -> "PreTrainedTokenizerBase":
    """A model's tokenizer with the new tokens of the recipe.

    Raises:
        ModelError: it has one of them.
    """
    from tokenizers import AddedToken

    known = tokenizer.get_vocab()
    for option, special in (("new_tokens", False), ("new_special_tokens", True)):
        named = getattr(model, option)
        taken = [token for token in named if token in known]
        if taken:
            raise ModelError(f"model.{option}: the tokenizer of {model.path} has {taken[0]!r} already: leave it out")
        tokens = [AddedToken(token, normalized=False, special=special) for token in named]
        tokenizer.add_tokens(tokens, special_tokens=special)
    return tokenizer


def ids(model: Model, tokenizer: "PreTrainedTokenizerBase") -> dict[str, int]:
    """The numbers of a recipe's new tokens, of a tokenizer that has them."""
    known = tokenizer.get_vocab()
    return {token: known[token] for token in model.added()}


@torch.no_grad()
def give_rows(loaded: "PreTrainedModel", model: Model, tokenizer: "PreTrainedTokenizerBase") -> None:
    """Give each new token a row of the input and of the output embeddings.

    It begins as the mean of the rows of the tokens that its description is written with, or else of all tokens' rows
    (nlp.stanford.edu/~johnhew/vocab-expansion.html).

    Raises:
        ModelError: the model's embeddings cannot be made longer.
    """
    new = ids(model, tokenizer)
    old = min(new.values())  # tokens are numbered one after the other, and new ones come last
    described = {new[token]: _words_of(text, tokenizer, old) for token, text in model.added().items()}
    lengthen(loaded, max(new.values()) + 1)
    for weight in _matrices(loaded):
        mean = weight[:old].mean(0, dtype=torch.float32)  # [D]
        begun = {row: weight[words].mean(0, dtype=torch.float32) if words else mean for row, words in described.items()}
        for row, values in begun.items():
            weight[row] = values.to(weight.dtype)


def lengthen(loaded: Any, rows: int) -> None:
    """Have at least so many rows in the embeddings of a model, and as many in its head. Raises ModelError."""
    embedding = loaded.get_input_embeddings()
    if rows <= embedding.num_embeddings:
        return
    before = embedding.num_embeddings
    try:
        loaded.resize_token_embeddings(rows, mean_resizing=False)
    except (NotImplementedError, ValueError, TypeError, AttributeError, RuntimeError) as error:
        first = next(iter(str(error).splitlines()), type(error).__name__)
        raise ModelError(f"model.new_tokens: {type(loaded).__name__} takes no new rows: {first}") from error
    bias = getattr(loaded.get_output_embeddings(), "bias", None)
    if bias is not None:
        with torch.no_grad():
            bias[before:] = bias[:before].mean()


def _words_of(text: str, tokenizer: Any, old: int) -> list[int]:
    """The tokens of a description that the model knows."""
    return [one for one in tokenizer(text, add_special_tokens=False)["input_ids"] if one < old] if text else []


def _matrices(loaded: Any) -> list[torch.Tensor]:
    """The weights of the input and the output embeddings: one where they are tied, or where a model says no words."""
    modules = (loaded.get_input_embeddings(), loaded.get_output_embeddings())
    weights = {id(one.weight): one.weight for one in modules if one is not None}
    return list(weights.values())


def places(loaded: Any, rows: Sequence[int]) -> Mapping[str, list[int]]:
    """What peft calls `trainable_token_indices`: rows of the input embeddings, and of the head where it is not tied."""
    modules = [loaded.get_input_embeddings()]
    head = loaded.get_output_embeddings()
    if head is not None and head.weight is not modules[0].weight:
        modules.append(head)
    names = {id(module): name for name, module in loaded.named_modules()}
    return {names[id(module)]: list(rows) for module in modules}
