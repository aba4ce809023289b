"""Where a model and its tokenizer come from, and what is said when they cannot be had."""

import io
import json
import shutil

import huggingface_hub
import pytest
import transformers

import fixtures_models
from tunesmith.engine import hub
from tunesmith.engine.model import base_of, is_adapted, load_config, load_model, load_tokenizer, with_padding
from tunesmith.errors import ModelError
from tunesmith.generate.engine import Generator
from tunesmith.recipe import Model


def opened(model):
    return Generator.open(model.path, "cpu")


@pytest.fixture
def folder(tmp_path):
    return fixtures_models.save_model(tmp_path / "model")


def test_a_tokenizer_of_its_own_is_a_folder_from_anywhere(folder, tmp_path, monkeypatch):
    place = tmp_path / "home" / "tokenizer"
    fixtures_models.tiny_tokenizer().save_pretrained(place)
    shutil.rmtree(folder)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path / "home")
    for said in ("~/tokenizer", "tokenizer", "./tokenizer", str(place)):
        assert load_tokenizer(Model(path=str(folder), tokenizer=said)).name_or_path == str(place)
    with pytest.raises(ModelError, match="there is no built-in model 'builtin:none'"):
        load_tokenizer(Model(path=str(folder), tokenizer="builtin:none"))
    with pytest.raises(ModelError, match=r"there is no tokenizer folder \./nowhere"):
        load_tokenizer(Model(path=str(folder), tokenizer="./nowhere"))


def test_a_revision_is_of_the_models_repository_alone(folder, monkeypatch):
    asked = []
    own = transformers.AutoTokenizer.from_pretrained

    def from_pretrained(place, revision, trust_remote_code):
        asked.append(revision)
        return own(place)

    monkeypatch.setattr(transformers.AutoTokenizer, "from_pretrained", from_pretrained)
    load_tokenizer(Model(path=str(folder), revision="v2"))
    load_tokenizer(Model(path="some/model", revision="v2", tokenizer=str(folder)))
    assert asked == ["v2", None]


@pytest.mark.parametrize("load", [load_config, load_tokenizer, lambda model: load_model(model, "cpu"), opened])
def test_code_that_comes_with_a_model_is_never_run(folder, tmp_path, monkeypatch, load):
    """Whatever a pipe says: transformers would ask for leave on the terminal."""
    places = {"AutoConfig": "own.Own", "AutoModelForCausalLM": "own.Own", "AutoTokenizer": ["own.Own", "own.Own"]}
    for name in ("config.json", "tokenizer_config.json"):
        said = json.loads((folder / name).read_text())
        (folder / name).write_text(
            json.dumps(said | {"auto_map": places, "model_type": "own", "tokenizer_class": "Own"})
        )
    (folder / "own.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass Own: pass\n")
    monkeypatch.setattr("sys.stdin", io.StringIO("y\n" * 9))
    with pytest.raises(ModelError, match="model comes with code of its own, which is not run here"):
        load(Model(path=str(folder)))
    assert not (tmp_path / "ran").exists()


def test_a_hub_id_that_cannot_be_had_may_have_been_meant_as_a_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    says = rf"models/mine is neither a folder here \(in {tmp_path}\) nor can it be loaded from the hub: .+"
    for load in (load_tokenizer, lambda model: load_model(model, "cpu")):
        with pytest.raises(ModelError, match=says) as caught:
            load(Model(path="models/mine"))
        assert "\n" not in str(caught.value)


def test_a_hub_that_cannot_be_reached_is_asked_once_and_its_cache_is_read(folder, tmp_path, monkeypatch):
    asked = []

    def lost(self, name, **options):
        asked.append(name)
        raise OSError("no network")

    monkeypatch.setattr(huggingface_hub, "is_offline_mode", lambda: False)
    own, told = transformers.AutoConfig.from_pretrained, []
    monkeypatch.setattr(
        transformers.AutoConfig, "from_pretrained", lambda name, **options: told.append(options) or own(name, **options)
    )
    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", lost)
    hub.unreachable.cache_clear()
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    with pytest.raises(
        ModelError, match=r"from the hub: it cannot be reached \(no network\), and its cache .* not hold"
    ):
        load_config(Model(path="models/mine"))
    snapshot = tmp_path / "cache" / "models--models--mine" / "snapshots" / ("0" * 40)
    snapshot.parent.mkdir(parents=True)
    shutil.copytree(folder, snapshot)
    (tmp_path / "cache" / "models--models--mine" / "refs").mkdir()
    (tmp_path / "cache" / "models--models--mine" / "refs" / "main").write_text("0" * 40)
    assert load_config(Model(path="models/mine")).vocab_size == load_config(Model(path=str(folder))).vocab_size
    assert asked == ["models/mine"]
    assert [options.get("local_files_only") for options in told] == [True, True, None]  # the last is of the folder
    hub.unreachable.cache_clear()


def test_a_broken_folder_is_said_to_be_one(folder):
    (folder / "model.safetensors").write_bytes(b"broken")
    with pytest.raises(ModelError, match=f"{folder} cannot be loaded: "):
        load_model(Model(path=str(folder)), "cpu")


def test_the_base_of_a_model():
    plain = fixtures_models.tiny_model()
    assert not is_adapted(plain) and base_of(plain) is plain
    adapted = fixtures_models.tiny_lora(plain)
    assert is_adapted(adapted) and base_of(adapted) is plain


def test_a_tokenizer_without_padding_gets_some_for_values_alone(folder):
    tokenizer = fixtures_models.tiny_tokenizer()
    tokenizer.pad_token = None
    tokenizer.save_pretrained(folder)
    loaded = load_tokenizer(Model(path=str(folder)))
    assert loaded.pad_token is None
    assert with_padding(loaded).pad_token == loaded.eos_token == "<|im_end|>"
