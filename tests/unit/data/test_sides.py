"""A row as two sequences: what the encoder reads, what the decoder writes, and what is left out by which name."""

import json

import numpy as np
import pytest

from fixtures_models import CHATML, tiny_seq2seq_tokenizer
from tunesmith import Recipe
from tunesmith.data import sides
from tunesmith.data.load import load_rows
from tunesmith.data.pack import padded_places, plan_padded
from tunesmith.data.prompt import prompt_ids
from tunesmith.data.render import rendered
from tunesmith.errors import DataError, RecipeError

START = 7
ROW = {"instruction": "What is two and three?", "output": "Two and three is five."}
TURNS = [
    {"role": "system", "content": "You answer."},
    {"role": "user", "content": "Hello"},
    {"role": "assistant", "content": "I am fine"},
    {"role": "user", "content": "What is two?"},
    {"role": "assistant", "content": "Two."},
]


def recipe(tmp_path, rows, objective=None, **data):
    file = tmp_path / "rows.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)))
    said = {"type": "seq2seq", "decoder_start_token_id": START} | (objective or {})
    base = {"train": str(file), "max_tokens": 64, "cache_dir": str(tmp_path / "cache")}
    return Recipe(model="none", data=base | data, objective=said, train={"row_tokens": 128, "num_train_epochs": 1})


def render(tmp_path, *rows, tokenizer=None, **options):
    tokenizer = tokenizer or tiny_seq2seq_tokenizer()
    return list(rendered(recipe(tmp_path, rows, **options), tokenizer))


def test_a_row_is_a_prompt_and_an_answer_behind_the_start_token(tmp_path):
    tokenizer = tiny_seq2seq_tokenizer()
    (one,) = render(tmp_path, ROW)
    source, answer = one.branches
    assert (
        source.ids.tolist()
        == tokenizer(ROW["instruction"])["input_ids"]
        == sides.source_ids(tokenizer, [{"role": "user", "content": ROW["instruction"]}])
    )
    assert not source.weight.any()
    assert answer.ids.tolist() == [START, *tokenizer(ROW["output"])["input_ids"]]
    assert answer.ids[-1] == tokenizer.eos_token_id != answer.ids[-2]
    assert answer.weight.tolist() == [0.0] + [1.0] * (len(answer) - 1)


def test_without_a_chat_template_the_prompt_is_the_text_of_all_turns(tmp_path):
    tokenizer = tiny_seq2seq_tokenizer()
    (one,) = render(tmp_path, {"messages": [*TURNS, {"role": "user", "content": "Thanks"}]})
    source, answer = one.branches
    assert tokenizer.decode(source.ids) == "You answer.\nHello\nI am fine\nWhat is two?<|im_end|>"
    assert tokenizer.decode(answer.ids[1:]) == "Two.<|im_end|>"
    assert one.earlier_read


def test_a_chat_template_writes_both_as_chat_sends_them(tmp_path):
    tokenizer = tiny_seq2seq_tokenizer(CHATML)
    (one,) = render(tmp_path, {"messages": TURNS}, tokenizer=tokenizer)
    source, answer = one.branches
    assert source.ids.tolist() == prompt_ids(tokenizer, TURNS[:-1])
    assert tokenizer.decode(answer.ids[1:]) == "Two.<|im_end|>"
    assert answer.weight.tolist() == [0.0] + [1.0] * (len(answer) - 1)


def test_per_turn_makes_a_sample_of_each_answer(tmp_path):
    found = render(tmp_path, {"messages": TURNS}, tokenizer=tiny_seq2seq_tokenizer(CHATML), template="per_turn")
    tokenizer = tiny_seq2seq_tokenizer()
    assert [tokenizer.decode(one.branches[1].ids[1:]) for one in found] == ["I am fine<|im_end|>", "Two.<|im_end|>"]
    assert [one.part for one in found] == [0, 1] and not any(one.earlier_read for one in found)


