"""What the report of an export allows."""

import json

import torch

from tunesmith.cli.main import main
from tunesmith.exports.checks import compare
from tunesmith.exports.merged import Merged
from tunesmith.types import Report
from unit.exports.test_exports import make_run


def test_ties_part_and_clear_choices_do_not():
    report = Report(None, False, 3, 0.01, 0.02, (0.03, 0.04))
    assert report.passed and not report.same_greedy_tokens
    assert not Report(None, False, 3, 0.01, 0.02, (0.03, 0.05)).passed
    assert not Report(None, True, 3, 0.03, 0.02).passed
    assert not Report(None, True, 3, float("nan"), 0.02).passed


def test_each_line_is_a_sentence_of_what_was_compared():
    said = Report(None, False, 3, 0.01, 0.02, (0.03, 0.04), divergence=0.0012, notes=("a note",)).lines()
    assert said == (
        "verified on 3 prompts: other greedy tokens at 2 ties than the run",
        "largest difference of a logit 0.01 (allowed 0.02), mean divergence of the next token 0.0012 nats",
        "a note",
    )
    one = Report(None, False, 3, 0.01, 0.02, (0.03,)), Report(None, False, 3, 0.01, 0.02, (0.05,))
    assert [report.lines()[0].partition(": ")[2] for report in one] == [
        "other greedy tokens at 1 tie than the run",
        "other greedy tokens at 1 place than the run",
    ]
    said = Report(None, True, 2, 0.01, 0.02, compared="values").lines()
    assert said == (
        "verified on 2 prompts: the same values as the run",
        "largest difference of a value 0.01 (allowed 0.02)",
    )


def test_an_answer_is_made_token_by_token_only_where_it_may_part():
    table = torch.tensor([[0.0, 2.0, 1.0], [3.0, 0.0, 1.0]])
    run = compare.Reference((compare.Probe("?", (1,), (1, 0), table),), None, torch.float32)
    asked = []

    def said(logits, answer):
        def greedy(prompt):
            asked.append(prompt)
            return answer

        return compare.said_by(greedy, lambda prompt, tokens: logits, run, None, 0.5)

    same = said(table + 0.25, (2, 2))
    assert same.same_greedy_tokens and not asked and same.largest_logit_difference == 0.25
    other = torch.tensor([[0.0, 2.0, 1.0], [0.5, 0.0, 1.0]])
    assert said(other, (1, 2)).partings == (2.0,) and asked == [(1,)]
    assert said(other, (1, 0)).same_greedy_tokens  # read at once it was a tie, and token by token it is none
    assert not said(table * float("nan"), (1, 0)).passed


def test_lead_is_that_of_the_first_other_token():
    table = torch.zeros(3, 5)
    table[1] = torch.tensor([0.0, 2.0, 1.5, 0.0, 0.0])
    one = compare.Probe("?", (1,), (4, 1, 0), table)
    assert compare._lead(one, (4, 2, 3)) == 0.5


def test_what_libraries_print_is_not_in_the_report(tmp_path, monkeypatch, capsys):
    """As torch's exporter of graphs prints its steps on stdout."""
    write = Merged.write

    def prints(self, run, out):
        print("[torch.onnx] Obtain model graph...")
        return write(self, run, out)

    monkeypatch.setattr(Merged, "write", prints)
    run = make_run(tmp_path, prompts=["What is two and three?"])
    assert main(["export", str(run), str(tmp_path / "out"), "--json"]) == 0
    printed = capsys.readouterr()
    assert json.loads(printed.out)["passed"] and "[torch.onnx]" in printed.err
