"""The `tbkd` command."""

import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
import yaml
from rich.console import Console
from rich.markup import escape
from rich.progress import Progress
from rich.table import Column, Table

from tbkd_utils import __version__
from tbkd_utils.errors import SettingsError, TbkdError
from tbkd_utils.experiments.recipe import DEFAULT_SYSTEM
from tbkd_utils.experiments.system import SYSTEMS, draw_set, find_system, named_recipe

if TYPE_CHECKING:
    from tbkd_utils.experiments.experiment import Experiment

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_show_locals=False)
data_app = typer.Typer(no_args_is_help=True, help="Look at a dataset, or write a synthetic one.")
app.add_typer(data_app, name="data")
console = Console()
_EXPONENT = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)e[+-]?\d+", re.IGNORECASE)

RecipeOption = Annotated[str, typer.Option("--recipe", "-r", help="A preset: smoke, demo, laptop or paper.")]
SystemOption = Annotated[str, typer.Option("--system", help=f"Which published system: {', '.join(SYSTEMS)}.")]
OnlyOption = Annotated[
    list[str] | None, typer.Option("--only", help="Notebooks by the beginning of their name, as in --only 04.")
]
DataOption = Annotated[
    Path | None,
    typer.Option("--data", "-d", help="Folder of the system's dataset. Without it: synthetic, or $TBKD_DATA."),
]
OutOption = Annotated[Path | None, typer.Option("--out", "-o", help="Folder that receives runs/ and figures/.")]
SetOption = Annotated[
    list[str] | None, typer.Option("--set", "-s", help="A setting of the recipe, as in --set temperature=3.")
]


def main() -> None:
    """Runs the command; an error that the user can fix is shown without a traceback."""
    try:
        app()
    except TbkdError as error:
        Console(stderr=True).print(f"[bold red]tbkd:[/] {escape(str(error))}", soft_wrap=True, highlight=False)
        raise SystemExit(1) from None


def _version(wanted: bool) -> None:
    if wanted:
        console.print(__version__)
        raise typer.Exit


@app.callback()
def _top(version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True)] = False) -> None:
    """Where a network that saw only weak labels looks: published systems, reproduced."""


@app.command()
def reproduce(
    recipe: RecipeOption = "demo",
    data: DataOption = None,
    out: OutOption = None,
    settings: SetOption = None,
    system: SystemOption = DEFAULT_SYSTEM,
    only: OnlyOption = None,
    more: Annotated[list[str] | None, typer.Argument(hidden=True)] = None,  # --only 04 05
    listed: Annotated[
        bool, typer.Option("--list", help="Name the notebooks and what each needs; run nothing.")
    ] = False,
    notebooks: Annotated[Path | None, typer.Option(help="Folder of the notebooks, if not the project's.")] = None,
    jobs: Annotated[int, typer.Option("--jobs", "-j", help="Steps at a time on this machine.")] = 1,
    dask: Annotated[
        str | None, typer.Option("--dask", help="Use a Dask cluster: its scheduler's address or scheduler file.")
    ] = None,
    keep_outputs: Annotated[
        bool, typer.Option("--keep-outputs", help="Copy the outputs into the notebooks themselves.")
    ] = False,
) -> None:
    """Run a system's notebooks and the grid of trainings behind its ablations; skip what is done.

    A step that fails stops only those that need it; the next call runs what is missing.
    """
    from tbkd_utils.experiments import executors, series  # import torch: seconds that --help should not take

    only = [*(only or []), *(more or [])]
    if listed:
        console.print(_listed(series.find_notebooks(notebooks, find_system(system).name, only)))
        return
    if dask is not None and jobs != 1:
        raise SettingsError(
            "--jobs and --dask exclude each other: the cluster's workers decide how many run at a time."
        )
    experiment = _opened(recipe, data, out, settings, system)
    one_bar = jobs == 1 and dask is None and console.is_terminal  # bars of several notebooks would mix
    with executors.dask(dask) if dask is not None else executors.local(jobs) as executor:
        outcomes = series.reproduce(
            experiment, notebooks, executor, jobs=None if dask is not None else jobs, only=only,
            announce=lambda line: console.print(escape(line), soft_wrap=True, highlight=False), progress=one_bar,
        )  # fmt: skip
    if keep_outputs:
        series.keep_outputs(outcomes, notebooks)
    console.print(f"Figures and tables: {escape(str(experiment.figures))}", soft_wrap=True)
    console.print(f"Report: {escape(str(experiment.runs / 'report.html'))}", soft_wrap=True)


