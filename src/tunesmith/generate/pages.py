"""Keys and values of many answers in pages of a few tokens, so that memory grows by need and is used again.

A page that is full is known by its tokens and by the page before it: an answer whose prompt begins with the same
tokens takes that page instead of reading them again, for as long as the page is not needed for something else.

Letters: R rows of a pass, Q tokens of a row, P pages of the longest row, L = P · PAGE columns, N pages of the pool,
K key and value heads, D head size.
"""

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers.cache_utils import Cache, CacheLayerMixin

PAGE = 16  # tokens
EMPTY, DUMP = 0, 1  # the page that fills short rows up, never written, and the one for tokens of no answer, never read
FIRST_PAGES = 64  # of a pool that grows

Root = tuple[str, str | None]
Key = tuple[int | Root, tuple[int, ...]]  # the page before, or whose beginning it is; and the tokens


class Pages:
    """Which pages are taken, by how many answers, and what full ones hold."""

    def __init__(self) -> None:
        self.most = 2  # pages that there may be, the two above among them
        self.total = 2  # pages that there are; `Pool` follows
        self._free: list[int] = []
        self._users: dict[int, int] = {}
        self._found: dict[Key, tuple[int, int]] = {}  # a page and its serial number
        self._keys: dict[int, Key] = {}  # of the full pages
        self._idle: OrderedDict[int, None] = OrderedDict()  # full ones without a user, the one to forget first in front
        self._serials = 0

    @property
    def room(self) -> int:
        """How many pages can be taken now."""
        return len(self._free) + len(self._idle) + self.most - self.total

    def take(self) -> int:
        """A page for one answer. There must be room."""
        if not self._free:
            if self.total < self.most and 2 * len(self._idle) < self.total:
                more = min(self.most, max(2 * self.total, FIRST_PAGES)) - self.total
                self._free = list(range(self.total + more - 1, self.total - 1, -1))
                self.total += more
            else:
                page, _ = self._idle.popitem(last=False)
                del self._found[self._keys.pop(page)]
                self._free.append(page)
        page = self._free.pop()
        self._users[page] = 1
        return page

    def find(self, key: Key) -> tuple[int, int] | None:
        """The page that holds the tokens of a key, for one more answer, and its serial number."""
        found = self._found.get(key)
        if found is not None:
            page = found[0]
            self._users[page] = self._users.get(page, 0) + 1
            self._idle.pop(page, None)
        return found

    def fill(self, page: int, key: Key) -> int:
        """Say what a full page holds; the serial number of the page that stands for it from now on."""
        if key not in self._found:
            self._serials += 1
            self._found[key] = page, self._serials
            self._keys[page] = key
        return self._found[key][1]

    def leave(self, pages: Sequence[int]) -> None:
        """Take an answer's pages back: the last ones, which fewer others begin with, are forgotten first."""
        for page in reversed(pages):
            self._users[page] -= 1
            if not self._users[page]:
                del self._users[page]
                if page in self._keys:
                    self._idle[page] = None
                else:
                    self._free.append(page)


@dataclass(frozen=True, slots=True)
class Plan:
    """Where a pass writes, and what it reads: made once for all layers that have as many heads."""

    pages: int  # N that must be there
    new: torch.Tensor | None  # pages that are taken for the first time since they were left
    page: torch.Tensor  # [R, Q] the page that each token of the pass goes to
    offset: torch.Tensor  # [R, Q] and its place there
    table: torch.Tensor  # [R, P] the pages of each row
    room: dict[Any, torch.Tensor] = field(default_factory=dict)  # for the rows of one layer, and then of the next
    _by_heads: dict[int, tuple[torch.Tensor, torch.Tensor]] = field(default_factory=dict)

    def by_heads(self, heads: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Where tokens go, [R·K·Q] of N·K·PAGE, and what is read, [R·K·P] of N·K."""
        if heads not in self._by_heads:
            head = torch.arange(heads, device=self.table.device)[:, None]  # [K, 1]
            slots = (self.page[:, None] * heads + head) * PAGE + self.offset[:, None]  # [R, K, Q]
            read = self.table[:, None] * heads + head  # [R, K, P]
            self._by_heads[heads] = slots.flatten(), read.flatten()
        return self._by_heads[heads]


class PagedLayer(CacheLayerMixin):
    """The pages of one layer: keys [N, K, PAGE, D], and values alike."""

    keys: Any
    values: Any

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        """No pages yet, of the kind that the model makes."""
        self.keys, self.values = (
            one.new_zeros(0, one.shape[1], PAGE, one.shape[3]) for one in (key_states, value_states)
        )
        self.is_initialized = True

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Write the tokens of a pass [R, K, Q, D], and give all of their rows [R, K, L, D]."""
        (plan,) = args
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        slots, read = plan.by_heads(key_states.shape[1])
        self.keys = _with_room(self.keys, plan)
        self.values = _with_room(self.values, plan)
        for pool, states in ((self.keys, key_states), (self.values, value_states)):
            pool.view(-1, states.shape[-1]).index_copy_(0, slots, states.reshape(-1, states.shape[-1]).to(pool.dtype))
        return _rows("keys", self.keys, plan, read), _rows("values", self.values, plan, read)

    def get_seq_length(self) -> int:
        """0: the rows have lengths of their own, which the model is told by positions and masks."""
        return 0

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """What a model that makes its own masks would ask. It is given masks."""
        raise NotImplementedError("the model makes a mask of its own")

    def get_max_length(self) -> int:
        """-1: the pool grows."""
        return -1


def _with_room(pool: torch.Tensor, plan: Plan) -> torch.Tensor:
    if len(pool) < plan.pages:
        pool = torch.cat([pool, pool.new_zeros(plan.pages - len(pool), *pool.shape[1:])])
    if plan.new is not None:
        pool.index_fill_(0, plan.new, 0)  # a masked number counts nothing, but if it is infinite it spoils the row
    return pool


def _rows(name: str, pool: torch.Tensor, plan: Plan, read: torch.Tensor) -> torch.Tensor:
    """The rows of a pass [R, K, L, D]. They stand until the next layer's are read: fresh memory would cost as much."""
    pages = pool.view(-1, PAGE * pool.shape[-1])
    place = name, pool.shape[1:], pool.dtype
    if place not in plan.room:
        plan.room[place] = pages.new_empty(len(read), pages.shape[1])
    rows = torch.index_select(pages, 0, read, out=plan.room[place])
    return rows.view(len(plan.table), pool.shape[1], -1, pool.shape[-1])


class Pool(Cache):
    """The pages of all layers. `plan` is that of the pass that runs."""

    plan: Plan

    def __init__(self) -> None:
        self._paged: list[PagedLayer] = []
        layers: Any = self._paged  # a list of one kind where transformers has lists of several
        super().__init__(layers=layers)

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """See `PagedLayer.update`."""
        while len(self._paged) <= layer_idx:
            self._paged.append(PagedLayer())
        return self._paged[layer_idx].update(key_states, value_states, self.plan)

    @property
    def bytes_per_token(self) -> int:
        """What a token takes in all layers, once they have had one."""
        kept = [one for layer in self._paged for one in (layer.keys, layer.values) if one is not None]
        return sum(one[0, :, 0].numel() * one.element_size() for one in kept)
