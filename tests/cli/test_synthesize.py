"""`tunesmith synthesize`: from seed tasks to rows that train, with a server of this machine as the model."""

import json

import pytest

from fixtures_authors import server, write_seeds
from tunesmith.cli.main import main

KEY = "k-0123456789abcdef"
WORDS = ["name=large", "num_instructions=3", "num_prompt_tasks=3"]


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MY_KEY", KEY)
    write_seeds(tmp_path / "seeds.jsonl")
    return tmp_path


def test_a_folder_is_made_and_gone_on_with(here, capsys):
    with server() as (address, got):
        assert main(["synthesize", "seeds.jsonl", "out", f"model={address}", "key_variable=MY_KEY", *WORDS]) == 0
        asked = len(got)
        told = capsys.readouterr()
        assert told.out.splitlines()[-2:] == [
            "6 rows",
            "Train on it: tunesmith train sft-lora data.train=out/train.jsonl",
        ]
        assert "instructions: 3 of 3 after" in told.err and "kinds: 3 of 3" in told.err
    # Another address of the same model goes on; all is there, so nothing is asked.
    assert main(["synthesize", "seeds.jsonl", "out", "model=http://127.0.0.1:9/v1", *WORDS, "--json"]) == 0
    ledger = json.loads(capsys.readouterr().out)
    assert ledger["rows"] == 6 and len(got) == asked
    assert all(headers["Authorization"] == f"Bearer {KEY}" and body["model"] == "large" for headers, body, _ in got)


def test_the_key_is_in_no_file(here, capsys):
    with server() as (address, _):
        assert main(["synthesize", "seeds.jsonl", "out", f"model={address}", "key_variable=MY_KEY", *WORDS]) == 0
    captured = capsys.readouterr()
    files = [path for path in (here / "out").iterdir() if path.is_file()]
    assert len(files) == 6 and KEY not in captured.out + captured.err
    assert [path.name for path in files if KEY.encode() in path.read_bytes()] == []


def test_a_refusal_leaves_what_there_is(here, capsys):
    with server(
        [(200, {}, '{"choices": [{"message": {"content": "Judge the river by night."}}]}')] + [(403, {}, "no")]
    ) as (
        address,
        _,
    ):
        assert main(["synthesize", "seeds.jsonl", "out", f"model={address}", *WORDS]) == 1
        captured = capsys.readouterr()
        assert captured.err.splitlines()[-1].startswith(
            f"error: {address}/chat/completions refuses: HTTP 403: no. Say key"
        )
        assert len((here / "out" / "instructions.jsonl").read_text().splitlines()) == 1
        assert main(["synthesize", "seeds.jsonl", "out", f"model={address}", *WORDS]) == 0
    assert json.loads((here / "out" / "ledger.json").read_text())["instructions"]["kept"] == 3


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ([], "model: is required and missing"),
        (["model=m", "num_instruction=3"], "num_instruction: no such option. Did you mean 'num_instructions'?"),
        (["model=m", "num_instructions=0"], "num_instructions: must be greater than 0 (it was 0)"),
        (["model=http://127.0.0.1:9/v1"], "synthesis: name is required with an address"),
        (["model=./none"], "there is no "),
    ],
)
def test_what_is_wrong_is_one_line(here, capsys, words, line):
    assert main(["synthesize", "seeds.jsonl", "out", *words]) == 1
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.startswith(f"error: {line}") and captured.err.count("\n") == 1


def test_the_help_has_every_option(capsys):
    from tunesmith.synthesis.options import Synthesis

    assert main(["synthesize", "--help"]) == 0
    told = capsys.readouterr().out
    assert [name for name in Synthesis.model_fields if f"\n  {name} " not in told] == []
