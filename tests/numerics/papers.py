"""The losses of pairs as their papers have them: plain formulas in float64, one pair after the other.

A pair is (log-ratio, log-probability, length) of the better answer and of the worse one.
"""

import torch

sigmoid = torch.sigmoid


def log_sigmoid(x):
    return torch.log(1 / (1 + torch.exp(-x)))


def smoothed(margins, epsilon):
    return -sum((1 - epsilon) * log_sigmoid(m) + epsilon * log_sigmoid(-m) for m in margins)


def of_difference(name, margins, epsilon, tau):
    """Losses of beta (f'(u) - f'(v))."""
    if name == "sigmoid":
        return smoothed(margins, epsilon)
    if name == "hinge":
        return sum(torch.clamp(1 - m, min=0) for m in margins)
    if name == "robust":
        right, wrong = ([-log_sigmoid(sign * m) for m in margins] for sign in (1, -1))
        return sum(((1 - epsilon) * r - epsilon * w) / (1 - 2 * epsilon) for r, w in zip(right, wrong, strict=True))
    if name == "exo_pair":  # KL of the policy's softmax from (1 - e, e)
        softmax = [torch.stack([m, torch.zeros_like(m)]).softmax(0) for m in margins]
        labels = torch.tensor([1 - epsilon, epsilon], dtype=torch.float64)
        return sum((s * (s / labels).log()).sum() for s in softmax)
    assert name == "discopop"
    return sum(sigmoid(m / tau) * torch.exp(-m) + (1 - sigmoid(m / tau)) * -log_sigmoid(m) for m in margins)


def of_rewards(name, rewards, beta):
    """Losses of both rewards, each beta log(pi / ref)."""
    if name == "nca_pair":
        return sum(-log_sigmoid(c) - (log_sigmoid(-c) + log_sigmoid(-r)) / 2 for c, r in rewards)
    if name == "bco_pair":
        shift = sum(c.item() + r.item() for c, r in rewards) / (2 * len(rewards))  # a number: no gradient
        return -sum(log_sigmoid(c - shift) + log_sigmoid(-(r - shift)) for c, r in rewards)
    if name == "sppo_hard":  # the log-ratio to eta (P - 1/2), with eta = 1 / beta, and P = 1 and 0
        return sum((c / beta - 1 / beta * 0.5) ** 2 + (r / beta + 1 / beta * 0.5) ** 2 for c, r in rewards)
    if name == "apo_zero":
        return sum(-sigmoid(c) + sigmoid(r) for c, r in rewards) + len(rewards)
    assert name == "apo_down"
    return sum(sigmoid(c) - sigmoid(c - r) for c, r in rewards) + len(rewards)


def of_orders(name, pairs):
    """The margins of sorted numbers, over beta."""
    if name == "aot":
        highs = [one[1] - other[1] for one, other in pairs]
        lows = [(one[1] - one[0]) - (other[1] - other[0]) for one, other in pairs]
    else:
        assert name == "aot_unpaired"
        highs, lows = [one[0] for one, _ in pairs], [other[0] for _, other in pairs]
    return [
        high - low
        for high, low in zip(sorted(highs, key=torch.Tensor.item), sorted(lows, key=torch.Tensor.item), strict=True)
    ]


def loss(name, pairs, beta=0.1, epsilon=0.0, tau=0.05, f=torch.log):
    """The summed loss; `f` is the derivative f' of f-DPO."""
    ratios = [(torch.exp(one[0]), torch.exp(other[0])) for one, other in pairs]  # pi / ref of both
    if name == "ipo":  # tau of the paper is beta
        margins = [f(u) / one[2] - f(v) / other[2] for (u, v), (one, other) in zip(ratios, pairs, strict=True)]
        return sum((margin - 1 / (2 * beta)) ** 2 for margin in margins)
    if name in ("aot", "aot_unpaired"):
        return smoothed([beta * margin for margin in of_orders(name, pairs)], epsilon)
    if name in ("nca_pair", "bco_pair", "sppo_hard", "apo_zero", "apo_down"):
        return of_rewards(name, [(beta * torch.log(u), beta * torch.log(v)) for u, v in ratios], beta)
    return of_difference(name, [beta * (f(u) - f(v)) for u, v in ratios], epsilon, tau)
