"""Perplexity by length equals what transformers' own logits give, and a needle is found by who reads it."""

import io
import json
import math

import pytest
import torch
from PIL import Image

import fixtures_models
from tunesmith.cli.main import main
from tunesmith.errors import DataError, RecipeError, RunError
from tunesmith.evaluate import Evaluation, evaluate, read
from tunesmith.evaluation import needle
from tunesmith.evaluation.needle import Needle
from tunesmith.evaluation.ppl_by_length import PplByLength
from tunesmith.generate.subject import ROW_TOKENS, Subject

TEXT = " ".join(f"The cat number {i} sat on the mat and looked at the moon." for i in range(40))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return fixtures_models.save_model(tmp_path_factory.mktemp("evaluation") / "model")


@pytest.fixture(scope="module")
def subject(folder):
    return Subject.open(str(folder), "cpu", "float32")


@pytest.fixture
def text(tmp_path):
    (tmp_path / "text.txt").write_text(TEXT)
    return str(tmp_path / "text.txt")


@torch.no_grad()
def nll(window, counted):
    """The mean loss of the last tokens of a window, from the logits of all."""
    logits = fixtures_models.tiny_model()(input_ids=torch.tensor([window])).logits[0].double()
    return -logits[:-1].log_softmax(-1).gather(1, torch.tensor(window[1:])[:, None])[-counted:].mean().item()


def test_perplexity_is_that_of_transformers_logits(subject, text):
    task = PplByLength(data=text, lengths=(48, 200, 48), last_tokens=20, num_windows=3)
    found = task.run(subject)
    ids = [*fixtures_models.tiny_tokenizer()(TEXT)["input_ids"], subject.tokenizer.eos_token_id]
    step = (len(ids) - 200) // 2
    ends = [200, 200 + step, 200 + 2 * step]
    assert len(ids) - 2 <= ends[-1] <= len(ids)
    expected = {length: sum(nll(ids[end - length : end], 20) for end in ends) / 3 for length in (48, 200)}
    assert [row["length"] for row in found.table] == [48, 200]
    for row in found.table:
        assert math.log(row["perplexity"]) == pytest.approx(expected[row["length"]], rel=1e-4)
        assert found.metrics[f"perplexity_{row['length']}"] == row["perplexity"]
    assert [(item["length"], item["end"]) for item in found.items] == [(n, end) for n in (48, 200) for end in ends]


def test_short_windows_count_what_they_have(subject, text):
    (row,) = PplByLength(data=text, lengths=(16,), last_tokens=256, num_windows=1).run(subject).table
    ids = fixtures_models.tiny_tokenizer()(TEXT)["input_ids"]
    assert math.log(row["perplexity"]) == pytest.approx(nll(ids[:16], 15), rel=1e-4)


def test_log_probabilities_do_not_depend_on_what_lies_beside(subject):
    draw = torch.Generator().manual_seed(0)
    lengths = (10, ROW_TOKENS - 300, 280, 40, 5)
    sequences = [(torch.randint(0, 300, (length,), generator=draw).tolist(), 4) for length in lengths]
    together = subject.logps(sequences)
    for one, found in zip(sequences, together, strict=True):
        assert found.shape == (4,)
        torch.testing.assert_close(found, subject.logps([one])[0], atol=1e-4, rtol=1e-4)


def test_a_text_that_is_too_short_is_said(subject, text, tmp_path):
    with pytest.raises(DataError, match=r"text.txt has 1,070 tokens, and 5,040 are read"):
        PplByLength(data=text, lengths=(5000,), last_tokens=20, num_windows=3).run(subject)
    with pytest.raises(DataError, match=r"the texts around the needle end [\d,]+ tokens before the prompt is full"):
        Needle(data=text, lengths=(5000,), num_samples=1).run(subject)
    (tmp_path / "rows.jsonl").write_text(json.dumps({"text": TEXT}) + "\n")
    same = PplByLength(data=text, lengths=(48,), num_windows=2)
    other = same.model_copy(update={"data": str(tmp_path / "rows.jsonl")})
    assert same.run(subject).metrics == other.run(subject).metrics


class Reader:
    """Reads the last tokens of a prompt, and answers with the number that stands there."""

    context_tokens = 500

    def __init__(self, last):
        self.last = last

    def ids(self, text):
        return text.split()

    def prompt(self, question, begun):
        return question.split()

    def answer(self, question, begun, max_new_tokens):
        assert begun.startswith("\nThe secret number of ") and begun.endswith(" is")
        name = question.rpartition("of ")[2].rstrip("?")
        near = " ".join(question.split()[-self.last :])
        _, found, after = near.partition(f"The secret number of {name} is ")
        return f"It is {int(after[:4]):,}!" if found else "I do not know: 12."


