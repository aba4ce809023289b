"""Every rule of our own against its paper's equations, written again here in float64."""

import math
import sys

import pytest
import torch

from tunesmith.component import find
from tunesmith.errors import RecipeError
from tunesmith.optimizers import _low_rank
from tunesmith.optimizers._ademamix import slow_decay
from tunesmith.seams import Optimizer

RATE, DECAY, STEPS = 1e-2, 0.1, 5
B1, B2, EPS = 0.9, 0.999, 1e-8


class Net(torch.nn.Module):
    """A tall and a wide matrix in layers, a table before and a vector after them, in float64."""

    def __init__(self):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        shapes = {"embed": (7, 6), "tall": (8, 5), "wide": (4, 9), "norm": (6,)}
        made = {
            name: torch.nn.Parameter(torch.randn(shape, generator=generator, dtype=torch.float64))
            for name, shape in shapes.items()
        }
        self.embed, self.norm = made["embed"], made["norm"]
        self.layers = torch.nn.ModuleList(torch.nn.ParameterDict({name: made[name]}) for name in ("tall", "wide"))


def gradient(step, shape):
    generator = torch.Generator().manual_seed(100 * step + sum(shape))
    return torch.randn(shape, generator=generator, dtype=torch.float64) * 10 ** ((step % 3) - 1)


def stepped(name, steps=STEPS, **options):
    """Every parameter by its name after some steps, and the optimizer."""
    net = Net()
    component = find(Optimizer, name)(learning_rate=RATE, weight_decay=DECAY, **options)
    optimizer = component.build(net)
    companion = component.companion(optimizer, net, STEPS)
    for step in range(1, steps + 1):
        for parameter in net.parameters():
            parameter.grad = gradient(step, parameter.shape) if parameter.requires_grad else None
        optimizer.step()
        if companion is not None:
            companion.stepped(step)
    return {name: one.detach() for name, one in net.named_parameters()}, optimizer, companion


def expected(rule, steps=STEPS):
    """Every parameter by its name after a rule (weight, decay, steps and gradients) was applied to it alone."""
    return {
        name: rule(one.detach().clone(), DECAY if one.ndim > 1 else 0.0, steps, number)
        for number, (name, one) in enumerate(Net().named_parameters())
    }


def same(found, wanted, tolerance=1e-12):
    assert found.keys() == wanted.keys()
    for name, one in wanted.items():
        assert torch.allclose(found[name], one, rtol=0, atol=tolerance), (name, (found[name] - one).abs().max())


class Adam:
    """Adam's direction, step after step."""

    def __init__(self):
        self.m = self.v = 0.0
        self.t = 0

    def __call__(self, g):
        self.t += 1
        self.m = B1 * self.m + (1 - B1) * g
        self.v = B2 * self.v + (1 - B2) * g**2
        return (self.m / (1 - B1**self.t)) / ((self.v / (1 - B2**self.t)) ** 0.5 + EPS)


def adamw(w, decay, steps, number=0):
    adam = Adam()
    for t in range(1, steps + 1):
        w = w - RATE * decay * w - RATE * adam(gradient(t, w.shape))
    return w


def test_lion():
    def rule(w, decay, steps, number):
        m = torch.zeros_like(w)
        for t in range(1, steps + 1):
            g = gradient(t, w.shape)
            w = w - RATE * (torch.sign(0.9 * m + 0.1 * g) + decay * w)
            m = 0.99 * m + 0.01 * g
        return w

    same(stepped("lion")[0], expected(rule))


def test_lomo():
    def rule(w, decay, steps, number):
        for t in range(1, steps + 1):
            w = w - RATE * (gradient(t, w.shape).clamp(-0.5, 0.5) + decay * w)
        return w

    same(stepped("lomo", clip_grad_value=0.5)[0], expected(rule))


