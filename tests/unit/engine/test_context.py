"""Pieces of rows, on one process: where they are cut, who takes which rows, and what is refused."""

from dataclasses import dataclass, replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from fixtures_models import tiny_model
from tunesmith.data.batch import PackedRows
from tunesmith.engine import context, kernels
from tunesmith.engine.attention import Layout
from tunesmith.engine.scores import Scorer
from tunesmith.errors import RecipeError
from tunesmith.recipe import Recipe

RECIPE = Recipe(model="builtin:tiny", data={"train": "builtin:identity"}, parallel={"context": 2})


@pytest.fixture(scope="module")
def model():
    return tiny_model()


@pytest.mark.parametrize("size", [2, 3, 4, 16, 64])
def test_pieces_of_one_length_make_the_row_and_what_fills_it_up(model, size):
    batch = kernels.probe_batch(model)
    tokens = batch.input_ids.shape[1]
    pieces = [context.Group(size, own, None).piece(batch) for own in range(size)]
    assert len({piece.input_ids.shape for piece in pieces}) == 1
    for name in ("input_ids", "position_ids", "target", "weight"):
        row = torch.cat([getattr(piece, name) for piece in pieces], dim=1)
        assert torch.equal(row[:, :tokens], getattr(batch, name)) and not row[:, tokens:].any()
    whole, layout = Layout.of(batch), Layout.of(pieces[0])
    assert layout.lengths[: len(whole.lengths)] == whole.lengths
    assert sum(layout.lengths) == size * pieces[0].input_ids.shape[1] == layout.offsets[-1]
    assert layout.longest == max(layout.lengths)


def test_sequences_that_go_on_from_others_keep_what_they_see(model):
    batch = replace(kernels.probe_batch(model), prefix=torch.tensor([[0, 0], [0, 0], [0, 7]]))
    seen, whole = (Layout.of(one).seen for one in (context.Group(2, 1, None).piece(batch), batch))
    assert seen[:-1] == whole and seen[-1] == (slice(33, 34),)


def test_a_piece_has_the_teachers_words_of_its_own_asked_tokens(model):
    batch = kernels.probe_batch(model)
    asked = batch.weight[0].nonzero()[:, 0]
    batch = replace(batch, teacher_words=asked[:, None], teacher_logps=-asked[:, None].float())
    first, second = (context.Group(2, own, None).piece(batch) for own in (0, 1))
    assert (first.teacher_words < 17).all() and (second.teacher_words >= 17).all()
    assert torch.equal(torch.cat([first.teacher_words, second.teacher_words]), batch.teacher_words)
    assert torch.equal(first.teacher_words[:, 0], first.weight[0].nonzero()[:, 0])


@dataclass(frozen=True)
class Numbers:
    """A plan whose rows are their numbers."""

    number: int

    def __len__(self):
        return self.number

    def row(self, index):
        return index


def test_processes_of_a_group_take_the_same_micro_batches(monkeypatch):
    monkeypatch.setattr("tunesmith.data.batch.lay", lambda store, row: {"row": row})
    batch, groups, each = 2, 2, 2
    rows = PackedRows(None, Numbers(7), 1.0).shared_by(groups, batch)
    shared = context.RowsOfGroups.of(rows, each, batch)
    assert len(shared) == each * len(rows) == 16
    names = [f"{row['row']}{' blank' if 'blank' in row else ''}" for row in (shared[n] for n in range(len(shared)))]
    taken = [names[first : first + batch] for first in range(0, len(names), batch)]
    by_process = [taken[process :: groups * each] for process in range(groups * each)]
    assert by_process[:2] == [[["0", "1"], ["4", "5"]]] * 2
    assert by_process[2:] == [[["2", "3"], ["6", "0 blank"]]] * 2


def test_groups_take_equal_work_and_their_processes_the_same(monkeypatch):
    """By hand, as tests/unit/data/test_balance.py has it: 9 and 8 go together, and the group with 8 gets the 5."""
    monkeypatch.setattr("tunesmith.data.batch.lay", lambda store, row: {"row": row})
    monkeypatch.setattr("tunesmith.data.balance.work", lambda plan: np.asarray([1.0, 9.0, 5.0, 8.0]))
    rows = PackedRows(None, Numbers(4), 1.0).shared_by(2, batch=1, accumulation=2)
    shared = context.RowsOfGroups.of(rows, 2, 1)
    taken = [shared[number]["row"] for number in range(len(shared))]
    assert [taken[process::4] for process in range(4)] == [[1, 0], [1, 0], [3, 2], [3, 2]]


@pytest.mark.parametrize(("number", "groups"), [(1, 1), (2, 1), (8, 4)])
def test_groups_of_processes(monkeypatch, number, groups):
    monkeypatch.setenv("WORLD_SIZE", str(number))
    assert context.groups(RECIPE) == groups and context.size(RECIPE) == min(number, 2)


def test_processes_that_make_no_whole_groups_are_refused(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "3")
    with pytest.raises(RecipeError, match="parallel.context=2: 3 processes make no whole groups of 2"):
        context.groups(RECIPE)


def test_models_that_do_not_go_with_pieces_are_refused(monkeypatch, model):
    monkeypatch.setenv("WORLD_SIZE", "3")
    three = RECIPE.model_copy(update={"parallel": RECIPE.parallel.model_copy(update={"context": 3})})
    with pytest.raises(RecipeError, match="parallel.context=3: the 4 attention heads of LlamaForCausalLM"):
        context.use(model, Scorer.of(model), three)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(RecipeError, match="which LlamaForCausalLM does not run"):
        context.use(model, Scorer.of(model, packed=False), RECIPE)
    scaled = tiny_model()
    scaled.config.rope_parameters = {"rope_type": "longrope", "rope_theta": 1e4}
    with pytest.raises(RecipeError, match="LlamaForCausalLM turns positions by the longest sequence of a row"):
        context.use(scaled, Scorer.of(scaled), RECIPE)


def test_a_model_whose_pieces_say_something_else_is_found(model):
    scorer = kernels.choose(model).scorer
    alone = SimpleNamespace(piece=lambda batch: batch, gathered=lambda piece: piece)
    assert context.problem_of(model, scorer, alone) is None
    other = SimpleNamespace(piece=lambda batch: batch, gathered=lambda piece: piece.roll(1, 0))
    assert "log-probabilities differ by" in context.problem_of(model, scorer, other)
