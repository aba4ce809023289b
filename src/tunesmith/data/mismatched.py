"""Samples with a second sequence each: their prompt with the answer of another sample, drawn over the whole set.

How likely such pairs are under two models says how far those are apart (the KL estimate of KTO, arXiv 2402.01306).
"""

import hashlib
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import numpy as np

from tunesmith.data import shared
from tunesmith.data.batch import WholeSet
from tunesmith.data.pack import offsets_of
from tunesmith.types import Tokens


@dataclass(frozen=True, eq=False)
class Mismatched:
    """Samples of one sequence each, joined by the prompt with the answer of `partner[sample]`: [M].

    A joined sequence that is longer than `limit` tokens is cut. With `shares`, the prompt of both stands once.
    """

    samples: WholeSet
    partner: np.ndarray
    limit: int
    shares: bool

    @classmethod
    def draw(
        cls, samples: WholeSet, among: np.ndarray, seed: tuple[int, ...], limit: int, shares: bool
    ) -> "Mismatched":
        """Give each of the samples `among` [m] another one of them, by the seed alone; of one sample, itself."""
        order = np.random.default_rng(seed).permutation(among)
        partner = np.arange(len(samples))
        partner[order] = np.roll(order, 1)
        return cls(samples, partner, limit, shares)

    @property
    def label(self) -> np.ndarray:
        """The labels of the samples: [M]."""
        return self.samples.label

    @cached_property
    def digest(self) -> str:
        """What tells these samples from others."""
        said = f"{self.samples.digest} {self.limit} {self.shares}".encode()
        return hashlib.sha256(said + self.partner.tobytes()).hexdigest()

    def __len__(self) -> int:
        """The number of samples."""
        return len(self.samples)

    def branches(self, sample: int) -> list[Tokens]:
        """A sample's own sequence, and its prompt with the other's answer."""
        (own,), (other,) = self.samples.branches(sample), self.samples.branches(int(self.partner[sample]))
        prompt, answer = answer_begins(own), answer_begins(other)
        ids = np.concatenate([own.ids[:prompt], other.ids[answer:]])[: self.limit]
        weight = np.concatenate([np.zeros(prompt, np.float32), other.weight[answer:]])[: self.limit]
        joined = Tokens(ids, weight)
        return [own, shared.behind(own, joined) if self.shares else joined]

    def tokens(self) -> np.ndarray:
        """The tokens of each sample, both sequences together and also what they share: [M]."""
        return self.samples.tokens() + self._own[2]

    def lengths(self) -> np.ndarray:
        """The tokens that each sample takes in a row: [M]."""
        _, prompts, joined = self._own
        repeated = np.minimum(prompts, joined) - 1  # of a prompt all but the last, which is asked for another token
        return self.tokens() - repeated if self.shares else self.tokens()

    def learned(self) -> np.ndarray:
        """Which tokens are learned, those of both sequences of all samples end to end: bool [T]."""
        own, (firsts, prompts, joined) = self.samples.learned(), self._own
        found = []
        answers = (firsts[:-1] + prompts)[self.partner]
        sizes = zip(pairwise(firsts.tolist()), prompts.tolist(), answers.tolist(), joined.tolist(), strict=True)
        for (first, last), prompt, answer, length in sizes:
            kept = max(0, length - prompt)  # of the answer
            found += [own[first:last], np.zeros(length - kept, bool), own[answer : answer + kept]]
        return np.concatenate(found)

    @cached_property
    def _own(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Where each sample begins [M+1], the tokens of its prompt [M], and those of its joined sequence [M]."""
        sizes = self.samples.tokens()
        firsts = offsets_of(sizes)
        learned = np.flatnonzero(self.samples.learned())
        prompts = learned[np.searchsorted(learned, firsts[:-1])] - firsts[:-1]
        joined = np.minimum(prompts + (sizes - prompts)[self.partner], self.limit)
        return firsts, prompts, joined


def answer_begins(tokens: Tokens) -> int:
    """Where the first learned token of a sequence stands, which no prompt begins with."""
    return 1 + int(np.flatnonzero(tokens.weight[1:])[0])
