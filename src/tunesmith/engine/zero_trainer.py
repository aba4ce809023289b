"""The trainer whose steps DeepSpeed makes, with our checkpoints in place of its own.

transformers and accelerate drive DeepSpeed themselves, but not on a CPU, and only by an engine that they make of a
model inside of the loop (accelerate 1.15). So what is overridden here, beside what `Trainer` does:

- `_prepare_for_training`: DeepSpeed is there already.
- `training_step`: its backward pass.
- `_clip_grad_norm`, `_get_grad_norm`: its step, which clips, and knows the norm afterwards.

It hands the recipe's optimizer flat pieces of weights in float32, so that what is saved and loaded are pieces, or is
put together of them.
"""

import copy
import shlex
import shutil
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any

import torch

from tunesmith.engine import checkpoint as checkpoints
from tunesmith.engine import companions, flat_parts, ranks, shared_out, shares, zero
from tunesmith.engine.compat import complete_gradients, place_in_flat, read_in, short_file
from tunesmith.engine.flat_parts import WEIGHT, Piece, Place
from tunesmith.engine.joint import Share
from tunesmith.engine.model import is_adapted
from tunesmith.engine.saving import Writer
from tunesmith.engine.trainer import Pairs, Trainer
from tunesmith.errors import RunError
from tunesmith.types import Batch, LossSum, Scores


