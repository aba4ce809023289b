"""Sums in words: the last line stays, and the calculator's sums may go."""

import pytest

from tunesmith.errors import DataError
from tunesmith.formats.gsm8k import Gsm8k

ANSWER = "Ann has 3 * 4 = <<3*4=12>>12.\nShe has <<12-2=10>>10 left.\n#### 1,000"


def said(answer: str, **options: object) -> object:
    return Gsm8k(**options).read({"question": "q", "answer": answer}).branches[0][-1].content


def test_sums_are_kept_or_dropped_and_the_last_line_stays():
    assert said(ANSWER) == ANSWER
    assert said(ANSWER, calculator="drop") == "Ann has 3 * 4 = 12.\nShe has 10 left.\n#### 1,000"


@pytest.mark.parametrize("answer", [ANSWER, "#### 4", "x\n#### 4\n", "x\n#### -4.5 "])
def test_an_answer_ends_in_its_result(answer):
    assert Gsm8k.fits({"question": "q", "answer": answer}) and said(answer) == answer


@pytest.mark.parametrize("answer", ["4", "#### 4\nand more", "x #### 4", "x\n####4", "x\n#### ", ""])
def test_another_answer_does_not_fit_and_is_refused(answer):
    assert not Gsm8k.fits({"question": "q", "answer": answer})
    with pytest.raises(DataError, match="column 'answer' must end in a line of #### and the result") as caught:
        said(answer)
    assert caught.value.reason == "column 'answer' must end in a line of #### and the result and ends in text"
