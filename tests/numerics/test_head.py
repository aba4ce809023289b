"""Log-probabilities and entropies in blocks equal those of whole logits in float64, values and every gradient."""

import itertools

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from tunesmith.engine.elementwise import PLAIN, compiled
from tunesmith.engine.head import Means, Shaping, log_probabilities

N, D, V, R = 9, 4, 37, 2
SHAPINGS = [Shaping(), Shaping(0.5), Shaping(2.0, 3.0)]


class Case:
    """A random head in float64, and what whole logits say of it."""

    def __init__(self, shaping, with_bias=True, with_update=True):
        self.generator = torch.Generator().manual_seed(3)
        self.pairs = [(self.leaf(N, D), self.leaf(V, D))] + (
            [(self.leaf(N, R), self.leaf(V, R))] if with_update else []
        )
        self.bias = self.leaf(V) if with_bias else None
        self.target = torch.randint(0, V, (N,), generator=self.generator)
        raw = sum(x @ w.T for x, w in self.pairs) * shaping.scale + (
            0 if self.bias is None else self.bias * shaping.scale
        )
        logits = raw if shaping.cap is None else shaping.cap * torch.tanh(raw / shaping.cap)
        self.logps = logits.log_softmax(-1).gather(-1, self.target[:, None])[:, 0]
        self.entropies = torch.special.entr(logits.softmax(-1)).sum(-1)
        self.inputs = [one for pair in self.pairs for one in pair] + ([self.bias] if with_bias else [])

    def leaf(self, *shape):
        return torch.randn(shape, generator=self.generator, dtype=torch.float64).requires_grad_()

    def random(self):
        return torch.randn(N, generator=self.generator, dtype=torch.float64)


def close(found, expected):
    for one, other in itertools.zip_longest(found, expected):
        torch.testing.assert_close(one.double(), other, rtol=2e-5, atol=1e-5)


def means(shaping, tokens=4, logits=4 * 16, kept=64 * V, ops=PLAIN):
    return Means(shaping, ops, tokens, logits, kept)


@pytest.mark.parametrize("shaping", SHAPINGS)
@pytest.mark.parametrize("with_bias", [True, False])
@pytest.mark.parametrize("with_update", [True, False])
def test_values_and_gradients(shaping, with_bias, with_update):
    case = Case(shaping, with_bias, with_update)
    gradient = case.random()
    found, none = log_probabilities(case.pairs, case.bias, case.target, means(shaping))
    assert none is None and found.dtype == torch.float32
    close([found], [case.logps])
    close(
        torch.autograd.grad(found, case.inputs, gradient.float()),
        torch.autograd.grad(case.logps, case.inputs, gradient),
    )


@pytest.mark.parametrize("shaping", SHAPINGS)
@pytest.mark.parametrize("trained", ["all", "inputs"])
def test_entropies_and_their_gradients(shaping, trained):
    case = Case(shaping)
    if trained == "inputs":
        for tensor in [pair[1] for pair in case.pairs] + [case.bias]:
            tensor.requires_grad_(False)
        case.inputs = [pair[0] for pair in case.pairs]
    one, other = case.random(), case.random()
    logps, entropies = log_probabilities(case.pairs, case.bias, case.target, means(shaping), entropy=True)
    close([logps, entropies], [case.logps, case.entropies])
    total = (logps * one.float()).sum() + (entropies * other.float()).sum()
    expected = (case.logps * one).sum() + (case.entropies * other).sum()
    close(torch.autograd.grad(total, case.inputs), torch.autograd.grad(expected, case.inputs))


@pytest.mark.parametrize("shaping", SHAPINGS)
def test_a_loss_that_is_known_beforehand_gives_the_same_in_one_pass(shaping):
    case = Case(shaping, with_update=False)  # the counter does not count products that are added in place
    known = case.random().abs()
    known[2] = 0
    with FlopCounterMode(display=False) as counter:
        found, _ = log_probabilities(case.pairs, case.bias, case.target, means(shaping), known.float())
        given = torch.autograd.grad((found * known.float()).sum() * -0.37, case.inputs)
    assert counter.get_total_flops() == 3 * 2 * N * D * V
    close(given, torch.autograd.grad((case.logps * known).sum() * -0.37, case.inputs))


