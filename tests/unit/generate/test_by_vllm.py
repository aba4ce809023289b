"""What is ours of answering by vLLM: how options are named there, what is refused, and what becomes of its tokens.

vLLM itself is a stand-in here; `test_with_vllm.py` asks the real one.
"""

import json
import sys
import warnings
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

import fixtures_models
from tunesmith import evaluate, extras
from tunesmith.cli import main as cli
from tunesmith.errors import MissingExtra, ModelError, RecipeError
from tunesmith.evaluate import Asked, Evaluation
from tunesmith.evaluation.perplexity import Perplexity
from tunesmith.generate.asked import Sampling
from tunesmith.generate.by_vllm import ByVllm, drawn_as, layers_of, rank_of, started
from tunesmith.generate.engines import Vllm, versions
from tunesmith.prediction.options import Prediction

END = fixtures_models.SPECIAL.index("<|im_end|>")


class Told:
    """Keeps what it is made with, as vLLM's options do."""

    def __init__(self, **options):
        self.options = options


def logprob(value, rank=1):
    return SimpleNamespace(logprob=value, rank=rank)


class Stand:
    """In place of vLLM's LLM: gives what it was told to, and keeps what it was asked."""

    def __init__(self, *found, context=64):
        self.found, self.asked = list(found), []
        self.model_config = SimpleNamespace(max_model_len=context, dtype="torch.float32")

    def generate(self, prompts, params, use_tqdm, lora_request):
        self.asked += zip([one["prompt_token_ids"] for one in prompts], [one.options for one in params], strict=True)
        return [self.found.pop(0) for _ in prompts]


def output(ids, finish="stop", logprobs=None, prompt=None):
    one = SimpleNamespace(token_ids=ids, finish_reason=finish, logprobs=logprobs)
    return SimpleNamespace(outputs=[one], prompt_logprobs=prompt)


@pytest.fixture(autouse=True)
def vllm(monkeypatch):
    module, params = ModuleType("vllm"), ModuleType("vllm.sampling_params")
    module.SamplingParams = params.StructuredOutputsParams = Told
    monkeypatch.setitem(sys.modules, "vllm", module)
    monkeypatch.setitem(sys.modules, "vllm.sampling_params", params)


def by(stand):
    return ByVllm(stand, fixtures_models.tiny_tokenizer(), frozenset({END}), None, "m")


@pytest.fixture
def adapter(tmp_path):
    def make(**options):
        model = fixtures_models.tiny_model(tied=False)
        base = fixtures_models.save_model(tmp_path / "base", model)
        model.name_or_path = str(base)
        with warnings.catch_warnings():
            warnings.filterwarnings(
                "ignore", "Setting `save_embedding_layers`", UserWarning
            )  # peft, of a part on the head
            fixtures_models.tiny_lora(model, **options).save_pretrained(tmp_path / "adapter")
        return str(tmp_path / "adapter")

    return make


def test_options_have_the_names_of_vllm():
    how = Sampling(
        max_new_tokens=7, temperature=0.5, top_p=0.9, top_k=5, min_p=0.1, repetition_penalty=1.1, presence_penalty=0.2,
        frequency_penalty=0.3, logit_bias={3: -1.0}, stop=["."], seed=4, logprobs=5,
    )  # fmt: skip
    assert drawn_as(how, frozenset({9, 2})) == {
        "max_tokens": 7, "temperature": 0.5, "top_p": 0.9, "top_k": 5, "min_p": 0.1, "repetition_penalty": 1.1,
        "presence_penalty": 0.2, "frequency_penalty": 0.3, "logit_bias": {3: -1.0}, "stop": ["."], "seed": 4,
        "logprobs": 0, "stop_token_ids": [2, 9],
    }  # fmt: skip
    plain = drawn_as(Sampling(), frozenset({2}))
    assert (plain["logprobs"], plain["logit_bias"], plain["temperature"]) == (None, None, 0.0)


def test_it_starts_as_is_said_and_draws_by_nothing_else():
    said = started(Vllm(max_model_len=32, enforce_eager=True))
    assert said["max_model_len"] == 32 and said["enforce_eager"] and said["generation_config"] == "vllm"
    assert said["structured_outputs_config"] == {"backend": "guidance"}
    assert started(Vllm())["seed"] != started(Vllm())["seed"]


def test_an_answer_ends_and_is_counted_as_ours():
    ids = fixtures_models.tiny_tokenizer()("Two and three is five. The cat")["input_ids"]
    logps = [{one: logprob(-0.5)} for one in [*ids, END]]
    stand = Stand(output([*ids, END], "stop", logps), output(ids, "stop"), output(ids, "length"))
    each = [Sampling(logprobs=0), Sampling(stop=[" five"]), Sampling(max_new_tokens=len(ids))]
    ended, stopped, cut = by(stand).answers([[5, 6]] * 3, each)
    assert (ended.text, ended.finish, ended.num_tokens) == ("Two and three is five. The cat", "stop", len(ids))
    assert ended.logprobs == (-0.5,) * len(ids)
    assert (stopped.text, stopped.finish) == ("Two and three is", "stop") and stopped.num_tokens < len(ids)
    assert (cut.finish, cut.num_tokens) == ("length", len(ids))


def test_an_answer_has_no_more_tokens_than_there_is_room_for():
    stand = Stand(output([5], "length"), context=8)
    assert next(by(stand).answers([[5] * 7], [Sampling()])).finish == "length"
    assert stand.asked[0][1]["max_tokens"] == 1
    with pytest.raises(ModelError, match="a prompt of 8 tokens has no room in the 8 that vLLM was started with"):
        next(by(stand).answers([[5] * 8], [Sampling()]))


