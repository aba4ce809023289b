"""Rows in another format and file are the same samples, and what is not carried over is named and counted."""

import json

import openpyxl
import pytest

from tunesmith.data import source
from tunesmith.data.convert import Conversion, convert
from tunesmith.errors import DataError, RecipeError
from tunesmith.formats.auto import choose
from tunesmith.recipe_data import Source

TALK = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Two and two?"},
    {"role": "assistant", "content": "Four."},
    {"role": "user", "content": "And\none?"},
    {"role": "assistant", "content": "=5"},
]
CALL = [
    {"role": "user", "content": "How warm is it?"},
    {
        "role": "assistant",
        "content": "",
        "tool_calls": [{"type": "function", "function": {"name": "f", "arguments": {}}}],
    },
    {"role": "tool", "content": "4"},
    {"role": "assistant", "content": "4 degrees."},
]


def lines(path, *rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def run(path, out, strict=False, force=False, **tree):
    return convert(Conversion.of(str(path), tree), out, force, strict)


def samples(path):
    rows = [row for _, row in source.read(Source(path=str(path)))]
    format_ = choose(rows[0])
    return [format_.read(row) for row in rows]


@pytest.mark.parametrize("kind", ["json", "jsonl", "csv", "tsv", "parquet", "xlsx", "csv.gz"])
@pytest.mark.parametrize("to", ["alpaca", "sharegpt", "messages"])
def test_messages_come_back_by_way_of_any_format_and_file(tmp_path, kind, to):
    first = lines(tmp_path / "first.jsonl", {"messages": TALK}, {"messages": TALK[1:3]})
    account = run(first, tmp_path / f"other.{kind}", to=to)
    assert (account.format, account.to, account.rows_read, account.rows_written) == ("messages", to, 2, 2)
    assert account.left_out == {} and account.unused_columns == []
    assert samples(tmp_path / f"other.{kind}") == samples(first)
    assert run(tmp_path / f"other.{kind}", tmp_path / "back.jsonl").format == to
    assert (tmp_path / "back.jsonl").read_text() == first.read_text()


@pytest.mark.parametrize("kind", ["jsonl", "csv", "parquet", "xlsx"])
def test_calls_and_tools_come_back(tmp_path, kind):
    tools = [{"type": "function", "function": {"name": "f", "parameters": {"type": "object", "default": None}}}]
    first = lines(tmp_path / "first.jsonl", {"messages": CALL, "tools": tools}, {"messages": TALK[1:3]})
    run(first, tmp_path / f"other.{kind}")
    assert samples(tmp_path / f"other.{kind}") == samples(first) and samples(first)[0].tools == tuple(tools)


@pytest.mark.parametrize(
    ("to", "row"),
    [
        ("pairs", {"prompt": "Hi", "chosen": "Hello!", "rejected": "What?"}),
        ("labelled", {"prompt": "Hi", "completion": "What?", "label": False}),
        ("text", {"text": "A heron stands still."}),
        ("classes", {"text": "A fine day", "label": 3}),
    ],
)
@pytest.mark.parametrize("kind", ["jsonl", "csv", "parquet", "xlsx"])
def test_other_shapes_come_back(tmp_path, to, row, kind):
    first = lines(tmp_path / "first.jsonl", row)
    run(first, tmp_path / f"other.{kind}", to=to)
    assert samples(tmp_path / f"other.{kind}") == samples(first)


def test_a_table_of_questions_becomes_messages_and_says_what_it_left(tmp_path):
    book = openpyxl.Workbook()
    for row in (
        ["Question", "Focus", "Answer", "URL"],
        ["what is it?", "x", "A drug.", "u"],
        ["how much?", "y", "Two.", "v"],
    ):
        book.active.append(row)
    book.save(tmp_path / "qa.xlsx")
    account = run(tmp_path / "qa.xlsx", tmp_path / "qa.jsonl")
    assert [json.loads(line) for line in (tmp_path / "qa.jsonl").read_text().splitlines()] == [
        {"messages": [{"role": "user", "content": q}, {"role": "assistant", "content": a}]}
        for q, a in (("what is it?", "A drug."), ("how much?", "Two."))
    ]
    assert (account.format, account.unused_columns) == ("qa", ["Focus", "URL"])
    assert list(account.lines())[-1] == "columns that are not read, and not written: Focus, URL"


def test_words_of_a_source_say_what_is_read(tmp_path):
    first = lines(tmp_path / "first.jsonl", {"q": "{{x}}?", "a": "Yes."}, {"q": "B?", "a": "No."})
    options = {"columns": {"instruction": "q", "output": "a"}, "replace": {"{{x}}": "A"}, "num_samples": 1}
    run(first, tmp_path / "out.json", format={"type": "alpaca", "system": "Be brief."}, **options)
    (row,) = json.loads((tmp_path / "out.json").read_text())
    assert [turn["content"] for turn in row["messages"]] == ["Be brief.", "A?", "Yes."]


def test_a_name_of_a_registry_is_read(tmp_path):
    lines(tmp_path / "rows.jsonl", {"q": "A?", "a": "Yes."})
    entry = {"path": "rows.jsonl", "format": "alpaca", "columns": {"instruction": "q", "output": "a"}}
    (tmp_path / "names.json").write_text(json.dumps({"mine": entry}))
    account = run("mine", tmp_path / "out.jsonl", registry=str(tmp_path / "names.json"))
    assert (account.rows_written, account.format) == (1, "alpaca")


def test_rows_that_cannot_be_carried_over_are_counted_with_their_places(tmp_path):
    bad = {"messages": [{"role": "user", "content": "A?"}, {"role": "assistant", "content": None}]}
    path = lines(
        tmp_path / "f.jsonl", {"messages": TALK}, {"messages": CALL}, bad, {"messages": CALL}, {"messages": TALK}
    )
    account = run(path, tmp_path / "out.jsonl", to="alpaca")
    assert (account.rows_read, account.rows_written) == (5, 2)
    assert sorted((entry["count"], entry["first"]) for entry in account.left_out.values()) == [
        (1, [f"{path}:3"]),
        (2, [f"{path}:2", f"{path}:4"]),
    ]
    assert len(list(account.lines())) == 3 and account.as_dict()["left_out"] == account.left_out
    with pytest.raises(DataError, match=r"f\.jsonl:2: the format alpaca cannot hold"):
        run(path, tmp_path / "strict.jsonl", strict=True, to="alpaca")
    assert not (tmp_path / "strict.jsonl").exists()


def test_a_table_that_would_change_a_row_does_not_get_it(tmp_path):
    empty = {"instruction": "A?", "output": ""}  # a sheet has no empty text, and reads none
    path = lines(
        tmp_path / "first.jsonl",
        {"instruction": "A?", "output": "b"},
        empty,
        {"instruction": "x" * 40_000, "output": "b"},
    )
    reasons = run(path, tmp_path / "out.xlsx", to="alpaca").left_out
    assert len(reasons) == 2 and "longer than a cell of a sheet" in reasons
    assert any(reason.startswith("a .xlsx file cannot hold it: ") for reason in reasons)
    assert run(path, tmp_path / "out.csv", to="alpaca").rows_written == 3


def test_a_row_that_an_option_leaves_out_is_counted_and_is_no_fault(tmp_path):
    rows = [{"prompt": "Hi", "completion": word, "label": word == "Yes"} for word in ("Yes", "No", "Yes")]
    path = lines(tmp_path / "first.jsonl", *rows)
    account = run(path, tmp_path / "out.jsonl", strict=True, format={"type": "labelled", "only": "good"})
    assert (account.rows_read, account.rows_written) == (3, 2)
    assert [entry["first"] for entry in account.left_out.values()] == [[f"{path}:2"]]


def test_a_first_row_that_cannot_be_converted_stops_it(tmp_path):
    path = lines(tmp_path / "first.jsonl", {"messages": CALL}, {"messages": TALK})
    with pytest.raises(DataError, match=r"first\.jsonl:1: the format alpaca cannot hold"):
        run(path, tmp_path / "out.jsonl", to="alpaca")
    with pytest.raises(DataError, match=r"first\.jsonl:1: .*'instruction'"):
        run(path, tmp_path / "out.jsonl", format="alpaca")
    assert [item.name for item in tmp_path.iterdir()] == ["first.jsonl"]


def test_more_than_a_tenth_that_cannot_be_read_stops_it_and_that_cannot_be_held_does_not(tmp_path):
    good, bad = {"messages": TALK}, {"messages": []}
    path = lines(tmp_path / "first.jsonl", *[good] * 18, bad, bad)
    assert run(path, tmp_path / "out.jsonl").rows_written == 18
    lines(path, *[good] * 17, bad, bad, bad)
    with pytest.raises(DataError, match=r"3 of the first 20 rows cannot be used, .*first\.jsonl:18: .*first\.jsonl:20"):
        run(path, tmp_path / "more.jsonl")
    assert not (tmp_path / "more.jsonl").exists()
    lines(path, good, *[{"messages": CALL}] * 19)
    assert run(path, tmp_path / "held.jsonl", to="alpaca").rows_written == 1


def test_nothing_left_is_an_error(tmp_path):
    path = lines(tmp_path / "first.jsonl", {"prompt": "Hi", "completion": "No", "label": False})
    with pytest.raises(DataError, match=r"none of its 1 rows is left: 1 .*good"):
        run(path, tmp_path / "out.jsonl", format={"type": "labelled", "only": "good"})


@pytest.mark.parametrize(
    ("tree", "problem"),
    [
        ({"to": "auto"}, r"to: auto can be read and not written\. Say one of alpaca, .*messages"),
        ({"to": "mesages"}, "to: there is no format 'mesages'. Did you mean 'messages'"),
        ({"to": {"tool": 1}}, "tool: no such option"),
        ({"weight": 2}, r"weight: is no option of a conversion \(it was 2\)"),
        ({"formt": "alpaca"}, "formt: no such option. Did you mean 'format'"),
        ({"num_samples": 0}, r"num_samples: .*\(it was 0\)"),
    ],
)
def test_words_that_are_wrong_are_refused(tree, problem):
    with pytest.raises(RecipeError, match=problem):
        Conversion.of("rows.json", tree)


def test_half_a_character_in_a_part_is_left_out(tmp_path):
    part = {"type": "image_url", "image_url": {"url": "\ud800"}}
    broken = [{"role": "user", "content": [part]}, *TALK[2:3]]
    path = lines(tmp_path / "rows.jsonl", *[{"messages": TALK}] * 12, {"messages": broken})
    account = run(path, tmp_path / "out.jsonl")
    assert (account.rows_written, account.left_out["it cannot be written as JSON"]["count"]) == (12, 1)
    with pytest.raises(DataError, match=f"^{path}:13: it cannot be written as JSON"):
        run(path, tmp_path / "out.csv", strict=True)


def test_a_file_may_take_its_own_place(tmp_path):
    path = lines(tmp_path / "rows.jsonl", {"messages": TALK[1:3]})
    run(path, path, force=True, to="alpaca")
    assert json.loads(path.read_text()) == {"instruction": "Two and two?", "input": "", "output": "Four."}
