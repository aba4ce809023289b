"""Rows of a run: the right samples, as many as were asked for, each position asked for the token that follows."""

import numpy as np
import pytest
import torch
from accelerate.data_loader import BatchSamplerShard
from torch.utils.data import BatchSampler

import fixtures_models
from fixtures_chats import recipe, write_rows
from tunesmith.data import mix
from tunesmith.data.batch import evaluation_rows, hold_out, join, training_rows
from tunesmith.data.prepare import prepare
from tunesmith.data.rendered import Rendered
from tunesmith.data.store import Store, StoreWriter
from tunesmith.errors import RecipeError
from tunesmith.types import Batch, Tokens


def store_of(folder, *samples, parts=()):
    """A store of samples, each a list of branches (ids, weight); `parts` are their numbers in their rows, else 0."""
    with StoreWriter(folder / "store") as writer:
        writer.add(
            Rendered(
                "f:1",
                tuple(Tokens(np.asarray(i, np.int32), np.asarray(w, np.float32)) for i, w in branches),
                part=parts[number] if parts else 0,
            )
            for number, branches in enumerate(samples)
        )
    return Store.open(folder / "store", cached=False)


def lengths_store(folder, lengths):
    """A store of samples with these lengths, whose tokens tell their sample (hundreds) and place."""
    return store_of(folder, *[[(np.arange(n) + 100 * s, [0] + [1] * (n - 1))] for s, n in enumerate(lengths, 1)])


def rows_of(store, samples=None, objective="sft", row_tokens=20, **options):
    data = {key: options.pop(key) for key in ("shuffle", "window_samples", "seed") if key in options}
    said = recipe(objective=objective, train={"row_tokens": row_tokens, **options}, **data)
    return packed(said, store, np.arange(len(store)) if samples is None else samples)


def packed(said, store, samples):
    own = mix.parts(said.data.train, store, samples)
    return training_rows(said, store, mix.epochs(said.data, own, store.lengths()))


def samples_of(rows):
    """The samples in each row, by the tokens they begin with."""
    return [[int(token) for token in row["input_ids"] if token % 100 == 0] for row in rows]


def flat(rows):
    return [sample for row in samples_of(rows) for sample in row]


# One batch


def test_two_short_samples_by_hand(tmp_path):
    store = store_of(tmp_path, [([11, 12, 13], [0, 0.5, 1])], [([21, 22], [0, 1])], [([31], [0])])
    rows = rows_of(store, shuffle=False, num_train_epochs=1, row_tokens=5)
    assert len(rows) == 2
    batch = Batch(**join([rows[0], rows[1]]))
    assert batch.input_ids.tolist() == [[11, 12, 13, 21, 22, 31]]
    assert batch.position_ids.tolist() == [[0, 1, 2, 0, 1, 0]]
    assert batch.seq.tolist() == [[0, 0, 0, 1, 1, 2]]
    assert batch.weight.tolist() == [[0.5, 1, 0, 1, 0, 0]]  # position t is asked for token t + 1
    asked = batch.weight != 0
    assert batch.target[asked].tolist() == [12, 13, 22]
    assert batch.offsets.tolist() == [0, 3, 5, 6]
    assert batch.longest == 3
    assert batch.asked.tolist() == [0, 1, 3] and batch.lengths == [3, 2, 1]
    assert batch.label.isnan().tolist() == [True] * 3
    kinds = [batch.input_ids, batch.position_ids, batch.target, batch.seq, batch.weight, batch.label]
    assert [tensor.dtype for tensor in kinds] == [torch.int64] * 4 + [torch.float32] * 2
    assert batch.offsets.dtype == torch.int32


def test_branches_stay_together_in_order(tmp_path):
    one = [([1, 2, 3], [0, 0, 1]), ([1, 4], [0, 1])]
    store = store_of(tmp_path, one, [([5, 6, 7], [0, 1, 1])])
    rows = rows_of(store, shuffle=False, num_train_epochs=1, row_tokens=8)
    batch = Batch(**join([rows[0]]))
    assert batch.input_ids.tolist() == [[1, 2, 3, 1, 4, 5, 6, 7]]
    assert batch.seq.tolist() == [[0, 0, 0, 1, 1, 2, 2, 2]]
    assert batch.target[batch.weight != 0].tolist() == [3, 4, 6, 7]
    assert batch.asked.tolist() == [1, 3, 5, 6] and batch.lengths == [3, 2, 3]


