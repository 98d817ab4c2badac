"""The manifest of a protocol (adapter) is one that the aligner plans."""

from adapter.manifests import write_list_manifest, write_manifest
from aligner.plan import make_plan


def test_a_manifest_of_the_official_lists_is_planned(shared, tmp_path):
    videos, out = tmp_path / "videos", tmp_path / "manifest.csv"
    for name in ("v_ApplyEyeMakeup_g24_c04.avi", "v_ApplyEyeMakeup_g01_c01.avi", "v_YoYo_g01_c02.avi"):
        folder = videos / name.split("_")[1]
        folder.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    found = write_manifest("ucf101-few-shot-2", shared / "data", out, videos)
    assert found["splits"] == {"test": 2, "train": 1} and len(found["missing"]) == 202 + 3783 - 3
    plan = make_plan(out, 10, root=videos)
    assert [(item.video_id, item.label, item.split) for item in plan.items] == [
        ("ApplyEyeMakeup/v_ApplyEyeMakeup_g01_c01.avi", "ApplyEyeMakeup", "test"),
        ("ApplyEyeMakeup/v_ApplyEyeMakeup_g24_c04.avi", "ApplyEyeMakeup", "train"),
        ("YoYo/v_YoYo_g01_c02.avi", "YoYo", "test"),
    ]


def test_lists_of_several_protocols_are_one_manifest(shared, tmp_path):
    """A video's split names every list that it is on, so all runs of all protocols share one cache."""
    videos, out = tmp_path / "videos", tmp_path / "manifest.csv"
    videos.mkdir()
    # g24 is in training split 1 and test split 3; g01 the other way round.
    for name in ("v_ApplyEyeMakeup_g24_c04.avi", "v_ApplyEyeMakeup_g01_c01.avi"):
        (videos / name).touch()
    found = write_list_manifest(["ucf101-supervised", "ucf101-few-shot-2"], shared / "data", out, videos)
    split = {item.video_id: item.split.split("+") for item in make_plan(out, 10, root=videos).items}
    assert {"ucf101_test1", "ucf101_train2", "ucf101_train3"} == {*split["v_ApplyEyeMakeup_g01_c01.avi"]}
    assert {"ucf101_train1", "ucf101_few_shot_2"} <= {*split["v_ApplyEyeMakeup_g24_c04.avi"]}
    assert found["written"] == 2 and len(found["missing"]) == 13320 - 2
    assert found["splits"]["ucf101_few_shot_2"] == 1