def test_a_tokenizer_without_an_end_is_given_one_and_what_stands_behind_it_goes(tmp_path):
    from tokenizers.processors import TemplateProcessing

    tokenizer = tiny_seq2seq_tokenizer()
    end, other = tokenizer.eos_token, "<|im_start|>"
    known = [(one, tokenizer.convert_tokens_to_ids(one)) for one in (end, other)]
    for single, before in (("$A", []), (f"{other} $A", [known[1][1]]), (f"$A {end} {other}", [])):
        tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single=single, special_tokens=known)
        (one,) = render(tmp_path, ROW, tokenizer=tokenizer)
        text = tokenizer(ROW["output"], add_special_tokens=False)["input_ids"]
        assert one.branches[1].ids.tolist() == [START, *before, *text, tokenizer.eos_token_id]
        assert one.branches[1].weight[1:].all()


def test_languages_stand_where_the_tokenizer_puts_them(tmp_path):
    from transformers import MBart50Tokenizer, MBartTokenizer

    words = ["▁", "▁cat", "▁is", "▁What", "c", "a", "t", "i", "s", "W", "h"]
    pieces = [("<s>", 0.0), ("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), *((word, -3.0) for word in words)]
    row = {"instruction": "What is", "output": "cat is"}
    spoken = {"src_lang": "de_DE", "tgt_lang": "fr_XX"}
    for kind, source, answer in (
        (MBartTokenizer, ["▁What", "▁is", "</s>", "de_DE"], ["▁cat", "▁is", "</s>"]),
        (MBart50Tokenizer, ["de_DE", "▁What", "▁is", "</s>"], ["fr_XX", "▁cat", "▁is", "</s>"]),
    ):
        tokenizer = kind(vocab=pieces, src_lang="en_XX", tgt_lang="ro_RO")
        (one,) = render(tmp_path, row, tokenizer=tokenizer, objective=spoken)
        assert tokenizer.convert_ids_to_tokens(one.branches[0].ids.tolist()) == source
        assert tokenizer.convert_ids_to_tokens(one.branches[1].ids[1:].tolist()) == answer
        assert tokenizer.src_lang == "en_XX"
        with pytest.raises(RecipeError, match="there is no language 'de_DA'. Did you mean 'de_DE'"):
            render(tmp_path, row, tokenizer=tokenizer, objective={"src_lang": "de_DA"})
    with pytest.raises(RecipeError, match="objective.src_lang: the tokenizer of .* marks no language"):
        render(tmp_path, row, objective=spoken)


def test_what_is_left_out_is_left_out_by_name(tmp_path):
    call = {"id": "a", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    tools = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "", "tool_calls": [call]}]
    rows = [
        {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]},
        {"messages": [{"role": "user", "content": "Hi " * 80}, {"role": "assistant", "content": "Hello"}]},
        {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello " * 80}]},
        {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "  "}]},
        {"messages": [{"role": "user", "content": " "}, {"role": "assistant", "content": "Hello"}]},
        {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello", "train": False}]},
        {"messages": tools},
    ]
    assert [one.dropped for one in render(tmp_path, *rows)] == [
        None,
        sides.LONG_SOURCE,
        sides.LONG_ANSWER,
        sides.EMPTY_ANSWER,
        sides.NO_PROMPT,
        "no trained turn",
        sides.UNWRITTEN,
    ]
    with pytest.raises(DataError, match="none of the 1 rows can be trained on: 1 × a document, which has no prompt"):
        load_rows(recipe(tmp_path, [{"text": "Once upon a time."}]), tiny_seq2seq_tokenizer())


def test_a_long_prompt_can_be_shortened_and_is_counted(tmp_path):
    tokenizer = tiny_seq2seq_tokenizer()
    row = {"instruction": "Hello " * 80, "output": "I am fine"}
    whole = tokenizer(row["instruction"])["input_ids"]
    (one,) = render(tmp_path, row, overlong="truncate")
    assert one.branches[0].ids.tolist() == [*whole[:63], tokenizer.eos_token_id]
    assert one.truncated and one.lost_tokens == len(whole) - 64 and one.branches[1].trained
    for data, tokenizer, said in (
        ({"overlong": "split"}, None, "data.overlong=split divides conversations"),
        ({"overlong": "truncate"}, tiny_seq2seq_tokenizer(CHATML), "a chat template writes this one"),
        ({"loss": {"turns": "last"}}, None, "data.loss: the objective seq2seq learns the last answer"),
    ):
        with pytest.raises(RecipeError, match=said):
            render(tmp_path, row, tokenizer=tokenizer, **data)