def test_adalomo_and_adafactor():
    """Algorithm 4 of Adafactor; AdaLomo has its own decay of weights, and no bound of the rate by the step."""

    def rule_of(relative):
        def rule(w, decay, steps, number):
            r = c = v = 0.0
            for t in range(1, steps + 1):
                g = gradient(t, w.shape)
                b = 1 - t**-0.8
                if w.ndim > 1:
                    r = b * r + (1 - b) * (g**2).sum(1, keepdim=True)
                    c = b * c + (1 - b) * (g**2).sum(0, keepdim=True)
                    v = r @ c / r.sum()
                else:
                    v = b * v + (1 - b) * g**2
                u = g / v.sqrt()
                u = u / max(1.0, float(u.square().mean().sqrt()))
                size = max(1e-3, float(w.square().mean().sqrt()))
                w = w - RATE * (size if relative else 1.0) * decay * w - min(RATE, t**-0.5) * size * u
            return w

        return rule

    same(stepped("adalomo")[0], expected(rule_of(relative=True)), 1e-12)
    same(stepped("adafactor")[0], expected(rule_of(relative=False)), 1e-7)


def test_adafactor_is_torch_s_with_our_groups():
    theirs = Net()
    matrices = [one for one in theirs.parameters() if one.ndim > 1]
    groups = [{"params": matrices, "weight_decay": DECAY}, {"params": [theirs.norm], "weight_decay": 0.0}]
    optimizer = torch.optim.Adafactor(groups, lr=RATE)
    for step in range(1, STEPS + 1):
        for parameter in theirs.parameters():
            parameter.grad = gradient(step, parameter.shape)
        optimizer.step()
    same(stepped("adafactor")[0], {name: one.detach() for name, one in theirs.named_parameters()}, 0)


@pytest.mark.parametrize("nesterov", [True, False])
def test_sgd(nesterov):
    """Sutskever's form, as torch has it: the first step is the gradient's own."""

    def rule(w, decay, steps, number):
        b = 0.0
        for t in range(1, steps + 1):
            g = gradient(t, w.shape) + decay * w
            b = 0.9 * b + g
            w = w - RATE * (g + 0.9 * b if nesterov else b)
        return w

    same(stepped("sgd", nesterov=nesterov)[0], expected(rule))


def newton_schulz(matrix):
    wide = matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T
    x = wide / wide.norm()
    for _ in range(5):
        a = x @ x.T
        x = 3.4445 * x + (-4.7750 * a + 2.0315 * a @ a) @ x
    return x if matrix.shape[0] <= matrix.shape[1] else x.T


def test_muon_is_near_its_rule_and_torch_s():
    """The iteration is in bfloat16, whose rounding is a few percent of an update; torch's is the same."""

    def rule(w, decay, steps, number):
        if number in (0, 1):  # the table and the vector
            return adamw(w, decay, steps)
        b = torch.zeros_like(w)
        for t in range(1, steps + 1):
            g = gradient(t, w.shape)
            b = 0.95 * b + 0.05 * g
            w = w - RATE * decay * w - RATE * 0.2 * max(w.shape) ** 0.5 * newton_schulz(0.05 * g + 0.95 * b)
        return w

    found, wanted, start = stepped("muon")[0], expected(rule), dict(Net().named_parameters())
    assert list(wanted)[:2] == ["embed", "norm"]
    for name, one in wanted.items():
        error, moved = (found[name] - one).norm(), (one - start[name]).norm()
        assert error < (0.03 if "layers" in name else 1e-10) * moved, name
    net = Net()
    matrices = [one for name, one in net.named_parameters() if "layers" in name]
    theirs = torch.optim.Muon(matrices, lr=RATE, weight_decay=DECAY, adjust_lr_fn="match_rms_adamw")
    for step in range(1, STEPS + 1):
        for parameter in matrices:
            parameter.grad = gradient(step, parameter.shape)
        theirs.step()
    for name, one in net.named_parameters():
        if "layers" in name:
            assert (found[name] - one).norm() < 0.03 * (one - start[name]).norm()


def from_short_side(w, update):
    return update if w.shape[0] <= w.shape[1] else update.T


def test_galore():
    rank, gap, scale = 3, 2, 0.25

    def rule(w, decay, steps, number):
        if number in (0, 1):
            return adamw(w, decay, steps)
        adam = Adam()
        for t in range(1, steps + 1):
            g = from_short_side(w, gradient(t, w.shape))
            if t % gap == 1:
                p = torch.linalg.svd(g).U[:, :rank]
            w = w - RATE * decay * w - RATE * scale * from_short_side(w, p @ adam(p.T @ g))
        return w

    same(stepped("galore", rank=rank, update_proj_gap=gap)[0], expected(rule), 1e-10)


