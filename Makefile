.PHONY: check test demo picture benchmarks tinyclip clean
check:
	ruff check . && ruff format --check . && mypy && python -m pytest -n 2
test:
	python -m pytest -n 2
demo:
	alt demo --out demo
picture:
	python -m benchmarks.picture demo/report.html
benchmarks:
	python -m benchmarks.toyworld --out out/benchmarks
tinyclip:
	python -m pipelines.toyworld.pretrain
clean:
	rm -rf build dist *.egg-info */build */*.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
