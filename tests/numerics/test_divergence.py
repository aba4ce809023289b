"""Divergences in blocks equal those of whole logits in float64, values and every gradient."""

import math

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from numerics.test_head import Living
from tunesmith.engine.divergence import AllWords, TopWords, divergences
from tunesmith.engine.elementwise import PLAIN, compiled
from tunesmith.engine.head import Means, Shaping
from tunesmith.types import Divergence

N, D, E, V, R = 150, 4, 6, 53, 2  # E features enter the teacher's head; 150 tokens are three at a time of 64
KINDS = [Divergence("forward_kl"), Divergence("reverse_kl"), Divergence("jsd", 0.5), Divergence("jsd", 0.1)]
PLAINLY = (Shaping(), Shaping())
SHAPINGS = [PLAINLY, (Shaping(0.5), Shaping(1.5)), (Shaping(2.0, 3.0), Shaping(1.0, 5.0))]


def named(how):
    return f"{how.kind} {how.weight}"


class Case:
    """A student's and a teacher's head in float64, and their whole logits."""

    def __init__(self, shapings=PLAINLY, with_bias=True, with_update=True, tokens=N, words=V, spare=0):
        self.generator = torch.Generator().manual_seed(5)
        self.pairs = [(self.leaf(tokens, D), self.leaf(words, D))]
        if with_update:
            self.pairs.append((self.leaf(tokens, R), self.leaf(words, R)))
        self.bias = self.leaf(words) if with_bias else None
        self.other = [(self.leaf(tokens, E).detach(), self.leaf(words + spare, E).detach())]
        self.shapings, self.words = shapings, words
        self.inputs = [one for pair in self.pairs for one in pair] + ([self.bias] if with_bias else [])
        raw = sum(x @ w.T for x, w in self.pairs) + (0 if self.bias is None else self.bias)
        self.ours = whole(raw, shapings[0])
        self.theirs = whole(self.other[0][0] @ self.other[0][1][:words].T, shapings[1])

    def leaf(self, *shape):
        return torch.randn(shape, generator=self.generator, dtype=torch.float64).requires_grad_()

    def told(self, how, means=None):
        means = means or sized(self.shapings[1])
        return AllWords.of(self.other, None, means, self.words, how.temperature)

    def measured(self, how, means=None):
        told = self.told(how, means and sized(self.shapings[1], means.tokens, means.logits, means.kept))
        told = told if how.top_k is None else told.top(how.top_k)
        return divergences(self.pairs, self.bias, means or sized(self.shapings[0]), told, how)


def whole(raw, shaping):
    raw = raw * shaping.scale
    return raw if shaping.cap is None else shaping.cap * torch.tanh(raw / shaping.cap)


def sized(shaping, tokens=4, logits=4 * 16, kept=64 * V, ops=PLAIN):
    return Means(shaping, ops, tokens, logits, kept)


def kl(one, other):
    return (one * (one.log() - other.log())).sum(-1)


def expected(case, how):
    """By the definitions, on probabilities."""
    p, q = ((logits / how.temperature).softmax(-1) for logits in (case.theirs, case.ours))
    if how.top_k is not None:
        chosen = p.topk(how.top_k).indices
        p, q = (torch.cat([x.gather(1, chosen), 1 - x.gather(1, chosen).sum(-1, keepdim=True)], 1) for x in (p, q))
    if how.kind == "jsd":
        mixed = how.weight * p + (1 - how.weight) * q
        return how.weight * kl(p, mixed) + (1 - how.weight) * kl(q, mixed)
    return kl(p, q) if how.kind == "forward_kl" else kl(q, p)


def agrees(case, how, means=None):
    gradient = torch.randn(len(case.ours), generator=case.generator, dtype=torch.float64)
    found, right = case.measured(how, means), expected(case, how)
    assert found.dtype == torch.float32
    close([found], [right])
    close(
        torch.autograd.grad(found, case.inputs, gradient.float()),
        torch.autograd.grad(right, case.inputs, gradient, retain_graph=True),
    )


def close(found, right):
    """To float32's rounding of sums over all words."""
    for one, other in zip(found, right, strict=True):
        torch.testing.assert_close(one.double(), other, rtol=1e-4, atol=5e-5)


