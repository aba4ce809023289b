"""The recipe: its sections. `recipe_text.py` reads a YAML file and `a.b=c` words.

An option is declared here or on a component, once: type, default, bounds and help together. `None` as a default means
that the value follows from what the user said (`defaults.py` says how); it is printed at start and recorded.
"""

import re
from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from tunesmith.component import Section, default, name_of, refusal
from tunesmith.errors import RecipeError
from tunesmith.explain import Explained
from tunesmith.recipe_data import Data
from tunesmith.recipe_parallel import Parallel, problem
from tunesmith.recipe_rope import RopeScaling
from tunesmith.recipe_text import parse, read_words, recipe_file
from tunesmith.recipe_train import Train
from tunesmith.seams import Adapter, Objective, Optimizer, Quantization

Dtype = Literal["auto", "float32", "bfloat16", "float16"]


class Model(Section):
    """The model to start from."""

    path: str
    """Folder, hub id, or `builtin:tiny`; or a file of type .gguf, or a folder with one, whose weights are widened."""
    revision: str | None = None
    """Branch, tag or commit of a hub id."""
    tokenizer: str | None = None
    """Folder or hub id of the tokenizer, when it is not beside the model."""
    dtype: Dtype = "auto"
    """Precision the weights are loaded in. auto: float32 when the model's own weights are trained or the device has
    no bfloat16 arithmetic, else bfloat16."""
    frozen_dtype: Literal["int8", "float8"] | None = None
    """What frozen linear layers, but the head, are held in: int8 on a CPU, float8 on CUDA. None: dtype. They are also
    multiplied in it, which is quicker; `quantization` saves more memory, and multiplies in dtype."""
    quantization: Quantization | None = None
    """How frozen linear layers, but the head, are held in few bits (QLoRA). None: as stored."""
    from_scratch: bool = False
    """Start from random weights of the shape in config.json, not from the stored ones."""
    rope_scaling: RopeScaling = RopeScaling()
    """How rotary positions are stretched for a longer context."""

    dropout: Annotated[float, Field(ge=0, lt=1)] | None = None
    """Every dropout of the model's own config, 0 for none. None: as the config has them. Adapters have their own."""
    new_tokens: dict[str, str] = {}
    """Tokens to add, a list, or each with a description: {"<call>": "a call of a tool"}. Its row of the embeddings
    begins as the mean of the rows of its description's tokens, or of all."""
    new_special_tokens: dict[str, str] = {}
    """The same, for tokens that no text shows: decoding leaves them out."""

    @model_validator(mode="after")
    def _quantised_once(self) -> "Model":
        if self.quantization is not None and self.from_scratch:
            raise ValueError("from_scratch: random weights are trained whole, and quantised ones stay: leave one out")
        if self.quantization is not None and self.frozen_dtype is not None:
            raise ValueError("frozen_dtype and quantization both say what frozen weights are held in: leave one out")
        return self

    @field_validator("new_tokens", "new_special_tokens", mode="before")
    @classmethod
    def _listed(cls, value: Any) -> Any:
        return dict.fromkeys(value, "") if isinstance(value, list | tuple) else value

    @model_validator(mode="after")
    def _tokens_are_new_once(self) -> "Model":
        twice = sorted(self.new_tokens.keys() & self.new_special_tokens.keys())
        if twice or "" in self.added():
            raise ValueError(f"new_tokens and new_special_tokens: {twice[0] if twice else ''!r} cannot be added")
        return self

    def added(self) -> dict[str, str]:
        """The new tokens, with what each stands for."""
        return {**self.new_tokens, **self.new_special_tokens}


class Eval(Section):
    """Evaluation during the run; its rows are data.eval."""

    eval_steps: Annotated[int, Field(gt=0)] | None = None
    """Steps between two evaluations. None: only before the first step and after the last."""
    per_device_eval_batch_size: Annotated[int, Field(gt=0)] = 1
    """Packed rows in one forward pass."""
    load_best_model_at_end: bool = False
    """Whether the run ends with the weights of the lowest eval_loss after its start; needs eval_steps."""
    early_stopping_patience: Annotated[int, Field(gt=0)] | None = None
    """Evaluations without a lower eval_loss after which the run stops; needs eval_steps."""
    prompts: tuple[str, ...] = ()
    """Questions answered at every evaluation, written to samples.jsonl."""
    max_new_tokens: Annotated[int, Field(gt=0)] = 64
    """Longest answer to them, in tokens."""

    @model_validator(mode="after")
    def _needs_steps(self) -> "Eval":
        for option in ("load_best_model_at_end", "early_stopping_patience"):
            if getattr(self, option) and self.eval_steps is None:
                raise ValueError(f"{option} needs eval.eval_steps")
        return self


