"""``python -m aligner``: the same commands as ``aligner``."""

from aligner.cli import app

if __name__ == "__main__":
    app(prog_name="aligner")
