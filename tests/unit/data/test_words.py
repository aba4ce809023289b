"""Classes of words on their way to a batch: which token has one, what is kept of them, where they are asked."""

import math

import numpy as np
import pytest
import torch

import fixtures_models
from fixtures_chats import recipe
from fixtures_values import encoder_tokenizer
from tunesmith.data.batch import join, lay
from tunesmith.data.overlong import cut
from tunesmith.data.place import classify
from tunesmith.data.render import NO_WORD, Renderer
from tunesmith.data.rendered import Rendered
from tunesmith.data.store import Store, StoreWriter, whole_key
from tunesmith.formats.tagged import Tagged
from tunesmith.objectives.token_classify import TokenClassify
from tunesmith.types import Batch, Scores, Tokens


def test_a_class_stands_on_the_first_token_of_its_word_by_hand():
    """`[CLS] New Yor k is` of "New York is", an end that was added, and blanks that begin a token or are one."""
    words = [(0, 3, 1), (4, 8, 2), (9, 11, 0)]
    plain = np.array([(0, 0), (0, 3), (4, 7), (7, 8), (9, 11), (0, 0)])
    assert classify(words, plain).tolist() == [-1, 1, 2, -1, 0, -1]
    with_blanks = np.array([(0, 3), (3, 7), (7, 8), (8, 9), (9, 11)])
    assert classify(words, with_blanks).tolist() == [1, 2, -1, -1, 0]
    bytes_of_one_character = np.array([(0, 1), (0, 1), (0, 1), (1, 3), (4, 8), (9, 11)])
    assert classify(words, bytes_of_one_character).tolist() == [1, -1, -1, -1, 2, 0]


def test_a_word_without_a_token_of_its_own_is_asked_nowhere():
    joined = np.array([(0, 2), (2, 3)])
    assert classify([(0, 1, 1), (1, 2, 2), (2, 3, 0)], joined).tolist() == [1, 0]  # the second one is in the first's
    missing = np.array([(0, 1), (4, 5)])
    assert classify([(0, 1, 1), (2, 3, 2), (4, 5, 0)], missing).tolist() == [1, 0]
    assert classify([(0, 1, 1)], np.zeros((2, 2), int)).tolist() == [-1, -1]


def rendered(rows, tokenizer=None, format_=None, **data):
    tokenizer = tokenizer or fixtures_models.tiny_tokenizer()
    made = recipe(objective={"type": "token_classify", "num_labels": 3}, template="plain", **data)
    renderer = Renderer(made.data, made.objective, made.data.template.prepare(tokenizer))
    return renderer.render([(f"f:{n}", row) for n, row in enumerate(rows, 1)], format_ or Tagged())


ROWS = [
    {"tokens": ["Hello", "the", "riverside"], "tags": [1, 0, 2]},
    {"tokens": ["moon"], "tags": [1]},
    {"tokens": ["🙂", "你好", "so"], "tags": [2, 1, 0]},
]


@pytest.mark.parametrize("make", [fixtures_models.tiny_tokenizer, encoder_tokenizer])
def test_every_word_is_asked_once_where_it_begins(make):
    tokenizer = make()
    if tokenizer.eos_token is None:
        tokenizer.eos_token = tokenizer.sep_token
    for row, one in zip(ROWS, rendered(ROWS, tokenizer), strict=True):
        (tokens,) = one.branches
        asked = np.flatnonzero(tokens.label >= 0)
        assert tokens.label[asked].tolist() == row["tags"] and tokens.trained == len(asked)
        encoding = tokenizer(" ".join(row["tokens"]))
        starts = [sum(len(word) + 1 for word in row["tokens"][:n]) for n in range(len(row["tokens"]))]
        assert asked.tolist() == [encoding.char_to_token(start) for start in starts]


def test_a_row_in_which_no_word_has_a_token_is_left_out_by_name():
    tokenizer = encoder_tokenizer()
    tokenizer.eos_token = tokenizer.sep_token
    assert [one.dropped for one in rendered([ROWS[0], {"tokens": ["\x00"], "tags": [1]}], tokenizer)] == [None, NO_WORD]