@app.command()
def status(
    recipe: RecipeOption = "demo",
    data: DataOption = None,
    out: OutOption = None,
    settings: SetOption = None,
    system: SystemOption = DEFAULT_SYSTEM,
    notebooks: Annotated[Path | None, typer.Option(help="Folder of the notebooks, if not the project's.")] = None,
) -> None:
    """Show what is done, running, failed and waiting, and about how long the rest takes."""
    from tbkd_utils.experiments import status as state

    experiment = _opened(recipe, data, out, settings, system)
    rows = state.step_states(experiment, notebooks)
    table = _table("step", "state", "seconds", "note")
    colors = {"done": "green", "running": "cyan", "failed": "red", "waiting": "dim"}
    for row in rows.to_dict("records"):
        shown = f"{row['seconds']:.0f}" if row["seconds"] == row["seconds"] else ""  # not a number: not known
        table.add_row(escape(row["step"]), f"[{colors[row['state']]}]{row['state']}[/]", shown, escape(row["note"]))
    console.print(table)
    console.print(state.summary(rows))


@app.command()
def locate(
    image_or_folder: Annotated[Path, typer.Argument(help="A PNG, JPEG, TIFF, BMP or DICOM file, or a folder of them.")],
    run: Annotated[
        Path, typer.Option("--run", help="A trained network: runs/RECIPE/ROLE-DIGEST, such as a student's.")
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder that receives boxes, tables and overlays.")] = Path(
        "located"
    ),
    threshold: Annotated[
        float | None, typer.Option(help="Share of the normalized heatmap that makes a box, 0 to 1.")
    ] = None,
    min_probability: Annotated[
        float, typer.Option(help="Draw no box where the probability of the finding is lower; 0 draws everywhere.")
    ] = 0.0,
    min_area: Annotated[
        float | None, typer.Option(help="Smallest box, in square pixels of the network's input.")
    ] = None,
    recipe: Annotated[
        str | None, typer.Option("--recipe", "-r", help="The network's recipe, if its folder does not say.")
    ] = None,
    data: Annotated[
        Path | None, typer.Option("--data", "-d", help="What the network learned from, if its folder lacks the areas.")
    ] = None,
    settings: SetOption = None,
) -> None:
    """Locate the finding in your own radiographs; write boxes as COCO JSON and CSV, and overlays.

    All boxes are in the pixels of the files. They are suggestions to be corrected by a reader, not a diagnosis.

    Exit status 0: every file was located. 1: nothing was written. 2: the command was called wrongly. 3: the result was
    written, but some files could not be read; failed.csv lists them.
    """
    from tbkd_utils.experiments import predict as locating  # imports torch: seconds that --help should not take
    from tbkd_utils.experiments.trained import load_trained
    from tbkd_utils.views import export as suggestions

    trained = load_trained(run, recipe, _overrides(settings))
    out = out.expanduser().resolve()
    suggestions.check_writable(out)
    with _progress() as bar:
        reading, drawing = bar.add_task("locating", total=None), bar.add_task("drawing", total=None)
        located = locating.locate(
            image_or_folder, trained, threshold=threshold, min_area=min_area, min_probability=min_probability,
            data=data, leave_out=[out], progress=lambda done, total: bar.update(reading, completed=done, total=total),
        )  # fmt: skip
        located = suggestions.write_suggestions(
            located, out, lambda done, total: bar.update(drawing, completed=done, total=total)
        )
    for found in located.findings:
        if found.note:
            console.print(f"[yellow]note:[/] {escape(found.name)}: {escape(found.note)}", soft_wrap=True)
    for name, reason in located.failures:
        console.print(f"[red]failed:[/] {escape(name)}: {escape(reason)}", soft_wrap=True, highlight=False)
    called, boxes = sum(f.probability > 0.5 for f in located.findings), sum(len(f.boxes) for f in located.findings)
    console.print(
        f"Radiographs located: {len(located.findings)} ({called} with a probability of {escape(trained.task.label)} "
        f"above 0.5); boxes: {boxes}; failed: {len(located.failures)}; other files, not looked at: {located.others}.",
        soft_wrap=True,
    )  # fmt: skip
    console.print(f"Written: {escape(str(out))}", soft_wrap=True)
    raise typer.Exit(3 if located.failures else 0)


def _progress() -> Progress:
    """A progress bar on standard error, where that is a terminal."""
    return Progress(console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty())


def _opened(recipe: str, data: Path | None, out: Path | None, settings: list[str] | None, system: str) -> "Experiment":
    from tbkd_utils.experiments.experiment import Experiment

    experiment = Experiment.open(recipe, data, out, _overrides(settings), system=system)
    kind = "synthetic radiographs" if experiment.synthetic else str(experiment.data)
    console.print(f"Recipe [bold]{recipe}[/] on {escape(kind)}; runs in {escape(str(experiment.runs))}", soft_wrap=True)
    return experiment