def test_a_document_goes_on_in_the_next_row(tmp_path):
    documents = [[(np.arange(n) + 100 * s, np.ones(n))] for s, n in ((1, 7), (2, 3))]
    rows = rows_of(
        store_of(tmp_path, *documents), objective="pretrain", shuffle=False, num_train_epochs=1, row_tokens=4
    )
    assert [row["input_ids"].tolist() for row in rows] == [
        [100, 101, 102, 103],
        [104, 105, 106, 200],
        [201, 202],
    ]
    assert [row["target"][row["weight"] != 0].tolist() for row in rows] == [
        [101, 102, 103, 104],
        [105, 106, 201],
        [202],
    ]
    batch = Batch(**join([rows[1]]))
    assert batch.position_ids.tolist() == [[0, 1, 2, 0]] and batch.seq.tolist() == [[0, 0, 0, 1]]
    assert batch.weight.tolist() == [[1, 1, 0, 1]]


@pytest.mark.parametrize("bos", [False, True])
def test_pretraining_loses_no_token(tmp_path, bos):
    from tokenizers.processors import TemplateProcessing

    tokenizer = fixtures_models.tiny_tokenizer()
    if bos:
        tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
            single="<|im_start|> $A", special_tokens=[("<|im_start|>", 1)]
        )
    texts = ["The river runs. " * n for n in (1, 30, 2, 5, 90, 1, 1)]
    path = write_rows(tmp_path / "rows.jsonl", [{"text": text} for text in texts])
    said = recipe(
        path, "pretrain", train={"row_tokens": 64, "num_train_epochs": 1}, max_tokens=10, cache_dir=str(tmp_path / "c")
    )  # fmt: skip
    store = prepare(said, said.data.train, tokenizer)
    assert len(store) == len(texts) and store.ledger.longest_tokens > 10  # the limit is for answers
    wanted = [[1] * bos + tokenizer.encode(text, add_special_tokens=False) + [2] for text in texts]
    assert tokenizer.convert_ids_to_tokens([1, 2]) == ["<|im_start|>", "<|im_end|>"]
    rows = packed(said, store, np.arange(len(store)))
    assert [len(row["input_ids"]) for row in rows][:-1] == [64] * (len(rows) - 1)
    laid = np.concatenate([row["input_ids"] for row in rows]).tolist()
    assert len(laid) == sum(map(len, wanted))
    starts = {tuple(ids): laid_at(laid, ids) for ids in wanted}
    assert None not in starts.values()  # whole, with EOS behind it
    asked = sum(int((row["weight"] != 0).sum()) for row in rows)
    assert asked == sum(len(ids) - 1 for ids in wanted) == store.ledger.trained_tokens


def laid_at(laid, ids):
    return next((n for n in range(len(laid)) if laid[n : n + len(ids)] == ids), None)


# A whole run


def test_an_epoch_has_every_sample_once(tmp_path):
    lengths = np.random.default_rng(0).integers(1, 20, 50)
    rows = rows_of(lengths_store(tmp_path, lengths), num_train_epochs=1, window_samples=16)
    assert sorted(flat(rows)) == [100 * n for n in range(1, 51)]
    for row in rows:
        assert len(row["input_ids"]) == row["lengths"].sum() <= 20
    tokens = sum(len(row["input_ids"]) for row in rows)
    assert rows.fill == pytest.approx(tokens / (20 * len(rows)))


def test_epochs_follow_each_other_in_other_orders(tmp_path):
    store = lengths_store(tmp_path, [10] * 12)
    rows = flat(rows_of(store, num_train_epochs=3))
    epochs = [rows[n : n + 12] for n in (0, 12, 24)]
    assert all(sorted(epoch) == [100 * n for n in range(1, 13)] for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2] != epochs[0]
    together = [sorted(map(sorted, samples_of(rows_of(store, num_train_epochs=n))[-6:])) for n in (1, 2)]
    assert together[0] != together[1]
    assert rows == flat(rows_of(store, num_train_epochs=3))
    assert rows[:24] == flat(rows_of(store, num_train_epochs=2))
    assert rows != flat(rows_of(store, num_train_epochs=3, seed=1))
    assert rows == flat(rows_of(store, num_train_epochs=3, per_device_train_batch_size=4))


