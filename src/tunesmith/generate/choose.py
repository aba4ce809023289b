"""Which decoder a model runs with: the one for many answers, once it gave the model's own numbers."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import torch

from tunesmith.engine import attention
from tunesmith.engine.compat import FAILURES, attention_of
from tunesmith.engine.model import base_of, is_adapted, num_rows
from tunesmith.engine.trial import TOLERANCE, said
from tunesmith.generate.alone import Alone, answering, encodes, logits_of
from tunesmith.generate.decoder import Decoder
from tunesmith.generate.together import MOST, Together, Window

if TYPE_CHECKING:
    from transformers import PreTrainedModel

log = logging.getLogger(__name__)

PROBE = "tunesmith_windows"
WITH_MASKS = ("sdpa", "eager")  # attentions of transformers that take a mask as it is
BY_LENGTH = ("dynamic", "longrope")  # rotary positions that another answer's length changes
TRIED = (19, 3, 8)  # tokens of the prompts of a trial, and then so many tokens of an answer:
TRIED_ANSWER = 2
PART = 0.1  # of the spread of logits, which rounding in half precision may make of a model of many layers


@dataclass(frozen=True)
class _Fit:
    """A model that `Together` gave the numbers of."""

    windows: dict[str, Window]
    bytes_per_token: int  # of its caches


_TRIED: WeakKeyDictionary[Any, dict[Any, _Fit | str]] = WeakKeyDictionary()


def decoder_for(
    model: "PreTrainedModel", *, most: int = MOST, cache_tokens: int | None = None, chunk_tokens: int | None = None
) -> Decoder:
    """The decoder for a model: `Together` where that gives the model's own numbers in a short trial, else `Alone`.

    `most` answers run at once; `cache_tokens` bounds the tokens of all of them (None: by memory), and `chunk_tokens`
    those of a pass that reads prompts. Its `note` says why a model answers alone.
    """
    with answering(model):
        found = _unfit(model) or _tried(model)
        if isinstance(found, _Fit):
            decoder = Together(model, found.windows, most=most, cache_tokens=cache_tokens, chunk_tokens=chunk_tokens)
            if cache_tokens is None:
                decoder.bound_by_memory(found.bytes_per_token)
            return decoder
    alone = Alone(model)
    alone.note = f"answers are made one after the other: {found}"
    log.info(alone.note)
    return alone


def _tried(model: Any) -> _Fit | str:
    """How a model answers many at once, or why it does not; tried once for a model as it is held."""
    held = type(model), model.dtype, model.device, attention_of(base_of(model))
    of_model = _TRIED.setdefault(model, {})
    if held not in of_model:
        of_model[held] = _try(model)
    return of_model[held]


def _try(model: Any) -> _Fit | str:
    windows = _windows(model)
    if isinstance(windows, str):
        return windows
    trial = Together(model, windows, chunk_tokens=max(TRIED))
    return _differs(model, trial) or _Fit(windows, trial.pool.bytes_per_token)


def _unfit(model: Any) -> str | None:
    """What of a model is known to be against many answers in one pass."""
    base = base_of(model)
    name = type(base).__name__
    if encodes(model):
        return f"{name} has an encoder for prompts"
    if is_adapted(model) and model.active_peft_config.is_prompt_learning:
        return "the adapter puts virtual tokens before prompts"
    if attention_of(base) not in WITH_MASKS:
        return f"{name} runs {attention_of(base)} attention"
    rotary = getattr(base.config.get_text_config(), "rope_parameters", None) or {}
    kinds = {one.get("rope_type") for one in (rotary, *rotary.values()) if isinstance(one, dict)}
    by_length = kinds & {*BY_LENGTH}
    return f"its {by_length.pop()} positions depend on the longest answer" if by_length else None


def _windows(model: Any) -> dict[str, Window] | str:
    """How far each kind of layer sees back, asked of the model's own masks; or why they cannot be made here."""
    from transformers import AttentionInterface, AttentionMaskInterface

    AttentionInterface.register(PROBE, _look)
    AttentionMaskInterface.register(PROBE, attention.pairs_of_mask)
    base = base_of(model)
    own = attention_of(base)
    found: dict[int, Window] = {}
    base.set_attn_implementation(PROBE)
    try:
        if attention_of(base) != PROBE:
            return f"the attention of {type(base).__name__} cannot be replaced"
        ids = torch.arange(4, device=base.device)[None]
        with torch.no_grad():
            model(input_ids=ids, use_cache=False, seen_back=found)
    except FAILURES as error:
        return said(error)
    finally:
        base.set_attn_implementation(own)
    if len({*found.values()}) == 1:
        return {"": found.popitem()[1]}
    kinds = getattr(base.config.get_text_config(), "layer_types", None) or ()
    if not found or {*found} != {*range(len(kinds))}:
        return f"{type(base).__name__} does not say what its layers see"
    by_kind = {kind: {found[number] for number, one in enumerate(kinds) if one == kind} for kind in kinds}
    if any(len(windows) > 1 for windows in by_kind.values()):
        return f"{type(base).__name__} does not say which of its layers have a window"
    return {kind: windows.pop() for kind, windows in by_kind.items()}


