"""The command: what is kept and when it is computed anew, what goes on after a kill, a tuned model beside its base."""

import json
import re

import pytest

import fixtures_models
from tunesmith.cli.main import main
from tunesmith.errors import ModelError, RunError
from tunesmith.evaluate import evaluate, read
from tunesmith.evaluation import _against, _kept, _remembered, _shares
from tunesmith.evaluation._against import Side
from tunesmith.evaluation.multiple_choice import MultipleChoice
from tunesmith.generate import load
from tunesmith.generate.subject import Loaded, Subject

QUESTIONS = [
    {
        "question": f"What is {at} and {at % 3}?",
        "A": f"{at + at % 3}",
        "B": "the moon",
        "C": "no",
        "answer": "ABC"[at % 3],
    }
    for at in range(12)
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return fixtures_models.save_model(tmp_path_factory.mktemp("kept") / "model")


@pytest.fixture
def data(tmp_path):
    for name, rows in (("asked", QUESTIONS), ("shown", QUESTIONS[::-1])):
        (tmp_path / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return tmp_path / "asked.jsonl"


def words(data, **options):
    said = {"data": data, "shots": data.parent / "shown.jsonl", **options}
    cache = data.parent / "cache"
    return [f"cache_dir={cache}", "device=cpu", *(f"multiple_choice.{name}={value}" for name, value in said.items())]


@pytest.fixture
def computed(monkeypatch):
    """How many sequences a model was given."""
    seen = []
    plain = Loaded.logps_by_row

    def counting(self, sequences):
        seen.append(len(sequences))
        return plain(self, sequences)

    monkeypatch.setattr(Loaded, "logps_by_row", counting)
    return seen


def test_what_was_found_once_is_not_computed_again(folder, data, computed, tmp_path, capsys):
    command = ["evaluate", str(folder), "--task", "multiple_choice", "--json", *words(data)]
    out = tmp_path / "out"
    assert main([*command, "--out", str(out)]) == 0
    first = capsys.readouterr()
    items = (out / "multiple_choice.jsonl").read_text()
    assert computed == [36] and len(items.splitlines()) == 12
    assert main([*command, "--out", str(out)]) == 0  # into the same folder, which holds the same
    second = capsys.readouterr()
    assert computed == [36] and "is in the cache" in second.err and "--fresh" in second.err
    assert (out / "multiple_choice.jsonl").read_text() == items
    one, other = json.loads(first.out), json.loads(second.out)
    assert one["tasks"]["multiple_choice"] | {"cached": True} == other["tasks"]["multiple_choice"]
    assert "| 12 |" in (out / "results.md").read_text()
    assert main([*command, "--fresh"]) == 0
    assert computed == [36, 36]
    same = json.loads(capsys.readouterr().out)["tasks"]["multiple_choice"]
    assert {**same, "seconds": 0} == {**one["tasks"]["multiple_choice"], "seconds": 0}
    assert main([*command, "multiple_choice.num_samples=3", "--out", str(out)]) == 1
    assert "out is not empty: choose another folder" in capsys.readouterr().err


def test_other_options_data_or_weights_are_computed(folder, data, computed, tmp_path):
    def ask(path=folder, **options):
        evaluate(str(path), *read(["multiple_choice"], words(data, **options)), None, lambda line: None)
        return len(computed)

    assert [ask(), ask(), ask(num_samples=3), ask(num_samples=3), ask()] == [1, 1, 2, 2, 2]
    data.write_text("\n".join(map(json.dumps, QUESTIONS[1:])))
    assert [ask(), ask()] == [3, 3]
    other = fixtures_models.save_model(tmp_path / "other", fixtures_models.tiny_model(seed=1))
    same = fixtures_models.save_model(tmp_path / "same")
    assert [ask(other), ask(other), ask(same)] == [4, 4, 4]  # what the files hold counts, not where they lie
    adapter = tmp_path / "adapter"
    tuned = fixtures_models.tiny_lora(fixtures_models.tiny_model())
    tuned.peft_config["default"].base_model_name_or_path = str(other)
    tuned.save_pretrained(adapter)
    fixtures_models.tiny_tokenizer().save_pretrained(adapter)
    assert [ask(adapter), ask(adapter)] == [5, 5]
    fixtures_models.save_model(other, fixtures_models.tiny_model(seed=2))
    assert [ask(adapter), ask(adapter)] == [6, 6]  # another base below the same adapter


def test_a_task_that_says_no_digest_is_never_kept(folder, tmp_path):
    (tmp_path / "counts.py").write_text(
        "from tunesmith.seams import Task, TaskResult\n\nRUNS = []\n\n\n"
        'class Counts(Task):\n    """Counts."""\n\n    def run(self, subject):\n        RUNS.append(1)\n'
        "        return TaskResult({'runs': len(RUNS)})\n"
    )
    tasks, how = read([str(tmp_path / "counts.py")], [f"cache_dir={tmp_path}"])
    found = [evaluate(str(folder), tasks, how, None, print)["tasks"]["counts"]["metrics"]["runs"] for _ in range(2)]
    assert found == [1, 2] and not (tmp_path / "evaluations").exists()


def test_a_killed_evaluation_goes_on(folder, data, computed, monkeypatch):
    plain, rows = Loaded.logps_by_row, []

    def stopping(self, sequences):
        for row in plain(self, sequences):
            rows.append(len(row))
            if len(rows) == 2:
                raise KeyboardInterrupt
            yield row

    monkeypatch.setattr("tunesmith.generate.subject.ROW_TOKENS", 300)
    whole = evaluate(str(folder), *read(["multiple_choice"], words(data, num_shots=0)), None, print)
    tasks, how = read(["multiple_choice"], words(data, num_shots=0))
    how = how.model_copy(update={"cache_dir": str(data.parent / "another")})
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Loaded, "logps_by_row", stopping)
        evaluate(str(folder), tasks, how, None, print)
    said = []
    again = evaluate(str(folder), tasks, how, None, said.append)
    known = rows[0]
    assert 0 < known < 36 and computed == [36, 36, 36 - known]
    assert f"multiple_choice: goes on, {known} were asked before it was stopped" in said
    assert again["tasks"]["multiple_choice"]["table"] == whole["tasks"]["multiple_choice"]["table"]
    assert not list((data.parent / "another/evaluations").glob("*.jsonl"))


def test_replies_are_remembered_one_by_one(folder, tmp_path):
    subject = Subject.open(str(folder), "cpu", "float32")
    prompts = [subject.prompt(f"What is {at} and two?") for at in range(4)]
    expected = [reply.text for reply in subject.replies(prompts, 5)]
    assert len(set(expected)) > 1
    with pytest.raises(KeyboardInterrupt):
        with _remembered.remembered(subject, tmp_path / "journal.jsonl", "asked", print) as asked:
            for _, at in zip(asked.replies(prompts, 5), range(2), strict=False):
                if at == 1:
                    raise KeyboardInterrupt
    lines = (tmp_path / "journal.jsonl").read_text().splitlines()
    assert 2 <= len(lines) < 4
    with _remembered.remembered(subject, tmp_path / "journal.jsonl", "asked", print) as asked:
        assert len(asked.known) == len(lines)
        assert [reply.text for reply in asked.replies(prompts, 5)] == expected
        assert [reply.text for reply in asked.replies(prompts, 2)] != expected  # another question
    assert not (tmp_path / "journal.jsonl").exists()


# beside the base


@pytest.fixture(scope="module")
def adapter(folder, tmp_path_factory):
    tuned = fixtures_models.tiny_lora(fixtures_models.tiny_model())
    tuned.peft_config["default"].base_model_name_or_path = str(folder)
    place = tmp_path_factory.mktemp("tuned") / "adapter"
    tuned.save_pretrained(place)
    fixtures_models.tiny_tokenizer().save_pretrained(place)
    return place


def test_a_tuned_model_beside_its_base_with_and_without_examples(folder, adapter, data, tmp_path, capsys):
    command = ["evaluate", str(adapter), "--task", "multiple_choice", "--against", "base", *words(data, num_shots=2)]
    assert main([*command, "--json", "--out", str(tmp_path / "out")]) == 0
    found = json.loads(capsys.readouterr().out)
    against = found["against"]["tasks"]["multiple_choice"]
    assert found["against"]["model"] == str(folder)
    rows = {(row["model"], row["shots"]): row for row in against["rows"]}
    assert set(rows) == {(str(one), shots) for one in (folder, adapter) for shots in (0, 2)}
    for (path, shots), row in rows.items():  # each is what the model alone gives
        alone = evaluate(path, *read(["multiple_choice"], words(data, num_shots=shots)), None, print)
        told = alone["tasks"]["multiple_choice"]
        assert row["accuracy"] == told["metrics"]["accuracy"]
        assert [row["low"], row["high"]] == told["intervals"]["accuracy"]
    best = max(rows[str(adapter), shots]["accuracy"] for shots in (0, 2))
    for shots in (0, 2):
        row = rows[str(folder), shots]
        assert row["tuned - this"] == best - row["accuracy"] and row["intervals"] in ("overlap", "apart")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "multiple_choice-base-0-shot.jsonl", "multiple_choice-base-2-shot.jsonl", "multiple_choice-tuned-0-shot.jsonl",
        "multiple_choice.jsonl", "results.json", "results.md",
    ]  # fmt: skip
    page = (tmp_path / "out/results.md").read_text()
    assert "## multiple_choice: tuned and prompted" in page and against["verdict"] in page
    assert main(command) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "tuned and prompted" in shown and against["verdict"] in shown


