"""Networks: modules, layers, losses, optimisers, training, decoding and metrics."""

from . import checkpoint, decode, init, losses, metrics, optim, schedule
from .conv import Conv1d, Conv2d
from .decode import *  # noqa: F403
from .hooks import HookHandle
from .layers import ACTIVATIONS, Activation, Dropout, Embedding, Linear, Sequential, activation
from .losses import *  # noqa: F403
from .metrics import *  # noqa: F403
from .mlp import GEGLU, GLU, MLP, Bilinear, ReGLU, SwiGLU
from .module import HookPoint, Module, ModuleList, Parameter
from .norm import BatchNorm, BatchNorm1d, BatchNorm2d, LayerNorm, RMSNorm
from .optim import *  # noqa: F403
from .packed import PackedEmbedding, PackedLinear
from .recurrent import GRU, LSTM, GRUCell, LSTMCell
from .train import History, train, training_step

__all__ = [
    "ACTIVATIONS", "GEGLU", "GLU", "GRU", "LSTM", "MLP", "Activation", "BatchNorm", "BatchNorm1d",
    "BatchNorm2d", "Bilinear", "Conv1d", "Conv2d", "Dropout", "Embedding", "GRUCell", "History", "HookHandle",
    "HookPoint", "LSTMCell", "LayerNorm", "Linear", "Module", "ModuleList", "PackedEmbedding", "PackedLinear",
    "Parameter", "RMSNorm", "ReGLU", "Sequential", "SwiGLU", "activation", "checkpoint", "init",
    "schedule", "train", "training_step", *decode.__all__, *losses.__all__, *metrics.__all__, *optim.__all__,
]
