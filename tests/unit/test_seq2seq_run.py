"""Whole runs of encoder-decoder models: train, evaluate, answer, save, go on, export, and what is refused."""

import json
import warnings

import pytest
import torch

from fixtures_models import save_model, tiny_model, tiny_seq2seq, tiny_seq2seq_tokenizer
from tunesmith import Recipe, resume, train
from tunesmith.cli import main as cli
from tunesmith.engine import checkpoint
from tunesmith.errors import ModelError, RecipeError
from tunesmith.generate.alone import logits_of
from tunesmith.generate.engine import Generator, greedy_ids
from unit.test_resume import cut_back

ROWS = [
    {"instruction": f"What is {i} and {j}?", "output": f"{i} and {j} is {i + j}" + " sure" * (i % 4)}
    for i in range(6)
    for j in range(5)
]
STEADY = ("model.dtype=float32", "train.max_steps=4", "eval.prompts=[]")


@pytest.fixture(scope="module", params=["t5", "bart"])
def arch(request):
    return request.param


@pytest.fixture(scope="module")
def place(arch, tmp_path_factory):
    """A folder with a model, rows and a recipe."""
    folder = tmp_path_factory.mktemp(arch)
    save_model(folder / "model", tiny_seq2seq(arch), tiny_seq2seq_tokenizer())
    (folder / "rows.jsonl").write_text("\n".join(map(json.dumps, ROWS)))
    recipe = {
        "model": str(folder / "model"),
        "data": {"train": str(folder / "rows.jsonl"), "eval": 6, "max_tokens": 40, "cache_dir": str(folder / "cache")},
        "objective": "seq2seq",
        "adapter": {"type": "lora", "r": 4, "lora_dropout": 0.1},
        "optimizer": {"learning_rate": 1e-2},
        "train": {"row_tokens": 96, "max_steps": 6, "save_steps": 2, "save_total_limit": 3},
        "eval": {"prompts": ["What is 2 and 3?"], "max_new_tokens": 6},
    }
    (folder / "recipe.yaml").write_text(json.dumps(recipe))
    return folder


def run(place, name, *words):
    out = place / name
    assert cli.main(["train", str(place / "recipe.yaml"), *words, f"train.output_dir={out}"]) == 0
    return out


@pytest.fixture(scope="module")
def lora(place):
    return run(place, "lora")


def metrics(folder, *names):
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{name: line.get(name) for name in ("step", *names)} for line in lines]


def tensors(folder):
    from safetensors.torch import load_file

    (file,) = (folder / "final").glob("*.safetensors")
    return load_file(file)


def test_a_run_learns_and_says_how_much_is_padding(lora, capsys):
    losses = [line["eval_loss"] for line in metrics(lora, "eval_loss") if line["eval_loss"] is not None]
    assert losses[-1] < losses[0] - 0.1
    ledger = json.loads((lora / "ledger.json").read_text())
    assert 0.5 < ledger["train"]["fill"] <= 1
    record = json.loads((lora / "record.json").read_text())
    assert record["derived"]["objective.decoder_start_token_id"] == tiny_seq2seq_tokenizer().pad_token_id
    samples = [json.loads(line) for line in (lora / "samples.jsonl").read_text().splitlines()]
    assert [one["prompt"] for one in samples] == ["What is 2 and 3?"] * 2
    ends = json.loads((lora / "final" / "generation_config.json").read_text())
    assert ends["decoder_start_token_id"] == 0 and ends["eos_token_id"] == [tiny_seq2seq_tokenizer().eos_token_id]


