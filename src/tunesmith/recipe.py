"""The recipe: its sections. `recipe_text.py` reads a YAML file and `a.b=c` words.

An option is declared here or on a component, once: type, default, bounds and help together. `None` as a default means
that the value follows from what the user said (`defaults.py` says how); it is printed at start and recorded.
"""

import re
from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from tunesmith.component import Component, Section, find
from tunesmith.errors import RecipeError
from tunesmith.passthrough import problem
from tunesmith.recipe_text import parse, read_words, recipe_file
from tunesmith.seams import Adapter, Format, Objective, Optimizer, Template

Dtype = Literal["auto", "float32", "bfloat16", "float16"]
DeviceName = Literal["auto", "cpu", "cuda", "mps", "xpu"]
Scheduler = Literal[
    "linear", "cosine", "cosine_with_restarts", "polynomial", "constant", "constant_with_warmup", "inverse_sqrt",
    "cosine_with_min_lr", "cosine_warmup_with_min_lr", "warmup_stable_decay",
]  # fmt: skip


def default(base: type[Component]) -> Any:
    """A seam's default component, found when a recipe is built and not when this module is imported."""
    return Field(default_factory=lambda: find(base, base.default)(), json_schema_extra={"default": base.default})


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


class Source(Section):
    """Where rows come from. A bare path is a source of its own."""

    path: str
    """File, folder or glob (json, jsonl, csv, tsv, parquet, arrow, xlsx, txt, each also with .gz or .zst); hub id
    (hf://, ms:// and om:// name the hub); s3://, gs://, http(s)://; a name in data.registry; or `builtin:identity`."""
    format: Format = default(Format)
    """How a row is read."""
    columns: dict[str, str] = {}
    """Names a format expects, mapped to the columns that hold them: {instruction: Question}. An empty one is not
    read."""
    replace: dict[Annotated[str, Field(min_length=1)], str] = {}
    """Texts to put in place of others, in every column: {"{{name}}": Smith}."""
    name: str | None = None
    """Configuration of a hub dataset, or sheet of a workbook."""
    split: str = "train"
    """Split of a hub dataset."""
    num_samples: Annotated[int, Field(gt=0)] | None = None
    """Use this many rows: the first ones, or all of them again and again where there are fewer."""
    weight: Annotated[float, Field(gt=0, le=1000)] = 1.0
    """How often each sample comes in an epoch, 0.5 being half of them; where data.mix draws, how often this source is
    drawn beside the weights of the others."""
    share: Annotated[str, Field(pattern=r"^[1-9][0-9]*(-[1-9][0-9]*)?/[1-9][0-9]*$")] | None = None
    """Use a part of the rows, by their content: 1-2/10 is the first two tenths, 3-6/10 the four after them. Stages
    with other parts have no row in common."""

    @model_validator(mode="before")
    @classmethod
    def _from_path(cls, value: Any) -> Any:
        return {"path": value} if isinstance(value, str) else value

    @field_validator("share", mode="after")
    @classmethod
    def _says_which_part(cls, value: str | None) -> str | None:
        if value is None:
            return value
        part, _, whole = value.partition("/")
        first, dash, last = part.partition("-")
        if not dash:
            raise ValueError(f"says how much and not which part: 1-{first}/{whole} is the first {first} of {whole}")
        if not 1 <= int(first) <= int(last) <= int(whole):
            raise ValueError(f"must count up within 1-{whole}/{whole}")
        return value


Sources = tuple[Source, ...]
Role = Literal["system", "user", "assistant", "tool"]


class Loss(Section):
    """What is learned of a conversation. What a row says of a turn (`train`, `weight`, `train_spans`) outweighs it."""

    roles: Annotated[tuple[Role, ...], Field(min_length=1)] = ("assistant",)
    """Whose turns are learned; `tool` is the results of calls."""
    turns: Literal["all", "last"] = "all"
    """Whether all of those turns are learned, or the last alone."""
    tool_calls: bool = True
    """Whether the assistant's calls are learned."""
    reasoning: Literal["train", "keep", "drop"] = "train"
    """What happens to an answer's reasoning (`<think>`). keep: it stands before the answer and is not learned. drop:
    it is left out."""
    pattern: str | None = None
    """Regular expression: of the text of a learned turn only what it matches is learned (its groups, where it has
    some), and the end of the turn."""
    train_on_prompt: bool = False
    """Learn every token, those of the prompts and of the template included."""

    @field_validator("roles", mode="before")
    @classmethod
    def _role_list(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str) else value

    @model_validator(mode="after")
    def _chooses_or_not(self) -> "Loss":
        plain = {name: field.default for name, field in type(self).model_fields.items()}
        choosing = [name for name in ("roles", "turns", "tool_calls", "pattern") if getattr(self, name) != plain[name]]
        choosing += ["reasoning"] if self.reasoning == "keep" else []
        if self.train_on_prompt and choosing:
            raise ValueError(
                f"train_on_prompt learns every token, and {choosing[0]} chooses some: leave one of them out"
            )
        return self

    @field_validator("pattern", mode="after")
    @classmethod
    def _compiles(cls, value: str | None) -> str | None:
        if value is not None:
            try:
                re.compile(value)
            except re.error as error:
                raise ValueError(f"is no regular expression: {error}") from None
        return value


