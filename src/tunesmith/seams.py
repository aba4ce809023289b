"""What a user can add, and the one method each must have."""

import re
from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import Field, field_validator

from tunesmith.component import Component, name_of
from tunesmith.errors import DataError, RecipeError, RunError
from tunesmith.types import Batch, Divergence, Head, Label, LossSum, Message, Report, Sample, Scores

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from tunesmith.generate.subject import Subject


class Format(Component):
    """Reads one row of a dataset."""

    seam: ClassVar[str] = "formats"
    default: ClassVar[str] = "auto"
    required: ClassVar[tuple[str, ...]] = ()  # columns without which a row is not of this format
    judges: ClassVar[bool] = False  # the label of a sample says whether its answer is good (1) or bad (0)
    of_words: ClassVar[bool] = False  # each word of a sample has a class of its own

    @classmethod
    def fits(cls, row: Mapping[str, Any]) -> bool:
        """Whether a row looks like one of this format; `auto` takes the fitting one with the most required columns."""
        return row.keys() >= set(cls.required)

    def branches(self) -> tuple[str, ...]:
        """What the branches of every sample are, by the names that objectives use.

        Where they are compared, a sample may have more, each worse than the one before.
        """
        return ("answer",)

    def labels(self) -> bool:
        """Whether every sample has a label."""
        return False

    def class_names(self) -> tuple[str, ...]:
        """The names of the classes that labels are numbers of, in the order of the numbers; () where none is named."""
        return ()

    @abstractmethod
    def read(self, row: Mapping[str, Any]) -> Sample:
        """The sample that a row holds. Raises DataError that names the missing or wrong column."""

    def write(self, sample: Sample) -> dict[str, Any]:
        """The row that `read` makes this sample of. Raises DataError when the format cannot hold it."""
        raise DataError(f"the format {name_of(self)} can be read and not written: convert to messages or alpaca")


@dataclass(frozen=True, slots=True)
class Written:
    """A conversation as text, and its trained turns: a span of characters (start, end, weight) for each, in order."""

    text: str
    spans: tuple[tuple[int, int, float], ...]


class Template(Component):
    """Writes a conversation as text, and says which of it is trained.

    Tokenising the text once and placing the spans on the tokens is done in one place for all (`data/render.py`).
    """

    seam: ClassVar[str] = "templates"
    default: ClassVar[str] = "jinja"

    @classmethod
    def aliases(cls) -> dict[str, dict[str, Any]]:
        """The named families, each a data file of `templates/families`: `chatml` is a family of that name."""
        files = (Path(__file__).parent / "templates" / "families").glob("*.yaml")
        return {name: {"type": "family", "name": name} for name in sorted(path.stem for path in files)}

    @abstractmethod
    def prepare(self, tokenizer: "PreTrainedTokenizerBase") -> "PreTrainedTokenizerBase":
        """The tokenizer that writes as this template does, so that chat and serving do the same."""

    def divide(self, messages: tuple[Message, ...]) -> tuple[tuple[Message, ...], ...]:
        """The conversations that a conversation is trained as: itself, unless earlier turns are written anew."""
        return (messages,)

    def divides(self) -> bool:
        """Whether `divide` makes several conversations of some."""
        return type(self).divide is not Template.divide

    def document_end(self, tokenizer: "PreTrainedTokenizerBase") -> int | None:
        """The token that ends a document, by id, for a prepared tokenizer; None when it has none."""
        return tokenizer.eos_token_id

    @abstractmethod
    def write(
        self,
        messages: tuple[Message, ...],
        tools: tuple[Mapping[str, Any], ...],
        tokenizer: "PreTrainedTokenizerBase",
    ) -> Written:
        """One conversation as the prepared tokenizer's own chat template writes it. Raises TemplateError."""


