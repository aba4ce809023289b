"""The balance loss of a mixture of experts is transformers' own, of packed rows, and weighed by units."""

import json

import pytest
import torch

from fixtures_models import save_model, tiny_model
from numerics.packed import packed_batch
from tunesmith import Recipe, train
from tunesmith.engine import kernels
from tunesmith.engine.router import Routed, balanced
from tunesmith.errors import RecipeError
from tunesmith.types import LossSum

FAMILIES = {
    "mixtral": {"num_local_experts": 4, "num_experts_per_tok": 2},
    "qwen3_moe": {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32, "decoder_sparse_step": 1},
    "olmoe": {"num_experts": 4, "num_experts_per_tok": 2},
}


def moe(arch):
    return tiny_model(arch=arch, **FAMILIES[arch])


@pytest.mark.parametrize("checkpointed", [False, True])
@pytest.mark.parametrize("arch", FAMILIES)
def test_it_is_transformers_own_with_its_gradient(arch, checkpointed):
    model = moe(arch)
    batch = packed_batch((12,), model.config.vocab_size)  # one sequence, so that transformers' own pass is the same
    own = model(input_ids=batch.input_ids, output_router_logits=True, use_cache=False).aux_loss
    own.backward()
    expected = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    chosen = kernels.choose(model)
    assert chosen.scorer.packed and chosen.scorer.fused, chosen.notes
    if checkpointed:
        model.train().activation_checkpointing_enable()
    found = Routed.of(chosen.scorer, model, 0.1)(model, batch).extra["router_aux_loss"]
    torch.testing.assert_close(found, own, rtol=1e-5, atol=1e-6)
    found.backward()
    ours = {name: p.grad for name, p in model.named_parameters() if p.grad is not None and p.grad.abs().max() > 0}
    assert ours.keys() == {name for name, one in expected.items() if one.abs().max() > 0} and ours
    for name, one in ours.items():
        torch.testing.assert_close(one, expected[name], rtol=1e-3, atol=1e-5)


def test_it_is_added_as_many_times_as_there_are_units():
    scores = type("Found", (), {"extra": {"router_aux_loss": torch.tensor(1.5)}})
    found = balanced(LossSum(torch.tensor(10.0)), scores, torch.tensor(4.0), 0.1)
    assert found.total.item() == pytest.approx(10 + 0.1 * 1.5 * 4)
    assert [one.item() for one in found.metrics["router_aux_loss"]] == [6.0, 4.0]


def test_a_model_without_routers_is_refused(tmp_path):
    model = tiny_model()
    with pytest.raises(RecipeError, match=r"train.router_aux_loss_coef: 0.1 .* no balance loss for LlamaForCausalLM"):
        Routed.of(kernels.choose(model).scorer, model, 0.1)
    (tmp_path / "rows.json").write_text(json.dumps([{"instruction": "a", "output": "b"}]))
    with pytest.raises(RecipeError, match=r"^train.router_aux_loss_coef: 0.1"):
        train(
            Recipe(
                model=str(save_model(tmp_path / "model")),
                data={"train": str(tmp_path / "rows.json"), "cache_dir": str(tmp_path / "cache")},
                train={"router_aux_loss_coef": 0.1, "output_dir": str(tmp_path / "run"), "max_steps": 1},
            )
        )
    assert not (tmp_path / "run").exists()


def test_a_run_balances_its_experts(tmp_path):
    save_model(tmp_path / "model", moe("mixtral"))
    rows = [{"instruction": f"What is {i} and 1?", "output": f"It is {i + 1}, sure!"} for i in range(12)]
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    last = []
    for name, coefficient in (("without", 0.0), ("with", 50.0)):
        run = train(
            Recipe(
                model={"path": str(tmp_path / "model"), "dtype": "float32"},
                data={"train": str(tmp_path / "rows.json"), "max_tokens": 64, "cache_dir": str(tmp_path / "cache")},
                adapter="full",
                optimizer={"learning_rate": 1e-2},
                train={
                    "max_steps": 6, "row_tokens": 128, "gradient_accumulation_steps": 2, "device": "cpu",
                    "output_dir": str(tmp_path / name), "router_aux_loss_coef": coefficient,
                },
            )
        ).folder  # fmt: skip
        found = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        last.append([line["router_aux_loss"] for line in found if "loss" in line])
    assert last[0][0] == pytest.approx(last[1][0]) and last[1][-1] < last[0][-1] - 0.02
    assert last[1][-1] < last[1][0]
