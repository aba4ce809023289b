"""Weights as others pack them, with the numbers that others read in them: tests/golden/packed.safetensors.

    pip download --no-deps auto-gptq==0.7.1 autoawq==0.2.7.post3 hqq==0.2.8.post1
    pip install compressed-tensors==0.19.0
    python tests/golden/make_packed.py AUTO_GPTQ_UNPACKED AUTOAWQ_UNPACKED HQQ_UNPACKED

A layer of 32 outputs and 64 inputs in groups of 16, in float16. The numbers of GPTQ are what AutoGPTQ's layer makes of
an identity matrix, those of AWQ are its `dequantize_gemm`, those of compressed-tensors its compressors', and the zeros
of HQQ are what its solver ends with.
"""

import importlib.util
import sys
import types
from pathlib import Path

import torch
from compressed_tensors.compressors import BaseCompressor
from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
from safetensors.torch import save_file

ROWS, COLUMNS, GROUP = 32, 64, 16


def module(file, name):
    """A module of an unpacked wheel, without its package."""
    spec = importlib.util.spec_from_file_location(name, file)
    found = importlib.util.module_from_spec(spec)
    sys.modules[name] = found
    spec.loader.exec_module(found)
    return found


def scales_of(weight, bits, symmetric):
    """A scale and a zero [O, G] of each group."""
    groups = weight.float().view(ROWS, -1, GROUP)
    most = (1 << bits) - 1
    if symmetric:
        return groups.abs().amax(-1).mul(2 / most).half(), torch.full((ROWS, COLUMNS // GROUP), 1 << (bits - 1))
    low, high = groups.amin(-1).clamp(max=0), groups.amax(-1).clamp(min=0)
    scale = ((high - low) / most).half()
    return scale, (-low / scale.float()).round().clamp(1, most).int()


def gptq(found, auto_gptq, weight):
    """AutoGPTQ's layers of 2, 3, 4 and 8 bits, with groups in order and not."""
    kind = module(auto_gptq / "auto_gptq/nn_modules/qlinear/qlinear_cuda.py", "qlinear_cuda").QuantLinear
    for bits, ordered in ((2, False), (3, False), (4, False), (8, False), (4, True)):
        layer, linear = kind(bits, GROUP, COLUMNS, ROWS, False), torch.nn.Linear(COLUMNS, ROWS, False)
        group = torch.arange(COLUMNS) // GROUP
        columns = torch.randperm(COLUMNS) if ordered else torch.arange(COLUMNS)
        linear.weight.data = weight.float()
        scale, zero = scales_of(weight[:, columns], bits, symmetric=False)
        layer.pack(linear, scale.float(), zero.float(), group[columns.argsort()].int())
        name = f"gptq.{bits}{'.ordered' if ordered else ''}"
        for part in ("qweight", "qzeros", "g_idx"):
            found[f"{name}.{part}"] = getattr(layer, part)
        found[f"{name}.scales"] = layer.scales.half()
        found[f"{name}.expected"] = layer(torch.eye(COLUMNS)).T


def awq(found, autoawq, weight):
    """AutoAWQ's layer, and what it reads in it."""
    for name in ("awq", "awq.utils", "awq.modules"):
        sys.modules[name] = types.ModuleType(name)
    sys.modules["awq.utils.module"] = types.SimpleNamespace(try_import=lambda name: (None, ""))
    sys.modules["awq.utils.utils"] = types.SimpleNamespace(get_best_device=lambda: "cpu")
    packing = module(autoawq / "awq/utils/packing_utils.py", "awq.utils.packing_utils")
    kind = module(autoawq / "awq/modules/linear/gemm.py", "awq.modules.gemm").WQLinear_GEMM
    linear = torch.nn.Linear(COLUMNS, ROWS, False)
    linear.weight.data = weight.float()
    scale, zero = scales_of(weight, 4, symmetric=False)
    layer = kind.from_linear(linear, 4, GROUP, scales=scale.float().T.contiguous(), zeros=zero.T.contiguous())
    for part in ("qweight", "qzeros", "scales"):
        found[f"awq.4.{part}"] = getattr(layer, part)
    made = packing.dequantize_gemm(layer.qweight, layer.qzeros, layer.scales.float(), 4, GROUP)
    found["awq.4.expected"] = made.T


COMPRESSED = {
    "4": ("pack-quantized", {"num_bits": 4, "strategy": "group", "group_size": GROUP}),
    "4.zeros": ("pack-quantized", {"num_bits": 4, "strategy": "group", "group_size": GROUP, "symmetric": False}),
    "8": ("pack-quantized", {"num_bits": 8, "strategy": "group", "group_size": GROUP}),
    "8.rows": ("int-quantized", {"num_bits": 8, "strategy": "channel"}),
    "8.float": ("naive-quantized", {"num_bits": 8, "type": "float", "strategy": "channel"}),
}


def compressed(found, weight):
    """The parts of compressed-tensors, and what it reads in them."""
    for name, (form, options) in COMPRESSED.items():
        said = QuantizationArgs(**options)
        scheme = QuantizationScheme(targets=["Linear"], weights=said, format=form)
        compressor = BaseCompressor.get_value_from_registry(form)
        groups = weight.float().view(ROWS, -1, GROUP if said.group_size else COLUMNS)
        scale, zero = scales_of(weight, said.num_bits, symmetric=False)
        state = {"weight": weight.float()}
        if said.symmetric:
            most = 448 if said.type == "float" else 1 << (said.num_bits - 1)
            scale = (groups.abs().amax(-1) / most).half()
        else:
            state["weight_zero_point"] = (zero - (1 << (said.num_bits - 1))).to(torch.int8)
        state = compressor.compress(state | {"weight_scale": scale.float()}, scheme)
        expected = compressor.decompress(state, scheme)["weight"]
        for part, value in state.items():
            found[f"compressed-tensors.{name}.{part}"] = value
        found[f"compressed-tensors.{name}.expected"] = expected.float()


def hqq(found, hqq_):
    """Zeros of groups, with scales that span them."""
    solver = module(hqq_ / "hqq/core/optimize.py", "optimize")
    groups = torch.randn(64, GROUP).pow(3)  # wide, so that errors are shrunk, and not all to nothing
    low, high = groups.amin(1, keepdim=True), groups.amax(1, keepdim=True)
    scale = 15 / (high - low)
    _, scale, zero = solver.optimize_weights_proximal_v2(groups, scale, -low * scale, [0, 15], axis=1)
    found |= {"hqq.4.groups": groups, "hqq.4.scale": scale, "hqq.4.zero": zero}


def main():
    """Write them."""
    torch.manual_seed(0)
    weight, found = (torch.randn(ROWS, COLUMNS) / 8).half(), {}
    gptq(found, Path(sys.argv[1]), weight)
    awq(found, Path(sys.argv[2]), weight)
    compressed(found, weight)
    hqq(found, Path(sys.argv[3]))
    plain = {name: value.detach().clone().contiguous() for name, value in found.items()}
    save_file(plain, Path(__file__).with_name("packed.safetensors"))


if __name__ == "__main__":
    main()