def test_a_row_of_no_words_is_left_out():
    assert [one.dropped for one in rendered([ROWS[0], {"tokens": [], "tags": []}])] == [None, "empty text"]


def labelled(ids, label):
    return Tokens(np.asarray(ids, np.int32), np.ones(len(ids), np.float32), label=np.asarray(label, np.int32))


def test_a_long_row_that_is_cut_asks_each_word_once():
    tokens = labelled(range(9), [0, -1, 1, -1, -1, -1, -1, 2, 1])
    pieces = cut(tokens, 3)
    assert [piece.ids.tolist() for piece in pieces] == [[0, 1, 2], [6, 7, 8]]  # one between them asks nothing
    assert [piece.label.tolist() for piece in pieces] == [[0, -1, 1], [-1, 2, 1]]


def test_a_store_gives_classes_back_and_has_no_place_for_them_where_there_are_none(tmp_path):
    one, other = labelled([5, 6, 7], [2, -1, 0]), labelled([8, 9], [-1, 1])
    with StoreWriter(tmp_path / "with") as writer:
        writer.add([Rendered("f:1", (one,)), Rendered("f:2", (other,))])
    store = Store.open(tmp_path / "with", cached=False)
    assert [tokens.label.tolist() for n in range(2) for tokens in store.branches(n)] == [[2, -1, 0], [-1, 1]]
    assert store.trained.tolist() == [2, 1]
    plain = Tokens(one.ids, one.weight)
    with StoreWriter(tmp_path / "without") as writer:
        writer.add([Rendered("f:1", (plain,))])
    assert (tmp_path / "without" / "token_label").stat().st_size == 0
    assert Store.open(tmp_path / "without", cached=False).branches(0)[0].label is None


def test_other_classes_are_another_sample():
    keys = {whole_key(Rendered("f", (labelled([5, 6], label),))) for label in ([0, 1], [1, 1], [0, 1])}
    assert len(keys) == 2


class Two:
    """Two samples of words."""

    label = np.full(2, np.nan)

    def branches(self, sample):
        return [labelled([5, 6, 7], [2, -1, 0]) if sample == 0 else labelled([8, 9], [-1, 1])]


def batch_of_two():
    return Batch(**join([lay(Two(), np.array([[0, 0, 3], [1, 0, 2]]))]))


def test_a_class_is_asked_where_its_own_token_stands_by_hand():
    batch = batch_of_two()
    assert batch.input_ids.tolist() == [[5, 6, 7, 8, 9]]
    assert batch.token_label.tolist() == [[2, -1, 0, -1, 1]]
    assert batch.weight.tolist() == [[1, 0, 1, 0, 1]] and batch.asked.tolist() == [0, 2, 4]


@pytest.mark.parametrize(("weights", "count"), [((), 3), ((1, 2, 4), 7)])
def test_the_loss_by_hand(weights, count):
    """Of [0, 0, log 2] class 2 has 1/2, of [log 3, 0, 0] class 0 has 3/5, of [0, 0, 0] class 1 has 1/3."""
    objective, batch = TokenClassify(num_labels=3, class_weights=weights), batch_of_two()
    values = torch.tensor([[0, 0, math.log(2)], [math.log(3), 0, 0], [0, 0, 0]], dtype=torch.float64)
    found = objective.loss(Scores(torch.zeros_like(batch.weight), values=values), batch)
    first, second, third = (weights[2], weights[0], weights[1]) if weights else (1, 1, 1)
    expected = first * math.log(2) + second * math.log(5 / 3) + third * math.log(3)
    assert found.total.item() == pytest.approx(expected) and objective.count(batch) == count
    right, number = found.metrics["accuracy"]
    assert (int(right), number) == (2, 3)
    assert found.counts["confusion"].tolist() == [[1, 0, 0], [1, 0, 0], [0, 0, 1]]
    measures = objective.measures(found.counts)  # f1 of the classes: 2/3, 0, 1
    assert measures["f1_macro"] == pytest.approx((2 / 3 + 0 + 1) / 3) == measures["f1_weighted"]