def test_an_adapter_is_plain_peft_and_answers_as_transformers_does(lora, place):
    from peft import AutoPeftModelForSeq2SeqLM

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*is_gradient_checkpointing", FutureWarning)
        plain = AutoPeftModelForSeq2SeqLM.from_pretrained(lora / "final", dtype=torch.float32).eval()
    assert "lora" in "".join(name for name, _ in plain.named_parameters())
    generator = Generator.open(str(lora), "cpu", "float32")
    question = [{"role": "user", "content": "What is 4 and 3?"}]
    ours = generator.complete_ids(question, max_new_tokens=12)
    given = torch.tensor([generator.tokenizer("What is 4 and 3?")["input_ids"]])
    theirs = plain.generate(input_ids=given, max_new_tokens=12, do_sample=False)[0, 1:].tolist()
    assert ours == [token for token in theirs if token != generator.tokenizer.eos_token_id]
    prompt = generator.prompt(question, 12).ids
    assert list(prompt) == given[0].tolist()
    drawn = list(greedy_ids(generator.model, prompt, 12))
    assert logits_of(generator.model, prompt, drawn).argmax(-1).tolist() == drawn


@pytest.mark.parametrize("kind", ["merged", "adapter"])
def test_it_is_exported_and_answers_the_same(lora, place, kind):
    assert cli.main(["export", str(lora), str(place / kind), f"type={kind}"]) == 0
    if kind == "merged":
        from transformers import AutoModelForSeq2SeqLM

        AutoModelForSeq2SeqLM.from_pretrained(place / kind)


def test_a_run_goes_on_bit_for_bit(lora, place):
    whole, lines = tensors(lora), metrics(lora, "loss", "eval_loss", "tokens")
    cut_back(lora, 2)
    assert cli.main(["train", str(lora)]) == 0
    assert metrics(lora, "loss", "eval_loss", "tokens") == lines
    for name, tensor in tensors(lora).items():
        assert torch.equal(tensor, whole[name]), name
    assert checkpoint.steps(lora)[-1] == 6


def test_micro_batches_change_nothing(place):
    one = run(place, "accumulated", *STEADY, "adapter.lora_dropout=0", "train.gradient_accumulation_steps=2")
    other = run(place, "together", *STEADY, "adapter.lora_dropout=0", "train.per_device_train_batch_size=2")
    for a, b in zip(metrics(one, "loss", "eval_loss"), metrics(other, "loss", "eval_loss"), strict=True):
        assert a == pytest.approx(b, abs=1e-5)
    for name, tensor in tensors(one).items():
        torch.testing.assert_close(tensor, tensors(other)[name], rtol=1e-4, atol=2e-5)


def test_the_size_of_rows_changes_nothing(place):
    """One step over all samples: in a single padded row, or in many that are padded less."""
    words = ["model.dtype=float32", "eval={}", "adapter.lora_dropout=0", "data.eval=0", "train.max_steps=null"]
    words += ["train.num_train_epochs=1", "train.gradient_accumulation_steps=1000", "train.warmup_steps=0"]
    few, many = run(place, "few", *words, "train.row_tokens=4000"), run(place, "many", *words)
    rows = [json.loads((one / "ledger.json").read_text())["train"]["packed_rows"] for one in (few, many)]
    assert rows[0] == 1 < rows[1]
    one, other = (metrics(folder, "loss", "grad_norm", "learning_rate") for folder in (few, many))
    assert len(one) == 1 and one[0]["learning_rate"] > 0
    assert one[0] == pytest.approx(other[0], rel=1e-5)
    for name, tensor in tensors(few).items():
        torch.testing.assert_close(tensor, tensors(many)[name], rtol=1e-4, atol=2e-5)


def test_full_training_and_checkpointed_activations(place):
    words = (*STEADY, "adapter={type: full}", "optimizer.learning_rate=1e-3")
    plain = run(place, "full", *words)
    checkpointed = run(place, "checkpointed", *words, "train.activation_checkpointing=true")
    for a, b in zip(metrics(plain, "loss"), metrics(checkpointed, "loss"), strict=True):
        assert a == pytest.approx(b, abs=1e-5)
    assert cli.main(["export", str(plain), str(place / "whole"), "type=merged"]) == 0


def test_a_stream_trains_too(place):
    streamed = run(place, "streamed", *STEADY, "data.streaming=true", "data.eval=0", "data.buffer_samples=16")
    assert 0.5 < json.loads((streamed / "ledger.json").read_text())["train"]["fill"] <= 1


