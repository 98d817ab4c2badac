import json
import shutil

import pytest
import torch

from adapter import checkpoint
from adapter.artifact import open_run
from adapter.checkpoint import load_model, save_weights, state_of
from adapter.config import AdapterError, ModelConfig
from adapter.model import Shape, build_model

CPU = torch.device("cpu")


@pytest.fixture
def run(tmp_path, trained):
    """A run of one's own to damage."""
    return shutil.copytree(trained, tmp_path / "run")


def small_model():
    return build_model(ModelConfig(blocks=1, whiten_labels=True), Shape(16, 4))


def test_weights_come_back_bit_for_bit(tmp_path, run):
    model = load_model(open_run(run), CPU)
    assert not model.training
    save_weights(run / "model.safetensors", state_of(model))
    again = load_model(open_run(run), CPU).state_dict()
    assert again.keys() == model.state_dict().keys()
    assert all(torch.equal(tensor, again[name]) for name, tensor in model.state_dict().items())


def test_a_run_of_an_earlier_version_loads_as_it_was(run):
    """Such a run has no variant and none of the options since, its recipe meant another form, codes were a switch."""
    model = load_model(open_run(run), CPU).state_dict()
    config = json.loads((run / "config.json").read_text())
    since = "variant", "entities", "align", "rematch", "components", "conv", "ffn", "mlp_ratio"
    old = {name: value for name, value in config.items() if name not in since}
    (run / "config.json").write_text(json.dumps({**old, "recipe": "paper", "time_codes": True}))
    again = load_model(open_run(run), CPU).state_dict()
    assert all(torch.equal(tensor, again[name]) for name, tensor in model.items())


def test_equal_weights_give_equal_bytes_whatever_the_strides(tmp_path):
    state = state_of(small_model())
    save_weights(tmp_path / "a", state)
    strided = {
        name: tensor.mT.contiguous().mT if tensor.ndim == 2 else tensor for name, tensor in state.items()
    }
    save_weights(tmp_path / "b", {name: tensor.contiguous() for name, tensor in strided.items()})
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_the_state_is_a_copy_that_training_does_not_change():
    model = small_model()
    state = state_of(model)
    before = {name: tensor.clone() for name, tensor in state.items()}
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1)
    assert all(torch.equal(state[name], before[name]) for name in state)


def test_a_failed_write_leaves_the_old_weights_and_no_partial_file(tmp_path, monkeypatch):
    target = tmp_path / "model.safetensors"
    save_weights(target, state_of(small_model()))
    before = target.read_bytes()

    def full_disk(state, path, note):
        path.write_bytes(before[: len(before) // 2])
        assert target.read_bytes() == before
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint, "save_file", full_disk)
    for file in (target, tmp_path / "new.safetensors"):
        with pytest.raises(AdapterError, match=f"cannot write {file} .*No space left.*check the space"):
            save_weights(file, state_of(small_model()))
    assert [path.name for path in tmp_path.iterdir()] == ["model.safetensors"]
    assert target.read_bytes() == before


def test_a_folder_that_is_gone_is_a_message(tmp_path):
    with pytest.raises(AdapterError, match="cannot write .*gone"):
        save_weights(tmp_path / "gone" / "model.safetensors", state_of(small_model()))


@pytest.mark.parametrize("left", [0, 4, 100, -1])
def test_truncated_weights_are_a_message(run, left):
    file = run / "model.safetensors"
    file.write_bytes(file.read_bytes()[:left])
    with pytest.raises(
        AdapterError, match=f"{file} does not hold the weights of its config .*`adapter train"
    ):
        load_model(open_run(run), CPU)


def test_weights_of_another_model_are_a_message(run):
    save_weights(run / "model.safetensors", state_of(small_model()))
    with pytest.raises(AdapterError, match="does not hold the weights of its config"):
        load_model(open_run(run), CPU)


@pytest.mark.parametrize(("name", "value"), [("blocks", "many"), ("width", 33), ("nose", 1)])
def test_a_config_that_makes_no_model_names_its_file(run, name, value):
    config = json.loads((run / "config.json").read_text())
    (run / "config.json").write_text(json.dumps({**config, name: value}))
    with pytest.raises(AdapterError, match=f"config.json: .*{name}.*; train it again with `adapter train"):
        load_model(open_run(run), CPU)


def test_loading_leaves_the_callers_generator_alone(run):
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    load_model(open_run(run), CPU)
    assert torch.equal(torch.rand(3), expected)
