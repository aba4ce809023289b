"""Measures of answers worked out by hand, and BLEU as sacrebleu has it."""

import math
import sys
import types

import pytest

from tunesmith.prediction import measures


@pytest.mark.parametrize(
    ("prediction", "label", "expected"),
    [
        ("The cat sat.", "the cat sat", {"exact_match": 1, "f1": 1, "rouge1": 1, "rouge2": 1, "rougeL": 1}),
        # 2 of 3 and 4 words are common, no pair; in order 2
        ("a c e", "a b c d", {"exact_match": 0, "f1": 4 / 7, "rouge1": 4 / 7, "rouge2": 0, "rougeL": 4 / 7}),
        ("b a", "a b", {"exact_match": 0, "f1": 1, "rouge1": 1, "rouge2": 0, "rougeL": 0.5}),
        ("a a a", "a", {"exact_match": 0, "f1": 0.5, "rouge1": 0.5, "rouge2": 0, "rougeL": 0.5}),
        ("", "a", {"exact_match": 0, "f1": 0, "rouge1": 0, "rouge2": 0, "rougeL": 0}),
        ("?!", "?!", {"exact_match": 1, "f1": 0, "rouge1": 0, "rouge2": 0, "rougeL": 0}),
        ("?", "!", {"exact_match": 0, "f1": 0, "rouge1": 0, "rouge2": 0, "rougeL": 0}),
    ],
)
def test_of_a_row(prediction, label, expected):
    assert measures.of_row(prediction, label) == pytest.approx(expected)


def test_chinese_is_words_of_jieba_where_it_is_installed(monkeypatch):
    monkeypatch.setitem(sys.modules, "jieba", None)  # not installed
    assert measures.words("我喜欢猫 and Dogs") == ["我", "喜", "欢", "猫", "and", "dogs"]
    assert "pip install 'tunesmith[metrics]'" in measures.segmenter(["我"]) and measures.segmenter(["me"]) == ""
    fake = types.SimpleNamespace(cut=lambda text: [text[:1], text[1:]], setLogLevel=lambda _: None, __version__="0.1")
    monkeypatch.setitem(sys.modules, "jieba", fake)
    assert measures.words("我喜欢猫 and Dogs") == ["我", "喜欢猫", "and", "dogs"]
    assert "jieba 0.1" in measures.segmenter(["我"])


def test_mean_and_its_interval():
    middle, half = measures.mean([0.0, 1.0, 1.0, 0.0]).values()
    assert middle == 0.5 and half == pytest.approx(1.96 * math.sqrt(1 / 3 / 4))
    assert measures.mean([1.0]) == measures.mean([1.0, 1.0]) == {"mean": 1.0}


def test_what_is_gained_is_measured_row_by_row():
    rows = [{"measures": {"f1": value}} for value in (0.5, 0.9, 0.7)]
    others = [{"measures": {"f1": value}} for value in (0.4, 0.8, 0.6)]
    gained = measures.gained(rows, others)["f1"]
    assert gained["mean"] == pytest.approx(0.1) and "interval" not in gained
    assert measures.over(rows)["f1"]["interval"] > 0.2  # rows differ by more than the models do


def test_bleu_is_that_of_sacrebleu(monkeypatch):
    said, known = ["the cat sat on the mat", "a dog"], ["the cat sat on a mat", "a dog"]
    from sacrebleu import corpus_bleu

    score, signature = measures.bleu(said, known)
    assert score == pytest.approx(corpus_bleu(said, [known]).score / 100) and "tok:13a" in signature
    assert "tok:zh" in measures.bleu(["我喜欢猫"], ["我喜欢猫"])[1]
    monkeypatch.setitem(sys.modules, "sacrebleu", None)
    monkeypatch.setitem(sys.modules, "sacrebleu.metrics", None)
    assert measures.bleu(said, known) is None
