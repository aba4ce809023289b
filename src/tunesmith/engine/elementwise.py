"""Work that has no matrix product in it, one pass over memory each where torch.compile can fuse it.

Every function is plain torch on tensors that need no gradient: arithmetic in float32, results in the dtype of what came
in. `compiled` fuses them (one compilation serves every length), and `PLAIN` has them as they are, with the same numbers
up to rounding.

Letters: T tokens, D features, S keys, V words of a block of the vocabulary.
"""

import shutil
from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import cache
from typing import Any

import torch

COMPILED_FROM = 50_000_000  # parameters of a model from which some seconds of compiling are soon paid back
LEAST_LOGIT = -1e30  # of a word that is left out: finite, so that a block may hold no other
GELU_TANH = 0.7978845608028654  # sqrt(2 / pi), of the tanh form of GELU (arXiv 1606.08415)


def norm(x: torch.Tensor, weight: torch.Tensor, offset: float, eps: float) -> torch.Tensor:
    """RMSNorm (arXiv 1910.07467) of x [T, D]: x / sqrt(mean(x^2) + eps) * (offset + weight)."""
    wide = x.float()
    unit = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + eps)
    return (unit * (offset + weight.float())).to(x.dtype)


def norm_pull(gradient: torch.Tensor, x: torch.Tensor, weight: torch.Tensor, offset: float, eps: float) -> torch.Tensor:
    """The gradient of `norm` with respect to x [T, D]."""
    wide = x.float()
    root = torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + eps)
    unit, by_unit = wide * root, gradient.float() * (offset + weight.float())
    return (root * (by_unit - unit * (by_unit * unit).mean(-1, keepdim=True))).to(x.dtype)


def norm_pull_weight(gradient: torch.Tensor, x: torch.Tensor, eps: float) -> torch.Tensor:
    """The gradient of `norm` with respect to its weight [D], in float32."""
    wide = x.float()
    return (gradient.float() * wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + eps)).sum(0)


