"""Rows to compare or judge: what is dropped has a name, and an objective that they are not for refuses them."""

import pytest

import fixtures_chats as chats
import fixtures_models
from tunesmith.component import find
from tunesmith.data.ledger import Ledger
from tunesmith.data.preview import Preview, branches
from tunesmith.data.refuse import unlearnable
from tunesmith.data.render import EMPTY_ANSWER, EQUAL_ANSWERS, OVERLONG, OVERLONG_PROMPT
from tunesmith.errors import DataError
from tunesmith.explain import choose
from tunesmith.formats.labelled import Labelled
from tunesmith.formats.pairs import Pairs
from tunesmith.formats.ranked import Ranked
from tunesmith.seams import Format, Objective

GOOD = {"prompt": "Why?", "chosen": "Because.", "rejected": "No."}
LONG = "Because. " * 40
OF_PAIRS = ("cpo", "dpo", "orpo", "simpo")


def account(rows, format_, objective="dpo", **data):
    """Why each row is dropped, and the ledger."""
    ledger = Ledger()
    found = chats.render(rows, format_, objective=objective, **data)
    for one in found:
        ledger.add(one)
    return [one.dropped for one in found], ledger.as_dict()


def test_every_pair_that_cannot_be_used_has_its_name():
    rows = [
        GOOD,
        GOOD | {"rejected": "Because."},
        GOOD | {"rejected": ""},
        GOOD | {"chosen": " \n"},
        GOOD | {"prompt": LONG},
        GOOD | {"rejected": LONG},
        GOOD | {"prompt": LONG, "rejected": "Because."},
        GOOD,
    ]
    names = [None, EQUAL_ANSWERS, EMPTY_ANSWER, EMPTY_ANSWER, OVERLONG_PROMPT, OVERLONG, EQUAL_ANSWERS, None]
    dropped, ledger = account(rows, Pairs(), max_tokens=60)
    assert dropped == names
    assert (ledger["rows_read"], ledger["rows_kept"], ledger["rows_refused"]) == (8, 2, 0)
    assert ledger["dropped"] == {
        EQUAL_ANSWERS: {"count": 2, "first": ["rows:2", "rows:7"]},
        EMPTY_ANSWER: {"count": 2, "first": ["rows:3", "rows:4"]},
        OVERLONG_PROMPT: {"count": 1, "first": ["rows:5"]},
        OVERLONG: {"count": 1, "first": ["rows:6"]},
    }
    assert set(ledger["tokens_dropped"]) == set(ledger["dropped"])


def test_a_prompt_of_just_the_limit_is_not_what_is_too_long():
    (one,) = chats.render([GOOD], Pairs(), objective="dpo")
    prompt = int((one.branches[0].weight > 0).argmax())
    assert account([GOOD], Pairs(), max_tokens=prompt)[0] == [OVERLONG]
    assert account([GOOD], Pairs(), max_tokens=prompt - 1)[0] == [OVERLONG_PROMPT]


def test_judged_answers_are_dropped_by_the_same_names():
    rows = [{"prompt": prompt, "completion": said, "label": True} for prompt, said in (("Why?", ""), (LONG, "No."))]
    assert account(rows, Labelled(), "kto", max_tokens=60)[0] == [EMPTY_ANSWER, OVERLONG_PROMPT]
    (short,) = chats.render(rows[1:], Labelled(), objective="kto", max_tokens=60, overlong="truncate")
    assert short.dropped is None and short.truncated and len(short.branches[0]) <= 60


def test_ranked_answers_keep_their_order_and_ties_are_counted_and_said():
    row = {"prompt": "Why?", "answers": ["No.", "Because.", "So."], "scores": [1, 3, 1]}
    kept, ledger = account([row, row | {"scores": [2, 3, 1]}, row | {"scores": [1, 1, 1]}], Ranked())
    assert kept == [None, None, "all answers are ranked the same"]
    assert (ledger["tied_answers"], ledger["samples"]) == (1, 2)
    lines = Ledger.from_dict(ledger).lines()
    assert "1 answers are ranked the same as another one of their row, and left out" in lines
    first, second = chats.render([row, row | {"scores": [2, 3, 1]}], Ranked(), objective="dpo")[:2]
    tokenizer = fixtures_models.tiny_tokenizer()
    said = [tokenizer.decode(tokens.ids[tokens.weight > 0]) for tokens in second.branches]
    assert said == ["Because.<|im_end|>", "No.<|im_end|>", "So.<|im_end|>"]
    assert len(first.branches) == 2 and all(tokens.shared for tokens in second.branches[1:])
    repeated = account([row | {"answers": ["No.", "Because.", "No."], "scores": [1, 3, 2]}], Ranked())
    assert repeated[0] == [EQUAL_ANSWERS]


def test_a_preview_numbers_ranked_answers(tmp_path):
    row = {"prompt": "Why?", "answers": ["Because.", "So.", "No."], "ranks": [1, 2, 3]}
    shown = Preview(
        chats.recipe(chats.write_rows(tmp_path / "a.jsonl", [row]), objective="dpo"), fixtures_models.tiny_tokenizer()
    )
    (one,) = list(shown)
    titles = [title.partition(":")[0] for title, _ in branches(one, shown.branches)]
    assert titles == ["answer 1 of 3", "answer 2 of 3", "answer 3 of 3"]
    pair = [title for title, _ in branches(chats.render([GOOD], Pairs(), objective="dpo")[0], Pairs().branches())]
    assert [title.partition(":")[0] for title in pair] == ["chosen", "rejected"]


@pytest.mark.parametrize("objective", OF_PAIRS)
def test_objectives_of_pairs_learn_from_pairs_and_ranked_rows(objective):
    said = choose(Objective, objective)
    assert unlearnable(Pairs(), said) is None and unlearnable(Ranked(), said) is None
    for name in ("alpaca", "labelled", "classes", "text"):
        problem = unlearnable(find(Format, name)(), said)
        assert f"the objective {objective} learns from chosen and rejected conversations" in problem
        assert "(format: pairs or ranked)" in problem


@pytest.mark.parametrize(
    ("format_", "objective", "said"),
    [
        (
            "alpaca",
            "kto",
            "the objective kto learns whether an answer is good or bad, which the format alpaca does not",
        ),
        ("classes", "kto", "which the format classes does not say: say format: labelled"),
        ("pairs", "kto", "which the objective kto does not learn from: say format: labelled, or objective=cpo or dpo"),
        (
            "labelled",
            "sft",
            "only: good}, to learn from those alone, or objective=classify or kto",
        ),
        ("ranked", "sft", "say format: {type: ranked, only: chosen}, to learn from those alone, or objective=cpo or"),
    ],
)
def test_a_wrong_pairing_is_refused_with_what_fits(format_, objective, said):
    assert said in unlearnable(find(Format, format_)(), choose(Objective, objective))


def test_a_wrong_pairing_is_refused_before_a_row_is_read():
    with pytest.raises(DataError, match=r"^rows:1: the objective dpo learns from .* \(format: pairs or ranked\)"):
        chats.render([{"no such": "columns"}], objective="dpo")
    assert unlearnable(Labelled(), choose(Objective, "kto")) is None
