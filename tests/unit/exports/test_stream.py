"""Merging tensor by tensor: the same weights as peft's own merge of a whole model, whatever the adapter."""

import json
import warnings

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file

import fixtures_models
from tunesmith.engine.compat import peft_warnings
from tunesmith.engine.model import without_progress_bar
from tunesmith.exports.merging import paged, stream, tensors

ALL = {"target_modules": "all-linear", "task_type": "CAUSAL_LM"}
SOME = {"target_modules": ["q_proj"], "task_type": "CAUSAL_LM"}
KINDS = {
    "lora": lambda: peft.LoraConfig(r=4, **ALL),
    "dora": lambda: peft.LoraConfig(r=4, use_dora=True, **ALL),
    "rslora": lambda: peft.LoraConfig(
        r=4, use_rslora=True, rank_pattern={"q_proj": 2}, alpha_pattern={"k_proj": 3}, **ALL
    ),
    "lora_bias": lambda: peft.LoraConfig(r=4, lora_bias=True, **SOME),
    "parameters": lambda: peft.LoraConfig(
        r=4, target_modules=[], target_parameters=["up_proj.weight"], task_type="CAUSAL_LM"
    ),
    "tokens": lambda: peft.LoraConfig(r=4, trainable_token_indices=[3, 5], **SOME),
    "adalora": lambda: peft.AdaLoraConfig(init_r=6, target_r=3, total_step=10, **ALL),
    "vera": lambda: peft.VeraConfig(r=16, target_modules=["q_proj", "o_proj"], task_type="CAUSAL_LM"),
    "fourierft": lambda: peft.FourierFTConfig(n_frequency=100, **ALL),
    "oft": lambda: peft.OFTConfig(oft_block_size=8, **ALL),
    "ia3": lambda: peft.IA3Config(
        target_modules=["k_proj", "down_proj"], feedforward_modules=["down_proj"], task_type="CAUSAL_LM"
    ),
    "loha": lambda: peft.LoHaConfig(r=4, **ALL),
    "lokr": lambda: peft.LoKrConfig(r=4, **ALL),
    "hira": lambda: peft.HiraConfig(r=4, **ALL),
    "miss": lambda: peft.MissConfig(r=8, **ALL),
    "layernorm": lambda: peft.LNTuningConfig(target_modules=["input_layernorm"], task_type="CAUSAL_LM"),
}
TIED = {  # of a model with one matrix for both embeddings: what is written, and whether they are still one
    "untouched": (lambda: peft.LoraConfig(r=4, **SOME), True),
    "tokens": (KINDS["tokens"], True),
    "head": (lambda: peft.LoraConfig(r=4, target_modules=["lm_head"], task_type="CAUSAL_LM"), False),
    "embeddings": (lambda: peft.LoraConfig(r=4, target_modules=["embed_tokens"], task_type="CAUSAL_LM"), False),
    "whole head": (lambda: peft.LoraConfig(r=4, modules_to_save=["lm_head"], **SOME), False),
}


def adapted(folder, config, arch="qwen2", **model):
    """An adapter of random numbers in a folder; the model with it beside its weights."""
    base = fixtures_models.save_model(folder / "base", fixtures_models.tiny_model(arch=arch, **model))
    loaded = fixtures_models.tiny_model(arch=arch, **model)
    loaded.name_or_path = str(base)
    with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
        warnings.simplefilter("ignore")
        torch.manual_seed(0)
        wrapped = peft.get_peft_model(loaded, config).eval()
        with torch.no_grad():
            for name, one in wrapped.named_parameters():
                if one.requires_grad:
                    one.add_(torch.randn(one.shape) * (0.5 if "vera" in name else 0.05))
        wrapped.save_pretrained(folder / "adapter", save_embedding_layers=False)
    return wrapped


