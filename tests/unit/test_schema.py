"""The walk over the declarations reaches every option, and says of each what the declaration says."""

import json
import re
from pathlib import Path
from typing import Annotated, Literal

import pytest
from pydantic import Field

from tunesmith import schema
from tunesmith.component import Section, all_of
from tunesmith.errors import RecipeError
from tunesmith.evaluate import Evaluation
from tunesmith.formats._tags import Tags
from tunesmith.generate.asked import Chatting
from tunesmith.generate.endpoint import Server
from tunesmith.generate.engines import Vllm
from tunesmith.launching import Launcher
from tunesmith.prediction.options import Prediction
from tunesmith.recipe import Eval, Model, Recipe, Reference, Teacher
from tunesmith.recipe_data import Data, Loss, Source
from tunesmith.recipe_parallel import Parallel
from tunesmith.recipe_rope import RopeScaling
from tunesmith.recipe_train import Train
from tunesmith.seams import Adapter, Export, Format, Objective, Optimizer, Quantization, Task, Template
from tunesmith.synthesis.options import Synthesis

REFERENCE = Path(__file__).parents[2] / "docs/reference"
SEAMS = (Adapter, Export, Format, Launcher, Objective, Optimizer, Quantization, Task, Template)
VERBS = {"synthesize": Synthesis, "evaluate": Evaluation, "predict": Prediction, "chat": Chatting}
GROUPS = schema.groups(Recipe, export=Export, **VERBS, task=Task, launcher=Launcher)
OPTIONS = {option.path: option for group in GROUPS for option in group.options}


class Inner(Section):
    """One of several."""

    path: str
    """Where."""


class Example(Section):
    """What a section can hold.

    And more.
    """

    whole: Annotated[int, Field(gt=1, le=10)] = 2
    """A whole
    number."""
    maybe: Annotated[float, Field(ge=0)] | None = None
    """A number or nothing."""
    word: Literal["a", "b"] = "a"
    """A choice."""
    switch: bool = False
    """Yes or no."""
    many: tuple[str, ...] = ()
    """Some."""
    those: Annotated[tuple[Literal["a", "b"], ...], Field(min_length=1)] = ("a",)
    """Some of a few."""
    pair: tuple[Annotated[float, Field(lt=1)], float] = (0.5, 2.0)
    """Two."""
    mixed: str | tuple[str, ...] = "all"
    """One or some."""
    free: dict[str, int] = {}
    """Anything."""
    inner: Annotated[tuple[Inner, ...], Field(min_length=1)]
    """Several sections."""
    kind: Adapter = Field(default_factory=lambda: None)
    """A component."""


def test_an_option_is_told_in_plain_words():
    told = {one.path: (one.type, one.bound, one.default, one.help) for one in schema.options(Example)}
    assert {path: told[path] for path in told if not path.startswith("kind")} == {
        "whole": ("integer", "> 1 and <= 10", "2", "A whole number."),
        "maybe": ("number", ">= 0", "null", "A number or nothing."),
        "word": ("a | b", "", "a", "A choice."),
        "switch": ("true or false", "", "false", "Yes or no."),
        "many": ("list of text", "", "[]", "Some."),
        "those": ("list of 1 or more of a | b", "", '["a"]', "Some of a few."),
        "pair": ("list of 2 numbers", "each < 1", "[0.5, 2.0]", "Two."),
        "mixed": ("text or list of text", "", "all", "One or some."),
        "free": ("mapping", "", "{}", "Anything."),
        "inner": ("list of 1 or more inners", "", "required", "Several sections."),
        "inner[].path": ("text", "", "required", "Where."),
    }
    assert told["kind"][:3] == (" | ".join(all_of(Adapter)) + " | a file or module", "", "lora")
    assert schema.groups(Example)[0].help == "What a section can hold."


def test_every_declared_option_is_reached():
    components = [kind for seam in SEAMS for kind in all_of(seam).values()]
    inner = [*set(Recipe.model_fields) & {"model", "data", "reference", "teacher", "train", "parallel", "eval"}]
    inner += ["data.loss", "model.rope_scaling", "evaluate.rope_scaling", "evaluate.server", "evaluate.vllm"]
    inner += ["predict.server", "predict.vllm", "chat.server"]
    sections = (
        Recipe,
        Model,
        RopeScaling,
        RopeScaling,
        Data,
        Loss,
        Source,
        Reference,
        Teacher,
        Train,
        Parallel,
        Eval,
        Synthesis,
        Evaluation,
        *[Server] * 3,
        *[Vllm] * 2,
        Prediction,
        Chatting,
    )
    tagged = [kind for kind in components if "tags" in kind.model_fields]  # a section in each of them
    declared = sum(len(kind.model_fields) for kind in (*sections, *components, *[Tags] * len(tagged)))
    declared -= sum((len(all_of(seam)) - 1) * len(seam.model_fields) for seam in SEAMS)  # what all share is said once
    assert len(OPTIONS) == declared - len(inner) - len(tagged) + 3  # `export`, `task` and `launcher` are none
    assert {"train.max_steps", "adapter[lora].r", "data.train[].format", "export"} <= set(OPTIONS)


def test_every_option_has_a_help_that_is_a_sentence():
    for option in OPTIONS.values():
        assert re.match(r"[A-Z`].*[.\w)}]$", option.help), f"{option.path}: {option.help!r}"


