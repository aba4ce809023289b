"""The section `train` of a recipe: steps, their size, the course of the learning rate, memory and the device."""

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from tunesmith.component import Section
from tunesmith.passthrough import problem

DeviceName = Literal["auto", "cpu", "cuda", "mps", "xpu"]
Scheduler = Literal[
    "linear", "cosine", "cosine_with_restarts", "polynomial", "constant", "constant_with_warmup", "inverse_sqrt",
    "cosine_with_min_lr", "cosine_warmup_with_min_lr", "warmup_stable_decay",
]  # fmt: skip
# Two of transformers' are left out: reduce_lr_on_plateau and greedy wait for a metric, so that the rate of a step would
# hang on when a run is evaluated, and their state is no function of the step.
OF_SCHEDULES = {
    "decay_steps": ("warmup_stable_decay",),
    "min_lr_ratio": ("warmup_stable_decay", "cosine_with_min_lr", "cosine_warmup_with_min_lr"),
}


class Train(Section):
    """The run."""

    output_dir: str | None = None
    """Run folder; must be new or empty. None: a new numbered folder under runs/."""
    num_train_epochs: Annotated[float, Field(gt=0, le=100_000)] = 3.0
    """Passes over the data; not used when max_steps is given."""
    max_steps: Annotated[int, Field(gt=0)] | None = None
    """Optimizer steps."""
    row_tokens: Literal["auto"] | Annotated[int, Field(gt=1, le=100_000_000)] | None = None
    """Tokens in a packed row. None: data.max_tokens, for each sequence of a sample (a pair has two). auto: as many as
    fit in memory by a short trial before the run, from data.max_tokens to 16384."""
    per_device_train_batch_size: Annotated[int, Field(gt=0)] = 1
    """Packed rows in one forward pass on one device."""
    gradient_accumulation_steps: Annotated[int, Field(gt=0)] = 1
    """Forward passes per optimizer step."""
    lr_scheduler_type: Scheduler | None = None
    """Course of the learning rate. None: cosine, or constant_with_warmup for the optimizer schedule_free."""
    warmup_steps: Annotated[float, Field(ge=0)] = 0.03
    """Steps in which the learning rate rises from 0, which it is in the first; below 1, a fraction of all steps."""
    decay_steps: Annotated[float, Field(gt=0)] | None = None
    """Last steps, in which warmup_stable_decay lets the learning rate fall; below 1, a fraction of all steps. None: a
    tenth of them."""
    min_lr_ratio: Annotated[float, Field(ge=0, le=1)] | None = None
    """What warmup_stable_decay, cosine_with_min_lr and cosine_warmup_with_min_lr end at, as a part of the peak. None:
    0, and a tenth of the peak for those that are named after it."""
    max_grad_norm: Annotated[float, Field(ge=0)] = 1.0
    """Gradients are scaled down to this norm; 0 is never."""
    activation_checkpointing: bool | Literal["selective"] | Annotated[int, Field(gt=1)] = False
    """Compute activations again in the backward pass: less memory, more time. true: those of every layer; n: of every
    n-th layer; selective: all but products of matrices and outputs of attention."""
    activation_offload: bool = False
    """Keep the inputs of layers that compute again in the host's memory; needs activation_checkpointing true or n."""
    shifted_sparse_attention: Annotated[int, Field(gt=1)] | None = None
    """Tokens of a group: in training half of the heads see within groups of so many, the others within groups shifted
    by half of one (LongLoRA, arXiv 2309.12307). Evaluation and answers see all. None: all heads see all."""
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
    def _options_of_its_schedule(self) -> "Train":
        for option, schedules in OF_SCHEDULES.items():
            if getattr(self, option) is not None and self.lr_scheduler_type not in schedules:
                known, own = " or ".join(schedules), self.lr_scheduler_type or "not said"
                raise ValueError(f"{option} is for lr_scheduler_type={known}, and that is {own}: leave {option} out")
        return self

    @model_validator(mode="after")
    def _one_precision(self) -> "Train":
        if self.bf16 and self.fp16:
            raise ValueError("bf16 and fp16 cannot both be true: choose one")
        return self

    @model_validator(mode="after")
    def _saves_memory_as_it_can(self) -> "Train":
        if self.activation_offload and self.activation_checkpointing in (False, "selective"):
            raise ValueError(
                "activation_offload moves what checkpoints keep: set train.activation_checkpointing=true, or a number n"
            )
        needed = {"gradient_accumulation_steps": 1, "max_grad_norm": 0, "fp16": False}
        wrong = [f"train.{name}={str(value).lower()}" for name, value in needed.items() if getattr(self, name) != value]
        if self.release_gradients and wrong:
            raise ValueError(f"release_gradients updates before all gradients are known: set {' and '.join(wrong)}")
        return self
