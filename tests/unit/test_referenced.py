"""A reference that is an adapter or a run: the numbers are those of the adapter, and not of the model below it."""

import json
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM, AutoTokenizer

from fixtures_models import tiny_lora, tiny_model
from invariants.whole_runs import make, metrics
from tunesmith import Recipe
from tunesmith.cli.main import main
from tunesmith.engine import multi_adapter, reference, teacher
from tunesmith.optimizers.badam import BAdam

STEADY = ("model.dtype=float32", "adapter.lora_dropout=0", "eval={}", "train.max_steps=1", "train.save_steps=500")


def pair(number):
    """A pair whose answers differ in length, and so in what a constant would add to their log-probabilities."""
    return {"prompt": f"What is {number}?", "chosen": f"It is {number}.", "rejected": "No" + " idea" * number}


def log_probabilities(folder, pairs):
    """Of the answers and their ends under a model, by transformers and its template: [pairs, 2], in float64."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64)
    tokenizer = AutoTokenizer.from_pretrained(folder)

    def of(prompt, answer):
        turns = [{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}]
        before = tokenizer.apply_chat_template(turns[:1], add_generation_prompt=True, tokenize=False)
        whole = tokenizer.apply_chat_template(turns, tokenize=False).rstrip()
        ids = torch.tensor([tokenizer(whole)["input_ids"]])
        logps = model(ids).logits[0, :-1].log_softmax(-1).gather(-1, ids[0, 1:, None])[:, 0]
        return logps[len(tokenizer(before)["input_ids"]) - 1 :].sum()

    with torch.no_grad():
        return torch.stack(
            [torch.stack([of(one["prompt"], one[side]) for side in ("chosen", "rejected")]) for one in pairs]
        )


@pytest.mark.parametrize("compute", ["once", "step"])
def test_an_adapter_and_its_run_are_references(tmp_path, monkeypatch, compute):
    monkeypatch.chdir(tmp_path)
    recipe = make(tmp_path)
    number = iter(range(10))

    def run(*words):
        out = tmp_path / f"run-{next(number)}"
        assert main(["train", str(recipe), *STEADY, *words, f"train.output_dir={out}"]) == 0
        return out

    taught = run("train.max_steps=4", "optimizer.learning_rate=2e-2")
    assert main(["export", str(taught), str(tmp_path / "merged"), "type=merged"]) == 0
    held_out = [pair(number) for number in range(12, 18)]
    (tmp_path / "pairs.json").write_text(json.dumps([pair(number) for number in range(12)]))
    (tmp_path / "held-out.json").write_text(json.dumps(held_out))
    said = yaml.safe_load(recipe.read_text()) | {"objective": "dpo", "reference": {"compute": compute}}
    said["data"] |= {"train": str(tmp_path / "pairs.json"), "eval": str(tmp_path / "held-out.json")}
    recipe.write_text(yaml.safe_dump(said))
    own, other = (log_probabilities(tmp_path / name, held_out) for name in ("model", "merged"))
    rewards = 0.1 * (own - other)  # [6, 2]
    expected = {
        "eval_loss": -torch.nn.functional.logsigmoid(rewards[:, 0] - rewards[:, 1]).mean().item(),
        "eval_rewards_chosen": rewards[:, 0].mean().item(),
        "eval_rewards_rejected": rewards[:, 1].mean().item(),
    }
    assert abs(expected["eval_loss"] - math.log(2)) > 1e-2, "that of the model below the adapter"
    for place in (tmp_path / "merged", taught, taught / "final"):
        line = metrics(run(f"reference.model={place}"))[0]
        assert {name: line[name] for name in expected} == pytest.approx(expected, abs=1e-4)
    line = metrics(run())[0]  # the model below the adapter, which is the trained one before its first step
    assert [line[name] for name in expected] == pytest.approx([math.log(2), 0, 0], abs=1e-6)


@pytest.mark.parametrize("name", [None, "other"])
def test_weights_that_rest_go_on_resting_when_a_reference_was_asked(name):
    model = tiny_lora(tiny_model())
    if name is not None:
        multi_adapter.add(model, name)
    how = BAdam(learning_rate=1e-3)
    built = how.build(model)
    how.companion(built, model, 4)
    in_turn = [one for one in model.parameters() if one.requires_grad]
    assert built.active == set(in_turn) and len(in_turn) == 2 * 7, "one of two layers"
    with reference.frozen(model, name):
        pass
    after = [one for one in model.parameters() if one.requires_grad]
    assert len(after) == len(in_turn) and all(one is other for one, other in zip(after, in_turn, strict=True))


@pytest.mark.parametrize("module", [reference, teacher])
def test_numbers_of_other_arithmetic_are_not_taken_for_these(module, monkeypatch):
    opened = []

    def open_file(place, *rest):
        opened.append(place.name)
        raise InterruptedError

    monkeypatch.setattr(module, "open_file", open_file)
    samples = SimpleNamespace(digest="d", tokens=lambda: np.ones(1), firsts=np.zeros(2, np.int64))
    rows = SimpleNamespace(store=samples, plan=SimpleNamespace(pieces=np.zeros((1, 2), np.int64)))
    how = SimpleNamespace(identity="i", words=9, how=SimpleNamespace(top_k=2, temperature=1.0))
    monkeypatch.setattr(teacher, "firsts_of", lambda samples: samples.firsts)
    for train in ({}, {"bf16": True}, {"fp16": True}, {"fp16": True}):
        recipe = Recipe(model="m", data={"train": "d"}, train=train)
        last = (rows, None) if module is teacher else (None, rows)
        with pytest.raises(InterruptedError):
            module.stored(recipe, how, *last, print)
    plain, bf16, fp16, again = opened
    assert len({plain, bf16, fp16}) == 3 and fp16 == again
