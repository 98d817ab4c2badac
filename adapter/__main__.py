"""``python -m adapter``: the same commands as ``adapter``."""

from adapter.cli import app

if __name__ == "__main__":
    app(prog_name="adapter")
