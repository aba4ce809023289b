"""Adapters by name: each answer as with its adapter alone, in one pass with others, and without merging."""

import json
import shutil
import warnings
from pathlib import Path

import pytest
import torch

import fixtures_models
from tunesmith.errors import ModelError
from tunesmith.generate.alone import Alone, logits_of
from tunesmith.generate.asked import Sampling
from tunesmith.generate.batch import Request
from tunesmith.generate.choose import followed
from tunesmith.generate.engine import Generator
from tunesmith.generate.load import load

OPTIONS = {
    "plain.v1": {},
    "small": {"r": 2, "lora_alpha": 32, "target_modules": ["q_proj", "v_proj"]},
    "rs": {"use_rslora": True, "r": 8, "rank_pattern": {"o_proj": 3}, "target_modules": ["o_proj", "down_proj"]},
}
PROMPTS = ([5, 6, 7, 8, 9, 10], [200, 201, 202], [33] * 20)


def write(folder, base, seed=1, **options):
    model = fixtures_models.tiny_model()
    model.name_or_path = str(base)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # peft's, of tied embeddings that are adapted
        fixtures_models.tiny_lora(model, seed=seed, **options).save_pretrained(folder)
    return str(folder)


def change(folder, **options):
    file = Path(folder) / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | options))


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    place = tmp_path_factory.mktemp("adapters")
    base = fixtures_models.save_model(place / "base")
    adapters = {name: write(place / name, base, number, **more) for number, (name, more) in enumerate(OPTIONS.items())}
    return str(base), adapters


@pytest.mark.parametrize("kind", ["together", "alone"])
def test_each_answer_is_that_of_its_adapter_alone(folders, kind):
    base, adapters = folders
    generator = Generator(*load(base, adapters=adapters))
    if kind == "alone":
        generator = Generator(generator.model, generator.tokenizer, Alone(generator.model))
    batch = generator.batch()
    asked = [(prompt, name) for prompt in PROMPTS for name in ("rs", None, "plain.v1", "small")]
    streams = [batch.add(Request(tuple(prompt), Sampling(max_new_tokens=9), name)) for prompt, name in asked]
    while batch.waiting or batch.running:
        batch.step()
    alone = {name: Generator(*load(folder)) for name, folder in ({None: base} | adapters).items()}
    for (prompt, name), stream in zip(asked, streams, strict=True):
        single = alone[name].batch().add(Request(tuple(prompt), Sampling(max_new_tokens=9)))
        assert [token.id for piece in single for token in piece.tokens] == stream.ids, name
    assert len({tuple(stream.ids) for stream in streams[:4]}) == 4  # the adapters say something


def test_logits_are_those_of_the_adapter_alone(folders):
    base, adapters = folders
    decoder = Generator(*load(base, adapters=adapters)).decoder
    assert decoder.adapters == tuple(adapters)
    text = [5, 6, 7, 8, 9, 10, 11, 12]
    names = (None, "small", "plain.v1", None, "rs", "small")
    found = followed(decoder, [text] * len(names), (4,) * len(names), names)
    for name, logits in zip(names, found, strict=True):
        model, _ = load(base if name is None else adapters[name])
        torch.testing.assert_close(logits, logits_of(model, text[:4], [*text[4:], 0]), atol=1e-5, rtol=0)


def test_a_wrong_name_has_a_near_match(folders):
    base, adapters = folders
    batch = Generator.open(base, adapters=adapters).batch()
    with pytest.raises(ModelError, match="no adapter 'smal' on the model. Did you mean 'small'"):
        batch.add(Request((1, 2), Sampling(), "smal"))
    with pytest.raises(ModelError, match="no adapter 'small'"):
        Generator.open(base).batch().add(Request((1, 2), Sampling(), "small"))


@pytest.mark.parametrize(
    ("options", "what"),
    [
        ({"use_dora": True}, "has use_dora"),
        ({"modules_to_save": ["lm_head"]}, "has modules_to_save"),
        ({"target_modules": ["embed_tokens"]}, "no plain product"),
        ({"bias": "lora_only"}, "has bias"),
    ],
)
def test_what_is_no_plain_lora_is_refused_in_one_line(folders, tmp_path, options, what):
    base, adapters = folders
    folder = write(tmp_path / "odd", base, **options)
    with (
        pytest.raises(ModelError, match=f"the adapter odd .*{what}.*answer with it alone") as caught,
        warnings.catch_warnings(action="ignore"),
    ):
        load(base, adapters={"small": adapters["small"], "odd": folder})
    assert "\n" not in str(caught.value)