def test_what_is_frozen_costs_nothing():
    case = Case(Shaping(), with_update=False)
    (hidden, weight), bias = case.pairs[0], case.bias
    for trained, products in (((hidden,), 2), ((hidden, weight), 4), ((weight,), 3), ((bias,), 2), ((), 1)):
        for tensor in (hidden, weight, bias):
            tensor.requires_grad_(any(tensor is one for one in trained))
        with FlopCounterMode(display=False) as counter:
            found, _ = log_probabilities([(hidden, weight)], bias, case.target, means(Shaping()))
            if trained:
                given = torch.autograd.grad(found.sum(), trained)
        assert counter.get_total_flops() == products * 2 * N * D * V, trained
        if trained:
            close(given, given_by_hand(trained, hidden, weight, bias, case.target))


def given_by_hand(trained, hidden, weight, bias, target):
    logps = torch.nn.functional.linear(hidden, weight, bias).log_softmax(-1).gather(-1, target[:, None])
    return torch.autograd.grad(logps.sum(), trained)


@pytest.mark.filterwarnings("ignore:.torch.jit.script_method:DeprecationWarning")  # torch 2.13's own, in inductor
def test_compiled_blocks_give_the_same():
    case = Case(Shaping(2.0, 3.0))
    gradient = case.random()
    found, _ = log_probabilities(case.pairs, case.bias, case.target, means(Shaping(2.0, 3.0), ops=compiled()))
    close([found], [case.logps])
    close(
        torch.autograd.grad(found, case.inputs, gradient.float()),
        torch.autograd.grad(case.logps, case.inputs, gradient),
    )


def test_bfloat16_keeps_a_confident_words_gradient_small():
    hidden = torch.full((1, 8), 2.0, dtype=torch.bfloat16).requires_grad_()
    weight = torch.zeros(64, 8, dtype=torch.bfloat16)
    weight[5] = 0.75  # a logit of 12 beside zeros: p = 0.99961
    found, _ = log_probabilities([(hidden, weight)], None, torch.tensor([5]), Means())
    (gradient,) = torch.autograd.grad(found, hidden)
    share = torch.tensor([12.0, *[0.0] * 63], dtype=torch.float64).softmax(-1)[0]
    torch.testing.assert_close(
        gradient.double(), torch.full((1, 8), 0.75 * (1 - share.item())).double(), rtol=0.01, atol=1e-7
    )


@pytest.mark.parametrize("trained", [False, True])
def test_memory_grows_with_tokens_times_a_block_and_not_with_the_vocabulary(trained):
    """The most that a forward pass holds beyond its inputs, counted by the bytes of living tensors."""

    def most(tokens, vocabulary):
        hidden = torch.randn(tokens, 8, requires_grad=True)
        weight = torch.randn(vocabulary, 8, requires_grad=trained)
        target = torch.zeros(tokens, dtype=torch.long)
        with Living(hidden, weight) as living:
            log_probabilities([(hidden, weight)], None, target, Means(tokens=64, logits=64 * 128))
        return living.most

    block = 64 * 128 * 4  # bytes
    by_tokens = most(64 * 16, 4096) - most(64 * 8, 4096)
    assert by_tokens < 64 * 8 * 4 * 40, "some columns for each token, and no logits"
    assert abs(most(256, 32_768) - most(256, 4096)) < 2 * block
    assert most(256, 32_768) < 32_768 * 256 * 4 / 20, "a twentieth of the whole logits"


class Living(torch.utils._python_dispatch.TorchDispatchMode):
    """The bytes of the tensors that a block makes and that are alive, and the most that there were."""

    def __init__(self, *given):
        super().__init__()
        self.now = self.most = 0
        self.known = {one.untyped_storage()._cdata: 0 for one in given}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        import weakref

        found = func(*args, **(kwargs or {}))
        for tensor in torch.utils._pytree.tree_leaves(found):
            if isinstance(tensor, torch.Tensor):
                storage = tensor.untyped_storage()
                if storage._cdata not in self.known:
                    self.known[storage._cdata] = storage.nbytes()
                    self.now += storage.nbytes()
                    self.most = max(self.most, self.now)
                    weakref.finalize(storage, self._gone, storage._cdata)
        return found

    def _gone(self, key):
        self.now -= self.known.pop(key, 0)


def test_no_tokens_is_no_log_probability():
    hidden, weight = torch.randn(0, D, requires_grad=True), torch.randn(V, D)
    found, _ = log_probabilities([(hidden, weight)], None, torch.zeros(0, dtype=torch.long), Means())
    assert found.shape == (0,)
    found.sum().backward()
