"""How like an answer is to the one that is known: of each row, and over all rows."""

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from tunesmith import rouge

SAME = 1e-9  # what rounding makes of measures that are the same
OF_ROWS = ("exact_match", "f1", "rouge1", "rouge2", "rougeL", "token_accuracy")
_HAN = re.compile("[\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff]+")


def words(text: str) -> list[str]:
    """The words of a text as they are compared: without case and punctuation, Chinese cut by jieba when installed."""
    try:
        import jieba
    except ImportError:
        return rouge.words(text)
    jieba.setLogLevel("ERROR")
    spaced = _HAN.sub(lambda found: f" {' '.join(jieba.cut(found[0]))} ", text)
    return [
        word for part in spaced.split() for word in ([part.casefold()] if _HAN.fullmatch(part) else rouge.words(part))
    ]


def segmenter(texts: Sequence[str]) -> str:
    """How words of Chinese were told apart, where there is any."""
    if not any(map(_HAN.search, texts)):
        return ""
    try:
        import jieba
    except ImportError:
        return "Chinese is compared by characters (by words with: pip install 'tunesmith[metrics]')"
    return f"Chinese words are those of jieba {jieba.__version__}"


def of_row(prediction: str, label: str) -> dict[str, float]:
    """The measures of one answer, each 0 to 1.

    `exact_match`: the same words in the same order. `f1`: of the words in any order, as SQuAD has it (arXiv
    1606.05250). `rouge1`, `rouge2`: F-measures of common words and pairs; `rougeL` of the longest common subsequence
    (Lin 2004).
    """
    said, known = words(prediction), words(label)
    pairs = [list(zip(one, one[1:], strict=False)) for one in (said, known)]
    single = _f1(Counter(said), Counter(known))
    return {
        "exact_match": float(said == known and (bool(known) or prediction.strip() == label.strip())),
        "f1": single,
        "rouge1": single,
        "rouge2": _f1(Counter(pairs[0]), Counter(pairs[1])),
        "rougeL": rouge.rouge_l(said, known),
    }


def _f1(said: Counter[Any], known: Counter[Any]) -> float:
    """2 |said and known| / (|said| + |known|)."""
    whole = said.total() + known.total()
    return 2 * (said & known).total() / whole if whole else 0.0


def mean(values: Sequence[float]) -> dict[str, float]:
    """The `mean` of some values, and half of its 95 % `interval` by the normal approximation: 1.96 s / sqrt(n).

    Values that are all the same say nothing of how far others would be, and have no interval.
    """
    middle = math.fsum(values) / len(values)
    if max(values) - min(values) < SAME:
        return {"mean": middle}
    variance = math.fsum((value - middle) ** 2 for value in values) / (len(values) - 1)
    return {"mean": middle, "interval": 1.96 * math.sqrt(variance / len(values))}


def bleu(predictions: Sequence[str], labels: Sequence[str]) -> tuple[float, str] | None:
    """BLEU of all answers together, 0 to 1, and how sacrebleu signs it; None where sacrebleu is not installed."""
    try:
        from sacrebleu.metrics import BLEU
    except ImportError:
        return None
    chinese = sum(bool(_HAN.search(label)) for label in labels) * 2 > len(labels)
    metric = BLEU(tokenize="zh" if chinese else "13a")
    score = metric.corpus_score(list(predictions), [list(labels)]).score
    return score / 100, str(metric.get_signature())


def over(rows: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, float]]:
    """Each measure over all rows: its mean and half of the interval around it."""
    found = {}
    for name in OF_ROWS:
        values = [row["measures"][name] for row in rows if name in row["measures"]]
        if values:
            found[name] = mean(values)
    return found


def gained(rows: Sequence[Mapping[str, Any]], others: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, float]]:
    """By how much rows are better than the same rows of another model: the interval is that of their differences."""
    pairs = list(zip(rows, others, strict=True))
    found = {}
    for name in OF_ROWS:
        differences = [
            one["measures"][name] - other["measures"][name]
            for one, other in pairs
            if name in one["measures"] and name in other["measures"]
        ]
        if differences:
            found[name] = mean(differences)
    return found
