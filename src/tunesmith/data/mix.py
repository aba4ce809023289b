"""The samples of each epoch, in order: sources one after the other, or drawn from by weight. By the seed alone.

Letters: M samples of the store, E samples of an epoch.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tunesmith.data.store import Store
from tunesmith.errors import RecipeError
from tunesmith.recipe_data import Data, Source

UNTIL = {"concatenate": "", "first_exhausted": ": until a source is used up", "all_exhausted": ": until all were"}


@dataclass(frozen=True, eq=False)
class Part:
    """The samples of one source, and how much of an epoch they are."""

    name: str
    samples: np.ndarray  # in file order
    weight: float
    repeats: float  # num_samples over the rows that there are, where it is larger; else 1

    @property
    def whole(self) -> int:
        """The samples of the source with its repeats: when so many were drawn it is used up."""
        return round(len(self.samples) * self.repeats)


def parts(sources: Sequence[Source], store: Store, samples: np.ndarray) -> list[Part]:
    """The chosen samples of a store by source.

    `num_samples` counts rows: where a source has fewer, its samples are repeated as often as its rows would have to
    be, whole passes first.
    """
    found = []
    for number, (one, name) in enumerate(zip(sources, store.sources, strict=True)):
        own = samples[store.source[samples] == number]
        read = store.ledger.sources[name]["rows_read"]
        found.append(Part(name, own, one.weight, max(1.0, (one.num_samples or 0) / max(1, read))))
    return found


def epochs(data: Data, own: Sequence[Part], lengths: np.ndarray) -> Iterator[np.ndarray]:
    """The samples of the first epoch in order, those of the second, and so on without an end: [E] each.

    An epoch is, by `data.mix`:

    - `concatenate`: every sample as often as its source's weight says, times its repeats. Of a weight of 2.3 every
      sample comes twice, and three tenths of them once more, other ones in the next epoch.
    - `first_exhausted`: samples drawn from the sources by weight until one source is used up. In the next epoch the
      others go on where they stopped.
    - `all_exhausted`: the same until every source was used up at least once; those that are sooner begin anew.

    `data.shuffle` shuffles an epoch of `concatenate` as a whole, and where sources are drawn from each source by
    itself, anew whenever it begins anew; without it samples keep the order of their files. `lengths` [M] are the
    tokens of the samples, for `weight_by: tokens`.

    Raises:
        RecipeError: a source that is drawn from has no sample.
    """
    if data.mix == "concatenate":
        return _concatenated(data, own)
    for part in own:
        if not len(part.samples):
            raise RecipeError(
                f"data.mix: {data.mix} draws from every source, and {part.name} has no sample left to train on: "
                "leave it out, or say data.mix=concatenate"
            )
    return _drawn(data, own, lengths)


def _concatenated(data: Data, own: Sequence[Part]) -> Iterator[np.ndarray]:
    epoch = 0
    while True:
        order = np.concatenate([_passes(data, part, source, epoch) for source, part in enumerate(own)])
        yield np.random.default_rng([data.seed, 2, epoch]).permutation(order) if data.shuffle else order
        epoch += 1


def _passes(data: Data, part: Part, source: int, epoch: int) -> np.ndarray:
    """The samples of a source in an epoch: whole passes, then as many as are missing, the next ones each epoch."""
    number = len(part.samples)
    if not number:
        return part.samples
    wanted = max(1, round(number * part.weight * part.repeats))
    whole, rest = divmod(wanted, number)
    if not rest:
        return np.tile(part.samples, whole)
    turn = np.random.default_rng([data.seed, 5, source]).permutation(number)
    chosen = np.sort(turn[(epoch * rest + np.arange(rest)) % number])
    return np.concatenate([np.tile(part.samples, whole), part.samples[chosen]])


def due(drawn: np.ndarray | int, size: np.ndarray | int, weight: float) -> np.ndarray | float:
    """When the next sample of a source comes, if so much was drawn of it and the sample is of this size.

    The next sample of all is the one that is due first; of two at once that of the earlier source. Sizes are 1, or
    tokens. So of every source its share is drawn at any time, to half a sample of each: the method of Webster and
    Sainte-Laguë for seats, and of start-time fair queueing for packets (Goyal, Vin, Cheng 1996).
    """
    return (drawn + size / 2) / weight


def _drawn(data: Data, own: Sequence[Part], lengths: np.ndarray) -> Iterator[np.ndarray]:
    by_tokens = data.weight_by == "tokens"
    begun = [0] * len(own)  # of each source's stream without an end: the samples that earlier epochs drew
    while True:
        last = max if data.mix == "all_exhausted" else min
        ends = [
            (float(_dues(_stream(data, own, source, begun[source], part.whole), part, lengths, by_tokens)[-1]), source)
            for source, part in enumerate(own)
        ]
        end = last(ends)  # when the epoch's last sample is due
        drawn = [_until(data, own, source, begun[source], end, lengths, by_tokens) for source in range(len(own))]
        begun = [before + len(stream) for before, (stream, _) in zip(begun, drawn, strict=True)]
        order = np.argsort(np.concatenate([dues for _, dues in drawn]), kind="stable")  # of two at once the earlier
        yield np.concatenate([stream for stream, _ in drawn])[order]


def _until(
    data: Data, own: Sequence[Part], source: int, begun: int, end: tuple[float, int], lengths: np.ndarray, tokens: bool
) -> tuple[np.ndarray, np.ndarray]:
    """The next samples of a source that are due up to an end (time, source), and when they are."""
    number = own[source].whole
    while True:
        stream = _stream(data, own, source, begun, number)
        dues = _dues(stream, own[source], lengths, tokens)
        count = int(np.searchsorted(dues, end[0], side="right" if source <= end[1] else "left"))
        if count < number:
            return stream[:count], dues[:count]
        if (float(dues[-1]), source) == end:
            return stream, dues
        number *= 2


def _dues(stream: np.ndarray, part: Part, lengths: np.ndarray, by_tokens: bool) -> np.ndarray:
    sizes = lengths[stream] if by_tokens else np.ones(len(stream), np.int64)
    found = due(np.cumsum(sizes) - sizes, sizes, part.weight)
    assert isinstance(found, np.ndarray)
    return found


def _stream(data: Data, own: Sequence[Part], source: int, begun: int, number: int) -> np.ndarray:
    """So many samples of a source's passes one after the other, each pass in an order of its own."""
    samples = own[source].samples
    passes = range(begun // len(samples), (begun + number - 1) // len(samples) + 1)
    laid = [
        np.random.default_rng([data.seed, 6, source, one]).permutation(samples) if data.shuffle else samples
        for one in passes
    ]
    first = begun - passes[0] * len(samples)
    return np.concatenate(laid)[first : first + number]


def once(sources: Sequence[Source], store: Store) -> list[str]:
    """That held-out samples are taken once, where a source says otherwise."""
    asks = any(
        one.weight != 1 or (one.num_samples or 0) > store.ledger.sources[name]["rows_read"]
        for one, name in zip(sources, store.sources, strict=True)
    )
    return ["every sample is taken once: weight and num_samples repeat none that is held out"] if asks else []


def account(own: Sequence[Part], store: Store, order: np.ndarray) -> dict[str, Any]:
    """What an epoch in this order [E] has of each source: {samples, tokens, sources: {name: {samples, tokens}}}."""
    lengths = store.lengths()
    samples = np.bincount(store.source[order], minlength=len(own))
    tokens = np.bincount(store.source[order], lengths[order], len(own)).astype(np.int64)
    return {
        "samples": len(order),
        "tokens": int(tokens.sum()),
        "sources": {
            part.name: {"samples": int(samples[number]), "tokens": int(tokens[number])}
            for number, part in enumerate(own)
        },
    }


def lines(data: Data, own: Sequence[Part], found: Mapping[str, Any]) -> list[str]:
    """What an epoch is, in words; nothing where it is every sample once."""
    if found["samples"] == sum(len(part.samples) for part in own) and data.mix == "concatenate":
        return []
    how = f"data.mix {data.mix}{UNTIL[data.mix]}"
    said = [f"an epoch is {found['samples']:,} samples, {found['tokens']:,} tokens ({how})"]
    for part in own:
        one = found["sources"][part.name]
        said.append(
            f"an epoch has of {part.name}: {one['samples']:,} samples ({one['samples'] / found['samples']:.1%}), "
            f"{one['tokens']:,} tokens ({one['tokens'] / found['tokens']:.1%})"
            + (f"; it has {len(part.samples):,}" if one["samples"] != len(part.samples) else "")
        )
    return said
