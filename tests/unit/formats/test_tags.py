"""Other names for the keys and speakers of a conversation."""

import pytest
from pydantic import ValidationError

from tunesmith.component import pick, spell
from tunesmith.formats.labelled import Labelled
from tunesmith.formats.pairs import Pairs
from tunesmith.formats.sharegpt import Sharegpt
from tunesmith.recipe import Recipe
from tunesmith.seams import Format
from tunesmith.types import Message

OPENAI = {"role_tag": "role", "content_tag": "content", "user_tag": "user", "assistant_tag": "assistant"}
OWN = {
    "role_tag": "who", "content_tag": "says", "user_tag": "Q", "assistant_tag": "A", "observation_tag": "R",
    "function_tag": "C", "system_tag": "S",
}  # fmt: skip


def read(*turns: tuple[str, str], tags: dict, keys: tuple[str, str] = ("who", "says")) -> tuple[Message, ...]:
    rows = [dict(zip(keys, turn, strict=True)) for turn in turns]
    (branch,) = Sharegpt(tags=tags).read({"conversations": rows}).branches
    return branch


def test_every_name_may_be_another():
    turns = (("S", "Be kind."), ("Q", "q"), ("C", '{"name": "f", "arguments": {}}'), ("R", "4"), ("A", "a"))
    found = read(*turns, tags=OWN)
    assert [turn.role for turn in found] == ["system", "user", "assistant", "tool", "assistant"]
    assert [len(turn.tool_calls) for turn in found] == [0, 0, 1, 0, 0]
    assert found[4] == Message("assistant", "a")


def test_tags_that_are_not_said_keep_their_usual_names():
    found = read(("user", "q"), ("function_call", '{"name": "f"}'), ("observation", "4"), tags=OPENAI,
                 keys=("role", "content"))  # fmt: skip
    assert [turn.role for turn in found] == ["user", "assistant", "tool"]
    assert found[1].tool_calls


def test_usual_names_are_known_beside_others():
    assert [turn.role for turn in read(("human", "q"), ("A", "a"), tags=OWN)] == ["user", "assistant"]
    usual = read(("human", "q"), tags=OWN, keys=("from", "value"))
    assert usual == (Message("user", "q"),)


def test_a_tag_outweighs_the_usual_meaning_of_a_name():
    assert (
        read(("system", "q"), tags={"user_tag": "system", "system_tag": "S"}, keys=("from", "value"))[0].role == "user"
    )


def test_a_key_called_name_is_the_speaker_and_not_a_name():
    assert read(("human", "q"), tags={"role_tag": "name"}, keys=("name", "value")) == (Message("user", "q"),)


@pytest.mark.parametrize("wrong", [{"user_tag": "gpt"}, {"role_tag": "value"}, {"system_tag": ""}, {"usr_tag": "u"}])
def test_tags_that_cannot_be_are_refused(wrong):
    with pytest.raises(ValidationError):
        Sharegpt(tags=wrong)


def test_pairs_and_labelled_rows_have_tags_too():
    row = {"conversations": [{"who": "Q", "says": "q"}], "chosen": {"who": "A", "says": "a"},
           "rejected": {"who": "A", "says": "b"}}  # fmt: skip
    first, second = Pairs(tags=OWN).read(row).branches
    assert [turn.content for turn in (*first, *second)] == ["q", "a", "q", "b"]
    row = {"conversations": [{"who": "Q", "says": "q"}, {"who": "A", "says": "a"}], "label": True}
    assert [turn.role for turn in Labelled(tags=OWN).read(row).branches[0]] == ["user", "assistant"]


def test_rows_are_written_with_the_tags():
    read_as = Sharegpt(tags=OWN)
    row = {"conversations": [{"who": "Q", "says": "q"}, {"who": "C", "says": '{"name": "f", "arguments": {}}'}]}
    assert read_as.write(read_as.read(row)) == row


def test_tags_come_back_from_their_spelling():
    read_as = Sharegpt(tags=OWN)
    assert pick(Format, spell(read_as)) == read_as
    assert spell(Sharegpt(tags={"user_tag": "Q"}), only_set=True) == {"type": "sharegpt", "tags": {"user_tag": "Q"}}


def references(shape: object) -> list[str]:
    """Every `$ref` in a JSON Schema."""
    if isinstance(shape, dict):
        own = [shape["$ref"]] if "$ref" in shape else []
        return own + [ref for part in shape.values() for ref in references(part)]
    return [ref for part in shape for ref in references(part)] if isinstance(shape, list) else []


def test_the_schema_of_a_recipe_has_the_tags_where_they_are_said():
    shape = Recipe.model_json_schema()
    choices = shape["$defs"]["Source"]["properties"]["format"]["anyOf"]
    (own,) = (one for one in choices if one.get("properties", {}).get("type") == {"const": "sharegpt"})
    assert own["properties"]["tags"]["properties"]["user_tag"]["default"] == "human"
    assert {ref.removeprefix("#/$defs/") for ref in references(shape)} <= set(shape["$defs"])
