"""Options are as likely as transformers' own logits say of prompts written out here, however they are laid in rows."""

import csv
import dataclasses
import json
import math

import pytest
import torch

import fixtures_models
from tunesmith.errors import DataError, ModelError, RecipeError
from tunesmith.evaluate import read
from tunesmith.evaluation import _shares
from tunesmith.evaluation.ceval import Ceval
from tunesmith.evaluation.cmmlu import Cmmlu
from tunesmith.evaluation.mmlu import Mmlu
from tunesmith.evaluation.multiple_choice import MultipleChoice
from tunesmith.generate import subject as subjects
from tunesmith.generate.subject import Subject

ROWS = [
    ("What is two and three?", "five", "seventeen", "ten", "the moon", "A"),
    ('Who sat on the mat,\n"really"?', "The rain", "The cat", "Where is it?", "naïve café", "B"),
    ("What runs to the sea?", "cat, list", "colour", "The river", "the city", "C"),
    ("What brings water back?", "the rain and the rain", "no", "first", "second", "A"),
    ("How are you?", "I am fine", "mountain", "third", "Hello", "A"),
]


def write(path, rows, header=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([*([header] if header else []), *rows])


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """The three benchmarks in miniature, laid as published."""
    root = tmp_path_factory.mktemp("choice")
    for subject in ("anatomy", "marketing"):
        write(root / f"mmlu/test/{subject}_test.csv", ROWS)
        write(root / f"mmlu/dev/{subject}_dev.csv", ROWS[::-1])
    names = ["id", "question", "A", "B", "C", "D", "answer"]
    for subject in ("logic", "college_physics"):
        write(root / f"ceval/val/{subject}_val.csv", [(n, *row) for n, row in enumerate(ROWS)], names)
        write(root / f"ceval/test/{subject}_test.csv", [(n, *row[:-1]) for n, row in enumerate(ROWS)], names[:-1])
        shown = [(n, *row, "because") for n, row in enumerate(ROWS[::-1])]
        write(root / f"ceval/dev/{subject}_dev.csv", shown, [*names, "explanation"])
    for split, rows in (("test", ROWS), ("dev", ROWS[::-1])):
        for subject in ("logical", "chinese_history", "of_our_own"):
            header = ["", "Question", "A", "B", "C", "D", "Answer"]
            write(root / f"cmmlu/{split}/{subject}.csv", [(n, *row) for n, row in enumerate(rows)], header)
    return root


@pytest.fixture(scope="module")
def subject(tmp_path_factory):
    folder = fixtures_models.save_model(tmp_path_factory.mktemp("subject") / "model")
    roomy = Subject.open(str(folder), "cpu", "float32")
    roomy.model.config.max_position_embeddings = 8192  # rotary positions need no more
    return roomy


@torch.no_grad()
def likelihood(before, whole):
    """The log-probability of what the whole has behind the tokens before, from transformers' own logits."""
    logits = fixtures_models.tiny_model()(input_ids=torch.tensor([whole])).logits[0].double().log_softmax(-1)
    return sum(logits[at - 1, whole[at]].item() for at in range(len(before), len(whole)))


def direct(prompt, options):
    """The same of each option behind a text."""
    tokenizer = fixtures_models.tiny_tokenizer()
    ids = tokenizer(prompt)["input_ids"]
    return [likelihood(ids, tokenizer(prompt + option)["input_ids"]) for option in options]


def listed(row):
    return "".join(f"\n{letter}. {option}" for letter, option in zip("ABCD", row[1:5], strict=True))


def mmlu_prompt(row, shots, title):
    shown = "".join(f"{one[0]}{listed(one)}\nAnswer: {one[5]}\n\n" for one in ROWS[::-1][:shots])
    opening = f"The following are multiple choice questions (with answers) about {title}.\n\n"
    return f"{opening}{shown}{row[0]}{listed(row)}\nAnswer:"


def ceval_prompt(row, shots, title):
    shown = "".join(f"{one[0]}{listed(one)}\n答案：{one[5]}\n\n" for one in ROWS[::-1][:shots])
    return f"以下是中国关于{title}考试的单项选择题，请选出其中的正确答案。\n\n{shown}{row[0]}{listed(row)}\n答案："


def cmmlu_prompt(row, shots, title):
    shown = "".join(f"题目：{one[0]}{listed(one)}\n答案是：{one[5]}\n\n" for one in ROWS[::-1][:shots])
    opening = f"以下是关于{title}的单项选择题，请直接给出正确答案的选项。\n\n"
    return f"{opening}{shown}题目：{row[0]}{listed(row)}\n答案是："


@pytest.mark.parametrize("shots", [0, 3])
@pytest.mark.parametrize(
    ("kind", "name", "title", "prompt", "space"),
    [
        (Mmlu, "marketing", "marketing", mmlu_prompt, " "),
        (Ceval, "logic", "逻辑学", ceval_prompt, ""),
        (Cmmlu, "logical", "逻辑学", cmmlu_prompt, ""),
    ],
)
def test_letters_are_as_likely_as_transformers_says(subject, data, kind, name, title, prompt, space, shots):
    task = kind(data=str(data / kind.__name__.lower()), subjects=[name], num_shots=shots)
    found = task.run(subject)
    assert [item["expected"] for item in found.items] == [row[5] for row in ROWS]
    for row, item in zip(ROWS, found.items, strict=True):
        expected = direct(prompt(row, shots, title), [space + letter for letter in "ABCD"])
        assert item["logps"] == pytest.approx(expected, abs=1e-5)
        assert item["answer"] == "ABCD"[expected.index(max(expected))]
        assert item["right"] == (item["answer"] == row[5]) and item["shots"] == shots
    right = sum(item["right"] for item in found.items)
    assert found.metrics["accuracy"] == right / 5 and found.intervals["accuracy"] == _shares.wilson(right, 5)


def test_texts_are_compared_by_the_character(subject, data):
    found = Mmlu(data=str(data / "mmlu"), subjects="anatomy", num_shots=1, answer_with="text").run(subject)
    opening = "The following are multiple choice questions (with answers) about anatomy.\n\n"
    for row, item in zip(ROWS, found.items, strict=True):
        prompt = f"{opening}How are you?\nAnswer: I am fine\n\n{row[0]}\nAnswer:"
        expected = direct(prompt, [f" {option}" for option in row[1:5]])
        assert item["logps"] == pytest.approx(expected, abs=1e-5)
        scores = [one / len(option) for one, option in zip(expected, row[1:5], strict=True)]
        assert item["answer"] == "ABCD"[scores.index(max(scores))]


def test_with_a_chat_template_examples_are_turns(subject, data):
    found = Mmlu(data=str(data / "mmlu"), subjects="anatomy", num_shots=2, chat=True).run(subject)
    tokenizer = fixtures_models.tiny_tokenizer()
    opening = "The following are multiple choice questions (with answers) about anatomy.\n\n"
    for row, item in zip(ROWS, found.items, strict=True):
        first, second, last = (f"{one[0]}{listed(one)}\nAnswer:" for one in (ROWS[4], ROWS[3], row))
        turns = [("user", opening + first), ("assistant", "A"), ("user", second), ("assistant", "A"), ("user", last)]
        messages = [{"role": role, "content": text} for role, text in turns]
        ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
        expected = [likelihood(ids, [*ids, *tokenizer(letter)["input_ids"]]) for letter in "ABCD"]
        assert item["logps"] == pytest.approx(expected, abs=1e-5)


def test_without_a_template_chat_is_refused(tmp_path, data):
    tokenizer = fixtures_models.tiny_tokenizer(chat_template=None)
    plain = Subject.open(str(fixtures_models.save_model(tmp_path / "m", tokenizer=tokenizer)), "cpu", "float32")
    with pytest.raises(ModelError, match="has no chat template: leave chat out"):
        Mmlu(data=str(data / "mmlu"), chat=True, num_shots=0).run(plain)


def test_what_prompts_begin_with_in_common_is_computed_once(subject, data, monkeypatch):
    seen = []
    subject.model.get_input_embeddings().register_forward_hook(lambda module, args, out: seen.append(args[0].numel()))
    task = Mmlu(data=str(data / "mmlu"), num_shots=4)
    monkeypatch.setattr(subjects, "ROW_TOKENS", 10_000)
    once = task.run(subject)
    options = [[task.options(subject, exam, one, 4) for one in exam.asked] for exam in task.exams()]
    first = sum(len(questions[0][0][0]) for questions in options)  # the first prompt of a subject is laid whole
    asked = sum(len(subject.ids("\n".join([row[0], *row[1:5]]))) for row in ROWS[1:]) * 2
    assert subject.kernels.shares and len(seen) == 2 and sum(seen) < first + asked + 10 * (4 + 20)
    apart = dataclasses.replace(subject, kernels=dataclasses.replace(subject.kernels, shares=False))
    again = task.run(apart)
    every = [len(tokens) for questions in options for four in questions for tokens, _ in four]
    assert sum(seen[2:]) == sum(every) > 9 * sum(seen[:2])
    for one, other in zip(once.items, again.items, strict=True):
        assert one["logps"] == pytest.approx(other["logps"], abs=1e-5)


def test_a_short_context_gets_fewer_examples(subject, data):
    task = Mmlu(data=str(data / "mmlu"), subjects="anatomy", num_shots=5)
    lengths = [
        [len(task.options(subject, task.exams()[0], one, n)[0][0]) for n in range(6)] for one in task.exams()[0].asked
    ]
    room = lengths[0][3]
    subject.model.config.max_position_embeddings = room
    try:
        found = task.run(subject)
    finally:
        subject.model.config.max_position_embeddings = 8192
    assert [item["shots"] for item in found.items] == [sum(n <= room for n in some[1:]) for some in lengths]
    assert found.items[0]["shots"] == 3 and found.metrics["questions_with_fewer_shots"] == 5


def test_subjects_categories_and_all(subject, data):
    found = Cmmlu(data=str(data / "cmmlu"), num_shots=0, num_samples=2).run(subject)
    assert [(row["subject"], row["category"], row["questions"]) for row in found.table] == [
        ("chinese_history", "humanities", 2), ("logical", "humanities", 2), ("of_our_own", "", 2),
        ("all of humanities", "", 4), ("all of China specific", "", 2), ("all", "", 6),
    ]  # fmt: skip
    by_subject = {row["subject"]: row["accuracy"] for row in found.table}
    assert found.metrics["accuracy_humanities"] == (by_subject["chinese_history"] + by_subject["logical"]) / 2
    assert found.metrics["mean_of_subjects"] == pytest.approx(
        (by_subject["chinese_history"] + by_subject["logical"] + by_subject["of_our_own"]) / 3
    )
    chosen = Ceval(data=str(data / "ceval"), subjects=["STEM"], num_shots=0)
    assert [exam.name for exam in chosen.exams()] == ["college_physics"]
    assert [exam.name for exam in Ceval(data=str(data / "ceval"), subjects=["hard", "logic"], num_shots=0).exams()] == [
        "college_physics",
        "logic",
    ]


def test_every_catalogue_says_each_subject_once():
    from tunesmith.evaluation._published import catalogue

    numbers = {"mmlu": 57, "ceval": 52, "cmmlu": 67}
    for name, number in numbers.items():
        names = [one for subjects in catalogue(name)["categories"].values() for one in subjects]
        assert len(names) == len(set(names)) == number
        across = catalogue(name).get("across", {})
        assert all(set(some) <= set(names) for some in across.values())


@pytest.mark.parametrize(
    ("kind", "options", "error", "problem"),
    [
        (Mmlu, {"subjects": ["anatomi"]}, RecipeError, "has no subject 'anatomi'. Did you mean 'anatomy'"),
        (Mmlu, {"num_shots": 6}, DataError, r"dev of anatomy in .* has 5 examples: num_shots can be no more"),
        (
            Ceval,
            {"data": "cmmlu"},
            DataError,
            "cmmlu has no folder val/ as published, and .* cannot be read as the copy",
        ),
        (MultipleChoice, {"data": "mmlu/test/anatomy_test.csv"}, DataError, r"anatomy_test.csv:\d+: column 'Question'"),
    ],
)
def test_what_is_wrong_is_said(data, kind, options, error, problem):
    options = {"data": kind.__name__.lower(), **options}
    task = kind(**{**options, "data": str(data / options["data"])})
    with pytest.raises(error, match=problem):
        task.exams()


def test_a_folder_without_a_subject_is_said(tmp_path):
    (tmp_path / "test").mkdir()
    with pytest.raises(DataError, match=r"has no SUBJECT_test.csv: say the folder that the benchmark is in"):
        Mmlu(data=str(tmp_path)).exams()
    (tmp_path / "test/anatomy_test.csv").write_text("Why?,a,b,A\n")
    with pytest.raises(DataError, match=r"anatomy_test.csv:1 has 4 fields, and there must be question, A, B, C, D, an"):
        Mmlu(data=str(tmp_path), num_shots=0).exams()


def test_a_copy_of_a_hub_is_read_by_its_configurations(tmp_path):
    """As of `cais/mmlu`: a configuration for each subject, options in a list, the answer a number."""
    for split, rows in (("test", ROWS), ("dev", ROWS[:2])):
        lines = [{"question": row[0], "choices": row[1:5], "answer": "ABCD".index(row[5])} for row in rows]
        (tmp_path / "anatomy").mkdir(exist_ok=True)
        (tmp_path / f"anatomy/{split}.jsonl").write_text("\n".join(map(json.dumps, lines)))
    files = "".join(f"  - split: {split}\n    path: anatomy/{split}.jsonl\n" for split in ("test", "dev"))
    (tmp_path / "README.md").write_text(f"---\nconfigs:\n- config_name: anatomy\n  data_files:\n{files}---\n")
    (exam,) = Mmlu(data=str(tmp_path), subjects=["anatomy"], num_shots=2).exams()
    assert [(one.text, one.options, one.letters[one.right]) for one in exam.asked] == [
        (row[0], row[1:5], row[5]) for row in ROWS
    ]
    assert exam.category == "other" and [one.text for one in exam.shown] == [row[0] for row in ROWS[:2]]


def test_questions_of_ones_own(subject, tmp_path):
    rows = [{"Frage": row[0], **dict(zip("ABC", row[1:4], strict=True)), "answer": row[5]} for row in ROWS]
    told = [{**row, "subject": "one" if at % 2 else "two"} for at, row in enumerate(rows)]
    (tmp_path / "asked.jsonl").write_text("\n".join(map(json.dumps, told)))
    shown = [{"question": "Is it?", "A": "yes", "B": "no", "answer": "B"}]
    (tmp_path / "shown.jsonl").write_text("\n".join(map(json.dumps, shown)))
    task = MultipleChoice(data=str(tmp_path / "asked.jsonl"), columns={"question": "Frage"})
    found = task.run(subject)
    assert [row["subject"] for row in found.table] == ["two", "one", "all"] and len(found.items[0]["logps"]) == 3
    opening = "The following are multiple choice questions (with answers).\n\n"
    options = "".join(f"\n{letter}. {text}" for letter, text in zip("ABC", ROWS[0][1:4], strict=True))
    expected = direct(f"{opening}{ROWS[0][0]}{options}\nAnswer:", [" A", " B", " C"])
    assert found.items[0]["logps"] == pytest.approx(expected, abs=1e-5)
    with pytest.raises(RecipeError, match="num_shots is 1, and there is nothing to show: say shots=FILE"):
        task.model_copy(update={"num_shots": 1}).exams()
    behind = task.model_copy(update={"num_shots": 1, "shots": str(tmp_path / "shown.jsonl"), "columns": {}})
    with pytest.raises(DataError, match="asked.jsonl:1: column 'Question' is missing"):
        behind.exams()
    assert task.digest() == task.model_copy().digest() != task.model_copy(update={"num_samples": 1}).digest()


def test_options_are_said_on_the_command_line(data):
    words = [f"cmmlu.data={data / 'cmmlu'}", "cmmlu.subjects=logical", "cmmlu.num_shots=0"]
    tasks, _ = read(["cmmlu"], words)
    assert tasks["cmmlu"] == Cmmlu(data=str(data / "cmmlu"), subjects=("logical",), num_shots=0)
    with pytest.raises(RecipeError, match=r"cmmlu.data is required: cmmlu.data=FOLDER"):
        read(["cmmlu"], [])


# how sure a share is


@pytest.mark.parametrize(
    ("right", "asked", "low", "high"),
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_wilsons_intervals_are_those_of_newcombe(right, asked, low, high):
    """Newcombe (1998), Two-sided confidence intervals for the single proportion, table I, method 3."""
    assert _shares.wilson(right, asked) == pytest.approx((low, high), abs=5e-5)
    assert _shares.wilson(asked - right, asked) == pytest.approx((1 - high, 1 - low), abs=5e-5)


def test_chance_is_that_of_a_coin():
    assert _shares.by_chance(1, 5) == 2 * (1 + 6) / 2**6
    assert _shares.by_chance(0, 0) == _shares.by_chance(3, 3) == 1.0
    assert _shares.by_chance(0, 10) == 2 / 2**10 == _shares.by_chance(10, 0)


def test_a_drawn_interval_is_near_the_normal_one():
    draw = torch.Generator().manual_seed(0)
    values = torch.randn(400, generator=draw, dtype=torch.float64)
    low, high = _shares.resampled([(value, 1.0) for value in values.tolist()])
    half = 1.96 * values.std().item() / math.sqrt(400)
    assert (low, high) == pytest.approx((values.mean().item() - half, values.mean().item() + half), abs=0.02)
    assert _shares.resampled([(6.0, 3.0)] * 4) == (2.0, 2.0)
