"""What adapters of peft that are no low-rank updates have in common."""

from typing import Any

from tunesmith.engine.model import has_words, heads_of

PEFTS_HEADS = ("classifier", "score")  # which peft trains whole itself where values are learned


def task_of(model: Any) -> str:
    """What peft calls the task of a model."""
    if not has_words(model):
        return "SEQ_CLS"
    return "SEQ_2_SEQ_LM" if model.config.is_encoder_decoder else "CAUSAL_LM"


def heads_to_save(model: Any) -> list[str] | None:
    """The modules of a head for classes or a reward that are trained whole, and not so by peft itself."""
    whole = () if has_words(model) else tuple(name.rpartition(".")[2] for name in heads_of(model))
    return [name for name in whole if name not in PEFTS_HEADS] or None
