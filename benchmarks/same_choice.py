"""A subject of CMMLU by tunesmith and by plain transformers: the log-probability of each letter, and the score.

    python benchmarks/same_choice.py --model DIR --data cmmlu --subject logical --shots 0

The prompts of the other side are written here from the CSV files, and read one by one by transformers' own model, with
its own attention and whole logits. Exits with 1 when a log-probability differs by more than what is allowed, or an
answer does.
"""

import csv
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

import measure
from tunesmith.engine.model import resolve_path

ALLOWED = 1e-3
LETTERS = "ABCD"
COLUMNS = ("what", "transformers", "tunesmith")


def main() -> None:
    """Compare, and print the table."""
    parser = measure.parser(__doc__)
    parser.add_argument("--subject", default="logical", help="name of its files")
    parser.add_argument("--shots", type=int, default=0, help="questions shown with their answers")
    parser.add_argument("--questions", type=int, help="the first ones; without it, all")
    options = parser.parse_args()
    options.model = resolve_path(options.model)
    from tunesmith.evaluation.cmmlu import Cmmlu
    from tunesmith.generate.subject import Subject

    task = Cmmlu(data=options.data, subjects=(options.subject,), num_shots=options.shots, num_samples=options.questions)
    (exam,) = task.exams()
    ours = task.run(Subject.open(options.model, "cpu", "float32")).items
    theirs = list(letters(options, exam.title))
    most = max(
        abs(one - other)
        for item, (logps, _) in zip(ours, theirs, strict=True)
        for one, other in zip(item["logps"], logps, strict=True)
    )
    answers = [LETTERS[logps.index(max(logps))] for logps, _ in theirs]
    right = sum(answer == expected for answer, (_, expected) in zip(answers, theirs, strict=True))
    rows = [
        ("questions", len(theirs), len(ours)),
        ("right", right, sum(item["right"] for item in ours)),
        ("other answers", None, sum(a != item["answer"] for a, item in zip(answers, ours, strict=True))),
        ("largest difference of a log-probability", None, f"{most:.1e}"),
    ]
    title = f"{options.subject} of CMMLU, {options.shots} shown, in float32, {Path(options.model).name}"
    measure.report(title, COLUMNS, rows, options.json)
    if rows[2][2] or most > ALLOWED:
        sys.exit(f"a log-probability differs by more than {ALLOWED}, or an answer does")


def letters(options: Any, title: str) -> Iterator[tuple[list[float], str]]:
    """The log-probability of each letter behind each question, and the right one, by plain transformers."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(options.model, dtype=torch.float32).eval()
    tokenizer: Any = AutoTokenizer.from_pretrained(options.model)
    shown = [f"{written(row)}{row['Answer']}\n\n" for row in rows_of(options, "dev")[: options.shots]]
    opening = f"以下是关于{title}的单项选择题，请直接给出正确答案的选项。\n\n{''.join(shown)}"
    for row in rows_of(options, "test")[: options.questions]:
        before = tokenizer(opening + written(row))["input_ids"]
        whole = [tokenizer(opening + written(row) + letter)["input_ids"] for letter in LETTERS]
        assert all(one[:-1] == before for one in whole), "a letter is a token of its own here"
        with torch.no_grad():
            logits = model(torch.tensor([before])).logits[0, -1]  # [V]
        logps = logits.double().log_softmax(-1)
        yield [logps[one[-1]].item() for one in whole], row["Answer"]


def rows_of(options: Any, split: str) -> list[dict[str, str]]:
    """The rows of a file of the subject."""
    with (Path(options.data) / split / f"{options.subject}.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def written(row: dict[str, str]) -> str:
    """A question as CMMLU's own prompts have it."""
    listed = "".join(f"\n{letter}. {row[letter]}" for letter in LETTERS)
    return f"题目：{row['Question'].strip()}{listed}\n答案是："


if __name__ == "__main__":
    main()
