"""Inference: what runs whole models fast, counted and proved equal to the plain run."""

from .paging import BlockPool, PagedKVCache, rewind
from .roofline import Meter, RooflineModel, Work, block_weights, counted_llama, naive_greedy

__all__ = ["BlockPool", "Meter", "PagedKVCache", "RooflineModel", "Work", "block_weights", "counted_llama",
           "naive_greedy", "rewind"]
