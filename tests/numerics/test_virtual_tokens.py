"""Virtual tokens on packed rows are peft's own before each sequence: numbers, gradients, answers."""

import copy
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from peft import PeftModelForCausalLM

from fixtures_models import tiny_model
from numerics.packed import alone, gradients, packed_batch
from tunesmith.adapters.p_tuning import PTuning
from tunesmith.adapters.prefix import Prefix
from tunesmith.adapters.prompt import Prompt
from tunesmith.engine import attention, cuda_attention, kernels
from tunesmith.engine.activations import checkpoint_activations
from tunesmith.engine.elementwise import PLAIN
from tunesmith.engine.flops import Cost
from tunesmith.engine.virtual_tokens import behind
from tunesmith.generate.alone import logits_of
from tunesmith.generate.engine import greedy_ids
from tunesmith.recipe_train import Train

CLOSE = {"atol": 1e-5, "rtol": 1e-5}
ADAPTERS = {
    "prompt": Prompt(num_virtual_tokens=5, prompt_tuning_init="RANDOM"),
    "p_tuning": PTuning(num_virtual_tokens=5),
    "lstm": PTuning(num_virtual_tokens=3, encoder_reparameterization_type="LSTM", encoder_hidden_size=16),
    "prefix": Prefix(num_virtual_tokens=5),
    "projected": Prefix(num_virtual_tokens=4, prefix_projection=True, encoder_hidden_size=16),
}
LENGTHS = (11, 5, 17)


def adapted(name, **options):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        return ADAPTERS[name].apply(tiny_model(**options))


def plain(model):
    """The same model as peft has it."""
    peft = copy.deepcopy(model)
    peft.__class__ = PeftModelForCausalLM
    return peft


def of_targets(peft, batch):
    """peft's log-probabilities of the asked targets, each sequence alone, of which it gives virtual tokens some too."""
    found = []
    for first, last in pairwise(batch.offsets.tolist()):
        logits = peft(input_ids=batch.input_ids[:, first:last], use_cache=False).logits[:, first - last :]
        logps = logits.log_softmax(-1).gather(-1, batch.target[:, first:last, None])[..., 0]
        found.append(torch.where(batch.weight[:, first:last] != 0, logps, 0.0))
    return torch.cat(found, dim=1)


def both(model, batch, fused=True):
    """Log-probabilities and gradients of a batch: packed, and by peft."""
    peft = plain(model)
    chosen = kernels.choose(model)
    assert chosen.scorer.packed and chosen.scorer.fused and chosen.shares and not chosen.notes
    found = []
    scorer = chosen.scorer if fused else replace(chosen.scorer, fused=False)
    for one, logps in ((model, scorer(model, batch).logps), (peft, of_targets(peft, batch))):
        (logps * batch.weight).sum().backward()
        found.append((logps.detach(), gradients(one)))
    return found


@pytest.mark.parametrize("arch", ["llama", "qwen3", "gemma2"])
@pytest.mark.parametrize("name", ADAPTERS)
def test_packed_sequences_have_the_numbers_and_gradients_of_peft(name, arch):
    model = adapted(name, arch=arch)
    (logps, ours), (expected, theirs) = both(model, packed_batch(LENGTHS, 400))
    assert torch.allclose(logps, expected, **CLOSE)
    assert ours.keys() == theirs.keys() == {key for key, one in model.named_parameters() if one.requires_grad}
    assert all("prompt_encoder" in key for key in ours)
    for key, gradient in theirs.items():
        assert gradient.abs().max() > 1e-4 and torch.allclose(ours[key], gradient, atol=1e-4, rtol=1e-4), key


@pytest.mark.parametrize("name", ["prompt", "prefix"])
def test_windows_reach_back_over_virtual_tokens_as_with_peft(name):
    model = adapted(name, arch="mistral", sliding_window=8)
    (logps, _), (expected, _) = both(model, packed_batch((30, 6), 400), fused=False)
    assert torch.allclose(logps, expected, **CLOSE)


