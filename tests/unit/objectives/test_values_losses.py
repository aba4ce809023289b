"""Losses of rewards and classes, by hand and as torch has them in float64; counts and the numbers made of them."""

import math
from dataclasses import replace

import pytest
import torch
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy

from numerics.packed import packed_batch
from tunesmith.errors import RecipeError
from tunesmith.objectives import _confusion
from tunesmith.objectives.classify import Classify
from tunesmith.objectives.reward import Reward
from tunesmith.types import Scores


def batch_of(label, branch=None):
    batch = packed_batch((2,) * len(label), 9)
    label = torch.tensor(label)
    return replace(batch, label=label, branch=None if branch is None else torch.tensor(branch))


def scored(objective, values, batch):
    values = torch.tensor(values, dtype=torch.float64, requires_grad=True)
    return objective.loss(Scores(torch.zeros_like(batch.weight), values=values), batch), values


def log1p_exp(x):
    return math.log(1 + math.exp(x))


def test_a_pair_by_hand():
    nan = math.nan
    batch = batch_of([nan, nan, 0.5, 0.5], [0, 1, 0, 1])
    found, _ = scored(Reward(), [[2.0], [-1.0], [0.25], [1.0]], batch)
    assert Reward().count(batch) == 2
    assert found.total.item() == pytest.approx(log1p_exp(-3.0) + log1p_exp(0.75 + 0.5))
    means = {name: float(total) / count for name, (total, count) in found.metrics.items()}
    assert means == pytest.approx({"rewards_chosen": 1.125, "rewards_rejected": 0.0, "margins": 1.125, "accuracy": 0.5})


def test_centring_by_hand():
    batch = batch_of([math.nan] * 2, [0, 1])
    plain, _ = scored(Reward(), [[2.0], [1.0]], batch)
    centred, _ = scored(Reward(center_rewards_coefficient=0.01), [[2.0], [1.0]], batch)
    assert (centred.total - plain.total).item() == pytest.approx(0.01 * 9.0)


def test_a_ranking_is_the_chance_of_its_order():
    """P(1, 2, 3) = e^1 / (e^1 + e^3 + e^2) * e^3 / (e^3 + e^2): Plackett-Luce, by hand."""
    batch = batch_of([math.nan] * 5, [0, 1, 2, 0, 1])
    found, values = scored(Reward(), [[1.0], [3.0], [2.0], [0.5], [0.5]], batch)
    chance = math.e / (math.e + math.exp(3) + math.exp(2)) * math.exp(3) / (math.exp(3) + math.exp(2)) * 0.5
    assert Reward().count(batch) == 3
    assert found.total.item() == pytest.approx(-math.log(chance))
    assert found.metrics["accuracy"][1] == 4
    (gradient,) = torch.autograd.grad(found.total, values)
    first = [math.exp(one) / (math.e + math.exp(3) + math.exp(2)) for one in (1, 3, 2)]
    second = [math.exp(one) / (math.exp(3) + math.exp(2)) for one in (3, 2)]
    expected = [first[0] - 1, first[1] + second[0] - 1, first[2] + second[1], -0.5, 0.5]
    torch.testing.assert_close(gradient[:, 0], torch.tensor(expected, dtype=torch.float64))


@pytest.mark.parametrize("options", [{}, {"label_smoothing": 0.1}, {"class_weights": (1, 2, 3)}])
def test_one_class_is_torchs_cross_entropy(options):
    objective = Classify(num_labels=3, **options)
    label = [0.0, 2.0, 1.0, 2.0]
    batch = batch_of(label)
    values = torch.randn(4, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64).tolist()
    found, made = scored(objective, values, batch)
    weight = torch.tensor(options.get("class_weights", (1, 1, 1)), dtype=torch.float64)
    smoothing = options.get("label_smoothing", 0.0)
    mean = cross_entropy(made, torch.tensor(label).long(), weight, label_smoothing=smoothing)
    assert (found.total / objective.count(batch)).item() == pytest.approx(mean.item())


def test_a_weighted_class_by_hand():
    batch = batch_of([1.0, 0.0])
    found, _ = scored(Classify(num_labels=2, class_weights=(1, 3)), [[0.0, 0.0], [math.log(3), 0.0]], batch)
    assert found.total.item() == pytest.approx(3 * math.log(2) + math.log(4 / 3))
    assert Classify(num_labels=2, class_weights=(1, 3)).count(batch) == 4


