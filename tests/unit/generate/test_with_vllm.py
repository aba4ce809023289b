"""vLLM in this process beside our own engine, on a tiny model and an adapter of it: the same answers and numbers."""

import json
import re
from importlib.util import find_spec

import pytest

import fixtures_models
from tunesmith.generate.asked import Sampling
from tunesmith.generate.by_vllm import ByVllm
from tunesmith.generate.engine import Generator, greedy_ids
from tunesmith.generate.engines import Vllm
from tunesmith.generate.subject import Subject
from tunesmith.generate.subject_by_vllm import InVllm

pytestmark = [
    pytest.mark.skipif(find_spec("vllm") is None, reason="needs vLLM, which asks for an environment of its own"),
    pytest.mark.filterwarnings("ignore"),  # vLLM and what it stands on warn of each other
]
QUESTIONS = ("What is two and three?", "Hello, how are you today?", "name")
SCHEMA = {
    "type": "object",
    "properties": {"name": {"enum": ["add", "cat"]}},
    "required": ["name"],
    "additionalProperties": False,
}
LOGPROB = 1e-3


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("models")
    model = fixtures_models.tiny_model(head_dim=32)  # vLLM's attention on a CPU has none of 8
    base = fixtures_models.save_model(root / "base", model)
    model.name_or_path = str(base)
    adapter = root / "adapter"
    fixtures_models.tiny_lora(model).save_pretrained(adapter)
    fixtures_models.tiny_tokenizer().save_pretrained(adapter)
    return str(base), str(adapter)


@pytest.fixture(scope="module")
def adapted(folders):
    """The adapter beside its base in vLLM; of this process alone, so that its memory is given back with it."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_CPU_KVCACHE_SPACE": "1"}.items():
            patch.setenv(name, value)
        yield ByVllm.open(folders[1], "float32", Vllm(enforce_eager=True))


@pytest.fixture(params=["base", "adapter"])
def both(request, adapted, folders):
    """Vllm's model and our own: of the base, which the adapted one is without its adapter, and of the adapter."""
    at = ("base", "adapter").index(request.param)
    told = ByVllm(adapted.llm, adapted.tokenizer, adapted.stops, adapted.adapter if at else None, folders[at])
    return told, folders[at]


def answers(model, path, **options):
    """The answers of both to the questions."""
    how, own = Sampling(**{"max_new_tokens": 24, **options}), Generator.open(path, "cpu", "float32")
    messages = [[{"role": "user", "content": one}] for one in QUESTIONS]
    prompts = [own.prompt(one, how.max_new_tokens) for one in messages]
    assert [one.ids for one in prompts] == [model.prompt(one, (), how.max_new_tokens).ids for one in messages]
    ours = list(own.answers([own.request(prompt, how) for prompt in prompts]))
    return list(model.answers([prompt.ids for prompt in prompts], [how] * len(prompts))), ours


@pytest.mark.parametrize(
    "options",
    [{}, {"repetition_penalty": 1.3}, {"presence_penalty": 1.0, "frequency_penalty": 0.5}, {"logit_bias": {42: -100}}],
)
def test_greedy_answers_are_ours(both, options):
    theirs, ours = answers(*both, logprobs=0, **options)
    assert [(one.text, one.finish, one.num_tokens) for one in theirs] == [
        (one.text, one.finish, one.num_tokens) for one in ours
    ]
    for one, own in zip(theirs, ours, strict=True):
        assert one.logprobs == pytest.approx(own.logprobs, abs=LOGPROB)


def test_an_adapter_says_something_else_than_its_base(adapted, folders):
    told = ByVllm(adapted.llm, adapted.tokenizer, adapted.stops, None, folders[0])
    assert [one.text for one in answers(told, folders[0])[0]] != [one.text for one in answers(adapted, folders[1])[0]]


def test_answers_end_before_a_stop_text(both):
    whole, _ = answers(*both)
    word = next(one for one in whole[0].text[2:] if one not in "\ufffd ")
    theirs, ours = answers(*both, stop=[word])
    assert [(one.text, one.finish) for one in theirs] == [(one.text, one.finish) for one in ours]
    assert word not in theirs[0].text and theirs[0].finish == "stop"


def test_answers_are_held_to_a_form(both):
    theirs, ours = answers(*both, json_schema=SCHEMA, max_new_tokens=60)
    assert [one.text for one in theirs] == [one.text for one in ours]
    assert all(json.loads(one.text)["name"] in ("add", "cat") for one in theirs if one.finish == "stop")
    assert any(one.finish == "stop" for one in theirs)
    theirs, ours = answers(*both, regex="[0-9]{3}", max_new_tokens=60)
    assert [one.text for one in theirs] == [one.text for one in ours]
    assert all(re.search("[0-9]{3}$", one.text) for one in theirs if one.finish == "stop")


def test_draws_are_by_their_seed(both):
    model, path = both
    first, again = (answers(model, path, temperature=1.0, seed=5)[0] for _ in range(2))
    other, _ = answers(model, path, temperature=1.0, seed=6)
    assert [one.text for one in first] == [one.text for one in again] != [one.text for one in other]


def test_scores_of_given_tokens_are_ours_up_to_the_whole_context(both):
    model, path = both
    own, subject = Subject.open(path, "cpu", "float32"), InVllm(model, model.tokenizer)
    ids = own.ids("Two and three is five. What is ten and seven? The river runs to the sea. " * 20)
    whole = fixtures_models.CONTEXT
    asked = [(ids[:9], 1), (ids[:30], 12), (ids[:2], 1), (ids[:whole], whole - 1)]
    for theirs, ours in zip(subject.logps(asked), own.logps(asked), strict=True):
        assert theirs.tolist() == pytest.approx(ours.tolist(), abs=LOGPROB)
    assert subject.likeliest(ids[:30], 12) == own.likeliest(ids[:30], 12)
    with own.kernels.generating(own.model):
        greedy = greedy_ids(own.model, ids[:20], 4)
    assert subject.likeliest([*ids[:20], *greedy], 4) == [True] * 4
