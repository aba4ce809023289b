"""LoRA adapters beside each other on one model: each row of a pass is answered with its own, or with none.

The base is in memory once and nothing is merged. peft's layers keep the adapters and are switched off; a hook behind
each adds, to the rows of an adapter, what that adapter adds.
"""

import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from tunesmith.engine import quantised, rope, stacked
from tunesmith.engine.compat import peft_warnings
from tunesmith.engine.model import load_tokenizer, num_rows, read_config
from tunesmith.errors import ModelError
from tunesmith.generate.ends import Written, ends_of
from tunesmith.recipe import Model

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

log = logging.getLogger(__name__)

MORE = (  # options of LoRA that make it more than two matrices beside a linear layer
    "use_dora", "modules_to_save", "trainable_token_indices", "layer_replication", "alora_invocation_tokens",
    "target_parameters",
)  # fmt: skip
CONFIG = "config.json"  # beside an adapter: its base's, where that has stretched positions
Run = tuple[str, slice]  # peft's name of an adapter, and rows of a pass that lie together


class Adapters:
    """The adapters of a model by name, and which rows of the pass that runs are whose."""

    def __init__(self, model: Any, names: Mapping[str, str], written: Mapping[str, Written]) -> None:
        """`names` says peft's name of each, and `written` how it writes its answers."""
        from peft.tuners.lora import LoraLayer

        self.written = dict(written)
        self._names = dict(names)
        self._runs: list[Run] = []
        model.base_model.disable_adapter_layers()
        for module in model.modules():
            if isinstance(module, LoraLayer):
                module.register_forward_hook(self._add)

    @property
    def names(self) -> tuple[str, ...]:
        """What they are asked by."""
        return tuple(self._names)

    @contextmanager
    def of(self, rows: Sequence[str | None]) -> Iterator[None]:
        """A block in which the rows of a pass have these adapters. Rows of the same one lie together."""
        start = 0
        for name, group in groupby(rows):
            size = len([*group])
            if name is not None:
                self._runs.append((self._names[name], slice(start, start + size)))
            start += size
        try:
            yield
        finally:
            self._runs.clear()

    def _add(self, layer: Any, args: tuple[Any, ...], output: torch.Tensor) -> torch.Tensor:
        for name, rows in self._runs:
            if name in layer.lora_A:
                down, up = layer.lora_A[name], layer.lora_B[name]
                added = up(down(args[0][rows].to(down.weight.dtype))) * layer.scaling[name]
                output[rows] += added.to(output.dtype)
        return output


def of_model(model: Any) -> Adapters | None:
    """The adapters that `put` has put on a model."""
    return vars(model).get("adapters_by_name")


def put(model: Any, tokenizer: "PreTrainedTokenizerBase", folders: Mapping[str, str]) -> Any:
    """A model with the adapters of folders or runs beside each other; by itself it answers without any.

    An adapter reads and writes with the tokenizer of its folder, or with `tokenizer` where it has none.

    Raises:
        ModelError: one is not there, does not fit, is no plain LoRA, or was trained at positions of its own.
    """
    from peft import PeftModel

    names = {name: f"adapter_{number}" for number, name in enumerate(folders)}  # peft takes no dots
    base, config_of_base = model.name_or_path, model.config
    written = {name: _written(model, tokenizer, stacked.place_of(folder)) for name, folder in folders.items()}
    for name, folder in folders.items():
        place = stacked.place_of(folder)
        config = stacked.config_of(place)
        more = more_than_lora(place, config)
        if more is not None:
            raise _refusal(name, place, more)
        _refuse_positions(name, place, config_of_base)
        _say_bits(name, place, base)
        if config.base_model_name_or_path != base:
            log.warning(
                "the adapter %s was trained on %s, and is put on %s", name, config.base_model_name_or_path, base
            )
        try:
            with peft_warnings():
                if isinstance(model, PeftModel):
                    model.load_adapter(str(place), names[name], is_trainable=False)
                else:
                    model = PeftModel.from_pretrained(model, str(place), names[name])
        except (OSError, ValueError, RuntimeError, KeyError, UserWarning) as error:
            first = next(iter(str(error).splitlines()), type(error).__name__)
            raise ModelError(f"the adapter {place} cannot be put on {base!r}: {first}") from error
    _refuse_layers(model, names)
    model.adapters_by_name = Adapters(model, names, written)
    return model.eval()


def more_than_lora(place: Path, config: Any = None) -> str | None:
    """What an adapter is more than two matrices beside a linear layer, by its folder and config."""
    config = config or stacked.config_of(place)
    if config.peft_type != "LORA":
        return f"is of peft's type {config.peft_type.value}"
    more = [field for field in MORE if getattr(config, field, None)]
    more += ["bias"] if config.bias != "none" else []
    if more:
        return f"has {more[0]}"
    return "was trained on merged adapters" if stacked.beneath(place) else None


def _refuse_positions(name: str, place: Path, of_base: Any) -> None:
    """Raise ModelError for an adapter whose rotary positions were stretched in training, and here are not, or so."""
    if (place / CONFIG).is_file() and rope.differ(read_config(place), of_base):
        raise _refusal(name, place, "was trained at rotary positions that are stretched otherwise than the base's")


def _say_bits(name: str, place: Path, base: str) -> None:
    """Warn of an adapter whose base was held in few bits in training, and here is as it is stored."""
    if (place / quantised.CONFIG).is_file():
        method = json.loads((place / quantised.CONFIG).read_text(encoding="utf-8"))["quant_method"]
        log.warning(
            "the adapter %s was trained with its base held in %s, and answers here with %s as it is stored: alone it "
            "answers as it was trained, and tunesmith export type=merged says what that makes of answers",
            name,
            method,
            base,
        )


def _written(model: Any, tokenizer: "PreTrainedTokenizerBase", place: Path) -> Written:
    """How an adapter's answers are written: as training left it in its folder. Raises ModelError."""
    from transformers import GenerationConfig

    config, rows = model.generation_config, num_rows(model)
    if (place / "generation_config.json").is_file():
        config = GenerationConfig.from_pretrained(str(place))
    if (place / "tokenizer_config.json").is_file():
        tokenizer = load_tokenizer(Model(path=str(place), tokenizer=str(place)))
        if len(tokenizer) > rows:
            raise ModelError(
                f"the tokenizer of {place} has {len(tokenizer)} tokens, and the model {rows}: it is another's"
            )
    return Written(tokenizer, ends_of(config, tokenizer.eos_token_id))


def _refuse_layers(model: Any, names: Mapping[str, str]) -> None:
    from peft.tuners.lora import LoraLayer, ParamWrapper

    back = {number: name for name, number in names.items()}
    for module in model.modules():
        if isinstance(module, LoraLayer):
            odd = {*module.lora_embedding_A, *module.lora_variant}
            odd |= {one for one, down in module.lora_A.items() if not isinstance(down, torch.nn.Linear)}
            odd |= {*module.lora_A} if isinstance(module, ParamWrapper) else set()
            for one in sorted(odd):
                layer = type(module.get_base_layer()).__name__
                raise _refusal(back[one], None, f"has a part on a layer {layer} that is no plain product")


def _refusal(name: str, place: Path | None, what: str) -> ModelError:
    return ModelError(
        f"the adapter {name}{'' if place is None else f' of {place}'} {what}, and adapters are answered with beside "
        "each other as plain LoRA of linear layers: answer with it alone, or merge it with tunesmith export"
    )
