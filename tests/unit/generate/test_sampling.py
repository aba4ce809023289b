"""Draws against shares worked out here, and against transformers' own warpers; nothing of a row depends on others."""

from collections import Counter

import pytest
import torch

from tunesmith.errors import RecipeError
from tunesmith.generate.asked import Sampling
from tunesmith.generate.sampling import Drawing, draw

LOGITS = torch.log(torch.tensor([0.5, 0.1, 0.3, 0.1]))


def tokens(count, logits=LOGITS, **options):
    drawing = Drawing(Sampling(**{"temperature": 1.0, "seed": 0} | options), ())
    return Counter(draw(logits[None], [drawing])[0].id for _ in range(count))


@pytest.mark.parametrize("options", [{}, {"top_k": 4}])
def test_shares_follow_the_temperature(options):
    drawn = tokens(4000, temperature=0.5, **options)
    squared = torch.tensor([0.25, 0.01, 0.09, 0.01])  # temperature 1/2 squares probabilities
    for token, share in enumerate((squared / squared.sum()).tolist()):
        # four standard deviations of a binomial share
        assert abs(drawn[token] / 4000 - share) < 4 * (share * (1 - share) / 4000) ** 0.5


@pytest.mark.parametrize(
    ("options", "kept"),
    [
        ({"top_p": 0.79}, {0, 2}),  # 0.5 < 0.79 <= 0.8
        ({"top_p": 0.49}, {0}),
        ({"top_k": 2}, {0, 2}),
        ({"top_k": 2, "top_p": 0.6}, {0}),  # of the two, the first holds 0.625
        ({"min_p": 0.5}, {0, 2}),
        ({"min_p": 0.7}, {0}),
        ({"temperature": 0.0}, {0}),
        ({"logit_bias": {3: 100}}, {3}),
    ],
)
def test_what_can_be_drawn(options, kept):
    assert set(tokens(500, **options)) == kept


def test_what_is_kept_is_what_transformers_keeps():
    from transformers import LogitsProcessorList
    from transformers.generation import logits_process as theirs

    torch.manual_seed(0)
    for row in torch.randn(20, 3000) * 3:
        for top_k, top_p, min_p in [(50, 0.9, 0.0), (3000, 0.95, 0.01), (2000, 0.999, 0.0), (7, 1.0, 0.1)]:
            chain = [theirs.TemperatureLogitsWarper(0.7), theirs.TopKLogitsWarper(top_k)]
            chain += [theirs.TopPLogitsWarper(top_p)] if top_p < 1 else []
            chain += [theirs.MinPLogitsWarper(min_p)] if min_p else []
            scores = LogitsProcessorList(chain)(torch.tensor([[0]]), row[None])[0]
            shares = torch.softmax(scores.double(), -1).cumsum(-1)
            how = Sampling(temperature=0.7, top_k=top_k, top_p=top_p, min_p=min_p, seed=5)
            got = {draw(row[None], [one])[0].id for one in [Drawing(how, ())] for _ in range(40)}
            assert got <= set(scores.isfinite().nonzero()[:, 0].tolist()) and shares[-1] > 0.99


def test_penalties_are_those_of_transformers_and_openai():
    from transformers.generation import RepetitionPenaltyLogitsProcessor

    row = torch.tensor([2.0, -1.0, 0.5, 3.0])
    drawing = Drawing(Sampling(repetition_penalty=1.5), [0, 1])
    drawing.accept(3)
    ours = row.clone()
    drawing.change(ours)
    assert torch.equal(ours, RepetitionPenaltyLogitsProcessor(1.5)(torch.tensor([[0, 1, 3]]), row[None].clone())[0])
    drawing = Drawing(Sampling(presence_penalty=0.5, frequency_penalty=0.25), [0, 1])
    for token in (3, 3, 2):
        drawing.accept(token)
    ours = row.clone()
    drawing.change(ours)
    assert ours.tolist() == [2.0, -1.0, 0.5 - 0.5 - 0.25, 3.0 - 0.5 - 2 * 0.25]


def test_an_answer_depends_on_no_other():
    torch.manual_seed(1)
    logits = torch.randn(4, 5000)
    hows = [
        Sampling(temperature=1.0, seed=1),
        Sampling(temperature=0.8, top_p=0.99999, seed=2),  # more than are sorted first
        Sampling(),
        Sampling(temperature=0.5, top_k=5, logprobs=3, seed=4),
    ]
    together, alone = [Drawing(one, ()) for one in hows], [Drawing(one, ()) for one in hows]
    for _ in range(20):
        assert draw(logits, together) == [draw(logits[k : k + 1], [one])[0] for k, one in enumerate(alone)]


def test_log_probabilities_are_the_models_own():
    how = Sampling(temperature=0.1, logit_bias={1: 50}, logprobs=2, seed=0)
    (token,) = draw(LOGITS[None], [Drawing(how, ())])
    assert token.id == 1 and token.logprob == pytest.approx(torch.log(torch.tensor(0.1)).item())
    assert [place for place, _ in token.top] == [0, 2]
    assert token.top[0][1] == pytest.approx(torch.log(torch.tensor(0.5)).item())
    (token,) = draw(LOGITS[None], [Drawing(Sampling(logprobs=0), ())])
    assert token.top == () and token.logprob == pytest.approx(torch.log(torch.tensor(0.5)).item())
    assert draw(LOGITS[None], [Drawing(Sampling(), ())])[0].logprob is None


def test_a_seed_decides_and_without_one_each_time_is_another():
    flat = torch.zeros(1, 1000)
    many = [
        [draw(flat, [one])[0].id for _ in range(8)]
        for one in [Drawing(Sampling(temperature=1, seed=s), ()) for s in (1, 1, 2, None, None)]
    ]
    assert many[0] == many[1] != many[2] and many[3] != many[4]


@pytest.mark.parametrize("wrong", [{"top_p": 0}, {"temperature": -1}, {"stop": ("",)}, {"seed": -1}, {"top_q": 1}])
def test_bad_options_name_themselves(wrong):
    with pytest.raises(RecipeError, match=next(iter(wrong))):
        Sampling(**wrong)