def test_a_rows_weight_and_spans_are_the_answers(tmp_path):
    turns = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Two and three", "weight": 0.5}]
    (one,) = render(tmp_path, {"messages": turns})
    assert one.branches[1].weight.tolist() == [0.0] + [0.5] * (len(one.branches[1]) - 1)
    turns[1]["train_spans"] = [[0, 3]]
    for tokenizer in (tiny_seq2seq_tokenizer(), tiny_seq2seq_tokenizer(CHATML)):
        (one,) = render(tmp_path, {"messages": turns}, tokenizer=tokenizer)
        answer = one.branches[1]
        learned = [tokenizer.decode(token) for token in answer.ids[answer.weight > 0]]
        assert "".join(learned) == "Two<|im_end|>"
        assert set(answer.weight.tolist()) == {0.0, 0.5}


def test_rows_hold_pairs_of_sequences_and_the_account_says_their_padding(tmp_path):
    rows = [{"instruction": "What is " + "two " * (i % 9), "output": "It is " + "five " * (i % 5)} for i in range(30)]
    found = load_rows(recipe(tmp_path, rows, duplicates="keep"), tiny_seq2seq_tokenizer())
    tokens = places = 0
    for number in range(len(found.train)):
        row = found.train[number]
        assert row["branch"].tolist() == [0, 1] * (len(row["branch"]) // 2)
        sources, answers = row["lengths"][0::2], row["lengths"][1::2]
        own = len(sources) * (sources.max() + answers.max())
        assert own <= 128
        tokens, places = tokens + row["lengths"].sum(), places + own
        bounds = np.cumsum([0, *row["lengths"]])
        for place in range(0, len(row["branch"]), 2):
            assert not row["weight"][bounds[place] : bounds[place + 1]].any()
            assert row["input_ids"][bounds[place + 1]] == START
            assert row["weight"][bounds[place + 1] : bounds[place + 2] - 1].all()
    assert tokens == found.ledger["train"]["tokens"]
    assert found.ledger["train"]["fill"] == pytest.approx(tokens / places, abs=1e-4)
    assert f"{1 - tokens / places:.1%} of them padding" in found.lines[-1]
    assert found.end_tokens == (tiny_seq2seq_tokenizer().eos_token_id,)


def test_a_source_and_an_answer_that_begin_alike_share_nothing(tmp_path):
    answer = {"role": "assistant", "content": "!!!!", "train_spans": [[3, 4]]}
    start = {"decoder_start_token_id": tiny_seq2seq_tokenizer().convert_tokens_to_ids("!")}
    (one,) = render(tmp_path, {"messages": [{"role": "user", "content": "!!!"}, answer]}, objective=start)
    assert (one.branches[0].ids[:3] == one.branches[1].ids[:3]).all() and not one.branches[1].weight[:3].any()
    assert [tokens.shared for tokens in one.branches] == [0, 0]
    start = {"decoder_start_token_id": tiny_seq2seq_tokenizer().convert_tokens_to_ids("<|im_start|>")}
    tokenizer = tiny_seq2seq_tokenizer(CHATML)
    options = {"template": "per_turn", "objective": start, "max_tokens": 200}
    found = render(tmp_path, {"messages": TURNS}, tokenizer=tokenizer, **options)
    assert [len(one.branches) for one in found] == [2, 2]


def test_samples_of_like_length_stand_together():
    sizes = np.random.default_rng(0).integers(4, 200, (400, 2))
    order = np.random.default_rng(1).permutation(400)
    plan = plan_padded(sizes, 2000, 400, order, (0,))
    assert sorted(plan.pieces[:, 0].tolist()) == list(range(400))
    for row in range(len(plan)):
        own = sizes[plan.row(row)[:, 0]]
        assert len(own) * own.max(axis=0).sum() <= 2000
    assert plan.tokens / padded_places(plan, sizes) > 0.85
    by_chance = sum(8 * sizes[order[at : at + 8]].max(axis=0).sum() for at in range(0, 400, 8))
    assert sizes.sum() / by_chance < 0.65
    again = plan_padded(sizes, 2000, 400, order, (0,))
    assert (again.pieces == plan.pieces).all()
    unshuffled = plan_padded(sizes, 2000, 64, np.arange(400), None)
    assert (np.diff([unshuffled.row(row)[:, 0].min() for row in range(len(unshuffled))][:3]) > 0).all()
