"""The imports to swap.

``from lama_cleaner_patch import ModelManager`` stands for the same name from ``lama_cleaner.model_manager``,
``from lama_cleaner_patch import entry_point`` for the one from ``lama_cleaner``. ``application``
makes what a production server serves.
"""

from lamagrid.launcher.cli import entry_point
from lamagrid.launcher.wsgi import application
from lamagrid.web.model_manager import RemoteModelManager as ModelManager

__all__ = ["ModelManager", "application", "entry_point"]
