"""What a person sees of the rows: every token's text, what is trained of it, and the ledger."""

import io
import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from rich.console import Console
from rich.text import Text

from fixtures_chats import chat, recipe, write_rows
from fixtures_models import tiny_tokenizer
from tunesmith.data import page, preview
from tunesmith.errors import DataError
from tunesmith.recipe import Recipe
from tunesmith.types import Tokens

ANSWERS = ("Bread & <b>butter</b>.\n\tAnd 茶!", "Half 🙂", "No.")
ROWS = [
    [("user", "What is for breakfast?"), ("assistant", ANSWERS[0])],
    [("user", "Is anybody there?")],
    [("user", "\x1b[31mred\x1b[0m \u202eback"), ("assistant", ANSWERS[1], 0.5)],
    [("system", "Be short."), ("user", "日本?"), ("assistant", ANSWERS[2])],
]


def tokens_of(text, weights=None):
    ids = np.asarray(tiny_tokenizer()(text, add_special_tokens=False)["input_ids"], np.int32)
    return Tokens(ids, np.ones(len(ids), np.float32) if weights is None else np.asarray(weights, np.float32))


def made(folder, **options):
    """A preview of the rows above."""
    turns = [[dict(zip(("role", "content", "train"), turn, strict=False)) for turn in row] for row in ROWS]
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps({"messages": row}) + "\n" for row in turns))
    recipe = Recipe(model="tiny", data={"train": str(path)})
    return preview.Preview(recipe, recipe.data.template.prepare(tiny_tokenizer()), **options)


def test_a_stream_is_not_advised_what_it_refuses(tmp_path):
    path = write_rows(tmp_path / "rows.jsonl", [chat("q", "a")] * 2)
    for streaming in (False, True):
        said = recipe(path, train={"max_steps": 1}, streaming=streaming)
        found = preview.Preview(said, said.data.template.prepare(tiny_tokenizer()))
        list(found)
        (line,) = [one for one in found.lines() if "equal an earlier one" in one]
        assert line.endswith(f"({path}:2)") == streaming
        assert ("data.duplicates=drop" in line) != streaming


# the text of tokens


@pytest.mark.parametrize(
    "text",
    [
        "plain words",
        "<|im_start|>user\nHello<|im_end|>\n",
        "你好 🙂🚀 café",
        "👩‍🍳" * 3,
        "already broken: \ufffd and \ufffd\ufffd<|im_end|>",
        " leading and trailing \n",
    ],
)
def test_pieces_are_all_of_the_text_and_whole_characters(text):
    tokenizer, tokens = tiny_tokenizer(), tokens_of(text)
    found = preview.pieces(tokens, tokenizer)
    assert "".join(piece.text for piece in found) == text
    assert [number for piece in found for number in piece.ids] == tokens.ids.tolist()
    if "\ufffd" not in text:
        assert not any("\ufffd" in piece.text for piece in found)
    specials = [piece.text for piece in found if piece.special]
    assert specials == re.findall(r"<\|\w+\|>", text)


def test_a_character_of_several_tokens_is_one_piece():
    tokens = tokens_of("a🚁b")
    assert len(tokens) > 3  # the helicopter is not in the tokenizer's training text
    assert [piece.text for piece in preview.pieces(tokens, tiny_tokenizer())] == ["a", "🚁", "b"]


def test_the_space_that_sentencepiece_tokenizers_drop_is_kept():
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = {"\u2581one": 0, "\u2581two": 1, "\u2581three": 2, "<s>": 3}
    inner = Tokenizer(models.WordLevel(words, unk_token="<s>"))
    inner.pre_tokenizer, inner.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner)
    ids = np.asarray([0, 1, 2, 1], np.int32)
    assert tokenizer.decode([1]) == "two"  # alone, it has lost its space
    found = preview.pieces(Tokens(ids, np.ones(4, np.float32)), tokenizer)
    assert [piece.text for piece in found] == ["one", " two", " three", " two"]


def test_the_first_token_is_never_trained():
    found = preview.pieces(tokens_of("a b c"), tiny_tokenizer())
    assert [piece.weight for piece in found] == [0.0, *[1.0] * (len(found) - 1)]


# JSON


