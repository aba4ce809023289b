"""Several adapters on one model: each computes, is trained and saved as it would be alone."""

import json

import pytest
import torch
from peft import LoraConfig, PeftModel
from safetensors.torch import load_file

from fixtures_models import tiny_lora, tiny_model
from numerics.packed import alone, packed_batch
from tunesmith.engine import kernels, multi_adapter
from tunesmith.engine.layers import _Updated
from tunesmith.engine.reference import Reference
from tunesmith.errors import ModelError

SFT, REWARD = {"r": 4}, {"r": 2, "target_modules": ["q_proj", "down_proj", "lm_head"]}  # the head is one's alone


def wrapped(seed, **options):
    return tiny_lora(tiny_model(tied=False), seed, **options).eval()


@pytest.fixture
def folders(tmp_path):
    """Two adapters of the same model, each saved by peft alone."""
    for name, seed, options in (("sft", 1, SFT), ("reward", 2, REWARD)):
        wrapped(seed, **options).save_pretrained(tmp_path / name, save_embedding_layers=False)
    return tmp_path


@pytest.fixture
def model(folders):
    """A policy of its own with both of them beside it."""
    policy = wrapped(3)
    for name in ("sft", "reward"):
        multi_adapter.load(policy, name, folders / name)
    return policy


BATCH = packed_batch((9, 14, 5), 400)


@torch.no_grad()
def expected(folders, name):
    """Log-probabilities by plain peft, of a model with one adapter, without any of our layers."""
    if name in ("sft", "reward"):
        return alone(PeftModel.from_pretrained(tiny_model(tied=False), folders / name).eval(), BATCH)
    return alone(wrapped(3) if name == "default" else tiny_model(tied=False), BATCH)


def near(found, wanted):
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)


def test_each_adapter_gives_its_own_log_probabilities(model, folders):
    chosen = kernels.choose(model)
    assert chosen.scorer.fused
    assert multi_adapter.names(model) == ["default", "sft", "reward"] and multi_adapter.active(model) == "default"
    with torch.no_grad():
        for name in ("sft", "default", "reward", None, "sft"):
            with multi_adapter.using(model, name):
                near(chosen.scorer(model, BATCH).logps, expected(folders, name))
            assert multi_adapter.active(model) == "default"
    assert not torch.allclose(expected(folders, "sft"), expected(folders, "reward"), atol=0.1)


def test_without_its_adapter_a_head_is_the_base_models_too(model, folders):
    chosen = kernels.choose(model)
    multi_adapter.use(model, "reward")
    with torch.no_grad():
        near(Reference(None, chosen.scorer, None).logps(model, BATCH), expected(folders, None))
        near(chosen.scorer(model, BATCH).logps, expected(folders, "reward"))


def test_an_adapter_that_comes_later_runs_in_our_layers_too(folders, monkeypatch):
    policy = wrapped(3)
    chosen = kernels.choose(policy)
    multi_adapter.load(policy, "sft", folders / "sft")
    updated = [module for module in policy.modules() if isinstance(module, _Updated)]
    assert len(updated) == 14 and all(module.is_plain() for module in updated)
    multi_adapter.use(policy, "sft")
    assert all(module.is_plain() for module in updated)
    with torch.no_grad():
        near(chosen.scorer(policy, BATCH).logps, expected(folders, "sft"))


def test_an_update_of_another_kind_runs_as_peft_has_it(folders):
    policy = wrapped(3)
    chosen = kernels.choose(policy)
    policy.add_adapter(
        "other", LoraConfig(r=2, target_modules=["q_proj", "up_proj"], use_dora=True, init_lora_weights=False)
    )
    with torch.no_grad():
        for name, parameter in policy.named_parameters():
            if "magnitude" in name:  # which is such that it changes nothing at first
                parameter.mul_(1.5)
    multi_adapter.save(policy, "other", folders / "other")
    plain = PeftModel.from_pretrained(tiny_model(tied=False), folders / "other").eval()
    with multi_adapter.using(policy, "other"), torch.no_grad():
        near(chosen.scorer(policy, BATCH).logps, alone(plain, BATCH))
    with torch.no_grad():
        near(chosen.scorer(policy, BATCH).logps, expected(folders, "default"))


def test_training_one_leaves_the_others(model, folders):
    chosen = kernels.choose(model)
    multi_adapter.use(model, "sft")
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    reference = Reference(None, chosen.scorer, None, adapter="reward")
    scores = chosen.scorer(model.train(), BATCH)
    near(reference.logps(model, BATCH), expected(folders, "reward"))  # between forward and backward, as in a step
    assert multi_adapter.active(model) == "sft" and model.training
    (-(scores.logps * BATCH.weight).sum()).backward()
    torch.optim.SGD(trained, lr=0.1).step()
    changed = {name for name, parameter in model.named_parameters() if not torch.equal(parameter, before[name])}
    assert changed and all(".sft." in name for name in changed)
    assert len(changed) == len(trained) == 28


def test_saving_writes_a_plain_folder(model, folders, tmp_path):
    for name in ("sft", "reward", "default"):
        multi_adapter.save(model, name, tmp_path / "out" / name)
    for name in ("sft", "reward"):
        out = tmp_path / "out" / name
        assert sorted(path.name for path in out.iterdir()) == sorted(path.name for path in (folders / name).iterdir())
        saved, first = (load_file(folder / "adapter_model.safetensors") for folder in (out, folders / name))
        assert saved.keys() == first.keys() and all(torch.equal(saved[key], first[key]) for key in saved)
        assert json.loads((out / "adapter_config.json").read_text())["r"] == {"sft": 4, "reward": 2}[name]
    again = PeftModel.from_pretrained(tiny_model(tied=False), tmp_path / "out" / "default").eval()
    with torch.no_grad():
        near(alone(again, BATCH), expected(folders, "default"))


def test_a_new_one_begins_as_the_base(model, folders):
    multi_adapter.add(model, "value", like="sft")
    assert multi_adapter.active(model) == "default"
    assert model.peft_config["value"].r == 4
    with multi_adapter.using(model, "value"), torch.no_grad():
        near(alone(model, BATCH), expected(folders, None))


def test_names_are_checked(model, folders, tmp_path):
    with pytest.raises(ModelError, match=r"there is no adapter 'rewad' on the model\. Did you mean 'reward'"):
        multi_adapter.use(model, "rewad")
    with pytest.raises(ModelError, match="there is an adapter 'sft' on the model"):
        multi_adapter.load(model, "sft", folders / "sft")
    with pytest.raises(ModelError, match="there is an adapter 'sft' on the model"):
        multi_adapter.add(model, "sft")
    with pytest.raises(ModelError, match="nowhere cannot be put on the model: "):
        multi_adapter.load(model, "new", tmp_path / "nowhere")
