"""Converts exceptions of upstream's code into failures of the grid.

Does not: decide about retries; the scheduler does, by the kind.
"""

from __future__ import annotations

import traceback
from pathlib import Path

import cv2
import torch
from PIL import UnidentifiedImageError

from lamagrid.errors import UNREADABLE_PICTURE_TEXT, LamaGridError
from lamagrid.upstream.catalog import PLUGIN_PREFIX

MESSAGE_CHARS = 500
OUT_OF_MEMORY_MARKS = ("CUDA out of memory", "can't allocate memory", "Insufficient memory")
# Upstream raises these for invalid parameters and files.
INVALID_INPUT = (KeyError, ValueError, TypeError, IndexError, cv2.error, UnidentifiedImageError)


class TaskFailure(Exception):
    """A failed task, with the kind that the grid knows and one text for people."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind
        self.message = message


class Stopped(Exception):
    """The task was cancelled."""


def run_failure(error: BaseException) -> TaskFailure:
    """The failure to run a model or plugin."""
    if _is_out_of_memory(error):
        kind = "out_of_memory"
    else:
        kind = "invalid_input" if isinstance(error, INVALID_INPUT) else "inference"
    return TaskFailure(kind, message(error))


def load_failure(model: str, error: BaseException, missing: str | None = None) -> TaskFailure:
    """The failure to build the model that tasks call ``model``; ``missing`` names a missing package."""
    if _is_out_of_memory(error):
        return TaskFailure("out_of_memory", message(error))
    if missing is not None:
        why = missing
    elif isinstance(error, LamaGridError):  # of the fetch of a file; the text says what to do
        why = str(error)
    else:
        broken = "its weights are missing or broken, see the node's output"
        why = broken if isinstance(error, SystemExit) else message(error)
        why += f"; `lamagrid model verify {model}` says whether its files are whole"
    what = f"the plugin {model.removeprefix(PLUGIN_PREFIX)}" if model.startswith(PLUGIN_PREFIX) else model
    return TaskFailure("model_load", f"{what} cannot be loaded: {why}")


def message(error: BaseException) -> str:
    """One short line: the message, with the class where the message alone says little."""
    if isinstance(error, UnidentifiedImageError):
        return UNREADABLE_PICTURE_TEXT
    text = " ".join(str(error).split())
    if not text:
        text = f"{type(error).__name__}, without a reason{_where(error)}"
    elif not isinstance(error, RuntimeError):
        text = f"{type(error).__name__}: {text}"
    return text[:MESSAGE_CHARS]


def _where(error: BaseException) -> str:
    frames = traceback.extract_tb(error.__traceback__)
    return f", in {frames[-1].name} of {Path(frames[-1].filename).name}" if frames else ""


def _is_out_of_memory(error: BaseException) -> bool:
    if isinstance(error, (MemoryError, torch.cuda.OutOfMemoryError)):
        return True
    text = str(error)
    return any(mark in text for mark in OUT_OF_MEMORY_MARKS)