def test_json_lines_have_every_sample_in_order_and_the_ledger_last(tmp_path):
    *samples, last = map(json.loads, preview.json_lines(made(tmp_path)))
    assert [sample["where"].rpartition(":")[2] for sample in samples] == ["1", "2", "3", "4"]
    assert all(list(sample) == ["where", "branches", "label", "dropped"] for sample in samples)
    assert samples[1]["branches"] == [] and samples[1]["dropped"] == "no trained turn"
    tokenizer = tiny_tokenizer()
    for number, answer, weight in ((0, ANSWERS[0], 1.0), (2, ANSWERS[1], 0.5), (3, ANSWERS[2], 1.0)):
        (branch,) = samples[number]["branches"]
        assert branch["text"] == tokenizer.decode(branch["ids"])
        trained = [token for token, w in zip(branch["ids"], branch["weight"], strict=True) if w]
        assert tokenizer.decode(trained) == answer + "<|im_end|>"
        assert set(branch["weight"]) == {0.0, weight}
    lengths = [len(branch["ids"]) for sample in samples for branch in sample["branches"]]
    trained = [sum(map(bool, branch["weight"])) for sample in samples for branch in sample["branches"]]
    ledger = last["ledger"]
    assert (ledger["rows_read"], ledger["rows_kept"]) == (4, 3)
    assert (ledger["tokens"], ledger["trained_tokens"]) == (sum(lengths), sum(trained))
    assert ledger["dropped"]["no trained turn"]["first"] == [samples[1]["where"]]


@pytest.mark.parametrize(("options", "shown", "read"), [({}, 4, 4), ({"rows": 2}, 2, 2), ({"rows": 9}, 4, 4)])
def test_the_ledger_counts_what_was_read(tmp_path, options, shown, read):
    given = made(tmp_path, **options)
    assert len(list(given)) == shown
    assert given.ledger.as_dict()["rows_read"] == read
    assert ("every row" in given.extent) == (read == 4)


def test_a_row_of_several_samples_is_counted_to_its_end(tmp_path):
    given = made(tmp_path, rows=1)
    turns = [("user", "Why?"), ("assistant", "Hm."), ("user", "Well?"), ("assistant", "#### 4")] * 2
    row = {"messages": [{"role": role, "content": text} for role, text in turns]}
    (tmp_path / "rows.jsonl").write_text((json.dumps(row) + "\n") * 2)
    data = {"train": str(tmp_path / "rows.jsonl"), "template": "per_turn", "shared_prefix": False}
    given.recipe = Recipe(model="tiny", data=data | {"loss": {"pattern": "#### (.*)"}})
    (first,) = list(given)
    assert first.dropped == "nothing matches data.loss.pattern"  # of the first answer; the second has one
    counted = given.ledger.as_dict()
    assert (counted["rows_read"], counted["rows_kept"], counted["samples"]) == (1, 1, 2)


def test_the_ledger_counts_everything_when_asked(tmp_path):
    given = made(tmp_path, rows=1, everything=True)
    assert len(list(given)) == 1
    assert given.ledger.as_dict()["rows_read"] == 4 and "every row" in given.extent


# the terminal


def printed(given, **options):
    out = io.StringIO()
    preview.show(given, Console(file=out, width=100, highlight=False, emoji=False, **options))
    return out.getvalue()


def test_in_colour_exactly_the_trained_tokens_have_a_background(tmp_path):
    out = printed(made(tmp_path), force_terminal=True, color_system="truecolor", no_color=False)
    _, *lines = out.split("\n")  # without the legend, which has a background too
    text = Text.from_ansi("\n".join(lines))
    backgrounds = [bool(text.get_style_at_offset(Console(), at).bgcolor) for at in range(len(text))]
    coloured = "".join(char for char, has in zip(text.plain, backgrounds, strict=True) if has)
    shown = [answer.replace("\n", "↵").replace("\t", "⇥       ") + "<|im_end|>" for answer in ANSWERS]
    assert coloured == f"{shown[0]}×0.5 {shown[1]}{shown[2]}"


def test_without_colour_marks_stand_around_what_is_trained(tmp_path):
    out = printed(made(tmp_path), color_system=None)
    marked = re.findall("⟦(.*?)⟧", out.partition("\n")[2], re.DOTALL)
    shown = [re.sub(r"\s+", " ", answer.replace("\n", "↵ ").replace("\t", "⇥ ")) for answer in ANSWERS]
    assert [re.sub(r"\s+", " ", one) for one in marked] == [
        f"{shown[0]}<|im_end|>",
        f"×0.5 {shown[1]}<|im_end|>",
        f"{shown[2]}<|im_end|>",
    ]


def test_headlines_and_the_ledger_are_printed(tmp_path):
    given = made(tmp_path)
    out = printed(given, color_system=None)
    (branch,) = json.loads(next(preview.json_lines(made(tmp_path))))["branches"]
    number, trained = len(branch["ids"]), sum(map(bool, branch["weight"]))
    assert f"rows.jsonl:1  {number} tokens, {trained} trained ({trained / number:.0%})" in out
    assert "rows.jsonl:2  dropped: no trained turn" in out
    assert [line for line in given.ledger.lines() if line not in out] == []


