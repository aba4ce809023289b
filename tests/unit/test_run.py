"""Runs from Python: what a script brings, what a run leaves, and how one ends early."""

import json
import math

import pytest
import torch
from peft.tuners import lora
from transformers import AutoModelForCausalLM, TrainerCallback

from fixtures_models import save_model, tiny_model, tiny_tokenizer
from tunesmith import Data, Eval, Model, Recipe, Source, Train, train
from tunesmith.engine import checkpoint
from tunesmith.errors import DataError, ModelError, RecipeError, RunError
from tunesmith.run import resume

ROWS = [{"instruction": f"What is {i} and 1?", "output": f"It is {i + 1}, sure."} for i in range(24)]


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory):
    return save_model(tmp_path_factory.mktemp("model"))


@pytest.fixture
def make(tmp_path, model_folder):
    """A recipe on the rows above; keyword arguments replace its sections."""
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, ROWS)))

    def recipe(train=None, data=None, **sections):
        options = {"output_dir": str(tmp_path / "run"), "row_tokens": 64, "max_steps": 3} | (train or {})
        rows = {"train": [Source(path=str(tmp_path / "rows.jsonl"))], "max_tokens": 64, "eval": 4}
        cache = {"cache_dir": str(tmp_path / "cache")}
        return Recipe(
            **{
                "model": Model(path=str(model_folder)),
                "data": Data(**(rows | cache | (data or {}))),
                "adapter": {"type": "lora", "r": 4},
                "optimizer": {"learning_rate": 1e-2},
                "train": Train(**options),
            }
            | sections
        )

    return recipe


