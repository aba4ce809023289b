"""What every optimizer says of itself is so, on a model of matrices, vectors, an embedding and layers."""

import pytest
import torch

from fixtures_models import tiny_model
from tunesmith.component import all_of
from tunesmith.engine import checkpoint, companions
from tunesmith.engine.release import ReleasedGradients
from tunesmith.errors import MissingExtra
from tunesmith.optimizers._groups import head_dim
from tunesmith.seams import Optimizer

NAMES = sorted(all_of(Optimizer))
SMALL = {  # what the methods of ranks and turns need for a model of a few dozen columns and runs of a few steps
    "galore": {"rank": 4, "update_proj_gap": 3},
    "apollo": {"rank": 4, "update_proj_gap": 3},
    "apollo_mini": {"update_proj_gap": 3},
    "badam": {"switch_every": 2, "switch_mode": "random"},
}


def built(name, model, factors=None, **options):
    optimizer = all_of(Optimizer)[name](learning_rate=1e-2, **SMALL.get(name, {}), **options)
    try:
        return optimizer, optimizer.build(model, factors or {})
    except MissingExtra as error:
        pytest.skip(str(error))


def language_loss(model, step):
    """The loss of a model on the same few words whatever the step, with the gradients of it."""
    ids = torch.randint(0, 50, (2, 12), generator=torch.Generator().manual_seed(step % 2))
    loss = model(input_ids=ids, labels=ids).loss
    loss.backward()
    return loss.item()


def stepped(model, optimizer, companion, steps):
    losses = []
    for step in steps:
        optimizer.zero_grad()
        losses.append(language_loss(model, step))
        optimizer.step()
        if companion is not None:
            companion.stepped(step + 1)
    return losses


@pytest.mark.parametrize("name", NAMES)
def test_every_trained_parameter_is_in_one_group_and_no_frozen_one(name):
    model = tiny_model()
    model.get_input_embeddings().weight.requires_grad_(False)
    _, optimizer = built(name, model)
    found = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    assert len(found) == len({id(one) for one in found}) == len(trained)
    assert {id(one) for one in found} == {id(one) for one in trained}


@pytest.mark.parametrize("name", NAMES)
def test_rates_and_decay_are_of_the_parameters_that_they_were_said_for(name):
    model = tiny_model()
    (own, *_) = [name for name, _ in model.named_parameters() if "q_proj" in name]
    _, optimizer = built(name, model, {own: 4.0}, learning_rates={"down_proj": 3e-4}, weight_decay=0.1)
    rates = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    decays = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    for name, parameter in model.named_parameters():
        expected = 4e-2 if name == own else 3e-4 if "down_proj" in name else 1e-2
        assert rates[id(parameter)] == pytest.approx(expected)
        assert decays[id(parameter)] == (0.1 if parameter.ndim >= 2 else 0.0)


@pytest.mark.parametrize("name", NAMES)
def test_the_loss_falls(name):
    model = tiny_model(scale=0.1)
    component, optimizer = built(name, model)
    for group in optimizer.param_groups:
        group["lr"] *= {"sgd": 20, "lomo": 40, "adafactor": 10, "adalomo": 10}.get(name, 1)  # steps of other sizes
    losses = stepped(model, optimizer, component.companion(optimizer, model, 30), range(30))
    assert sum(losses[-2:]) < 0.9 * sum(losses[:2])


@pytest.mark.parametrize("name", NAMES)
def test_it_goes_on_bit_for_bit_from_a_checkpoint(name, tmp_path):
    def begun():
        model = tiny_model(scale=0.1)
        component, optimizer = built(name, model)
        companion = component.companion(optimizer, model, 9)
        return model, optimizer, companion, [] if companion is None else [companion]

    def scheduled(optimizer):
        return torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / 20)

    torch.manual_seed(0)
    whole, optimizer, companion, listed = begun()
    stepped(whole, optimizer, companion, range(5))
    checkpoint.save_state(tmp_path, optimizer.state_dict(), scheduled(optimizer), None, {}, [checkpoint.random_state()])
    companions.save(listed, tmp_path)
    kept = {name: one.clone() for name, one in whole.state_dict().items()}
    stepped(whole, optimizer, companion, range(5, 9))

    torch.manual_seed(1)
    other, optimizer, companion, listed = begun()
    other.load_state_dict(kept)
    checkpoint.load_optimizer(tmp_path, optimizer, scheduled(optimizer))
    checkpoint.load_random(tmp_path, 0)
    companions.load(listed, tmp_path)
    stepped(other, optimizer, companion, range(5, 9))
    for name, one in whole.state_dict().items():
        assert torch.equal(one, other.state_dict()[name]), name


@pytest.mark.parametrize("options", [{}, {"mode": "ratio", "update_ratio": 0.3}], ids=["", "ratio"])
@pytest.mark.parametrize("name", NAMES)
def test_it_keeps_as_many_bytes_as_it_says(name, options):
    """Whatever the shapes; of what takes turns, in the step of the largest turn."""
    if options and name != "badam":
        pytest.skip("an option of badam's")
    model = tiny_model(tied=False, intermediate_size=96)
    component, optimizer = built(name, model, **options)
    companion = component.companion(optimizer, model, 12)
    said, kept = component.state_bytes(model.named_parameters(), head_dim(model)), []
    for step in range(12):
        stepped(model, optimizer, companion, [step])
        states = ({k: v for k, v in one.items() if not k.startswith("qmap")} for one in optimizer.state.values())
        kept.append(sum(v.nbytes for one in states for v in one.values() if isinstance(v, torch.Tensor)))
    assert max(kept) == said


@pytest.mark.parametrize("name", [name for name in NAMES if all_of(Optimizer)[name].in_backward])
def test_updates_in_the_backward_pass_give_the_same_weights(name):
    def trained(released):
        model = tiny_model(scale=0.1)
        component, optimizer = built(name, model, weight_decay=0.1)
        release = ReleasedGradients(optimizer) if released else None
        companion = component.companion(optimizer, model, 6)
        for step in range(6):
            language_loss(model, step)
            if release is None:
                optimizer.step()
                optimizer.zero_grad()
            else:
                assert all(one.grad is None for one in model.parameters())
                assert release.take_norm() > 0
            if companion is not None:
                companion.stepped(step + 1)
        return model.state_dict()

    plain, other = trained(False), trained(True)
    for key, one in plain.items():
        assert torch.equal(one, other[key]), key
