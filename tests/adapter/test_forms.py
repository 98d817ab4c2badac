"""The named forms from training to a score, on artifacts."""

import json

import pytest

from adapter.config import make_settings
from adapter.evaluate import evaluate
from adapter.train import train

QUICK = {"blocks": 1, "epochs": 1, "batch_size": 16, "mlp_ratio": 1, "device": "cpu"}


@pytest.mark.parametrize(
    ("form", "agreement"),
    [
        ({"variant": "paper-labels", "noise": "never"}, {1.0}),
        ({"variant": "paper", "rematch": True, "scale": 5.0}, None),
    ],
    ids=["labels", "rematch"],
)
def test_a_form_is_kept_in_the_run_and_its_agreement_logged(
    tmp_path, toy, learnable, label_set, form, agreement
):
    report = train(learnable, label_set, tmp_path / "run", make_settings({**QUICK, **form}))
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert config.items() >= make_settings({**QUICK, **form}).flat().items()
    assert config["variant"] == form["variant"]
    logged = {line["agreement"] for line in report.history}
    assert logged == agreement if agreement else all(0.2 < share < 0.9 for share in logged)
    # Scored with fewer labels than were trained on: what is a corpus of labels follows the set at hand.
    few = toy.write_labels(tmp_path / "few", toy.classes[:2])
    assert evaluate(tmp_path / "run", learnable, few, device="cpu")["n"] == 6
