"""Messages: roles, content, tools and weights become what templates and the loss expect."""

import json

import pytest

from tunesmith.errors import DataError
from tunesmith.formats.messages import Messages
from tunesmith.types import Message

CALL = {"id": "a1", "type": "function", "function": {"name": "warmth", "arguments": {"city": "Oslo"}}}
BARE = {"name": "warmth", "parameters": {"type": "object"}}
TOOL = {"type": "function", "function": BARE}


def read(*messages: dict, **columns: object) -> tuple[Message, ...]:
    (branch,) = Messages().read({"messages": list(messages), **columns}).branches
    return branch


def user(content: object = "hi", **more: object) -> dict:
    return {"role": "user", "content": content, **more}


def answer(content: object = "yo", **more: object) -> dict:
    return {"role": "assistant", "content": content, **more}


@pytest.mark.parametrize(
    ("role", "ours"),
    {"system": "system", "developer": "system", "user": "user", "assistant": "assistant", "tool": "tool",
     "function": "tool"}.items(),
)  # fmt: skip
def test_roles_are_ours(role, ours):
    assert read(answer("call"), {"role": role, "content": "x"})[1] == Message(ours, "x")


def test_messages_may_be_their_json_text():
    assert read(user(), answer()) == Messages().read({"messages": json.dumps([user(), answer()])}).branches[0]


def test_parts_of_text_are_one_text_and_other_parts_stay_parts():
    texts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    image = {"type": "image_url", "image_url": {"url": "x.png"}}
    assert read(user(texts))[0].content == "ab"
    assert read(user([*texts, image]))[0].content == (*texts, image)


@pytest.mark.parametrize(
    "given",
    [
        CALL,
        {**CALL, "function": {"name": "warmth", "arguments": '{"city": "Oslo"}'}},
        {"id": "a1", "name": "warmth", "arguments": {"city": "Oslo"}},
    ],
)
def test_a_tool_call_has_one_shape_and_its_arguments_are_an_object(given):
    (turn,) = read(answer(None, tool_calls=[given]))
    assert turn == Message("assistant", "", tool_calls=(CALL,))


@pytest.mark.parametrize(("given", "kept"), [("{city", "{city"), ("[1]", "[1]"), ("", {}), (None, {})])
def test_arguments_that_are_no_object_stay_text(given, kept):
    (turn,) = read(answer("", tool_calls=[{"function": {"name": "f", "arguments": given}}]))
    assert turn.tool_calls == ({"type": "function", "function": {"name": "f", "arguments": kept}},)


def test_a_function_call_of_the_older_interface_is_a_tool_call():
    (turn,) = read(answer(None, function_call={"name": "f", "arguments": "{}"}))
    assert turn.tool_calls == ({"type": "function", "function": {"name": "f", "arguments": {}}},)


def test_the_result_of_a_tool_keeps_its_names():
    *_, turn = read(answer(tool_calls=[CALL]), {"role": "tool", "content": "4", "tool_call_id": "a1", "name": "warmth"})
    assert turn == Message("tool", "4", tool_call_id="a1", name="warmth")


@pytest.mark.parametrize("key", ["reasoning_content", "reasoning", "thinking"])
def test_reasoning_is_kept_beside_the_content(key):
    assert read(answer("4", **{key: "2+2"})) == (Message("assistant", "4", reasoning="2+2"),)
    assert read(answer(None, **{key: "2+2"}))[0].content == ""


@pytest.mark.parametrize(
    ("fields", "weight"),
    [
        ({}, 1), ({"train": None, "weight": None}, 1), ({"train": False}, 0), ({"train": True}, 1),
        ({"weight": 0}, 0), ({"weight": 1}, 1), ({"train": 0.25}, 0.25), ({"train": False, "weight": 1}, 0),
    ],
)  # fmt: skip
def test_what_is_trained_is_said_by_train_or_weight(fields, weight):
    assert read(answer("yo", **fields))[0].weight == weight


