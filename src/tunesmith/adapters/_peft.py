"""What peft's adapters share: which layers they are beside, what is trained whole, and what they go on from."""

import re
import warnings
from abc import abstractmethod
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import Field, field_validator

from tunesmith.component import Component, name_of
from tunesmith.errors import RecipeError, near
from tunesmith.seams import Adapter, Quantization

if TYPE_CHECKING:
    from transformers import PreTrainedModel

PEFTS_HEADS = ("classifier", "score")  # which peft trains whole itself where values are learned
OWN = {"start_from", "loraplus_lr_ratio"}  # no options of peft
ALL_LINEAR = "all-linear"
SHAPES = {  # of adapters that peft sizes by the weight itself
    "bnb_4bit": "peft's loha and lokr take their sizes from a weight's shape, and bnb_4bit packs weights into another: "
    "use model.quantization=bnb_8bit, or adapter=lora or miss"
}
MEANT_OTHERWISE = (  # what peft only warns of
    ".*merging LoRA weights won't be possible",
    ".*were set but no (module|parameter) was matched",
    ".*no modules were excluded",
    ".*keys did not match any targeted module(?!.*gate_up_proj)",  # a pattern of its own
)


class Beside(Adapter):
    """New weights beside frozen layers, by peft."""

    beside: ClassVar[bool] = True
    kind: ClassVar[str]  # the name of peft's class of options
    not_on: ClassVar[Mapping[str, str]] = {}  # ways of holding a frozen model that peft cannot do: why, and what can

    target_modules: str | tuple[str, ...] = ALL_LINEAR
    """Layers to adapt: names, a regular expression, or all-linear (every linear layer but the head). A head that gives
    classes or a reward is trained whole beside them."""
    modules_to_save: tuple[str, ...] = ()
    """Modules trained and saved whole beside the new weights."""

    @field_validator("target_modules", mode="before")
    @classmethod
    def _names(cls, value: Any) -> Any:
        if value == "all":
            raise ValueError("all is the name of no layer")
        return value

    def refuses(self, other: Component) -> str | None:
        """A frozen model that is held in what peft has no such adapter for."""
        return self.not_on.get(name_of(other)) if isinstance(other, Quantization) else None

    @abstractmethod
    def options(self, model: Any) -> dict[str, Any]:
        """The options of peft's class for a model, but those that all adapters have."""

    def apply(self, model: "PreTrainedModel") -> Any:
        """The model wrapped by peft, with only the new weights requiring gradients.

        Raises:
            RecipeError: peft refuses an option.
        """
        return wrapped(model, self.config(model))

    def refuse_names(self, shapes: Callable[[], Any]) -> None:
        """Raise RecipeError for names in `target_modules` that are of no module."""
        if self.target_modules and self.target_modules != ALL_LINEAR:
            _refuse_unknown_names(shapes(), self.target_modules)

    def config(self, model: Any) -> Any:
        """The options of peft for a model. Raises RecipeError."""
        import peft

        from tunesmith.engine.compat import peft_warnings

        shared = {
            "target_modules": [*self.target_modules] if isinstance(self.target_modules, tuple) else self.target_modules,
            "modules_to_save": [*self.modules_to_save, *heads_to_save(model)] or None,
            "task_type": task_of(model),
        }
        try:
            with peft_warnings():
                return getattr(peft, self.kind)(**shared | self.options(model))
        except (ValueError, TypeError) as error:
            raise RecipeError(f"adapter: peft says: {str(error).splitlines()[0]}") from error


