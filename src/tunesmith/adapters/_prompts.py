"""What adapters of virtual tokens have in common."""

from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import Field

from tunesmith.component import Component, name_of
from tunesmith.seams import Adapter, Objective

if TYPE_CHECKING:
    from transformers import PreTrainedModel

TYPES = ("PROMPT_TUNING", "P_TUNING", "PREFIX_TUNING")  # as peft calls them in an adapter's folder
UNMERGED = "virtual tokens stand before each sequence and in no weight of the model: use type=adapter"


class VirtualTokens(Adapter):
    """Virtual tokens before every sequence, by peft."""

    beside: ClassVar[bool] = True
    virtual: ClassVar[bool] = True
    unmerged: ClassVar[str | None] = UNMERGED

    num_virtual_tokens: Annotated[int, Field(gt=0)] = 20
    """Learned tokens before every sequence, beside its own data.max_tokens."""

    def refuses(self, other: Component) -> str | None:
        """Heads of their own and encoders: peft's virtual tokens are put before what a decoder writes on."""
        if not isinstance(other, Objective):
            return None
        name = name_of(other)
        if "values" in other.needs:
            return (
                f"the objective {name} trains a head, and virtual tokens go with words: use adapter=lora or layernorm"
            )
        if other.encodes:
            return (
                f"the objective {name} has an encoder, and virtual tokens stand before what a decoder alone reads: use "
                "adapter=lora or layernorm"
            )
        return None

    def with_prompt(self, model: "PreTrainedModel", config: Any) -> Any:
        """The model wrapped by peft with a config's virtual tokens, which alone require gradients, on packed rows."""
        from peft import get_peft_model

        from tunesmith.engine.compat import peft_warnings
        from tunesmith.engine.virtual_tokens import on_packed_rows

        model.requires_grad_(False)
        with peft_warnings():
            return on_packed_rows(get_peft_model(model, config))

    def common(self) -> dict[str, Any]:
        """The options of every config of peft's prompt learning."""
        return {"num_virtual_tokens": self.num_virtual_tokens, "task_type": "CAUSAL_LM"}
