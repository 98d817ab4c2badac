import gzip
import hashlib
import re

import pytest

from adapter.config import AdapterError
from adapter.labels import name_key, spaced_name
from adapter.lists import CLASSES, LISTS, keys, open_classes, open_list, read_classes, shared_videos

# Sizes as published (method.md 3, and the public repositories), repeated here by hand.
SIZES = {
    **{f"hmdb51_test{i}": 1530 for i in (1, 2, 3)},
    **{f"hmdb51_train{i}": 3570 for i in (1, 2, 3)},
    **{f"ucf101_test{i}": n for i, n in enumerate((3783, 3734, 3696), 1)},
    **{f"ucf101_train{i}": n for i, n in enumerate((9537, 9586, 9624), 1)},
    **{f"k600_vifi_{i}": n for i, n in enumerate((14084, 13978, 14136), 1)},
    **{f"hmdb51_few_shot_{k}": 51 * k for k in (2, 4, 8, 16)},
    **{f"ucf101_few_shot_{k}": 101 * k for k in (2, 4, 8, 16)},
    **{f"ssv2_few_shot_{k}": 174 * k for k in (2, 4, 8, 16)},
    **{f"{data}_base_train{i}": n for i in (1, 2, 3) for data, n in (("hmdb51", 416), ("ucf101", 816))},
    **{f"{data}_base_train{i}": n for i in (1, 2, 3) for data, n in (("ssv2", 1392), ("k400", 3200))},
    "hmdb51_base_test": 780, "hmdb51_novel_test": 750, "ucf101_base_test": 2088, "ucf101_novel_test": 1695,
    "ssv2_base_test": 17562, "ssv2_novel_test": 7215, "k400_base_test": 9944, "k400_novel_test": 9933,
    "ssv2_test": 24777,
}  # fmt: skip
COUNTS = {"hmdb51": 51, "ucf101": 101, "ssv2": 174, "k400": 400, "k600": 600, "hmdb51_base": 26,
          "hmdb51_novel": 25, "ucf101_base": 51, "ucf101_novel": 50, "ssv2_base": 87, "ssv2_novel": 87,
          "k400_base": 200, "k400_novel": 200, "k600_1": 160, "k600_2": 160, "k600_3": 160}  # fmt: skip


@pytest.fixture(scope="module")
def official(shared):
    """Every official list that lies in the shared folder."""
    return {name: open_list(shared / "data", name) for name in SIZES}


def test_sizes_of_the_official_lists(official, shared):
    assert {name: len(listed.videos) for name, listed in official.items()} == SIZES
    assert all(listed.published == len(listed.videos) for listed in official.values())
    assert {name: len(open_classes(shared / "data", name).names) for name in COUNTS} == COUNTS
    file = shared / "data" / "splits/zero_shot/hmdb51_val2.txt.gz"
    assert official["hmdb51_test2"].sha256 == hashlib.sha256(gzip.decompress(file.read_bytes())).hexdigest()


def test_official_videos_have_the_class_that_their_name_says(official):
    """HMDB51's published file of classes numbers four of them in another order than the lists do."""
    for name in ("hmdb51_test1", "hmdb51_train3", "hmdb51_base_test", "hmdb51_few_shot_8"):
        listed = official[name]
        pairs = dict(zip(keys(listed.videos, True), listed.labels, strict=True))
        for video, label in pairs.items():
            for pair in (("kick_ball", "kick"), ("sword_exercise", "sword")):
                said = [word for word in pair if re.search(rf"(?<!draw)_{word}_[fhlu]_", video)]
                assert not said or name_key(label) == name_key(said[0])


def test_trusting_the_published_numbers_of_hmdb51_swaps_four_classes(official, shared):
    numbered = open_list(shared / "data", "hmdb51_test1", as_numbered=True)
    wrong = {(a, b) for a, b in zip(numbered.labels, official["hmdb51_test1"].labels, strict=True) if a != b}
    pairs = {("kick", "kick ball"), ("sword", "sword exercise")}
    assert wrong == pairs | {(b, a) for a, b in pairs}
    assert sum(a != b for a, b in zip(numbered.labels, official["hmdb51_test1"].labels, strict=True)) == 120


def test_names_seen_in_kinetics_400(shared):
    """22 of 101 and 2 of 51 (method.md 3.2); none of the zero-shot classes of Kinetics-600."""
    names = {name: open_classes(shared / "data", name).names for name in COUNTS}
    keys = {name: set(map(name_key, found)) for name, found in names.items()}
    assert all(len(keys[name]) == n for name, n in COUNTS.items())
    assert len(keys["ucf101"] & keys["k400"]) == 22 and len(keys["hmdb51"] & keys["k400"]) == 2
    assert not any(keys[f"k600_{i}"] & keys["k400"] for i in (1, 2, 3))
    assert len(keys["k600_1"] | keys["k600_2"] | keys["k600_3"]) == 217
    for data in ("hmdb51", "ucf101", "ssv2", "k400"):
        assert not keys[f"{data}_base"] & keys[f"{data}_novel"]
        assert keys[f"{data}_base"] | keys[f"{data}_novel"] == keys[data]


