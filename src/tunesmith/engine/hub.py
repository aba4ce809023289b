"""Whether the hub of models can be reached: asked once, since its library tries for half a minute for every file."""

from functools import cache

from tunesmith.data.hubs import REACH_SECONDS, transport


@cache
def unreachable(name: str) -> str | None:
    """Why the hub cannot be asked for a model; None where it can. What its cache holds can be loaded all the same.

    One request that is not repeated; what the hub answers to it does not matter.
    """
    import huggingface_hub
    from huggingface_hub.errors import HfHubHTTPError

    if huggingface_hub.is_offline_mode():
        return "HF_HUB_OFFLINE is set"
    try:
        huggingface_hub.HfApi().model_info(name, timeout=REACH_SECONDS)
    except HfHubHTTPError:
        return None
    except transport() as error:
        return str(error) or type(error).__name__
    return None
