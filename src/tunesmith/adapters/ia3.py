"""Factors of what some frozen layers give or are given (arXiv 2205.05638), by peft."""

from collections.abc import Mapping
from typing import Any, ClassVar

from tunesmith.adapters._peft import Continued

FLOAT32 = (
    "peft's ia3 beside a model of bitsandbytes makes float32 keys and values, which bfloat16 queries cannot attend to, "
    "and is not merged: use adapter=vera or lora, or leave model.quantization out"
)


class IA3(Continued):
    """peft's (IA)3: a factor for every key, value and inner number of the MLP; the fewest weights of all."""

    learning_rate: ClassVar[float] = 3e-3
    kind: ClassVar[str] = "IA3Config"
    not_on: ClassVar[Mapping[str, str]] = {"bnb_4bit": FLOAT32, "bnb_8bit": FLOAT32}

    target_modules: str | tuple[str, ...] | None = None  # type: ignore[assignment]
    """Layers to adapt: names, a regular expression, or all-linear. None: keys, values and the last layer of the MLP, of
    the kinds of models that peft knows."""
    feedforward_modules: str | tuple[str, ...] | None = None
    """Those of them whose input is multiplied, and not their result. None: as peft knows, where target_modules is
    None; else none."""

    def options(self, model: Any) -> dict[str, Any]:
        """The options of peft's IA3Config."""
        own = self.feedforward_modules
        if own is None and self.target_modules is not None:
            own = ()
        return {"feedforward_modules": own if own is None or isinstance(own, str) else [*own]}
