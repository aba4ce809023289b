"""The gate between training and use: what is trained are the tokens that chat and serving send and stop at.

Some rows of every source are looked at, the first ones and then some of each chunk. A difference stops the run.

The one difference that is allowed: a tokenizer may join the beginning of an answer with the end of its header (a
line end with the line end before it). That token is not learned, and such answers are counted in the ledger.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from tunesmith.data.loss import Learned
from tunesmith.data.prompt import prompt_ids
from tunesmith.errors import TemplateError
from tunesmith.types import Sample, Tokens

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

FIRST_ROWS, FIRST_TOKENS = 100, 20_000  # most that is looked at in a source's first chunk: a twentieth of a second
LEAST_ROWS = 8
LATER_ROWS = 2  # in every other chunk
CONTEXT_TOKENS = 8  # shown before a difference


def looked_at(tokens: Sequence[int], first: bool) -> set[int]:
    """Which of a chunk's rows, of so many tokens each, are looked at: spread evenly, more of a source's first chunk."""
    number = LATER_ROWS
    if first:
        number = max(LEAST_ROWS, min(FIRST_ROWS, FIRST_TOKENS * len(tokens) // max(1, sum(tokens))))
    number = min(number, len(tokens))
    return {place * len(tokens) // number for place in range(number)}


def check(
    tokenizer: "PreTrainedTokenizerBase",
    where: str,
    sample: Sample,
    learned: Sequence[Learned],
    found: Sequence[Tokens],
) -> None:
    """Look at one sample of the row at `where`; `learned` and `found` are its branches as text and as tokens.

    Raises:
        TemplateError: its tokens are not those of the tokenizer's own template; other tokens stand before an answer
            than would be sent to get it; or a trained answer ends with no token at which generation stops.
    """
    for turns, text, tokens in zip(sample.branches, learned, found, strict=True):
        said, tools = [turn.spoken() for turn in turns], [dict(tool) for tool in sample.tools]
        own: Any = tokenizer.apply_chat_template(said, tools=list(tools) or None, tokenizer_kwargs={"verbose": False})
        _compare(tokenizer, tokens.ids.tolist(), own["input_ids"], f"{where}: the tokenizer's own template writes")
        offsets = np.asarray(own.encodings[0].offsets).reshape(-1, 2)
        for turn, start, end in text.answers:
            inside = (offsets[:, 0] >= start) & (offsets[:, 0] < end)
            if not tokens.weight[inside].any():
                continue
            name = f"turn {turn + 1} of {len(turns)}"
            before = int((offsets[:, 1] <= start).sum())  # tokens that lie wholly before the answer
            joined = before < len(offsets) and offsets[before, 0] < start
            sent = prompt_ids(tokenizer, said[:turn], tools)
            here = tokens.ids[:before].tolist()
            _compare(tokenizer, here, sent[:before] if joined else sent, f"{where}: before {name} chat and serve send")
            _stops(tokenizer, int(tokens.ids[inside][-1]), f"{where}: {name}")


def _compare(tokenizer: "PreTrainedTokenizerBase", trained: list[int], sent: list[int], who: str) -> None:
    if trained == sent:
        return
    place = next((at for at, pair in enumerate(zip(trained, sent, strict=False)) if pair[0] != pair[1]), None)
    place = min(len(trained), len(sent)) if place is None else place
    context = tokenizer.decode(trained[max(0, place - CONTEXT_TOKENS) : place])
    raise TemplateError(
        f"{who} other tokens than are trained: token {place + 1}, behind {context!r}, is "
        f"{_told(tokenizer, sent, place)} there and {_told(tokenizer, trained, place)} in training. A model trained so "
        "would be asked in another way than it was taught: use the tokenizer's own template (data.template=jinja), or "
        "correct the template"
    )


def _told(tokenizer: "PreTrainedTokenizerBase", ids: list[int], place: int) -> str:
    return f"{tokenizer.decode(ids[place : place + 1])!r} (id {ids[place]})" if place < len(ids) else "none"


def _stops(tokenizer: "PreTrainedTokenizerBase", last: int, name: str) -> None:
    if last not in {*tokenizer.all_special_ids, *tokenizer.get_added_vocab().values()}:
        raise TemplateError(
            f"{name} is trained up to {tokenizer.decode([last])!r} (id {last}), at which generation does not stop: a "
            "model trained on it would not end its answers. Write eos_token after each assistant turn"
        )
