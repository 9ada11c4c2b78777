"""x"""
from . import distances, losses, reducers, utils
__version__ = "2.9.0"
