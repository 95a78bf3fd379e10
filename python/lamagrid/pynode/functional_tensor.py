"""Makes the module that basicsr 1.4 imports and torchvision 0.17 removed.

Does not: bring back more than the one function that basicsr imports from it.
"""

from __future__ import annotations

import importlib.util
from types import ModuleType
from typing import Any

NAME = "torchvision.transforms.functional_tensor"


def functional_tensor(original: Any, _context: object) -> Any:
    """The replacement in ``sys.modules``; the original where torchvision still has the module."""
    if isinstance(original, ModuleType) or importlib.util.find_spec(NAME) is not None:
        return original
    from torchvision.transforms.functional import rgb_to_grayscale

    module = ModuleType(NAME)
    vars(module)["rgb_to_grayscale"] = rgb_to_grayscale
    return module
