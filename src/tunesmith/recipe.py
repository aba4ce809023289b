"""The recipe: its sections. `recipe_text.py` reads a YAML file and `a.b=c` words.

An option is declared here or on a component, once: type, default, bounds and help together. `None` as a default means
that the value follows from what the user said (`defaults.py` says how); it is printed at start and recorded.
"""

import re
from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from tunesmith.component import Section, default, refusal
from tunesmith.errors import RecipeError
from tunesmith.passthrough import problem
from tunesmith.recipe_data import Data
from tunesmith.recipe_text import parse, read_words, recipe_file
from tunesmith.seams import Adapter, Objective, Optimizer

Dtype = Literal["auto", "float32", "bfloat16", "float16"]
DeviceName = Literal["auto", "cpu", "cuda", "mps", "xpu"]
Scheduler = Literal[
    "linear", "cosine", "cosine_with_restarts", "polynomial", "constant", "constant_with_warmup", "inverse_sqrt",
    "cosine_with_min_lr", "cosine_warmup_with_min_lr", "warmup_stable_decay",
]  # fmt: skip


class Model(Section):
    """The model to start from."""

    path: str
    """Folder, hub id, or `builtin:tiny`."""
    revision: str | None = None
    """Branch, tag or commit of a hub id."""
    tokenizer: str | None = None
    """Folder or hub id of the tokenizer, when it is not beside the model."""
    dtype: Dtype = "auto"
    """Precision the weights are loaded in. auto: float32 when the model's own weights are trained or the device has
    no bfloat16 arithmetic, else bfloat16."""
    frozen_dtype: Literal["int8", "float8"] | None = None
    """What frozen linear layers, but the head, are held in: int8 on a CPU, float8 on CUDA. None: dtype."""
    from_scratch: bool = False
    """Start from random weights of the shape in config.json, not from the stored ones."""
    dropout: Annotated[float, Field(ge=0, lt=1)] | None = None
    """Every dropout of the model's own config, 0 for none. None: as the config has them. Adapters have their own."""
    new_tokens: dict[str, str] = {}
    """Tokens to add, a list, or each with a description: {"<call>": "a call of a tool"}. Its row of the embeddings
    begins as the mean of the rows of its description's tokens, or of all."""
    new_special_tokens: dict[str, str] = {}
    """The same, for tokens that no text shows: decoding leaves them out."""

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