@pytest.mark.parametrize(
    ("rates", "said"),
    [
        ({"tall": 1e-4, "norm": 1e-3, "tal": 1e-3}, "what 'tal' matches is all taken by patterns before it.* 'tall'"),
        ({"tall": 1e-4, "short": 1e-3}, "no trained parameter has a name that 'short' matches"),
    ],
)
def test_a_rate_of_nothing_is_refused(rates, said):
    with pytest.raises(RecipeError, match=said):
        stepped("adamw", learning_rates=rates)
    stepped("adamw", steps=1, learning_rates={"tall": 1e-4, "tal|wide": 1e-3})


def test_galore_waits_for_a_gradient_to_have_directions(monkeypatch):
    rank, own = 3, gradient
    monkeypatch.setattr(sys.modules[__name__], "gradient", lambda t, shape: own(t, shape) * (t > 2))

    def rule(w, decay, steps, number):
        if number in (0, 1):
            return adamw(w, decay, steps)
        adam = Adam()
        p = torch.linalg.svd(from_short_side(w, gradient(3, w.shape))).U[:, :rank]
        for t in range(1, steps + 1):
            g = from_short_side(w, gradient(t, w.shape))
            w = w - RATE * decay * w - RATE * 0.25 * from_short_side(w, p @ adam(p.T @ g))
        return w

    same(stepped("galore", rank=rank, update_proj_gap=200)[0], expected(rule), 1e-10)