def lines(run):
    return [json.loads(line) for line in (run.folder / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.usefixtures("drawn")
def test_a_run_folder_holds_what_it_should(make):
    run = train(make(eval=Eval(prompts=("What is 3 and 1?",), max_new_tokens=4)))
    names = {path.name for path in run.folder.iterdir()}
    assert names == {
        "recipe.yaml", "record.json", "ledger.json", "data.png", "metrics.jsonl", "loss.png", "samples.jsonl",
        "checkpoints", "final",
    }  # fmt: skip
    assert all((run.folder / name).read_bytes().startswith(b"\x89PNG") for name in ("data.png", "loss.png"))
    found = lines(run)
    steps = [line for line in found if "loss" in line]
    assert [line["step"] for line in steps] == [1, 2, 3]
    for line in steps:
        assert {"step", "loss", "learning_rate", "grad_norm", "tokens", "trained_tokens", "seconds"} <= line.keys()
    assert [line["step"] for line in found if "eval_loss" in line] == [0, 3]
    assert run.summary["eval_loss_after"] < run.summary["eval_loss_before"]
    record = json.loads((run.folder / "record.json").read_text())
    assert record["status"] == "finished"
    assert record["derived"]["train.device"] == record["device"]["type"]
    said = {
        "type": "lora", "r": 4, "lora_alpha": 32.0, "lora_dropout": 0.0, "target_modules": "all-linear",
        "modules_to_save": [],
    }  # fmt: skip
    assert said.items() <= record["recipe"]["adapter"].items()
    answers = [json.loads(line) for line in (run.folder / "samples.jsonl").read_text().splitlines()]
    assert [answer["step"] for answer in answers] == [0, 3]


def test_the_adapter_loads_in_plain_peft_and_ends_answers(make):
    from peft import PeftModel

    run = train(make(train={"max_steps": 2}))
    final = run.folder / "final"
    assert not (final / "model.safetensors").exists()
    base = AutoModelForCausalLM.from_pretrained(make().model.path)
    plain = PeftModel.from_pretrained(base, final)
    assert any("lora" in name for name, _ in plain.named_parameters())
    ends = json.loads((final / "generation_config.json").read_text())["eos_token_id"]
    assert tiny_tokenizer().convert_tokens_to_ids("<|im_end|>") in (ends if isinstance(ends, list) else [ends])
    assert (final / "chat_template.jinja").read_text() == tiny_tokenizer().chat_template
    assert checkpoint.damage(final) is None


@pytest.mark.parametrize(
    ("adapter", "moved"),
    [
        ({"type": "full"}, lambda name: True),
        ({"type": "freeze", "num_layers": 1}, lambda name: ".layers.1." in name),
        ({"type": "freeze", "num_layers": 0, "train_matching": "mlp"}, lambda name: "mlp" in name),
    ],
)
def test_only_what_is_said_changes(make, adapter, moved):
    run = train(make(adapter=adapter, train={"max_steps": 2}))
    before = AutoModelForCausalLM.from_pretrained(make().model.path).state_dict()
    after = AutoModelForCausalLM.from_pretrained(run.folder / "final").state_dict()
    for name, tensor in before.items():
        if name != "lm_head.weight":  # tied to the embedding
            assert torch.equal(tensor, after[name]) != moved(name), name
    assert json.loads((run.folder / "final" / "config.json").read_text())["use_cache"]


def test_a_script_brings_a_model_rows_callbacks_and_metrics(make):
    class Count(TrainerCallback):
        steps = 0

        def on_step_end(self, *args, **kwargs):
            self.steps += 1

    def hits(scores, batch):
        asked = batch.weight != 0
        return (scores.logps[asked] > math.log(0.5)).sum(), asked.sum()

    count = Count()
    rows = ({"instruction": row["instruction"], "output": row["output"]} for row in ROWS)
    recipe = make(model=Model(path="mine"), data={"train": [Source(path="rows")]})
    run = train(
        recipe, model=tiny_model(), tokenizer=tiny_tokenizer(), rows=rows, callbacks=[count], metrics={"hits": hits}
    )
    assert count.steps == 3
    assert all(0 <= line["hits"] <= 1 for line in lines(run) if "loss" in line)
    assert "eval_hits" in lines(run)[0]


def test_a_model_that_was_brought_keeps_its_own_layers_when_the_run_cannot_begin(make):
    model = tiny_model()
    with pytest.raises(RecipeError, match="metrics: loss is a name of the run's own lines"):
        train(
            make(model=Model(path="mine")),
            model=model,
            tokenizer=tiny_tokenizer(),
            metrics={"loss": lambda scores, batch: (0.0, 1)},
        )
    kinds = {type(module) for module in model.modules()}
    assert not [kind for kind in kinds if kind.__module__.startswith("tunesmith")]
    assert any(issubclass(kind, lora.Linear) for kind in kinds)  # the adapter is there


def test_the_best_weights_and_an_early_stop(make):
    evaluation = Eval(eval_steps=1, load_best_model_at_end=True, early_stopping_patience=2)
    run = train(make(train={"max_steps": 40}, optimizer={"learning_rate": 3.0}, eval=evaluation))
    losses = {line["step"]: line["eval_loss"] for line in lines(run) if line.get("eval_loss") and line["step"]}
    best = min(losses, key=losses.__getitem__)
    assert max(losses) == best + 2 < 40
    kept = checkpoint.place(run.folder, best) / "adapter_model.safetensors"
    assert kept.read_bytes() == (run.folder / "final" / "adapter_model.safetensors").read_bytes()


def test_names_of_no_module_are_refused_before_rows_are_read(make, capsys):
    named = make(adapter={"type": "lora", "target_modules": ["q_proj", "v_porj"]})
    with pytest.raises(
        RecipeError, match=r"target_modules: no module of LlamaForCausalLM is 'v_porj'\. Did you mean 'v_"
    ):
        train(named)
    assert "rows read" not in capsys.readouterr().err
    train(make(adapter={"type": "lora", "target_modules": ["v_proj"]}, train={"max_steps": 1}))
    assert "rows read" in capsys.readouterr().err


def test_a_finished_run_has_nothing_to_do(make, capsys):
    run = train(make(train={"max_steps": 1, "warmup_steps": 1}))
    assert "warm-up: all steps are warm-up" in capsys.readouterr().err
    before = (run.folder / "metrics.jsonl").read_bytes()
    again = resume(run.folder)
    assert "is finished" in capsys.readouterr().err
    assert again.summary == run.summary
    assert (run.folder / "metrics.jsonl").read_bytes() == before


def test_bfloat16_computes_over_float32_weights(make):
    run = train(make(adapter="full", train={"max_steps": 2, "bf16": True}))
    stored = AutoModelForCausalLM.from_pretrained(run.folder / "final")
    assert stored.dtype == torch.float32
    assert run.summary["eval_loss_after"] < run.summary["eval_loss_before"]


def test_bfloat16_weights_train_too(make):
    run = train(make(model=Model(path=make().model.path, dtype="bfloat16"), train={"max_steps": 3}))
    assert run.summary["eval_loss_after"] < run.summary["eval_loss_before"]


def test_a_loss_that_is_not_finite_stops_the_run(make):
    with pytest.raises(RunError, match=r"the (loss|grad_norm) is nan at step \d+: lower optimizer.learning_rate"):
        train(make(adapter="full", optimizer={"learning_rate": 1e30}, train={"max_steps": 9, "max_grad_norm": 0}))


def test_last_line_is_logged_when_the_interval_does_not_divide(make):
    run = train(make(train={"max_steps": 3, "logging_steps": 2}))
    assert [line["step"] for line in lines(run) if "loss" in line] == [2, 3]


@pytest.mark.parametrize(
    ("sections", "error", "says"),
    [
        ({"model": Model(path="./nowhere")}, ModelError, "there is no model folder ./nowhere"),
        ({"model": Model(path="builtin:tniy")}, ModelError, "builtin:tniy"),
        ({"data": {"train": [Source(path="./nowhere.json")]}}, DataError, "nowhere.json"),
        ({"train": {"fp16": True, "device": "cpu"}}, RecipeError, "float16"),
        ({"train": {"device": "mps"}}, RecipeError, "there is no mps here"),
        ({"train": {"report_to": ["wandbb"]}}, RecipeError, "wandbb"),
        ({"adapter": {"type": "lora", "target_modules": ["nothing"]}}, RecipeError, "adapter.target_modules"),
        ({"adapter": {"type": "freeze", "num_layers": 7}}, RecipeError, "the model has 2 layers"),
        ({"train": {"transformers": {"lr_scheduler_kwargs": {"cycles": 2}}}}, RecipeError, "cycles"),
        ({"train": {"transformers": {"lr_scheduler_kwargs": {"min": 1}}}}, RecipeError, "'min'"),
        ({"data": {"max_tokens": 3}}, DataError, "none of the 24 rows can be trained on"),
        ({"train": {"row_tokens": 4}}, RecipeError, "train.row_tokens is 4"),
        ({"data": {"eval": 24}}, RecipeError, "24 of 24 samples are held out"),
    ],
)
def test_bad_input_writes_nothing(make, tmp_path, sections, error, says):
    with pytest.raises(error) as raised:
        train(make(**sections))
    assert says in str(raised.value)
    assert "\n" not in str(raised.value)
    assert not (tmp_path / "run").exists()
