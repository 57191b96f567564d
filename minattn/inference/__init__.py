"""Inference: what runs whole models fast, counted and proved equal to the plain run."""