class ZeroTrainer(Trainer):
    """Trains with DeepSpeed's ZeRO, which was put around the model when that was adapted (`zero.begin`)."""

    def __init__(self, begun: zero.Begun, *options: Any) -> None:
        self.engine, self.trained, self.groups, self.swap = begun
        super().__init__(*options)
        self.engine.module.scorer = self.scorer
        through: Any = zero.EngineScorer(self.engine)
        self.scorer = through

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        """The recipe's optimizer, which is in DeepSpeed's already."""
        if self.optimizer is None:
            from accelerate.utils import DeepSpeedOptimizerWrapper  # there with DeepSpeed alone

            self.optimizer, self.released = DeepSpeedOptimizerWrapper(self.engine.optimizer), None
            self.accompany(self.optimizer)
        return self.optimizer

    def _prepare_for_training(self, max_steps: int, train_dataloader: Any, resume_from_checkpoint: Any) -> Any:
        self.create_optimizer()
        self.create_scheduler(num_training_steps=max_steps)
        self.model_wrapped = self.engine.module  # transformers would ask the engine not to share gradients out
        if resume_from_checkpoint is not None:
            self._load_optimizer_and_scheduler(resume_from_checkpoint)
        for name in ("model", "optimizer", "lr_scheduler"):
            setattr(self.callback_handler, name, getattr(self, name))
        self.callback_handler.train_dataloader = train_dataloader
        return self.model_wrapped, train_dataloader

    def training_step(self, model: Any, inputs: Any, num_items_in_batch: Any = None) -> torch.Tensor:
        """A micro-batch, whose gradients DeepSpeed adds up, and shares out after the last one of a step."""
        model.train()
        loss = self.compute_loss(model, self._prepare_inputs(inputs), num_items_in_batch=num_items_in_batch)
        self.engine.set_gradient_accumulation_boundary(self.accelerator.sync_gradients)
        self.engine.backward(loss, scale_wrt_gas=False)
        detached: torch.Tensor = loss.detach()
        return detached

    def _clip_grad_norm(self, model: Any) -> None:
        return None

    def _get_grad_norm(self, model: Any, grad_norm: Any = None) -> float:
        if self.swap is not None:
            complete_gradients(self.engine.optimizer)
        self.engine.step()
        if self.swap is not None:
            self._refuse_short()
        return float(self.engine.get_global_grad_norm())

    def measured(self, model: Any, batch: Batch, share: Share | None = None) -> tuple[LossSum, Pairs, Scores]:
        """The same; the model itself is what a reference is made of, since the scorer knows DeepSpeed."""
        return super().measured(self.model, batch, share)

    def _shares_of(self, batches: Sequence[Batch], model: Any) -> list[Share]:
        return super()._shares_of(batches, self.model)

    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: Any = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """The same, after which no weights are on their way to a pass that does not come."""
        found = super().evaluate(eval_dataset, ignore_keys, metric_key_prefix)
        zero.rest(self.engine)
        return found

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        if is_adapted(self.model):
            shared_out.gather(self.trained)
        super()._save_checkpoint(self.model, trial)

    def each_saves(self, model: Any) -> bool:
        """Every process has pieces."""
        return True

    def staged(self, model: Any) -> Writer:
        """The pieces of this process: of the optimizer's state, and of weights that it has in more digits."""
        own = {id(one): name for name, one in model.named_parameters()}
        kinds = {own[id(one)]: one.dtype for one in self.trained} if self.has_own_in_parts() else {}
        if self.swap is None:
            return partial(_saved, flat_parts.copied(self.pieces()), kinds)
        groups = [place and place.group for place in self.places()]
        written = [
            flat_parts.save(flat_parts.copied(ones), self.swap, ranks.own(), part=f"-{group}")
            for group, ones in groupby(self.pieces(), lambda one: groups[one.number])
        ]
        return partial(_moved, written, kinds)

    def write_weights(self, model: Any, folder: Path) -> None:
        """Write the weights; where they lie in pieces, what model these are of."""
        if self.has_own_in_parts():
            shares.describe(model, folder, flat_parts.FOLDER)
        else:
            super().write_weights(model, folder)

    def has_own_in_parts(self) -> bool:
        """Whether trained weights of the model's own lie in parts; what an adapter adds is gathered to be saved."""
        return not is_adapted(self.model) and any(map(shared_out.is_parted, self.trained))

    def pieces(self) -> Iterator[Piece]:
        """What of the weights and of the optimizer's state is here."""
        for index, place in self.here(enumerate(self.places())):
            if self.trained[index].dtype != torch.float32 or self.has_own_in_parts():
                yield Piece(index, WEIGHT, place.start, place.of(place.flat))
            for name, state in self.states_of(place.flat).items():
                if _is_flat(state):
                    yield Piece(index, name, place.start, place.of(state))

    def here(self, found: Iterable[tuple[Any, Place | None]], write: bool = False) -> Iterator[tuple[Any, Place]]:
        """Things of parameters that have a place here, one after the other, while the memory has what is kept of them.

        `write` is of those that are changed.
        """
        placed = ((one, place) for one, place in found if place is not None)
        for group, ones in groupby(placed, lambda one: one[1].group):
            with read_in(self.engine.optimizer, group, write):
                yield from ones

    def places(self) -> list[Place | None]:
        """Where each trained parameter's piece lies in what the optimizer has; None: others have all of it."""
        return [place_in_flat(one, self.engine.optimizer, ranks.own()) for one in self.trained]

    def states_of(self, flat: torch.Tensor) -> dict[str, Any]:
        """What the recipe's optimizer keeps of what DeepSpeed gave it."""
        found: dict[str, Any] = self.engine.optimizer.optimizer.state[flat]
        return found

    def state_of_optimizer(self) -> dict[str, Any]:
        """Its groups as they are now, and what is no piece: counts of steps, the same for all parameters of a group."""
        now: Any = self.optimizer
        groups = [
            {name: value for name, value in group.items() if name in before} | {"params": before["params"]}
            for before, group in zip(self.groups, now.param_groups, strict=True)
        ]
        flats = [place.flat for place in self.places() if place is not None]
        counts = {name: one for name, one in self.states_of(flats[0]).items() if not _is_flat(one)} if flats else {}
        state = {index: copy.deepcopy(counts) for index in range(len(self.trained))}
        return {"state": state, "param_groups": groups}

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        zero.rest(self.engine)
        super()._load_from_checkpoint(resume_from_checkpoint, model)
        places = self.places()
        for one, place in self.here(zip(self.trained, places, strict=True), write=True):
            piece = one.ds_tensor if shared_out.is_parted(one) else one.detach().flatten()[place.start :]
            place.of(place.flat).copy_(piece[: place.length])
        weights = flat_parts.whole(self.trained, Path(resume_from_checkpoint), WEIGHT)
        for value, place in self.here(((value, places[index]) for index, _, value in weights), write=True):
            place.put(value, place.flat)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is None:
            return
        folder = Path(checkpoint)
        for (name, value), place in self.here(self._flat_states(folder), write=True):
            place.put(value, self.states_of(place.flat).setdefault(name, torch.zeros_like(place.flat)))
        if self.swap is not None:
            self._refuse_short()
        now: Any = self.optimizer
        checkpoints.load_course(folder, now.param_groups, self.lr_scheduler)
        companions.load(self.companions, folder)

    def _flat_states(self, folder: Path) -> Iterator[tuple[tuple[str, torch.Tensor], Place | None]]:
        """What a checkpoint has of the optimizer's state for each weight; what counts for all of one is taken up."""
        places = self.places()
        for index, name, value in checkpoints.states(folder, self.trained):
            place = places[index]
            if _is_flat(value):
                yield (name, value), place
            elif place is not None:
                self.states_of(place.flat)[name] = value

    def _refuse_short(self) -> None:
        """Raise RunError where the disk had no room for files of state."""
        path = short_file(self.engine.optimizer)
        if path is not None:
            raise RunError(
                f"parallel.nvme_path: {path} is shorter than what was written: its disk is full. Make room, then go on "
                f"with: tunesmith train {shlex.quote(str(self.args.output_dir))}"
            )


def _saved(pieces: list[Piece], kinds: dict[str, torch.dtype], folder: Path, group: Any) -> None:
    """Write pieces that the memory has."""
    flat_parts.save(pieces, folder, ranks.own(), kinds)


def _moved(written: list[Path], kinds: dict[str, torch.dtype], folder: Path, group: Any) -> None:
    """Move the pieces that were written beside files of state, of which the memory has a part at a time."""
    flat_parts.save([], folder, ranks.own(), kinds)
    for path in written:
        shutil.move(path, folder / flat_parts.FOLDER / path.name)


def _is_flat(state: Any) -> bool:
    return torch.is_tensor(state) and state.ndim > 0
