"""A model whose layers compute in our way gives the numbers and gradients that peft and transformers give."""

import copy

import pytest
import torch

from fixtures_models import tiny_lora, tiny_model
from numerics.packed import alone, gradients, packed_batch
from tunesmith.engine import kernels, layers, pool
from tunesmith.engine.elementwise import PLAIN
from tunesmith.engine.linear import Dense, Layer, gated_linear, linear

IDS = torch.randint(0, 300, (2, 13), generator=torch.Generator().manual_seed(0))
MOE = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32, "shared_expert_intermediate_size": 32}
OURS = {  # classes that become ours, of each family: (norms, gated pairs, layers that turn by positions)
    "llama": (5, 2, 2), "mistral": (5, 2, 2), "qwen2": (5, 2, 2), "qwen3": (9, 2, 2), "gemma": (5, 2, 2),
    "gemma2": (9, 2, 2), "gemma3_text": (13, 2, 2), "olmo2": (9, 2, 2), "granite": (5, 2, 2), "phi3": (5, 0, 2),
    "cohere": (0, 2, 0),
}  # fmt: skip


def both(model, ops=PLAIN, **options):
    """A copy of the model as it is and one in our way, and what of it changed."""
    other = copy.deepcopy(model)
    return model.train(), other.train(), layers.fuse(other, ops)


def same(theirs, ours, rtol=1e-4, atol=1e-5):
    """Compare logits, and the gradients of a sum that weighs every logit differently."""
    expected, found = (one(input_ids=IDS, use_cache=False).logits for one in (theirs, ours))
    torch.testing.assert_close(found, expected, rtol=rtol, atol=atol)
    weight = torch.randn(expected.shape, generator=torch.Generator().manual_seed(1))
    for logits in (expected, found):
        (logits * weight).sum().backward()
    expected, found = gradients(theirs), gradients(ours)
    assert expected.keys() == found.keys() and expected
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=10 * rtol, atol=10 * atol, msg=name)


@pytest.mark.parametrize("arch", OURS)
@pytest.mark.parametrize("adapted", [True, False])
def test_families(arch, adapted):
    model = tiny_model(arch=arch, tied=False, **({"query_pre_attn_scalar": 8} if arch == "gemma3_text" else {}))
    theirs, ours, fused = both(tiny_lora(model) if adapted else model)
    names = [type(module).__name__ for module, _ in fused.before]
    kinds = ("Norm", "GatedPair", "Turning")
    assert tuple(sum(name.startswith(kind) for name in names) for kind in kinds) == OURS[arch]
    updated = sum(isinstance(module, layers._Updated) for module, _ in fused.before)
    assert updated == (adapted and sum("lora_A" in name for name, _ in ours.named_parameters()))
    same(theirs, ours)


@pytest.mark.parametrize("least", [pool.LEAST, 1])
@pytest.mark.parametrize("head", ["frozen", "trained"])
def test_a_whole_model_through_kept_memory(monkeypatch, least, head):
    monkeypatch.setattr(pool, "LEAST", least)
    monkeypatch.setattr(pool, "POOL", pool.Pool())
    model = tiny_lora(tiny_model(tied=False), **({"modules_to_save": ["lm_head"]} if head == "trained" else {}))
    theirs, ours = copy.deepcopy(model), model
    chosen = kernels.choose(ours)
    assert chosen.scorer.packed and chosen.scorer.fused and not chosen.notes
    for step, lengths in enumerate([(9, 5, 12), (7, 3), (9, 5, 12)]):  # what the last step used is used again
        batch = packed_batch(lengths, 300, seed=step)
        found, expected = chosen.scorer(ours, batch).logps, alone(theirs, batch)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
        for one in (found, expected):
            (one * batch.weight).sum().backward()
    assert bool(pool.POOL.used) == (least == 1)
    expected, found = gradients(theirs), gradients(ours)
    assert expected.keys() == found.keys() and expected
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-3, atol=1e-4, msg=name)


@pytest.mark.parametrize(
    "options", [{"target_modules": ["q_proj", "down_proj"]}, {"target_modules": ["v_proj", "up_proj"]}]
)
def test_some_layers_adapted(options):
    same(*both(tiny_lora(tiny_model(tied=False), **options))[:2])