def side(tuned, shots, right, asked=100):
    """A side that got the first `right` of its questions right."""
    items = [{"right": at < right} for at in range(asked)]
    result = {"metrics": {"accuracy": right / asked}, "intervals": {"accuracy": _shares.wilson(right, asked)}}
    return Side("t" if tuned else "b", tuned, shots, _kept.Found(result, items))


@pytest.mark.parametrize(
    ("tuned", "zero", "few", "said"),
    [
        (60, 30, 40, r"tuned 0.6 \(0 shots\), the best of .* 0.4 \(5 shots\): \+0.2, .*: tuning helped"),
        (44, 30, 42, r"\+0.02, which equal models differ by in 50.0% of cases: no more than chance may be. Prompting"),
        (20, 50, 10, r"the best of prompting the base 0.5 \(0 shots\): -0.3, .*: tuning hurt"),
    ],
)  # fmt: skip
def test_the_verdict_is_against_the_best_prompting(tuned, zero, few, said):
    found = _against.compared([side(True, 0, tuned), side(False, 0, zero), side(False, 5, few)], lower_is_better=False)
    assert re.search(said, found["verdict"])


def test_without_right_and_wrong_intervals_decide():
    def one(tuned, value, interval):
        intervals = {"perplexity": interval} if interval else {}
        return Side("m", tuned, None, _kept.Found({"metrics": {"perplexity": value}, "intervals": intervals}))

    apart = _against.compared([one(True, 5.0, (4.8, 5.2)), one(False, 6.0, (5.9, 6.1))], lower_is_better=True)
    assert apart["verdict"].endswith("-1, the intervals are apart: tuning helped")
    assert apart["rows"][1]["intervals"] == "apart" and apart["rows"][1]["by chance"] == ""
    near = _against.compared([one(True, 5.0, (4.8, 5.9)), one(False, 6.0, (5.9, 6.1))], lower_is_better=True)
    assert near["verdict"].endswith("Prompting the base may do as well")
    bare = _against.compared([one(True, 5.0, None), one(False, 6.0, None)], lower_is_better=True)
    assert bare["verdict"].endswith("how sure that is, is not known")


def test_what_a_run_began_with(folder, adapter, tmp_path):
    assert load.began_with(str(adapter)) == str(folder)
    with pytest.raises(ModelError, match="is neither a run nor an adapter beside a base model: say --against MODEL"):
        load.began_with(str(folder))
    run = tmp_path / "run"
    fixtures_models.save_model(run / "final")
    (run / "recipe.yaml").write_text("model: builtin:tiny\ndata: {train: builtin:identity}\nadapter: full\n")
    assert load.began_with(str(run)) == "builtin:tiny"
    with pytest.raises((RunError, ModelError)):
        load.began_with(str(tmp_path / "none"))


def test_without_examples_there_is_one_way_to_ask():
    assert _against.variants(MultipleChoice(data="x")) == [MultipleChoice(data="x")]
    assert [_against.shots_of(one) for one in _against.variants(MultipleChoice(data="x", num_shots=4))] == [0, 4]