def written(folder, **options):
    with peft_warnings(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*tie_word_embeddings")
        plan = stream.plan(str(folder / "adapter"), "auto")
    (folder / "out").mkdir()
    plan.write(folder / "out", **{"limit": 10**9} | options)
    found = {name: one.read() for name, one in tensors.stored(tensors.files_of(folder / "out")).items()}
    return found, json.loads((folder / "out" / "config.json").read_text())


@pytest.mark.parametrize("kind", KINDS)
def test_weights_are_those_of_pefts_own_merge(kind, tmp_path):
    whole = adapted(tmp_path, KINDS[kind](), tied=False)
    before = load_file(tmp_path / "base" / "model.safetensors")
    merged = whole.merge_and_unload().state_dict()
    found, _ = written(tmp_path)
    assert found.keys() == merged.keys()
    for name, one in merged.items():
        torch.testing.assert_close(found[name], one, rtol=0, atol=1e-6, msg=name)
    assert any((one - before[name]).abs().max() > 1e-3 for name, one in found.items())


@pytest.mark.parametrize("arch", ["mixtral", "qwen3_moe"])
def test_experts_are_parted_again(arch, tmp_path):
    """What is one matrix in memory, and is updated there, is stored by its experts as before."""
    targets = ["experts.gate_up_proj", "experts.down_proj"]
    config = peft.LoraConfig(r=4, target_modules=["q_proj"], target_parameters=targets, task_type="CAUSAL_LM")
    sizes = {"num_local_experts": 4} if arch == "mixtral" else {"num_experts": 4, "moe_intermediate_size": 16}
    whole = adapted(tmp_path, config, arch=arch, tied=False, **sizes)
    with without_progress_bar():
        whole.merge_and_unload().save_pretrained(tmp_path / "whole")
    merged, before = load_file(tmp_path / "whole" / "model.safetensors"), load_file(tmp_path / "base/model.safetensors")
    found, _ = written(tmp_path)
    assert found.keys() == merged.keys() == before.keys()
    for name, one in merged.items():
        torch.testing.assert_close(found[name], one, rtol=0, atol=1e-6, msg=name)
        assert torch.equal(one, before[name]) is not any(word in name for word in ("q_proj", "experts."))


@pytest.mark.parametrize("kind", TIED)
def test_embeddings_that_are_one(kind, tmp_path):
    """They stay one where both say the same after the merge, and are two where they do not."""
    from transformers import AutoModelForCausalLM

    config, one = TIED[kind]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        tuned = adapted(tmp_path, config(), tied=True)
        found, stored = written(tmp_path)
    assert stored["tie_word_embeddings"] is one and ("lm_head.weight" in found) is not one
    ids = torch.arange(20)[None]
    with torch.no_grad():
        plain = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
        torch.testing.assert_close(plain(ids).logits, tuned(ids).logits, rtol=0, atol=1e-5)


def test_config_is_what_transformers_writes(tmp_path):
    whole = adapted(tmp_path, KINDS["lora"](), tied=True)
    whole.merge_and_unload().save_pretrained(tmp_path / "whole")
    _, config = written(tmp_path)
    other = json.loads((tmp_path / "whole" / "config.json").read_text())
    assert config == other


def test_adapters_on_each_other_are_merged_in_order(tmp_path):
    first = adapted(tmp_path, KINDS["dora"](), tied=False)
    second = adapted(tmp_path / "second", peft.LoraConfig(r=2, **SOME), tied=False)
    base = first.merge_and_unload()
    second.base_model.model.load_state_dict(
        {name.replace("q_proj.", "q_proj.base_layer."): value for name, value in base.state_dict().items()},
        strict=False,
    )
    wanted = second.merge_and_unload().state_dict()
    with peft_warnings():
        plan = stream.plan(str(tmp_path / "adapter"), "auto", [str(tmp_path / "second" / "adapter")])
    assert plan.num_adapters == 2
    (tmp_path / "out").mkdir()
    plan.write(tmp_path / "out", 10**9)
    found = load_file(tmp_path / "out" / "model.safetensors")
    for name, one in wanted.items():
        torch.testing.assert_close(found[name], one, rtol=0, atol=1e-6, msg=name)


def test_biases_of_the_model_itself_are_merged_as_before(tmp_path):
    adapted(tmp_path, peft.LoraConfig(r=4, bias="lora_only", **SOME))
    with peft_warnings():
        assert stream.plan(str(tmp_path / "adapter"), "auto") is None


def test_files_are_what_safetensors_writes(tmp_path):
    values = {
        "a": torch.randn(3, 4), "b": torch.arange(5), "c": torch.zeros(0, 2), "d": torch.tensor(2.0).bfloat16(),
        "e": torch.randn(7, dtype=torch.float16),
    }  # fmt: skip
    specs = [tensors.Spec(name, one.dtype, tuple(one.shape)) for name, one in values.items()]
    tensors.write(tmp_path, specs, values.values(), 60)
    read = {}
    for file in tensors.files_of(tmp_path):
        read |= load_file(file)
    assert len(tensors.files_of(tmp_path)) > 1
    save_file(values, tmp_path / "theirs")
    theirs = {name: one.read() for name, one in tensors.stored([tmp_path / "theirs"]).items()}
    for found in (read, theirs):
        assert found.keys() == values.keys()
        assert all(torch.equal(found[name], one) and found[name].dtype == one.dtype for name, one in values.items())


@pytest.mark.parametrize("tied", [True, False])
def test_a_model_of_pages_answers_the_same(tied, tmp_path):
    from transformers import AutoModelForCausalLM

    tuned = adapted(tmp_path, KINDS["dora"](), tied=tied)
    ids = torch.arange(20)[None]
    with torch.no_grad():
        own = tuned(ids).logits
        base = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
        with peft_warnings():
            loaded = peft.PeftModel.from_pretrained(base, tmp_path / "adapter").eval()
        paged.page(loaded, [tmp_path / "base" / "model.safetensors"])
        hooked = [module for module in loaded.modules() if module._forward_hooks]
        pages = [span for module in hooked for hook in module._forward_hooks.values() for span in hook.spans]
        assert sum(length for _, _, length in pages) > 0
        for _ in range(2):
            assert torch.equal(loaded(ids).logits, own)
