"""What every format keeps, read off the folder: a new file is tested the day it appears."""

import copy
import inspect
import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

import pydantic
import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tunesmith.component import all_of, pick, spell
from tunesmith.errors import DataError
from tunesmith.seams import Format
from tunesmith.types import Sample

FORMATS = all_of(Format)
BLOCK = re.compile(r"```(?:yaml|json)?\n(.*?)```", re.DOTALL)
STRANGE = (
    None,
    True,
    -1,
    2.5,
    float("nan"),
    "",
    "[",
    "[1]",
    "\ud83d",
    b"x",
    [],
    [None],
    ["a"],
    [["a"]],
    {},
    {"a": 1},
)

NUMBERS = {("classes", "label")}  # columns in which a number is right
CONVERSATIONS = ("messages", "sharegpt")  # formats that hold every conversation

every_format = pytest.mark.parametrize("name", FORMATS)


def example(name: str) -> dict[str, Any]:
    """The row in the docstring of a format, in a fenced block of YAML or JSON."""
    block = BLOCK.search(inspect.getdoc(FORMATS[name]) or "")
    assert block, f"the docstring of the format {name} has no example row in a fenced block"
    return yaml.safe_load(block[1])


def spoiled(value: Any) -> Iterator[Any]:
    """Copies of a value with one thing in it replaced by something strange, or left out."""
    yield from STRANGE
    if isinstance(value, dict):
        for key, inner in value.items():
            yield {one: two for one, two in value.items() if one != key}
            yield from ({**value, key: other} for other in spoiled(inner))
    elif isinstance(value, list):
        for at, inner in enumerate(value):
            yield from ([*value[:at], other, *value[at + 1 :]] for other in spoiled(inner))


def read_or_refuse(read_as: Format, row: Mapping[str, Any]) -> None:
    """A row gives a sample or a DataError of one line, and nothing else."""
    try:
        sample = read_as.read(row)
    except DataError as error:
        assert "\n" not in str(error) and len(str(error)) > 10
        return
    assert isinstance(sample, Sample)
    assert all(branch for branch in sample.branches)
    spoken: list[Any] = list(sample.tools)
    for turn in (turn for branch in sample.branches for turn in branch):
        assert turn.role in ("system", "user", "assistant", "tool", "text")
        assert isinstance(turn.content, str | tuple) and turn.weight >= 0
        spoken.append({key: said for key, said in turn.spoken().items() if not isinstance(turn.content, tuple)})
    json.dumps(spoken, ensure_ascii=False).encode()  # as templates write it


@every_format
def test_the_example_in_the_docstring_is_read(name):
    row = example(name)
    before = copy.deepcopy(row)
    sample = FORMATS[name]().read(row)
    assert isinstance(sample, Sample) and all(sample.branches)
    assert row == before
    assert FORMATS[name]().read(row) == sample


@every_format
def test_the_example_has_the_required_columns_and_auto_finds_the_format(name):
    row = example(name)
    assert set(FORMATS[name].required) <= row.keys()
    assert pick(Format, "auto").read(row) == FORMATS[name]().read(row)


@every_format
def test_a_missing_column_is_named_with_the_columns_that_are_there(name):
    for column in FORMATS[name].required:
        row = {key: value for key, value in example(name).items() if key != column} | {"own column": 1}
        with pytest.raises(DataError) as caught:
            FORMATS[name]().read(row)
        assert repr(column) in str(caught.value) and "is missing" in str(caught.value)
        assert all(key in str(caught.value) for key in row)


@every_format
def test_a_required_column_of_a_wrong_type_is_named_with_its_type(name):
    for column in FORMATS[name].required:
        wrong = ((None, "null"), (7, "a number (7)"), ({"a": 1}, "an object ({'a': 1})"))
        for value, said in (one for one in wrong if one[0] != 7 or (name, column) not in NUMBERS):
            with pytest.raises(DataError) as caught:
                FORMATS[name]().read({**example(name), column: value})
            assert repr(column) in str(caught.value) and said in str(caught.value)


@every_format
def test_no_row_ends_in_another_error_than_ours(name):
    rows = [row for row in spoiled(example(name)) if isinstance(row, dict)]
    assert len(rows) > len(STRANGE)
    for row in rows:
        read_or_refuse(FORMATS[name](), row)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=8,
)


@every_format
@settings(max_examples=50)
@given(data=st.data())
def test_no_random_value_ends_in_another_error_than_ours(name, data):
    row = example(name)
    row[data.draw(st.sampled_from(sorted(row)))] = data.draw(JSON)
    read_or_refuse(FORMATS[name](), row)