def variant(how, **changes):
    return Divergence(**{name: getattr(how, name) for name in how.__slots__} | changes)


@pytest.mark.parametrize("how", KINDS, ids=named)
@pytest.mark.parametrize("shapings", SHAPINGS)
@pytest.mark.parametrize("temperature", [1.0, 2.5])
@pytest.mark.parametrize("top_k", [None, 7])
def test_values_and_gradients(how, shapings, temperature, top_k):
    agrees(Case(shapings), variant(how, temperature=temperature, top_k=top_k))


@pytest.mark.parametrize("how", KINDS, ids=named)
@pytest.mark.parametrize("top_k", [None, 7])
@pytest.mark.parametrize("trained", ["inputs", "one weight"])
def test_what_is_frozen_has_no_gradient_and_changes_none(how, top_k, trained):
    case = Case()
    kept = [x for x, _ in case.pairs] if trained == "inputs" else [case.pairs[1][1]]
    for one in case.inputs:
        one.requires_grad_(any(one is other for other in kept))
    case.inputs = kept
    case.ours = sum(x @ w.T for x, w in case.pairs) + case.bias
    agrees(case, variant(how, top_k=top_k))


@pytest.mark.parametrize("top_k", [None, 1, 7, V - 1])
def test_the_size_of_blocks_changes_nothing(top_k):
    case, how = Case(SHAPINGS[2]), Divergence("jsd", 0.3, 2.0, top_k)
    for tokens, logits, kept in ((4, 64, 1), (64, 64 * 17, 64 * V), (1000, 1000 * V, 1 << 26)):
        agrees(case, how, sized(case.shapings[0], tokens, logits, kept))


def test_words_that_one_head_lacks_are_left_out():
    """The rows that pad a head to a round number are no words."""
    case = Case(spare=11)
    agrees(case, Divergence("reverse_kl"))
    agrees(case, Divergence("forward_kl", top_k=5))


def test_a_small_one_by_hand():
    """A teacher of 1/2, 1/4, 1/4 and a student of 1/4, 1/4, 1/2: KL(teacher | student) = 1/2 ln 2 - 1/4 ln 2."""
    weight = torch.eye(3)
    student, teacher = (torch.tensor([one]).log() for one in ([0.25, 0.25, 0.5], [0.5, 0.25, 0.25]))

    def found(how):
        told = AllWords.of([(teacher, weight)], None, Means(), 3, how.temperature)
        told = told.top(how.top_k) if how.top_k else told
        return divergences([(student, weight)], None, Means(), told, how).item()

    assert found(Divergence("forward_kl")) == pytest.approx(0.25 * math.log(2))
    mixed = 0.5 * (0.5 * math.log(0.5 / 0.375) + 0.25 * math.log(0.25 / 0.375))
    assert found(Divergence("jsd")) == pytest.approx(2 * mixed)
    by_one = 0.5 * math.log(0.5 / 0.25) + 0.5 * math.log(0.5 / 0.75)  # the first word, and the other two as one
    assert found(Divergence("forward_kl", top_k=1)) == pytest.approx(by_one)
    p, q = (torch.tensor(one).sqrt() for one in ([0.5, 0.25, 0.25], [0.25, 0.25, 0.5]))  # at temperature 2
    p, q = p / p.sum(), q / q.sum()
    assert found(Divergence("reverse_kl", temperature=2.0)) == pytest.approx((q * (q / p).log()).sum().item())