def test_layers_of_one_input_are_computed_once(monkeypatch):
    theirs, ours, _ = both(tiny_lora(tiny_model()))
    calls = []
    counted = staticmethod(lambda x, some: (calls.append(len(some)), linear(x, some))[1])
    monkeypatch.setattr(layers._Updating, "compute", counted)
    ours(input_ids=IDS, use_cache=False)
    assert sorted(calls) == [1, 1, 2, 2, 3, 3]  # two layers of o; gate and up; q, k and v; down is in its gated pair
    layer = ours.base_model.model.model.layers[0].self_attn
    x, y = torch.randn(1, 3, 32), torch.randn(1, 3, 32)
    first, other = layer.q_proj(x), layer.k_proj(y)  # as a cross-attention would call them
    apart = theirs.base_model.model.model.layers[0].self_attn
    torch.testing.assert_close(first, apart.q_proj(x))
    torch.testing.assert_close(other, apart.k_proj(y))


def test_an_update_that_is_off_or_merged_is_left_to_peft():
    theirs, ours, _ = both(tiny_lora(tiny_model()))
    with theirs.disable_adapter(), ours.disable_adapter():
        torch.testing.assert_close(ours(IDS).logits, theirs(IDS).logits)
    plain = theirs(IDS).logits
    ours.merge_adapter()
    torch.testing.assert_close(ours(IDS).logits, plain, rtol=1e-4, atol=1e-4)
    ours.unmerge_adapter()
    torch.testing.assert_close(ours(IDS).logits, plain, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("options", [{"use_dora": True}, {"lora_bias": True}])
def test_updates_of_other_kinds_keep_their_own_forward_pass(options):
    _, ours, fused = both(tiny_lora(tiny_model(arch="gpt_neox"), **options))
    assert not any(isinstance(module, layers._Updated) for module, _ in fused.before)


def test_a_model_is_given_its_classes_back():
    model = tiny_lora(tiny_model())
    before = [type(module) for module in model.modules()]
    fused = layers.fuse(model, PLAIN)
    assert [type(module) for module in model.modules()] != before
    fused.undo()
    assert [type(module) for module in model.modules()] == before


def test_a_norm_with_another_formula_keeps_its_own(monkeypatch):
    model = tiny_model()
    kind = type(model.model.norm)
    monkeypatch.setattr(kind, "forward", lambda self, x: self.weight * x.abs())
    assert not any(issubclass(type(one), layers._Norm) for one, _ in layers.fuse(model, PLAIN).before)


def test_a_gated_pair_with_another_formula_keeps_its_own(monkeypatch):
    model = tiny_model()
    kind = type(model.model.layers[0].mlp)
    monkeypatch.setattr(
        kind, "forward", lambda self, x: self.down_proj(self.act_fn(self.gate_proj(x)) + self.up_proj(x))
    )
    assert not any(issubclass(type(one), layers._GatedPair) for one, _ in layers.fuse(model, PLAIN).before)


RANDOM = torch.Generator().manual_seed(7)


def leaf(*shape):
    return torch.randn(shape, generator=RANDOM, dtype=torch.float64).requires_grad_()


def layer(rank=2, dropout=0.0, out=5):
    return Layer(Dense(leaf(out, 6).detach(), leaf(out).detach()), leaf(rank, 6), leaf(out, rank), 0.7, dropout)


def by_hand(x, one):
    """What the layer is by its definition."""
    return x @ one.product.weight.T + one.product.bias + one.scale * (x @ one.down.T) @ one.up.T


@pytest.mark.parametrize("number", [1, 2, 3])
def test_linear_in_float64(number):
    x, some = leaf(2, 4, 6), [layer(rank=1 + n, out=4 + n) for n in range(number)]
    some[-1] = Layer(some[-1].product) if number == 3 else some[-1]
    found, expected = linear(x, some), []
    for one in some:
        expected.append(by_hand(x, one) if one.down is not None else x @ one.product.weight.T + one.product.bias)
    inputs = [x, *(matrix for one in some if one.down is not None for matrix in (one.down, one.up))]
    given = [leaf(*one.shape).detach() for one in expected]
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other)
    pulled = [torch.autograd.grad(results, inputs, given) for results in (found, expected)]
    for one, other in zip(*pulled, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("activation", ["silu", "gelu_tanh"])
def test_gated_linear(activation):
    gate, up, one = leaf(4, 6), leaf(4, 6), layer()
    acts = {"silu": torch.nn.functional.silu, "gelu_tanh": lambda x: torch.nn.functional.gelu(x, approximate="tanh")}
    found = gated_linear(gate.clone(), up.clone(), activation, PLAIN, one)  # it writes over what it is given
    expected = by_hand(acts[activation](gate) * up, one)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)  # the gate is float32
    given = leaf(4, 5).detach()
    inputs = [gate, up, one.down, one.up]
    for ours, theirs in zip(
        torch.autograd.grad(found, inputs, given), torch.autograd.grad(expected, inputs, given), strict=True
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_dropout_drops_a_share_and_its_gradient_knows_which():
    torch.manual_seed(5)
    x = torch.ones(400, 6, dtype=torch.float64, requires_grad=True)
    one = Layer(Dense(torch.zeros(6, 6, dtype=torch.float64), None), torch.eye(6).double().requires_grad_(),
                torch.eye(6).double().requires_grad_(), 1.0, 0.25)  # fmt: skip
    (found,) = linear(x, [one])
    kept = found.detach() != 0
    assert 0.7 < kept.double().mean() < 0.8
    torch.testing.assert_close(found[kept], torch.full_like(found[kept], 1 / 0.75))
    by_x, by_down = torch.autograd.grad(found.sum(), [x, one.down])
    torch.testing.assert_close(by_x, kept.double() / 0.75)  # the same mask in the backward pass
    torch.testing.assert_close(by_down, (kept.double() / 0.75).sum(0).expand(6, 6))
    torch.manual_seed(5)
    assert torch.equal(linear(x, [one])[0], found), "drawn from torch's own generator, as a resumed run draws it"


def test_dropout_of_layers_with_one_input_is_apart():
    torch.manual_seed(5)
    x, some = leaf(50, 6), [layer(dropout=0.5), layer(dropout=0.5)]
    found = linear(x, some)
    inputs = [x, *(matrix for one in some for matrix in (one.down, one.up))]
    ours = torch.autograd.grad([one.sum() for one in found], inputs)
    drawn = [
        (one - (x @ layer_.product.weight.T + layer_.product.bias)) for one, layer_ in zip(found, some, strict=True)
    ]
    assert not torch.allclose(drawn[0], drawn[1])
    step = 1e-6
    for place, tensor in enumerate(inputs):
        torch.manual_seed(5)
        moved = [one.detach().clone() for one in inputs]
        direction = torch.randn_like(tensor)
        moved[place] += step * direction
        again = [Layer(one.product, moved[1 + 2 * n], moved[2 + 2 * n], 0.7, 0.5) for n, one in enumerate(some)]
        torch.manual_seed(5)
        change = sum(one.sum() for one in linear(moved[0], again)) - sum(one.sum() for one in found)
        assert (change / step).item() == pytest.approx((ours[place] * direction).sum().item(), rel=1e-4)


def test_a_gated_pair_keeps_its_two_parts_and_no_product():
    """Of the tensors as wide as the pair that torch keeps (gate, its SiLU, up, product), two are kept."""
    theirs, ours, _ = both(tiny_lora(tiny_model()))

    def kept(model):
        seen = {}
        hold = lambda tensor: seen.__setitem__(tensor.data_ptr(), tensor) or tensor  # noqa: E731
        with torch.autograd.graph.saved_tensors_hooks(hold, lambda tensor: tensor):
            model(input_ids=IDS, use_cache=False)
        return sum(one.shape[-1] == 64 and one.shape[-2] in (13, 26) for one in seen.values())

    assert kept(ours) == 2 * 2 < kept(theirs)


def test_nothing_is_pulled_below_the_first_trained_layer():
    model = tiny_lora(tiny_model(), target_modules=["q_proj", "down_proj"], layers_to_transform=[1])
    _, ours, _ = both(model)
    seen = []
    for one in ours.base_model.model.model.layers:
        one.register_forward_hook(lambda module, args, out: seen.append(out.requires_grad))
    ours(input_ids=IDS, use_cache=False)
    assert seen == [False, True]
