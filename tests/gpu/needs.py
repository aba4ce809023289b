"""Where these tests run."""

import importlib.util

import pytest
import torch

DEVICE = "cuda"
HERE = torch.cuda.is_available()

cuda = pytest.mark.skipif(not HERE, reason="needs a CUDA device, and torch sees none here")


def package(name):
    """Skip where a package is not installed."""
    return pytest.mark.skipif(importlib.util.find_spec(name) is None, reason=f"needs {name}, which is not installed")


def generation(major, minor=0, exactly=False):
    """Skip where the device is older, or another one."""
    found = torch.cuda.get_device_capability() if HERE else (0, 0)
    fits = found[0] == major if exactly else found >= (major, minor)
    return pytest.mark.skipif(not fits, reason=f"needs compute capability {major}.{minor}, and this is {found}")
