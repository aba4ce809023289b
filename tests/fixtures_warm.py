"""What a forked command has imported before it begins: what training imports. See fixtures_commands."""

import gc

import torch

import tunesmith.engine.trainer
import tunesmith.run  # noqa: F401

torch.set_num_threads(1)
gc.freeze()  # a child's collections then leave the pages of libraries as they are
