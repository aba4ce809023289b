"""Which samples are trained on and which are held out, and what is left out as a duplicate or as leaked."""

import copy
from dataclasses import dataclass

import numpy as np

from tunesmith.data import duplicates, lengths
from tunesmith.data.batch import hold_out
from tunesmith.data.ledger import (
    DUPLICATE,
    FIRST_PLACES,
    LEAKED,
    NEAR_DUPLICATE,
    NEARLY_LEAKED,
    Ledger,
    new_source,
    note,
)
from tunesmith.data.store import Store
from tunesmith.errors import DataError
from tunesmith.recipe import Recipe


@dataclass(frozen=True, eq=False)
class Chosen:
    """The samples of a store by what becomes of them, and the account with what was left out."""

    trained: np.ndarray
    held: np.ndarray  # those of the same store; empty when data.eval has sources of its own
    ledger: Ledger


def choose(recipe: Recipe, store: Store, other: Store | None) -> Chosen:
    """Look for duplicates, hold samples out, and look for those that leaked; `other` are the samples of data.eval.

    Duplicates are left out before samples are held out, and leaked samples of those that are trained on.

    Raises:
        DataError: leakage leaves nothing to train on.
        RecipeError: data.eval leaves nothing to train on.
    """
    data, ledger = recipe.data, copy.deepcopy(store.ledger)
    kept = np.ones(len(store), bool)
    sketched = duplicates.sketched(store, np.arange(len(store))) if data.near_duplicates is not None else None
    again = store.equals != np.arange(len(store))
    found = {DUPLICATE: again}
    if sketched is not None and data.near_duplicates is not None:
        found[NEAR_DUPLICATE] = duplicates.near_an_earlier(sketched, data.near_duplicates) & ~again
    _tell(store, ledger, kept, found, drop=data.duplicates == "drop")
    samples = np.flatnonzero(kept)
    held = samples[:0]
    if not isinstance(data.eval, tuple):
        chosen, out = hold_out(recipe, store.row[samples])
        samples, held = samples[chosen], samples[out]
    found = _leaked(store, samples, held, other)
    if sketched is not None and data.near_duplicates is not None and (len(held) or other):
        theirs = duplicates.sketched(other, np.arange(len(other))) if other else sketched.of(held)
        near = np.zeros(len(store), bool)
        near[samples] = duplicates.near_another(sketched.of(samples), theirs, data.near_duplicates)
        found[NEARLY_LEAKED] = near & ~found[LEAKED]
    _tell(store, ledger, kept, found, drop=data.leakage == "drop")
    samples = samples[kept[samples]]
    if not len(samples):
        raise DataError(f"data.leakage: all of {len(store):,} samples equal held-out ones, so none is left to train on")
    return Chosen(samples, held, ledger)


def _leaked(store: Store, samples: np.ndarray, held: np.ndarray, other: Store | None) -> dict[str, np.ndarray]:
    """Which samples that are trained on have the token ids of a held-out one."""
    leaked = np.zeros(len(store), bool)
    keys = other.key if other else store.key[held]
    if len(keys):
        leaked[samples] = duplicates.among(store.key[samples], keys)
    return {LEAKED: leaked}


def _tell(store: Store, ledger: Ledger, kept: np.ndarray, found: dict[str, np.ndarray], drop: bool) -> None:
    """Count what was found, and leave it out when asked."""
    for what, which in found.items():
        for number in np.flatnonzero(which)[:FIRST_PLACES]:
            note(ledger.found, what, store.place(int(number)), number=0)
        if which.any():
            ledger.found[what]["count"] = int(which.sum())
            if drop:
                leave_out(store, ledger, kept, which, what)


def leave_out(store: Store, ledger: Ledger, kept: np.ndarray, out: np.ndarray, reason: str) -> None:
    """Take samples, `out` of those `kept` (both [M] bool), from the account; `kept` is without them then.

    A row is dropped when none of its samples is kept.
    """
    before = np.unique(store.row[kept])
    kept &= ~out
    gone = np.setdiff1d(before, store.row[kept], assume_unique=False)
    parts = np.flatnonzero(out)
    of_gone = np.isin(store.row[parts], gone)
    _, first = np.unique(store.row[parts[of_gone]], return_index=True)
    for number in parts[of_gone][first[:FIRST_PLACES]]:
        note(ledger.dropped, reason, store.place(int(number)), number=0)
    if len(gone):
        ledger.dropped[reason]["count"] += len(gone)
    ledger.rows_kept -= len(gone)
    ledger.parts_dropped += int((~of_gone).sum())
    lost = int(store.tokens()[out].sum())
    ledger.tokens_dropped[reason] = ledger.tokens_dropped.get(reason, 0) + lost
    _recount(store, ledger, kept)


def _recount(store: Store, ledger: Ledger, kept: np.ndarray) -> None:
    """The counts of an account that follow from the samples that are kept."""
    tokens, lengths_in_row = store.tokens(), store.lengths()
    ledger.samples = int(kept.sum())
    ledger.tokens, ledger.trained_tokens = int(tokens[kept].sum()), int(store.trained[kept].sum())
    ledger.shared_tokens = ledger.tokens - int(lengths_in_row[kept].sum())
    of_kept = np.repeat(kept, np.diff(store.branch_offsets))
    ledger.longest_tokens = int(np.diff(store.token_offsets)[of_kept].max(initial=0))
    ledger.lengths = lengths.histogram(lengths_in_row[kept])
    for number, name in enumerate(store.sources):
        own = kept & (store.source == number)
        ledger.sources.setdefault(name, new_source()).update(
            rows_kept=len(np.unique(store.row[own])),
            samples=int(own.sum()),
            tokens=int(tokens[own].sum()),
            trained_tokens=int(store.trained[own].sum()),
        )