def _listed(paths: list[Path]) -> Table:
    """The notebooks, and what each says that it needs."""
    from tbkd_utils.experiments.notebooks import metadata

    table = _table("notebook", "trains", "needs", "gathers")
    for path in paths:
        said = metadata(path)
        gathers = "all before it" if said.get("after") == "all" else ", ".join(said.get("grid", ()))
        table.add_row(path.stem, said.get("trains", ""), ", ".join(said.get("needs", ())), gathers)
    return table


@app.command()
def recipes(
    name: Annotated[str | None, typer.Argument(help="Show every setting of this one.")] = None,
    system: SystemOption = DEFAULT_SYSTEM,
) -> None:
    """List the recipes of a system, or every setting of one."""
    if name is not None:
        table = _table("setting", "group", "value", "meaning")
        for group, setting, value, meaning in named_recipe(name, system).settings():
            table.add_row(setting, group, _shown(value), escape(meaning))
    else:
        presets = find_system(system).presets
        table = _table("setting", *presets)
        recipes = [named_recipe(preset, system) for preset in presets]
        for rows in zip(*(recipe.settings() for recipe in recipes), strict=True):
            (_, setting, *_), values = rows[0], [_shown(value) for _, _, value, _ in rows]
            if len(set(values)) > 1:
                table.add_row(setting, *values)
    table.columns[0].no_wrap = True  # a setting's name can be copied whole
    console.print(table)


@data_app.command("check")
def data_check(
    folder: Annotated[Path, typer.Argument(help="The dataset's folder.")],
    out: OutOption = None,
) -> None:
    """Count what a dataset holds and name every problem; exit status 1 if there is one.

    Every file is read, also those that earlier runs noted: one that changed since is found here.
    """
    from tbkd_utils.data.check import check_dataset
    from tbkd_utils.data.manifest import Manifest
    from tbkd_utils.experiments.experiment import project_folder

    manifest = Manifest.beside(out.expanduser().resolve() if out is not None else project_folder())
    with _progress() as bar:
        task = bar.add_task("checking", total=None)
        report = check_dataset(
            folder.expanduser().resolve(),
            lambda done, total: bar.update(task, completed=done, total=total),
            manifest=manifest,
        )
    for title, frame in report.tables().items():
        table = _table(*map(str, frame.columns), title=title)
        for row in frame.itertuples(index=False):
            table.add_row(*(escape(f"{value:.4f}" if isinstance(value, float) else str(value)) for value in row))
        console.print(table)
    for problem in report.problems:
        console.print(f"[red]problem:[/] {escape(str(problem))}", soft_wrap=True)
    count = len(report.problems)
    console.print("No problem found." if report.ok else f"{count} problem{'' if count == 1 else 's'} found.")
    raise typer.Exit(0 if report.ok else 1)


@data_app.command("synthesize")
def data_synthesize(
    folder: Annotated[Path, typer.Argument(help="Where to write; must not exist, or be empty.")],
    recipe: RecipeOption = "demo",
    settings: SetOption = None,
    system: SystemOption = DEFAULT_SYSTEM,
) -> None:
    """Write a system's synthetic dataset: drawings for trying the series, not medical data."""
    draw_set(named_recipe(recipe, system, **_overrides(settings)), folder)
    console.print(f"Written: {escape(str(folder))}", soft_wrap=True)


def _table(*columns: str, title: str | None = None) -> Table:
    """A table that folds long words in a narrow window and never cuts one."""
    return Table(*(Column(name, overflow="fold") for name in columns), title=title, title_justify="left")


def _shown(value: Any) -> str:
    """A setting's value as `--set` takes it."""
    return escape(f"[{', '.join(map(str, value))}]" if isinstance(value, tuple) else str(value))


def _overrides(settings: list[str] | None) -> dict[str, Any]:
    """Reads `name=value` pairs; values as in YAML, so 3, 0.5, true, [1, 2] and words all work."""
    overrides = {}
    for entry in settings or []:
        name, equals, value = entry.partition("=")
        if not equals or not name.strip():
            raise SettingsError(f"--set {entry}: expected name=value, as in --set temperature=3.")
        try:
            read = yaml.safe_load(value)
            # YAML 1.1 takes 1e-3 for a word; its numbers need a dot.
            overrides[name.strip()] = float(read) if isinstance(read, str) and _EXPONENT.fullmatch(read) else read
        except yaml.YAMLError as error:
            raise SettingsError(f"--set {entry}: the value cannot be read ({error}).") from error
    return overrides


if __name__ == "__main__":
    main()
