"""Networks: modules with named parameters, layers, losses, optimisers and a training loop."""

from . import init
from .conv import Conv1d, Conv2d
from .hooks import HookHandle
from .layers import ACTIVATIONS, Activation, Dropout, Embedding, Linear, Sequential, activation
from .mlp import GEGLU, GLU, MLP, Bilinear, ReGLU, SwiGLU
from .module import HookPoint, Module, ModuleList, Parameter
from .norm import BatchNorm, BatchNorm1d, BatchNorm2d, LayerNorm, RMSNorm
from .recurrent import GRU, LSTM, GRUCell, LSTMCell

__all__ = [
    "ACTIVATIONS", "GEGLU", "GLU", "GRU", "LSTM", "MLP", "Activation", "BatchNorm", "BatchNorm1d",
    "BatchNorm2d", "Bilinear", "Conv1d", "Conv2d", "Dropout", "Embedding", "GRUCell", "HookHandle",
    "HookPoint", "LSTMCell", "LayerNorm", "Linear", "Module", "ModuleList", "Parameter", "RMSNorm", "ReGLU",
    "Sequential", "SwiGLU", "activation", "init",
]
