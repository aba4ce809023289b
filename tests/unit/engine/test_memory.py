"""Options that save memory, through whole runs: the same weights, a row that fits, and what is said when none does."""

import json
import sys
from dataclasses import replace

import psutil
import pytest
import torch

from fixtures_models import tiny_lora, tiny_model, tiny_tokenizer
from tunesmith import Recipe, resume, train
from tunesmith.engine import checkpoint, device, kernels, memory
from tunesmith.engine.activations import checkpoint_activations
from tunesmith.engine.scores import Scorer
from tunesmith.errors import MissingExtra, RecipeError, RunError

ROWS = [{"instruction": f"What is {i} and 1?", "output": f"It is {i + 1}, sure."} for i in range(40)]
SIZES = {"num_hidden_layers": 4}


@pytest.fixture
def make(tmp_path):
    """A recipe on the rows above; keywords replace its sections."""

    def recipe(name, adapter="full", optimizer=None, objective="sft", **options):
        return Recipe(
            model="mine",
            data={"train": "rows", "max_tokens": 64, "eval": 4, "cache_dir": str(tmp_path / "cache")},
            objective=objective,
            adapter=adapter,
            optimizer={"learning_rate": 1e-2, "weight_decay": 0.1} | (optimizer or {}),
            train={"output_dir": str(tmp_path / name), "row_tokens": 64, "max_steps": 5, "save_steps": 2} | options,
        )

    return recipe


def brought():
    return {"model": tiny_model(**SIZES), "tokenizer": tiny_tokenizer(), "rows": ROWS}


def run(recipe):
    return train(recipe, **brought()).folder


def weights(folder):
    (file,) = (folder / "final").glob("*.safetensors")
    return file.read_bytes()


def lines(folder):
    found = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name != "seconds"} for line in found]


def cut_back(folder, step):
    """The folder as a kill would leave it just after the checkpoint of a step."""
    for file in (folder / "final").iterdir():
        file.unlink()
    (folder / "final").rmdir()
    checkpoint.forget_after(folder, step)
    record = json.loads((folder / "record.json").read_text())
    record.pop("summary")
    (folder / "record.json").write_text(json.dumps(record | {"status": "running"}))


@pytest.mark.parametrize("adapter", ["full", {"type": "lora", "r": 4, "lora_dropout": 0.1}], ids=["full", "lora"])
def test_computing_again_changes_no_weight(make, adapter):
    plain = run(make("plain", adapter))
    for choice in (True, 2, "selective"):
        other = run(make(str(choice), adapter, activation_checkpointing=choice))
        assert weights(other) == weights(plain)
        assert lines(other) == lines(plain)


RELEASED = {"release_gradients": True, "max_grad_norm": 0}


@pytest.mark.parametrize("adapter", ["full", "lora"])
def test_released_gradients_give_the_same_weights_and_norms(make, adapter):
    schedule = {"lr_scheduler_type": "linear", "warmup_steps": 2}
    plain = run(make("plain", adapter, max_grad_norm=0, **schedule))
    other = run(make("other", adapter, **RELEASED, **schedule))
    assert weights(other) == weights(plain)
    for ours, theirs in zip(lines(other), lines(plain), strict=True):
        if "grad_norm" in ours:
            assert ours.pop("grad_norm") == pytest.approx(theirs.pop("grad_norm"), rel=1e-5) != 0
        assert ours == theirs


def test_released_gradients_are_gone_when_the_next_one_comes(make, monkeypatch):
    from tunesmith.engine import release

    held, own = [], release.ReleasedGradients.update

    def update(self, parameter):
        held.append([one.grad is not None for one in self.group_of].count(True))
        own(self, parameter)

    monkeypatch.setattr(release.ReleasedGradients, "update", update)
    run(make("run", **RELEASED))
    assert set(held) == {1} and len(held) == 5 * len(list(tiny_model(**SIZES).parameters()))


