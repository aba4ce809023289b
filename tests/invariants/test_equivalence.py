"""What must not change a run: how a step is cut into micro-batches, checkpointed activations, packing, processes."""

import json

import pytest
import torch

from invariants.whole_runs import make, metrics, train, weights

# In float32 on every machine: gradients summed over other micro-batches are rounded in other places in bfloat16.
STEADY = ("model.dtype=float32", "adapter.lora_dropout=0", "train.max_steps=3", "eval.prompts=[]")


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    return make(tmp_path_factory.mktemp("equivalence"))


def same(one, other, loss=1e-5, weight=2e-5):
    for a, b in zip(metrics(one), metrics(other), strict=True):
        for name in ("loss", "eval_loss"):
            if name in a:
                assert a[name] == pytest.approx(b[name], abs=loss)
    first, second = weights(one), weights(other)
    assert first.keys() == second.keys()
    for name, tensor in first.items():
        torch.testing.assert_close(tensor, second[name], rtol=1e-3, atol=weight, msg=name)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        pytest.param(["train.per_device_train_batch_size=4"], ["train.gradient_accumulation_steps=4"], id="4x1 is 1x4"),
        pytest.param([], ["train.activation_checkpointing=true"], id="activation checkpointing"),
        pytest.param([], ["data.num_processes=2", "data.cache_dir=null"], id="rendering processes"),
        pytest.param([], ["eval.per_device_eval_batch_size=3"], id="evaluation batch"),
        pytest.param(
            ["adapter=full", "train.per_device_train_batch_size=2"],
            ["adapter=full", "train.gradient_accumulation_steps=2", "train.activation_checkpointing=true"],
            id="full",
        ),
        pytest.param(
            ["objective=pretrain", "train.per_device_train_batch_size=2"],
            ["objective=pretrain", "train.gradient_accumulation_steps=2"],
            id="pretrain",
        ),
    ],
)
def test_equal_runs(recipe, tmp_path, one, other):
    words = [word for word in STEADY if not (word.startswith("adapter") and "adapter=full" in one)]
    base = train(recipe, tmp_path / "one", *one, *words)
    same(base, train(recipe, tmp_path / "other", *other, *words))


def test_packing_changes_nothing(recipe, tmp_path):
    """One step over all samples: in a single long row, or in many short ones."""
    words = ["model.dtype=float32", "adapter.lora_dropout=0", "data.eval=0", "eval.prompts=[]"]
    words += ["train.num_train_epochs=1", "train.gradient_accumulation_steps=1000"]
    words += ["train.warmup_steps=0", "optimizer.epsilon=1e-5"]  # 1e-8 makes steps of gradients that are rounding alone
    long = train(recipe, tmp_path / "long", *words, "train.row_tokens=4096")
    short = train(recipe, tmp_path / "short", *words, "train.row_tokens=128")
    rows = [json.loads((run / "ledger.json").read_text())["train"]["packed_rows"] for run in (long, short)]
    assert rows[0] == 1 < rows[1]
    assert len(metrics(long)) == 1
    assert any(tensor.any() for name, tensor in weights(long).items() if "lora_B" in name), "0 until the first step"
    same(long, short)
