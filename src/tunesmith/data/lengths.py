"""How long the samples are: counts by length, and as bars of text.

The steps between the bounds are about equal on a logarithmic scale, two to an octave, and the numbers are round.
"""

from bisect import bisect_right
from collections.abc import Mapping

import numpy as np

STARTS = (
    1, 8, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024, 1536, 2048, 3072, 4096, 6144, 8192, 12288,
    16384, 24576, 32768, 65536, 131072, 262144, 524288, 1048576,
)  # fmt: skip
"""The least number of tokens of each bucket; the last one has no end."""
LABELS = (
    *(f"{first}-{after - 1}" for first, after in zip(STARTS[:-1], STARTS[1:], strict=True)),
    f"{STARTS[-1]}-",
)

BLOCKS = " ▏▎▍▌▋▊▉█"  # a character in eighths
PERCENTILES = (50, 90, 99)


def bucket(tokens: int) -> str:
    """The bucket of a sample of so many tokens, of which there is at least one."""
    return LABELS[bisect_right(STARTS, tokens) - 1]


def histogram(lengths: np.ndarray) -> dict[str, int]:
    """How many of the lengths [M] each bucket has, without the empty ones, in order."""
    counts = np.bincount(np.searchsorted(STARTS, lengths, side="right") - 1, minlength=len(LABELS))
    return {label: int(count) for label, count in zip(LABELS, counts, strict=True) if count}


def in_order(counts: Mapping[str, int]) -> list[tuple[str, int]]:
    """Every bucket from the first that holds a sample to the last, those between them included."""
    held = [index for index, label in enumerate(LABELS) if counts.get(label)]
    return [(label, counts.get(label, 0)) for label in LABELS[held[0] : held[-1] + 1]] if held else []


def percentiles(lengths: np.ndarray) -> dict[str, int]:
    """The length that so many percent of the lengths [M] do not exceed, and the longest; nothing of none."""
    if not len(lengths):
        return {}
    found = np.percentile(lengths, PERCENTILES, method="inverted_cdf").astype(int)
    return {str(percent): int(length) for percent, length in zip(PERCENTILES, found, strict=True)} | {
        "longest": int(lengths.max())
    }


def line(found: Mapping[str, int], sequences: int) -> str:
    """Percentiles in words; of samples with several sequences, all of whose tokens are counted."""
    together = " of all a sample's sequences together" if sequences > 1 else ""
    shares = ", ".join(f"{percent}% at most {found[str(percent)]:,}" for percent in PERCENTILES[1:])
    half = f"lengths{together}: half of the samples have at most {found['50']:,} tokens"
    return f"{half}, {shares}, the longest {found['longest']:,}"


def bars(counts: Mapping[str, int], width: int = 40, blocks: bool = True) -> list[tuple[str, str, str]]:
    """One bucket a line: its tokens, a bar (of `#` where a terminal may lack blocks), and its samples.

    A bucket with a sample has at least the thinnest bar.
    """
    rows = in_order(counts)
    most = max((count for _, count in rows), default=1)
    signs = max((len(readable(label)) for label, _ in rows), default=0)
    found = []
    for label, count in rows:
        eighths = max(round(8 * width * count / most), count > 0)
        drawn = "█" * (eighths // 8) + BLOCKS[eighths % 8].strip() if blocks else "#" * -(-eighths // 8)
        found.append((f"{readable(label):>{signs}}", drawn, f"{count:,}"))
    return found


def readable(label: str) -> str:
    """A bucket as people write it: 1,024-1,535."""
    first, _, last = label.partition("-")
    return f"{int(first):,}-{int(last):,}" if last else f"{int(first):,} or more"
