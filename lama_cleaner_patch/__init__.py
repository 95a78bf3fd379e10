"""Replaces names of Lama Cleaner: a migration swaps one import.

``from lama_cleaner_patch import ModelManager`` replaces the same name of ``lama_cleaner.model_manager``, and
``from lama_cleaner_patch import entry_point`` that of ``lama_cleaner``. ``application`` makes the WSGI
application for a production server.
"""

from lamagrid.launcher.cli import entry_point
from lamagrid.launcher.wsgi import application
from lamagrid.web.model_manager import RemoteModelManager as ModelManager

__all__ = ["ModelManager", "application", "entry_point"]
