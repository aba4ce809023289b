"""What answers in this process: our own engine, or vLLM, by the words that `predict` and `evaluate` take."""

from typing import Annotated, Literal

from pydantic import Field

from tunesmith.component import Section
from tunesmith.errors import RecipeError

EngineName = Literal["own", "vllm"]


class Vllm(Section):
    """How vLLM is started where `engine=vllm`."""

    max_model_len: Annotated[int, Field(ge=2)] | None = None
    """Tokens of a prompt with its answer at most. None: what the model was made for."""
    gpu_memory_utilization: Annotated[float, Field(gt=0, le=1)] = 0.9
    """Share of a GPU's memory that vLLM takes for weights and caches."""
    tensor_parallel_size: Annotated[int, Field(ge=1)] = 1
    """GPUs over which each layer is spread."""
    enforce_eager: bool = False
    """Whether nothing is compiled: it starts sooner, and answers more slowly."""


BESIDE = {"gpu_memory_utilization", "tensor_parallel_size", "enforce_eager"}  # options of vLLM that change no answer


def refuse_unused(engine: EngineName, vllm: Vllm) -> None:
    """Raise ValueError for options of vLLM where it is not asked."""
    if engine == "own" and (said := vllm.model_dump(exclude_defaults=True)):
        name, value = next(iter(said.items()))
        raise ValueError(f"vllm.{name}={value} is for engine=vllm, which is not said: say it, or leave the option out")


def refuse_address(path: str, vllm: bool) -> None:
    """Raise RecipeError for a server's model that vLLM is to answer with in this process."""
    if vllm:
        raise RecipeError(f"engine=vllm is for models of this process, and {path} is a server's: leave it out")
