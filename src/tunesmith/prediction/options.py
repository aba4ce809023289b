"""How rows are answered: the options of `tunesmith predict`. It imports nothing heavy."""

from typing import Annotated

from pydantic import Field, model_validator

from tunesmith.component import default
from tunesmith.generate.asked import Sampling
from tunesmith.generate.endpoint import Server
from tunesmith.generate.engines import EngineName, Vllm, refuse_words
from tunesmith.recipe import Dtype
from tunesmith.recipe_train import DeviceName
from tunesmith.seams import Format


class Prediction(Sampling):
    """How the rows of a data set are answered; typed by these names alone, as in num_samples=100."""

    format: Format = default(Format)
    """How a row of the file is read: see `data.train[].format`."""
    num_samples: Annotated[int, Field(gt=0)] | None = None
    """Answer so many rows, the first ones. None: all."""
    token_accuracy: bool = True
    """Whether also the share of the known answer's tokens is measured that are the likeliest behind those before
    them, which reads each row once more."""
    device: DeviceName = "auto"
    """Device to answer on. auto: the first present of cuda, xpu, mps, cpu."""
    dtype: Dtype | None = None
    """Precision of the weights. None: as stored, or float32 on a device without bfloat16 arithmetic."""
    server: Server = Server()
    """How a model is asked that is named by a server's address, http://HOST:PORT/v1."""
    engine: EngineName = "own"
    """What answers with a model of this process: our own engine, or vLLM."""
    vllm: Vllm = Vllm()
    """How vLLM is started."""

    @model_validator(mode="after")
    def _engine(self) -> "Prediction":
        refuse_words(self.engine, self.vllm, self.device)
        return self