class Reference(Section):
    """The frozen model that an objective measures from, where it does (dpo, kto)."""

    model: str | None = None
    """Folder or hub id of another model with the same tokens, of an adapter, or a run's folder. None: the one that
    training starts from, without its adapter."""
    frozen_dtype: Literal["int8", "float8"] | None = None
    """What the linear layers of that model, but its head, are held in. None: model.dtype."""
    compute: Literal["auto", "once", "step"] = "auto"
    """When its log-probabilities are made. once: before the first step, and kept with the rendered rows for later runs.
    step: in every step. auto: once, but in a stream."""

    @model_validator(mode="after")
    def _holds_a_model_of_its_own(self) -> "Reference":
        if self.frozen_dtype is not None and self.model is None:
            raise ValueError("frozen_dtype is for a model of its own: name it in reference.model, or leave it out")
        return self


class Teacher(Section):
    """The frozen model that an objective learns from, where it does (distill)."""

    model: str | None = None
    """Folder or hub id of a model with the same tokens, of an adapter, or a run's folder."""
    frozen_dtype: Literal["int8", "float8"] | None = None
    """What the linear layers of that model, but its head, are held in. None: model.dtype."""
    compute: Literal["auto", "once", "step"] = "auto"
    """When its words are made. once: before the first step, and kept with the rendered rows for later runs; needs
    objective.top_k. step: in every step. auto: once with top_k, but in a stream."""