def test_the_next_seed_is_not_the_next_epoch(tmp_path):
    store = lengths_store(tmp_path, [15] * 40)  # one sample a row, so that the order is the stream's and the window's
    second = flat(rows_of(store, num_train_epochs=2, seed=42))[40:]
    stream = np.random.default_rng([42, 2, 1]).permutation(40)
    window = np.random.default_rng([42, 3, 1, 0]).permutation(40)
    assert second == [100 * (int(stream[number]) + 1) for number in window]


def test_a_row_that_asks_nothing_is_left_out(tmp_path):
    documents = [[(np.arange(n) + 100 * s, np.ones(n))] for s, n in ((1, 6), (2, 3))]
    rows = rows_of(
        store_of(tmp_path, *documents), objective="pretrain", shuffle=False, num_train_epochs=1, row_tokens=4
    )  # 9 tokens: the third row would hold the second document's end alone
    assert [row["input_ids"].tolist() for row in rows] == [[100, 101, 102, 103], [104, 105, 200, 201]]
    asked = np.concatenate([row["target"][row["weight"] != 0] for row in rows])
    assert asked.tolist() == [101, 102, 103, 104, 105, 201, 202]


def test_without_shuffling_the_order_is_that_of_the_files(tmp_path):
    rows = rows_of(lengths_store(tmp_path, [15] * 6), shuffle=False, num_train_epochs=2)
    assert flat(rows) == [100, 200, 300, 400, 500, 600] * 2


@pytest.mark.parametrize(
    ("options", "rows"),
    [
        ({"num_train_epochs": 1}, 10),
        ({"num_train_epochs": 3}, 30),
        ({"num_train_epochs": 2.5}, 25),
        ({"num_train_epochs": 0.3}, 3),
        ({"num_train_epochs": 0.01}, 1),
        ({"max_steps": 7}, 7),
        ({"max_steps": 7, "num_train_epochs": 1}, 7),
        ({"max_steps": 23, "num_train_epochs": 1}, 23),
        ({"max_steps": 4, "per_device_train_batch_size": 2, "gradient_accumulation_steps": 3}, 24),
        ({"max_steps": 10}, 10),
    ],
)
def test_the_number_of_rows(tmp_path, options, rows):
    found = rows_of(lengths_store(tmp_path, [15] * 10), **options)
    assert len(found) == len(flat(found)) == rows
    whole = flat(rows_of(lengths_store(tmp_path / "again", [15] * 10), num_train_epochs=3))
    assert flat(found)[:30] == whole[:rows]


def test_only_the_chosen_samples_are_trained(tmp_path):
    store = lengths_store(tmp_path, [10] * 6)
    assert sorted(flat(rows_of(store, np.array([1, 4]), num_train_epochs=1))) == [200, 500]


def test_evaluation_is_once_and_in_order(tmp_path):
    store = lengths_store(tmp_path, [15] * 6)
    said = recipe(train={"row_tokens": 20, "num_train_epochs": 5, "max_steps": 2})
    assert flat(evaluation_rows(said, store, np.array([0, 3, 5]))) == [100, 400, 600]


def test_a_sample_longer_than_a_row_is_refused(tmp_path):
    with pytest.raises(RecipeError, match=r"train.row_tokens is 20, and a sample has 25 tokens"):
        rows_of(lengths_store(tmp_path, [10, 25]))
    documents = rows_of(lengths_store(tmp_path / "b", [10, 25]), objective="pretrain", num_train_epochs=1)
    assert len(documents) == 2


# What is held out


@pytest.mark.parametrize(("share", "held"), [(0.0, 0), (0.1, 10), (0.001, 1), (25, 25), (99, 99)])
def test_samples_are_held_out_by_fraction_or_count(share, held):
    trained, out = hold_out(recipe(eval=share), np.arange(100))
    assert len(out) == held
    assert sorted([*trained, *out]) == list(range(100))
    assert trained.tolist() == sorted(trained) and out.tolist() == sorted(out)


def test_what_is_held_out_is_decided_by_the_seed():
    rows = np.arange(100)
    one = hold_out(recipe(eval=0.2), rows)[1].tolist()
    assert hold_out(recipe(eval=0.2, shuffle=False, max_tokens=9), rows)[1].tolist() == one
    assert hold_out(recipe(eval=0.2, seed=7), rows)[1].tolist() != one


