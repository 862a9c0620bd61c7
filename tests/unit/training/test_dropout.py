"""Dropout drawn four numbers at a time is torch's: what is kept, by how much it grows, and what its gradient is."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from rlhf.training.dropout import PackedDropout, pack_dropout


@pytest.mark.parametrize("p", [0.05, 0.1, 0.5])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_so_many_are_dropped_and_the_mean_stays(p: float, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    states = torch.ones(301, 997, dtype=dtype, requires_grad=True)  # no multiple of four
    out = PackedDropout(p)(states)
    out.backward(torch.full_like(out, 2.0))
    dropped = out == 0
    n = out.numel()
    for part in (dropped, dropped.flatten()[3::4], dropped[:, :100]):  # every sixteenth bits of the words alike
        error = (p * (1 - p) / part.numel()) ** 0.5
        assert part.double().mean().item() == pytest.approx(p, abs=5 * error + 2**-16)
    assert n % 4
    torch.testing.assert_close(out[~dropped], torch.full_like(out[~dropped], 1 / (1 - p)), rtol=1e-2, atol=0)
    assert states.grad is not None
    torch.testing.assert_close(states.grad, 2 * out)


def test_neighbours_are_drawn_apart() -> None:
    torch.manual_seed(1)
    dropped = (PackedDropout(0.5)(torch.ones(1 << 20)) == 0).double()
    for lag in (1, 2, 3, 4):
        assert abs(((dropped[lag:] - 0.5) * (dropped[:-lag] - 0.5)).mean().item()) < 5 * 0.25 / 2**10


def test_it_follows_the_seed_and_is_nothing_in_eval_mode() -> None:
    layer, states = PackedDropout(0.3), torch.randn(7, 5)
    torch.manual_seed(2)
    first = layer(states)
    torch.manual_seed(2)
    assert torch.equal(layer(states), first) and not torch.equal(layer(states), first)
    assert layer.eval()(states) is states
    assert PackedDropout(0.0).train()(states).equal(states)
    assert not PackedDropout(1.0).train()(states).any()


def test_a_model_s_dropouts_are_packed_and_others_left() -> None:
    model = nn.Sequential(nn.Dropout(0.1), nn.Linear(2, 2), nn.Dropout(0.1, inplace=True), nn.AlphaDropout(0.1))
    pack_dropout(model)
    assert [type(layer) for layer in model] == [PackedDropout, nn.Linear, nn.Dropout, nn.AlphaDropout]
    assert model[0].p == 0.1
