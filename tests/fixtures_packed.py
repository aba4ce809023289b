"""Models stored in numbers, as GPTQ, AWQ and compressed-tensors store them: written here, bit by bit."""

import json

import torch

from fixtures_models import save_model

GROUP = 32
ORDER = (0, 2, 4, 6, 1, 3, 5, 7)  # of AWQ


def words(numbers, bits):
    """Numbers [.., N] in int32 words, from the lowest bit on; N * bits is a multiple of 32."""
    found = []
    for row in numbers.flatten(0, -2).tolist():
        stream = sum(number << (bits * place) for place, number in enumerate(row))
        found.append([stream >> (32 * place) & 0xFFFFFFFF for place in range(len(row) * bits // 32)])
    return torch.tensor(found, dtype=torch.uint32).view(torch.int32).unflatten(0, numbers.shape[:-1])


def rounded(weight, bits=4, group=GROUP):
    """A weight [O, I] as numbers, and a scale and a zero [O, G] of each group."""
    groups, most = weight.float().unflatten(1, (-1, group)), (1 << bits) - 1
    low, high = groups.amin(-1).clamp(max=0), groups.amax(-1).clamp(min=0)
    scale = ((high - low) / most).half()
    zero = (-low / scale.float()).round().clamp(1, most)
    numbers = (groups / scale.float()[..., None] + zero[..., None]).round().clamp(0, most)
    return numbers.flatten(1).long(), scale, zero.long()


def gptq(weight):
    """The parts of GPTQ, in its first format, whose groups are not in order."""
    columns = torch.arange(weight.shape[1])
    columns = columns.view(-1, 2).T.flatten()  # every second first
    ordered, scale, zero = rounded(weight[:, columns])
    numbers = ordered[:, columns.argsort()]
    return {
        "qweight": words(numbers, 4).T.contiguous(),
        "qzeros": words(zero.T - 1, 4),
        "scales": scale.T.contiguous(),
        "g_idx": (columns.argsort() // GROUP).int(),
    }


def awq(weight):
    """The parts of AWQ."""
    numbers, scale, zero = rounded(weight)
    put = torch.arange(len(weight)).view(-1, 8)[:, list(ORDER)].flatten()
    return {
        "qweight": words(numbers.T[:, put], 4),
        "qzeros": words(zero.T[:, put], 4),
        "scales": scale.T.contiguous(),
    }


def compressed(weight):
    """The parts of compressed-tensors, with zeros."""
    numbers, scale, zero = rounded(weight)
    return {
        "weight_packed": words(numbers, 4),
        "weight_scale": scale,
        "weight_zero_point": words(zero.T, 4).T.contiguous(),
        "weight_shape": torch.tensor(weight.shape),
    }


WAYS = {
    "gptq": (gptq, {"bits": 4, "group_size": GROUP, "desc_act": True, "sym": False}),
    "awq": (awq, {"bits": 4, "group_size": GROUP, "version": "gemm", "zero_point": True}),
    "compressed-tensors": (
        compressed,
        {
            "format": "pack-quantized",
            "config_groups": {"0": {"weights": {"num_bits": 4, "strategy": "group", "group_size": GROUP}}},
        },
    ),
}


def save_packed(folder, model, method, plain=(), **said):
    """Save a model whose linear layers, but the head and those named as plain, are stored in a way."""
    from safetensors.torch import load_file, save_file

    how, options = WAYS[method]
    save_model(folder, model)
    found = load_file(folder / "model.safetensors")
    for name in [name for name in found if name.endswith("_proj.weight") and not name.endswith(tuple(plain))]:
        weight = found.pop(name)
        found |= {f"{name.removesuffix('.weight')}.{part}": value for part, value in how(weight).items()}
    save_file(found, folder / "model.safetensors", {"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = {"quant_method": method} | options | said
    (folder / "config.json").write_text(json.dumps(config))
    return folder
