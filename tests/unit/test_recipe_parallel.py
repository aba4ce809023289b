"""What the section `parallel` may say, and the one line for each thing that it may not."""

from contextlib import ExitStack

import pytest

from tunesmith.defaults import Device, resolve, with_values
from tunesmith.engine import ranks, shared_out
from tunesmith.errors import RecipeError, RunError
from tunesmith.parts import Given, Job, fitted
from tunesmith.recipe import Recipe
from tunesmith.recipe_parallel import ELEMENTWISE, MISSING, Parallel, problem_among
from tunesmith.run import train

LEAST = {"model": "builtin:tiny", "data": {"train": "builtin:identity"}}
SHARED = {"strategy": "fsdp"}


def refused_at_the_start(recipe):
    """What a run does first, of a resolved recipe."""
    device = Device("cpu", "CPU", False)
    job = Job(recipe, resolve(recipe, device), device, Given(), None, print)
    with ExitStack() as until_the_end:
        fitted(job, until_the_end)


def problem(**options):
    with pytest.raises(RecipeError) as caught:
        Recipe(**(LEAST | options))
    return str(caught.value)


@pytest.mark.parametrize("word", MISSING)
def test_what_is_not_there_is_refused_with_what_is(word):
    said = problem(parallel={word: 2})
    assert f"{word}=2 cannot be had" in said
    assert "strategy=fsdp" in said or "train.activation" in said


@pytest.mark.parametrize("name", ["fsdp", "replicate"])
def test_sizes_are_of_shared_weights(name):
    assert f"{name}=2 is for parallel.strategy=fsdp, and this is auto" in problem(parallel={name: 2})


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"model": {"path": "builtin:tiny", "quantization": "bnb_8bit"}}, "model.quantization=bnb_8bit"),
        ({"model": {"path": "builtin:tiny", "frozen_dtype": "int8"}}, "model.frozen_dtype=int8"),
        ({"train": {"row_tokens": "auto"}}, "train.row_tokens=auto"),
        ({"train": {"fp16": True}}, "train.fp16=true"),
        ({"train": {"transformers": {"torch_compile": True}}}, "train.transformers.torch_compile"),
        ({"train": {"ema_decay": 0.9}, "adapter": "full"}, "train.ema_decay=0.9"),
        ({"objective": "seq2seq"}, "an encoder and a decoder"),
        ({"adapter": "full", "optimizer": "muon"}, "optimizer=muon updates whole weights"),
        ({"adapter": "full", "objective": "dpo", "reference": {"compute": "step"}}, "reference.compute=step"),
    ],
)
def test_what_does_not_go_with_parts_of_weights(options, said):
    assert said in problem(**options, parallel=SHARED)
    Recipe(**(LEAST | options))  # without it


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"train": {"row_tokens": "auto"}}, "train.row_tokens=auto"),
        ({"train": {"neftune_noise_alpha": 5}}, "train.neftune_noise_alpha=5"),
        ({"train": {"router_aux_loss_coef": 0.1}}, "train.router_aux_loss_coef=0.1"),
        ({"train": {"shifted_sparse_attention": 64}}, "train.shifted_sparse_attention=64"),
        ({"train": {"transformers": {"torch_compile": True}}}, "train.transformers.torch_compile"),
        (
            {"model": {"path": "builtin:tiny", "rope_scaling": {"rope_type": "dynamic", "factor": 2}}},
            "model.rope_scaling.rope_type=dynamic",
        ),
        ({"data": {**LEAST["data"], "streaming": True}, "train": {"max_steps": 1}}, "data.streaming=true"),
        ({"objective": "seq2seq"}, "an encoder and a decoder"),
        ({"adapter": "prompt"}, "adapter=prompt puts tokens before every row"),
        ({"objective": "distill", "teacher": {"model": "builtin:tiny"}}, "teacher.compute=auto has the teacher"),
    ],
)
def test_what_does_not_go_with_rows_in_pieces(options, said):
    found = problem(**options, parallel={"context": 2})
    assert said in found and "parallel.context=2" in found
    Recipe(**(LEAST | options))  # without it


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"adapter": "oft"}, "adapter=oft"),
        ({"adapter": "freeze"}, "adapter=freeze"),
        ({"adapter": {"type": "lora", "lora_dropout": 0.1}}, "adapter.lora_dropout=0.1"),
        ({"adapter": {"type": "lora", "use_dora": True}}, "adapter.use_dora=true"),
        ({"adapter": {"type": "lora", "lora_bias": True}}, "adapter.lora_bias=true"),
        ({"model": {"path": "builtin:tiny", "quantization": "bnb_4bit"}}, "model.quantization=bnb_4bit"),
        ({"adapter": "full", "optimizer": "lion"}, "optimizer=lion"),
        ({"objective": "seq2seq"}, "objective=seq2seq"),
        ({"adapter": "full", "train": {"compile": True}}, "train.compile=true"),
        ({"adapter": "full", "train": {"ema_decay": 0.9}}, "train.ema_decay=0.9"),
        ({"adapter": "full", "train": {"neftune_noise_alpha": 5}}, "train.neftune_noise_alpha=5"),
        ({"adapter": "full", "model": {"path": "builtin:tiny", "dropout": 0.1}}, "model.dropout=0.1"),
    ],
)
def test_what_does_not_go_with_cut_products(options, said):
    found = problem(**options, parallel={"tensor": 2})
    assert said in found and "parallel.tensor=2" in found
    Recipe(**(LEAST | options))  # without it


