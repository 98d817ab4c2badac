.PHONY: check test test-all demo docs picture benchmarks tinyclip clean
check:
	ruff check . && ruff format --check . && mypy && python -m pytest -n 2 --dist loadfile
test:
	python -m pytest -n 2 --dist loadfile
# Also the tests that repeat what a quicker one shows: every kill point in a process of its own, every precision ...
test-all:
	python -m pytest -n 2 --dist loadfile -m "exhaustive or not exhaustive"
demo:
	alt demo --out demo
picture:
	python -m benchmarks.picture demo/report.html
# The site, in out/site; first the parts of pages that are made from the code (pip install -r requirements/docs.txt).
docs:
	python -m docs.generate
	python -m mkdocs build --strict
benchmarks:
	python -m benchmarks.run --all
tinyclip:
	python -m pipelines.toyworld.pretrain
clean:
	rm -rf build dist *.egg-info */build */*.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
