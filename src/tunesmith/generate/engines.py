"""What answers in this process: our own engine, or vLLM, by the words that `predict` and `evaluate` take."""

from typing import Annotated, Literal

from pydantic import Field

from tunesmith.component import Section

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
