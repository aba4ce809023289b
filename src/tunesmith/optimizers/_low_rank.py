"""The updates of GaLore (arXiv 2403.03507, Algorithm 2) and APOLLO (arXiv 2412.05270, Algorithm 1).

A matrix is looked at from its shorter side: m ≤ n. r is the rank; a stack of matrices [..., m, n] is one by one.
"""

from typing import Any

import torch

from tunesmith.optimizers._ruled import Ruled, adam_directions, decay

TINY = 1e-8  # below norms
SEEDS = 1_000_003  # seeds of one matrix lie this far from those of the next


class _LowRank(Ruled):
    """AdamW for groups that are not "low_rank"; in others a direction for each matrix, by `direction`."""

    def update(self, parameters: list[torch.Tensor], gradients: list[torch.Tensor], group: dict[str, Any]) -> None:
        """Update some parameters of a group by their gradients."""
        if not group["low_rank"]:
            self.adamw(parameters, gradients, group)
            return
        decay(parameters, group)
        for parameter, gradient, step in zip(parameters, gradients, self.counted(parameters), strict=True):
            tall = parameter.shape[-2] > parameter.shape[-1]
            direction = self.direction(parameter, gradient.mT if tall else gradient, step, group)
            parameter.add_(direction.mT if tall else direction, alpha=-group["lr"] * group["scale"])

    def direction(self, parameter: torch.Tensor, wide: torch.Tensor, step: int, group: dict[str, Any]) -> torch.Tensor:
        """What a matrix moves against, from its gradient [..., m, n]."""
        raise NotImplementedError

    def adapted(self, parameter: torch.Tensor, low: torch.Tensor, step: int, group: dict[str, Any]) -> torch.Tensor:
        """Adam's direction in the subspace: [..., r, n]."""
        means = [self.tensor(name, parameter, low.shape) for name in ("exp_avg", "exp_avg_sq")]
        return adam_directions([means[0]], [means[1]], [low], [step], group)[0]


class InSubspace(_LowRank):
    """GaLore. The singular vectors are those of the gradients that all ranks share, by the same arithmetic."""

    def direction(self, parameter: torch.Tensor, wide: torch.Tensor, step: int, group: dict[str, Any]) -> torch.Tensor:
        """Adam's direction in the subspace of the largest singular vectors, back in the whole space."""
        state = self.state[parameter]
        due = (step - 1) % group["update_proj_gap"] == 0 or "projection" not in state
        if due and wide.any():  # a matrix behind zeros begins with no gradient, whose vectors would be any at all
            vectors = torch.linalg.svd(wide if wide.dtype == torch.float64 else wide.float(), full_matrices=False).U
            state["projection"] = vectors[..., : group["rank"]].to(parameter.dtype).contiguous()  # [..., m, r]
        if "projection" not in state:
            return wide
        projection = state["projection"]
        return projection @ self.adapted(parameter, projection.mT @ wide, step, group)


class ScaledGradients(_LowRank):
    """APOLLO. A subspace is drawn anew in every step from a seed: a matrix's number, and how often it has changed."""

    def direction(self, parameter: torch.Tensor, wide: torch.Tensor, step: int, group: dict[str, Any]) -> torch.Tensor:
        """The gradient, scaled as its image in the subspace is by Adam, and hardly longer than the one before."""
        period = (step - 1) // group["update_proj_gap"]
        low = random_projection(self.number_of[parameter] * SEEDS + period, group["rank"], wide) @ wide
        over = (-2,) if group["by_channel"] else (-2, -1)
        after, before = (
            torch.linalg.vector_norm(one, dim=over, keepdim=True)
            for one in (self.adapted(parameter, low, step, group), low)
        )
        scaled = wide * (after / (before + TINY))
        norm = torch.linalg.vector_norm(scaled)
        if step > 1:
            before_norm = self.state[parameter]["norm"]
            share = (group["norm_growth"] * before_norm / (norm + TINY)).clamp(max=1)
            share = torch.where(before_norm > 0, share, 1)  # a matrix behind zeros (LoRA's A) begins with none
            scaled, norm = scaled * share, norm * share
        self.state[parameter]["norm"] = norm
        return scaled


def random_projection(seed: int, rank: int, wide: torch.Tensor) -> torch.Tensor:
    """A matrix [r, m] of normal values with variance 1/r, the same for the same seed and kind of device."""
    generator = torch.Generator(wide.device).manual_seed(seed)
    size = (rank, wide.shape[-2])
    return torch.randn(size, generator=generator, device=wide.device, dtype=wide.dtype) / rank**0.5