def test_a_user_turn_is_trained_when_it_says_so():
    assert [turn.weight for turn in read(user(train=True), user(), answer())] == [1.0, 0.0, 1.0]


@pytest.mark.parametrize(
    ("given", "spans"),
    [([[0, 2]], ((0, 2, 1.0),)), ([[0, 1], [1, 4, 0.5]], ((0, 1, 1.0), (1, 4, 0.5))), ("[[2, 4]]", ((2, 4, 1.0),))],
)
def test_characters_that_are_learned_are_kept_as_spans(given, spans):
    assert read(answer("abcd", train_spans=given)) == (Message("assistant", "abcd", spans=spans),)


def test_no_spans_at_all_say_that_nothing_is_learned():
    assert read(answer(train_spans=[])) == (Message("assistant", "yo", train=False),)
    assert read(answer(train_spans=None)) == (Message("assistant", "yo"),)


def test_a_tool_may_answer_a_call_that_stands_in_a_text():
    assert [turn.role for turn in read(user(), answer("<call>f()</call>"), {"role": "tool", "content": "4"})][
        -1
    ] == "tool"
    with pytest.raises(DataError, match=r"messages\[2\] is the answer of a tool"):
        read(answer(), user(), {"role": "tool", "content": "4"})


def test_from_and_value_are_read_too():
    assert read({"from": "human", "value": "hi"}, answer()) == (Message("user", "hi"), Message("assistant", "yo"))


def test_spans_come_back_from_what_is_written():
    row = {"messages": [user("abcd", train_spans=[[1, 2, 0.5]]), answer("abcd", train_spans=[[0, 1], [2, 4]])]}
    assert Messages().write(Messages().read(row)) == {
        "messages": [
            {"role": "user", "content": "abcd", "train_spans": [[1, 2, 0.5]]},
            {"role": "assistant", "content": "abcd", "train_spans": [[0, 1, 1.0], [2, 4, 1.0]]},
        ]
    }


@pytest.mark.parametrize("tools", [[TOOL], json.dumps([TOOL]), [BARE], json.dumps([BARE])])
def test_tools_are_a_list_or_its_text_in_one_shape(tools):
    assert Messages().read({"messages": [answer()], "tools": tools}).tools == (TOOL,)


@pytest.mark.parametrize("tools", [None, "", "[]", []])
def test_there_may_be_no_tools(tools):
    assert Messages().read({"messages": [answer()], "tools": tools}).tools == ()


def test_the_system_message_of_the_row_comes_first():
    assert [turn.content for turn in read(user(), answer(), system="Be kind.")] == ["Be kind.", "hi", "yo"]
    assert len(read({"role": "system", "content": "Be kind."}, user(), system="Be kind.")) == 2
    assert len(read(user(), answer(), system="")) == 2


