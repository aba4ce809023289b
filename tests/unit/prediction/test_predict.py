"""Rows answered by a tiny model through the command line: what is asked, what is written, and going on after a kill."""

import json

import pytest

import fixtures_models
from tunesmith.cli import main as cli
from tunesmith.errors import DataError, RunError
from tunesmith.formats.alpaca import Alpaca
from tunesmith.formats.messages import Messages
from tunesmith.generate.alone import logits_of
from tunesmith.generate.engine import Generator
from tunesmith.prediction import predict as module
from tunesmith.prediction.options import Prediction
from tunesmith.prediction.predict import predict
from tunesmith.prediction.rows import asked

ROWS = [{"instruction": f"What is {i} and two?", "output": f"It is {i + 2}."} for i in range(6)]
SHORT = ("max_new_tokens=6", "device=cpu")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return fixtures_models.save_model(tmp_path_factory.mktemp("predict") / "model")


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS), encoding="utf-8")
    return path


def lines(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_each_row_is_answered_and_measured(model, file, tmp_path, capsys):
    out = tmp_path / "out"
    assert cli.main(["predict", str(model), str(file), "--out", str(out), "--json", *SHORT]) == 0
    results = json.loads(capsys.readouterr().out)
    generator = Generator.open(str(model))
    written = lines(out / "predictions.jsonl")
    assert [row["where"] for row in written] == [f"{file}:{number}" for number in range(1, 7)]
    for row, given in zip(written, ROWS, strict=True):
        messages = [{"role": "user", "content": given["instruction"]}]
        assert row["prediction"] == generator.complete(messages, max_new_tokens=6).strip()
        assert row["label"] == given["output"]
        prompt = generator.prompt(messages, 6).ids
        assert row["prompt"] == generator.tokenizer.decode(list(prompt))
        known = generator.tokenizer(given["output"], add_special_tokens=False)["input_ids"]
        hits = logits_of(generator.model, prompt, known).argmax(-1).tolist()
        share = sum(one == other for one, other in zip(hits, known, strict=True)) / len(known)
        assert row["measures"]["token_accuracy"] == share
    assert results == json.loads((out / "results.json").read_text(encoding="utf-8"))
    assert set(results["measures"]) == {"exact_match", "f1", "rouge1", "rouge2", "rougeL", "token_accuracy", "bleu"}
    assert results["cut"] == sum(row["finish"] == "length" for row in written)
    assert "| rougeL |" in (out / "results.md").read_text(encoding="utf-8")


def test_a_killed_one_goes_on_and_draws_the_same(model, file, tmp_path, monkeypatch):
    how = Prediction(max_new_tokens=6, temperature=1.0, seed=3, device="cpu")
    whole = predict(str(model), str(file), tmp_path / "whole", how, None, lambda _: None)
    monkeypatch.setattr(module, "TOGETHER", 2)
    some = module._some

    def dies(generator, rows, options):
        if rows[0].where.endswith(":5"):
            raise KeyboardInterrupt
        return some(generator, rows, options)

    monkeypatch.setattr(module, "_some", dies)
    with pytest.raises(KeyboardInterrupt):
        predict(str(model), str(file), tmp_path / "out", how, None, lambda _: None)
    with (tmp_path / "out" / "predictions.jsonl").open("a") as written:
        written.write('{"where": "torn')
    monkeypatch.setattr(module, "_some", some)
    said = []
    assert predict(str(model), str(file), tmp_path / "out", how, None, said.append) == whole
    assert any("4 are answered already" in line for line in said)
    with pytest.raises(RunError, match=r"begun with temperature 1\.0: say the same again"):
        predict(
            str(model),
            str(file),
            tmp_path / "out",
            Prediction(max_new_tokens=6, seed=3, device="cpu"),
            None,
            lambda _: None,
        )


def test_rows_that_changed_are_not_mixed_with_answers_to_the_old_ones(model, file, tmp_path):
    """The name, the number of rows and their length are as they were."""
    how = Prediction(max_new_tokens=3, device="cpu", token_accuracy=False)
    predict(str(model), str(file), tmp_path / "out", how, None, lambda _: None)
    file.write_text(file.read_text().replace("What is 3", "What is 9"))
    with pytest.raises(
        RunError, match="out was begun with rows that are others now: say the same again, or choose another"
    ):
        predict(str(model), str(file), tmp_path / "out", how, None, lambda _: None)


def test_a_kill_within_a_group_loses_no_answer(model, file, tmp_path, monkeypatch):
    how = Prediction(max_new_tokens=3, device="cpu", token_accuracy=False)
    seen = []

    def dies(prediction, label):
        seen.append(label)
        if len(seen) == 4:
            raise KeyboardInterrupt
        return {}

    monkeypatch.setattr(module.measures, "of_row", dies)
    with pytest.raises(KeyboardInterrupt):
        predict(str(model), str(file), tmp_path / "out", how, None, lambda _: None)
    assert len(lines(tmp_path / "out" / "predictions.jsonl")) == 3


def test_another_value_of_an_option_that_has_several_is_said(model, file, tmp_path):
    def answered(bias):
        how = Prediction(max_new_tokens=3, device="cpu", token_accuracy=False, logit_bias={5: bias})
        return predict(str(model), str(file), tmp_path / "out", how, None, lambda _: None)

    answered(-1)
    with pytest.raises(RunError, match=r"out was begun with logit_bias \{'5': -1\.0\}: say the same again"):
        answered(-2)


def test_a_model_that_was_fetched_meanwhile_is_the_same_one(model, file, tmp_path, monkeypatch):
    how = Prediction(max_new_tokens=3, device="cpu", token_accuracy=False)
    holds = module.files_of
    monkeypatch.setattr(module, "files_of", lambda path: None)  # as of a hub's model before its first use
    first = predict(str(model), str(file), tmp_path / "out", how, None, lambda _: None)
    monkeypatch.setattr(module, "files_of", holds)
    assert predict(str(model), str(file), tmp_path / "out", how, None, lambda _: None) == first
    monkeypatch.setattr(module, "files_of", lambda path: ["others"])
    with pytest.raises(RunError, match=r"begun when .*model held other files"):
        predict(str(model), str(file), tmp_path / "out", how, None, lambda _: None)


def test_a_label_without_room_is_not_measured_and_stops_nothing(tmp_path):
    gpt = fixtures_models.save_model(
        tmp_path / "gpt", fixtures_models.tiny_model(arch="gpt2", max_position_embeddings=64)
    )
    rows = [{"instruction": "What?", "output": text} for text in ("It is two.", "It is two. " * 60)]
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    how = Prediction(max_new_tokens=3, device="cpu")
    predict(str(gpt), str(tmp_path / "rows.json"), tmp_path / "out", how, None, lambda _: None)
    short, long = lines(tmp_path / "out" / "predictions.jsonl")
    assert "token_accuracy" in short["measures"] and "token_accuracy" not in long["measures"]


def test_beside_a_base_model(file, tmp_path, capsys):
    base = fixtures_models.save_model(tmp_path / "base")
    model = fixtures_models.tiny_model()
    model.name_or_path = str(base)
    fixtures_models.tiny_lora(model).save_pretrained(tmp_path / "adapter")
    fixtures_models.tiny_tokenizer().save_pretrained(tmp_path / "adapter")
    out = tmp_path / "out"
    words = ["predict", str(tmp_path / "adapter"), str(file), "--out", str(out), "--against", "base", *SHORT]
    assert cli.main(words) == 0
    printed = capsys.readouterr().out
    assert "gained" in printed and "the worst rows" in printed and " base " in printed
    plain = Generator.open(str(base)).complete([{"role": "user", "content": ROWS[0]["instruction"]}], max_new_tokens=6)
    assert lines(out / "against.jsonl")[0]["prediction"] == plain.strip()
    results = json.loads((out / "results.json").read_text(encoding="utf-8"))
    ours, theirs = results["measures"]["f1"]["mean"], results["against"]["measures"]["f1"]["mean"]
    assert results["against"]["gained"]["f1"]["mean"] == pytest.approx(ours - theirs)


def test_a_run_answers_the_rows_that_it_held_out(file, tmp_path, model):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        f"model: {{path: {model}, dtype: float32}}\ndata: {{train: [{file}], eval: 2}}\n"
        f"train: {{output_dir: {tmp_path}/run, max_steps: 1, row_tokens: 128}}\neval: {{prompts: []}}\n",
        encoding="utf-8",
    )
    assert cli.main(["train", str(recipe)]) == 0
    how = Prediction(max_new_tokens=2, device="cpu", token_accuracy=False)
    results = predict(str(tmp_path / "run"), None, tmp_path / "out", how, None, lambda _: None)
    assert results["rows"] == 2 and "token_accuracy" not in results["measures"]
    ledger = json.loads((tmp_path / "run" / "ledger.json").read_text(encoding="utf-8"))
    assert ledger["eval"]["samples"] == 2
    assert {row["label"] for row in lines(tmp_path / "out" / "predictions.jsonl")} < {row["output"] for row in ROWS}
    assert predict(str(tmp_path / "run"), None, tmp_path / "out", how, None, lambda _: None) == results
    file.write_text(file.read_text().replace("What is 3", "What is 9"))
    with pytest.raises(RunError, match="out was begun with rows that are others now"):
        predict(str(tmp_path / "run"), None, tmp_path / "out", how, None, lambda _: None)


