"""AdaLoRA's schedule: ranks that are dropped until a budget is met, vectors at right angles, and what is kept."""

import pytest
import torch

from fixtures_models import tiny_model
from tunesmith import Recipe, train
from tunesmith.adapters.adalora import AdaLoRA
from tunesmith.engine import companions, multi_adapter, stacked
from tunesmith.engine.averaged import Averaged
from tunesmith.engine.ranks_picture import table
from tunesmith.errors import RecipeError
from tunesmith.optimizers.schedule_free import ScheduleFree

IDS = torch.arange(24).view(2, 12) * 5 % 300


def adalora(num_steps=10, **said):
    torch.manual_seed(0)
    adapter = AdaLoRA(init_r=6, target_r=2, **said)
    model = adapter.apply(tiny_model(scale=0.1))
    return model, adapter.companion(model, num_steps)


def test_right_angles_are_a_term_of_the_gradient():
    model, ranks = adalora(orth_reg_weight=0.3)
    found = {name: one for name, one in model.named_parameters() if "lora_A" in name or "lora_B" in name}
    for one in found.values():
        one.grad = torch.ones_like(one)
    ranks.stepping(1)
    rows = [one if "lora_A" in name else one.T for name, one in found.items()]
    total = sum((one @ one.T - torch.eye(6)).norm() for one in rows) * 0.3 / len(rows)
    for name, expected in zip(found, torch.autograd.grad(total, list(found.values())), strict=True):
        torch.testing.assert_close(found[name].grad, expected + 1, rtol=1e-4, atol=1e-6)


@pytest.mark.usefixtures("drawn")
def test_ranks_are_dropped_until_the_budget_is_met_and_drawn(tmp_path):
    model, ranks = adalora(tinit=2, tfinal=3)
    optimizer = torch.optim.AdamW([one for one in model.parameters() if one.requires_grad], lr=1e-2)
    left = []
    for step in range(1, 11):
        optimizer.zero_grad()
        model(input_ids=IDS, labels=IDS).loss.backward()
        ranks.stepping(step)
        optimizer.step()
        ranks.stepped(step)
        kept = [int((one != 0).sum()) for name, one in model.named_parameters() if "lora_E" in name]
        left.append(sum(kept))
    layers = 2 * 7
    # a cubic way from 6 a layer after 2 steps to 2 a layer before the last 3
    course = [int(4 * layers * (1 - (step - 2) / 5) ** 3 + 2 * layers) for step in range(3, 7)]
    assert left == [6 * layers, 6 * layers, *course, *[2 * layers] * 4]
    (said,) = ranks.write(tmp_path)
    assert said.startswith("ranks: from ") and "2.0 on average" in said
    assert (tmp_path / "ranks.png").read_bytes().startswith(b"\x89PNG")
    names, numbers, matrix = table({name: sum(one) for name, one in ranks.pattern.items()})
    assert len(names) == 7 and numbers == [0, 1] and matrix.sum() == 2 * layers


def test_a_schedule_of_ranks_that_does_not_fit_is_refused():
    with pytest.raises(RecipeError, match=r"adapter\.tinit and adapter\.tfinal: of 10 steps, 6 at first and 4"):
        adalora(tinit=6, tfinal=4)
    plain = {"model": {"path": "m"}, "data": {"train": "d"}, "adapter": "adalora"}
    with pytest.raises(RecipeError, match=r"train\.release_gradients: adalora needs the gradients"):
        Recipe(**plain, train={"release_gradients": True, "max_grad_norm": 0})
    with pytest.raises(RecipeError, match=r"train\.fp16: adalora needs gradients without their scale"):
        Recipe(**plain, train={"fp16": True, "max_grad_norm": 0})


def test_a_run_that_is_refused_by_its_steps_leaves_no_folder(tmp_path):
    recipe = {"model": "builtin:tiny", "data": {"train": "builtin:identity", "cache_dir": str(tmp_path / "cache")}}
    adapter = {"type": "adalora", "tinit": 1, "tfinal": 2}
    with pytest.raises(RecipeError, match=r"adapter\.tinit and adapter\.tfinal: of 2 steps"):
        train(Recipe(**recipe, adapter=adapter, train={"max_steps": 2, "output_dir": str(tmp_path / "run")}))
    assert not (tmp_path / "run").exists()


def test_a_schedule_of_ranks_goes_on_from_what_was_kept():
    model, ranks = adalora(tinit=2, tfinal=3)
    for step in range(1, 6):
        for one in model.parameters():
            one.grad = torch.full_like(one, 0.1 * step)
        ranks.stepped(step)
    kept = ranks.state()
    # importance, its mean and how it varies of A, E and B, and which ranks are left, of 2 layers of 7
    assert len(kept) == 2 * 7 * (3 * 3 + 1)
    _, other = adalora(tinit=2, tfinal=3)
    other.load(kept)
    assert other.pattern == ranks.pattern and other.pattern is not None
    again = other.state()
    assert again.keys() == kept.keys() and all(torch.equal(one, again[name]) for name, one in kept.items())
    means = ranks.allocator.exp_avg_ipt
    assert means.keys() == other.allocator.exp_avg_ipt.keys() and any(one.abs().max() > 0 for one in means.values())


def by_means(model):
    mean = Averaged(model, 0.5)
    return torch.optim.AdamW([one for one in model.parameters() if one.requires_grad], lr=1e-2), mean


def by_schedule_free(model):
    optimizer = ScheduleFree(learning_rate=1e-2)
    built = optimizer.build(model)
    return built, optimizer.companion(built, model, 10)


@pytest.mark.parametrize("averaged", [by_means, by_schedule_free])
def test_what_is_evaluated_is_what_is_saved(averaged, tmp_path):
    model, ranks = adalora(tinit=2, tfinal=3)
    optimizer, mean = averaged(model)
    beside = (ranks, mean)
    for step in range(1, 11):
        optimizer.zero_grad()
        model(input_ids=IDS, labels=IDS).loss.backward()
        for one in beside:
            one.stepping(step)
        optimizer.step()
        for one in beside:
            one.stepped(step)
    trained = {name: one.detach().clone() for name, one in model.named_parameters()}
    with companions.settled(beside), torch.no_grad():
        shown = model.eval()(input_ids=IDS).logits
        multi_adapter.save(model, "default", tmp_path)
    stored = stacked.put_alone(tiny_model(scale=0.1), tmp_path)
    with torch.no_grad():
        torch.testing.assert_close(stored(input_ids=IDS).logits, shown)
    assert all(torch.equal(one, trained[name]) for name, one in model.named_parameters())
