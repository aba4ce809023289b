"""What every adapter says of itself is so: what it trains, what it saves, who loads it, what it is merged to.

An adapter of a new file is tested here by its name alone. What needs options to be one at all has them in OPTIONS.
"""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file

from fixtures_models import save_model, tiny_model
from tunesmith import Recipe, resume, train
from tunesmith.component import all_of
from tunesmith.engine.compat import peft_warnings
from tunesmith.errors import RunError
from tunesmith.exports.merged import Merged
from tunesmith.seams import Adapter

NAMES = sorted(all_of(Adapter))
OPTIONS: dict[str, dict] = {
    "adalora": {"init_r": 6, "target_r": 3},
    "fourierft": {"n_frequency": 100},
    "hira": {"r": 4},
    "llama_pro": {"num_new_layers": 1},
    "miss": {"r": 8},
    "oft": {"oft_block_size": 8},
    "vera": {"r": 16},
}
RATE = {"full": 1e-3, "freeze": 3e-3, "ia3": 3e-2, "fourierft": 2e-2}  # of the runs; others 1e-2
MODEL = {"bitfit": {"arch": "qwen2"}}  # of the runs; others a llama, which has no biases
STEPS = 8
ATTENTION = tuple(f"self_attn.{one}_proj" for one in "qkvo")
LINEAR = (*ATTENTION, "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")
NORMS = ("input_layernorm", "post_attention_layernorm")
LAYERS = tuple(f"model.layers.{number}." for number in range(2))
BLOCK = tuple(f"{one}.weight" for one in (*LINEAR, *NORMS))
TRAINED = {  # the parameters that each trains of a model of two layers, as its file says it
    "full": ("model.embed_tokens.weight", "model.norm.weight", *(f"{of}{one}" for of in LAYERS for one in BLOCK)),
    "freeze": tuple(f"{of}{one}" for of in LAYERS for one in BLOCK),
    "llama_pro": tuple(f"model.layers.2.{one}" for one in BLOCK),
    "bitfit": tuple(f"{of}{one}.bias" for of in LAYERS for one in ATTENTION[:3]),
    "prompt": ("prompt_encoder.default.embedding.weight",),
    "prefix": ("prompt_encoder.default.embedding.weight",),
    "p_tuning": (
        "prompt_encoder.default.embedding.weight",
        *(f"prompt_encoder.default.mlp_head.{number}.{one}" for number in (0, 2, 4) for one in ("weight", "bias")),
    ),
    "layernorm": (
        "base_model.model.model.norm.ln_tuning_layers.default.weight",
        *(f"base_model.model.{of}{one}.ln_tuning_layers.default.weight" for of in LAYERS for one in NORMS),
    ),
}
BESIDE_LAYERS = {  # those that are beside layers: what of each
    "lora": (LINEAR, ("lora_A.default.weight", "lora_B.default.weight")),
    "adalora": (LINEAR, ("lora_A.default", "lora_B.default", "lora_E.default")),
    "hira": (LINEAR, ("hira_A.default", "hira_B.default")),
    "vera": (LINEAR, ("vera_lambda_b.default", "vera_lambda_d.default")),
    "loha": (LINEAR, tuple(f"hada_w{one}_{part}.default" for one in "12" for part in "ab")),
    "lokr": (LINEAR, ("lokr_w1.default", "lokr_w2.default")),
    "miss": (LINEAR, ("miss_block.default",)),
    "oft": (LINEAR, ("oft_R.default.weight",)),
    "fourierft": (LINEAR, ("fourierft_spectrum.default",)),
    "ia3": (("self_attn.k_proj", "self_attn.v_proj", "mlp.down_proj"), ("ia3_l.default",)),
}
TRAINED |= {
    name: tuple(f"base_model.model.{of}{layer}.{end}" for of in LAYERS for layer in layers for end in ends)
    for name, (layers, ends) in BESIDE_LAYERS.items()
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Makes a run of an adapter once."""
    folder = tmp_path_factory.mktemp("adapters")
    rows = [{"instruction": f"What is {i} and 1?", "output": f"It is {i + 1}, sure!"} for i in range(16)]
    (folder / "rows.json").write_text(json.dumps(rows))
    made = {}

    def base(name):
        place = folder / f"model-{MODEL.get(name, {}).get('arch', 'llama')}"
        if not place.exists():
            save_model(place, model_of(name))
        return place

    def run(name):
        if name not in made:
            recipe = Recipe(
                model={"path": str(base(name)), "dtype": "float32"},
                data={
                    "train": str(folder / "rows.json"),
                    "max_tokens": 64,
                    "eval": 2,
                    "cache_dir": str(folder / "cache"),
                },
                adapter={"type": name, **OPTIONS.get(name, {})},
                optimizer={"learning_rate": RATE.get(name, 1e-2)},
                train={
                    "max_steps": STEPS,
                    "row_tokens": 256,
                    "save_steps": 3,
                    "save_total_limit": 9,
                    "warmup_steps": 0,
                    "device": "cpu",
                    "output_dir": str(folder / name),
                },
            )
            made[name] = train(recipe).folder
        return made[name]

    run.base = base
    return run


def model_of(name):
    return tiny_model(scale=0.1, **MODEL.get(name, {}))


def lines(run):
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def logits(model):
    ids = torch.arange(20)[None] * 7 % 300
    with torch.no_grad():
        return model.eval()(input_ids=ids).logits


@pytest.mark.parametrize("name", NAMES)
def test_it_trains_what_it_says_and_nothing_else(name):
    model = all_of(Adapter)[name](**OPTIONS.get(name, {})).apply(model_of(name))
    before = {name: one.detach().clone() for name, one in model.named_parameters()}
    trained = [one for one in model.parameters() if one.requires_grad]
    optimizer = torch.optim.SGD(trained, lr=0.5)
    ids = torch.arange(24).view(2, 12)
    for _ in range(2):  # of some updates one half is 0 at first, and the other has no gradient
        optimizer.zero_grad()
        model.train()(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
    changed = {name for name, one in model.named_parameters() if not torch.equal(one, before[name])}
    assert changed == {name for name, one in model.named_parameters() if one.requires_grad}
    assert changed == {*TRAINED.get(name, changed)}  # a new file's are said here when somebody has looked at them


@pytest.mark.parametrize("name", NAMES)
def test_the_held_out_loss_falls(name, runs):
    losses = [line["eval_loss"] for line in lines(runs(name)) if "eval_loss" in line]
    assert losses[-1] < losses[0]


@pytest.mark.parametrize("name", NAMES)
def test_plain_libraries_load_what_was_saved_and_it_is_the_adapter_alone(name, runs):
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    final = runs(name) / "final"
    if not all_of(Adapter)[name].beside:
        logits(AutoModelForCausalLM.from_pretrained(final))
        assert not (final / "adapter_config.json").exists()
        return
    base = AutoModelForCausalLM.from_pretrained(runs.base(name))
    own = logits(base)
    stored = load_file(final / "adapter_model.safetensors")
    assert not set(stored) & set(base.state_dict()) and sum(map(torch.numel, stored.values())) < base.num_parameters()
    with peft_warnings():
        adapted = PeftModel.from_pretrained(base, final)
    assert (logits(adapted)[:, -20:] - own).abs().max() > 1e-4, "it was trained"


@pytest.mark.parametrize("name", NAMES)
def test_it_is_merged_to_the_same_answers_or_says_why_it_cannot(name, runs, tmp_path):
    reason = all_of(Adapter)[name].unmerged
    if reason is None:
        report = Merged(device="cpu").write(runs(name), tmp_path / "merged")
        assert report.passed and report.largest_logit_difference < 1e-3
        return
    with pytest.raises(RunError) as error:
        Merged(device="cpu").write(runs(name), tmp_path / "merged")
    assert reason in str(error.value) and not (tmp_path / "merged").exists()


@pytest.mark.parametrize("name", NAMES)
def test_it_goes_on_bit_for_bit(name, runs, tmp_path):
    first = runs(name)
    shutil.copytree(first, tmp_path / "again")
    shutil.rmtree(tmp_path / "again/final")
    for folder in (tmp_path / "again/checkpoints").glob("step-*"):
        if int(folder.name.removeprefix("step-")) > 3:
            shutil.rmtree(folder)
    again = resume(tmp_path / "again").folder
    assert [line["loss"] for line in lines(again) if "loss" in line] == [
        line["loss"] for line in lines(first) if "loss" in line
    ]
    for path in (first / "final").glob("*.safetensors"):
        expected, found = load_file(path), load_file(again / "final" / path.name)
        assert expected.keys() == found.keys()
        assert all(torch.equal(one, found[key]) for key, one in expected.items())