@pytest.mark.parametrize(
    "options",
    [RELEASED, {"activation_checkpointing": "selective"}, {"optimizer": {"type": "adamw8bit"}}],
    ids=["released", "selective", "8 bit"],
)
def test_a_run_goes_on_bit_for_bit(make, options):
    if "optimizer" in options:
        pytest.importorskip("bitsandbytes")
    whole = run(make("whole", **options))
    assert (checkpoint.place(whole, 2) / "state.json").is_file()
    before, told = weights(whole), lines(whole)
    cut_back(whole, 2)
    resume(whole, **brought())
    assert weights(whole) == before
    assert lines(whole) == told


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({}, "set train.max_grad_norm=0"),
        ({"gradient_accumulation_steps": 2}, "set train.gradient_accumulation_steps=1 and train.max_grad_norm=0"),
        ({"max_grad_norm": 0, "fp16": True}, "set train.fp16=false"),
    ],
)
def test_gradients_that_are_needed_together_are_not_released(make, options, said):
    with pytest.raises(RecipeError, match=f"train: release_gradients updates .*: {said}"):
        make("run", **{"release_gradients": True} | options)


def test_offload_is_refused_where_it_saves_nothing(make):
    with pytest.raises(
        RecipeError, match="train: activation_offload moves .*: set train.activation_checkpointing=true, or a number n"
    ):
        make("run", activation_offload=True)
    with pytest.raises(RecipeError, match="train.activation_offload: on cpu activations lie in the host's memory alr"):
        run(make("run", activation_offload=True, activation_checkpointing=2))


def fails_at(monkeypatch, call, error):
    """Have the scorer fail once in a whole batch, at some call of training or evaluation."""
    calls, own = [], Scorer.__call__

    def fails(self, model, batch, **how):
        calls.append(batch)
        if len(calls) == call:
            raise error
        return own(self, model, batch, **how)

    monkeypatch.setattr(Scorer, "__call__", fails)


ERRORS = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
    RuntimeError("[enforce fail at alloc_cpu.cpp:117] . DefaultCPUAllocator: can't allocate memory: you tried to"),
    MemoryError(),
]


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_out_of_memory_says_what_fits_and_loses_nothing(make, tmp_path, monkeypatch, error):
    whole = run(make("whole"))
    with monkeypatch.context() as patch:
        seen = []
        own = Scorer.__call__
        patch.setattr(
            Scorer, "__call__", lambda self, m, b, **how: (seen.append(m.training), own(self, m, b, **how))[1]
        )
        run(make("counted"))
    trained = [number for number, training in enumerate(seen, start=1) if training]
    with monkeypatch.context() as patch:
        fails_at(patch, trained[2], error)
        with pytest.raises(RunError) as caught:
            run(make("run"))
    said, folder = str(caught.value), tmp_path / "run"
    assert "\n" not in said
    for part in (
        "memory ran out at step 3 in a pass of ",
        " GB held. ",
        "train.activation_checkpointing=true computes the same with less; train.row_tokens=",
        " fits by a trial; optimizer=adamw8bit",
        f"set the first in {folder}/recipe.yaml and go on with: tunesmith.resume('{folder}', model=...",
    ):
        assert part in said, said
    recipe = folder / "recipe.yaml"
    recipe.write_text(recipe.read_text().replace("\ntrain:\n", "\ntrain:\n  activation_checkpointing: true\n"))
    assert checkpoint.steps(folder) == [2]
    resume(folder, **brought())
    assert weights(folder) == weights(whole)


def test_the_trial_after_it_updates_nothing(make, monkeypatch):
    changed, own = [], memory.fitting_row

    def fitting_row(model, *rest):
        before = {name: one.detach().clone() for name, one in model.named_parameters()}
        found = own(model, *rest)
        changed.append([name for name, one in model.named_parameters() if not torch.equal(one, before[name])])
        return found

    def fails(self, model, batch, **how):
        if model.training and steps and steps.pop():
            raise ERRORS[0]
        return scored(self, model, batch, **how)

    steps, scored = [True, False, False], Scorer.__call__
    monkeypatch.setattr(memory, "fitting_row", fitting_row)
    monkeypatch.setattr(Scorer, "__call__", fails)
    with pytest.raises(RunError, match="fits by a trial"):
        run(make("run", optimizer={"type": "lomo"}, **RELEASED))
    assert changed == [[]]


