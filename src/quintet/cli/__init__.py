"""The command `quintet`."""

from quintet.cli import data, models, results  # noqa: F401 (their commands)
from quintet.cli.common import app
from quintet.errors import exit_on_user_error


def main() -> None:
    with exit_on_user_error("the results"):
        app()