@every_format
def test_options_cannot_be_changed_and_come_back_from_their_spelling(name):
    built = FORMATS[name]()
    assert pick(Format, spell(built)) == built
    for option in FORMATS[name].model_fields:
        with pytest.raises(pydantic.ValidationError):
            setattr(built, option, None)


@every_format
def test_a_row_of_other_columns_fits_no_format(name):
    if name != "auto":
        assert not FORMATS[name].fits({})
        assert not FORMATS[name].fits({"own column": 1, "label": "x"})


@every_format
def test_the_branches_and_the_label_are_what_the_format_says(name):
    read_as = FORMATS[name]()
    sample = read_as.read(example(name))
    assert len(sample.branches) == (3 if name == "ranked" else len(read_as.branches()))  # compared, there may be more
    assert (sample.label is not None) == read_as.labels()


@every_format
def test_the_reason_of_a_wrong_field_names_it_without_values(name):
    for column in FORMATS[name].required:
        rows = [{**example(name), column: value} for value in ({"secret": 1}, {"secret": 2})]
        reasons = set()
        for row in rows:
            with pytest.raises(DataError) as caught:
                FORMATS[name]().read(row)
            reasons.add(caught.value.reason)
        (reason,) = reasons
        assert repr(column) in reason and "secret" not in reason and len(reason) <= 80


def writes(name: str) -> bool:
    return "write" in vars(FORMATS[name])


@every_format
def test_what_a_format_writes_reads_as_the_same_sample(name):
    sample = FORMATS[name]().read(example(name))
    if writes(name):
        row = FORMATS[name]().write(sample)
        assert FORMATS[name]().read(row) == sample
        assert FORMATS[name]().read(json.loads(json.dumps(row))) == sample
    else:
        with pytest.raises(DataError, match=f"the format {name} can be read and not written"):
            FORMATS[name]().write(sample)


WORDS = st.text(st.characters(exclude_categories=["Cs"]), max_size=6)
WEIGHTS = st.none() | st.booleans() | st.integers(0, 5) | st.floats(0, 9)
CALL = st.fixed_dictionaries(
    {"name": WORDS, "arguments": st.dictionaries(WORDS, st.integers() | WORDS, max_size=2)}, optional={"id": WORDS}
)
USER = st.fixed_dictionaries({"role": st.just("user"), "content": WORDS}, optional={"train": WEIGHTS, "name": WORDS})
ANSWER = st.fixed_dictionaries(
    {"role": st.just("assistant"), "content": WORDS},
    optional={"train": WEIGHTS, "reasoning_content": WORDS, "tool_calls": st.lists(CALL, max_size=2)},
)
TOOL = st.fixed_dictionaries({"role": st.just("tool"), "content": WORDS}, optional={"tool_call_id": WORDS})
SYSTEM = st.lists(st.fixed_dictionaries({"role": st.just("system"), "content": WORDS}), max_size=1)
EXCHANGE = st.tuples(USER, ANSWER) | st.tuples(USER, ANSWER, TOOL, ANSWER)
CHAT = st.builds(
    lambda system, exchanges: [*system, *(turn for exchange in exchanges for turn in exchange)],
    SYSTEM,
    st.lists(EXCHANGE, min_size=1, max_size=3),
)
TOOLS = st.just([]) | st.just([{"type": "function", "function": {"name": "f"}}])


@pytest.mark.parametrize("name", [name for name in FORMATS if writes(name)])
@settings(max_examples=60, suppress_health_check=[HealthCheck.too_slow])
@given(messages=CHAT, tools=TOOLS, label=st.none() | st.booleans(), rejected=st.none() | ANSWER)
def test_a_random_sample_is_written_so_that_it_reads_the_same_or_refused(name, messages, tools, label, rejected):
    row = {"messages": messages, "tools": tools}
    if rejected is not None:
        made_of, row = (
            "pairs",
            {"messages": messages[:-1], "chosen": messages[-1], "rejected": rejected, "tools": tools},
        )
    elif label is not None:
        made_of, row = "labelled", row | {"label": label}
    else:
        made_of = "messages"
    try:
        sample = FORMATS[made_of]().read(row)
    except DataError:  # a random pair whose prompt ends in an answer
        assert made_of == "pairs"
        return
    holds = {"messages": CONVERSATIONS, "labelled": ("labelled", "classes"), "pairs": ("pairs",)}[made_of]
    try:
        written = json.loads(json.dumps(FORMATS[name]().write(sample)))
    except DataError as error:
        assert name not in holds and repr(name)[1:-1] in str(error) and len(error.reason) <= 90
        return
    assert FORMATS[name]().read(written) == sample
