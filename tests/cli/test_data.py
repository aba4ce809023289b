"""`tunesmith data convert`: words choose what is read and written; the account is said, or is JSON alone."""

import json

import pytest

from tunesmith.cli.main import main


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "faq.csv").write_text("Asked,Said,Id\nWho?,Me.,1\nWhen?,,2\nWhere?,Here.,3\n")
    return tmp_path


WORDS = ["format=alpaca", "columns.instruction=Asked", "columns.output=Said"]


def test_rows_are_written_and_what_is_left_is_said(here, capsys):
    assert main(["data", "convert", "faq.csv", "faq.jsonl", *WORDS, "to=sharegpt"]) == 0
    told = capsys.readouterr()
    assert told.err == "" and told.out.splitlines() == [
        "3 rows read as alpaca, 3 written as sharegpt",
        "columns that are not read, and not written: Id",
        "wrote faq.jsonl",
    ]
    first = json.loads((here / "faq.jsonl").read_text().splitlines()[0])
    assert first == {"conversations": [{"from": "human", "value": "Who?"}, {"from": "gpt", "value": "Me."}]}


def test_json_is_the_account_alone(here, capsys):
    assert main(["data", "convert", "faq.csv", "faq.xlsx", *WORDS, "to=alpaca", "--json"]) == 0
    account = json.loads(capsys.readouterr().out)
    assert (account["rows_read"], account["rows_written"]) == (3, 2)  # a sheet has no empty answer
    (reason,) = account["left_out"]
    assert account["left_out"][reason] == {"count": 1, "first": ["faq.csv:3"]} and ".xlsx" in reason


def test_strict_and_force(here, capsys):
    assert main(["data", "convert", "faq.csv", "faq.xlsx", *WORDS, "to=alpaca", "--strict"]) == 1
    assert capsys.readouterr().err.startswith("error: faq.csv:3: a .xlsx file cannot hold it")
    assert not (here / "faq.xlsx").exists()
    (here / "faq.xlsx").write_text("mine")
    assert main(["data", "convert", "faq.csv", "faq.xlsx", *WORDS, "to=alpaca"]) == 1
    assert "faq.xlsx exists" in capsys.readouterr().err and (here / "faq.xlsx").read_text() == "mine"
    assert main(["data", "convert", "faq.csv", "faq.xlsx", *WORDS, "to=alpaca", "--force"]) == 0


@pytest.mark.parametrize(
    ("words", "code", "line"),
    [
        (["convert", "faq.csv"], 2, "the following arguments are required: OUTPUT"),
        ([], 2, "the following arguments are required: convert, INPUT, OUTPUT"),
        (["conver", "faq.csv", "o.jsonl"], 2, "argument convert: invalid choice: 'conver'"),
        (["convert", "none.csv", "o.jsonl"], 1, "there is no file none.csv. Known: faq.csv."),
        (["convert", "faq.csv", "o.jsonl", "to=chat"], 1, "to: there is no format 'chat'"),
        (["convert", "faq.csv", "o.doc"], 1, "o.doc: its name must end in one of .json, .jsonl"),
        (["convert", "faq.csv", "o.jsonl", "messages"], 1, "'messages' is not `section.option=value`"),
    ],
)
def test_what_is_wrong_is_one_line(here, capsys, words, code, line):
    assert main(["data", *words]) == code
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.startswith(f"error: {line}") and captured.err.count("\n") == 1
