"""Components that are declared to go together train, and those that are not are refused before anything is loaded."""

import pytest
import torch

from contracts.test_adapters import MODEL, OPTIONS
from fixtures_models import tiny_model
from tunesmith import extras, selftest, together
from tunesmith.component import all_of, refusal
from tunesmith.errors import MissingExtra, RecipeError
from tunesmith.seams import Adapter, Objective, Optimizer

PAIRS = [(pair.first, pair.second) for pair in together.pairs(Adapter, Optimizer)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("selftest")
    selftest.prepare(folder)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("case", selftest.cases(), ids=str)
def test_a_case_does_what_is_declared(case, folder):
    outcome = selftest.attempt(case, folder)
    if outcome.status == "missing":
        pytest.skip(outcome.note)
    assert outcome.status == ("pass" if selftest.reason(case) is None else "refused"), outcome.note


def test_what_needs_an_extra_says_how_to_get_it(folder, monkeypatch):
    found = extras.find_spec
    monkeypatch.setattr(extras, "find_spec", lambda name: None if name == "bitsandbytes" else found(name))
    outcome = selftest.attempt(selftest.Case("sft", "lora", "bnb_4bit"), folder)
    assert (outcome.status, outcome.note) == (
        "missing",
        "model.quantization=bnb_4bit needs bitsandbytes, which is not installed: pip install 'tunesmith[bitsandbytes]'",
    )


def test_what_trains_nothing_fails_and_the_table_says_where(folder, monkeypatch):
    case = selftest.Case("sft", "bitfit")
    monkeypatch.setattr(all_of(Adapter)["bitfit"], "apply", lambda self, model: model.requires_grad_(False))
    outcome = selftest.attempt(case, folder)
    assert outcome.status == "failed"
    lines = list(selftest.lines([outcome, selftest.Outcome(selftest.Case("sft", "lora", "bnb_4bit"), "pass")]))
    assert lines == [
        "                 bitfit   lora",
        "sft              failed",
        "sft on bnb_4bit           pass",
        "",
        f"failed: sft with bitfit: {outcome.note}",
        "1 pass, 0 refused, 0 missing, 1 failed",
    ]


@pytest.mark.parametrize(("adapter", "optimizer"), PAIRS)
def test_an_adapter_and_an_optimizer_do_what_is_declared(adapter, optimizer):
    chosen = all_of(Adapter)[adapter](**OPTIONS.get(adapter, {}))
    in_turns = optimizer == "badam"
    updating = all_of(Optimizer)[optimizer](learning_rate=1e-2, **({"switch_every": 1} if in_turns else {}))
    if refusal([chosen, updating]) is not None:
        return  # a recipe says so: see below
    model = chosen.apply(tiny_model(scale=0.1, **MODEL.get(adapter, {}))).double()  # where the least step is seen
    try:
        built = updating.build(model, chosen.factors(model))
    except MissingExtra as error:
        pytest.skip(str(error))
    trained = {name: one.detach().clone() for name, one in model.named_parameters() if one.requires_grad}
    ids = torch.arange(24).view(2, 12)
    steps = 12 if in_turns else 3  # what is behind zeros has its first gradient in the second step, or turn
    whole = 100  # steps of the run, of which these are the first: no rank is dropped yet
    beside = [one for one in (chosen.companion(model, whole), updating.companion(built, model, whole)) if one]
    for step in range(1, steps + 1):
        built.zero_grad()
        model.train()(input_ids=ids, labels=ids).loss.backward()
        for one in beside:
            one.stepping(step)
        built.step()
        for one in beside:
            one.stepped(step)
    parameters = dict(model.named_parameters())
    assert [name for name, one in trained.items() if torch.equal(parameters[name], one)] == []


def test_what_is_refused_is_refused_by_a_recipe(folder, monkeypatch):
    kind = all_of(Adapter)["freeze"]
    monkeypatch.setattr(kind, "refuses", lambda self, other: "a reason" if isinstance(other, Objective) else None)
    case = selftest.Case("sft", "freeze")
    with pytest.raises(RecipeError, match="a reason"):
        selftest.recipe(case, folder)
    assert selftest.attempt(case, folder).status == "refused"
    expected = [f"objective={name}" for name in all_of(Objective)]
    assert together.refused(Adapter, "freeze")["a reason"] == expected
    assert ". a reason" in together.page()
    monkeypatch.setattr(kind, "refuses", lambda self, other: None)
    monkeypatch.setattr(selftest, "reason", lambda case: "a reason that a recipe does not give")
    assert selftest.attempt(case, folder).status == "failed"
