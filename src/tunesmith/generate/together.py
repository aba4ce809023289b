"""A model that goes on with many answers in one pass, whatever their lengths; prompts are read in parts.

Letters: R rows of a pass, Q tokens of a row, P pages of the longest row, L = P · PAGE columns, V vocabulary.
"""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from tunesmith.engine.device import free_memory_bytes
from tunesmith.generate.adapters import of_model
from tunesmith.generate.alone import forward_options
from tunesmith.generate.decoder import Decoder
from tunesmith.generate.pages import DUMP, EMPTY, PAGE, Key, Pages, Plan, Pool, Root

if TYPE_CHECKING:
    from transformers import PreTrainedModel

MOST = 64  # answers, unless more are asked for: beyond it a CPU gains nothing
CHUNK_TOKENS = {"cpu": 256}  # of a pass that reads prompts: what an answer waits for between two of its tokens
CHUNK_TOKENS_ELSEWHERE = 2048
ROUND = 16  # tokens of a row, so that passes have few shapes: oneDNN makes and keeps code for each
SHARE = 0.5  # of the free memory that pages may take
UNEVEN = 4  # times as many pages as another row that goes through the same pass, where they are more than these:
FEW_PAGES = 32

Window = int | None


class _Place:
    """An answer: its tokens, the pages that hold `read` of them, and how many of these pages others can find."""

    __slots__ = ("adapter", "filled", "ids", "last", "pages", "read", "turns")

    def __init__(self, ids: Sequence[int], adapter: str | None) -> None:
        self.ids, self.adapter = list(ids), adapter
        self.pages: list[int] = []
        self.read = self.filled = self.turns = 0
        self.last: int | Root = ("", adapter)  # the serial number of the last filled page

    def key(self) -> Key:
        """What the page after the filled ones holds, once it is full."""
        start = self.filled * PAGE
        return self.last, tuple(self.ids[start : start + PAGE])