class Train(Section):
    """The run."""

    output_dir: str | None = None
    """Run folder; must be new or empty. None: a new numbered folder under runs/."""
    num_train_epochs: Annotated[float, Field(gt=0, le=100_000)] = 3.0
    """Passes over the data; not used when max_steps is given."""
    max_steps: Annotated[int, Field(gt=0)] | None = None
    """Optimizer steps."""
    row_tokens: Literal["auto"] | Annotated[int, Field(gt=1, le=100_000_000)] | None = None
    """Tokens in a packed row. None: data.max_tokens. auto: as many as fit in memory by a short trial before the run,
    from data.max_tokens to 16384."""
    per_device_train_batch_size: Annotated[int, Field(gt=0)] = 1
    """Packed rows in one forward pass on one device."""
    gradient_accumulation_steps: Annotated[int, Field(gt=0)] = 1
    """Forward passes per optimizer step."""
    lr_scheduler_type: Scheduler = "cosine"
    """Course of the learning rate."""
    warmup_steps: Annotated[float, Field(ge=0)] = 0.03
    """Steps in which the learning rate rises from 0, which it is in the first; below 1, a fraction of all steps."""
    max_grad_norm: Annotated[float, Field(ge=0)] = 1.0
    """Gradients are scaled down to this norm; 0 is never."""
    activation_checkpointing: bool | Literal["selective"] | Annotated[int, Field(gt=1)] = False
    """Compute activations again in the backward pass: less memory, more time. true: those of every layer; n: of every
    n-th layer; selective: all but products of matrices and outputs of attention."""
    activation_offload: bool = False
    """Keep the inputs of layers that compute again in the host's memory; needs activation_checkpointing true or n."""
    release_gradients: bool = False
    """Update a weight and drop its gradient as soon as the backward pass has it; needs gradient_accumulation_steps=1
    and max_grad_norm=0."""
    compile: bool | None = None
    """Fuse norms, gates and softmax by torch.compile. None: from 50 million parameters, where there is a compiler."""
    bf16: bool | None = None
    """Compute in bfloat16 (autocast) over float32 weights. None: on a device with bfloat16 arithmetic but a CPU."""
    fp16: bool = False
    """Compute in float16 (autocast) with loss scaling; needs float32 weights."""
    ema_decay: Annotated[float, Field(gt=0, lt=1)] | None = None
    """Evaluate, and end the run, with a moving average of the trained weights: at each step this much of it stays."""
    neftune_noise_alpha: Annotated[float, Field(gt=0)] | None = None
    """Noise on the embeddings in training: alpha / sqrt(tokens of the sequence * features) times uniform noise."""
    router_aux_loss_coef: Annotated[float, Field(ge=0)] | None = None
    """Weight of the loss that has a mixture's experts share out the tokens evenly. None: it has no part in the loss."""
    device: DeviceName = "auto"
    """Device to train on. auto: the first present of cuda, xpu, mps, cpu."""
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 42
    """Decides new weights and dropout."""
    logging_steps: Annotated[int, Field(gt=0)] = 1
    """Steps between two lines of metrics."""
    save_steps: Annotated[int, Field(gt=0)] = 500
    """Steps between two checkpoints; one is always written at the end."""
    save_total_limit: Annotated[int, Field(gt=0)] = 2
    """Checkpoints kept beside the best one."""
    report_to: tuple[str, ...] = ()
    """Experiment trackers of transformers: tensorboard, wandb, mlflow ..."""
    transformers: dict[str, Any] = {}
    """Other fields of transformers' TrainingArguments: those that change neither rows, loss, steps nor checkpoints."""

    @field_validator("report_to", mode="before")
    @classmethod
    def _report_list(cls, value: Any) -> Any:
        return () if value == "none" else (value,) if isinstance(value, str) else value

    @field_validator("transformers", mode="after")
    @classmethod
    def _not_ours(cls, value: dict[str, Any]) -> dict[str, Any]:
        found = problem(value)
        if found is not None:
            raise ValueError(found)
        return value

    @model_validator(mode="after")
    def _one_precision(self) -> "Train":
        if self.bf16 and self.fp16:
            raise ValueError("bf16 and fp16 cannot both be true: choose one")
        return self

    @model_validator(mode="after")
    def _saves_memory_as_it_can(self) -> "Train":
        if self.activation_offload and self.activation_checkpointing in (False, "selective"):
            raise ValueError(
                "activation_offload moves what checkpoints keep: set activation_checkpointing=true, or to n"
            )
        needed = {"gradient_accumulation_steps": 1, "max_grad_norm": 0, "fp16": False}
        wrong = [f"{name}={str(value).lower()}" for name, value in needed.items() if getattr(self, name) != value]
        if self.release_gradients and wrong:
            raise ValueError(f"release_gradients updates before all gradients are known: set {' and '.join(wrong)}")
        return self


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


class Recipe(Section):
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
            raise ValueError(f"the objective {kind.__name__.lower()} has no reference: leave `reference` out")
        if "values" in kind.needs and self.eval.prompts:
            raise ValueError(
                f"eval.prompts are answered in words, and the objective {kind.__name__.lower()} trains a head that has "
                "none: leave them out"
            )
        read: list[str] = [need for need in ("values", "entropy") if need in kind.needs]
        read += ["a teacher"] if self.objective.teaching() is not None else []
        if read and self.objective.compares_samples():
            raise ValueError(
                f"the objective {kind.__name__.lower()} compares samples and reads {read[0]}: a whole step is joined "
                "by its log-probabilities alone, so let it read no more"
            )
        if self.data.streaming and (kind.mismatched or self.reference.compute == "once"):
            what = "draws answers over the whole set" if kind.mismatched else "with reference.compute=once looks ahead"
            raise ValueError(f"the objective {kind.__name__.lower()} {what}, and data.streaming never holds it")
        return self

    @model_validator(mode="after")
    def _goes_together(self) -> "Recipe":
        problem = refusal([self.objective, self.adapter, self.optimizer])
        if problem is not None:
            raise ValueError(problem)
        if self.train.neftune_noise_alpha is not None and type(self.objective).encodes:
            raise ValueError("train.neftune_noise_alpha: an encoder and a decoder share embeddings: leave it out")
        if self.train.release_gradients and not type(self.optimizer).in_backward:
            name = type(self.optimizer).__name__.lower()
            raise ValueError(f"train.release_gradients: {name} needs all gradients of a step together: leave it out")
        return self

    @model_validator(mode="after")
    def _has_its_teacher(self) -> "Recipe":
        how, name = self.objective.teaching(), type(self.objective).__name__.lower()
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

    def __init__(self, **options: Any) -> None:
        from pydantic import ValidationError

        from tunesmith.explain import explain

        try:
            super().__init__(**options)
        except ValidationError as error:
            raise RecipeError(explain(error, Recipe)) from None

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