class Objective(Component):
    """What is minimised: maths on log-probabilities. A loss is a sum; the trainer divides by the count of the step."""

    seam: ClassVar[str] = "objectives"
    default: ClassVar[str] = "sft"
    branches: ClassVar[tuple[str, ...]] = ("answer",)  # what a sample's branches are to this objective
    labels: ClassVar[bool] = False  # learns from the label of a sample; others refuse rows that have one
    of_words: ClassVar[bool] = False  # learns the classes of single words; others refuse rows that have them
    documents: ClassVar[bool] = False  # trains on every token, and may split a long sample over rows
    likelihood: ClassVar[bool] = False  # `loss` is -sum(weight * logps): its gradient is known before the scores are
    needs: ClassVar[tuple[str, ...]] = ()  # what `loss` reads besides logps: "entropy", "values"; "reference", "label"
    encodes: ClassVar[bool] = False  # a sample is two sequences: the prompt, for an encoder, and a decoder's answer
    mismatched: ClassVar[bool] = False  # each sample's second sequence is its prompt with the answer of another sample
    learning_rate_factor: ClassVar[float] = 1.0  # to the adapter's own learning rate, where the recipe does not say it

    @abstractmethod
    def count(self, batch: Batch) -> "torch.Tensor":
        """The number of units (tokens, pairs) that `loss` sums over: a scalar."""

    @classmethod
    def sequences(cls) -> int:
        """How many sequences a sample has, which stand in one row."""
        return len(cls.branches) + cls.mismatched + cls.encodes

    @classmethod
    def of_samples(cls) -> bool:
        """Whether what is learned is said of a sample as a whole, and not of its tokens."""
        return "values" in cls.needs and not cls.of_words

    def compares_samples(self) -> bool:
        """Whether `loss` depends on several samples at once (their mean, their order).

        It is then given those of a whole optimizer step together, however the step is cut into micro-batches and ranks.
        """
        return False

    def teaching(self) -> Divergence | None:
        """How `scores.divergence` measures the words from those of a teacher (the recipe's `teacher`); None: none."""
        return None

    def head(self, classes: tuple[str, ...]) -> Head | None:
        """The head of the model's own that says what `loss` needs as "values"; None where it needs words.

        `classes` are those that the data name. Raises RecipeError when they do not go with the options.
        """
        return None

    def problem(self, label: Label | None) -> str | None:
        """Why a label cannot be learned, and what to say instead; None when it can."""
        return None

    def measures(self, counts: "Mapping[str, torch.Tensor]") -> dict[str, Any]:
        """Metrics of the whole held-out set from the sums of its `LossSum.counts`; a list is a table for the record."""
        return {}

    def reads(self) -> tuple[str, ...]:
        """What `loss` reads besides logps, by its options: also "lead" and "normaliser" of words' logits."""
        return type(self).needs

    def is_likelihood(self) -> bool:
        """Whether `likelihood` was said of this very loss, and not of one that it replaces."""
        says, sums = (
            next(kind for kind in type(self).__mro__ if name in vars(kind)) for name in ("likelihood", "loss")
        )
        return self.likelihood and says is sums

    @abstractmethod
    def loss(self, scores: Scores, batch: Batch) -> LossSum:
        """The summed loss of a batch, and metrics as (sum, count) pairs."""


class Companion:
    """What goes with a run beside its steps (a schedule of ranks, a mean of the weights), and is saved with it."""

    def stepping(self, step: int) -> None:
        """What is done to the gradients of an optimizer step before its update, after they were clipped."""

    def stepped(self, step: int) -> None:
        """What is done after the update of an optimizer step, the first of which is 1; gradients are still there."""

    @contextmanager
    def settled(self) -> Iterator[None]:
        """A block in which the model has the weights that it is evaluated with, and ends a run with."""
        yield

    def write(self, folder: Path) -> tuple[str, ...]:
        """Write what is worth seeing into the run folder at the end; what has to be said of it."""
        return ()

    def state(self) -> "dict[str, torch.Tensor]":
        """What a checkpoint keeps of it, by name."""
        return {}

    def load(self, state: "Mapping[str, torch.Tensor]") -> None:
        """Take up what `state` gave."""


class Adapter(Component):
    """Which weights are trained."""

    seam: ClassVar[str] = "adapters"
    default: ClassVar[str] = "lora"
    learning_rate: ClassVar[float]  # what optimizer.learning_rate is when the recipe does not say
    beside: ClassVar[bool]  # whether new weights are trained beside a frozen model, and saved alone
    unmerged: ClassVar[str | None] = None  # why what is trained cannot be put into the model's weights; None: it can
    virtual: ClassVar[bool] = False  # whether learned tokens stand before every sequence
    reads_gradients: ClassVar[bool] = False  # whether its companion needs the gradients of a step

    @abstractmethod
    def apply(self, model: "PreTrainedModel") -> Any:
        """The model with exactly the trained weights requiring gradients."""

    def refuse_names(self, shapes: Callable[[], Any]) -> None:
        """Raise RecipeError for modules that it names and a model has not; `shapes` makes the model without numbers."""

    def notes(self, model: Any) -> tuple[str, ...]:
        """What has to be said of the adapted model, where something was chosen for the user."""
        return ()

    def begins_elsewhere(self) -> bool:
        """Whether training starts from other answers than those of the model without the adapter."""
        return False

    def training_rows(self, rows: Sequence[int]) -> "Adapter":
        """The adapter that also trains these rows of the embeddings, those of new tokens; itself where it trains them.

        Raises RecipeError when it cannot.
        """
        if type(self).beside:
            raise RecipeError(f"model.new_tokens: the adapter {name_of(self)} trains no embeddings: use lora or full")
        return self

    def factors(self, model: Any) -> Mapping[str, float]:
        """What the learning rate of some trained parameters is multiplied by, by their names in the adapted model."""
        return {}

    def companion(self, model: Any, num_steps: int) -> Companion | None:
        """What goes with the adapted model through a run of so many optimizer steps, where something does."""
        return None