def test_a_form_goes_there_as_the_grammar_that_holds_our_own():
    stand = Stand(output([END]))
    model = by(stand)
    next(model.answers([[5]], [Sampling(regex="[ab]+")]))
    held = stand.asked[0][1]["structured_outputs"].options
    assert held == {"grammar": model.forms.of_sampling(Sampling(regex="[ab]+")).text}


def test_scores_are_of_the_last_tokens_and_the_very_last_is_the_next_one():
    told = [None, {7: logprob(-9.0)}, {8: logprob(-1.0, 2), 5: logprob(-0.5)}]
    stand = Stand(output([4], logprobs=[{9: logprob(-2.0), 4: logprob(-0.1)}], prompt=told), output([9]))
    stand.found[1].outputs[0].logprobs = [{9: logprob(-0.25)}]
    two, one = by(stand).scores([([6, 7, 8, 9], 2), ([6, 9], 1)])
    assert two == [(-1.0, False), (-2.0, False)] and one == [(-0.25, True)]
    told[-1][5] = logprob(-1.0, 2)  # vLLM counts two that are equal as the second each
    tie = Stand(output([9], logprobs=[{9: logprob(-0.1)}], prompt=told))
    assert next(by(tie).scores([([6, 7, 8, 9], 2)])) == [(-1.0, True), (-0.1, True)]
    (first, how), (second, short) = stand.asked
    assert (first, second) == ([6, 7, 8], [6])
    assert how["logprob_token_ids"] == [9] and how["prompt_logprobs"] == 1 and short["prompt_logprobs"] is None


def test_what_vllm_refuses_is_said():
    class Refuses(Stand):
        def generate(self, *_, **__):
            raise ValueError("no such thing\nand more")

    with pytest.raises(ModelError, match=r"vLLM cannot answer with m: ValueError: no such thing\. See vllm\."):
        next(by(Refuses()).answers([[5]], [Sampling()]))


def test_an_adapter_is_given_a_rank_that_vllm_has(adapter):
    assert rank_of("a", adapter(r=12)) == 16
    assert rank_of("a", adapter(r=33)) == 64
    assert layers_of(Path(adapter(target_modules=["q_proj", "up_proj"]))) == ["q_proj", "up_proj"]
    assert rank_of("m", str(Path(adapter()).parent / "base")) is None


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"use_dora": True}, "has use_dora"),
        ({"rank_pattern": {"q_proj": 8}}, "has rank_pattern, which vLLM does not read"),
        ({"alpha_pattern": {"q_proj": 8}}, "has alpha_pattern, which vLLM does not read"),
        ({"trainable_token_indices": [3]}, "has trainable_token_indices"),
        ({"target_modules": ["q_proj", "lm_head"]}, "has a part on lm_head"),
        ({"target_modules": ["q_proj", "embed_tokens"]}, "has a part on embed_tokens"),
        ({"r": 600}, "has rank 600, and vLLM takes 512 at most"),
    ],
)
def test_an_adapter_that_vllm_cannot_add_is_to_be_merged(adapter, options, why):
    with pytest.raises(ModelError, match=f"^a {why}.*tunesmith export a OUT type=merged"):
        rank_of("a", adapter(**options))


def test_adapters_of_rounded_bases_stretched_positions_and_other_files_are_to_be_merged(adapter):
    folder = Path(adapter())
    (folder / "quantization_config.json").write_text("{}")
    with pytest.raises(ModelError, match="held in few bits.*type=merged"):
        rank_of("a", str(folder))
    (folder / "quantization_config.json").unlink()
    config = json.loads((folder.parent / "base" / "config.json").read_text())
    config["rope_parameters"] = {"rope_type": "linear", "factor": 2.0, "rope_theta": 10000.0}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match="stretched rotary positions"):
        rank_of("a", str(folder))
    with pytest.raises(ModelError, match=r"is a \.gguf file"):
        rank_of("m", "m.gguf")


def test_it_needs_vllm_and_says_how_to_have_it(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(extras, "find_spec", lambda name: None)
    line = r"engine=vllm needs vllm, which is not installed: pip install 'tunesmith\[vllm\]'"
    with pytest.raises(MissingExtra, match=line):
        ByVllm.open("builtin:tiny", None, Vllm())
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"instruction": "a", "output": "b"}\n')
    words = ["predict", "builtin:tiny", str(rows), "--out", str(tmp_path / "out"), "engine=vllm"]
    assert cli.main(words) == 1 and "pip install 'tunesmith[vllm]'" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()  # the same command goes without engine=vllm


def test_devices_and_stretched_positions_are_not_for_vllm():
    for kind in (Prediction, Evaluation):
        with pytest.raises(RecipeError, match="device=cpu is no word for vLLM"):
            kind(engine="vllm", device="cpu")
    with pytest.raises(RecipeError, match="rope_type=linear: vLLM takes positions as they are stored"):
        Evaluation(engine="vllm", rope_scaling={"rope_type": "linear", "factor": 2.0})


def test_answers_of_another_vllm_are_told_apart(monkeypatch):
    marks = set()
    for version in ("1", "2"):
        monkeypatch.setattr(evaluate, "versions", lambda engine, path, version=version: {engine: version})
        marks.add(Asked.of("builtin:tiny", "perplexity", Perplexity(), True, Evaluation()).mark)
    assert len(marks) == 2 and None not in marks


def test_a_models_address_is_not_for_vllm(monkeypatch):
    monkeypatch.setattr(extras, "find_spec", lambda name: object())
    with pytest.raises(RecipeError, match="engine=vllm is for models of this process, and http://a/v1 is a server's"):
        versions("vllm", "builtin:tiny", "http://a/v1")
    assert versions("own", "http://a/v1") == {}
