"""Tasks of lm-eval find of our subject what they find of the harness's own model of transformers."""

import json
import sys

import pytest

import fixtures_models
import fixtures_server
import tunesmith.evaluation
from tunesmith.cli.main import main
from tunesmith.errors import MissingExtra, RecipeError, RunError
from tunesmith.evaluate import evaluate, read
from tunesmith.generate.subject import Subject

WORDS = ["river", "sea", "moon", "cat", "garden", "stone"]
ROWS = [
    {
        "question": f"What is {at} and {at % 4}?",
        "options": [str(at + at % 4), "the moon", "no"],
        "gold": at % 3,
        "word": WORDS[at % 6],
        "text": f"The {WORDS[at % 6]} runs to the {WORDS[at % 5]}. " * (1 + 12 * at),
    }
    for at in range(8)
]
MULTIPLE = """
output_type: multiple_choice
doc_to_text: "Question: {{question}}\\nAnswer:"
doc_to_choice: "{{options}}"
doc_to_target: "{{gold}}"
metric_list: [{metric: acc}, {metric: acc_norm}]
"""
WORD = """
output_type: loglikelihood
doc_to_text: "The name of it is"
doc_to_target: " {{word}}"
metric_list: [{metric: perplexity}, {metric: acc}]
"""
ROLLING = """
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{text}}"
metric_list: [{metric: word_perplexity}, {metric: bits_per_byte}]
"""
WRITTEN = """
output_type: generate_until
doc_to_text: "{{question}}"
doc_to_target: "{{options[0]}}"
generation_kwargs: {until: ["e", "\\n"], max_gen_toks: 12, do_sample: false}
metric_list: [{metric: exact_match}]
"""
KINDS = {"ours_multiple": MULTIPLE, "ours_word": WORD, "ours_rolling": ROLLING, "ours_written": WRITTEN}
harness = pytest.importorskip("lm_eval", reason="lm-eval is not installed: pip install 'tunesmith[lm-eval]'")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    model = fixtures_models.tiny_model(max_position_embeddings=fixtures_server.CONTEXT)
    return fixtures_models.save_model(tmp_path_factory.mktemp("harness") / "model", model)