class Quantization(Component):
    """How the linear layers of a frozen model, but its head, are held in few bits; what is trained lies beside them."""

    seam: ClassVar[str] = "quantizations"
    default: ClassVar[str] = "bnb_4bit"

    def refuses(self, other: Component) -> str | None:
        """An adapter that trains the model's own weights: rounded ones have no small steps."""
        if isinstance(other, Adapter) and not other.beside:
            return (
                f"model.quantization: a model held in {name_of(self)} stays as it is, and adapter={name_of(other)} "
                "trains its own weights: use adapter=lora, or leave model.quantization out"
            )
        return None

    @abstractmethod
    def config(self, dtype: "torch.dtype", device: str) -> Any:
        """The `quantization_config` of transformers beside weights of a dtype. Raises MissingExtra, RecipeError."""

    @abstractmethod
    def bits_per_weight(self) -> tuple[float, float]:
        """Bits of a weight with its share of scales, and of what else there is for each row of a matrix."""


class Optimizer(Component):
    """How the trained weights are updated."""

    seam: ClassVar[str] = "optimizers"
    default: ClassVar[str] = "adamw"
    in_backward: ClassVar[bool] = True  # a parameter is updated by its own gradient alone, whenever that is known
    learning_rate_factor: ClassVar[float] = 1.0  # to the adapter's own learning rate, where the recipe does not say it
    schedulers: ClassVar[tuple[str, ...]] = ()  # courses of the learning rate that go with it, the usual first; (): all
    averages: ClassVar[bool] = False  # evaluations and the end of a run take a mean of its own

    learning_rate: Annotated[float, Field(gt=0)] | None = None
    """Peak learning rate. None: the adapter's own (lora 2e-4, full and freeze 2e-5), or what suits this optimizer."""
    learning_rates: dict[str, Annotated[float, Field(ge=0)]] = {}
    """Peak learning rates of parameters whose names contain a match of a regular expression: {"embed|lm_head": 1e-5}.
    The first that matches is taken."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    """Decay of matrices in a step, times the learning rate; vectors (biases and norms) have none."""

    @field_validator("learning_rates")
    @classmethod
    def _patterns(cls, rates: dict[str, float]) -> dict[str, float]:
        for pattern in rates:
            try:
                re.compile(pattern)
            except re.error as error:
                raise ValueError(f"{pattern!r} is not a regular expression: {error}") from None
        return rates

    @abstractmethod
    def build(self, model: "torch.nn.Module", factors: Mapping[str, float] = {}) -> "torch.optim.Optimizer":
        """An optimizer with each trainable parameter in one group (`_groups.py`); `factors`: of `Adapter.factors`."""

    def rate(self) -> float:
        """The peak learning rate, which is resolved before the run."""
        assert self.learning_rate is not None, "resolved before the run"
        return self.learning_rate

    def kept_bytes(self, name: str, parameter: "torch.Tensor", head_dim: int) -> int:
        """What `build`'s optimizer keeps of one parameter after a step: as a guess, two values for each of its own."""
        return 2 * parameter.nbytes

    def state_bytes(self, named: "Iterable[tuple[str, torch.Tensor]]", head_dim: int = 1) -> int:
        """What it keeps at most of those that require gradients; `head_dim`: rows of a head of queries and keys."""
        return sum(self.kept_bytes(name, one, head_dim) for name, one in named if one.requires_grad)

    def companion(self, built: "torch.optim.Optimizer", model: Any, num_steps: int) -> Companion | None:
        """What goes with the optimizer through a run of so many steps, where something does."""
        return None


class Export(Component):
    """What is made of a finished run."""

    seam: ClassVar[str] = "exports"
    default: ClassVar[str] = "merged"

    @abstractmethod
    def write(self, run: Path, out: Path) -> Report:
        """Write the export of a run folder to `out`, compare it with the run's own weights, and report."""

    def check(self, run: Path, out: Path) -> Report:
        """Compare what `write` once wrote to `out` with the run again. Raises RunError where it is not as the run."""
        raise RunError(f"an export of type={name_of(self)} cannot be compared with its run later")


@dataclass(frozen=True, slots=True)
class TaskResult:
    """What a task found: its numbers by name, a table, a line for each item, and a picture as PNG where it draws one.

    The first number is the one that models are compared by. The rows of the table have the same keys, in the order of
    its columns. `intervals` are the 95 % intervals of some numbers, by their names. `lower_is_better` is of the first
    number, where the task itself cannot say it of all.
    """

    metrics: Mapping[str, float]
    table: tuple[Mapping[str, Any], ...] = ()
    items: tuple[Mapping[str, Any], ...] = ()
    picture: bytes | None = None
    intervals: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    lower_is_better: bool | None = None


class Task(Component):
    """What a model is evaluated by. Its options are said by its name: `needle.lengths=[512, 2048]`."""

    seam: ClassVar[str] = "evaluation"
    default: ClassVar[str] = "ppl_by_length"
    lower_is_better: ClassVar[bool] = False  # of the first number

    def digest(self) -> str | None:
        """What tells the data that are read from others; None where that is not known, so that no result is kept."""
        return None

    @abstractmethod
    def run(self, subject: "Subject") -> TaskResult:
        """Ask the model all of it. Raises DataError when there is nothing to ask, or it cannot be read."""