def test_the_parts_of_a_row_are_held_out_together(tmp_path):
    parts = [0, 1, 2, 0, 0, 1, 0, 1, 2, 3]  # four rows
    store = store_of(tmp_path, *[[([1, 2], [0, 1])]] * 10, parts=parts)
    assert store.row.tolist() == [0, 0, 0, 1, 2, 2, 3, 3, 3, 3]
    for seed in range(20):
        trained, held = hold_out(recipe(eval=2, seed=seed), store.row)
        assert sorted([*trained, *held]) == list(range(10))
        assert not set(store.row[trained]) & set(store.row[held])
        sizes = [int((store.row == row).sum()) for row in set(store.row[held].tolist())]
        assert sum(sizes) >= 2 and sum(sizes) - max(sizes) < 2  # as many rows as are needed


def test_rows_that_are_one_cannot_be_divided():
    with pytest.raises(RecipeError, match=r"5 of 5 samples .* \(they come from one row, "):
        hold_out(recipe(eval=1), np.zeros(5, np.int64))


@pytest.mark.parametrize(("share", "number"), [(100, 100), (0.1, 1), (0.999, 100)])
def test_something_must_be_left_to_train_on(share, number):
    with pytest.raises(RecipeError, match=rf"of {number} samples are held out, so none is left"):
        hold_out(recipe(eval=share), np.arange(number))


def test_the_longest_of_the_rows_is_that_of_the_batch(tmp_path):
    rows = rows_of(lengths_store(tmp_path, [3, 15, 9]), shuffle=False, num_train_epochs=1, row_tokens=16)
    assert join([rows[n] for n in range(len(rows))])["longest"] == 15


# Rows that ranks share


@pytest.mark.parametrize(("ranks", "batch"), [(2, 1), (2, 4), (3, 2)])
def test_ranks_take_every_row_once_and_as_many_micro_batches(tmp_path, ranks, batch):
    rows = rows_of(lengths_store(tmp_path, [15] * 9), num_train_epochs=1).shared_by(ranks, batch)
    taken = [rows[number] for number in range(len(rows))]
    batches = [Batch(**join(taken[first : first + batch])) for first in range(0, len(taken), batch)]
    assert len(batches) % ranks == 0 and len(rows) - 9 < ranks * batch
    real = [one for one in batches if not one.blank]
    assert sorted(int(token) for one in real for token in one.input_ids[0] if token % 100 == 0) == [
        100 * sample for sample in range(1, 10)
    ]
    assert len(real) == -(-9 // batch)  # a micro-batch that has a row has no blank ones beside it
    with pytest.raises(IndexError):
        rows[len(rows)]


def test_one_process_has_no_blank_rows(tmp_path):
    rows = rows_of(lengths_store(tmp_path, [15] * 9), num_train_epochs=1)
    assert rows.shared_by(1, 4) is rows


def test_the_steps_of_several_ranks_have_so_many_rows(tmp_path):
    store = lengths_store(tmp_path, [15] * 9)
    said = recipe(train={"row_tokens": 20, "max_steps": 4, "gradient_accumulation_steps": 2})
    orders = mix.epochs(said.data, mix.parts(said.data.train, store, np.arange(9)), store.lengths())
    assert len(training_rows(said, store, orders, ranks=3)) == 4 * 2 * 3


def steps_of(store, ranks, batch, per_step=8):
    """The samples of each optimizer step, as accelerate deals micro-batches to so many ranks."""
    accumulated = per_step // ranks // batch
    options = {"per_device_train_batch_size": batch, "gradient_accumulation_steps": accumulated}
    said = recipe(train={"row_tokens": 20, "num_train_epochs": 2, **options})
    own = mix.parts(said.data.train, store, np.arange(len(store)))
    rows = training_rows(said, store, mix.epochs(said.data, own, store.lengths()), ranks).shared_by(ranks, batch)
    steps = {}
    for rank in range(ranks):
        dealt = BatchSamplerShard(BatchSampler(range(len(rows)), batch, False), ranks, rank)
        for number, micro_batch in enumerate(dealt):
            real = [rows[row]["input_ids"][0] for row in micro_batch if "blank" not in rows[row]]
            steps.setdefault(number // accumulated, []).extend(map(int, real))
    return [sorted(steps[number]) for number in sorted(steps)]


@pytest.mark.parametrize("batch", [1, 2])
def test_one_two_and_four_ranks_see_the_same_samples_in_every_step(tmp_path, batch):
    store = lengths_store(tmp_path, [15] * 27)
    alone = steps_of(store, 1, batch)
    assert [len(step) for step in alone] == [8] * 6 + [6]  # two epochs of 27 samples
    assert len({tuple(step) for step in alone}) == 7
    assert steps_of(store, 2, batch) == steps_of(store, 4, batch) == alone
