"""Supervised fine-tuning of encoder-decoder models: weighted likelihood of the answers to what the encoder reads."""

from typing import Annotated, ClassVar

from pydantic import Field

from tunesmith.objectives.sft import SFT


class Seq2Seq(SFT):
    """Minimise -sum(weight * log p(token | the encoded prompt, the answer before it)), counted in weight."""

    encodes: ClassVar[bool] = True

    decoder_start_token_id: Annotated[int, Field(ge=0)] | None = None
    """Token that stands before every answer. None: the model's own."""
    src_lang: str | None = None
    """Language of the prompts, for tokenizers that mark one (mBART, NLLB): en_XX. None: the tokenizer's own."""
    tgt_lang: str | None = None
    """Language of the answers, for the same ones: ro_RO. None: the tokenizer's own."""