@pytest.mark.usefixtures("drawn")
def test_a_needle_is_found_as_far_as_the_reader_sees():
    found = Needle(lengths=(800, 100), depths=(1.0, 0.0, 0.5), num_samples=3).run(Reader(250))
    near, far = found.table
    assert near == {"length": 100, "depth 0%": 1.0, "depth 50%": 1.0, "depth 100%": 1.0, "all": 1.0}
    assert far == {"length": 800, "depth 0%": 0.0, "depth 50%": 0.0, "depth 100%": 1.0, "all": 1 / 3}
    assert found.metrics == {"accuracy": 2 / 3, "accuracy_100": 1.0, "accuracy_800": 1 / 3}
    for item in found.items:
        assert item["length"] * 0.7 < item["tokens"] <= item["length"]
    assert len({item["number"] for item in found.items}) > 12
    picture = Image.open(io.BytesIO(found.picture)).convert("RGB")
    colours = {picture.getpixel((x, picture.height // 3)) for x in range(0, picture.width, 5)}
    assert {(15, 157, 118), (217, 72, 15)} <= colours  # found, and not found


def test_a_needle_task_is_the_same_again_and_another_with_another_seed():
    def numbers(**options):
        return [item["number"] for item in Needle(lengths=(100,), num_samples=2, **options).run(Reader(9)).items]

    assert numbers() == numbers() != numbers(seed=1)


def test_where_the_fact_stands():
    assert needle.hidden(["a. ", "b. ", "c. ", "d. "], "X.", 0.5) == "a. b. X. c. d."
    assert needle.hidden(["a. ", "b. "], "X.", 0.0) == "X. a. b."
    assert needle.hidden(["a. ", "b. "], "X.", 1.0) == "a. b. X."


@pytest.mark.parametrize(
    ("answer", "right"),
    [("It is 4821.", True), ("4,821", True), ("4 821!", True), ("14821", False), ("482 and 1", False), ("", False)],
)
def test_which_answers_are_right(answer, right):
    assert needle.is_right(answer, "4821") is right


def test_a_real_model_is_asked_and_answers(subject):
    found = Needle(lengths=(128,), depths=(0.5,), num_samples=1, max_new_tokens=4).run(subject)
    (item,) = found.items
    ids = fixtures_models.tiny_tokenizer().apply_chat_template(
        [{"role": "user", "content": "hello"}], add_generation_prompt=True, return_dict=False
    )
    assert subject.prompt("hello", " is") == ids and item["tokens"] <= 128
    model = fixtures_models.tiny_model()
    made = model.generate(torch.tensor([ids]), max_new_tokens=4, do_sample=False)[0, len(ids) :]
    expected = fixtures_models.tiny_tokenizer().decode(made, skip_special_tokens=True)
    assert subject.answer("hello", " is", 4) == expected


def test_without_a_template_the_text_goes_on(tmp_path):
    tokenizer = fixtures_models.tiny_tokenizer(chat_template=None)
    plain = Subject.open(str(fixtures_models.save_model(tmp_path / "m", tokenizer=tokenizer)), "cpu", "float32")
    assert plain.prompt("hello", " is") == tokenizer("hello is")["input_ids"]


# the command


def test_the_command_writes_json_and_files(folder, tmp_path, capsys):
    words = ["needle.lengths=[128]", "needle.depths=[0.5]", "needle.num_samples=1", "needle.max_new_tokens=2"]
    words += ["ppl_by_length.lengths=[64, 128]", "ppl_by_length.num_windows=1"]
    words += ["device=cpu", "rope_scaling.rope_type=linear", "rope_scaling.factor=4"]
    out = tmp_path / "out"
    command = ["evaluate", str(folder), "--task", "needle,ppl_by_length", *words]
    assert main([*command, "--out", str(out), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found == json.loads((out / "results.json").read_text())
    assert found["context_tokens"] == 4 * fixtures_models.CONTEXT and list(found["tasks"]) == [
        "needle",
        "ppl_by_length",
    ]
    assert found["tasks"]["ppl_by_length"]["options"]["lengths"] == [64, 128]
    assert sorted(path.name for path in out.iterdir()) == [
        "needle.jsonl", "needle.png", "ppl_by_length.jsonl", "results.json", "results.md",
    ]  # fmt: skip
    assert main(command) == 0
    shown = capsys.readouterr().out
    assert "made for 1,024 tokens" in shown and "perplexity" in shown and "depth 50%" in shown
    picture = (out / "needle.png").read_bytes()
    (out / "needle.png").unlink()
    assert main([*command, "--out", str(out)]) == 0  # it holds the same, and the picture comes from the cache
    assert (out / "needle.png").read_bytes() == picture
    capsys.readouterr()
    assert main([*command, "needle.seed=1", "--out", str(out)]) == 1
    assert capsys.readouterr().err.endswith("out is not empty: choose another folder\n")


def test_a_scaling_said_here_is_the_models(folder):
    plain = evaluate(str(folder), *read(["ppl_by_length"], ["ppl_by_length.num_windows=1"]), None, print)
    words = ["ppl_by_length.num_windows=1", "rope_scaling.rope_type=linear", "rope_scaling.factor=2"]
    scaled = evaluate(str(folder), *read(["ppl_by_length"], words), None, print)
    assert plain["tasks"]["ppl_by_length"]["table"] != scaled["tasks"]["ppl_by_length"]["table"]


@pytest.mark.parametrize(
    ("tasks", "words", "problem"),
    [
        (["neddle"], [], r"there is no task 'neddle'. Did you mean 'needle'"),
        (["needle"], ["needle.lenghts=3"], r"lenghts.*lengths"),
        (["needle"], ["ppl_by_length.lengths=[64]"], r"is not asked for: say --task needle,ppl_by_length"),
        (["needle"], ["evaluate.device=cpu"], r"typed by its own name, as in device=\.\.\."),
        (["needle"], ["dtyp=float32"], r"dtyp is neither a task here nor an option of loading. Did you mean 'dtype'"),
        (["multiple_choice"], [], r"multiple_choice.data is required: multiple_choice.data=FOLDER; see tunesmith opt"),
        (
            ["gsm8k"],
            ["gsm8k.num_sample=2", "gsm8k.data=x"],
            r"^gsm8k.num_sample: no such option. Did you mean 'num_samples'",
        ),
        (["gsm8k"], ["num_samples=2", "gsm8k.data=x"], r"num_samples is an option of a task. .* 'gsm8k.num_samples'\?"),
        (["lm_eval"], [], r"there is no task 'lm_eval'. One of lm-eval is said as lm-eval:NAME"),
        (["hellaswag"], [], r"there is no task 'hellaswag'. .* One of lm-eval is said as lm-eval:hellaswag"),
        (["needle"], ["needle=3"], r"needle=3 says nothing: say an option of the task"),
        (["needle"], ["dtype=float8"], r"dtype: must be"),
        (["needle"], ["needle.depths=[2]"], r"depths.*must be less than or equal to 1"),
    ],
)
def test_what_is_wrong_is_said(tasks, words, problem):
    with pytest.raises(RecipeError, match=problem):
        read(tasks, words)


def test_a_task_of_the_users_own(folder, tmp_path):
    (tmp_path / "mine.py").write_text(
        "from tunesmith.seams import Task, TaskResult\n\n\n"
        'class Mine(Task):\n    """Counts."""\n\n    most: int = 2\n    """How far."""\n\n'
        "    def run(self, subject):\n        return TaskResult({'answer': float(self.most)})\n"
    )
    tasks, how = read([str(tmp_path / "mine.py")], ["mine.most=42"])
    assert isinstance(how, Evaluation)
    assert evaluate(str(folder), tasks, how, None, print)["tasks"]["mine"]["metrics"] == {"answer": 42.0}


def test_a_reward_model_is_refused(tmp_path):
    from transformers import AutoModelForSequenceClassification

    model = AutoModelForSequenceClassification.from_config(fixtures_models.tiny_config(num_labels=1))
    place = fixtures_models.save_model(tmp_path / "reward", model)
    with pytest.raises((RunError, ValueError), match="says rewards or classes, and no words"):
        Subject.open(str(place), "cpu")


def test_replies_are_made_many_at_a_time_and_between_them_is_room_for_other_questions(subject):
    """Each is that of transformers, whatever its length, and none depends on what the reader asks in between."""
    from tunesmith.generate import together

    prompts = [subject.prompt("The cat " * (at + 1)) for at in range(5)]
    passes, plain = [], together.Together.step

    def counting(self, places, tokens):
        passes.append(len(places))
        return plain(self, places, tokens)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(together.Together, "step", counting)
        found = []
        for reply in subject.replies(prompts, 6):
            subject.logps([(prompts[0], 2)])
            found.append(reply.text)
    model, tokenizer = fixtures_models.tiny_model(), fixtures_models.tiny_tokenizer()
    for ids, text in zip(prompts, found, strict=True):
        made = model.generate(torch.tensor([ids]), max_new_tokens=6, do_sample=False)[0, len(ids) :]
        assert text == tokenizer.decode(made, skip_special_tokens=True)
    assert max(passes) == 5 and len(set(found)) > 1
