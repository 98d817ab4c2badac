import json

import pytest

from adapter.config import AdapterError, ModelConfig, combine, make_settings, parse_assignments, read_config


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"epoch": 3}, "unknown option 'epoch' (did you mean 'epochs'?)"),
        ({"queries": "aligend"}, "queries is 'aligend'; it must be one of .* (did you mean 'aligned'?)"),
        ({"recipe": "papr"}, "recipe is 'papr'.*(did you mean 'paper'?)"),
        ({"blocks": 0}, "blocks is 0; it must be at least 1"),
        ({"blocks": "many"}, "blocks is 'many'; it must be a int"),
        ({"blocks": 1.5}, "blocks is '1.5'; it must be a int"),
        ({"kernel": 4}, "kernel is 4; it must be odd"),
        ({"learn_scale": "perhaps"}, "learn_scale is 'perhaps'; it must be a bool"),
        ({"whiten_labels": True, "residual": "cls"}, "whiten_labels moves labels away"),
        ({"val_fraction": 2}, "val_fraction is 2.0; it must be between 0 and 1"),
        ({"variant": "papr"}, "variant is 'papr'; it must be one of .* (did you mean 'paper'?)"),
        ({"rematch": True, "queries": "tracks"}, "rematch needs model=alt with queries=aligned"),
        ({"time_codes": "fixed"}, "time_codes is 'fixed'; it must be one of fourier, learned, none"),
        ({"queries": "learned", "identities": "permuted"}, "has no effect with queries=learned"),
    ],
)
def test_bad_values_name_the_option(values, message):
    with pytest.raises(AdapterError, match=message.replace("(did", r"\(did").replace("?)", r"\?\)")):
        make_settings(values)


def test_recipe_is_overridden_by_explicit_values():
    paper = make_settings({"recipe": "paper", "lr": 1.0})
    assert (paper.model.context, paper.train.batch_size, paper.train.lr) == ("pooled", 256, 1.0)
    assert make_settings().model.context == "regions"


def test_variants_are_resolved_and_overridden_by_explicit_values():
    assert make_settings({"recipe": "paper"}).model == make_settings({"variant": "paper"}).model
    labels = make_settings({"variant": "paper-labels", "context": "pooled"}).flat()
    assert labels["variant"] == "paper-labels" and labels["dropout"] == 0.0
    assert (labels["entities"], labels["align"], labels["context"]) == ("labels", "cls", "pooled")
    assert make_settings({"recipe": "paper", "variant": "none"}).model == ModelConfig()


def test_the_papers_tables_differ_from_its_form_by_their_rows_alone():
    def differences(variant):
        full, row = (make_settings({"variant": v}).flat() for v in ("paper", variant))
        return {name: row[name] for name in row if row[name] != full[name] and name != "variant"}

    assert differences("paper-adapt-then-align") == {"model": "adapt_then_align"}
    assert differences("paper-labels") == {"entities": "labels", "align": "cls", "context": "cls"}
    assert differences("paper-cls") == {"align": "cls", "context": "cls"}
    for parts in ("sa", "ca", "sa+ca", "ca+conv"):
        assert differences(f"paper-{parts}") == {"components": parts}


def test_a_variant_is_not_put_beside_a_whole_form():
    whole = make_settings({"variant": "paper-cls"}).flat()
    assert make_settings(combine(whole, {"blocks": 2, "variant": "paper-cls"})).model.align == "cls"
    with pytest.raises(
        AdapterError, match="spells out a whole form, which beats variant paper; leave out one"
    ):
        combine(whole, {"variant": "paper"})
    assert make_settings(combine({"lr": 1.0}, {"variant": "paper"})).model.conv == "dense"


def test_time_codes_may_still_be_switched_on_and_off():
    for given, meant in ((True, "fourier"), ("True", "fourier"), (False, "none"), ("false", "none")):
        assert make_settings({"time_codes": given}).model.time_codes == meant


def test_random_and_shuffled_are_short_for_aligned_with_other_identities():
    assert ModelConfig(queries="random") == ModelConfig(identities="permuted")
    assert ModelConfig(queries="shuffled") == ModelConfig(identities="shuffled")


def test_stored_config_gives_the_same_settings(tmp_path):
    settings = make_settings({"recipe": "paper", "queries": "random", "blocks": 2, "whiten_labels": "yes"})
    (tmp_path / "config.json").write_text(json.dumps(settings.flat()))
    assert make_settings(read_config(tmp_path / "config.json")) == settings


def test_config_files_in_toml_and_their_errors(tmp_path):
    (tmp_path / "a.toml").write_text('queries = "tracks"\nlr = 1e-4\n')
    assert make_settings(read_config(tmp_path / "a.toml")).model.queries == "tracks"
    (tmp_path / "b.toml").write_text("queries = \n")
    with pytest.raises(AdapterError, match="b.toml is not valid TOML"):
        read_config(tmp_path / "b.toml")
    (tmp_path / "d.json").write_bytes('{"queries": "träcks"}'.encode("latin-1"))
    with pytest.raises(AdapterError, match="d.json is not valid JSON in UTF-8: .*can't decode"):
        read_config(tmp_path / "d.json")
    with pytest.raises(AdapterError, match="no config file"):
        read_config(tmp_path / "c.toml")
    with pytest.raises(AdapterError, match="--set got 'blocks'"):
        parse_assignments(["blocks"])


@pytest.mark.parametrize("split", ["test", "hmdb51_test1"])
def test_the_test_split_chooses_no_epoch(split):
    with pytest.raises(AdapterError, match=f"--val-split is {split}; the test split chooses no epoch"):
        make_settings({"val_split": split})
    assert make_settings({"val_split": "latest_val"}).train.val_split == "latest_val"
