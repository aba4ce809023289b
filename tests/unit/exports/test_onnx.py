"""The graph of a run says what the run says, in ONNX Runtime."""

from importlib.util import find_spec

import pytest

from tunesmith.errors import MissingExtra, RunError
from tunesmith.exports.onnx import Onnx
from unit.exports.test_exports import flip, make_run, unchanged

LACKS = [name for name in ("onnx", "onnxscript", "onnxruntime") if find_spec(name) is None]


@pytest.mark.skipif(bool(LACKS), reason=f"{LACKS} are not installed")
@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning", "ignore::UserWarning")
def test_a_graph_says_what_the_run_says_and_is_caught_when_it_does_not(tmp_path):
    run = make_run(tmp_path, "qwen2", prompts=["What is two and three?"])
    out = tmp_path / "out"
    report = Onnx(device="cpu").write(run, out)
    assert report.passed and report.same_greedy_tokens and report.largest_logit_difference < 1e-4
    assert {file.name for file in out.iterdir()} >= {"model.onnx", "model.onnx.data", "config.json", "tokenizer.json"}
    assert Onnx(device="cpu").check(run, out) == report
    flip(out / "model.onnx.data")
    with pytest.raises(RunError, match=r"its file model\.onnx\.data is damaged"):
        Onnx(device="cpu").check(run, out)


def test_without_its_packages_it_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setattr("tunesmith.extras.find_spec", lambda name: None)
    run = make_run(tmp_path, prompts=["What is two and three?"])
    with pytest.raises(
        MissingExtra, match=r"needs onnx and onnxscript and onnxruntime, .*pip install 'tunesmith\[onnx\]'"
    ):
        Onnx().write(run, tmp_path / "out")
    assert unchanged(tmp_path)
