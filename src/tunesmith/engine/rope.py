"""Rotary positions that reach further: what of a model's config says how, and how long its context is then.

transformers computes the frequencies when a model is built, from `rope_parameters`, so a config that says them is all
that a run, an export or another program needs.
"""

from typing import Any

from tunesmith.errors import ModelError, RecipeError
from tunesmith.recipe_parallel import BY_LONGEST
from tunesmith.recipe_rope import RopeScaling

SCALED = ("linear", "dynamic", "yarn", "llama3", "longrope")
FULL = "full_attention"  # of configs that say rotary positions by kind of layer: those without a window
OURS = {*RopeScaling.model_fields, "type", "mscale", "mscale_all_dim", "truncate"}  # what another scaling replaces
SAID = ("rope_parameters", "original_max_position_embeddings", "max_position_embeddings")  # where a config does
DEFAULTS = {"llama3": {"low_freq_factor": 1.0, "high_freq_factor": 4.0}}  # which transformers wants said


def scale(config: Any, said: RopeScaling) -> None:
    """Write a scaling into a model's config. Layers with a window keep their positions.

    Raises:
        ModelError: the model has no rotary positions.
        RecipeError: the options do not go with the model.
    """
    if said.rope_type is None:
        return
    text = config.get_text_config()
    before = _parameters(text)
    if not before:
        raise ModelError(
            f"model.rope_scaling stretches rotary positions, and a {text.model_type} model has none: leave it out"
        )
    original = said.original_max_position_embeddings or _original(text, before)
    kept = {name: value for name, value in before.items() if name not in OURS}
    _put(text, kept | _written(said, original, _pairs(text, kept)))
    if hasattr(text, "original_max_position_embeddings"):  # of Phi-3, whose own field outweighs the parameters'
        text.original_max_position_embeddings = original
    reached = original if said.rope_type == "dynamic" else round(original * (said.factor or 1))
    text.max_position_embeddings = reached  # from which dynamic counts on, and where the others end


def _written(said: RopeScaling, original: int, pairs: int) -> dict[str, Any]:
    """A scaling as transformers reads it, for heads of which so many pairs of dimensions turn."""
    own: dict[str, Any] = dict(DEFAULTS.get(str(said.rope_type), {}))
    own |= {"short_factor": (1.0,) * pairs} if said.rope_type == "longrope" else {}
    own |= said.model_dump(exclude_none=True) | {"original_max_position_embeddings": original}
    for name in ("short_factor", "long_factor"):
        if len(own.get(name, ())) not in (0, pairs):
            raise RecipeError(
                f"model.rope_scaling.{name} has {len(own[name])} numbers, and a head of this model turns {pairs} pairs "
                "of dimensions: say one for each"
            )
    if said.rope_type in ("linear", "dynamic"):
        del own["original_max_position_embeddings"]
    return {name: list(value) if isinstance(value, tuple) else value for name, value in own.items()}


def take(config: Any, stored: Any) -> None:
    """Give a config the rotary positions of another one of the same model."""
    text, other = config.get_text_config(), stored.get_text_config()
    for name in SAID:
        if hasattr(other, name):
            setattr(text, name, getattr(other, name))


def is_scaled(config: Any) -> bool:
    """Whether a model's rotary positions are stretched, by this run or before."""
    return (_parameters(config.get_text_config()) or {}).get("rope_type") in SCALED


def differ(config: Any, other: Any) -> bool:
    """Whether the positions of one of two configs of a model are stretched, and not so in the other."""
    texts = (config.get_text_config(), other.get_text_config())
    of_each = [[getattr(text, name, None) for name in SAID] for text in texts]
    return (is_scaled(config) or is_scaled(other)) and of_each[0] != of_each[1]


def by_longest(config: Any) -> bool:
    """Whether the longest sequence of a row decides how far all of its positions turn."""
    return (_parameters(config.get_text_config()) or {}).get("rope_type") in BY_LONGEST


def context_of(config: Any) -> int | None:
    """The longest sequence that a model is made for, in tokens; None where its config does not say."""
    text = config.get_text_config()
    limit = getattr(text, "max_position_embeddings", None)
    parameters = _parameters(text) or {}
    if limit is not None and parameters.get("rope_type") == "dynamic":
        return round(limit * parameters["factor"])
    return limit


def turns(config: Any) -> bool:
    """Whether places are told by rotary positions, of which there is no last one."""
    return bool(_parameters(config.get_text_config()))


def said(config: Any) -> list[str]:
    """What a run says of a scaled model at its start."""
    parameters = _parameters(config.get_text_config()) or {}
    kind = parameters["rope_type"]
    lines = [f"positions: {kind}, factor {parameters['factor']:g}, for {context_of(config):,} tokens"]
    if kind == "longrope":
        lines.append("positions: a packed row is read as its longest sequence is, so short ones beside it too")
    return lines


def refuse_longer(config: Any, longest: int) -> None:
    """Raise RecipeError where longer rows change how later ones are computed, so that no run could go on exactly."""
    text = config.get_text_config()
    if (_parameters(text) or {}).get("rope_type") == "dynamic" and longest > text.max_position_embeddings:
        raise RecipeError(
            f"model.rope_scaling.rope_type=dynamic computes by the longest sequence so far, so a run on {longest:,} "
            f"tokens could not be repeated: set data.max_tokens={text.max_position_embeddings}, or choose yarn"
        )


def _parameters(text: Any) -> dict[str, Any] | None:
    """The rotary parameters of the layers without a window; None of a model that has none."""
    found = getattr(text, "rope_parameters", None)
    if found and text.nested_rope_parameter_keys(found):
        return found.get(FULL)
    return found


def _put(text: Any, parameters: dict[str, Any]) -> None:
    nested = text.nested_rope_parameter_keys(text.rope_parameters)
    text.rope_parameters = {**text.rope_parameters, FULL: parameters} if nested else parameters


def _original(text: Any, parameters: dict[str, Any]) -> int:
    """The tokens that a model was made for before it was scaled."""
    if "original_max_position_embeddings" in parameters:
        return int(parameters["original_max_position_embeddings"])
    if parameters.get("rope_type") in ("linear", "dynamic"):  # some configs say the new length, and some the old one
        raise RecipeError(
            f"model.rope_scaling.original_max_position_embeddings: the model is scaled already "
            f"({parameters['rope_type']}, factor {parameters['factor']:g}), so say what it was made for"
        )
    return int(text.max_position_embeddings)


def _pairs(text: Any, parameters: dict[str, Any]) -> int:
    """The pairs of dimensions of a head that turn with the position."""
    size = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    return int(size * parameters.get("partial_rotary_factor", 1.0)) // 2
