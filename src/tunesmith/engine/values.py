"""What a head of a model's own says of each sequence, or token: the model runs whole, on a packed row where it can.

A decoder's head says something of every token, and its model keeps what it says of the last one that is not padding:
of a packed row, one for each sequence is kept here. An encoder attends both ways and takes the first token, by its own
forward pass: its sequences are taken out of the row, into batches of like length that are filled up. Where tokens are
classified, what is kept is said of the asked ones.

Letters: T tokens, N asked tokens, S sequences, B sequences of a batch, L tokens of its longest one.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch

from tunesmith.data.batch import PackedRows
from tunesmith.engine.attention import Layout
from tunesmith.engine.elementwise import PLAIN, Elementwise
from tunesmith.engine.model import base_of, heads_of, says_tokens
from tunesmith.engine.scores import asked_of
from tunesmith.types import Batch, Scores

LOOK_ROWS = 200  # of which the fill is counted


@dataclass(frozen=True)
class ValueScorer:
    """How the values of a model's sequences, or tokens, are computed."""

    teacher: ClassVar[None] = None  # whose words would be compared

    head: torch.nn.Module  # the module that makes them, the last of what stands behind the model's body
    pad: int | None  # the token that fills a batch; None: the model knows none
    packed: bool  # the model's attention is tunesmith's
    tokens: bool = False  # what is said of each asked token, and not of the sequence
    ops: Elementwise = field(default=PLAIN, repr=False)

    @classmethod
    def of(cls, model: Any, packed: bool = True, ops: Elementwise = PLAIN) -> "ValueScorer":
        """The scorer of a loaded (and perhaps adapted) model with a head of its own."""
        base = base_of(model)
        pad = getattr(base.config.get_text_config(), "pad_token_id", None)
        return cls(base.get_submodule(heads_of(model)[-1]), pad, packed, says_tokens(model), ops)

    def __call__(
        self, model: torch.nn.Module, batch: Batch, likelihood: bool = False, reads: Sequence[str] = ()
    ) -> Scores:
        """The values of each sequence, or asked token, under `model`, which may be wrapped for distribution.

        No word is scored.
        """
        values = self.kept(self.said(model, batch), batch) if self.packed else self._filled(model, batch)
        return Scores(torch.zeros_like(batch.weight), values=values.float())

    def said(self, model: torch.nn.Module, batch: Batch) -> torch.Tensor:
        """What the head says of every token [T, labels], from one pass over the row."""
        caught: list[torch.Tensor] = []
        handle = self.head.register_forward_hook(lambda module, args, output: caught.append(output))
        try:
            model(
                input_ids=batch.input_ids,
                position_ids=batch.position_ids,
                use_cache=False,
                packed=Layout.of(batch, self.ops),
            )
        finally:
            handle.remove()
        (values,) = caught  # [1, T, labels]
        assert values.shape[:2] == batch.input_ids.shape, "the head says something of every token"
        return values[0]

    def kept(self, said: torch.Tensor, batch: Batch) -> torch.Tensor:
        """What is kept of that: [S, labels] or [N, labels]."""
        return said[asked_of(batch) if self.tokens else self._last(batch)]

    def _last(self, batch: Batch) -> torch.Tensor:
        """The place of the last token of each sequence that is not padding, as transformers chooses it: [S]."""
        ends = batch.offsets[1:].long() - 1
        if self.pad is None:
            return ends
        place = torch.arange(batch.input_ids.shape[1], device=ends.device)
        place = torch.where(batch.input_ids[0] == self.pad, -1, place)
        return batch.offsets[:-1].long().scatter_reduce(0, batch.seq[0], place, "amax")

    def _filled(self, model: torch.nn.Module, batch: Batch) -> torch.Tensor:
        """[S, labels] or [N, labels], from a pass over each batch of like length."""
        assert batch.prefix is None, "run.py refuses shared beginnings without packed attention"
        lengths = batch.offsets.diff().tolist() if batch.lengths is None else batch.lengths
        sequences = batch.input_ids[0].split(list(lengths))
        said = filled(model, sequences, self.pad)
        return torch.cat(said)[asked_of(batch)] if self.tokens else torch.stack(said)


def filled(model: Any, sequences: Sequence[torch.Tensor], pad: int | None) -> list[torch.Tensor]:
    """What a model's own forward pass says of each sequence of tokens, in batches of like length.

    [labels], or of each of its tokens: [T, labels].
    """
    lengths = [len(one) for one in sequences]
    found: dict[int, torch.Tensor] = {}
    for numbers in groups(lengths) if pad is not None else ([number] for number in range(len(lengths))):
        chosen = [sequences[number] for number in numbers]
        ids = torch.nn.utils.rnn.pad_sequence(chosen, batch_first=True, padding_value=pad or 0)  # [B, L]
        sizes = torch.tensor([len(one) for one in chosen], device=ids.device)
        mask = (torch.arange(ids.shape[1], device=ids.device) < sizes[:, None]).long()
        said = model(input_ids=ids, attention_mask=mask).logits  # [B, labels] or [B, L, labels]
        for number, one in zip(numbers, said, strict=True):
            found[number] = one if said.ndim == 2 else one[: lengths[number]]
    return [found[number] for number in range(len(lengths))]


def groups(lengths: Sequence[int]) -> Iterator[list[int]]:
    """The numbers of sequences whose lengths lie between the same two powers of two, so that half is fill at most."""
    sizes = [(length - 1).bit_length() for length in lengths]
    for size in sorted(set(sizes)):
        yield [number for number, own in enumerate(sizes) if own == size]


def account(scorer: Any, rows: Any) -> dict[str, float]:
    """The share of tokens in the places that a scorer fills up in the first packed rows; {} where it fills none."""
    if not isinstance(scorer, ValueScorer) or scorer.packed or not isinstance(rows, PackedRows):
        return {}
    tokens = places = 0
    for number in range(min(len(rows), LOOK_ROWS)):
        lengths = rows[number]["lengths"].tolist()
        tokens += sum(lengths)
        places += sum(len(one) * max(lengths[number] for number in one) for one in groups(lengths))
    return {"filled_up": round(tokens / places, 4)}
