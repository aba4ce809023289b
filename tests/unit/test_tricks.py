"""Options of training that change the weights' course: a moving average, noise on embeddings, dropout."""

import json
import shutil
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

from fixtures_models import save_model, tiny_model
from numerics.packed import packed_batch
from tunesmith import Recipe, resume, train
from tunesmith.adapted import adapt
from tunesmith.engine import noise
from tunesmith.engine.attention import Layout
from tunesmith.engine.averaged import Averaged
from tunesmith.engine.model import load_model
from tunesmith.errors import ModelError, RecipeError
from tunesmith.optimizers.badam import BAdam
from tunesmith.recipe import Model


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tricks")
    save_model(folder / "model", tiny_model(scale=0.1))
    rows = [{"instruction": f"What is {i} and 1?", "output": f"It is {i + 1}, sure!"} for i in range(12)]
    (folder / "rows.json").write_text(json.dumps(rows))
    return folder


def recipe(folder, out, adapter="full", model=None, **options):
    return Recipe(
        model={"path": str(folder / "model"), "dtype": "float32"} | (model or {}),
        data={"train": str(folder / "rows.json"), "max_tokens": 64, "eval": 2, "cache_dir": str(folder / "cache")},
        adapter={"type": adapter},
        optimizer={"learning_rate": 1e-2},
        train={
            "max_steps": 4, "row_tokens": 128, "save_steps": 1, "save_total_limit": 9, "warmup_steps": 0,
            "device": "cpu", "output_dir": str(out), **options,
        },
    )  # fmt: skip


def weights(place):
    (file,) = [one for one in place.glob("*model.safetensors")]
    return load_file(file)


def lines(run):
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def losses(found):
    return [line["loss"] for line in found if "loss" in line]


@pytest.mark.parametrize("adapter", ["full", "lora"])
def test_a_run_ends_with_the_moving_average_of_its_steps(adapter, folder, tmp_path):
    run = train(recipe(folder, tmp_path / "run", adapter, ema_decay=0.3)).folder
    steps = [weights(run / f"checkpoints/step-{step}") for step in (1, 2, 3, 4)]
    final = weights(run / "final")
    begun = load_file(folder / "model/model.safetensors") if adapter == "full" else None
    for name, found in final.items():
        if begun is None and "lora_A" in name:
            continue  # random at first; B begins at 0
        mean = torch.zeros_like(found, dtype=torch.float64) if begun is None else begun[name].double()
        for step, one in enumerate(steps, 1):
            decay = min(0.3, (1 + step) / (10 + step))  # 2/11, 3/12, 0.3, 0.3
            mean = decay * mean + (1 - decay) * one[name].double()
        torch.testing.assert_close(found.double(), mean, rtol=1e-5, atol=1e-7)
        assert not torch.equal(found, steps[-1][name])
    plain = train(recipe(folder, tmp_path / "plain", adapter)).folder
    last, own = weights(plain / "final"), weights(run / "checkpoints/step-4")
    assert all(torch.equal(one, own[name]) for name, one in last.items()), "the steps are those of a run without it"
    assert lines(run)[-1]["eval_loss"] != lines(plain)[-1]["eval_loss"], "and it is what is evaluated"

    shutil.copytree(run, tmp_path / "again")
    shutil.rmtree(tmp_path / "again/final")
    for step in (3, 4):
        shutil.rmtree(tmp_path / f"again/checkpoints/step-{step}")
    again = weights(resume(tmp_path / "again").folder / "final")
    assert all(torch.equal(one, again[name]) for name, one in final.items())


def test_an_average_is_of_all_weights_whoever_has_a_turn(folder, tmp_path):
    # badam freezes all blocks but one before the first step
    said = recipe(folder, tmp_path / "run", ema_decay=0.3)
    turns = said.model_copy(update={"optimizer": BAdam(learning_rate=1e-2, switch_every=2)})
    run = train(turns).folder
    begun, final = load_file(folder / "model/model.safetensors"), weights(run / "final")
    last = weights(run / "checkpoints/step-4")
    means = load_file(run / "checkpoints/step-4/companions.safetensors")
    moved = [name for name, one in last.items() if not torch.equal(one, begun[name])]
    assert moved and {name for name in begun if any(name in kept for kept in means)} == set(begun)
    assert all(not torch.equal(final[name], last[name]) for name in moved)


def test_two_means_are_refused():
    least = {"model": {"path": "m"}, "data": {"train": "d"}}
    with pytest.raises(RecipeError, match=r"train\.ema_decay=0\.9: schedule_free has a mean of the weights of its own"):
        Recipe(**least, optimizer="schedule_free", train={"ema_decay": 0.9})


def test_an_average_is_lent_and_in_float32():
    model = torch.nn.Linear(2, 1, bias=False).to(torch.bfloat16)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[1.0, 2.0]]))
    average = Averaged(model, 0.9)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[3.0, 4.0]]))
    average.stepped(1)  # decay is 2/11
    expected = torch.tensor([[2 / 11 + 27 / 11, 4 / 11 + 36 / 11]])
    torch.testing.assert_close(average.state()["weight"], expected)
    with average.settled():
        torch.testing.assert_close(model.weight.detach(), expected.to(torch.bfloat16))
    assert torch.equal(model.weight.detach(), torch.tensor([[3.0, 4.0]], dtype=torch.bfloat16))