@pytest.mark.parametrize("colour", [None, "truecolor"])
def test_text_cannot_steer_the_terminal(tmp_path, colour):
    options = {"force_terminal": True, "no_color": False} if colour else {}
    out = printed(made(tmp_path), color_system=colour, **options)
    assert "\x1b[31mred" not in out and "␛[31mred␛[0m <U+202E>back" in Text.from_ansi(out).plain
    assert "\u202e" not in out


# the page


class Marks(HTMLParser):
    """The text in <mark>, the text in <pre>, every tag and every attribute."""

    def __init__(self):
        super().__init__()
        self.inside, self.marks, self.pre, self.tags, self.tips = [], [], [], set(), []

    def handle_starttag(self, tag, attributes):
        self.tags.add(tag)
        if tag in ("mark", "pre", "b"):
            self.inside.append(tag)
        if tag == "mark" and "pre" in self.inside:
            self.marks.append("")
        if tag == "pre":
            self.pre.append("")
        self.tips += [value for name, value in attributes if name == "data-t"]

    def handle_endtag(self, tag):
        if self.inside and self.inside[-1] == tag:
            self.inside.pop()

    def handle_data(self, text):
        if "pre" in self.inside and "b" not in self.inside:
            self.pre[-1] += text
            if "mark" in self.inside:
                self.marks[-1] += text


def test_the_page_marks_exactly_what_is_trained_and_escapes_the_rest(tmp_path):
    page.write(str(tmp_path / "page.html"), made(tmp_path), "<b>mine</b>")
    text = (tmp_path / "page.html").read_text(encoding="utf-8")
    seen = Marks()
    seen.feed(text)
    assert seen.marks == [preview.visible(answer) + "<|im_end|>" for answer in ANSWERS]
    samples = [json.loads(line) for line in preview.json_lines(made(tmp_path))][:-1]
    branches = [branch for sample in samples for branch in sample["branches"]]
    assert seen.pre == [preview.visible(branch["text"]) for branch in branches]
    assert "<b>mine" not in text and "Preview of &lt;b&gt;mine&lt;/b&gt;" in text and "\u202e" not in text
    tips = [re.fullmatch(r"id ([\d ]+), weight ([\d.]+)", tip).groups() for tip in seen.tips]
    assert [int(one) for ids, _ in tips for one in ids.split()] == [one for b in branches for one in b["ids"]]
    weights = [w for branch in branches for w in branch["weight"]]
    assert [float(weight) for ids, weight in tips for _ in ids.split()] == weights


def test_the_page_needs_no_network_and_runs_no_script(tmp_path):
    page.write(str(tmp_path / "page.html"), made(tmp_path), "mine")
    text = (tmp_path / "page.html").read_text(encoding="utf-8")
    seen = Marks()
    seen.feed(text)
    assert not seen.tags & {"script", "link", "img", "iframe", "object"}
    assert not re.search(r"src=|href=|url\(|@import|https?:|\bon\w+=", text)
    assert "default-src 'none'" in text and "prefers-color-scheme: dark" in text


def test_the_page_shows_the_ledger_and_what_was_dropped(tmp_path):
    given = made(tmp_path)
    page.write(str(tmp_path / "page.html"), given, "mine")
    text = (tmp_path / "page.html").read_text(encoding="utf-8")
    counts = given.ledger.as_dict()
    for name in ("rows_read", "rows_kept", "tokens", "trained_tokens"):
        assert f"<th>{name.replace('_', ' ')}</th><td>{counts[name]:,}</td>" in text
    assert "<article class=dropped>" in text and "dropped: no trained turn" in text


def test_the_page_says_that_more_places_were_dropped_than_it_names(tmp_path):
    given = made(tmp_path)
    (tmp_path / "rows.jsonl").write_text(json.dumps({"messages": [{"role": "user", "content": "Why?"}]}) + "\n")
    with (tmp_path / "rows.jsonl").open("a") as file:
        file.write((tmp_path / "rows.jsonl").read_text() * 3)
    page.write(str(tmp_path / "page.html"), given, "mine")
    text = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert re.search(r"<td>4 \(.*rows.jsonl:1, .*rows.jsonl:2, .*rows.jsonl:3, \.\.\.\)</td>", text)


def test_a_page_is_written_over_and_any_other_file_is_not(tmp_path):
    target = tmp_path / "page.html"
    page.write(str(target), made(tmp_path), "first")
    page.write(str(target), made(tmp_path), "second")
    assert "Preview of second" in target.read_text(encoding="utf-8")
    with pytest.raises(DataError, match="rows.jsonl exists and is not a preview: name another file"):
        page.write(str(tmp_path / "rows.jsonl"), made(tmp_path), "mine")
    assert (tmp_path / "rows.jsonl").read_text().startswith('{"messages"')


# duplicates, lengths and sources


