"""What is asked for when instruction data is made: the options of `tunesmith synthesize`."""

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from tunesmith.component import Section
from tunesmith.errors import RecipeError
from tunesmith.generate.endpoint import is_address, problem_of

BANNED = (
    "image", "images", "graph", "graphs", "picture", "pictures", "photo", "photos", "file", "files", "map", "maps",
    "draw", "plot", "go to", "write a program", "图片", "图像", "照片", "文件", "地图", "画出",
)  # fmt: skip


class Synthesis(Section):
    """Instructions and their examples, written by a model from some tasks that people wrote (Self-Instruct)."""

    model: str
    """Run, checkpoint, adapter or model folder, hub id or `builtin:tiny`; or the address of a server that speaks as
    OpenAI's does (http://127.0.0.1:8000/v1)."""
    name: str | None = None
    """Model to ask for at an address."""
    key_variable: str | None = None
    """Environment variable that holds the key of an address. None: no key is sent."""
    timeout_seconds: Annotated[float, Field(gt=0)] = 120.0
    """How long to wait for an answer from an address."""
    max_retries: Annotated[int, Field(ge=0, le=20)] = 5
    """How often a request to an address is made again when it fails for now, each time after a longer wait."""
    num_instructions: Annotated[int, Field(gt=0)] = 100
    """New instructions."""
    num_prompt_tasks: Annotated[int, Field(gt=0, le=100)] = 8
    """Instructions that a request for new ones shows; as many new ones are asked for."""
    num_prompt_generated: Annotated[int, Field(ge=0)] = 2
    """How many of them are generated ones, once there are some."""
    max_similarity: Annotated[float, Field(gt=0, le=1)] = 0.7
    """An instruction whose ROUGE-L with an earlier one is above this is dropped."""
    banned: tuple[str, ...] = BANNED
    """Words that a text model has no use for: an instruction with one of them is dropped."""
    kinds: Literal["auto", "classification", "other"] = "auto"
    """Which tasks are made. auto: of both kinds, and the model decides of each; the seed tasks say `is_classification`
    to show it how."""
    max_instances: Annotated[int, Field(gt=0, le=100)] = 5
    """Examples that are kept of one instruction."""
    with_seeds: bool = False
    """Whether the seed tasks' own examples are put before the generated ones."""
    temperature: Annotated[float, Field(ge=0)] = 0.7
    """How freely instructions are drawn; the examples are always the likeliest."""
    top_p: Annotated[float, Field(gt=0, le=1)] = 0.9
    """Instructions are drawn from the likeliest tokens that hold this much of the probability."""
    max_new_tokens: Annotated[int, Field(gt=0)] = 1024
    """Longest answer of the model, in tokens; what it cuts off is dropped."""
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 42
    """Decides what is shown in a request, and what is drawn."""

    @model_validator(mode="after")
    def _goes_together(self) -> "Synthesis":
        if self.num_prompt_generated >= self.num_prompt_tasks:
            raise ValueError(f"num_prompt_generated must be below num_prompt_tasks ({self.num_prompt_tasks})")
        problem = problem_of(self.model, "model") if self.is_address else None
        if problem is not None:
            raise ValueError(problem)
        if self.is_address and self.name is None:
            raise ValueError("name is required with an address: say which of its models to ask for")
        for option in ("name", "key_variable"):
            if not self.is_address and getattr(self, option) is not None:
                raise ValueError(f"{option} belongs to an address, and model is none")
        return self

    @property
    def is_address(self) -> bool:
        """Whether the model is asked over HTTP."""
        return is_address(self.model)

    def __init__(self, **options: Any) -> None:
        from pydantic import ValidationError

        from tunesmith.explain import explain

        try:
            super().__init__(**options)
        except ValidationError as error:
            raise RecipeError(explain(error, Synthesis)) from None
