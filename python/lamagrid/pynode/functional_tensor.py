"""The module that basicsr 1.4 imports and torchvision took away in 0.17.

Does not: bring back more than the one function that basicsr takes from it.
"""

from __future__ import annotations

import importlib.util
import sys
from types import ModuleType

NAME = "torchvision.transforms.functional_tensor"


def supply_functional_tensor() -> None:
    """Let ``from torchvision.transforms.functional_tensor import rgb_to_grayscale`` work, as it did."""
    if NAME in sys.modules or importlib.util.find_spec(NAME) is not None:
        return
    from torchvision.transforms.functional import rgb_to_grayscale

    module = ModuleType(NAME)
    vars(module)["rgb_to_grayscale"] = rgb_to_grayscale
    sys.modules[NAME] = module
