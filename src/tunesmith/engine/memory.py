"""How much memory a step needs, the row that fits, and what to do when memory ran out.

What a forward and a backward pass hold grows by a fixed number of bytes a token, as packed attention makes no T×T
mask: two short rows measure it. Letters: T tokens of a row.
"""

import contextlib
import traceback
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tunesmith.component import name_of
from tunesmith.data.batch import join
from tunesmith.engine.compat import DispatchMode
from tunesmith.engine.device import COUNTED, free_memory_bytes, held_memory_bytes
from tunesmith.engine.model import base_of, num_rows
from tunesmith.engine.pool import POOL
from tunesmith.engine.scores import Scorer
from tunesmith.engine.values import ValueScorer
from tunesmith.errors import RecipeError, RunError
from tunesmith.recipe import Recipe
from tunesmith.types import Batch, Scores
from tunesmith.way_on import way_on

TRIAL_TOKENS = (256, 512)  # of the two rows that are measured
MOST_TOKENS = 16_384  # of a row that is chosen here: a longer one makes fewer steps of the same data
STEP = 256
MARGIN = 0.9  # of what is free: allocators leave gaps, and kernels want room of their own
LESS_STATE = {  # what is near an optimizer and keeps less, by its name
    "adamw": "adamw8bit keeps a quarter of the state",
    "ademamix": "adamw8bit keeps a sixth of the state",
    "schedule_free": "adamw8bit keeps a quarter of the state",
    "adam_mini": "adamw8bit keeps half of the state",
    "sgd": "lomo keeps no state",
}
OUT_OF_MEMORY = ("not enough memory: you tried to allocate", "DefaultCPUAllocator")  # in torch's errors on a CPU


class LiveTensors(DispatchMode):
    """Counts the bytes of the tensors that come to life in a block and have not died: `live` now, `peak` at most."""

    def __init__(self) -> None:
        super().__init__()
        self.live = self.peak = 0
        self._seen: dict[int, weakref.ref[Any]] = {}

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operation, and count the storages of its outputs that are new."""
        inputs = {_address(tensor) for tensor in _tensors([args, *(kwargs or {}).values()])}
        outputs = function(*args, **(kwargs or {}))
        for tensor in _tensors([outputs]):
            storage, address = tensor.untyped_storage(), _address(tensor)
            if storage.nbytes() and address not in inputs and address not in self._seen:
                self._seen[address] = weakref.ref(storage, self._gone(address, storage.nbytes()))
                self.live += storage.nbytes()
        self.peak = max(self.peak, self.live)
        return outputs

    def _gone(self, address: int, size: int) -> Callable[[Any], None]:
        def gone(reference: Any) -> None:
            del self._seen[address]
            self.live -= size

        return gone


def _address(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def _tensors(values: Any) -> Iterator[torch.Tensor]:
    for value in values:
        if isinstance(value, torch.Tensor):
            yield value
        elif isinstance(value, list | tuple):
            yield from _tensors(value)


def choose_row(model: Any, scorer: Scorer | ValueScorer, recipe: Recipe) -> int:
    """What `train.row_tokens: auto` is: the largest row that fits, from data.max_tokens to MOST_TOKENS.

    Raises:
        RecipeError: as `fitting_row`, or not even the longest sample fits.
    """
    least = _least(recipe)
    found = min(fitting_row(model, scorer, recipe, state_bytes(model, recipe)), max(MOST_TOKENS, least))
    if found < least:
        raise RecipeError(
            f"train.row_tokens=auto: rows of {found:,} tokens fit in memory, and data.max_tokens is {least:,}. "
            f"{advice(recipe, None)}"
        )
    return found


def _least(recipe: Recipe) -> int:
    """The tokens that a row must hold: the longest sample's, where samples are never split."""
    return STEP if type(recipe.objective).documents else recipe.data.max_tokens


