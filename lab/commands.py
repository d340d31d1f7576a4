"""What the scripts here share as commands."""

from __future__ import annotations

from typing import Any

import click

from fer_edge.errors import FerEdgeError


class OneLine(click.Command):
    """A command: an error of our tree is one line, as ``fer-edge`` shows it."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except FerEdgeError as error:
            raise click.ClickException(str(error)) from error


class Figures(OneLine, click.Group):
    """A group of commands."""
