"""Networks: modules with named parameters, layers, losses, optimisers and a training loop."""

from . import init, metrics, schedule
from .conv import Conv1d, Conv2d
from .decode import Beams, beam_search, filter_logits, greedy, sample
from .hooks import HookHandle
from .layers import ACTIVATIONS, Activation, Dropout, Embedding, Linear, Sequential, activation
from .losses import (
    binary_cross_entropy_with_logits,
    cross_entropy,
    ctc_loss,
    info_nce,
    kl_div,
    margin_ranking_loss,
    mse_loss,
    multi_margin_loss,
    triplet_margin_loss,
)
from .mlp import GEGLU, GLU, MLP, Bilinear, ReGLU, SwiGLU
from .module import HookPoint, Module, ModuleList, Parameter
from .norm import BatchNorm, BatchNorm1d, BatchNorm2d, LayerNorm, RMSNorm
from .optim import EMA, SGD, Adam, AdamW, Optimizer, clip_grad_norm_, decay_groups
from .recurrent import GRU, LSTM, GRUCell, LSTMCell
from .train import History, train, training_step

__all__ = [
    "ACTIVATIONS", "EMA", "GEGLU", "GLU", "GRU", "LSTM", "MLP", "SGD", "Activation", "Adam", "AdamW",
    "BatchNorm", "BatchNorm1d", "BatchNorm2d", "Beams", "Bilinear", "Conv1d", "Conv2d", "Dropout",
    "Embedding", "GRUCell", "History", "HookHandle", "HookPoint", "LSTMCell", "LayerNorm", "Linear", "Module",
    "ModuleList", "Optimizer", "Parameter", "RMSNorm", "ReGLU", "Sequential", "SwiGLU", "activation",
    "beam_search", "binary_cross_entropy_with_logits", "clip_grad_norm_", "cross_entropy", "ctc_loss",
    "decay_groups", "filter_logits", "greedy", "info_nce", "init", "kl_div", "margin_ranking_loss",
    "metrics", "mse_loss", "multi_margin_loss", "sample", "schedule", "train", "training_step",
    "triplet_margin_loss",
]
