"""``python -m corpus_builder``: the same commands as ``corpus-builder``."""

from corpus_builder.cli import app

if __name__ == "__main__":
    app(prog_name="corpus-builder")
