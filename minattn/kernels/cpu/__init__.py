"""Numba forms of the kernels. Imported when one is first called, so that `import minattn` stays quick."""
