"""Whether the hub of models can be reached: asked once, since its library tries for half a minute for every file."""

from functools import cache
from typing import Any

REACH_SECONDS = 5.0


@cache
def unreachable(name: str) -> str | None:
    """Why the hub cannot be asked for a model; None where it can. What its cache holds can be loaded all the same.

    One request that is not repeated; what the hub answers to it does not matter.
    """
    import huggingface_hub
    from huggingface_hub.errors import HfHubHTTPError

    if huggingface_hub.is_offline_mode():
        return "HF_HUB_OFFLINE is set"
    transport: Any = HfHubHTTPError.__bases__  # of the HTTP library, httpx or httpx2, and of the system
    try:
        huggingface_hub.HfApi().model_info(name, timeout=REACH_SECONDS)
    except HfHubHTTPError:
        return None
    except transport as error:
        return str(error) or type(error).__name__
    return None
