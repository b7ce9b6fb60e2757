"""``python -m pressgauge`` is the command ``pressgauge``."""

from pressgauge.cli import app

if __name__ == "__main__":
    app(prog_name="pressgauge")