class Continued(Beside):
    """What can also go on from an adapter."""

    start_from: str | Annotated[tuple[str, ...], Field(min_length=1)] | None = None
    """Go on from the adapter in a folder or run, with the options it was trained with. Of several, all but the last are
    merged into the frozen model, in order."""

    def refuses(self, other: Component) -> str | None:
        """Also several adapters on a model in few bits, whose weights would be rounded anew by each that is merged."""
        if isinstance(other, Quantization) and isinstance(self.start_from, tuple) and len(self.start_from) > 1:
            return (
                f"adapter.start_from: all but the last are merged into the frozen weights, and those of "
                f"{name_of(other)} would be rounded anew: merge them into a model with tunesmith export type=merged "
                "first, or leave model.quantization out"
            )
        return super().refuses(other)

    def apply(self, model: "PreTrainedModel") -> Any:
        """The model wrapped by peft, with only the new weights requiring gradients.

        Raises:
            RecipeError: peft refuses an option, or the adapter to go on from is another.
            ModelError: the adapter to go on from does not fit the model.
        """
        return super().apply(model) if self.start_from is None else self._going_on(model)

    def refuse_names(self, shapes: Callable[[], Any]) -> None:
        """Raise RecipeError for names in `target_modules` that are of no module; one that goes on has its own."""
        if self.start_from is None:
            super().refuse_names(shapes)

    def begins_elsewhere(self) -> bool:
        """Whether training starts from other answers than the model's own."""
        return self.start_from is not None

    def _going_on(self, model: Any) -> Any:
        """The model with the adapter of a folder beside it, to be trained further; those before it are merged."""
        from tunesmith.engine import stacked

        said = self.start_from
        assert said is not None, "asked before"
        *first, last = (said,) if isinstance(said, str) else said
        model = stacked.merged(model, first)
        place = stacked.place_of(last)
        stored = stacked.config_of(place)
        own = self.config(model)
        if stored.peft_type != own.peft_type:
            raise RecipeError(
                f"adapter.start_from: {last} is of type {stored.peft_type.value.lower()}: say that in adapter.type"
            )
        for name in sorted(self.model_fields_set - OWN):
            before, now = _plain(getattr(stored, name)), _plain(getattr(own, name))
            if before != now and now != ALL_LINEAR:
                raise RecipeError(
                    f"adapter.{name}: {last} was trained with {before}, and goes on with that: leave it out"
                )
        return stacked.put(model, place, trained=True)


def wrapped(model: Any, config: Any) -> Any:
    """A model wrapped by peft. Raises RecipeError."""
    from peft import get_peft_model

    from tunesmith.engine.compat import peft_warnings

    _refuse_unknown_names(model, getattr(config, "target_modules", None))
    try:
        with peft_warnings():
            for said in MEANT_OTHERWISE:
                warnings.filterwarnings("error", said)
            return get_peft_model(model, config)
    except (ValueError, TypeError, UserWarning, RuntimeWarning) as error:
        first = str(error).splitlines()[0]
        raise RecipeError(f"adapter: {first}") from error


def _refuse_unknown_names(model: Any, wanted: Any) -> None:
    """Refuse names that no module has: peft passes over one where another one is found. Raises RecipeError."""
    from torch import nn
    from transformers.pytorch_utils import Conv1D

    if not wanted or wanted == ALL_LINEAR:
        return
    places = [name for name, _ in model.named_modules()]
    if isinstance(wanted, str):
        unknown = [] if any(re.fullmatch(wanted, place) for place in places) else [wanted]
    else:
        unknown = [name for name in sorted(wanted) if not any(f".{place}".endswith(f".{name}") for place in places)]
    if not unknown:
        return
    linear = {place.rpartition(".")[2] for place, one in model.named_modules() if isinstance(one, (nn.Linear, Conv1D))}
    names = [name.strip() for name in unknown[0].split(",")]
    as_list = f" A list is said as [{','.join(names)}]." if len(names) > 1 and {*names} <= linear else ""
    raise RecipeError(
        f"adapter.target_modules: no module of {type(model).__name__} is {unknown[0]!r}.{as_list} "
        f"{near(unknown[0], [*linear, ALL_LINEAR])}"
    )


def heads_to_save(model: Any) -> list[str]:
    """The modules of a head for classes or a reward that are trained whole, and not so by peft itself."""
    from tunesmith.engine.model import has_words, heads_of

    whole = () if has_words(model) else [name.rpartition(".")[2] for name in heads_of(model)]
    return [name for name in whole if name not in PEFTS_HEADS]


def task_of(model: Any) -> str:
    """What peft calls the task of a model."""
    from tunesmith.engine.model import has_words

    if not has_words(model):
        return "SEQ_CLS"
    return "SEQ_2_SEQ_LM" if model.config.is_encoder_decoder else "CAUSAL_LM"


def _plain(value: Any) -> Any:
    return sorted(value) if isinstance(value, (set, list, tuple)) else value
