"""The benchmark for CUDA devices runs here with a tiny model, so that it cannot rot; its arithmetic is the bars'."""

import json
import subprocess
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import torch

from numerics import varlen
from tunesmith.engine import liger

FOLDER = Path(__file__).parents[2] / "benchmarks" / "cuda"
MODULES = ("shapes", "build", "case", "train")


@pytest.fixture(scope="module")
def bench():
    """The benchmark's modules."""
    sys.path.insert(0, str(FOLDER))
    found = types.SimpleNamespace(**{name: __import__(name) for name in MODULES})
    yield found
    sys.path.remove(str(FOLDER))
    for name in MODULES:
        del sys.modules[name]


@pytest.fixture(scope="module")
def rows(bench):
    return list(bench.shapes.made_rows(3, 128))


@pytest.fixture(scope="module")
def plain(bench, rows):
    """What the plainest case found."""
    return bench.case.trained(bench.shapes.Case("tiny"), "cpu", rows, 1)


def meta_model(bench, shape, adapted=False):
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(bench.shapes.config_of(shape), dtype=torch.bfloat16)
        lora = LoraConfig(r=16, target_modules="all-linear", task_type="CAUSAL_LM")
        return get_peft_model(model, lora) if adapted else model


def test_made_rows_are_packed_and_the_same_again(bench, rows):
    again = list(bench.shapes.made_rows(3, 128))
    for row, other in zip(rows, again, strict=True):
        assert all(np.array_equal(row[name], other[name], equal_nan=True) for name in row)
        assert 100 < row["lengths"].sum() == len(row["input_ids"]) <= 128
        assert 0.5 < (row["weight"] != 0).mean() < 0.9
    lengths = bench.shapes.Made(2000, 4096).lengths
    assert lengths.mean() == pytest.approx(bench.shapes.MEAN_TOKENS, rel=0.05)
    assert np.log(lengths).std() == pytest.approx(bench.shapes.SPREAD, rel=0.05)


def test_rows_of_a_file_are_a_runs(bench, tmp_path):
    file = tmp_path / "rows.jsonl"
    lines = [{"instruction": f"What is {number}?", "output": "It is a number. " * 5} for number in range(60)]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    found = list(bench.shapes.rows_of_file(str(file), "builtin:tiny", 4, 256))
    assert len(found) == 4 and all(200 < len(row["input_ids"]) <= 256 for row in found)


@pytest.mark.parametrize(
    ("shape", "parameters", "tokens_per_second", "mfu"),
    [
        ("llama-3.1-8b", 8_030_261_248, 15_400, 0.50),  # as published; 4N
        ("qwen2.5-7b", 7_615_616_512, 17_000, 0.524),
        ("llama-3.2-1b", 1_235_814_400, 60_000, 0.45),  # 6N
    ],
)
def test_shapes_and_bars_are_what_they_say(bench, shape, parameters, tokens_per_second, mfu):
    cost = bench.shapes.Cost.of(meta_model(bench, shape, adapted=shape != "llama-3.2-1b"))
    assert cost.parameters == parameters and cost.full == (shape == "llama-3.2-1b")
    assert cost.bar_flops(tokens_per_second) / bench.shapes.DENSE_BF16 == pytest.approx(mfu, rel=0.01)


def test_the_arithmetic_of_a_step_by_hand(bench):
    layer = 64 * 64 * 2 + 2 * 64 * 32 + 3 * 64 * 96
    lora = 16 * (2 * (64 + 64) + 2 * (64 + 32) + 3 * (64 + 96))
    cost = bench.shapes.Cost.of(meta_model(bench, "tiny", adapted=True))
    assert (cost.linear, cost.adapters, cost.head, cost.heads) == (2 * layer, 2 * lora, 384 * 64, 2 * 64)
    lengths, asked = np.array([5, 3]), 4
    attention = 3 * 2 * 2 * 64 * (25 + 9)  # forward: 2 products of half a square, 2 FLOPs each; backward twice that
    by_hand = 8 * (4 * 2 * layer + 6 * 2 * lora) + 4 * asked * 384 * 64 + attention
    assert cost.real_flops(lengths, asked) == by_hand
    full = bench.shapes.Cost.of(meta_model(bench, "tiny"))
    assert full.real_flops(lengths, asked) == 8 * 6 * 2 * layer + 6 * asked * 384 * 64 + attention


@pytest.mark.parametrize("method", ["lora", "full"])
def test_a_case_is_measured(bench, rows, plain, method):
    found = plain if method == "lora" else bench.case.trained(bench.shapes.Case("tiny", "full"), "cpu", rows, 1)
    assert found["steps"] == 2 and len(found["losses"]) == 3
    assert found["losses"][0] == pytest.approx(np.log(384), rel=0.05)
    assert found["tokens_per_second"] == pytest.approx(found["tokens_per_row"] / found["seconds_per_step"])
    assert sum(found["share"].values()) == pytest.approx(1) and min(found["share"].values()) > 0
    assert found["notes"] == ()


