"""The values that flow from a file to the loss. Each is immutable and knows nothing of where it came from.

Letters used for shapes in this package: T tokens in a micro-batch, N asked tokens, S sequences, V vocabulary,
D hidden size.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

if TYPE_CHECKING:
    import torch

Label = float | tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a conversation.

    `role` is `system`, `user`, `assistant`, `tool`, or `text` for a plain document (which no template wraps).
    `train` overrides the rule that assistant turns are trained and others are not; a float is a weight.
    `spans` are the characters of `content` that are learned, (start, end, weight), where the row says so: of a turn
    that has them nothing else is, but its end.
    """

    role: str
    content: str | tuple[Mapping[str, Any], ...]
    train: bool | float | None = None
    reasoning: str | None = None
    tool_calls: tuple[Mapping[str, Any], ...] = ()
    tool_call_id: str | None = None
    name: str | None = None
    spans: tuple[tuple[int, int, float], ...] | None = None

    @property
    def weight(self) -> float:
        """How much to learn this turn: 0 is not at all."""
        if self.train is None:
            return 1.0 if self.role in ("assistant", "text") else 0.0
        return float(self.train)

    def spoken(self) -> dict[str, Any]:
        """The mapping that a tokenizer's chat template reads."""
        content = self.content if isinstance(self.content, str) else [dict(part) for part in self.content]
        turn: dict[str, Any] = {"role": self.role, "content": content}
        if self.reasoning is not None:
            turn["reasoning_content"] = self.reasoning
        if self.tool_calls:
            turn["tool_calls"] = [dict(call) for call in self.tool_calls]
        for key in ("tool_call_id", "name"):
            if getattr(self, key) is not None:
                turn[key] = getattr(self, key)
        return turn


@dataclass(frozen=True, slots=True)
class Sample:
    """One example: one conversation, or alternatives to compare, and an optional label for the whole.

    A label of several classes at once is a tuple of 0 and 1, one for each class.
    """

    branches: tuple[tuple[Message, ...], ...]
    label: Label | None = None
    tools: tuple[Mapping[str, Any], ...] = ()
    words: tuple[tuple[int, int, int], ...] = ()  # of a document: first character, behind the last, and class
    ties: int = 0  # answers of the row that are left out, since another one is as good

    @property
    def is_document(self) -> bool:
        """Whether this is plain text rather than a conversation."""
        return len(self.branches) == 1 and [turn.role for turn in self.branches[0]] == ["text"]


@dataclass(frozen=True, slots=True)
class Tokens:
    """One rendered conversation.

    `weight[i]` is how much the model should learn to predict `ids[i]` from `ids[:i]`; 0 is not at all. The first
    `shared` tokens stand in the sequence before it in the sample too, and are laid in a row once; none is learned here.

    Where tokens have classes, `label`, these are learned, each where its own token stands, and `weight` says nothing.
    """

    ids: np.ndarray  # [T] int32
    weight: np.ndarray  # [T] float32
    shared: int = 0
    reference: np.ndarray | None = None  # [T] float32: log-probability of each token under a frozen model
    teacher: np.ndarray | None = None  # a teacher's likeliest words (data/taught.py) for each learned token, in order
    label: np.ndarray | None = None  # [T] int32: the class of each token itself, -1 of those that are not asked for it

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def trained(self) -> int:
        """The number of tokens that are learned: not the first, which nothing stands before, unless it has a class."""
        if self.label is not None:
            return int(np.count_nonzero(self.label >= 0))
        return int(np.count_nonzero(self.weight[1:]))


@dataclass(frozen=True, slots=True)
class Batch:
    """A flat micro-batch: sequences laid end to end, told apart by `seq`, with positions that restart at 0.

    Everything of shape [1, T] is aligned: position t is given `input_ids[t]` and asked for `target[t]`, the token
    after it in the same sequence, with `weight[t]`. Where nothing is asked, `weight` is 0. Where there is
    `token_label`, position t is asked for the class of its own token instead.

    A sequence may go on from the beginning of an earlier one, so that what they have in common stands once:
    `prefix[s]` is that sequence and how many of its tokens are shared (those that it shares itself included), and the
    positions of s count on from there.
    """

    input_ids: "torch.Tensor"  # [1, T] int64
    position_ids: "torch.Tensor"  # [1, T] int64
    target: "torch.Tensor"  # [1, T] int64
    weight: "torch.Tensor"  # [1, T] float32
    seq: "torch.Tensor"  # [1, T] int64: which sequence, 0..S-1
    label: "torch.Tensor"  # [S] float32, NaN where the dataset has none; [S, classes] where several can hold at once
    offsets: "torch.Tensor"  # [S+1] int32: sequence s is tokens offsets[s]..offsets[s+1]
    longest: int  # tokens of the longest sequence, without what it shares
    prefix: "torch.Tensor | None" = None  # [S, 2] int64; None: every sequence stands alone
    asked: "torch.Tensor | None" = None  # [N] int64: the positions with a weight, made with the batch, on the CPU
    lengths: Sequence[int] | None = None  # [S]: of the sequences, on the host, so that nobody waits for offsets
    branch: "torch.Tensor | None" = None  # [S] int64: which sequence of its sample, from 0; None: each is a sample
    reference: "torch.Tensor | None" = None  # [1, T] float32: log-probabilities of the targets under a frozen model
    token_label: "torch.Tensor | None" = None  # [1, T] int64: the class of each token, -1 where none is asked
    teacher_words: "torch.Tensor | None" = None  # [N, K] int64: a teacher's likeliest words at asked positions
    teacher_logps: "torch.Tensor | None" = None  # [N, K+1] float32: of each, and of all other words together
    blank: bool = False  # goes through the model and counts for nothing: other ranks have a row, and this one has none


