"""The corpus builder and the adapter clean a class name alike: a video's label then finds its class."""

import csv
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from adapter.labels import clean_name as adapter_name
from corpus_builder.sources import clean_name as corpus_name

REAL = {
    "ApplyEyeMakeup": "apply eye makeup",
    "HandstandPushups": "handstand pushups",
    "YoYo": "yo yo",
    "brush_hair": "brush hair",
    "push-up": "push up",
    "playing ping-pong": "playing ping pong",
    "clean and jerk": "clean and jerk",
    "passing American football (in game)": "passing american football (in game)",
    "TVShow3D": "tv show3d",
    "sorting DVDs": "sorting dvds",
    "using a 3DPrinter": "using a 3d printer",
    "laying tiles/bricks": "laying tiles bricks",
    " Tai  chi ": "tai chi",
}


@pytest.mark.parametrize(("label", "name"), REAL.items())
def test_both_stages_clean_real_labels_to_the_same_name(label: str, name: str) -> None:
    assert corpus_name(label) == adapter_name(label) == name


# Pieces of names are likelier than arbitrary text to meet the rules for capitals and separators.
names = st.lists(st.sampled_from([*"aBsDV39 _-/()", "TV", "DVDs", "Show", "\u00c9", "\n"])).map("".join)


@given(st.text() | names)
@example("\u0130s")
def test_both_stages_clean_any_text_alike(text: str) -> None:
    assert adapter_name(text) == corpus_name(text)


@pytest.mark.shared
def test_both_stages_clean_the_labels_of_the_data_sets_alike(shared: Path) -> None:
    labels: set[str] = set()
    for file in sorted((shared / "data" / "labels").glob("*.csv")):
        with file.open(encoding="utf-8-sig", newline="") as stream:
            labels |= {row["name"] for row in csv.DictReader(stream)}
    for file in sorted((shared / "data" / "label_maps").glob("*.txt")):
        labels |= set(file.read_text(encoding="utf-8").splitlines())
    assert len(labels) > 1000
    assert [label for label in labels if adapter_name(label) != corpus_name(label)] == []