def test_a_sample_that_comes_again_is_counted_and_shown_as_left_out_when_it_will_be(tmp_path):
    turns = [{"role": "user", "content": "Again?"}, {"role": "assistant", "content": "Again."}]
    path = tmp_path / "rows.jsonl"
    path.write_text((json.dumps({"messages": turns}) + "\n") * 3)
    for wish, samples in (("keep", 3), ("drop", 1)):
        recipe = Recipe(model="tiny", data={"train": str(path), "duplicates": wish})
        given = preview.Preview(recipe, recipe.data.template.prepare(tiny_tokenizer()))
        shown = list(given)
        counts = given.ledger.as_dict()
        assert counts["found"]["duplicate of an earlier sample"] == {"count": 2, "first": [f"{path}:2", f"{path}:3"]}
        assert (counts["samples"], counts["rows_kept"]) == (samples, samples)
        assert [one.dropped is None for one in shown] == [True, *[wish == "keep"] * 2]
        assert counts["tokens"] + sum(counts["tokens_dropped"].values()) == 3 * len(shown[0].branches[0])


def test_lengths_and_sources_are_shown(tmp_path):
    first = made(tmp_path)
    other = tmp_path / "other.jsonl"
    other.write_text(json.dumps({"text": "A document. " * 30}) + "\n")
    recipe = Recipe(model="tiny", data={"train": [str(tmp_path / "rows.jsonl"), str(other)]})

    def given():
        return preview.Preview(recipe, first.tokenizer)

    looked = given()
    lengths = [sum(map(len, one.branches)) for one in looked if one.dropped is None]
    counts = looked.ledger.as_dict()
    assert [own["samples"] for own in counts["sources"].values()] == [3, 1]
    out = printed(given(), color_system=None)
    assert f"{other}: read as text (format: auto)" in out
    assert f"of {other}: 1 samples of 1 rows, {lengths[-1]:,} tokens" in out
    assert f"half of the samples have at most {sorted(lengths)[1]} tokens" in out
    assert re.search(r"^ +\d+-\d+  #+ \d+$", out, re.MULTILINE)
    assert "\u2588" in printed(given(), force_terminal=True, color_system="truecolor", no_color=False)
    page.write(str(tmp_path / "page.html"), given(), "mine")
    text = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert text.count('<table class="lengths">') == text.count('<table class="sources">') == 1
    assert f"<td>{other}</td><td>1 <i>20.0%</i></td>" in text
    assert text.count('<i style="width:100.0%"></i></td>') >= 1


# objectives that learn something else than tokens


def of_objective(folder, row, objective, **source):
    path = folder / "rows.jsonl"
    path.write_text(json.dumps(row) + "\n")
    recipe = Recipe(model="tiny", data={"train": [{"path": str(path)} | source]}, objective=objective)
    return preview.Preview(recipe, recipe.data.template.prepare(tiny_tokenizer()))


@pytest.mark.parametrize(
    ("row", "objective", "source", "label"),
    [
        ({"text": "So good.", "label": "good"}, "classify", ("bad", "good"), ", label good"),
        ({"text": "So so.", "label": ["b", "a"]}, {"multi_label": True}, ("a", "b"), r", label \[a, b\]"),
        ({"text": "So good.", "label": 1}, {"num_labels": 2}, (), ", label 1"),
        ({"prompt": "Hi", "chosen": "Hello.", "rejected": "No."}, "reward", None, ""),
    ],
)
def test_a_head_learns_labels_and_no_token(tmp_path, row, objective, source, label):
    objective = {"type": "classify", **objective} if isinstance(objective, dict) else objective
    read = {} if source is None else {"format": {"type": "classes", "classes": list(source)}}
    given = of_objective(tmp_path, row, objective, **read)
    out = printed(given, color_system=None)
    assert re.search(rf"rows.jsonl:1  \d+ tokens, 0 trained \(0%\){label} ", out)
    assert "\u27e6" not in out.partition("\n")[2] and given.ledger.as_dict()["trained_tokens"] == 0
    assert out.count("trains a head that reads whole sequences: no token is learned") == 1
    assert "1 samples trained (100.0%), longest" in out
    page.write(str(tmp_path / "page.html"), of_objective(tmp_path, row, objective, **read), "mine")
    assert re.search(f"0 trained \\(0%\\){label}</p>", (tmp_path / "page.html").read_text(encoding="utf-8"))


def test_that_answers_are_also_run_behind_other_prompts_is_said_once(tmp_path):
    row = {"prompt": "Hi", "completion": "Hello.", "label": True}
    said = "runs each sample also with another sample's answer, which is not learned"
    out = printed(of_objective(tmp_path, row, "kto"), color_system=None)
    assert out.count(said) == 1 and "\u27e6Hello.<|im_end|>\u27e7" in out
    assert said not in printed(made(tmp_path), color_system=None)