def test_a_model_that_a_script_brings(place, arch):
    recipe = Recipe.load(str(place / "recipe.yaml"), ["model=mine", f"train.output_dir={place}/given"])
    found = train(recipe, model=tiny_seq2seq(arch), tokenizer=tiny_seq2seq_tokenizer(), rows=ROWS)
    assert found.summary["eval_loss_after"] < found.summary["eval_loss_before"]
    assert resume(found.folder).summary == found.summary


def test_frozen_weights_of_eight_bits(place):
    held = run(place, "int8", "model.frozen_dtype=int8", *STEADY)
    losses = [line["eval_loss"] for line in metrics(held, "eval_loss") if line["eval_loss"] is not None]
    assert losses[-1] < losses[0]


def test_the_wrong_objective_for_a_model_is_refused_before_anything(place, tmp_path):
    load = str(place / "recipe.yaml")
    with pytest.raises(RecipeError, match="is a model of an encoder and a decoder, .* say objective=seq2seq"):
        train(Recipe.load(load, ["objective=sft", f"train.output_dir={tmp_path}/run"]))
    save_model(tmp_path / "decoder", tiny_model())
    with pytest.raises(RecipeError, match="is a decoder alone: say objective=sft"):
        train(Recipe.load(load, [f"model={tmp_path}/decoder", f"train.output_dir={tmp_path}/run"]))
    assert not (tmp_path / "run").exists()


def test_a_model_that_does_not_say_what_starts_an_answer(tmp_path, place):
    config = json.loads((place / "model" / "config.json").read_text())
    save_model(tmp_path / "model", tiny_seq2seq(config["model_type"]), tiny_seq2seq_tokenizer())
    config["decoder_start_token_id"] = None
    (tmp_path / "model" / "config.json").write_text(json.dumps(config))
    words = [f"model={tmp_path}/model", f"train.output_dir={tmp_path}/run", *STEADY]
    with pytest.raises(ModelError, match="does not say which token starts an answer"):
        train(Recipe.load(str(place / "recipe.yaml"), words))
    found = train(Recipe.load(str(place / "recipe.yaml"), [*words, "objective.decoder_start_token_id=5"]))
    ends = json.loads((found.folder / "final" / "generation_config.json").read_text())
    assert ends["decoder_start_token_id"] == 5


def test_a_prompt_beyond_learned_positions_is_refused_and_one_beyond_none_is_not(place, arch, tmp_path):
    rows = [*ROWS, {"instruction": "Hello " * 90, "output": "I am fine"}]  # 360 tokens, and BART has 256 places
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    words = [f"data.train={tmp_path}/rows.jsonl", "data.max_tokens=512", "train.row_tokens=1024", "data.eval=0"]
    words += ["train.max_steps=1", "eval={}", f"train.output_dir={tmp_path}/run"]
    recipe = Recipe.load(str(place / "recipe.yaml"), words)
    if arch == "t5":
        train(recipe)
        return
    with pytest.raises(RecipeError, match="has 361 tokens, and the model was made for 256 .*data.max_tokens=256"):
        train(recipe)


def test_what_counts_or_chooses_by_decoders_is_refused(place):
    for command, words in (("bench", ["--steps", "1"]), ("train", ["train.row_tokens=auto"])):
        assert cli.main([command, str(place / "recipe.yaml"), *words]) != 0


def test_preview_shows_both_sides(place, capsys):
    assert cli.main(["preview", str(place / "recipe.yaml"), "--rows", "1"]) == 0
    shown = capsys.readouterr().out
    assert "source: " in shown and "answer: " in shown and "What is 0 and 0?" in shown
    assert cli.main(["preview", str(place / "recipe.yaml"), "--json"]) == 0
    first = json.loads(capsys.readouterr().out.splitlines()[0])
    assert [len(first["branches"]), sum(first["branches"][0]["weight"])] == [2, 0]