@pytest.fixture(scope="module")
def tasks(tmp_path_factory):
    """A folder of tasks of one's own, with their rows."""
    place = tmp_path_factory.mktemp("tasks")
    (place / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    for name, text in KINDS.items():
        data = f"dataset_path: json\ndataset_kwargs: {{data_files: {{test: {place}/rows.jsonl}}}}\ntest_split: test\n"
        (place / f"{name}.yaml").write_text(f"task: {name}\n{data}{text}")
    return place


@pytest.fixture(scope="module")
def theirs(folder, tasks):
    """What the harness finds of its own model."""
    from lm_eval.evaluator import evaluate as harness_evaluate
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    model = HFLM(pretrained=str(folder), device="cpu", dtype="float32", batch_size=1)
    manager = TaskManager(include_path=str(tasks), include_defaults=False)
    return harness_evaluate(model, manager.load(list(KINDS)), bootstrap_iters=0)


def found_of(place, tasks, name, tmp_path, *words):
    said = [f"lm_eval.include_path={tasks}", f"cache_dir={tmp_path}", "device=cpu", "dtype=float32", *words]
    return evaluate(str(place), *read([f"lm-eval:{name}"], said), tmp_path / "out", print)["tasks"].popitem()[1]


@pytest.mark.parametrize("name", KINDS)
def test_numbers_are_those_of_the_harness(folder, tasks, theirs, tmp_path, name):
    found = found_of(folder, tasks, name, tmp_path)
    expected = {key.partition(",")[0]: value for key, value in theirs["results"][name].items() if key.endswith(",none")}
    expected = {key: value for key, value in expected.items() if not key.endswith("_stderr")}
    assert found["metrics"] == pytest.approx(expected, rel=1e-5) and expected
    items = [json.loads(line) for line in (tmp_path / "out" / f"lm-eval-{name}.jsonl").read_text().splitlines()]
    samples = theirs["samples"][name]
    assert len(items) == len(samples) == len(ROWS)
    for item, sample in zip(items, samples, strict=True):
        one, other = json.dumps(item["answers"]), json.dumps(sample["filtered_resps"])
        if name == "ours_written":
            assert one == other
    assert found["lower_is_better"] == (name in ("ours_word", "ours_rolling"))


def test_each_answer_is_as_likely_as_to_the_harness(folder, tasks, theirs, tmp_path):
    found_of(folder, tasks, "ours_word", tmp_path)
    items = [json.loads(line) for line in (tmp_path / "out" / "lm-eval-ours_word.jsonl").read_text().splitlines()]
    for item, sample in zip(items, theirs["samples"]["ours_word"], strict=True):
        ((ours, likeliest),), ((value, greedy),) = item["answers"], sample["filtered_resps"]
        assert ours == pytest.approx(value, rel=1e-5) and likeliest == greedy


def test_the_likeliest_answer_is_known_for_it(folder):
    subject = Subject.open(str(folder), "cpu", "float32")
    prompt = subject.ids("The river runs to the")
    (reply,) = subject.replies([prompt], 1)
    first = subject.ids(reply.text)
    assert subject.likeliest([*prompt, *first], len(first)) == [True]
    assert subject.likeliest([*prompt, first[0] - 1], 1) == [False]


def test_a_task_file_and_words_of_it(folder, tasks, tmp_path, capsys):
    found = found_of(folder, tasks, "ours_word", tmp_path, "lm_eval.num_samples=3", "lm_eval.num_shots=0")
    assert found["options"]["num_samples"] == 3
    out = tmp_path / "file"
    command = ["evaluate", str(folder), "--task", f"lm-eval:{tasks}/ours_word.yaml", "--out", str(out), "--json"]
    capsys.readouterr()
    assert main([*command, "device=cpu", "dtype=float32", f"cache_dir={tmp_path}", "lm_eval.num_samples=3"]) == 0
    told = json.loads(capsys.readouterr().out)["tasks"]["lm-eval-ours_word"]  # stdout has nothing else
    assert told["metrics"] == found["metrics"] and set(told["intervals"]) == {"perplexity", "acc"}
    assert len((out / "lm-eval-ours_word.jsonl").read_text().splitlines()) == 3


def test_the_chat_template_is_used_when_it_is_asked_for(folder, tasks, tmp_path):
    plain, chat = (
        found_of(folder, tasks, "ours_word", tmp_path / f"{said}", f"lm_eval.chat={said}")["metrics"]["perplexity"]
        for said in ("false", "true")
    )
    assert plain != pytest.approx(chat, rel=1e-3)


def test_by_address_it_finds_the_same(folder, tasks, tmp_path):
    here = found_of(folder, tasks, "ours_word", tmp_path / "here")["metrics"]
    with fixtures_server.running(fixtures_server.served(alone=False)) as running:
        there = found_of(f"{running.address}/v1", tasks, "ours_word", tmp_path / "there", f"server.tokenizer={folder}")
    assert there["metrics"] == pytest.approx(here, rel=1e-4)


def test_what_cannot_be_asked_is_one_line(folder, tasks, tmp_path, monkeypatch):
    with pytest.raises(RecipeError, match=r"has no task 'ours_wrod', and no file is there\. Did you mean 'ours_word'"):
        found_of(folder, tasks, "ours_wrod", tmp_path / "a")
    text = (tasks / "ours_written.yaml").read_text()
    (tmp_path / "drawn.yaml").write_text(text.replace("do_sample: false", "do_sample: true").replace("ours_", ""))
    with pytest.raises(RecipeError, match=r"draws its answers .*say lm_eval\.greedy=true"):
        found_of(folder, tasks, f"{tmp_path}/drawn.yaml", tmp_path / "b")
    (tmp_path / "gone.yaml").write_text(text.replace("rows.jsonl", "gone.jsonl").replace("ours_", ""))
    with pytest.raises(RunError, match=r"lm-eval cannot run .*gone\.yaml: FileNotFoundError"):
        found_of(folder, tasks, f"{tmp_path}/gone.yaml", tmp_path / "c")
    monkeypatch.delitem(sys.modules, "tunesmith.evaluation._harness")
    monkeypatch.delattr(tunesmith.evaluation, "_harness")
    monkeypatch.setitem(sys.modules, "lm_eval.api.model", None)
    with pytest.raises(MissingExtra, match=r"pip install 'tunesmith\[lm-eval\]'"):
        found_of(folder, tasks, "ours_word", tmp_path / "d")