def test_the_committed_list_has_every_option_with_its_reason():
    lines = (REFERENCE / "options.txt").read_text(encoding="utf-8").splitlines()
    listed = dict(line.split(maxsplit=1) for line in lines if line and not line.startswith("#"))
    message = "docs/reference/options.txt: give a new option a line with its reason; drop what is gone"
    assert (set(OPTIONS) - set(listed), set(listed) - set(OPTIONS)) == (set(), set()), message
    assert [path for path in listed if len(listed[path].split()) < 3] == []


@pytest.mark.parametrize(
    ("query", "first", "among", "absent"),
    [
        ("train", "train.output_dir", "train.max_steps", "data.train"),
        ("adapter", "adapter", "adapter[lora].r", "optimizer"),
        ("lora", "adapter[lora].r", "adapter[lora].lora_alpha", "adapter"),
        ("adapter[lora]", "adapter[lora].r", "adapter[lora].lora_alpha", "adapter"),
        ("train.max_steps", "train.max_steps", "train.max_steps", "train.seed"),
        ("max_steps", "train.max_steps", "train.max_steps", "train.seed"),
        ("adapter.r", "adapter[hira].r", "adapter[lora].r", "adapter[lora].lora_alpha"),
        ("data.train", "data.train", "data.train[].path", "data.seed"),
        ("data", "data.train", "data.train[].path", "train.seed"),
        ("seed", "data.seed", "train.seed", "train.device"),
        ("export", "export", "export[merged].dtype", "model.dtype"),
        ("predict", "predict.format", "predict.max_new_tokens", "data.train[].format"),
        ("chat", "chat.max_new_tokens", "chat.device", "predict.format"),
        ("json_schema", "predict.json_schema", "chat.json_schema", "predict.regex"),
        ("gsm8k.num_shots", "task[gsm8k].num_shots", "task[gsm8k].num_shots", "task[mmlu].num_shots"),
        ("server.timeout_seconds", "evaluate.server.timeout_seconds", "chat.server.timeout_seconds", "chat.seed"),
        ("vllm.max_model_len", "evaluate.vllm.max_model_len", "predict.vllm.max_model_len", "chat.seed"),
        ("recipe", "name", "objective", "train.seed"),
    ],
)
def test_a_query_finds_what_it_means(query, first, among, absent):
    found = [option.path for group in schema.choose(GROUPS, query) for option in group.options]
    assert found[0] == first and among in found and absent not in found
    assert len(found) == len(set(found))


def test_components_without_options_are_found_too():
    assert [group.path for group in schema.choose(GROUPS, "sft")] == ["objective[sft]"]


@pytest.mark.parametrize(
    ("query", "hint"),
    [("trian", "'train'"), ("max_stps", "'max_steps'"), ("train.max_stps", "'train.max_steps'")],
)
def test_an_unknown_query_gets_near_names(query, hint):
    with pytest.raises(RecipeError, match=f"there is no section or option '{query}'. Did you mean .*{hint}"):
        schema.choose(GROUPS, query)


def test_plain_text_has_one_line_an_option():
    lines = [line.split() for line in schema.as_lines(GROUPS)]
    assert [words[0] for words in lines if words and words[0] in OPTIONS] == list(OPTIONS)


def test_a_terminal_is_shown_every_option(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "60")
    schema.show(GROUPS)
    shown = " ".join(capsys.readouterr().out.split())
    assert [path for path, option in OPTIONS.items() if f"{path} " not in shown or option.help not in shown] == []


def test_the_page_has_one_row_an_option():
    rows = [line for line in "\n".join(schema.as_markdown(GROUPS)).split("\n") if line.startswith("| `")]
    assert [row.split("`")[1] for row in rows] == list(OPTIONS)
    assert {len(re.findall(r"(?<!\\)\|", row)) for row in rows} == {5}  # four cells, whatever is in them


def test_the_json_schema_has_every_option_and_its_help():
    whole = schema.json_schema(Recipe)
    assert json.loads(json.dumps(whole)) == whole
    described = set(described_in(whole))
    missing = [
        path
        for path, option in OPTIONS.items()
        if not path.startswith(("export", *VERBS, "task", "launcher"))
        and (path.rpartition(".")[2], option.help) not in described
    ]
    assert missing == []


def described_in(shape):
    """Every property in a JSON Schema with its description."""
    if isinstance(shape, list):
        for one in shape:
            yield from described_in(one)
    if isinstance(shape, dict):
        for name, one in shape.get("properties", {}).items():
            yield name, schema.one_line(one.get("description", ""))
        for one in shape.values():
            yield from described_in(one)


def test_the_json_schema_takes_the_short_forms():
    whole = schema.json_schema(Recipe)
    for name in ("Model", "Source"):
        text, full = whole["$defs"][name]["anyOf"]
        assert text == {"type": "string"} and full["required"] == ["path"]
    several, one = whole["$defs"]["Data"]["properties"]["train"]["anyOf"]
    assert several["items"] == one == {"$ref": "#/$defs/Source"} and several["minItems"] == 1
    choices = whole["properties"]["adapter"]["anyOf"]
    assert choices[0] == {"enum": list(all_of(Adapter))}
    by_name = {one["properties"]["type"].get("const"): one for one in choices if "properties" in one}
    assert "type" in by_name["full"]["required"] and "type" not in by_name["lora"]["required"]  # lora is the default