@pytest.mark.parametrize("other", [{"strategy": "deepspeed"}, {"context": 2}])
def test_products_are_not_cut_beside_these(other):
    assert "parallel.tensor=2" in problem(adapter="full", parallel=other | {"tensor": 2})


@pytest.mark.parametrize("objective", ["sft", "dpo", "reward"])
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_products_are_cut_beside_copies_and_parts(objective, strategy):
    Recipe(**LEAST, objective=objective, adapter="full", parallel={"strategy": strategy, "tensor": 2})
    more = {"optimizer": "muon", "train": {"ema_decay": 0.9}}
    Recipe(**LEAST, objective=objective, adapter="lora", **more, parallel={"strategy": strategy, "tensor": 2})


def test_rows_lie_in_pieces_beside_weights_in_parts():
    Recipe(**LEAST, parallel=SHARED | {"context": 2})
    held = {"model": {"path": "builtin:tiny", "frozen_dtype": "int8"}}
    Recipe(**(LEAST | held), parallel={"context": 2})


def test_what_an_adapter_adds_lies_whole():
    Recipe(**LEAST, parallel=SHARED, adapter="lora", optimizer="muon", train={"ema_decay": 0.9})
    for name in ELEMENTWISE:
        Recipe(**LEAST, parallel=SHARED, adapter="full", optimizer=name)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (
            {"data": {**LEAST["data"], "streaming": True}, "train": {"max_steps": 1}, "parallel": {"strategy": "ddp"}},
            "4 processes cannot share a stream",
        ),
        (
            {"train": {"release_gradients": True, "max_grad_norm": 0}, "parallel": {"strategy": "ddp"}},
            "before gradients of 4 processes are added",
        ),
        ({"adapter": "full", "parallel": {"strategy": "ddp", "tensor": 2}}, "4 processes hold copies of weights"),
    ],
)
def test_what_several_processes_cannot_do(options, said, monkeypatch):
    recipe = Recipe(**(LEAST | options))
    assert problem_among(recipe, 1) is None and said in problem_among(recipe, 4)
    monkeypatch.setattr(ranks, "number", lambda: 4)
    with pytest.raises(RecipeError, match=said):
        refused_at_the_start(recipe)


def test_what_is_left_open_has_to_agree_too(tmp_path):
    """A run's file of DeepSpeed's options and what the device and the adapter make of the recipe."""
    (tmp_path / "own.json").write_text('{"optimizer": {"params": {"lr": 1e-6}}, "bf16": {"enabled": true}}')
    recipe = Recipe(**LEAST, parallel={"strategy": "deepspeed", "deepspeed_config": str(tmp_path / "own.json")})
    with pytest.raises(RecipeError, match="bf16.enabled=True in .*own.json, and train.bf16=False for this recipe"):
        refused_at_the_start(recipe)
    with pytest.raises(RecipeError, match="lr=1e-06 in .*own.json, and optimizer.learning_rate=0.0002 for this"):
        refused_at_the_start(with_values(recipe, {"train.bf16": True}))


@pytest.mark.parametrize(
    ("options", "number", "found"),
    [
        ({}, 8, (1, 8)),
        ({"fsdp": 4}, 8, (2, 4)),
        ({"replicate": 4}, 8, (4, 2)),
        ({"fsdp": 2, "replicate": 4}, 8, (4, 2)),
    ],
)
def test_copies_and_the_processes_of_each(options, number, found):
    assert shared_out.sizes(Parallel(**SHARED, **options), number) == found


@pytest.mark.parametrize("options", [{"fsdp": 3}, {"replicate": 3}, {"fsdp": 2, "replicate": 2}, {"fsdp": 16}])
def test_a_number_of_processes_that_does_not_fit(options):
    with pytest.raises(RecipeError, match="and these are 8"):
        shared_out.sizes(Parallel(**SHARED, **options), 8)


def test_a_run_that_is_started_again_must_know_its_folder(monkeypatch):
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    with pytest.raises(RunError, match="nothing was started again after a crash, and does not say where its run lies"):
        train(Recipe(**LEAST, name="nothing"))
