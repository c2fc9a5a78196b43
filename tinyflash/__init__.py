"""tinyflash: the readable reference for running a language model that is larger than memory."""

from tinyflash.model import Model, load

__all__ = ["Model", "load"]
__version__ = "0.1.0"
