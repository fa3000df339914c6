from __future__ import annotations

import torch
import torch.nn.functional as F

from polytok.generators import CategoricalHead, CodebookHead


def head() -> CodebookHead:
    torch.manual_seed(0)
    return CodebookHead(12, torch.randn(40, 5), hidden=8)


def test_loss_is_the_cross_entropy_of_the_logits() -> None:
    for one in (head(), CategoricalHead(12, 40)):
        features, target = torch.randn(3, 7, 12), torch.randint(40, (3, 7))
        wanted = F.cross_entropy(one.logits(features).transpose(1, 2), target, reduction="none")
        assert torch.allclose(one.loss(features, target), wanted, atol=1e-6)


def test_codes_that_lie_together_get_the_same_logits_but_for_their_own_rows() -> None:
    codes = torch.randn(40, 5)
    codes[1] = codes[0]
    one = CodebookHead(12, codes)
    features = torch.randn(2, 3, 12)
    found = one.logits(features)
    assert not torch.allclose(found[..., 0], found[..., 1])
    with torch.no_grad():
        one.proj.weight[1] = one.proj.weight[0]
    found = one.logits(features)
    assert torch.allclose(found[..., 0], found[..., 1])


def test_what_is_kept_between_steps_follows_the_weights() -> None:
    one, features = head().eval(), torch.randn(2, 3, 12)
    with torch.no_grad():
        before = one.logits(features)
        assert one.weight() is one.weight()
        one.proj.weight.mul_(2.0)
        after = one.logits(features)
        with torch.enable_grad():
            fresh = one.logits(features)
        assert torch.equal(after, fresh) and not torch.equal(after, before)
        other = head()
        other.proj.weight.zero_()
        one.load_state_dict(other.state_dict())
        assert torch.equal(one.logits(features), other.logits(features))
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert one.weight() is one.weight()
        assert torch.equal(one.logits(features), other.logits(features))


def test_the_codebook_is_none_of_the_weights() -> None:
    one = head()
    assert "codes" not in one.state_dict()
    assert all(p is not one.codes for p in one.parameters())
