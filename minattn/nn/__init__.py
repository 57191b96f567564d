"""Networks: modules with named parameters, layers, losses, optimisers and a training loop."""

from . import init
from .hooks import HookHandle
from .layers import Linear
from .module import HookPoint, Module, ModuleList, Parameter

__all__ = ["HookHandle", "HookPoint", "Linear", "Module", "ModuleList", "Parameter", "init"]
