"""What the report of an export allows."""

import torch

from tunesmith.exports.checks import compare
from tunesmith.types import Report


def test_ties_part_and_clear_choices_do_not():
    report = Report(None, False, 3, 0.01, 0.02, (0.03, 0.04))
    assert report.passed and not report.same_greedy_tokens
    assert not Report(None, False, 3, 0.01, 0.02, (0.03, 0.05)).passed
    assert not Report(None, True, 3, 0.03, 0.02).passed
    assert not Report(None, True, 3, float("nan"), 0.02).passed


def test_lead_is_that_of_the_first_other_token():
    table = torch.zeros(3, 5)
    table[1] = torch.tensor([0.0, 2.0, 1.5, 0.0, 0.0])
    one = compare.Probe("?", (1,), (4, 1, 0), table)
    assert compare._lead(one, (4, 2, 3)) == 0.5
