"""The classes that config.json may name."""

from .Entry import EchoEntry as EchoEntry
from .Entry import TransformersEntry as TransformersEntry
