"""The manifest of a protocol (adapter) is one that the aligner plans."""

from adapter.manifests import write_manifest
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