def test_float8_is_trained_with_and_loses_little(bench, rows, plain):
    found = bench.case.trained(bench.shapes.Case("tiny", frozen="float8"), "cpu", rows, 1)
    assert found["notes"][0] == "frozen weights: 61,440 held in float8"
    assert found["losses"] != plain["losses"]
    assert found["losses"] == pytest.approx(plain["losses"], abs=0.01)


def test_a_named_kernel_does_the_attention(bench, rows, plain, monkeypatch):
    import torch.nn.attention.varlen as module

    asked = []
    monkeypatch.setattr(module, "varlen_attn", lambda *a, **o: (asked.append(1), varlen.torch_2_13(*a, **o))[1])
    found = bench.case.trained(bench.shapes.Case("tiny", attention="varlen"), "cpu", rows, 1)
    assert len(asked) == 3 * 2 and found["notes"] == ("attention: torch's variable-length attention",)
    assert found["losses"] == pytest.approx(plain["losses"], abs=0.01)


def test_liger_does_norms_and_gates(bench, rows, plain, monkeypatch):
    asked = []

    def norm(x, weight, eps):
        asked.append("norm")
        return torch.nn.functional.rms_norm(x.float(), weight.shape, weight.float(), eps).to(x.dtype)

    monkeypatch.setattr(liger, "require", lambda device: None)
    monkeypatch.setattr(liger, "rms_norm", norm)
    monkeypatch.setattr(liger, "swiglu", lambda g, u: (asked.append("gate"), torch.nn.functional.silu(g) * u)[1])
    found = bench.case.trained(bench.shapes.Case("tiny", liger=True), "cpu", rows, 1)
    assert found["notes"] == ("liger: 5 norms, 2 gated pairs",)
    assert asked.count("norm") > 15 and asked.count("gate") > 6
    assert found["losses"] == pytest.approx(plain["losses"], abs=0.01)


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile:UserWarning")
def test_single_kernels(bench, rows):
    found = bench.case.kernels(bench.shapes.Case("tiny", "kernels"), "cpu", rows, 1)
    assert found["tokens"] == rows[0]["lengths"].sum()
    assert list(found["products"]) == ["64 x 64", "96 x 64", "64 x 96"]
    assert all(speed > 0 for speeds in found["products"].values() for speed in speeds.values())
    assert set(found["attention"]) == {"flash3", "varlen", "flash2", "flex"}
    assert found["attention"]["flex"]["forward"] > 0 and "backward on CPU" in found["attention"]["flex"]["failed"]


def test_the_bars_come_first_and_words_choose(bench):
    names = [str(case) for case in bench.train.chosen(None, "")]
    assert names[:4] == [
        "llama-3.1-8b, lora, bf16",
        "llama-3.1-8b, lora, float8",
        "qwen2.5-7b, lora, bf16",
        "llama-3.2-1b, full",
    ]
    assert not any("tiny" in name for name in names) and len(names) == len(set(names))
    assert [str(case) for case in bench.train.chosen("tiny", "float8")] == ["tiny, lora, float8"]
    with pytest.raises(SystemExit, match="--only nothing: no case"):
        bench.train.chosen(None, "nothing")


def run(out, *words):
    command = [sys.executable, str(FOLDER / "train.py"), "--device", "cpu", "--shape", "tiny", "--out", str(out)]
    done = subprocess.run([*command, *words], capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    return done.stdout, [json.loads(line) for line in out.read_text().splitlines()]


@pytest.mark.slow
def test_the_command_writes_lines_and_a_table(tmp_path):
    words = "--row-tokens", "128", "--steps", "1", "--warmup", "1"
    shown, (line,) = run(tmp_path / "lines", *words, "--only", "bf16")
    assert line["case"] == "tiny, lora, bf16" and line["tokens_per_second"] > 0 and line["row_tokens"] == 128
    assert set(line["versions"]) == {"tunesmith", "torch", "transformers", "peft"} and line["rows"] == "made"
    assert f"| tiny, lora, bf16 | {line['tokens_per_second']:,.0f} |" in shown
    shown, lines = run(tmp_path / "lines", *words, "--only", "full", "--data", str(tmp_path / "gone.jsonl"))
    assert len(lines) == 2 and "gone.jsonl" in lines[1]["failed"]  # it is added, and says why
    assert f"| tiny, full | {lines[1]['failed']} |" in shown


def test_what_there_is_no_time_for_is_said(tmp_path):
    _, lines = run(tmp_path / "lines", "--minutes", "0")
    assert {line["failed"] for line in lines} == {"not run: out of time (--minutes)"} and len(lines) == 4
