"""Numba forms of the kernels. Imported only when one is first called, so that `import minattn` stays quick."""
