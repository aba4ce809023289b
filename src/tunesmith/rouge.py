"""ROUGE-L: how much of two texts is the same words in the same order."""

import re
import unicodedata
from collections.abc import Sequence

# Scripts that write no blanks between words: each character counts as a word.
_UNSPACED = re.compile(
    "[\u0e00-\u0eff"  # Thai, Lao
    "\u1000-\u109f\u1780-\u17ff"  # Burmese, Khmer
    "\u3040-\u30ff\u31f0-\u31ff"  # kana
    "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]"  # Han
)


def words(text: str) -> list[str]:
    """The words of a text without case and punctuation; of scripts that have no blanks, the characters."""
    found: list[str] = []
    goes_on = False  # whether the next letter belongs to the last word
    for character in unicodedata.normalize("NFKC", text).casefold():
        kind = unicodedata.category(character)[0]
        alone = _UNSPACED.match(character) is not None
        if kind == "M" and found:  # such as a vowel sign: a part of the letter that it stands on
            found[-1] += character
        elif kind not in "LMN":
            goes_on = False
        elif goes_on and not alone:
            found[-1] += character
        else:
            found.append(character)
            goes_on = not alone
    return found


def rouge_l(one: Sequence[str], other: Sequence[str]) -> float:
    """The F-measure of the longest common subsequence of two lists of words, 0 to 1 (Lin 2004, ROUGE-L).

    With C the length of that subsequence it is 2 C / (len(one) + len(other)).
    """
    if not one or not other:
        return 0.0
    return 2 * common(one, other) / (len(one) + len(other))


def common(one: Sequence[str], other: Sequence[str]) -> int:
    """The length of the longest common subsequence, a row of the table at a time as bits of an integer.

    Hyyrö, "Bit-parallel LCS-length computation revisited" (2004): bits that are 0 in the end are matched words.
    """
    places: dict[str, int] = {}
    for at, word in enumerate(one):
        places[word] = places.get(word, 0) | 1 << at
    row = whole = (1 << len(one)) - 1
    for word in other:
        matched = row & places.get(word, 0)
        row = (row + matched | row - matched) & whole
    return len(one) - row.bit_count()


class Pool:
    """Texts that a new one is compared with."""

    def __init__(self, texts: Sequence[str] = ()) -> None:
        self._entries = [(text, words(text)) for text in texts]

    def add(self, text: str) -> None:
        """Compare with this one from now on."""
        self._entries.append((text, words(text)))

    def nearest(self, text: str) -> tuple[float, str]:
        """The highest ROUGE-L of a text with one of the pool, and that one; the first of equals. (0, "") of none."""
        said, best, found = words(text), 0.0, ""
        for other, parts in self._entries:
            most = 2 * min(len(said), len(parts)) / max(1, len(said) + len(parts))  # were the shorter all common
            if most > best and (likeness := rouge_l(said, parts)) > best:
                best, found = likeness, other
        return best, found
