"""Ten ways in which data is malformed: each gives a clear sentence with its place and a count, and never a crash.

A file that cannot be read stops the run. A row that cannot be used is left out, counted by reason and named; but the
first row of a source must be readable, and so must nine in ten.
"""

import csv
import io
import json

import pytest
import yaml

from tunesmith.cli.main import main

GOOD = [{"instruction": f"Say {number}.", "output": f"{number}!"} for number in range(40)]
LINE = len(GOOD) + 1  # where the first bad row stands


def turns(*roles, **columns):
    return {"messages": [{"role": role, "content": f"text of the {role}"} for role in roles]} | columns


CHATS = [turns("user", "assistant") for _ in GOOD]
LONG = "five words of a text " * 250_000  # 5 MB
IMAGE = {
    "messages": [{"role": "user", "content": "<image>What is it?"}, {"role": "assistant", "content": "A cat."}],
    "images": ["no/such.jpg"],
}

# Bad rows, after good ones of the same shape, and what is said of them: (reason, how many).
LEFT_OUT = {
    "half of a character": (GOOD, [{"instruction": "a", "output": "\ud83d"}], {"half a character": 1}),
    "nulls in some rows": (
        GOOD,
        [{"instruction": None, "output": "b"}, {"instruction": "a", "output": None}, {"instruction": "a"}],
        {"'instruction' must be text and is null": 1, "'output' must be text and is null": 1, "'output'": 2},
    ),
    "mixed types": (
        GOOD,
        [{"instruction": "a", "output": 5}, {"instruction": {"a": 1}, "output": "b"}],
        {"'output' must be text and is a number": 1, "'instruction' must be text and is": 1},
    ),
    "a field of 5 MB": (GOOD, [{"instruction": "a", "output": LONG}], {"longer than data.max_tokens": 1}),
    "nested lists": (
        GOOD,
        [{"instruction": "a", "output": [["b"]]}, {"instruction": [[[]]], "output": "b"}],
        {"'output' must be text and is a list": 1, "'instruction' must be text and is a list": 1},
    ),
    "empty answers": (
        GOOD,
        [{"instruction": "a", "output": ""}, {"instruction": "a", "output": " \n"}],
        {"empty answer": 2},
    ),
    "an answer to nothing": (CHATS, [turns("assistant", "user")], {"begins with an answer": 1}),
    "a tool that was not called": (CHATS, [turns("user", "tool", "assistant")], {"a tool answers before": 1}),
    "no answer": (CHATS, [turns("user"), turns("user", "user")], {"no trained turn": 2}),
    "two systems": (CHATS, [turns("system", "system", "user", "assistant")], {"second system message": 1}),
    "a missing image file": (CHATS, [IMAGE], {"image file is missing": 1}),
}

# What a file holds after good rows, and what stops the run.
STOPS = {
    "broken unicode": (b'{"instruction": "a", "output": "\xff\xfe"}', ["UTF-8", "0xff"]),
    "duplicate keys": (b'{"instruction": "a", "output": "b", "output": "c"}', ["'output'", "twice"]),
    "a duplicate key within": (b'{"instruction": "a", "output": "b", "x": [{"k": 1, "k": 2}]}', ["'k'", "twice"]),
    "a row that is a list": (b'[["a", "b"]]', ["list"]),
    "a row that ends early": (b'{"instruction": "a", "outp', ["JSON"]),
}


def text(rows):
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


