"""Train new blocks between the model's own, which stay as they are (arXiv 2401.02415)."""

import copy
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import Field

from tunesmith.errors import RecipeError
from tunesmith.seams import Adapter, Objective

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

    from tunesmith.component import Component

# What writes a block's part into the residual stream, as families call it; a part of theirs that is 0 adds nothing.
WRITING = ("o_proj", "out_proj", "down_proj", "dense", "dense_4h_to_h", "c_proj", "wo", "w2", "fc2", "output_linear")


class LlamaPro(Adapter):
    """Block expansion: copies of decoder blocks that add nothing at first are put evenly between them and trained.

    The model is saved whole, as an ordinary one with more layers.
    """

    learning_rate: ClassVar[float] = 2e-4  # of the paper
    beside: ClassVar[bool] = False

    def refuses(self, other: "Component") -> str | None:
        """An objective of two sides: there are two lists of blocks."""
        if isinstance(other, Objective) and type(other).encodes:
            return "llama_pro adds blocks to a decoder alone, and this objective trains an encoder too: adapter=lora"
        return None

    num_new_layers: Annotated[int, Field(gt=0)] = 2
    """Blocks to add, each a copy of the one before it; at most as many as there are."""

    def apply(self, model: "PreTrainedModel") -> "PreTrainedModel":
        """The model with more blocks, of which the new ones alone require gradients; it says what it said before.

        Raises RecipeError when its blocks cannot be copied so.
        """
        import torch

        config, layers = model.config.get_text_config(), _layers_of(model)
        if self.num_new_layers > len(layers):
            raise RecipeError(
                f"adapter.num_new_layers: the model has {len(layers)} blocks to copy (it was {self.num_new_layers})"
            )
        before = _said(model)
        sources, copies = plan(len(layers), self.num_new_layers)
        shared = {id(one): one for one in (model.config, config)}  # by it attention is chosen, in all blocks at once
        blocks = [
            copy.deepcopy(layers[one], dict(shared)) if at in copies else layers[one] for at, one in enumerate(sources)
        ]
        added = [blocks[at] for at in sorted(copies)]
        for block in added:
            _silence(block)
        for at, block in enumerate(blocks):
            _number(block, sources[at], at)
        del layers[:]
        layers.extend(blocks)
        _lengthen(config, sources)
        after = _said(model)
        same = before is None or after is None or torch.equal(before, after)
        if not (_is_ordinary(model) and same):
            raise RecipeError(
                f"adapter: blocks of {type(model).__name__} cannot be copied without a change of what it says, or not "
                "be written as a model with more of them: choose adapter=lora or freeze"
            )
        return _with_trained(model, added)


def plan(layers: int, new: int) -> tuple[list[int], set[int]]:
    """The block that each block of the expanded model is (a copy of), and which of them are the copies.

    A copy stands behind the last block of each of `new` groups, which are as equal as can be.
    """
    ends = {(number + 1) * layers // new - 1 for number in range(new)}
    sources: list[int] = []
    copies = set()
    for layer in range(layers):
        sources.append(layer)
        if layer in ends:
            copies.add(len(sources))
            sources.append(layer)
    return sources, copies


def _layers_of(model: Any) -> Any:
    """The list of a decoder's blocks. Raises RecipeError where there is none."""
    import torch

    wanted = model.config.get_text_config().num_hidden_layers
    lists = [one for one in model.modules() if isinstance(one, torch.nn.ModuleList) and len(one) == wanted]
    if model.config.is_encoder_decoder or len(lists) != 1:
        raise RecipeError(
            f"adapter: {type(model).__name__} is no decoder with one list of {wanted} blocks, and llama_pro adds some "
            "to it: choose adapter=lora or freeze"
        )
    return lists[0]


def _said(model: Any) -> "torch.Tensor | None":
    """What a model says of a few tokens; None of shapes alone, as a plan has them."""
    import torch

    if model.device.type == "meta":
        return None
    was_training = model.training
    model.eval()
    with torch.no_grad():
        found = model(input_ids=torch.arange(8, device=model.device)[None], use_cache=False).logits
    model.train(was_training)
    return found


def _silence(block: Any) -> None:
    """Have a block add nothing to what goes through it."""
    import torch

    for name, parameter in block.named_parameters():
        if any(part in WRITING for part in name.split(".")):
            torch.nn.init.zeros_(parameter)


def _number(block: Any, before: int, place: int) -> None:
    """Tell the parts of a block at which place it stands now, by which they find their keys in a cache."""
    for part in block.modules():
        for name, value in list(vars(part).items()):
            if name in ("layer_idx", "layer_index", "layer_id", "layer_number") and value == before:
                setattr(part, name, place)


def _lengthen(config: Any, sources: list[int]) -> None:
    """Make a config one of the expanded model: its number of blocks, and what it lists for each of them."""
    layers = config.num_hidden_layers
    said = {name: value for name, value in config.to_dict().items() if isinstance(value, list) and len(value) == layers}
    config.num_hidden_layers = len(sources)
    for name, value in said.items():
        setattr(config, name, [value[source] for source in sources])


def _is_ordinary(model: Any) -> bool:
    """Whether transformers makes a model with the same weights of the config."""
    import torch

    with torch.device("meta"):
        made = type(model)(copy.deepcopy(model.config))
    shapes = ({name: one.shape for name, one in each.state_dict().items()} for each in (made, model))
    return next(shapes) == next(shapes)


def _with_trained(model: Any, added: "list[torch.nn.Module]") -> "PreTrainedModel":
    """The model with the added blocks requiring gradients, and a head for classes or a reward."""
    from tunesmith.engine.model import has_words, heads_of

    model.requires_grad_(False)
    heads = [] if has_words(model) else [model.get_submodule(name) for name in heads_of(model)]
    for module in (*added, *heads):
        module.requires_grad_(True)
    return model