def _look(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    seen_back: dict[int, Window] | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """No attention, only zeros [1, T, H, D]: notes how far a layer's mask lets it see.

    Raises:
        NotImplementedError: it says so to nobody, or sees something else than what lies just before a token.
    """
    if attention_mask is None or attention_mask.shape != (1, 1, 3, attention.PAIRS) or seen_back is None:
        raise NotImplementedError("a layer is not given the model's mask")
    asking, asked, seen = attention_mask[0, 0]
    distance = asking - asked
    back = distance[(seen > 0) & (distance >= 0)].max().item()
    window = None if back > attention.FAR // 2 else int(back) + 1
    if not torch.equal((distance >= 0) & (distance < (window or 2 * attention.FAR)), seen > 0):
        raise NotImplementedError("a layer's mask is neither causal nor a window")
    seen_back[module.layer_idx] = window
    return value.new_zeros(1, query.shape[2], query.shape[1], value.shape[3]), None


def _differs(model: Any, decoder: Together) -> str | None:
    """What is wrong with what a decoder says of a few tokens, beside what the model says of each text alone."""
    random = torch.Generator().manual_seed(0)
    texts = [torch.randint(num_rows(model), (size + TRIED_ANSWER,), generator=random).tolist() for size in TRIED]
    try:
        for text, found in zip(texts, followed(decoder, texts, TRIED), strict=True):
            expected = logits_of(model, text[:-TRIED_ANSWER], [*text[-TRIED_ANSWER:], 0])
            difference = (found.cpu().log_softmax(-1) - expected.log_softmax(-1)).abs()
            half = model.dtype != torch.float32
            allowed = PART * expected.std().item() if half else TOLERANCE[torch.float32]
            if not (difference.mean() if half else difference.max()).item() <= allowed:
                return f"in one pass {type(base_of(model)).__name__} says something else (by {difference.max():.2g})"
    except FAILURES as error:
        return said(error)
    return None


def followed(
    decoder: Decoder,
    texts: Sequence[list[int]],
    prompts: Sequence[int],
    adapters: Sequence[str | None] | None = None,
) -> list[torch.Tensor]:
    """The logits [K + 1, V] that a decoder gives after texts' prompts and each of the K tokens that follow them."""
    names = adapters or [None] * len(texts)
    places = [decoder.begin(text[:size], name) for text, size, name in zip(texts, prompts, names, strict=True)]
    found: dict[int, list[torch.Tensor]] = {id(place): [] for place in places}
    unread = places
    while unread:
        read, logits = decoder.read(unread)
        for number, place in enumerate(read):
            assert logits is not None, "there is a row for each"
            found[id(place)].append(logits[number])
        unread = [place for place in unread if not found[id(place)]]
    for number in range(len(texts[0]) - prompts[0]):
        tokens = [text[size + number] for text, size in zip(texts, prompts, strict=True)]
        for place, row in zip(places, decoder.step(places, tokens), strict=True):
            found[id(place)].append(row)
    for place in places:
        decoder.free(place)
    return [torch.stack(found[id(place)]) for place in places]
