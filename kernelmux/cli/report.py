"""``kernelmux report``: make reports from what kernelmux has written."""

from __future__ import annotations

from pathlib import Path

import click

from kernelmux.cli.output import emit, say


@click.group()
def report() -> None:
    """Make reports from what kernelmux has written."""


@report.command()
@click.argument("path", type=click.Path(path_type=Path), metavar="PATH")
@click.option("--format", "form", type=click.Choice(["md", "html", "json"]), help="By the name of --out; else md.")
@click.option("--out", type=click.Path(path_type=Path), help="File to write; printed if not given.")
@click.option("--plots", is_flag=True, help="With Markdown in a file: write its plots beside it as SVG.")
@click.option("--ceilings", type=click.Path(path_type=Path), help="JSON file with ceilings measured on this GPU.")
@click.option("--shipped", type=click.Path(path_type=Path), help="The table file an engine ships for this shape.")
@click.option("--engine", default="", help="Name of that engine, as in 'vllm 0.33.0'.")
@click.option("--model", default="", help="A name for the shape, as in 'Qwen3-30B-A3B TP2'.")
@click.option("--json", "as_json", is_flag=True, help="Print the report as one JSON object.")
def tuning(
    path: Path,
    form: str | None,
    out: Path | None,
    plots: bool,
    ceilings: Path | None,
    shipped: Path | None,
    engine: str,
    model: str,
    as_json: bool,
) -> None:
    """Report one tuning run. PATH is a tuned table, its .meta.json, or what `kernelmux tune --json` printed."""
    from kernelmux.reports import tuning_files, tuning_output

    if plots and out is None:
        raise click.UsageError("--plots needs --out FILE.md: the plots are written beside it.")
    form = form or (tuning_output.format_of(out) if out else "md")
    if plots and form != "md":
        raise click.UsageError("--plots goes with Markdown; the HTML page has its plots inside.")
    made = tuning_files.report_of(path, ceilings=ceilings, shipped=shipped, engine=engine, model=model)
    if out is None:
        emit(made, as_json, lambda: click.echo(tuning_output.render(made, form), nl=False))
        return
    written = tuning_output.write(made, out, form, plots=plots)
    emit(made, as_json, lambda: say("\n".join(f"wrote {file}" for file in written)))