def _listed(value: Any) -> Any:
    return [value] if isinstance(value, str | dict | Source) else value


class Data(Section):
    """Rows, and how they become tokens."""

    train: Annotated[Sources, Field(min_length=1)]
    """Sources to train on."""
    eval: Annotated[float, Field(ge=0)] | Sources = 0.0
    """Held-out samples: a fraction of the samples (below 1), a count, or a list of sources. Parts of a split row go
    together, so that a count may be exceeded by those of one row."""
    registry: str | None = None
    """File that names datasets: YAML or JSON of {name: {path: ..., format: ...}}, or a dataset_info.json of
    LLaMA-Factory. `path: alpaca_en` is then one of them."""
    mix: Literal["concatenate", "first_exhausted", "all_exhausted"] = "concatenate"
    """How several sources make one stream. concatenate: all samples of all. The others draw from the sources by
    weight until the first one is used up, or until all are, the smaller ones repeated."""
    weight_by: Literal["samples", "tokens"] = "samples"
    """What the weights of drawn sources are shares of."""
    duplicates: Literal["keep", "drop"] = "keep"
    """What happens to samples that equal an earlier one. They are counted in any case but in a stream."""
    near_duplicates: Annotated[float, Field(gt=0, le=1)] | None = None
    """Likeness from which two samples are duplicates too: the share of runs of five tokens that they have in common,
    estimated by MinHash. None: equal ones alone are looked for."""
    leakage: Literal["keep", "drop"] = "keep"
    """What happens to training samples that equal held-out ones. They are counted in any case but in a stream."""
    streaming: bool = False
    """Render rows as they are needed, and never hold a source whole; needs train.max_steps."""
    buffer_samples: Annotated[int, Field(gt=0)] = 16_384
    """Samples that a stream shuffles and packs together."""
    template: Template = default(Template)
    """How a conversation is written as tokens."""
    loss: Loss = Loss()
    """Which of its tokens are learned."""
    max_tokens: Annotated[int, Field(gt=1, le=10_000_000)] = 2048
    """Longest sample, in tokens; pretrain lays documents of any length end to end."""
    shared_prefix: bool = True
    """Whether what answers to one prompt, or the turns of a divided conversation, begin with in common is computed
    once."""
    overlong: Literal["drop", "truncate", "split"] = "drop"
    """What happens to a longer one. drop: counted and left out. truncate: later turns go, then prompts are shortened;
    an answer is never cut. split: divided at turns, the system message repeated."""
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 42
    """Decides the held-out samples and the order of the others."""
    shuffle: bool = True
    """Whether the order changes with every epoch; false keeps the order of the files."""
    window_samples: Annotated[int, Field(gt=0)] = 4096
    """Samples of the shuffled stream that are packed into rows together."""
    num_processes: Annotated[int, Field(gt=0, le=1024)] | None = None
    """Processes that render. None: one for every 64 MB of a source, and at most one per processor."""
    cache_dir: str | None = None
    """Where rendered rows are kept. None: tunesmith's folder in the user's cache."""

    @field_validator("train", mode="before")
    @classmethod
    def _train_list(cls, value: Any) -> Any:
        return _listed(value)

    @field_validator("eval", mode="before")
    @classmethod
    def _eval_list(cls, value: Any) -> Any:
        if isinstance(value, bool) or value in ([], ()):
            raise ValueError("must be a fraction below 1, a whole count or a list of sources; 0 holds nothing out")
        if isinstance(value, str):
            try:
                return float(value)
            except ValueError:
                return [value]
        return _listed(value)

    @field_validator("eval", mode="after")
    @classmethod
    def _eval_whole(cls, value: float | Sources) -> float | Sources:
        if isinstance(value, float) and value >= 1 and value != int(value):
            raise ValueError("must be a fraction below 1, a whole count or a list of sources")
        return value


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


class Recipe(Section):
    """Everything a run is made from. Only `model` and `data` are required."""

    name: Annotated[str, Field(pattern=r"^[\w.-]+$")] | None = None
    """Name of the run's folder. None: the recipe file's name, or the model and the objective."""
    model: Model
    data: Data
    objective: Objective = default(Objective)
    """What is minimised."""
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