@pytest.mark.parametrize("how", KINDS, ids=named)
@pytest.mark.parametrize("top_k", [None, 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_student_that_is_its_teacher_has_nothing_to_learn(how, top_k, dtype):
    generator = torch.Generator().manual_seed(0)
    hidden, weight = (torch.randn(shape, generator=generator).to(dtype) for shape in ((N, 16), (V, 16)))
    hidden.requires_grad_()
    how = variant(how, temperature=1.7, top_k=top_k)
    told = AllWords.of([(hidden.detach(), weight)], None, Means(), V, how.temperature)
    found = divergences([(hidden, weight)], None, Means(), told.top(top_k) if top_k else told, how)
    (gradient,) = torch.autograd.grad(found.sum(), hidden)
    assert not found.any() and not gradient.any()


def test_the_likeliest_words_are_those_of_the_whole_logits():
    case = Case(SHAPINGS[2])
    found = case.told(Divergence("forward_kl", temperature=3.0)).top(9)
    logps = (case.theirs / 3).log_softmax(-1)
    torch.testing.assert_close(found.words, logps.topk(9).indices)
    torch.testing.assert_close(found.logps[:, :9].double(), logps.topk(9).values, rtol=1e-5, atol=1e-5)
    rest = logps.scatter(1, found.words, -torch.inf).logsumexp(-1)
    torch.testing.assert_close(found.logps[:, 9].double(), rest, rtol=1e-5, atol=1e-5)


def test_a_confident_teacher_and_student_keep_what_little_is_left():
    """Of a word with 1 - p = e^-30, which float32 does not tell from 1, the others' share is still known."""
    weight = torch.eye(3)
    student, teacher = torch.tensor([[40.0, 10.0, 9.0]], requires_grad=True), torch.tensor([[30.0, 0.0, 0.0]])
    told = AllWords.of([(teacher, weight)], None, Means(), 3, 1.0).top(1)
    assert told.logps[0, 1].item() == pytest.approx(-30 + math.log(2))
    found = divergences([(student, weight)], None, Means(), told, Divergence("forward_kl", top_k=1))
    assert found.isfinite().all() and torch.autograd.grad(found.sum(), student)[0].isfinite().all()


def test_products_with_the_heads_are_the_fewest():
    """A frozen head: both models' logits and one gradient. A trained one: all logits again, and two."""
    case = Case(with_bias=False, with_update=False)
    hidden, weight = case.pairs[0]
    for trained, ours, theirs in (((hidden,), 2, 1), ((hidden, weight), 4, 2), ((), 1, 1)):
        for tensor in (hidden, weight):
            tensor.requires_grad_(any(tensor is one for one in trained))
        with FlopCounterMode(display=False) as counter:
            found = case.measured(Divergence("reverse_kl"))
            if trained:
                torch.autograd.grad(found.sum(), trained)
        assert counter.get_total_flops() == 2 * N * V * (ours * D + theirs * E), trained


@pytest.mark.filterwarnings("ignore:.torch.jit.script_method:DeprecationWarning")  # torch 2.13's own, in inductor
@pytest.mark.parametrize("top_k", [None, 4])
def test_compiled_blocks_give_the_same(top_k):
    case = Case(SHAPINGS[2])
    agrees(case, Divergence("jsd", 0.3, top_k=top_k), sized(case.shapings[0], ops=compiled()))


@pytest.mark.parametrize("trained", [False, True])
@pytest.mark.parametrize("top_k", [None, 8])
def test_memory_grows_with_tokens_and_not_with_tokens_times_words(trained, top_k):
    """The most that forward and backward passes hold beyond their inputs and the gradient of the head."""
    kept = 64 * 2 * 2048

    def most(tokens, words):
        hidden, weight = torch.randn(tokens, 8, requires_grad=True), torch.randn(words, 8, requires_grad=trained)
        theirs, others = torch.randn(tokens, 8), torch.randn(words, 8)
        means = Means(tokens=64, logits=64 * 128, kept=kept)
        how = Divergence("jsd", top_k=top_k)
        with Living(hidden, weight, theirs, others) as living:
            told = AllWords.of([(theirs, others)], None, means, words, 1.0)
            told = told.top(top_k) if top_k else told
            divergences([(hidden, weight)], None, means, told, how).sum().backward()
        return living.most

    by_tokens = most(64 * 16, 2048) - most(64 * 8, 2048)
    assert by_tokens < 64 * 8 * 4 * 100, "some columns for each token, and no logits"
    assert most(64 * 16, 2048) < 64 * 16 * 2048 * 4 / 3, "a third of one model's whole logits"


def test_no_tokens_is_no_divergence():
    case = Case(tokens=0)
    for how in (Divergence("jsd"), Divergence("jsd", top_k=2)):
        found = case.measured(how)
        assert found.shape == (0,)
        found.sum().backward()


def test_without_gradients_nothing_is_made_for_them():
    case = Case(with_bias=False, with_update=False)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        case.measured(Divergence("forward_kl"))
    assert counter.get_total_flops() == 2 * N * V * (D + E)
    assert isinstance(case.told(Divergence("jsd")).top(2), TopWords)
