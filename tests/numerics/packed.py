"""Random packed batches, and the same sequences scored one by one by the model as transformers has it."""

import torch

from tunesmith.types import Batch


def packed_batch(lengths, vocabulary, seed=0, asked=0.7):
    """A batch of random sequences with a random part of their tokens asked, never the last of a sequence."""
    generator = torch.Generator().manual_seed(seed)
    total = sum(lengths)
    ids = torch.randint(0, vocabulary, (1, total), generator=generator)
    ends = torch.tensor(lengths).cumsum(0)
    weight = (torch.rand(1, total, generator=generator) < asked).float()
    weight *= torch.rand(1, total, generator=generator) + 0.5
    weight[0, ends - 1] = 0
    return Batch(
        input_ids=ids,
        position_ids=torch.cat([torch.arange(length) for length in lengths])[None],
        target=ids.roll(-1, 1),
        weight=weight,
        seq=torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))[None],
        label=torch.full((len(lengths),), torch.nan),
        offsets=torch.tensor([0, *ends], dtype=torch.int32),
        longest=max(lengths),
    )


def alone(model, batch):
    """Log-probabilities of the asked targets, each sequence by itself through the whole model: [1, T]."""
    found = []
    bounds = batch.offsets.tolist()
    for first, last in zip(bounds[:-1], bounds[1:], strict=True):
        logits = model(input_ids=batch.input_ids[:, first:last], use_cache=False).logits
        logps = logits.log_softmax(-1).gather(-1, batch.target[:, first:last, None])[..., 0]
        found.append(torch.where(batch.weight[:, first:last] != 0, logps, 0.0))
    return torch.cat(found, dim=1)


def gradients(model):
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
