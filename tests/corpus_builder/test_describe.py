from corpus_builder.describe import describe, joined


def test_unit_and_description():
    assert describe("bat", "a club used for hitting a ball") == "bat: a club used for hitting a ball"
    assert describe("eye makeup", None) == "eye makeup"
    assert (
        describe("bat", "a {unit} of {description}", "{unit}, {description}")
        == "bat, a {unit} of {description}"
    )
    assert describe("eye makeup", None, "{description} ({unit})") == "eye makeup"


def test_a_description_is_what_it_is_then_how_it_looks():
    told = {"explanations": ["x"], "looks": " dark  lines", "sentence": "paint"}
    assert joined(told) == "paint; dark lines"
    assert joined({"looks": "dark lines"}) == "dark lines"