def fitting_row(model: Any, scorer: Scorer | ValueScorer, recipe: Recipe, reserved_bytes: int) -> int:
    """The tokens of the largest packed row that fits in what is free now, as two short rows measure it.

    It counts `per_device_train_batch_size` rows, the gradients, and what is reserved for the optimizer's state, under
    the autocast it is called in. Gradients are dropped, and the model is left as it was otherwise.

    Raises:
        RecipeError: memory does not grow in proportion to the row (the model runs its own attention).
    """
    if not scorer.packed:
        raise RecipeError(
            f"train.row_tokens=auto: {type(base_of(model)).__name__} runs its own attention, whose memory grows faster "
            "than the row: set a number"
        )
    few, many = TRIAL_TOKENS
    with _as_in_training(model, recipe.train.release_gradients) as kind:
        _peak_bytes(model, scorer, recipe, few)  # what is made once: autocast's copies, workspaces
        low, high = (_peak_bytes(model, scorer, recipe, tokens) for tokens in TRIAL_TOKENS)
        POOL.forget()
        room = MARGIN * free_memory_bytes(kind) - reserved_bytes
    by_token = (high - low) / (many - few)
    fixed = low - few * by_token
    tokens = (room - fixed) / by_token / recipe.train.per_device_train_batch_size
    return max(0, int(tokens) // STEP * STEP)


def state_bytes(model: Any, recipe: Recipe) -> int:
    """What the optimizer keeps of the trained weights once it has made a step."""
    from tunesmith.optimizers._groups import head_dim

    return recipe.optimizer.state_bytes(model.named_parameters(), head_dim(base_of(model)))


@contextlib.contextmanager
def _as_in_training(model: Any, releases: bool) -> Iterator[str]:
    """The model in training mode, and random generators that nobody else sees; gives the device's type."""
    device = next(model.parameters()).device
    counted = device.type in COUNTED
    was_training = model.training
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    hooks = [one.register_post_accumulate_grad_hook(_drop) for one in trained if releases]
    generators = torch.random.fork_rng(
        [device.index] if counted else [], device_type=device.type if counted else "cuda"
    )
    model.train()
    try:
        with generators:
            yield device.type
    finally:
        model.train(was_training)
        for hook in hooks:
            hook.remove()
        for parameter in trained:
            parameter.grad = None


def _drop(parameter: torch.Tensor) -> None:
    parameter.grad = None


def _peak_bytes(model: Any, scorer: Scorer | ValueScorer, recipe: Recipe, tokens: int) -> int:
    """The most that a forward and a backward pass of a random row hold beside what is held before."""
    batch = random_batch(model, recipe.data.max_tokens, tokens)
    how: dict[str, Any] = {"likelihood": recipe.objective.is_likelihood(), "reads": recipe.objective.reads()}
    for parameter in model.parameters():
        parameter.grad = None
    if batch.input_ids.device.type not in COUNTED:
        POOL.forget()  # what a row of another length used is no part of this one's
        with LiveTensors() as held:
            _summed(scorer(model, batch, **how)).backward()
        return held.peak
    before = torch.accelerator.memory_allocated()
    torch.accelerator.reset_peak_memory_stats()
    _summed(scorer(model, batch, **how)).backward()
    return torch.accelerator.max_memory_allocated() - before


def _summed(scores: Scores) -> torch.Tensor:
    """All that a loss can be made of, so that the gradient of each is."""
    first = scores.logps if scores.values is None else scores.values
    rest = (scores.entropy, scores.lead, scores.normaliser)
    return sum((one.sum() for one in rest if one is not None), first.sum())


def random_batch(model: Any, longest: int, tokens: int) -> Batch:
    """A packed row of random tokens in sequences as long as samples can be, every one asked that has a next."""
    lengths = [min(longest, tokens - start) for start in range(0, tokens, longest)]
    ids = np.random.default_rng(0).integers(0, num_rows(model), tokens)
    weight = np.ones(tokens, np.float32)
    weight[np.cumsum(lengths) - 1] = 0
    row: dict[str, np.ndarray] = {
        "input_ids": ids,
        "target": np.roll(ids, -1),
        "weight": weight,
        "lengths": np.asarray(lengths),
        "prefix": np.zeros((len(lengths), 2), np.int64),
        "label": np.full(len(lengths), np.nan, np.float32),
        "branch": np.zeros(len(lengths), np.int64),
    }
    device = next(model.parameters()).device
    fields = join([row])
    on_device = {name: one.to(device) for name, one in fields.items() if isinstance(one, torch.Tensor)}
    return Batch(**fields | on_device)


def ran_out(error: BaseException) -> bool:
    """Whether an error says that there is no memory left."""
    said = str(error)
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or (
        isinstance(error, RuntimeError) and any(text in said for text in OUT_OF_MEMORY)
    )


@contextlib.contextmanager
def explained(place: Callable[[], str], fitting: Callable[[], int], folder: Path, recipe: Recipe) -> Iterator[None]:
    """A block of a run in which memory may run out.

    `place` says where it did; `fitting` measures, when the tensors of the failed step are gone, the row that would
    have fitted.

    Raises:
        RunError: it did; in one line where, what was held, what would fit and how to go on.
    """
    try:
        yield
        return
    except (RuntimeError, MemoryError) as error:
        if not ran_out(error):
            raise
        held, where = held_memory_bytes(str(recipe.train.device)), place()
        traceback.clear_frames(error.__traceback__)  # they hold the tensors of the step
    change = "" if recipe.train.activation_checkpointing is True else f"set the first in {folder}/recipe.yaml and "
    raise RunError(
        f"memory ran out {where}, with {held / 1e9:.2f} GB held. {advice(recipe, _measured(fitting))}. Checkpoints "
        f"from before are kept: {change}go on with: {way_on(folder)}"
    )


def _measured(fitting: Callable[[], int]) -> int | None:
    """A measure, or None where there is none: the model's memory is not proportional, or not even the trial fits."""
    try:
        return fitting()
    except RecipeError:
        return None
    except (RuntimeError, MemoryError) as error:
        if not ran_out(error):
            raise
        return None


def advice(recipe: Recipe, row_tokens: int | None) -> str:
    """What would fit where a run did not, what changes it least first; a sentence without its end.

    `row_tokens` is the largest row that is known or predicted to fit; None: that is not known.
    """
    train, said = recipe.train, []
    if train.activation_checkpointing is not True:
        said.append("train.activation_checkpointing=true computes the same with less")
    if row_tokens is not None and row_tokens >= _least(recipe):
        said.append(f"train.row_tokens={row_tokens} fits by a trial")
    elif train.per_device_train_batch_size > 1:
        said.append("train.per_device_train_batch_size=1 takes one row at a time")
    else:
        said.append(f"a lower data.max_tokens (now {recipe.data.max_tokens}) lets rows be shorter")
    smaller = LESS_STATE.get(name_of(recipe.optimizer))
    if smaller is not None:
        said.append(f"optimizer={smaller}")
    if "r" in type(recipe.adapter).model_fields:
        said.append("a lower adapter.r trains fewer weights")
    elif not type(recipe.adapter).beside:
        said.append("adapter=lora trains few weights")
    return "What would take less: " + "; ".join(said)