def test_labels_are_what_the_template_writes():
    tokenizer = fixtures_models.tiny_tokenizer()
    call = {"type": "function", "function": {"name": "add", "arguments": {"a": 1}}}
    turns = [
        {"role": "user", "content": "Add."},
        {"role": "assistant", "content": "Sure.", "reasoning_content": "Hm.", "tool_calls": [call]},
    ]
    found = asked("x:1", {"messages": turns}, Messages(), tokenizer)
    assert found.label.startswith("<think>Hm.</think>Sure.") and '"add"' in found.label
    assert "<|im_end|>" not in found.label and found.messages[-1]["role"] == "user"
    with pytest.raises(DataError, match="x:2: the row ends with no answer"):
        asked("x:2", {"messages": [*turns, {"role": "user", "content": "And?"}]}, Messages(), tokenizer)
    assert asked("x:3", ROWS[0], Alpaca(), fixtures_models.tiny_tokenizer(chat_template=None)).label == "It is 2."


def test_rows_without_an_answer_are_counted(model, tmp_path, capsys):
    file = tmp_path / "rows.jsonl"
    rows = [*ROWS[:2], {"instruction": "And?", "output": ""}]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    assert cli.main(["predict", str(model), str(file), "--out", str(tmp_path / "out"), "format=alpaca", *SHORT]) == 0
    said = capsys.readouterr().err
    assert "3 rows read, 2 asked" in said and "1 dropped" in said


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["none.jsonl"], "none.jsonl"),
        (["max_new_token=3"], "Did you mean 'max_new_tokens'?"),
        (["top_p=2"], "top_p: must be less than or equal to 1 (it was 2)"),
        ([], "no run"),
    ],
)
def test_bad_words_are_one_line(model, tmp_path, capsys, words, line):
    assert cli.main(["predict", str(model), *words, "--out", str(tmp_path / "out")]) == 1
    assert line in (said := capsys.readouterr().err) and said.startswith("error: ") and said.count("\n") == 1


def test_a_model_without_a_file_has_no_rows(tmp_path):
    with pytest.raises(RunError, match="^builtin:tiny is no run, which held rows out: say FILE"):
        predict("builtin:tiny", None, tmp_path / "out", Prediction(), None, print)
    assert not (tmp_path / "out").exists()
