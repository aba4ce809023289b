"""How a model is served: the options of `tunesmith serve`."""

import argparse
from typing import Annotated, Any, Literal, get_args

from pydantic import AfterValidator, Field, ValidationError

from tunesmith.component import Section
from tunesmith.errors import RecipeError

LOOPBACK = ("127.0.0.1", "::1", "localhost")
Pooling = Literal["mean", "last"]


METAVARS = {  # what stands for the value of an option that is no number
    "name": "NAME", "adapter": "NAME=FOLDER", "host": "ADDRESS", "device": "DEVICE", "api_key_file": "FILE",
    "embedding_pooling": "|".join(get_args(Pooling)), "cors_origin": "ADDRESS",
}  # fmt: skip


def _with_its_name(said: str) -> str:
    name, _, folder = said.partition("=")
    if not name or not folder or name.split() != [name]:
        raise ValueError("must be NAME=FOLDER, with a name that has no blank in it")
    return said


class Serving(Section):
    """How a model is served."""

    name: str | None = None
    """What requests call the model. None: the last part of its path, or its hub id."""
    adapter: tuple[Annotated[str, AfterValidator(_with_its_name)], ...] = ()
    """NAME=FOLDER of an adapter that is served beside the model, by its name; may be said several times."""
    host: str = "127.0.0.1"
    """Address to listen at. Another than this machine's own is reached by others: give it a key."""
    port: Annotated[int, Field(ge=0, le=65535)] = 8000
    """Port to listen at. 0: a free one, which is said."""
    device: str = "auto"
    """Where the model is: a word of `train.device`."""
    api_key_file: str | None = None
    """File with the keys that requests may have, one a line. The environment's TUNESMITH_API_KEY is one too; without
    any, no key is asked for."""
    max_running: Annotated[int, Field(ge=1, le=4096)] = 64
    """Answers that are made at a time."""
    max_waiting: Annotated[int, Field(ge=0, le=65536)] = 256
    """Answers that may wait for a place; further requests are told to come again (503)."""
    cache_tokens: Annotated[int, Field(ge=256)] | None = None
    """Tokens of all running answers and their prompts together. None: what half of the free memory holds."""
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    """Longest answer that may be asked for. None: what the model's context has room for."""
    max_body_bytes: Annotated[int, Field(ge=1024, le=2**30)] = 16 * 2**20
    """Largest request."""
    receive_seconds: Annotated[float, Field(gt=0, le=3600)] = 60.0
    """How long a request may take to come."""
    grace_seconds: Annotated[float, Field(ge=0, le=86400)] = 30.0
    """How long running answers may go on after SIGTERM or Ctrl-C."""
    embedding_pooling: Pooling = "mean"
    """What an embedding is: the mean of the last hidden states, or the last token's."""
    cors_origin: tuple[str, ...] = ()
    """Address of a web page that may ask from a browser; `*`: any. May be said several times."""

    def __init__(self, **options: Any) -> None:
        from tunesmith.explain import explain

        try:
            super().__init__(**options)
        except ValidationError as error:
            raise RecipeError(explain(error, Serving)) from None

    @property
    def adapters(self) -> dict[str, str]:
        """The folders of the adapters by name. Raises RecipeError when a name comes twice."""
        found: dict[str, str] = {}
        for said in self.adapter:
            name, _, folder = said.partition("=")
            if name in found:
                raise RecipeError(f"--adapter: the name {name!r} is said twice, for {found[name]} and {folder}")
            found[name] = folder
        return found


def declare(parser: argparse.ArgumentParser) -> None:
    """Add an argument for each option."""
    for name, field in Serving.model_fields.items():
        text = " ".join((field.description or "").split()).replace("%", "%%").replace("None: ", "Without it: ")
        shown = "" if field.default in (None, ()) else f" ({field.default})"
        several: Any = {"action": "append"} if field.default == () else {}
        word = f"--{name.replace('_', '-')}"
        parser.add_argument(
            word, metavar=METAVARS.get(name, "N"), default=argparse.SUPPRESS, help=f"{text}{shown}", **several
        )


def read(arguments: argparse.Namespace) -> Serving:
    """The options that were said. Raises RecipeError, one line for each problem."""
    said = {name: value for name, value in vars(arguments).items() if name in Serving.model_fields}
    try:
        return Serving(**said)
    except RecipeError as error:
        raise RecipeError("\n".join(map(_dashed, str(error).splitlines()))) from None


def _dashed(line: str) -> str:
    """A line about an option, which it names as it is typed."""
    name = line.partition(":")[0].partition(".")[0]
    rest = line.partition(":")[2]
    return f"--{name.replace('_', '-')}:{rest}" if name in Serving.model_fields else line