@pytest.fixture
def call(tmp_path, monkeypatch, capsys):
    """Run a verb of the command line on a file of the given content: its exit code, and what it printed."""
    monkeypatch.chdir(tmp_path)

    def run(content, verb, *words, name="rows.jsonl"):
        (tmp_path / name).write_bytes(content)
        recipe = {
            "model": "builtin:tiny",
            "data": {"train": name, "cache_dir": "cache"},
            "train": {"output_dir": "out", "max_steps": 1},
        }
        (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
        code = main([verb, "recipe.yaml", *words])
        said = capsys.readouterr()
        assert "Traceback" not in said.err and "unexpected" not in said.err
        return code, said.out, said.err

    return run


def counts(ledger, part):
    """How many rows were left out for reasons with these words, and where the first of them stand."""
    found = [entry for reason, entry in ledger["dropped"].items() if part in reason]
    return sum(entry["count"] for entry in found), [place for entry in found for place in entry["first"]]


@pytest.mark.parametrize(
    "case", [pytest.param(case, marks=[pytest.mark.slow] if case == "a field of 5 MB" else []) for case in LEFT_OUT]
)
def test_bad_rows_are_left_out_named_and_counted(call, case):
    good, bad, reasons = LEFT_OUT[case]
    code, out, _ = call(text([*good, *bad]), "preview", "--json")
    assert code == 0
    *samples, last = [json.loads(line) for line in out.splitlines()]
    ledger = last["ledger"]
    assert (ledger["rows_read"], ledger["rows_kept"]) == (len(good) + len(bad), len(good))
    assert sum(entry["count"] for entry in ledger["dropped"].values()) == len(bad)
    places = [f"rows.jsonl:{LINE + number}" for number in range(len(bad))]
    assert {sample["where"] for sample in samples if sample["dropped"]} == set(places)
    for part, number in reasons.items():
        found, first = counts(ledger, part)
        assert found == number and set(first) <= set(places)


@pytest.mark.parametrize("case", STOPS)
def test_a_file_that_cannot_be_read_stops_with_its_place(call, tmp_path, case):
    line, says = STOPS[case]
    for verb in ("preview", "train"):
        code, _, err = call(text(GOOD) + line + b"\n", verb, *(["--all"] if verb == "preview" else []))
        (said,) = [line for line in err.splitlines() if line.startswith("error: ")]
        assert code == 1 and said.startswith(f"error: rows.jsonl:{LINE} ")
        assert all(part in said for part in says) and len(said) < 300
    assert not (tmp_path / "out").exists()


def test_a_table_with_a_field_longer_than_the_csv_module_allows(call):
    """131,072 characters."""
    table = io.StringIO()
    writer = csv.DictWriter(table, ["instruction", "output"])
    writer.writeheader()
    writer.writerows([*GOOD, {"instruction": "a", "output": LONG[:200_000]}])
    code, out, _ = call(table.getvalue().encode(), "preview", "--json", name="rows.csv")
    assert code == 0
    ledger = json.loads(out.splitlines()[-1])["ledger"]
    found, first = counts(ledger, "longer than data.max_tokens")
    assert found == 1 and ledger["rows_kept"] == len(GOOD) and first == [f"rows.csv:{LINE + 1}"]


def test_a_run_goes_on_without_its_bad_rows_and_says_each(call, tmp_path):
    bad = [row for good, rows, _ in LEFT_OUT.values() if good is GOOD for row in rows if row.get("output") != LONG]
    good = [{"instruction": f"Say {number}.", "output": f"{number}!"} for number in range(20 * len(bad))]
    code, _, err = call(text([*good, *bad]), "train")
    assert code == 0
    ledger = json.loads((tmp_path / "out" / "ledger.json").read_text())["train"]
    assert (ledger["rows_read"], ledger["rows_kept"]) == (len(good) + len(bad), len(good))
    assert sum(entry["count"] for entry in ledger["dropped"].values()) == len(bad)
    for reason, entry in ledger["dropped"].items():
        assert f"{entry['count']} dropped: {reason} ({entry['first'][0]}" in err


def test_more_than_a_tenth_stops_with_three_examples(call, tmp_path):
    rows = [*GOOD, *[{"instruction": "a", "output": None}] * 5]
    code, _, err = call(text(rows), "train")
    assert code == 1 and not (tmp_path / "out").exists()
    (said,) = [line for line in err.splitlines() if line.startswith("error: ")]
    assert "5 of the first 45 rows" in said and "tenth" in said
    assert [f"rows.jsonl:{line}" in said for line in range(LINE, LINE + 4)] == [True, True, True, False]
    code, _, err = call(text([*rows, *GOOD]), "train")  # 5 of 85 are fewer
    assert code == 0 and "5 dropped" in err


def test_the_first_row_must_be_readable(call, tmp_path):
    code, _, err = call(text([{"instruction": "a", "output": None}, *GOOD]), "train")
    assert code == 1 and not (tmp_path / "out").exists()
    assert "error: rows.jsonl:1: column 'output' must be text and is null" in err
