"""x"""
from . import distances, losses, miners, reducers, regularizers, utils
__version__ = "2.9.0"
