"""What goes with a run beside its steps (`seams.Companion`): called after each, saved and loaded with checkpoints."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from tunesmith.seams import Companion

FILE = "companions.safetensors"


class Accompanied(TrainerCallback):
    """Tells companions of every optimizer step."""

    def __init__(self, companions: Sequence[Companion]) -> None:
        self.companions = companions

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Before the update, with clipped gradients."""
        for one in self.companions:
            one.stepping(state.global_step + 1)

    def on_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """After the update, before gradients are dropped; transformers counts the step later."""
        for one in self.companions:
            one.stepped(state.global_step + 1)


@contextmanager
def settled(companions: Sequence[Companion]) -> Iterator[None]:
    """A block in which the model has the weights that it is evaluated with, and ends a run with.

    The adapter's own, which is the first, has the last word: a mean of weights has what the adapter has dropped.
    """
    with ExitStack() as stack:
        for one in reversed(companions):
            stack.enter_context(one.settled())
        yield


def written(companions: Sequence[Companion], folder: Path) -> list[str]:
    """What companions have to say at the end of a run, after they wrote what they have into its folder."""
    return [line for one in companions for line in one.write(folder)]


def save(companions: Sequence[Companion], folder: Path) -> None:
    """Write what companions keep, where there are any."""
    states = {f"{number}.{name}": one for number, each in enumerate(companions) for name, one in each.state().items()}
    if states:
        save_file({name: tensor.contiguous().clone() for name, tensor in states.items()}, folder / FILE)


def load(companions: Sequence[Companion], folder: Path) -> None:
    """Have companions take up what `save` wrote."""
    if (folder / FILE).is_file():
        states = load_file(folder / FILE)
        for number, each in enumerate(companions):
            own = f"{number}."
            each.load({name.removeprefix(own): one for name, one in states.items() if name.startswith(own)})
