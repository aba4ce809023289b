"""Make the material of the built-in tiny model: its corpus, and its folder without weights.

``python -m tunesmith.builtin.make corpus OUT_DIR [--dialogues N] [--seed S]`` writes `dialogues.jsonl`,
`documents.jsonl` and `eval.jsonl`. ``python -m tunesmith.builtin.make blank OUT_DIR CORPUS_DIR`` trains the
tokenizer on such a folder and writes a transformers model folder that lacks only the weights.
"""

import argparse
import json
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from tunesmith.builtin.corpus import generate, generate_documents, is_held_out

VOCAB_SIZE = 4096
MAX_TOKENS = 2048
PAD, START, END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
DIALOGUES_PER_DOCUMENT = 6
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


def new_folder(path: str) -> Path:
    """Make a folder, or take an empty one; refuses any other with `ValueError`."""
    folder = Path(path)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"{path} exists and is not an empty folder; name another one, or empty it first")
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _write_rows(path: Path, rows: Iterable[dict[str, Any]]) -> int:
    count = 0
    with path.open("w", encoding="utf-8") as file:
        for row in rows:
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
            count += 1
    return count


def _read_rows(path: Path) -> Iterator[dict[str, Any]]:
    with path.open(encoding="utf-8") as file:
        yield from map(json.loads, file)


def write_corpus(out: str, *, dialogues: int, seed: int) -> dict[str, int]:
    """Write the three files and say how many rows each has."""
    if dialogues < 1:
        raise ValueError(f"--dialogues was {dialogues}; it must be at least 1")
    folder = new_folder(out)
    held_out: list[dict[str, Any]] = []

    def trained() -> Iterator[dict[str, Any]]:
        for row in generate(seed, dialogues):
            if is_held_out(row):
                held_out.append(row)
            else:
                yield row

    return {
        "dialogues.jsonl": _write_rows(folder / "dialogues.jsonl", trained()),
        "documents.jsonl": _write_rows(
            folder / "documents.jsonl", generate_documents(seed, dialogues // DIALOGUES_PER_DOCUMENT)
        ),
        "eval.jsonl": _write_rows(folder / "eval.jsonl", held_out),
    }


def as_text(row: dict[str, Any]) -> str:
    """Write a row as the tokenizer is trained on it, without the special tokens."""
    return (
        row["text"]
        if "text" in row
        else "\n".join(f"{message['role']}\n{message['content']}" for message in row["messages"])
    )


def train_tokenizer(texts: Iterable[str]) -> Any:
    """Train a byte-level BPE tokenizer (`tokenizers.Tokenizer`) in which every digit is a token."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        min_frequency=2,
        special_tokens=[PAD, START, END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def write_blank(out: str, corpus: str) -> int:
    """Write the model folder without weights and say how many tokens its vocabulary has."""
    files = [Path(corpus) / name for name in ("dialogues.jsonl", "documents.jsonl")]
    if missing := [str(file) for file in files if not file.is_file()]:
        raise ValueError(f"no {missing[0]}; write it with: python -m tunesmith.builtin.make corpus {corpus}")
    folder = new_folder(out)

    from transformers import GenerationConfig, LlamaConfig, PreTrainedTokenizerFast

    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=train_tokenizer(as_text(row) for file in files for row in _read_rows(file)),
        eos_token=END,
        pad_token=PAD,
        additional_special_tokens=[START],
        model_max_length=MAX_TOKENS,
        clean_up_tokenization_spaces=False,
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    tokenizer.save_pretrained(folder)
    ids = {
        "bos_token_id": None,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    LlamaConfig(
        architectures=["LlamaForCausalLM"],
        vocab_size=VOCAB_SIZE,
        hidden_size=256,
        intermediate_size=640,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=64,
        max_position_embeddings=MAX_TOKENS,
        tie_word_embeddings=True,
        **ids,
    ).save_pretrained(folder)
    GenerationConfig(do_sample=False, max_new_tokens=256, **ids).save_pretrained(folder)
    return len(tokenizer)


def main(words: list[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m tunesmith.builtin.make", description="Make the built-in tiny model's material."
    )
    commands = parser.add_subparsers(dest="command", required=True)
    corpus = commands.add_parser("corpus", help="write the dialogues, documents and evaluation rows")
    corpus.add_argument("out", metavar="OUT_DIR")
    corpus.add_argument("--dialogues", type=int, default=80_000)
    corpus.add_argument("--seed", type=int, default=1)
    blank = commands.add_parser("blank", help="train the tokenizer and write the folder without weights")
    blank.add_argument("out", metavar="OUT_DIR")
    blank.add_argument("corpus", metavar="CORPUS_DIR")
    given = parser.parse_args(words)
    try:
        if given.command == "corpus":
            counts = write_corpus(given.out, dialogues=given.dialogues, seed=given.seed)
            sys.stderr.write(", ".join(f"{name}: {count} rows" for name, count in counts.items()) + "\n")
        else:
            size = write_blank(given.out, given.corpus)
            sys.stderr.write(f"{given.out}: a vocabulary of {size} tokens, no weights\n")
    except (ValueError, OSError) as error:
        sys.stderr.write(f"error: {error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
