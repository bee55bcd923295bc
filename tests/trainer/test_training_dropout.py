"""The quicker dropout is dropout: its share, its scale, its gradient, its random numbers."""

import pytest
import torch
from torch import nn

from finetune_trainer.training.dropouts import QuickDropout, quicken


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
def test_it_drops_that_share_and_keeps_the_mean(p: float) -> None:
    torch.manual_seed(0)
    found = QuickDropout(p)(torch.ones(1000, 999))
    # Five standard deviations of a share, and of a mean of what is kept, scaled.
    error = 5 * (p * (1 - p) / found.numel()) ** 0.5
    assert (found == 0).double().mean().item() == pytest.approx(p, abs=error)
    assert found.double().mean().item() == pytest.approx(1, abs=error / (1 - p))
    kept = found[found != 0]
    torch.testing.assert_close(kept, torch.full_like(kept, 1 / (1 - p)), rtol=1e-4, atol=0)
    for axis in (0, 1):  # no row or column has more than its share
        shares = (found == 0).double().mean(dim=axis)
        assert shares.std().item() == pytest.approx((p * (1 - p) / 1000) ** 0.5, rel=0.15)


def test_gradients_pass_where_values_do() -> None:
    torch.manual_seed(1)
    values = torch.randn(7, 5, requires_grad=True)
    found = QuickDropout(0.4)(values)
    found.sum().backward()
    assert values.grad is not None
    assert torch.equal(values.grad * values, found)
    assert 0 < int((found == 0).sum()) < 35


def test_it_draws_from_torch_s_generator() -> None:
    dropout, values = QuickDropout(0.3), torch.ones(64, 3)
    torch.manual_seed(2)
    first, second = dropout(values), dropout(values)
    torch.manual_seed(2)
    assert torch.equal(dropout(values), first)
    assert not torch.equal(first, second)


@pytest.mark.parametrize(("p", "training"), [(0.5, False), (0.0, True), (1e-7, True), (1.0, True)])
def test_where_nothing_is_drawn_it_is_torch_s(p: float, training: bool) -> None:
    values = torch.randn(10)
    torch.manual_seed(3)
    expected = nn.Dropout(p).train(training)(values)
    torch.manual_seed(3)
    assert torch.equal(QuickDropout(p).train(training)(values), expected)


def test_a_model_s_dropouts_are_replaced_and_nothing_else() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.2), nn.Sequential(nn.Dropout2d(0.3)))
    model.eval()
    before = dict(model.state_dict())
    quicken(model)
    assert [type(module) for module in model.modules()] == [
        nn.Sequential, nn.Linear, QuickDropout, nn.Sequential, nn.Dropout2d
    ]  # fmt: skip
    assert model[1].p == 0.2
    assert not model[1].training
    assert model.state_dict().keys() == before.keys()