@pytest.mark.parametrize("name", ["apollo", "apollo_mini"])
def test_apollo(name):
    gap = 2
    rank, scale = (3, 1.0) if name == "apollo" else (1, math.sqrt(128))
    drawn = []

    def rule(w, decay, steps, number):
        if number in (0, 1):
            return adamw(w, decay, steps)
        adam, before = Adam(), None
        for t in range(1, steps + 1):
            g = from_short_side(w, gradient(t, w.shape))
            p = _low_rank.random_projection(seeds[w.shape] * _low_rank.SEEDS + (t - 1) // gap, rank, g)
            drawn.append(p)
            r = p @ g
            n = adam(r)
            if name == "apollo":
                s = torch.stack([n[:, j].norm() / r[:, j].norm() for j in range(g.shape[1])])
                u = g * s
            else:
                u = g * (n.norm() / r.norm())
            if before is not None and u.norm() > 1.01 * before:
                u = u / u.norm() * 1.01 * before
            before = u.norm()
            w = w - RATE * decay * w - RATE * scale * from_short_side(w, u)
        return w

    found, optimizer, _ = stepped(name, rank=rank, update_proj_gap=gap)
    seeds = {one.shape: number for one, number in optimizer.number_of.items()}
    same(found, expected(rule), 1e-6)
    one = drawn[:STEPS]
    assert torch.equal(one[0], one[1]) and not torch.equal(one[1], one[2])
    much = _low_rank.random_projection(5, 50, torch.zeros(400, 1, dtype=torch.float64))
    assert much.square().mean().item() == pytest.approx(1 / 50, rel=0.05)


def test_adam_mini():
    def rule(w, decay, steps, number):
        m = v = 0.0
        for t in range(1, steps + 1):
            g = gradient(t, w.shape)
            m = B1 * m + (1 - B1) * g
            v = B2 * v + (1 - B2) * ((g**2).mean(1, keepdim=True) if w.ndim > 1 else (g**2).mean())
            w = w - RATE * decay * w - RATE * (m / (1 - B1**t)) / ((v / (1 - B2**t)).sqrt() + EPS)
        return w

    same(stepped("adam_mini")[0], expected(rule))


def test_adam_mini_has_one_moment_a_head():
    from tunesmith.optimizers._adam_mini import OneRateABlock
    from tunesmith.optimizers.adam_mini import rows_of_a_block

    w = torch.nn.Parameter(torch.zeros(6, 4, dtype=torch.float64))
    assert rows_of_a_block("model.layers.0.self_attn.q_proj.weight", w, 3) == 3
    assert rows_of_a_block("model.layers.0.self_attn.v_proj.weight", w, 3) == 1
    assert rows_of_a_block("model.layers.0.self_attn.q_proj.lora_A.default.weight", w, 3) == 1
    optimizer = OneRateABlock([{"params": [w], "weight_decay": 0.0, "rows": 3}], lr=RATE, betas=(B1, B2), eps=EPS)
    w.grad = gradient(1, w.shape)
    optimizer.step()
    for head in (slice(0, 3), slice(3, 6)):
        wanted = -RATE * w.grad[head] / (w.grad[head].square().mean().sqrt() + EPS)
        assert torch.allclose(w[head], wanted, rtol=1e-12)


def test_schedule_free():
    def rule(w, decay, steps, number):
        x = z = w
        v, weights = 0.0, 0.0
        for t in range(1, steps + 1):
            y = (1 - B1) * z + B1 * x
            g = gradient(t, w.shape)
            v = B2 * v + (1 - B2) * g**2
            rate = RATE * math.sqrt(1 - B2**t)
            z = z - rate * g / (v.sqrt() + EPS) - rate * decay * y
            weights += rate**2
            c = rate**2 / weights
            x = (1 - c) * x + c * z
        return (1 - B1) * z + B1 * x, x

    net_after, _, companion = stepped("schedule_free")
    wanted = expected(rule)
    same(net_after, {name: y for name, (y, _) in wanted.items()}, 1e-11)
    before = {name: one.clone() for name, one in net_after.items()}
    with companion.settled():
        same(net_after, {name: x for name, (_, x) in wanted.items()}, 1e-11)
    assert all(torch.equal(before[name], one) for name, one in net_after.items())


def test_ademamix():
    alpha = 5.0

    def rule(w, decay, steps, number):
        m = v = slow = 0.0
        for t in range(1, steps + 1):
            g = gradient(t, w.shape)
            share = t / STEPS
            low, high = math.log(B1), math.log(0.9999)
            b3 = min(math.exp(low * high / ((1 - share) * high + share * low)), 0.9999)
            m, v, slow = B1 * m + (1 - B1) * g, B2 * v + (1 - B2) * g**2, b3 * slow + (1 - b3) * g
            above = m / (1 - B1**t) + min(share * alpha, alpha) * slow
            w = w - RATE * (above / ((v / (1 - B2**t)).sqrt() + EPS) + decay * w)
        return w

    same(stepped("ademamix")[0], expected(rule))
    assert slow_decay(0.9, 0.9999, 0.0) == pytest.approx(0.9)
    assert [slow_decay(0.9, 0.9999, share) for share in (0.5, 1.0)] == [pytest.approx(0.9998, abs=1e-5), 0.9999]


def test_badam_by_layers():
    """Blocks before, of and after the layers have turns of two steps, the last one first; each begins anew."""
    found = stepped("badam", switch_every=2, steps=7)[0]
    start = {name: one.detach() for name, one in Net().named_parameters()}
    assert list(start) == ["embed", "norm", "layers.0.tall", "layers.1.wide"]
    turns = {"layers.1.wide": (1, 2), "layers.0.tall": (3, 4), "embed": (5, 6), "norm": (5, 6)}
    for name, when in turns.items():
        w, adam = start[name], Adam()
        for t in (*when, 7) if name == "layers.1.wide" else when:
            adam = Adam() if t == 7 else adam
            decay = DECAY if w.ndim > 1 else 0.0
            w = w - RATE * decay * w - RATE * adam(gradient(t, w.shape))
        assert torch.allclose(found[name], w, rtol=0, atol=1e-12), name


def test_badam_by_parts():
    found = stepped("badam", mode="ratio", update_ratio=0.5, switch_every=3, switch_mode="ascending")[0]
    for name, one in Net().named_parameters():
        w = one.detach().clone().view(-1)
        half = w.numel() // 2
        for place, when in ((slice(0, half), (1, 2, 3)), (slice(half, None), (4, 5))):
            adam = Adam()
            for t in when:
                decay = DECAY if one.ndim > 1 else 0.0
                w[place] -= RATE * decay * w[place] + RATE * adam(gradient(t, one.shape).reshape(-1)[place])
        assert torch.allclose(found[name].view(-1), w, rtol=0, atol=1e-12), name


def test_turns_come_round():
    from tunesmith.optimizers._badam import whose

    for mode in ("ascending", "descending", "random"):
        rounds = [[whose(turn, 5, mode) for turn in range(5 * n, 5 * n + 5)] for n in range(4)]
        assert all(sorted(one) == list(range(5)) for one in rounds)
        assert len({tuple(one) for one in rounds}) == (4 if mode == "random" else 1)