@dataclass(frozen=True, slots=True)
class Divergence:
    """How far a student's words are measured from a teacher's.

    `weight` is that of the teacher in the mixture of `jsd`. The logits of both are divided by `temperature`. With
    `top_k` what is compared are the teacher's k likeliest words, each for itself, and all others as if they were one.
    `likelihood` says whether the loss weighs log-probabilities too; where not, `Scores.logps` have no gradient.
    """

    kind: Literal["forward_kl", "reverse_kl", "jsd"]
    weight: float = 0.5
    temperature: float = 1.0
    top_k: int | None = None
    likelihood: bool = True


@dataclass(frozen=True, slots=True)
class Scores:
    """What the model says of a batch.

    `logps[t]` is the log-probability of `target[t]`, float32, and 0 where nothing is asked. `entropy[t]` is that of the
    words that could stand there, and `values[s]` what a head of its own says of sequence s, or `values[n]` of the n-th
    asked token (`Head.tokens`), where an objective asks for it (`Objective.needs`). `divergence[t]` is how far the
    words that could stand there are from a teacher's, where an objective has one (`Objective.teaching`). `extra` holds
    the model's own auxiliary sums (a router's balance loss), by name. `lead[t]` is how far the target's logit is above
    the mean of all words', and `normaliser[t]` the log of softmax's sum, where an objective reads them
    (`Objective.reads`).
    """

    logps: "torch.Tensor"  # [1, T] float32
    entropy: "torch.Tensor | None" = None  # [1, T] float32
    values: "torch.Tensor | None" = None  # [S, labels] or [N, labels] float32
    extra: Mapping[str, "torch.Tensor"] = field(default_factory=dict)
    divergence: "torch.Tensor | None" = None  # [1, T] float32
    lead: "torch.Tensor | None" = None  # [1, T] float32
    normaliser: "torch.Tensor | None" = None  # [1, T] float32


@dataclass(frozen=True, slots=True)
class Head:
    """A head of a model's own that says some values of each sequence, in place of the one that gives words."""

    names: tuple[str, ...]  # of the values
    problem_type: str | None = None  # as transformers calls it
    tokens: bool = False  # says them of each token, and not of the sequence


@dataclass(frozen=True, slots=True)
class LossSum:
    """A loss before normalisation: a sum over units, and metrics as (sum, count) pairs. The trainer divides.

    `counts` are tensors that are summed over the whole held-out set, and then made into numbers by
    `Objective.measures`: for what is no ratio of two sums.
    """

    total: "torch.Tensor"  # []
    metrics: Mapping[str, tuple[Any, Any]] = field(default_factory=dict)
    counts: "Mapping[str, torch.Tensor]" = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Report:
    """What an export wrote and how it compares with the checkpoint it came from."""

    path: Path
    same_greedy_tokens: bool
    prompts: int
    largest_logit_difference: float
    tolerance: float
    partings: tuple[float, ...] = ()  # where greedy tokens part on a prompt: the lead of the run's own token
    compared: str = "greedy tokens"  # or "values", of a reward model or classifier, which has no tokens
    divergence: float = 0.0  # mean KL divergence of the next token from the run's own: nats
    notes: tuple[str, ...] = ()  # what else was found, in words

    def lines(self) -> tuple[str, ...]:
        """The report for people."""
        place = f"{'tie' if self.passed else 'place'}{'' if len(self.partings) == 1 else 's'}"
        other = f"other {self.compared} at {len(self.partings)} {place} than"
        tokens = f"the same {self.compared} as" if self.same_greedy_tokens else other
        values = self.compared == "values"
        largest = f"largest difference of a {'value' if values else 'logit'} {self.largest_logit_difference:.3g}"
        allowed = f"{largest} (allowed {self.tolerance:.3g})"
        return (
            f"verified on {self.prompts} prompts: {tokens} the run",
            allowed if values else f"{allowed}, mean divergence of the next token {self.divergence:.2g} nats",
            *self.notes,
        )

    @property
    def passed(self) -> bool:
        """Whether the export is within the tolerance of the run, and parts from its greedy tokens at ties alone.

        A tie is a lead that two logits, each within the tolerance, can lose.
        """
        ties = all(lead <= 2 * self.tolerance for lead in self.partings)
        return ties and self.largest_logit_difference <= self.tolerance