def silu(gate: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """SiLU in float32, and its slope."""
    share = torch.sigmoid(gate)
    value = gate * share
    return value, share + value * (1 - share)


def gelu_tanh(gate: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The tanh form of GELU in float32, and its slope."""
    cubic = 0.044715 * gate * gate
    bent = torch.tanh(GELU_TANH * gate * (1 + cubic))
    value = 0.5 * gate * (1 + bent)
    return value, 0.5 * (1 + bent) + 0.5 * gate * (1 - bent * bent) * GELU_TANH * (1 + 3 * cubic)


ACTIVATIONS = {"silu": silu, "gelu_tanh": gelu_tanh}


def gated(gate: torch.Tensor, up: torch.Tensor, activation: str) -> torch.Tensor:
    """activation(gate) * up, as SwiGLU and its kin have it (arXiv 2002.05202): [T, D]."""
    return (ACTIVATIONS[activation](gate.float())[0] * up.float()).to(gate.dtype)


def gated_pull(
    gradient: torch.Tensor, gate: torch.Tensor, up: torch.Tensor, activation: str
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The gradients of `gated` with respect to gate and up, and once more its value: [T, D] each."""
    value, slope = ACTIVATIONS[activation](gate.float())
    wide_up, wide = up.float(), gradient.float()
    kind = gate.dtype
    return (wide * wide_up * slope).to(kind), (wide * value).to(kind), (value * wide_up).to(kind)


def gated_pull_over(gradient: torch.Tensor, gate: torch.Tensor, up: torch.Tensor, activation: str) -> None:
    """As `gated_pull`, over what it is given: the value over `gradient`, the gradients over `gate` and `up`.

    Pages that a process has just been given cost more than this arithmetic.
    """
    by_gate, by_up, value = gated_pull(gradient, gate, up, activation)
    gate.copy_(by_gate)
    up.copy_(by_up)
    gradient.copy_(value)


def grouped(query: torch.Tensor, groups: int, scale: float) -> torch.Tensor:
    """Queries [H, T, D] in float32, scaled, so that those of one key head are rows: [H / groups, T, groups, D]."""
    return (query.unflatten(0, (-1, groups)).transpose(1, 2).float() * scale).contiguous()


def turn(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Rotary positions (arXiv 2104.09864), in halves as Llama has them: x [B, T, H, D], cos and sin [B or 1, T, D]."""
    wide, wide_cos, wide_sin = x.float(), cos.float().unsqueeze(2), sin.float().unsqueeze(2)
    first, second = wide.chunk(2, -1)
    return (wide * wide_cos + torch.cat([-second, first], -1) * wide_sin).to(x.dtype)


def turn_pull(gradient: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """The gradient of `turn` with respect to x [B, T, H, D]."""
    wide = gradient.float()
    first, second = (wide * sin.float().unsqueeze(2)).chunk(2, -1)
    return (wide * cos.float().unsqueeze(2) + torch.cat([second, -first], -1)).to(gradient.dtype)


def softmax_pull(shares: torch.Tensor, gradient: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Softmax's shares [.., S] in `gradient`'s dtype, and the gradient with respect to its scores."""
    wide = gradient.float()
    pulled = shares * (wide - (wide * shares).sum(-1, keepdim=True))
    return shares.to(gradient.dtype), pulled.to(gradient.dtype)


def shaped(logits: torch.Tensor, scale: float, cap: float | None) -> tuple[torch.Tensor, torch.Tensor | float]:
    """Cap * tanh(scale * logits / cap) in float32, and its slope."""
    bent = logits.float() * scale
    if cap is None:
        return bent, scale
    bent = cap * torch.tanh(bent / cap)
    return bent, scale * (1 - (bent / cap).pow(2))


def weigh(
    logits: torch.Tensor, most: torch.Tensor, place: torch.Tensor, scale: float, cap: float | None, entropy: bool
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
    """One block of an online softmax over logits [T, V]; `most` [T, 1] is the largest so far.

    The new largest [T, 1] and the sum of exp(logit - largest) [T, 1]; over the logits, each of those times the logits'
    slope, 0 for the asked word; and where the entropy is asked for the sum of exp(..) * logit [T, 1], and each of
    these [T, V].
    """
    bent, slope = shaped(logits, scale, cap)
    most = torch.maximum(most, bent.amax(-1, keepdim=True))
    parts = torch.exp(bent - most)
    total = parts.sum(-1, keepdim=True)
    asked = torch.arange(parts.shape[1], device=parts.device) == place  # nowhere where the word is in another block
    warm = parts * bent if entropy else None
    warmth = None if warm is None else warm.sum(-1, keepdim=True)
    warm_shares = None if warm is None else torch.where(asked, 0.0, warm * slope).to(logits.dtype)
    logits.copy_(torch.where(asked, 0.0, parts * slope))
    return most, total, warmth, warm_shares


def log_sum(
    logits: torch.Tensor, most: torch.Tensor, total: torch.Tensor, scale: float, cap: float | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """The largest logit [T, 1] and the sum of exp(logit - largest) [T, 1], with one block [T, V] more."""
    bent, _ = shaped(logits, scale, cap)
    larger = torch.maximum(most, bent.amax(-1, keepdim=True))
    return larger, total * torch.exp(most - larger) + torch.exp(bent - larger).sum(-1, keepdim=True)


def spread(
    logits: torch.Tensor,  # [T, V]
    log_total: torch.Tensor,  # [T, 1]
    place: torch.Tensor,  # [T, 1] of the asked word in the block, or outside it
    weight: torch.Tensor,  # [T, 1] the gradient of the log-probability
    warmth: torch.Tensor | None,  # [T, 1] the gradient of the entropy
    entropy: torch.Tensor | None,  # [T, 1]
    scale: float,
    cap: float | None,
) -> torch.Tensor:
    """The gradient of a log-probability and of an entropy with respect to a block of unshaped logits [T, V]."""
    bent, slope = shaped(logits, scale, cap)
    share = torch.exp(bent - log_total)
    asked = torch.arange(logits.shape[1], device=logits.device) == place
    found = weight * (asked.float() - share)
    if warmth is not None and entropy is not None:
        found = found - warmth * share * (bent - log_total + entropy)
    return (found * slope).to(logits.dtype)


def apart(student: torch.Tensor, teacher: torch.Tensor, kind: str, weight: float) -> tuple[torch.Tensor, torch.Tensor]:
    """The terms of a divergence of log-probabilities, and its slope by each of the student's, but for one constant.

    The constant goes when the slope by a logit is made, which is slope - probability * (sum of slopes). `forward_kl` is
    KL(teacher | student), `reverse_kl` KL(student | teacher), and `jsd` with m = weight * teacher + (1 - weight) *
    student is weight * KL(teacher | m) + (1 - weight) * KL(student | m) (arXiv 2306.13649, section 2).
    """
    own = student.exp()
    if kind == "forward_kl":
        share = teacher.exp()
        return share * (teacher - student), own - share  # 0 where both are equal, to the last bit
    if kind == "reverse_kl":
        terms = own * (student - teacher)
        return terms, terms
    lead = teacher - student
    part = torch.where(lead > 0, 1 - weight, weight)  # of the smaller one in m
    above = torch.log1p(part * torch.expm1(-lead.abs()))  # log m - the larger one: 0 where both are equal
    slopes = -(1 - weight) * own * (above + lead.clamp_min(0))
    return slopes - weight * teacher.exp() * (above + (-lead).clamp_min(0)), slopes


def compare(
    student: torch.Tensor,  # [T, V]
    teacher: torch.Tensor,  # [T, V]
    totals: tuple[torch.Tensor, torch.Tensor],  # [T, 1] log of the sum of exp(logit) of each
    ours: tuple[float, float | None],
    theirs: tuple[float, float | None],
    kind: str,
    weight: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The sums of a divergence's terms and slopes over a block of two models' unshaped logits: [T, 1] each."""
    terms, slopes = apart(shaped(student, *ours)[0] - totals[0], shaped(teacher, *theirs)[0] - totals[1], kind, weight)
    return terms.sum(-1, keepdim=True), slopes.sum(-1, keepdim=True)


def compare_pull(
    student: torch.Tensor,
    teacher: torch.Tensor,
    totals: tuple[torch.Tensor, torch.Tensor],
    ours: tuple[float, float | None],
    theirs: tuple[float, float | None],
    kind: str,
    weight: float,
    slope_sum: torch.Tensor,  # [T, 1] of all blocks
    gradient: torch.Tensor,  # [T, 1] of the divergence
) -> torch.Tensor:
    """The gradient of a divergence with respect to a block of the student's unshaped logits [T, V]."""
    bent, bend = shaped(student, *ours)
    own = bent - totals[0]
    _, slopes = apart(own, shaped(teacher, *theirs)[0] - totals[1], kind, weight)
    return ((slopes - own.exp() * slope_sum) * gradient * bend).to(student.dtype)


def log_sum_but(
    logits: torch.Tensor,
    apart_from: torch.Tensor,  # [T, V] bool
    most: torch.Tensor,
    total: torch.Tensor,
    scale: float,
    cap: float | None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """As `log_sum`, without some words."""
    bent = torch.where(apart_from, LEAST_LOGIT, shaped(logits, scale, cap)[0])
    return log_sum(bent, most, total, 1.0, None)


def pull_but(
    logits: torch.Tensor,  # [T, V]
    apart_from: torch.Tensor,  # [T, V] bool
    own: torch.Tensor,  # [T, V] the gradient at those, shaped
    rest: torch.Tensor,  # [T, 1] log of the sum of exp(logit) of all others
    gradient: torch.Tensor,  # [T, 1] of that
    scale: float,
    cap: float | None,
) -> torch.Tensor:
    """The gradient with respect to a block of unshaped logits, of which some stand alone and the rest together."""
    bent, bend = shaped(logits, scale, cap)
    return (torch.where(apart_from, own, gradient * torch.exp(bent - rest)) * bend).to(logits.dtype)


def quantise(x: torch.Tensor, weight: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
    """X [T, D] (times a weight [D]) as int8 with a scale for each row [T, 1], half to even."""
    wide = x.float() if weight is None else x.float() * weight
    scale = wide.abs().amax(-1, keepdim=True).clamp_min(1e-12) / 127
    return (wide / scale).round().to(torch.int8), scale


def widen(
    sums: torch.Tensor, row: torch.Tensor, column: torch.Tensor | None, shift: torch.Tensor | None, kind: torch.dtype
) -> torch.Tensor:
    """int32 sums of products [T, D] times the scale of each row [T, 1] and column [D], plus a shift [D]."""
    wide = sums.float() * row
    wide = wide if column is None else wide * column
    return (wide if shift is None else wide + shift.float()).to(kind)


@dataclass(frozen=True)
class Elementwise:
    """The functions above, compiled or as they are."""

    norm: Callable[..., torch.Tensor] = norm
    norm_pull: Callable[..., torch.Tensor] = norm_pull
    norm_pull_weight: Callable[..., torch.Tensor] = norm_pull_weight
    gated: Callable[..., torch.Tensor] = gated
    gated_pull: Callable[..., tuple[torch.Tensor, torch.Tensor, torch.Tensor]] = gated_pull
    gated_pull_over: Callable[..., None] = gated_pull_over
    grouped: Callable[..., torch.Tensor] = grouped
    turn: Callable[..., torch.Tensor] = turn
    turn_pull: Callable[..., torch.Tensor] = turn_pull
    softmax_pull: Callable[..., tuple[torch.Tensor, torch.Tensor]] = softmax_pull
    weigh: Callable[..., Any] = weigh
    log_sum: Callable[..., tuple[torch.Tensor, torch.Tensor]] = log_sum
    spread: Callable[..., torch.Tensor] = spread
    compare: Callable[..., tuple[torch.Tensor, torch.Tensor]] = compare
    compare_pull: Callable[..., torch.Tensor] = compare_pull
    log_sum_but: Callable[..., tuple[torch.Tensor, torch.Tensor]] = log_sum_but
    pull_but: Callable[..., torch.Tensor] = pull_but
    quantise: Callable[..., tuple[torch.Tensor, torch.Tensor]] = quantise
    widen: Callable[..., torch.Tensor] = widen

    @property
    def compiled(self) -> bool:
        """Whether torch.compile fuses them."""
        return self.norm is not norm


PLAIN = Elementwise()


@cache
def compiled() -> Elementwise:
    """All of them compiled, each when it is first used; one compilation serves every number of tokens."""
    plain: dict[str, Any] = {one.name: one.default for one in fields(Elementwise)}
    return Elementwise(**{name: torch.compile(function, dynamic=True) for name, function in plain.items()})


def compiler(device: str) -> str | None:
    """What torch.compile would fail for want of on a device, or None: a C++ compiler on a CPU, triton elsewhere."""
    if device == "cpu":
        return None if any(map(shutil.which, ("g++", "c++", "clang++"))) else "a C++ compiler (g++)"
    from importlib.util import find_spec

    return None if find_spec("triton") else "triton"