class Echo(torch.nn.Module):
    """A model that gives its embeddings back."""

    def __init__(self):
        super().__init__()
        self.embedding = torch.nn.Embedding(9, 16)

    def get_input_embeddings(self):
        return self.embedding

    def forward(self, input_ids, **rest):
        return self.embedding(input_ids)


@pytest.mark.parametrize("kind", ["packed", "shared", "skipped", "own attention", "filled"])
def test_noise_is_as_large_as_the_length_of_its_own_sequence_says(kind):
    model, ids = Echo(), torch.arange(40) % 9
    if kind in ("packed", "skipped", "own attention"):  # sequences of 4, 25 and 1
        batch = packed_batch((4, 25, 1), 9)
        rest = {"position_ids": batch.position_ids, "packed": Layout.of(batch)}
        if kind == "skipped":
            rest["position_ids"] = batch.position_ids + 1000 * (torch.arange(30) > 9)[None]
        if kind == "own attention":
            rest.pop("packed")
        ids, lengths = ids[None, :30], torch.tensor([4] * 4 + [25] * 25 + [1])[None]
    elif kind == "shared":  # one of 9, and one that goes on behind its first 6 with 10 of its own
        batch = replace(packed_batch((9, 10), 9), prefix=torch.tensor([[0, 0], [0, 6]]))
        rest = {"position_ids": torch.cat([torch.arange(9), torch.arange(6, 16)])[None], "packed": Layout.of(batch)}
        ids, lengths = ids[None, :19], torch.tensor([9] * 9 + [16] * 10)[None]
    else:
        rest = {"attention_mask": (torch.arange(9) < torch.tensor([[9], [4]])).long()}
        ids, lengths = ids[:18].view(2, 9), torch.tensor([[9], [4]]).expand(2, 9)
    plain = model(input_ids=ids)
    end = noise.add(model, 5.0)
    torch.manual_seed(3)
    first = model(input_ids=ids, **rest)
    size = 5 / (lengths * 16).sqrt()
    share = ((first - plain) / size[..., None]).detach()
    assert share.abs().max() <= 1 + 1e-4 and share.abs().amax(-1).min() > 0.6  # uniform: 16 below 0.6 is 0.6^16
    assert abs(share.mean()) < 0.15 and abs(share.var() - 1 / 3) < 0.08
    torch.manual_seed(3)
    assert torch.equal(model(input_ids=ids, **rest), first)
    assert torch.equal(model.eval()(input_ids=ids, **rest), plain)
    end()
    assert torch.equal(model.train()(input_ids=ids, **rest), plain)


def test_a_run_trains_with_noise_and_evaluates_without(folder, tmp_path):
    loud = lines(train(recipe(folder, tmp_path / "loud", neftune_noise_alpha=20.0)).folder)
    again = lines(
        train(recipe(folder, tmp_path / "again", neftune_noise_alpha=20.0, activation_checkpointing=True)).folder
    )
    plain = lines(train(recipe(folder, tmp_path / "plain")).folder)
    assert loud[0]["eval_loss"] == plain[0]["eval_loss"]
    assert abs(loud[1]["loss"] - plain[1]["loss"]) > 0.05
    assert losses(loud) == pytest.approx(losses(again), rel=1e-5)
    with pytest.raises(RecipeError, match="neftune_noise_alpha: an encoder and a decoder"):
        Recipe(model="x", data={"train": "y"}, objective="seq2seq", train={"neftune_noise_alpha": 5})
    for adapter in ("prompt", "p_tuning", "prefix"):
        with pytest.raises(RecipeError, match=f"train.neftune_noise_alpha=5.0 is for .* adapter={adapter} puts"):
            Recipe(model="x", data={"train": "y"}, adapter=adapter, train={"neftune_noise_alpha": 5})


def test_dropout_of_a_model_is_what_the_recipe_says(folder, tmp_path):
    path = str(folder / "model")
    assert load_model(Model(path=path), "cpu").config.attention_dropout == 0
    loud = load_model(Model(path=path, dropout=0.5), "cpu").train()
    assert loud.model.layers[0].self_attn.attention_dropout == 0.5
    changed = tiny_model(scale=0.1)
    changed.config.attention_dropout = 0.3
    changed.save_pretrained(tmp_path / "model")
    assert load_model(Model(path=str(tmp_path / "model")), "cpu").config.attention_dropout == 0.3
    assert load_model(Model(path=str(tmp_path / "model"), dropout=0), "cpu").config.attention_dropout == 0
    save_model(tmp_path / "none", tiny_model(arch="ernie4_5"))
    load_model(Model(path=str(tmp_path / "none"), dropout=0), "cpu")
    with pytest.raises(
        ModelError, match=r"model.dropout: 0\.1 cannot be had, since the config of .*none has no dropout"
    ):
        load_model(Model(path=str(tmp_path / "none"), dropout=0.1), "cpu")
    with pytest.raises(RecipeError, match=r"model.dropout: 0\.1 would change the model that was given"):
        adapt(recipe(folder, tmp_path / "run", model={"dropout": 0.1}), "cpu", tiny_model())


def test_a_run_drops_out_in_packed_attention_in_training_alone(folder, tmp_path):
    loud = lines(train(recipe(folder, tmp_path / "loud", model={"dropout": 0.5})).folder)
    plain = lines(train(recipe(folder, tmp_path / "plain", model={"dropout": 0})).folder)
    assert loud[0]["eval_loss"] == plain[0]["eval_loss"] and loud[1]["loss"] != plain[1]["loss"]