class Recipe(Explained):
    """Everything a run is made from. Only `model` and `data` are required."""

    name: Annotated[str, Field(pattern=r"^[\w.-]+$")] | None = None
    """Name of the run's folder. None: the recipe file's name, or the model and the objective."""
    model: Model
    data: Data
    objective: Objective = default(Objective)
    """What is minimised."""
    reference: Reference = Reference()
    teacher: Teacher = Teacher()
    adapter: Adapter = default(Adapter)
    """Which weights are trained."""
    optimizer: Optimizer = default(Optimizer)
    """How they are updated."""
    train: Train = Train()
    parallel: Parallel = Parallel()
    eval: Eval = Eval()

    @field_validator("model", mode="before")
    @classmethod
    def _from_path(cls, value: Any) -> Any:
        return {"path": value} if isinstance(value, str) else value

    @model_validator(mode="after")
    def _evaluates_on_something(self) -> "Recipe":
        if self.eval.eval_steps is not None and not self.data.eval:
            raise ValueError("eval.eval_steps is set but data.eval is 0: say which rows are held out")
        if self.eval.prompts and not self.data.eval:
            raise ValueError("eval.prompts are answered at evaluations but data.eval is 0: say which rows are held out")
        return self

    @model_validator(mode="after")
    def _fits_the_objective(self) -> "Recipe":
        kind = type(self.objective)
        if self.reference != Reference() and "reference" not in kind.needs:
            raise ValueError(f"the objective {name_of(self.objective)} has no reference: leave `reference` out")
        if "values" in kind.needs and self.eval.prompts:
            raise ValueError(
                f"eval.prompts are answered in words, and the objective {name_of(self.objective)} trains a head that "
                "has none: leave them out"
            )
        read: list[str] = [need for need in ("values", "entropy") if need in kind.needs]
        read += ["a teacher"] if self.objective.teaching() is not None else []
        if read and self.objective.compares_samples():
            raise ValueError(
                f"the objective {name_of(self.objective)} compares samples and reads {read[0]}: a whole step is joined "
                "by its log-probabilities alone, so let it read no more"
            )
        if self.data.streaming and (kind.mismatched or self.reference.compute == "once"):
            what = "draws answers over the whole set" if kind.mismatched else "with reference.compute=once looks ahead"
            raise ValueError(f"the objective {name_of(self.objective)} {what}, and data.streaming never holds it")
        return self

    @model_validator(mode="after")
    def _goes_together(self) -> "Recipe":
        held = self.model.quantization
        problem = refusal([self.objective, self.adapter, self.optimizer, *([] if held is None else [held])])
        if problem is not None:
            raise ValueError(problem)
        own = type(self.optimizer).schedulers
        if own and self.train.lr_scheduler_type not in (None, *own):
            raise ValueError(
                f"train.lr_scheduler_type: {name_of(self.optimizer)} goes with {' or '.join(own)}, and "
                f"this is {self.train.lr_scheduler_type}: leave it out"
            )
        if self.train.ema_decay is not None and type(self.optimizer).averages:
            raise ValueError(
                f"train.ema_decay={self.train.ema_decay}: {name_of(self.optimizer)} has a mean of the weights of its "
                "own: leave it out"
            )
        if self.train.neftune_noise_alpha is not None and type(self.objective).encodes:
            raise ValueError("train.neftune_noise_alpha: an encoder and a decoder share embeddings: leave it out")
        if self.train.release_gradients and not type(self.optimizer).in_backward:
            name = name_of(self.optimizer)
            raise ValueError(f"train.release_gradients: {name} needs all gradients of a step together: leave it out")
        if type(self.adapter).reads_gradients:
            name = name_of(self.adapter)
            if self.train.release_gradients:
                raise ValueError(f"train.release_gradients: {name} needs the gradients of a step: leave it out")
            if self.train.fp16 and not self.train.max_grad_norm:
                raise ValueError(f"train.fp16: {name} needs gradients without their scale: set train.max_grad_norm")
        return self

    @model_validator(mode="after")
    def _sees_as_its_reference(self) -> "Recipe":
        kind, group = type(self.objective), self.train.shifted_sparse_attention
        if group is not None and (kind.encodes or "reference" in kind.needs):
            why = "encodes prompts" if kind.encodes else "measures from a reference, which sees all"
            raise ValueError(
                f"train.shifted_sparse_attention={group}: the objective {name_of(self.objective)} {why}: leave it out"
            )
        return self

    @model_validator(mode="after")
    def _knows_all_tokens(self) -> "Recipe":
        for option in ("neftune_noise_alpha", "shifted_sparse_attention"):
            value = getattr(self.train, option)
            if value is not None and type(self.adapter).virtual:
                raise ValueError(
                    f"train.{option}={value} is for sequences of words alone, and adapter={name_of(self.adapter)} puts "
                    "learned tokens before each: leave it out, or use adapter=lora"
                )
        return self

    @model_validator(mode="after")
    def _skips_positions_of_one_sequence(self) -> "Recipe":
        kind, reach = type(self.objective), self.data.position_skipping
        several = len(kind.branches) > 1 or kind.mismatched or kind.encodes
        if reach is not None and (several or {"values", "reference"} & set(kind.needs) or self.objective.teaching()):
            raise ValueError(
                f"data.position_skipping={reach} is for objectives that learn from one text by itself, as sft and "
                f"pretrain, and {name_of(self.objective)} does not: leave it out"
            )
        return self

    @model_validator(mode="after")
    def _has_its_teacher(self) -> "Recipe":
        how, name = self.objective.teaching(), name_of(self.objective)
        if how is None:
            if self.teacher != Teacher():
                raise ValueError(f"the objective {name} has no teacher: leave `teacher` out, or say objective=distill")
            return self
        if self.teacher.model is None:
            raise ValueError(f"the objective {name} learns from a teacher: say teacher.model=PATH")
        if self.teacher.compute == "once" and how.top_k is None:
            raise ValueError("teacher.compute=once keeps a teacher's likeliest words: say how many in objective.top_k")
        if self.teacher.compute == "once" and self.data.streaming:
            raise ValueError("teacher.compute=once looks ahead, and data.streaming never holds the whole set")
        if self.train.row_tokens == "auto" and not self.teaches_once():
            raise ValueError(
                "train.row_tokens=auto measures a model without a teacher beside it: say a number, or "
                "teacher.compute=once"
            )
        return self

    def teaches_once(self) -> bool:
        """Whether a teacher's words are made before the first step, and it is not needed afterwards."""
        how, choice = self.objective.teaching(), self.teacher.compute
        kept = how is not None and how.top_k is not None and not self.data.streaming
        return kept if choice == "auto" else choice == "once"

    @model_validator(mode="after")
    def _can_be_shared_out(self) -> "Recipe":
        reason = problem(self)
        if reason is not None:
            raise ValueError(reason)
        return self

    @model_validator(mode="after")
    def _streams_to_an_end(self) -> "Recipe":
        data = self.data
        if not data.streaming:
            return self
        if self.train.max_steps is None:
            raise ValueError("data.streaming needs train.max_steps: the length of a stream is not known beforehand")
        if isinstance(data.eval, float) and data.eval:
            raise ValueError("data.streaming cannot hold out a part of a stream: name data.eval as sources of its own")
        for option in ("duplicates", "leakage"):
            if getattr(data, option) == "drop":
                raise ValueError(f"data.{option}=drop looks at all samples, and data.streaming never holds them all")
        if data.near_duplicates is not None:
            raise ValueError("data.near_duplicates looks at all samples, and data.streaming never holds them all")
        return self

    @classmethod
    def load(cls, path: str, words: Sequence[str] = ()) -> "Recipe":
        """The recipe in a YAML file (or a shipped one by name) with `section.option=value` words applied, in order.

        Raises:
            RecipeError: the file is missing or is not YAML, or an option is unknown or has a bad value; one line for
                each problem, with its place, value, bound and the nearest known name.
        """
        file = recipe_file(path)
        try:
            text = file.read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise RecipeError(f"{path} is not text in UTF-8: {error.reason} at byte {error.start}") from None
        tree = read_words(parse(text, str(path)), words)
        tree.setdefault("name", re.sub(r"[^\w.-]+", "-", file.stem))
        return cls(**tree)