class Together(Decoder):
    """Decodes many answers in one pass, with keys and values in pages that are shared by equal beginnings.

    `windows` says how far each kind of layer sees back (None: to the beginning); one kind has the name "".
    """

    def __init__(
        self,
        model: "PreTrainedModel",
        windows: Mapping[str, Window],
        *,
        most: int = MOST,
        cache_tokens: int | None = None,
        chunk_tokens: int | None = None,
    ) -> None:
        """`cache_tokens` bounds what is kept of all answers together; None: what half of the free memory holds."""
        self.model, self.windows, self.most = model, dict(windows), most
        kind = model.device.type
        self.chunk_tokens = chunk_tokens or CHUNK_TOKENS.get(kind, CHUNK_TOKENS_ELSEWHERE)
        self.pool = Pool()
        self.pages = Pages()
        self.bound(2**50 if cache_tokens is None else cache_tokens)
        self._adapters = of_model(model)
        self.adapters = self._adapters.names if self._adapters else ()
        self._only_last = {"logits_to_keep": 1} if "logits_to_keep" in forward_options(model) else {}
        self._num_places = 0
        self._new: list[int] = []  # pages that were taken since the last pass

    def bound(self, tokens: int) -> None:
        """Keep no more than so many tokens of all answers."""
        pages = tokens // PAGE
        self.most_tokens, self.pages.most = pages * PAGE, pages + 2

    def bound_by_memory(self, bytes_per_token: int) -> None:
        """Keep what half of the memory that is free now holds."""
        self.bound(int(SHARE * free_memory_bytes(self.model.device.type)) // bytes_per_token)

    def begin(self, prompt: Sequence[int], adapter: str | None = None) -> _Place | None:
        """A place with room for its prompt, where each of the others has room for a page more."""
        place = _Place(prompt, adapter)
        self._adopt(place)
        lacking = -(-len(prompt) // PAGE) - len(place.pages)
        if self.pages.room < lacking + self._num_places:
            self.pages.leave(place.pages)
            return None
        place.pages += self._take(lacking)
        self._num_places += 1
        return place

    def read(self, places: Sequence[_Place]) -> tuple[list[_Place], torch.Tensor | None]:
        """Read a part of some prompts: the ones that have had the fewest turns come first."""
        chosen: dict[_Place, int] = {}
        coming: set[Key] = set()  # pages that this pass fills: who could take them waits for it
        for place in sorted(places, key=lambda one: one.turns):
            self._adopt(place)
            key = place.key()
            if key in coming or not self._fits(chosen, size := min(len(place.ids) - place.read, self.chunk_tokens)):
                continue
            chosen[place] = size
            coming |= {key} if len(key[1]) == PAGE else set()
            place.turns += 1
        logits = self._pass(list(chosen), list(chosen.values()))
        read = [row for row, place in enumerate(chosen) if place.read == len(place.ids)]
        return [place for place in chosen if place.read == len(place.ids)], logits[read] if read else None

    def has_room(self, places: Sequence[_Place]) -> bool:
        """Whether there are pages for one more token of each."""
        return sum(place.read == len(place.pages) * PAGE for place in places) <= self.pages.room

    def step(self, places: Sequence[_Place], tokens: Sequence[int]) -> torch.Tensor:
        """Go on with a token of each, in one pass unless some are much longer than others."""
        for place, token in zip(places, tokens, strict=True):
            place.ids.append(token)
            if place.read == len(place.pages) * PAGE:
                place.pages += self._take(1)
        order = sorted(range(len(places)), key=lambda row: -len(places[row].pages))
        cuts = [0]
        for number, row in enumerate(order):
            longest = len(places[order[cuts[-1]]].pages)
            if longest > max(FEW_PAGES, UNEVEN * len(places[row].pages)):
                cuts.append(number)
        if len(cuts) == 1:
            return self._pass(places, [1] * len(places))
        found = [
            self._pass([places[row] for row in order[first:last]], [1] * (last - first))
            for first, last in pairwise([*cuts, len(order)])
        ]
        return torch.cat(found)[np.argsort(order)]

    def free(self, place: _Place) -> None:
        """Leave its pages to others."""
        self.pages.leave(place.pages)
        self._num_places -= 1

    def _adopt(self, place: _Place) -> None:
        """Take the pages that hold the next tokens of a prompt already; one token of it is left to be read."""
        while place.read == place.filled * PAGE and place.read + PAGE < len(place.ids):
            found = self.pages.find(place.key())
            if found is None:
                return
            page, place.last = found
            self.pages.leave(place.pages[place.filled : place.filled + 1])
            place.pages[place.filled : place.filled + 1] = [page]
            place.filled += 1
            place.read += PAGE

    def _take(self, number: int) -> list[int]:
        taken = [self.pages.take() for _ in range(number)]
        self._new += taken
        return taken

    def _fits(self, chosen: Mapping[_Place, int], size: int) -> bool:
        """Whether tokens of one more prompt belong into a pass: not too many in all, and not too uneven."""
        if not chosen:
            return True
        width, rows = max(size, *chosen.values()), len(chosen) + 1
        return rows * width <= self.chunk_tokens and rows * width <= 2 * (sum(chosen.values()) + size)

    def _pass(self, places: Sequence[_Place], sizes: Sequence[int]) -> torch.Tensor:
        """Go on with so many tokens of each: the logits [R, V] after the last ones. Rows of an adapter lie together."""
        if self._adapters is None:
            return self._run(places, sizes)
        order = sorted(range(len(places)), key=lambda row: places[row].adapter or "")
        with self._adapters.of([places[row].adapter for row in order]):
            logits = self._run([places[row] for row in order], [sizes[row] for row in order])
        return logits[np.argsort(order)]

    @torch.no_grad()
    def _run(self, places: Sequence[_Place], sizes: Sequence[int]) -> torch.Tensor:
        width, longest = max(sizes), max(len(place.pages) for place in places)
        width = width if width == 1 else -(-width // ROUND) * ROUND
        laid = torch.from_numpy(_step(places, longest) if width == 1 else _part(places, sizes, width, longest))
        for place, size in zip(places, sizes, strict=True):
            place.read += size
        device = self.model.device
        ids, positions, page, offset, table = laid.to(device).split([*[width] * 4, longest], dim=1)
        new = torch.tensor(self._new, device=device) if self._new else None
        self._new = []
        self.pool.plan = Plan(self.pages.total, new, page, offset, table)
        output: Any = self.model(
            input_ids=ids,
            position_ids=positions,
            attention_mask=self._masks(positions, longest * PAGE),
            past_key_values=self.pool,
            use_cache=True,
            **self._only_last,
        )
        for place in places:
            while (place.filled + 1) * PAGE <= place.read:
                place.last = self.pages.fill(place.pages[place.filled], place.key())
                place.filled += 1
        return output.logits[:, -1].float()

    def _masks(self, positions: torch.Tensor, columns: int) -> Any:
        """Which columns each token sees: a mask [R, 1, Q, L] for all layers, or one by kind of layer."""
        place = torch.arange(columns, device=positions.device)
        own = positions[:, None, :, None]  # [R, 1, Q, 1]
        dtype = self.model.dtype
        masks = {}
        for kind, window in self.windows.items():
            unseen = place > own
            if window is not None and window < columns:
                unseen |= place <= own - window
            masks[kind] = torch.zeros_like(unseen, dtype=dtype).masked_fill_(unseen, torch.finfo(dtype).min)
        return masks.get("", masks)


def _step(places: Sequence[_Place], longest: int) -> np.ndarray:
    """For a token of each: its id, its position, its page and the place there, and the pages of the row."""
    laid = [
        [
            place.ids[place.read],
            place.read,
            place.pages[place.read // PAGE],
            place.read % PAGE,
            *place.pages,
            *[EMPTY] * (longest - len(place.pages)),
        ]
        for place in places
    ]
    return np.array(laid, np.int64)


def _part(places: Sequence[_Place], sizes: Sequence[int], width: int, longest: int) -> np.ndarray:
    """The same for so many tokens of each; shorter rows begin with tokens of no answer."""
    laid = np.zeros((len(places), 4 * width + longest), np.int64)
    ids, positions, page, offset, table = np.split(laid, [width, 2 * width, 3 * width, 4 * width], axis=1)
    page[:], table[:] = DUMP, EMPTY
    for row, (place, size) in enumerate(zip(places, sizes, strict=True)):
        at = np.arange(place.read, place.read + size)
        table[row, : len(place.pages)] = place.pages
        ids[row, width - size :] = place.ids[place.read : place.read + size]
        positions[row, width - size :] = at
        page[row, width - size :], offset[row, width - size :] = table[row, at // PAGE], at % PAGE
    return laid