WRONG = [
    ([], {}, r"column 'messages' is an empty list"),
    ("hi", {}, r"column 'messages' must be a list \(or its JSON text\) and is text \('hi'\)"),
    (["hi"], {}, r"messages\[0\] must be an object and is text \('hi'\)"),
    (
        [user(), {"role": "bot", "content": ""}],
        {},
        r"messages\[1\].role is 'bot'. Known: assistant, bing, chatgpt, developer",
    ),
    ([{"role": "assistent", "content": ""}], {}, r"role is 'assistent'. Did you mean 'assistant'\?"),
    ([{"content": ""}], {}, r"messages\[0\].role is missing; messages\[0\] has the keys content$"),
    ([{"a\nb": "", "role": "user"}], {}, r"content is missing; messages\[0\] has the keys 'a\\nb', role$"),
    ([{"role": "user"}], {}, r"messages\[0\].content is missing"),
    ([user(None)], {}, r"messages\[0\].content must be text and is null"),
    ([user([])], {}, r"messages\[0\].content must be text or a list of parts"),
    ([user(["hi"])], {}, r"messages\[0\].content\[0\] must be an object and is text"),
    ([user([{"type": "text"}])], {}, r"messages\[0\].content\[0\].text is missing"),
    (
        [answer(weight=-1)],
        {},
        r"messages\[0\].weight must be true, false or a number from 0 to 1,000,000 and is a",
    ),
    ([answer(weight=10**400)], {}, r"messages\[0\].weight must be true"),
    ([answer(train=float("nan"))], {}, r"messages\[0\].train must be .* is a number \(nan\)"),
    ([answer(train="yes")], {}, r"messages\[0\].train must be true, .* is text \('yes'\)"),
    ([answer(tool_calls=[{"id": "1"}])], {}, r"messages\[0\].tool_calls\[0\].name is missing"),
    ([answer(tool_calls=[{"function": 1}])], {}, r"tool_calls\[0\].function must be an object"),
    ([answer(tool_calls=[{"name": "f", "arguments": [1]}])], {}, r"arguments must be an object or text"),
    (
        [answer(tool_calls=[{"name": "f", "arguments": {"a": b""}}])],
        {},
        r"arguments cannot be written as JSON",
    ),
    ([answer(tool_calls=[{"name": "f", "arguments": '{"a": "\\ud83d"}'}])], {}, r"cannot be written as JSON"),
    ([answer(function_call="f")], {}, r"messages\[0\].function_call must be an object and is text"),
    ([user()], {"tools": "none"}, r"column 'tools' must be a list \(or its JSON text\)"),
    ([user()], {"tools": [{"name": "\ud83d"}]}, r"column 'tools' cannot be written as JSON"),
    ([user()], {"system": ["s"]}, r"column 'system' must be text and is a list"),
    ([{"role": "system", "content": "a"}], {"system": "b"}, r"column 'system' \('b'\) .* differ"),
    ([user()], {"images": ["a.png"]}, r"has 0 marks <image>, and column 'images' has 1 paths"),
    ([user([{"type": "tool_use"}])], {}, r"messages\[0\].content\[0\].type is 'tool_use'. Known: audio, "),
    (
        [user(), {"role": "system", "content": "a"}, {"role": "developer", "content": "b"}],
        {},
        r"messages\[2\] is a second system message, and a conversation has one: join them into the first",
    ),
    ([user(), {"role": "tool", "content": "4"}], {}, r"messages\[1\] is the answer of a tool, and no turn before it"),
    ([{"role": "tool", "content": "4"}, answer()], {}, r"messages\[0\] is the answer of a tool"),
    ([answer(train_spans=[[0]])], {}, r"train_spans must have \[start, end\] .* and has a list \(\[0\]\) at 0"),
    ([answer(train_spans=[[0, True]])], {}, r"train_spans must have"),
    ([answer(train_spans=[[0, 1, -1]])], {}, r"train_spans must have"),
    ([answer(train_spans=[[0, 3]])], {}, r"train_spans \[0\] is 0 to 3: .* end by 2, the length of the content"),
    ([answer(train_spans=[[1, 1]])], {}, r"train_spans \[0\] is 1 to 1"),
    ([answer("abcd", train_spans=[[0, 2], [1, 3]])], {}, r"train_spans \[1\] is 1 to 3: .* not overlap"),
    ([answer(train_spans=[[0, 1]], train=False)], {}, r"train_spans says what is learned of a turn that has `train: f"),
    ([answer("<image>", train_spans=[[0, 1]])], {"images": ["a.png"]}, r"the turn '<image>' has media in it"),
    ([user([{"type": "image"}], train_spans=[[0, 1]])], {}, r"characters of a text, and the content is parts"),
]


@pytest.mark.parametrize(("messages", "columns", "said"), WRONG, ids=[said for *_, said in WRONG])
def test_what_is_wrong_is_named_with_its_place(messages, columns, said):
    with pytest.raises(DataError, match=said):
        Messages().read({"messages": messages, **columns})