@pytest.mark.parametrize("options", [{}, {"class_weights": (1.0, 2.0, 3.0)}])
def test_several_classes_are_torchs_binary_cross_entropy(options):
    objective = Classify(num_labels=3, multi_label=True, **options)
    label = [[1.0, 0.0, 1.0], [0.0, 0.0, 0.0]]
    batch = batch_of(label)
    values = [[0.3, -1.0, 2.0], [0.1, -0.2, -0.3]]
    found, made = scored(objective, values, batch)
    weight = torch.tensor(options.get("class_weights", (1.0,) * 3), dtype=torch.float64)
    whole = binary_cross_entropy_with_logits(made, torch.tensor(label).double(), weight, reduction="sum")
    assert found.total.item() == pytest.approx(whole.item())
    assert objective.count(batch) == pytest.approx(2 * float(weight.sum()))
    assert found.metrics["accuracy"][0] == 1 and found.metrics["accuracy"][1] == 2


def test_counts_and_their_numbers_by_hand():
    """Eight samples. Class 0: 2 right of 3, 1 said wrongly. Class 1: 1 of 3, 1 wrongly. Class 2: 2 of 2, 1 wrongly."""
    label, said = torch.tensor([0, 0, 0, 1, 1, 1, 2, 2]), torch.tensor([0, 0, 1, 1, 0, 2, 2, 2])
    counts = _confusion.matrix(said, label, 3)
    assert counts.tolist() == [[2, 1, 0], [1, 1, 1], [0, 0, 2]]
    found = _confusion.measures(counts)
    precision, recall, f1 = (2 / 3, 1 / 2, 2 / 3), (2 / 3, 1 / 3, 1.0), (2 / 3, 2 / 5, 4 / 5)
    for name, each in (("precision", precision), ("recall", recall), ("f1", f1)):
        assert found[f"{name}_macro"] == pytest.approx(sum(each) / 3)
        assert found[f"{name}_weighted"] == pytest.approx((3 * each[0] + 3 * each[1] + 2 * each[2]) / 8)
    halves = _confusion.matrix(said[:4], label[:4], 3) + _confusion.matrix(said[4:], label[4:], 3)
    assert torch.equal(halves, counts)


def test_a_class_that_is_not_there_counts_in_no_mean():
    found = _confusion.measures(_confusion.matrix(torch.tensor([0, 1]), torch.tensor([0, 1]), 4))
    assert found["f1_macro"] == 1.0


def test_counts_of_several_classes_by_hand():
    label, said = torch.tensor([[1, 0], [1, 1], [0, 1]]).bool(), torch.tensor([[1, 1], [0, 1], [0, 0]]).bool()
    counts = _confusion.by_class(said, label)
    assert counts.tolist() == [[[1, 0], [1, 1]], [[0, 1], [1, 1]]]
    assert _confusion.measures(counts)["f1_macro"] == pytest.approx((2 / 3 + 1 / 2) / 2)


def test_the_number_of_classes_must_be_clear():
    assert Classify(num_labels=2).head(()).names == ("LABEL_0", "LABEL_1")
    assert Classify().head(("a", "b", "c")).names == ("a", "b", "c")
    for objective, classes, says in (
        (Classify(), (), "the data name no classes"),
        (Classify(num_labels=2), ("a", "b", "c"), "objective.num_labels is for 2 classes, and there are 3"),
        (Classify(class_weights=(1, 2)), ("a", "b", "c"), "objective.class_weights is for 2 classes"),
    ):
        with pytest.raises(RecipeError, match=says):
            objective.head(classes)


@pytest.mark.parametrize(
    ("objective", "label", "says"),
    [
        (Classify(num_labels=2), 2.0, "class 2, and objective.num_labels=2 has the classes 0 to 1"),
        (Classify(num_labels=2), (1.0, 0.0), "say objective.multi_label=true"),
        (Classify(num_labels=2, multi_label=True), 1.0, "objective.multi_label=true learns lists"),
    ],
)
def test_labels_that_are_none_of_the_classes(objective, label, says):
    assert says in objective.problem(label)
    assert Classify(num_labels=3).problem(2.0) is None
