"""``python -m lab.sizes``: lines of every room, and the longest files and functions. A report to look at, not a law."""

from __future__ import annotations

import ast
from dataclasses import dataclass
from pathlib import Path

import click

ROOMS = ("fer_edge", "runtimes", "converters", "benchmarks", "lab", "tests")
PRODUCT = ROOMS[:4]


@dataclass(frozen=True)
class Size:
    """``lines`` of one file or function; ``name`` says which."""

    lines: int
    name: str


def functions(path: Path, name: str) -> list[Size]:
    """Every function and method of a file, nested ones included, decorators and docstrings counted."""
    nodes = ast.walk(ast.parse(path.read_text(encoding="utf-8")))
    found = [n for n in nodes if isinstance(n, (ast.FunctionDef, ast.AsyncFunctionDef)) and n.end_lineno]
    return [Size((n.end_lineno or 0) - n.lineno + 1, f"{name}:{n.lineno} {n.name}") for n in found]


@click.command()
@click.option("--count", default=12, show_default=True, help="How many of each are shown.")
def sizes(count: int) -> None:
    """Lines of each room, then the longest files and functions of all of them."""
    root = Path(__file__).resolve().parent.parent
    files, parts = [], []
    for room in ROOMS:
        paths = sorted((root / room).rglob("*.py"))
        of_room = [Size(len(p.read_text(encoding="utf-8").splitlines()), str(p.relative_to(root))) for p in paths]
        click.echo(f"{sum(s.lines for s in of_room):6} lines in {len(paths):3} files  {room}/")
        files += of_room
        parts += [f for p in paths for f in functions(p, str(p.relative_to(root)))]
    product = sum(s.lines for s in files if s.name.split("/")[0] in PRODUCT)
    click.echo(f"{product:6} lines of product ({', '.join(PRODUCT)})")
    for title, found in (("Longest files", files), ("Longest functions", parts)):
        click.echo(f"\n{title}")
        for size in sorted(found, key=lambda s: -s.lines)[:count]:
            click.echo(f"{size.lines:6}  {size.name}")


if __name__ == "__main__":
    sizes()
