"""SmolLM2 against transformers on the same weights."""

import numpy as np
import pytest

from minattn.autograd import no_grad


def test_logits_equal_transformers_over_200_tokens(smollm2, hf_smollm2, verse):
    torch = pytest.importorskip("torch")
    ids = smollm2.tokenizer.encode(verse)[:200]
    assert len(ids) == 200 and len(set(ids)) > 60
    with no_grad():
        ours = smollm2(np.array([ids])).data
    with torch.no_grad():
        theirs = hf_smollm2(torch.tensor([ids])).logits.numpy()
    assert theirs.std() > 1
    print(f"largest difference of logits over 200 tokens: {np.abs(ours - theirs).max():.1e}")
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=2e-3)
    np.testing.assert_array_equal(ours.argmax(-1), theirs.argmax(-1))
