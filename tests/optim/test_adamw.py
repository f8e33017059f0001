"""AdamW's additions, against their formulas and against torch's AdamW without them."""

import pytest
import torch
from torch import nn

from megacpt.optim.adamw import AVERAGE, NOTHING, Additions, ContinualAdamW, Reptile
from megacpt.optim.groups import parameter_groups, split_to

RATE, DECAY, STEPS = 0.05, 0.1, 7


def trained(
    additions: Additions = NOTHING, multiplier: float = 1.0, steps: int = STEPS
) -> tuple[ContinualAdamW, nn.Parameter, list[torch.Tensor]]:
    """An optimizer after some steps on a matrix, the matrix, and its values before every step and at the end."""
    generator = torch.Generator().manual_seed(0)
    weight = nn.Parameter(torch.randn(4, 3, generator=generator))
    groups = parameter_groups([("w", weight)], DECAY, {"w": multiplier})
    optimizer = ContinualAdamW(groups, (0.9, 0.95), 1e-8, additions)
    history = [weight.detach().clone()]
    for _ in range(steps):
        weight.grad = torch.randn(4, 3, generator=generator)
        optimizer.set_rate(RATE)
        optimizer.step()
        history.append(weight.detach().clone())
    return optimizer, weight, history


def test_without_additions_it_is_torchs() -> None:
    _, _, history = trained()
    generator = torch.Generator().manual_seed(0)
    weight = nn.Parameter(torch.randn(4, 3, generator=generator))
    plain = torch.optim.AdamW([weight], lr=RATE, betas=(0.9, 0.95), weight_decay=DECAY, fused=True)
    for after in history[1:]:
        weight.grad = torch.randn(4, 3, generator=generator)
        plain.step()
        assert torch.equal(weight, after)


def test_a_whole_step_of_reptile_is_plain_training() -> None:
    assert torch.equal(trained(Additions(reptile=Reptile(3, 1.0)))[1], trained()[1])


def test_reptile_goes_back_to_the_last_interpolation() -> None:
    plain = trained()[2]
    _, _, history = trained(Additions(reptile=Reptile(3, 0.25)))
    assert torch.equal(history[2], plain[2]), "nothing happens in between"
    torch.testing.assert_close(history[3], plain[0] + 0.25 * (plain[3] - plain[0]))
    # The moments go on, so the second stretch starts from the interpolated weights with plain training's moments.
    shift = 1.0 - RATE * DECAY
    expected = (history[3] * shift**3) + plain[6] - plain[3] * shift**3
    torch.testing.assert_close(history[6], history[3] + 0.25 * (expected - history[3]))


def test_the_average_follows_its_recursion() -> None:
    optimizer, weight, history = trained(Additions(average_decay=0.8))
    expected = history[0].double()
    for after in history[1:]:
        expected = 0.8 * expected + 0.2 * after.double()
    torch.testing.assert_close(optimizer.state[weight][AVERAGE].double(), expected, rtol=1e-6, atol=1e-6)
    assert torch.equal(weight, trained()[1]), "averaging leaves training alone"


def test_decay_to_the_initial_weights_pulls_there() -> None:
    _, _, history = trained(Additions(decay_to_initial=True))
    generator = torch.Generator().manual_seed(0)
    initial = torch.randn(4, 3, generator=generator)
    weight = nn.Parameter(initial.clone())
    undecayed = torch.optim.AdamW([weight], lr=RATE, betas=(0.9, 0.95), weight_decay=0.0, fused=True)
    for after in history[1:]:
        weight.grad = torch.randn(4, 3, generator=generator)
        with torch.no_grad():
            weight.sub_(RATE * DECAY * (weight - initial))
        undecayed.step()
        torch.testing.assert_close(after, weight.detach(), rtol=1e-6, atol=1e-6)


def test_without_gradients_decay_to_the_initial_weights_does_nothing() -> None:
    weight = nn.Parameter(torch.randn(5))
    before = weight.detach().clone()
    optimizer = ContinualAdamW([{"params": [weight], "weight_decay": 1.0}], (0.9, 0.95), 1e-8, Additions(True))
    for _ in range(3):
        weight.grad = torch.zeros(5)
        optimizer.set_rate(0.1)
        optimizer.step()
    assert torch.equal(weight, before)


@pytest.mark.parametrize("multiplier", [0.0, 0.5])
def test_a_multiplier_is_a_factor_on_the_rate(multiplier: float) -> None:
    optimizer, weight, history = trained(multiplier=multiplier)
    assert optimizer.param_groups[0]["lr"] == RATE * multiplier
    assert torch.equal(weight, history[0]) == (multiplier == 0.0)


def test_forgotten_moments_are_those_of_a_new_optimizer() -> None:
    additions = Additions(reptile=Reptile(2, 0.5))
    optimizer, weight, _ = trained(additions, steps=3)
    optimizer.forget_moments()
    again = nn.Parameter(weight.detach().clone())
    fresh = ContinualAdamW(parameter_groups([("w", again)], DECAY), (0.9, 0.95), 1e-8, additions)
    for _ in range(3):
        weight.grad = torch.randn(4, 3)
        again.grad = weight.grad.clone()
        for each in (optimizer, fresh):
            each.set_rate(RATE)
            each.step()
        assert torch.equal(weight, again)


def test_splitting_groups_changes_no_update() -> None:
    parameters = [nn.Parameter(torch.ones(2, 2)) for _ in range(5)]
    groups = parameter_groups(((str(i), p) for i, p in enumerate(parameters)), DECAY, {"[01]": 0.5})
    split = split_to(groups, 4)
    assert len(split) == 4 and all(group["params"] for group in split)
    rates = {id(p): group["lr_multiplier"] for group in split for p in group["params"]}
    assert rates == {id(p): 0.5 if i < 2 else 1.0 for i, p in enumerate(parameters)}
    with pytest.raises(ValueError, match="6 groups"):
        split_to(groups, 6)
