"""What counts as done, and what makes it stale."""

from pathlib import Path

from pipelines.ledger import LEDGER, Ledger, file_sha256, folder_listing, sha256_of


def test_done_only_with_the_same_key_and_output(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    assert not ledger.done("a", "k", "o")
    ledger.record("a", "k", "o")
    again = Ledger(tmp_path)
    assert again.done("a", "k", "o")
    assert not again.done("a", "k2", "o") and not again.done("a", "k", "o2") and not again.done("b", "k", "o")


def test_a_damaged_ledger_costs_work_but_no_error(tmp_path: Path) -> None:
    (tmp_path / LEDGER).write_text("{")
    ledger = Ledger(tmp_path)
    assert not ledger.done("a", "k", "o")
    ledger.record("a", "k", "o")
    assert Ledger(tmp_path).done("a", "k", "o")


def test_hashes_do_not_depend_on_key_order() -> None:
    assert sha256_of({"a": 1, "b": [2]}) == sha256_of({"b": [2], "a": 1})
    assert sha256_of({"a": 1}) != sha256_of({"a": 2})


def test_folder_listing_sees_names_and_contents(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("x")
    before = folder_listing(tmp_path)
    assert folder_listing(tmp_path) == before
    (tmp_path / "a").rename(tmp_path / "b")
    renamed = folder_listing(tmp_path)
    (tmp_path / "b").write_text("longer")
    assert len({before, renamed, folder_listing(tmp_path)}) == 3


def test_a_missing_file_differs_from_an_empty_one(tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    assert file_sha256(tmp_path / "empty") != file_sha256(tmp_path / "none")
