"""The section of a recipe that stretches rotary positions, so that a model reads further than it was made for."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from tunesmith.component import Section

RopeType = Literal["linear", "dynamic", "yarn", "llama3", "longrope"]
Factors = Annotated[tuple[Annotated[float, Field(gt=0)], ...], Field(min_length=1)]

OWN: dict[str, tuple[str, ...]] = {  # which options a type has beside the common ones
    "linear": (),
    "dynamic": (),
    "yarn": ("attention_factor", "beta_fast", "beta_slow"),
    "llama3": ("low_freq_factor", "high_freq_factor"),
    "longrope": ("attention_factor", "short_factor", "long_factor"),
}


class RopeScaling(Section):
    """How rotary positions are stretched, in transformers' words; written into the model's config."""

    rope_type: RopeType | None = None
    """By which method: linear (arXiv 2306.15595), dynamic (NTK, for reading alone: longer rows are not trained), yarn
    (arXiv 2309.00071), llama3, or longrope (arXiv 2402.13753). None: as the model is stored."""
    factor: Annotated[float, Field(gt=1, le=1024)] | None = None
    """How many times longer the context becomes; required with a rope_type."""
    original_max_position_embeddings: Annotated[int, Field(gt=0)] | None = None
    """Tokens that the model was made for. None: what its config says."""
    attention_factor: Annotated[float, Field(gt=0)] | None = None
    """Of yarn and longrope: what queries and keys are multiplied by. None: as the paper says, by factor."""
    beta_fast: Annotated[float, Field(gt=0)] | None = None
    """Of yarn: turns in the original context from which a frequency stays as it is. None: 32."""
    beta_slow: Annotated[float, Field(gt=0)] | None = None
    """Of yarn: turns below which a frequency is divided by factor. None: 1."""
    low_freq_factor: Annotated[float, Field(gt=0)] | None = None
    """Of llama3: turns in the original context below which a frequency is divided by factor. None: 1."""
    high_freq_factor: Annotated[float, Field(gt=0)] | None = None
    """Of llama3: turns above which it stays as it is. None: 4."""
    short_factor: Factors | None = None
    """Of longrope: what each frequency is divided by in a text of the original length, a number for each of half a
    head's dimensions. None: 1."""
    long_factor: Factors | None = None
    """Of longrope: the same in a longer text; required."""

    @model_validator(mode="after")
    def _of_its_type(self) -> "RopeScaling":
        said = [name for name in type(self).model_fields if name != "rope_type" and getattr(self, name) is not None]
        if self.rope_type is None:
            if said:
                raise ValueError(f"{said[0]} is set but rope_type is not: say rope_type=yarn, or another")
            return self
        if self.factor is None:
            raise ValueError(f"rope_type={self.rope_type} needs factor: how many times longer the context becomes")
        if self.rope_type == "longrope" and self.long_factor is None:
            raise ValueError("rope_type=longrope needs long_factor: what each frequency is divided by")
        own = OWN[self.rope_type]
        others = [name for name in said if name not in (*own, "factor", "original_max_position_embeddings")]
        if others:
            raise ValueError(f"{others[0]} is no option of rope_type={self.rope_type}: leave it out")
        for high, low, plain in (("beta_fast", "beta_slow", (32, 1)), ("high_freq_factor", "low_freq_factor", (4, 1))):
            if (getattr(self, high) or plain[0]) <= (getattr(self, low) or plain[1]):
                raise ValueError(f"{high} must be above {low}")
        return self
