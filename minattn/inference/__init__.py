"""Running whole models: what inference costs, and what makes it cheaper (chapter `kernels`)."""

__all__: list[str] = []
