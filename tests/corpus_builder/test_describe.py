from corpus_builder.describe import describe


def test_unit_and_description():
    assert describe("bat", "a club used for hitting a ball") == "bat: a club used for hitting a ball"
    assert describe("eye makeup", None) == "eye makeup"
