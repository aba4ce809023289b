"""Pictures beside a conversation stand where its text has their marks, each once."""

import pytest

from tunesmith.errors import DataError
from tunesmith.formats.alpaca import Alpaca
from tunesmith.formats.messages import Messages
from tunesmith.formats.pairs import Pairs

PLAIN = {"type": "text", "text": "Who is it?"}


def said(text: str) -> dict:
    return {"type": "text", "text": text}


def image(path: str) -> dict:
    return {"type": "image", "path": path}


def contents(*texts: object, **columns: object) -> list:
    row = {"messages": [{"role": "user", "content": text} for text in texts], **columns}
    return [turn.content for turn in Messages().read(row).branches[0]]


def test_marks_become_parts_in_the_order_of_the_paths():
    assert contents("a<image>b<image>", "c", "<image>", images=["1", "2", "d/3"]) == [
        (said("a"), image("1"), said("b"), image("2")),
        "c",
        (image("d/3"),),
    ]


def test_kinds_are_counted_apart():
    found = contents("<audio><video>a<audio>", audios=["1", "2"], videos=["3"])
    assert [[part.get("path", part.get("text")) for part in turn] for turn in found] == [["1", "3", "a", "2"]]


def test_a_mark_without_paths_of_its_kind_is_text():
    assert contents("<image> is a mark") == ["<image> is a mark"]
    assert contents("<image> <video>", images=["1"])[0] == (image("1"), said(" <video>"))
    assert contents("<image>", images=[]) == contents("<image>", images=None) == ["<image>"]


@pytest.mark.parametrize("paths", [["a.png"], '["a.png"]', "a.png", [{"path": "a.png", "bytes": None}]])
def test_paths_may_be_a_list_its_text_or_one_path(paths):
    assert contents("<image>", images=paths) == [(image("a.png"),)]


def test_parts_that_name_no_picture_take_the_next_path():
    parts = [{"type": "image", "text": None}, said("and <image>"), {"type": "image_url", "image_url": {"url": "x"}}]
    assert contents(parts, images=["1", "2"])[0] == (image("1"), said("and "), image("2"), parts[2])


@pytest.mark.parametrize(
    ("text", "paths", "marks"), [("hi", ["1"], (0, 1)), ("<image>", ["1", "2"], (1, 2)), ("<image>" * 3, ["1"], (3, 1))]
)
def test_another_number_of_marks_than_of_paths_is_refused_with_both(text, paths, marks):
    with pytest.raises(
        DataError, match=f"has {marks[0]} marks <image>, and column 'images' has {marks[1]} paths"
    ) as one:
        contents(text, images=paths)
    assert one.value.reason == "marks <image> and paths in column 'images' differ in number"


@pytest.mark.parametrize("wrong", [[1], [None], [""], [{"bytes": "x"}], 7])
def test_paths_that_are_none_are_refused(wrong):
    with pytest.raises(DataError, match="column 'images' must (hold paths and holds|be a list)"):
        contents("<image>", images=wrong)


def test_other_formats_have_pictures_too():
    row = {"instruction": "<image>?", "output": "A.", "images": ["1"]}
    assert Alpaca().read(row).branches[0][0].content == (image("1"), said("?"))
    row = {"prompt": "<image>?", "chosen": "A.", "rejected": "B.", "images": ["1"]}
    assert [branch[0].content for branch in Pairs().read(row).branches] == [(image("1"), said("?"))] * 2