def test_published_few_shot_lists_leak_into_test_splits_2_and_3(official):
    """method.md 3.3: HMDB 233/254 of 816 and UCF 627/623 of 1616 at 16 shots; in split 1 none."""
    leaks = {
        (data, shots): [
            len(
                shared_videos(official[f"{data}_few_shot_{shots}"].videos, official[f"{data}_test{i}"].videos)
            )
            for i in (1, 2, 3)
        ]
        for data in ("hmdb51", "ucf101")
        for shots in (2, 16)
    }
    assert leaks == {
        ("hmdb51", 2): [0, 36, 35], ("hmdb51", 16): [0, 233, 254],
        ("ucf101", 2): [0, 84, 76], ("ucf101", 16): [0, 627, 623],
    }  # fmt: skip


@pytest.mark.parametrize(
    ("data", "whole"), [("hmdb51", "hmdb51_test1"), ("ucf101", "ucf101_test1"), ("ssv2", "ssv2_test")]
)
def test_halves_number_their_classes_anew_and_name_them_alike(official, data, whole):
    """Three lists and three files of classes, one class for every video."""
    halves = [official[f"{data}_{half}_test"] for half in ("base", "novel")]
    named = {v: name for half in halves for v, name in zip(half.videos, half.labels, strict=True)}
    assert named == dict(zip(official[whole].videos, official[whole].labels, strict=True))


@pytest.mark.parametrize(
    ("label", "spaced", "key"),
    [
        ("ApplyEyeMakeup", "Apply Eye Makeup", "applyeyemakeup"),
        ("apply eye makeup", "apply eye makeup", "applyeyemakeup"),
        ("YoYo", "Yo Yo", "yoyo"),
        ("TVShow", "TV Show", "tvshow"),
        ("Pushing [something] up", "Pushing [something] up", "pushingsomethingup"),
        ("push-up", "push up", "pushup"),
    ],
)
def test_names_are_split_and_compared_by_letters(label, spaced, key):
    assert spaced_name(label) == spaced and name_key(label) == key


def test_every_published_list_is_found_and_numbered(mini):
    for name in LISTS:
        listed = open_list(mini.root, name)
        for video, label in zip(listed.videos, listed.labels, strict=True):
            assert f"_{label.replace(' ', '_')}_u_nm" in video
    assert {spec.classes for spec in LISTS.values()} <= set(CLASSES)


def test_forms_of_lines_and_of_class_files(own_mini):
    root = own_mini.root
    test = root / "splits/zero_shot/ucf101_val1.txt"
    plain = open_list(root, "ucf101_test1")
    lines = test.read_text().splitlines()
    # Frame folders with a count, gzip, blank lines, and a name with spaces and digits.
    lines = [line.replace(".avi", " 71") for line in lines[:-1]] + ["", lines[-1].replace("v01", "v01 a 12")]
    test.unlink()
    (root / "ucf101_val1.txt.gz").write_bytes(gzip.compress("\n".join(lines).encode()))
    other = open_list(root, "ucf101_test1")
    assert other.labels == plain.labels
    assert keys(other.videos[:-1], True) == keys(plain.videos[:-1], True)
    assert other.videos[-1] == "v01 a 12_Typing_u_nm.avi"
    names = plain.classes.names
    for name, text in (
        ("c.json", '{"1": "b", "0": "a"}'),
        ("c.txt", "a\nb\n"),
        ("c.csv", "id,name\n1,b\n0,a\n"),
    ):
        (root / name).write_text(text)
        assert read_classes(root / name).names == ("a", "b")
    assert names == tuple(own_mini.classes["ucf101"])


def test_bad_lists_are_refused(own_mini):
    root = own_mini.root
    test, labels = root / "splits/zero_shot/ucf101_val1.txt", root / "labels/ucf_101_labels.csv"
    good, names = test.read_text(), labels.read_text()

    def refused(match, text=good, classes=names, name="ucf101_test1"):
        test.write_text(text)
        labels.write_text(classes)
        with pytest.raises(AdapterError, match=match):
            open_list(root, name)

    reordered = "id,name\n" + "".join(
        f"{i},{n}\n" for i, n in enumerate(reversed(own_mini.classes["ucf101"]))
    )
    refused("numbers the classes in another order than ucf101_val1.txt: 12 of 14 videos", classes=reordered)
    refused(
        r"no video of 1 of the 7 classes .*: Typing; the list is cut short",
        text="\n".join(good.splitlines()[:-2]),
    )
    refused(
        r"2 videos have classes that .* lacks \(0 to 5\), such as v00_Typing",
        classes=names.replace("6,Typing\n", ""),
    )
    refused("lists 1 videos twice, such as .'v00_Apply", text=good + good.splitlines()[0])
    refused(r"line 1 is 'v00_Apply.*'; expected a video and the number", text=good.replace(" 0\n", " zero\n"))
    refused("lists no video", text="\n")
    refused("numbers 7 classes, but not as 0 to 6", classes=names.replace("6,T", "7,T"))
    refused("names a class twice: PullUps, pull-ups", classes=names.replace("Typing", "pull-ups"))
    refused("is no file of classes .*needs columns id and name", classes="name\nx\n")
    test.unlink()
    with pytest.raises(
        AdapterError, match=r"lacks the list ucf101_test1: looked for splits/zero_shot/ucf101_val1.txt"
    ):
        open_list(root, "ucf101_test1")
    labels.write_text(names)
    (root / "ucf101_val1.txt.gz").write_bytes(b"\x1f\x8bbroken")
    with pytest.raises(AdapterError, match="cannot be unpacked"):
        open_list(root, "ucf101_test1")
