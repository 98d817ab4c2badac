import pytest
import torch

from adapter.averaging import MovingAverage, between, wearing
from adapter.config import AdapterError, make_settings
from adapter.model import ModelConfig, Shape, build_model


def small(seed):
    torch.manual_seed(seed)
    return build_model(ModelConfig(blocks=1), Shape(16, 4))


def test_the_moving_average_is_the_recursion_written_out():
    model = torch.nn.Linear(1, 1, bias=False)
    with torch.no_grad():
        model.weight.fill_(8.0)
        average = MovingAverage(model, decay=0.5)
        for step, value in enumerate((4.0, 2.0, 1.0), start=1):
            model.weight.fill_(value)
            average.update(model, step)
    expected = 8.0
    for decay, value in ((2 / 11, 4.0), (3 / 12, 2.0), (4 / 13, 1.0)):
        expected = decay * expected + (1 - decay) * value
    assert average.weights["weight"].item() == pytest.approx(expected)
    # After many steps the decay is the one that was asked for.
    with torch.no_grad():
        average.update(model, 10_000)
    assert average.weights["weight"].item() == pytest.approx(0.5 * expected + 0.5)


def test_weights_between_two_are_exact_at_the_ends_and_linear():
    first, last = small(0).state_dict(), small(1).state_dict()
    for alpha, end in ((0.0, first), (1.0, last)):
        assert all(torch.equal(tensor, end[name]) for name, tensor in between(first, last, alpha).items())
    middle = between(first, last, 0.25)
    for name in middle:
        torch.testing.assert_close(middle[name], 0.75 * first[name] + 0.25 * last[name])


def test_other_weights_are_worn_and_taken_off_even_after_an_error():
    model, other = small(0), small(1).state_dict()
    own = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(KeyError), wearing(model, other):
        assert all(torch.equal(tensor, other[name]) for name, tensor in model.state_dict().items())
        raise KeyError
    assert all(torch.equal(tensor, own[name]) for name, tensor in model.state_dict().items())


def test_averaging_with_a_start_that_is_not_zero_shot_is_refused():
    with pytest.raises(AdapterError, match="wise_alpha is 0.5.*add --residual cls"):
        make_settings({"wise_alpha": 0.5})
    assert make_settings({"wise_alpha": 0.5, "residual": "cls"}).train.wise_alpha == 0.5
