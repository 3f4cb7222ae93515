"""The running average of the parameters: by hand, carried over, swapped in."""

from contextlib import suppress

import pytest
import torch
from small import ArrayFeed, fresh, small_config

from polyvit.errors import UserError
from polyvit.model.polyvit import PolyViT
from polyvit.training.ema import Ema
from polyvit.training.step import SingleProcess, train_step

pytestmark = pytest.mark.usefixtures("one_thread")


def model_of(value: float) -> PolyViT:
    model = fresh(small_config())[0]
    set_all(model, value)
    return model


def set_all(model: PolyViT, value: float) -> None:
    with torch.no_grad():
        for p in model.parameters():
            p.fill_(value)


def values(tensors: dict[str, torch.Tensor]) -> set[float]:
    return {value for tensor in tensors.values() for value in tensor.flatten().tolist()}


def test_by_hand() -> None:
    """decay 0.75: 8 | 0.75 * 8 + 0.25 * 4 = 7 | 0.75 * 7 + 0.25 * 0 = 5.25."""
    model = model_of(8.0)
    ema = Ema(model, 0.75)
    assert values(ema.state()) == {8.0}
    set_all(model, 4.0)
    ema.update()
    assert values(ema.state()) == {7.0}
    set_all(model, 0.0)
    ema.update()
    assert values(ema.state()) == {5.25}


def test_swapped_in_for_an_evaluation_and_back_even_after_an_error() -> None:
    model = model_of(8.0)
    ema = Ema(model, 0.75)
    set_all(model, 4.0)
    seen = set()
    with suppress(ZeroDivisionError), ema.swapped():
        seen = values(dict(model.named_parameters()))
        raise ZeroDivisionError
    assert seen == {8.0}
    assert values(dict(model.named_parameters())) == {4.0}
    assert values(ema.state()) == {8.0}


def test_a_resumed_average_goes_on_bit_for_bit() -> None:
    config = small_config()
    averages = []
    for broken_off in (False, True):
        model, optimiser, _ = fresh(config)
        ema = Ema(model, 0.9)
        for minibatches in ArrayFeed(config).train(1):
            if broken_off and minibatches[0].step == 7:
                kept = {name: tensor.clone() for name, tensor in ema.state().items()}
                ema = Ema(model, 0.9)
                ema.load_state(kept)
            train_step(model, optimiser, minibatches, 0.1, config, SingleProcess())
            ema.update()
        averages.append(ema.state())
    assert all(torch.equal(averages[1][name], tensor) for name, tensor in averages[0].items())
    parameters = dict(model.named_parameters())
    assert not any(torch.equal(parameters[name], tensor) for name, tensor in averages[0].items())


def test_another_models_average_is_refused() -> None:
    ema = Ema(model_of(1.0), 0.9)
    other = fresh(small_config("model.width=32"))[0]
    with pytest.raises(UserError, match=r"optim\.ema_decay=null"):
        ema.load_state({name: p.detach() for name, p in other.named_parameters()})
