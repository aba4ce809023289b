"""Train the norms alone (arXiv 2312.11420), by peft."""

from typing import TYPE_CHECKING, Any, ClassVar

from tunesmith.seams import Adapter

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel


class LayerNorm(Adapter):
    """Copies of the model's norms are trained, by peft's LNTuning, and saved alone."""

    learning_rate: ClassVar[float] = 1e-3
    beside: ClassVar[bool] = True

    def apply(self, model: "PreTrainedModel") -> Any:
        """The model wrapped by peft, with only copies of its norms requiring gradients, in float32.

        Raises RecipeError when it has no norm with weights.
        """
        from peft import LNTuningConfig, get_peft_model
        from peft.tuners.ln_tuning.layer import LNTuningLayer

        from tunesmith.adapters._peft import heads_to_save, task_of
        from tunesmith.engine.compat import peft_warnings
        from tunesmith.errors import RecipeError

        norms = sorted({name.rpartition(".")[2] for name, module in model.named_modules() if is_norm(module)})
        if not norms:
            raise RecipeError(
                f"adapter: {type(model).__name__} has no norm with weights, so layernorm trains nothing: choose "
                "adapter=lora"
            )
        whole = heads_to_save(model) or None
        config = LNTuningConfig(target_modules=norms, modules_to_save=whole, task_type=task_of(model))
        with peft_warnings():
            adapted = get_peft_model(model, config)
        for module in adapted.modules():
            if isinstance(module, LNTuningLayer):
                module.ln_tuning_layers.float()  # steps are smaller than what half precision tells apart around 1
                module.register_forward_hook(_as_given)
        return adapted


def is_norm(module: "torch.nn.Module") -> bool:
    """Whether a module is a norm with weights, as its class says."""
    return type(module).__name__.endswith("Norm") and any(True for _ in module.parameters(recurse=False))


def _as_given(module: Any, args: "tuple[torch.Tensor, ...]", output: "torch.Tensor") -> "torch.Tensor":
    """The output of a norm in float32 in the precision of the states that it was given."""
    return output.to(args[0].dtype)