@pytest.mark.parametrize("name", ["prompt", "prefix"])
def test_shared_beginnings_go_on_from_the_virtual_tokens_too(name):
    model = adapted(name)
    peft = plain(model)
    scorer = kernels.choose(model).scorer
    whole = packed_batch((12, 16), 400, asked=1.0)
    ids = whole.input_ids.clone()
    ids[0, 12:19] = ids[0, :7]  # the second sequence begins as the first
    whole = replace(whole, input_ids=ids, target=ids.roll(-1, 1))
    keep = torch.tensor([*range(12), *range(19, 28)])
    fields = {key: getattr(whole, key)[:, keep] for key in ("input_ids", "position_ids", "target", "weight", "seq")}
    prefix, offsets = torch.tensor([[0, 0], [0, 7]]), torch.tensor([0, 12, 21], dtype=torch.int32)
    shared = replace(whole, **fields, offsets=offsets, longest=12, prefix=prefix)
    assert torch.allclose(scorer(model, shared).logps, of_targets(peft, whole)[:, keep], **CLOSE)


@pytest.mark.parametrize("name", ["prompt", "prefix"])
@pytest.mark.parametrize("choice", [True, "selective"])
def test_layers_that_compute_again_are_given_the_same(name, choice):
    batch = packed_batch(LENGTHS, 400)
    found = []
    for train in (Train(), Train(activation_checkpointing=choice)):
        model = adapted(name)
        checkpoint_activations(model, train)
        scorer = kernels.choose(model).scorer
        scorer(model.train(), batch).logps.sum().backward()
        found.append(gradients(model))
    assert all(torch.allclose(one, found[1][key], **CLOSE) for key, one in found[0].items())


@pytest.mark.parametrize("name", ["prompt", "prefix"])
def test_without_the_adapter_the_base_model_is_what_it_was(name):
    model, batch = adapted(name), packed_batch(LENGTHS, 400)
    scorer = kernels.choose(model).scorer
    with model.disable_adapter():
        off = scorer(model, batch).logps
    assert torch.allclose(off, alone(tiny_model(), batch), **CLOSE)
    assert (scorer(model, batch).logps - off).abs().max() > 0.1


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")  # as it runs on a CPU
def test_kernels_of_gpus_see_the_same_rows():
    packed = attention.Layout.of(packed_batch(LENGTHS, 400), PLAIN)
    longer = behind(packed, 5, None)
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(1, 4, 38, 8, generator=generator) for _ in range(3))
    flex = cuda_attention.attend("flex", q, k, v, None, None, None, longer)
    ours, _ = attention.packed_attention(torch.nn.Identity(), q, k, v, None, packed=longer)
    assert torch.allclose(flex, ours, **CLOSE)
    rows = cuda_attention._rows(longer)
    assert rows.bounds[1].tolist() == [0, 5, 21, 31, 53] and rows.bounds[3] == longer.longest == 22


@pytest.mark.filterwarnings("ignore:Position ids are not supported")  # which peft's own generate then leaves out
@pytest.mark.parametrize("name", ["prompt", "p_tuning", "prefix"])
def test_greedy_answers_are_those_of_peft(name):
    model = adapted(name).eval()
    prompt = list(range(7, 19))
    expected = (
        plain(model)
        .generate(input_ids=torch.tensor([prompt]), max_new_tokens=8, do_sample=False, eos_token_id=None)[0, -8:]
        .tolist()
    )
    for one in (model, plain(model)):
        assert list(greedy_ids(one, prompt, 8)) == expected
        assert logits_of(one, prompt, expected).argmax(-1).tolist() == expected


def test_a_row_of_several_sequences_needs_packed_attention():
    model, batch = adapted("prompt"), packed_batch(LENGTHS, 400)
    with pytest.raises(NotImplementedError, match="which only packed attention does"):
        model(input_ids=batch.input_ids, position_ids=batch.position_ids)


def test_operations_of_a_backward_pass_are_counted_in_all_layers():
    base = Cost.of(tiny_model().requires_grad_(False))
    assert Cost.of(adapted("prompt")).per_token == 2 * base.per_token
