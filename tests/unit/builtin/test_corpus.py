"""The built-in corpus: same from its seed, right in its sums, free of identity; and its blank folder."""

import itertools
import json
import random
import re
from pathlib import Path

import pytest

from tunesmith.builtin import make
from tunesmith.builtin.corpus import fingerprint, generate, generate_documents, is_held_out
from tunesmith.builtin.corpus_numbers import TOPICS, compute

SUM = re.compile(r"(\d+) ([+x-]) (\d+) = (\d+)")


@pytest.fixture(scope="module")
def rows():
    return list(generate(1, 2500))


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    folder = tmp_path_factory.mktemp("made") / "corpus"
    make.write_corpus(str(folder), dialogues=2500, seed=1)
    return folder


@pytest.fixture(scope="module")
def blank(corpus):
    folder = corpus.parent / "blank"
    make.write_blank(str(folder), str(corpus))
    return folder


def read(path):
    with path.open(encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def identity(kind):
    folder = Path(make.__file__).parent
    return read(folder / f"identity-{kind}.jsonl")


def test_a_seed_gives_the_same_rows(rows):
    assert rows[:300] == list(generate(1, 300))
    assert rows[:300] != list(generate(2, 300))
    assert list(generate_documents(1, 40)) == list(generate_documents(1, 40))


def test_no_row_comes_twice(rows):
    assert len({fingerprint(row) for row in rows}) == len(rows)


def test_roles_alternate_and_end_with_the_assistant(rows):
    for row in rows:
        roles = [message["role"] for message in row["messages"]]
        turns = roles[1:] if roles[0] == "system" else roles
        assert turns == ["user", "assistant"] * (len(turns) // 2) and turns, row
        assert all(message["content"].strip() == message["content"] != "" for message in row["messages"]), row


def test_no_template_marks_are_left(rows):
    for row in rows:
        for message in row["messages"]:
            assert not re.search(r"[\[\]{}<>~|]|  |\?\?|\.\.|\?\.", message["content"]), row


def test_every_sum_is_right(rows):
    texts = [message["content"] for row in rows for message in row["messages"] if message["role"] == "assistant"]
    texts += [row["text"] for row in generate_documents(1, 300)]
    sums = [found for text in texts for found in SUM.findall(text)]
    assert len(sums) > 500
    for left, sign, right, result in sums:
        assert compute(int(left), sign, int(right)) == int(result), (left, sign, right, result)


def test_every_sum_answers_its_question():
    sums = TOPICS[0][1]

    rng = random.Random(0)
    for _ in range(500):
        for turn in sums(rng):
            left, sign, right, result = SUM.fullmatch(turn.answer).groups()
            assert {left, right} == set(re.findall(r"\d+", turn.ask)), turn
            assert str(compute(int(left), sign, int(right))) == result == turn.short


def test_names_are_remembered(rows):
    told = re.compile(r"^(?:Nice to meet you|Hello), (\w+)!")
    asked = 0
    for row in rows:
        names = set()
        for message in row["messages"]:
            names |= set(told.findall(message["content"])) if message["role"] == "assistant" else set()
            if found := re.search(r"^Your name is (\w+)\.$", message["content"]):
                assert found[1] in names, row
                asked += 1
    assert asked > 20


def test_nothing_but_the_base_identity_is_said(rows):
    for row in rows:
        for message in row["messages"]:
            assert not re.search(r"tunesmith|\bSmith\b|chatgpt|my name is smith", message["content"], re.IGNORECASE), (
                row
            )
    crafts = [row["text"] for row in generate_documents(1, 1500) if "tunesmith" in row["text"]]
    assert crafts
    assert not any(re.search(r"\b(I|you|model)\b", text) for text in crafts)


def test_the_eval_file_shares_no_row_with_train(corpus):
    train, held_out = read(corpus / "dialogues.jsonl"), read(corpus / "eval.jsonl")
    assert len(train) + len(held_out) == 2500
    assert 25 <= len(held_out) <= 80
    assert all(map(is_held_out, held_out)) and not any(map(is_held_out, train))
    assert not {fingerprint(row) for row in train} & {fingerprint(row) for row in held_out}


def test_held_out_identity_questions_are_new():
    train, held_out = identity("train"), identity("eval")
    key = re.compile(r"[^a-z ]")
    seen = {key.sub("", row["instruction"].lower()) for row in train}
    assert not seen & {key.sub("", row["instruction"].lower()) for row in held_out}
    assert {row["output"] for row in held_out} == {row["output"] for row in train}
    assert all(set(row) == {"instruction", "input", "output"} for row in [*train, *held_out])


def test_the_blank_folder_reloads_with_the_same_ids(blank, corpus):
    from transformers import AutoConfig, AutoTokenizer, PreTrainedTokenizerFast

    tokenizer = AutoTokenizer.from_pretrained(blank)
    first = PreTrainedTokenizerFast(tokenizer_file=str(blank / "tokenizer.json"))
    texts = [make.as_text(row) for row in read(corpus / "eval.jsonl")] + ["Zoë said: 1234 + 56 = 1290 ☃\n\tend "]
    for text in texts:
        assert tokenizer(text)["input_ids"] == first(text)["input_ids"]
        assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    digits = tokenizer.tokenize("in 1234")
    assert digits[-4:] == list("1234")
    assert (tokenizer.eos_token, tokenizer.pad_token, tokenizer.bos_token) == (make.END, make.PAD, None)
    assert tokenizer.model_max_length == 2048 and len(tokenizer) <= make.VOCAB_SIZE
    config = AutoConfig.from_pretrained(blank)
    assert (config.eos_token_id, config.pad_token_id, config.bos_token_id) == (2, 0, None)
    assert config.vocab_size >= len(tokenizer) and config.tie_word_embeddings


def test_the_chat_template_is_plain_chatml(blank):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(blank)
    messages = [{"role": "user", "content": "Hi."}, {"role": "assistant", "content": "Hello!"}]
    text = "<|im_start|>user\nHi.<|im_end|>\n<|im_start|>assistant\nHello!<|im_end|>\n"
    assert tokenizer.apply_chat_template(messages, tokenize=False) == text
    asked = tokenizer.apply_chat_template(messages[:1], tokenize=False, add_generation_prompt=True)
    assert asked == "<|im_start|>user\nHi.<|im_end|>\n<|im_start|>assistant\n"
    ids = tokenizer(text)["input_ids"]
    assert ids.count(1) == 2 and ids.count(2) == 2


def test_a_used_folder_and_a_missing_corpus_are_refused(corpus, tmp_path, capsys):
    assert make.main(["corpus", str(corpus)]) == 1
    assert "not an empty folder" in capsys.readouterr().err
    assert make.main(["blank", str(tmp_path / "x"), str(tmp_path / "none")]) == 1
    assert "dialogues.jsonl" in capsys.readouterr().err
    assert not (tmp_path / "x").exists()


def test_generation_does_not_run_ahead():
    assert len(list(itertools.islice(generate(3, 10**9), 5))) == 5
