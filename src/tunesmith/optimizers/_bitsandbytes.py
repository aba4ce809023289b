"""bitsandbytes' AdamW in 8 bit, with a state that a checkpoint without pickle can hold."""

from typing import Any

import bitsandbytes
import torch

MAPS = {"qmap1": "dynamic", "qmap2": "udynamic"}  # what a byte of each state stands for: the same for all weights


class PlainAdamW8bit(bitsandbytes.optim.AdamW8bit):
    """The same arithmetic; a state dict of tensors by name alone, and a step that does not wait for the device."""

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        """Update every parameter that has a gradient.

        Upstream's waits for the device after each, which only paged states need.
        """
        assert closure is None, "the trainer has none"
        for group_number, group in enumerate(self.param_groups):
            for number, parameter in enumerate(group["params"]):
                if parameter.grad is not None:
                    if not self.state[parameter]:
                        self.init_state(group, parameter, group_number, number)
                    self.prefetch_state(parameter)
                    self.update_step(group, parameter, group_number, number)
        if self.is_paged:
            torch.cuda.synchronize()

    def state_dict(self) -> dict[str, Any]:
        """The states without the maps, which are constants and shared between the parameters."""
        found = torch.optim.Optimizer.state_dict(self)
        states = found["state"].items()
        own = {number: {k: v for k, v in state.items() if k not in MAPS} for number, state in states}
        return found | {"state": own}

    def load_state_dict(self, state_dict: dict[str, Any], move_to_device: bool = True) -> None:
        """Take up what `state_dict` gave."""
        super().load_state_dict(state_dict, move_to_device)
        for parameter, state in self.state.items():
            if self.is_paged:
                for name in ("state1", "state2"):
                    state[name] = self.get_state_buffer(parameter, dtype=state[name].dtype).copy_(state[name])
            if "absmax1" in state:
                for name, kind in MAPS.items():
                    self.name2qmap[kind] = state[name] = self.name2qmap[kind].to(parameter.device)