def test_the_trial_makes_what_the_objective_reads(make, monkeypatch):
    objective = {"type": "sft", "label_smoothing": 0.1, "z_loss": 1e-3}
    model, recipe = wide("full"), make("run", objective=objective)
    scorer = kernels.choose(model).scorer
    pulled = []

    def watched(model, batch, **how):
        assert how == {"likelihood": recipe.objective.is_likelihood(), "reads": recipe.objective.reads()}
        found = scorer(model, batch, **how)
        for name in ("logps", "lead", "normaliser"):
            getattr(found, name).register_hook(lambda gradient, name=name: pulled.append(name))
        return found

    memory._peak_bytes(model, watched, recipe, 128)
    assert sorted(pulled) == ["lead", "logps", "normaliser"]


def test_advice_is_what_is_left_to_try(make):
    plain = make("run", "lora", row_tokens=4096)
    assert memory.advice(plain, 512) == (
        "What would take less: train.activation_checkpointing=true computes the same with less; train.row_tokens=512 "
        "fits by a trial; optimizer=adamw8bit keeps a quarter of the state; a lower adapter.r trains fewer weights"
    )
    again = make("run", activation_checkpointing=True, optimizer={"type": "adamw8bit"})
    shorter = "a lower data.max_tokens (now 64) lets rows be shorter"
    for fits in (None, 0):
        assert memory.advice(again, fits) == f"What would take less: {shorter}; adapter=lora trains few weights"
    several = make("run", per_device_train_batch_size=2)
    assert "; train.per_device_train_batch_size=1 takes one row at a time;" in memory.advice(several, 0)


