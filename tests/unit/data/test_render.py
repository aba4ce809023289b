"""Every row becomes a sample or a reason; ids and what is trained of them come from one place."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

import fixtures_chats as chats
import fixtures_models
from fixtures_chats import chat, render, tokens_of
from tunesmith.data import render as rendering
from tunesmith.data.loss import NO_TURN
from tunesmith.data.place import place
from tunesmith.data.preview import Preview
from tunesmith.data.render import EMPTY_ANSWER, EMPTY_TEXT, OVERLONG, Renderer, rendered
from tunesmith.errors import DataError, ModelError, TemplateError
from tunesmith.formats.messages import Messages
from tunesmith.formats.text import Text
from tunesmith.seams import Format
from tunesmith.types import Message, Sample

GOOD = chat("Why?", "Because.")


class TwoAnswers(Format):
    """Two branches, as rows of comparisons have."""

    def branches(self) -> tuple[str, ...]:
        return ("chosen", "rejected")

    def read(self, row: Mapping[str, Any]) -> Sample:
        return Sample(tuple((Message("user", "a"), Message("assistant", said)) for said in "bc"))


def test_a_token_is_in_the_span_that_it_begins_in():
    weight = place([(2, 5, 1.0), (7, 8, 0.5)], np.array([0, 1, 2, 4, 5, 6, 7, 7, 8]))
    assert weight.tolist() == [0, 0, 1, 1, 0, 0, 0.5, 0.5, 0]


def test_an_end_token_that_takes_the_line_end_behind_it_is_trained():
    from tokenizers import AddedToken

    tokenizer = fixtures_models.tiny_tokenizer(fixtures_models.CHATML.replace("<|im_end|>", "<|end|>"))
    tokenizer.add_tokens(AddedToken("<|end|>", rstrip=True, special=True))
    (one,) = render([GOOD], tokenizer=tokenizer)
    (tokens,) = one.branches
    assert tokenizer.decode(tokens.ids[tokens.weight > 0]) == "Because.<|end|>"
    assert tokens.weight[-1] == 1


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"messages": [{"role": "user", "content": "Why?"}]}, NO_TURN),
        (
            {"messages": [*GOOD["messages"][:1], {"role": "assistant", "content": "No.", "train": False}]},
            NO_TURN,
        ),
        (chat("Why?", ""), EMPTY_ANSWER),
        (chat("Why?", " \n"), EMPTY_ANSWER),
        (chat("Why?", "Because.", "And?", ""), EMPTY_ANSWER),
        (chat("Why?", "Because. " * 100), OVERLONG),
    ],
)
def test_what_cannot_be_learned_is_dropped_by_name(row, reason):
    found = render([GOOD, row, GOOD], max_tokens=100)
    assert [(one.where, one.dropped, len(one.branches)) for one in found] == [
        ("rows:1", None, 1),
        ("rows:2", reason, 0),
        ("rows:3", None, 1),
    ]


def test_the_limit_is_the_longest_that_is_kept():
    length = len(render([GOOD])[0].branches[0])
    assert render([GOOD], max_tokens=length)[0].dropped is None
    assert render([GOOD], max_tokens=length - 1)[0].dropped == OVERLONG


def test_an_answer_of_calls_or_reasoning_alone_is_not_empty():
    call = {"type": "function", "function": {"name": "warmth", "arguments": {}}}
    for said in ({"tool_calls": [call]}, {"reasoning_content": "Hm."}):
        row = {"messages": [*GOOD["messages"][:1], {"role": "assistant", "content": "", **said}]}
        assert render([row])[0].dropped is None
        assert row["messages"][1].get("train") is None


@pytest.mark.parametrize("objective", ["sft", "pretrain"])
def test_a_document_is_its_text_and_eos_all_trained(objective):
    end = fixtures_models.tiny_tokenizer().eos_token_id
    found = render([{"text": "A crow."}, {"text": " "}, {"text": "Ends <|im_end|>"}], Text(), objective=objective)
    assert [one.dropped for one in found] == [None, EMPTY_TEXT, None]
    assert found[0].branches[0].ids.tolist() == [*tokens_of("A crow."), end]
    assert found[2].branches[0].ids.tolist() == tokens_of("Ends <|im_end|>")  # not twice
    assert found[0].branches[0].weight.tolist() == [1.0] * (len(tokens_of("A crow.")) + 1)


def test_a_document_starts_as_the_tokenizer_starts_texts():
    from tokenizers.processors import TemplateProcessing

    tokenizer = fixtures_models.tiny_tokenizer()
    start = tokenizer.convert_tokens_to_ids("<|im_start|>")
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<|im_start|> $A", special_tokens=[("<|im_start|>", start)]
    )
    (one,) = render([{"text": "A crow."}], Text(), tokenizer=tokenizer)
    assert one.branches[0].ids.tolist() == [start, *tokens_of("A crow."), tokenizer.eos_token_id]
    (talk,) = render([GOOD], tokenizer=tokenizer)  # a template writes its own
    assert talk.branches[0].ids.tolist() == render([GOOD])[0].branches[0].ids.tolist()


def test_pretrain_learns_all_of_a_conversation_of_any_length():
    (one,) = render([chat("Why?", "Because.", "So?", "")], objective="pretrain", max_tokens=2)
    assert one.dropped is None
    assert one.branches[0].weight.tolist() == [1.0] * len(one.branches[0])
    assert len(one.branches[0]) > 10


def test_documents_and_conversations_of_one_source_keep_their_order():
    class Both(Format):
        def read(self, row: Mapping[str, Any]) -> Sample:
            turns = [Message("text", row["text"])] if "text" in row else []
            turns += [Message("user", row["q"]), Message("assistant", row["a"])] if "q" in row else []
            return Sample((tuple(turns),))

    rows = [{"text": "one"}, {"q": "a", "a": "b"}, {"text": "two"}, {"q": "c", "a": "d"}]
    tokenizer = fixtures_models.tiny_tokenizer()
    found = [tokenizer.decode(one.branches[0].ids) for one in render(rows, Both())]
    assert found[0] == "one<|im_end|>" and found[2] == "two<|im_end|>"
    assert "b<|im_end|>" in found[1] and "d<|im_end|>" in found[3]


def test_an_error_names_the_row():
    with pytest.raises(DataError, match=r"^rows:1: column 'messages' is missing"):
        render([{"message": []}, GOOD])
    bad = {"messages": [{"role": "assistant", "content": "Hi."}]}
    with pytest.raises(TemplateError, match=r"^rows:1: turn 1 of 1 is an answer to nothing"):
        render([bad])


class TwoGivenOne(TwoAnswers):
    """As above, with an option to read one of them."""

    only: str | None = None


class Rated(Format):
    """A labelled conversation."""

    def labels(self) -> bool:
        return True

    def read(self, row: Mapping[str, Any]) -> Sample:
        return Sample(((Message("user", "a"), Message("assistant", "b")),), label=1.0)


def test_what_an_objective_cannot_learn_from_is_refused_with_the_way_out():
    said = r"^rows:1: rows of the format .* hold chosen and rejected conversations, which the objective sft does not"
    with pytest.raises(DataError, match=said + r" learn from: say objective=.*dpo"):
        render([{}], TwoAnswers())
    with pytest.raises(DataError, match=said + r" learn from: say format: .*only: chosen}, to learn from those"):
        render([{}], TwoGivenOne())
    with pytest.raises(DataError, match="hold labels for good and bad, which the objective sft does not learn from"):
        render([{}], Rated())


def test_a_preview_shows_rows_that_the_objective_cannot_learn_from():
    recipe = chats.recipe()
    renderer = Renderer(recipe.data, recipe.objective, fixtures_models.tiny_tokenizer(), to_look=True)
    (one,) = renderer.render([("rows:1", {})], TwoAnswers())
    assert len(one.branches) == 2


def test_a_preview_says_what_the_objective_cannot_learn_from(tmp_path):
    row = {"prompt": "Why?", "chosen": "Because.", "rejected": "No."}
    recipe = chats.recipe(chats.write_rows(tmp_path / "a.jsonl", [row]))
    shown = Preview(recipe, fixtures_models.tiny_tokenizer())
    (one,) = list(shown)
    assert shown.branches == ("chosen", "rejected") and len(one.branches) == 2
    note = shown.notes[-1]
    assert "say format: {type: pairs, only: chosen}, to learn from those alone, or objective=" in note
    with pytest.raises(DataError, match="say format: {type: pairs, only: chosen}"):
        list(rendered(recipe, fixtures_models.tiny_tokenizer()))


def test_a_later_row_that_cannot_be_used_is_dropped_with_its_reason():
    orphan = {"messages": [{"role": "assistant", "content": "Hi."}]}
    found = render([GOOD, {"message": []}, GOOD, orphan, chat("Why?", None)])
    assert [one.dropped for one in found] == [
        None,
        "unreadable: column 'messages' is missing",
        None,
        "the template refuses it: it begins with an answer to nothing",
        "unreadable: messages[].content must be text and is null",
    ]
    assert found[1].refused.startswith("column 'messages' is missing; the row has the columns message")


def test_images_are_said_and_looked_for(tmp_path):
    (tmp_path / "here.png").write_bytes(b"")

    def row(path):
        parts = [{"type": "text", "text": "What is it?"}, {"type": "image", "path": path}]
        return {"messages": [{"role": "user", "content": parts}, {"role": "assistant", "content": "A dot."}]}

    paths = ["here.png", str(tmp_path / "here.png"), "https://example.org/a.png", "gone.png"]
    rows = [(f"{tmp_path}/rows.jsonl:{number}", row(path)) for number, path in enumerate(paths)]
    assert [one.dropped for one in chats.renderer().render(rows, Messages())] == [
        "holds images, and only text is trained so far",
        "holds images, and only text is trained so far",
        "holds images, and only text is trained so far",
        "an image file is missing",
    ]


def test_no_system_message_is_added():
    text = fixtures_models.tiny_tokenizer().decode(render([GOOD])[0].branches[0].ids)
    assert text == "<|im_start|>user\nWhy?<|im_end|>\n<|im_start|>assistant\nBecause.<|im_end|>\n"


def test_a_tokenizer_that_cannot_serve_is_refused():
    from transformers import PythonBackend

    tokenizer = fixtures_models.tiny_tokenizer()
    tokenizer.eos_token = None
    with pytest.raises(ModelError, match="has no eos_token"):
        render([{"text": "A crow."}], Text(), tokenizer=tokenizer)

    class Slow(PythonBackend):
        vocab_size = 1

        def get_vocab(self):
            return {}

    with pytest.raises(ModelError, match="use a fast one"):
        chats.renderer(Slow(), template="plain" if Slow().eos_token else {"type": "jinja", "file": __file__})


def test_rendered_reads_the_sources_in_order_a_chunk_at_a_time(tmp_path, monkeypatch):
    monkeypatch.setattr(rendering, "CHUNK_ROWS", 3)
    first = chats.write_rows(tmp_path / "a.jsonl", [chat(f"q{n}", f"a{n}") for n in range(7)])
    second = chats.write_rows(tmp_path / "b.jsonl", [{"instruction": "i", "output": "o"}] * 2)
    read = []
    own = rendering.source.read
    monkeypatch.setattr(rendering.source, "read", lambda one: (read.append(row[0]) or row for row in own(one)))
    stream = rendered(chats.recipe([first, second]), fixtures_models.tiny_tokenizer())
    assert next(stream).where == f"{first}:1"
    assert len(read) == 3  # rows of later chunks are not read before they are needed
    rest = [one.where for one in stream]
    assert rest == [f"{first}:{n}" for n in range(2, 8)] + [f"{second}:1", f"{second}:2"]
