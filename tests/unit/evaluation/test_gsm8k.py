"""Solutions are what transformers generates from prompts written out here, and the number they end with is compared."""

import json
import re
from decimal import Decimal

import pytest
import torch

import fixtures_models
from tunesmith.errors import DataError, ModelError
from tunesmith.evaluation.gsm8k import Gsm8k, answered
from tunesmith.generate.engine import Reply
from tunesmith.generate.subject import Subject

ROWS = [
    {"question": f"What is {at} and 3?", "answer": f"{at} and 3 is <<{at}+3={at + 3}>>{at + 3}.\n#### {at + 3}"}
    for at in range(3)
]
SHOWN = [
    {"question": "Two cats and two cats?", "answer": "2 + 2 = 4\n#### 4"},
    {"question": "One river?", "answer": "1\n#### 1"},
]
SAID = "Solve the problem step by step. End with a line of #### and the result alone.\n\n"


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    root = tmp_path_factory.mktemp("sums")
    for name, rows in (("test", ROWS), ("train", SHOWN)):
        (root / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return root


@pytest.fixture(scope="module")
def subject(tmp_path_factory):
    folder = fixtures_models.save_model(tmp_path_factory.mktemp("subject") / "model")
    roomy = Subject.open(str(folder), "cpu", "float32")
    roomy.model.config.max_position_embeddings = 4096
    return roomy


def generated(ids, tokens):
    made = fixtures_models.tiny_model().generate(torch.tensor([ids]), max_new_tokens=tokens, do_sample=False)
    return fixtures_models.tiny_tokenizer().decode(made[0, len(ids) :], skip_special_tokens=True)


def task(folder, **options):
    return Gsm8k(
        **{"data": str(folder / "test.jsonl"), "shots": str(folder / "train.jsonl"), "max_new_tokens": 8} | options
    )


@pytest.mark.parametrize("shots", [0, 2])
@pytest.mark.parametrize("chat", [None, False])
def test_solutions_are_those_of_transformers(subject, data, chat, shots):
    found = task(data, num_shots=shots, chat=chat).run(subject)
    tokenizer = fixtures_models.tiny_tokenizer()
    for row, item in zip(ROWS, found.items, strict=True):
        if chat is False:
            shown = "".join(f"Question: {one['question']}\nAnswer: {one['answer']}\n\n" for one in SHOWN[:shots])
            ids = tokenizer(f"{SAID}{shown}Question: {row['question']}\nAnswer:")["input_ids"]
        else:
            turns = [
                (role, one[key])
                for one in SHOWN[:shots]
                for role, key in (("user", "question"), ("assistant", "answer"))
            ]
            turns.append(("user", row["question"]))
            turns[0] = ("user", SAID + turns[0][1])
            messages = [{"role": role, "content": text} for role, text in turns]
            ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
        assert item["answer"] == generated(ids, 8) and item["shots"] == shots
    assert found.metrics["questions"] == 3


class Solver:
    """Answers as it is told to, and keeps the prompts."""

    context_tokens = 60
    begin = ()
    tokenizer = type("Tokenizer", (), {"chat_template": None})

    def __init__(self, *answers):
        self.answers = answers

    def ids(self, text):
        return text.split()

    def replies(self, prompts, max_new_tokens, stop):
        self.prompts, self.stop = prompts, stop
        return (Reply(text, "length" if text.endswith("...") else "stop") for text in self.answers)


def test_what_is_counted(data):
    solver = Solver("#### 3 or 4", "It makes 1 + 3 = 4", "no idea ...")
    found = task(data, num_shots=1).run(solver)
    assert [item["right"] for item in found.items] == [True, True, False]
    assert found.metrics == {"accuracy": 2 / 3, "accuracy_behind_####": 1 / 3, "questions": 3, "cut_off": 1}
    assert found.intervals["accuracy"][0] < 2 / 3 < found.intervals["accuracy"][1]
    assert [item["result"] for item in found.items] == ["3", "4", None] and solver.stop == ("Question:",)


def test_a_short_context_gets_fewer_examples(data):
    solver = Solver("", "", "")
    found = task(data, num_shots=2, max_new_tokens=20).run(solver)
    assert {item["shots"] for item in found.items} == {1} and found.metrics["questions_with_fewer_shots"] == 3
    assert max(map(len, solver.prompts)) + 20 <= 60


@pytest.mark.parametrize(
    ("text", "number", "behind"),
    [
        ("so\n#### 1,234", "1234", True),
        ("#### $-5.50 then 7\nAnd 8\n#### 9", "-5.5", True),
        ("#### none, of 12", "12", True),
        ("####\nIt is 12.", "12", False),
        ("She has 10-3", "3", False),
        ("It falls to -3", "-3", False),
        ("3, 4 and 5,", "5", False),
        ("\\boxed{72}", "72", False),
        ("12,345.60 dollars", "12345.6", False),
        ("none", None, False),
    ],
)
def test_which_number_is_the_answer(text, number, behind):
    assert answered(text) == (None if number is None else Decimal(number), behind)


def test_the_examples_of_the_package_are_right():
    """Each line `a op b = c` of their solutions holds, and the last c is the result."""
    shown = list(Gsm8k(data="", num_shots=8)._shown())
    assert len({one.question for one in shown}) == 8
    for one in shown:
        steps = re.findall(r"([\d+*/ -]+?) = \$?(\d+(?:\.\d+)?)", one.solution)
        assert steps and all(Decimal(eval(sum_.strip())) == Decimal(said) for sum_, said in steps), one.question
        assert Decimal(steps[-1][1]) == one.result


@pytest.mark.parametrize(
    ("rows", "options", "problem"),
    [
        ([{"question": "Why?", "answer": "So."}], {}, r"rows.jsonl:1: column 'answer' must end in a line of ####"),
        ([{"question": "Why?", "answer": "So.\n#### yes"}], {}, r"rows.jsonl:1: the result of the answer is no number"),
        (ROWS, {"num_shots": 3}, r"train.jsonl has 2 examples: num_shots can be no more"),
        (ROWS, {"num_shots": 9, "shots": None}, r"this package has 8 examples: num_shots can be no more"),
    ],
)
def test_what_is_wrong_is_said(data, tmp_path, rows, options, problem):
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    with pytest.raises(DataError, match=problem):
        task(data, **{"num_shots": 0, "data": str(tmp_path / "rows.jsonl"), **options}).digest()


def test_a_template_that_is_not_there_is_refused(tmp_path, data):
    tokenizer = fixtures_models.tiny_tokenizer(chat_template=None)
    plain = Subject.open(str(fixtures_models.save_model(tmp_path / "m", tokenizer=tokenizer)), "cpu", "float32")
    with pytest.raises(ModelError, match="has no chat template"):
        task(data, num_shots=0, chat=True).run(plain)
    assert task(data, num_shots=0).run(plain).metrics["questions"] == 3


def test_the_digest_is_of_what_is_read(data):
    one = task(data, num_shots=1)
    assert one.digest() == task(data, num_shots=1).digest()
    assert len({one.digest(), task(data, num_shots=2).digest(), task(data, num_shots=1, num_samples=2).digest()}) == 3