def test_a_missing_library_is_missed_before_anything_is_written(make, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    monkeypatch.delitem(sys.modules, "tunesmith.optimizers._bitsandbytes", raising=False)
    with pytest.raises(MissingExtra, match="optimizer=adamw8bit needs bitsandbytes"):
        run(make("run", optimizer={"type": "adamw8bit"}))
    assert not (tmp_path / "run").exists()


def test_other_errors_are_not_called_that(make, monkeypatch):
    fails_at(monkeypatch, 9, RuntimeError("a bug"))
    with pytest.raises(RuntimeError, match="^a bug$"):
        run(make("run"))


def wide(adapter):
    model = tiny_model(**SIZES, hidden_size=64, intermediate_size=512)
    return model if adapter == "full" else tiny_lora(model, lora_dropout=0.1)


@pytest.mark.parametrize("adapter", ["full", "lora"])
@pytest.mark.parametrize(
    ("free", "options"),
    [
        (250_000_000, {"per_device_train_batch_size": 3}),
        (60_000_000, RELEASED),
        (30_000_000, {"activation_checkpointing": True}),
    ],
    ids=["three rows", "released", "checkpointed"],
)
def test_the_chosen_row_fits_and_a_longer_one_would_not(make, monkeypatch, adapter, free, options):
    monkeypatch.setattr(memory, "free_memory_bytes", lambda kind: free)
    model, recipe = wide(adapter), make("run", adapter, row_tokens="auto", **options)
    checkpoint_activations(model, recipe.train)
    scorer = kernels.choose(model).scorer
    model.eval()
    before = torch.random.get_rng_state()
    chosen = memory.choose_row(model, scorer, recipe)
    assert chosen % memory.STEP == 0 and 512 < chosen < memory.MOST_TOKENS
    assert torch.equal(torch.random.get_rng_state(), before) and not model.training
    assert all(parameter.grad is None for parameter in model.parameters())

    def needed(row_tokens):
        """By a measure at this size."""
        tokens = row_tokens * recipe.train.per_device_train_batch_size
        with memory._as_in_training(model, recipe.train.release_gradients):
            return memory._peak_bytes(model, scorer, recipe, tokens) + memory.state_bytes(model, recipe)

    assert needed(chosen) <= free < needed(chosen + 2 * memory.STEP) / memory.MARGIN


def test_room_is_left_for_the_state_of_the_optimizer(make, monkeypatch):
    monkeypatch.setattr(memory, "free_memory_bytes", lambda kind: 60_000_000)
    model, recipe = wide("full"), make("run", row_tokens="auto")
    scorer = kernels.choose(model).scorer
    optimizer = recipe.optimizer.build(model)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    held = sum(value.nbytes for state in optimizer.state.values() for value in state.values())
    assert memory.state_bytes(model, recipe) == pytest.approx(held, rel=1e-3)
    without, half = (memory.fitting_row(model, scorer, recipe, reserved) for reserved in (0, 27_000_000))
    assert 0 < half < 0.6 * without
    assert memory.choose_row(model, scorer, recipe) == memory.fitting_row(model, scorer, recipe, held)


def test_a_row_is_no_longer_than_useful_and_holds_the_longest_sample(make, monkeypatch):
    model = wide("full")
    scorer = kernels.choose(model).scorer
    free = {"bytes": 10**15}
    monkeypatch.setattr(memory, "free_memory_bytes", lambda kind: free["bytes"])
    assert memory.choose_row(model, scorer, make("run", row_tokens="auto")) == memory.MOST_TOKENS
    free["bytes"] = 5_000_000
    said = "row_tokens=auto: rows of 0 tokens fit in memory, and data.max_tokens is 64. What would take less: train.act"
    with pytest.raises(RecipeError, match=said):
        memory.choose_row(model, scorer, make("run", row_tokens="auto"))
    own = replace(scorer, packed=False)
    with pytest.raises(RecipeError, match="row_tokens=auto: LlamaForCausalLM runs its own attention, .*: set a number"):
        memory.choose_row(model, own, make("run", row_tokens="auto"))


def test_a_chosen_row_is_recorded_and_kept_when_a_run_goes_on(make, monkeypatch):
    monkeypatch.setattr(memory, "free_memory_bytes", lambda kind: 7_000_000)
    folder = run(make("run", {"type": "lora", "lora_dropout": 0.1}, row_tokens="auto"))
    derived = json.loads((folder / "record.json").read_text())["derived"]
    chosen = derived["train.row_tokens"]
    assert 64 <= chosen < memory.MOST_TOKENS
    assert json.loads((folder / "ledger.json").read_text())["train"]["row_tokens"] == chosen
    assert "row_tokens: auto" in (folder / "recipe.yaml").read_text()
    said = run(make("said", {"type": "lora", "lora_dropout": 0.1}, row_tokens=chosen))
    assert weights(said) == weights(folder), "the trial leaves no trace in the model and the random generators"
    before = weights(folder)
    cut_back(folder, 2)
    monkeypatch.setattr(memory, "free_memory_bytes", lambda kind: 10**15)
    resume(folder, **brought())
    assert weights(folder) == before


def test_free_memory_minds_the_limit_of_a_container(monkeypatch, tmp_path):
    monkeypatch.setattr(device, "LIMIT", tmp_path / "memory.max")
    available, held = psutil.virtual_memory().available, device.held_memory_bytes("cpu")
    assert device.free_memory_bytes("cpu") == pytest.approx(available, rel=0.2)
    (tmp_path / "memory.max").write_text("max\n")
    assert device.free_memory_bytes("cpu") == pytest.approx(available, rel=0.2)
    (tmp_path / "memory.max").write_text(f"{held + 1_000_000_000}\n")
    assert device.free_memory_bytes("cpu") == pytest.approx(1_000_000_000, rel=0.1)
