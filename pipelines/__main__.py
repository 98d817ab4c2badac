"""``python -m pipelines``: the same commands as ``alt``."""

from pipelines.cli import app

if __name__ == "__main__":
    app(prog_name="alt")