def test_another_kind_and_no_adapter_and_an_adapter_as_base_are_refused(folders, tmp_path):
    from peft import IA3Config, get_peft_model

    base, adapters = folders
    config = IA3Config(task_type="CAUSAL_LM", target_modules=["k_proj"], feedforward_modules=[])
    get_peft_model(fixtures_models.tiny_model(), config).save_pretrained(tmp_path / "ia3")
    with pytest.raises(ModelError, match="is of peft's type IA3"):
        load(base, adapters={"one": str(tmp_path / "ia3")})
    with pytest.raises(ModelError, match="is no adapter"):
        load(base, adapters={"one": base})
    with pytest.raises(ModelError, match="is an adapter: name its base model"):
        load(adapters["rs"], adapters={"one": adapters["small"]})


def test_an_adapter_of_another_base_is_told_and_one_that_does_not_fit_refused(folders, tmp_path, caplog):
    base, adapters = folders
    place = write(tmp_path / "moved", base)
    change(place, base_model_name_or_path="elsewhere/model")
    load(base, adapters={"moved": place})
    assert "moved was trained on elsewhere/model, and is put on" in caplog.text
    change(place, r=3)
    with pytest.raises(ModelError, match="moved cannot be put on"):
        load(base, adapters={"small": adapters["small"], "one": place})


def test_each_answer_ends_where_its_adapter_was_trained_to_end(folders, tmp_path):
    """The base ends with a token that training did not; of the adapter's folder one file or the other says which."""
    from transformers import GenerationConfig

    base, adapters = folders
    prompt, most = (5, 6, 7, 8, 9, 10), Sampling(max_new_tokens=9)
    free = Generator(*load(adapters["rs"]))
    text = free.batch().add(Request(prompt, most))
    end = [token.id for piece in text for token in piece.tokens][4]
    by_config, by_tokenizer = tmp_path / "config", tmp_path / "tokenizer"
    for folder in (by_config, by_tokenizer):
        shutil.copytree(adapters["rs"], folder)
    GenerationConfig(eos_token_id=[end]).save_pretrained(by_config)
    tokenizer = fixtures_models.tiny_tokenizer()
    tokenizer.eos_token = tokenizer.convert_ids_to_tokens(end)
    tokenizer.save_pretrained(by_tokenizer)
    named = {"config": str(by_config), "tokenizer": str(by_tokenizer), "neither": adapters["rs"]}
    generator = Generator(*load(base, adapters=named))
    batch = generator.batch()
    streams = {name: batch.add(Request(prompt, most, name)) for name in (*named, None)}
    for stream in streams.values():
        list(stream)
    for name, folder in named.items():
        alone = Generator(*load(folder))
        assert generator.written(name).stops == alone.stops
        single = alone.batch().add(Request(prompt, most))
        assert [token.id for piece in single for token in piece.tokens] == streams[name].ids
    assert [streams[name].finish for name in named] == ["stop", "stop", "length"]
    assert len(streams["config"].ids) == text.ids.index(end) == len(streams["tokenizer"].ids)
    assert end not in generator.written().stops


def test_stretched_positions_are_refused_and_a_base_in_few_bits_is_told(folders, tmp_path, caplog):
    base, adapters = folders
    stretched, rounded, same = tmp_path / "stretched", tmp_path / "rounded", tmp_path / "same"
    for folder in (stretched, rounded, same):
        shutil.copytree(adapters["small"], folder)
    config = fixtures_models.tiny_config()
    config.rope_parameters = {"rope_type": "linear", "factor": 4.0, "rope_theta": 10000.0}
    config.save_pretrained(stretched)
    with pytest.raises(ModelError, match="the adapter far .*rotary positions that are stretched otherwise"):
        load(base, adapters={"far": str(stretched)})
    model = fixtures_models.save_model(tmp_path / "long", tokenizer=None)
    config.save_pretrained(model)
    load(str(model), adapters={"far": str(stretched)})
    with pytest.raises(ModelError, match="rotary positions"):  # those of the base are, and it was trained without
        fixtures_models.tiny_config().save_pretrained(same)
        load(str(model), adapters={"near": str(same)})
    (rounded / "quantization_config.json").write_text(json.dumps({"quant_method": "bitsandbytes"}))
    load(base, adapters={"few": str(rounded)})
    assert "the adapter few was trained with its base held in bitsandbytes, and answers here with" in caplog.text


def test_a_server_asks_an_adapter_with_its_tokenizer_and_holds_it_to_its_ends(folders, tmp_path):
    from transformers import GenerationConfig

    from tunesmith.serve.options import Serving
    from tunesmith.serve.served import Served

    base, adapters = folders
    shutil.copytree(adapters["rs"], tmp_path / "rs")
    GenerationConfig(eos_token_id=[7, 9]).save_pretrained(tmp_path / "rs")
    fixtures_models.tiny_tokenizer("its own").save_pretrained(tmp_path / "rs")
    served = Served.open(base, Serving(adapter=(f"rs={tmp_path}/rs",), device="cpu"))
    try:
        assert served.speaker("rs").tokenizer.chat_template == "its own"
        assert served.forms(served.speaker("rs")).stops == {7, 9, 2}
        assert served.forms(served.speaker(None)).stops == {2}
    finally:
        served.close()
