"""What the notebooks share: their parameters, as papermill injects them, and the versions they show."""

from collections.abc import Callable, Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import nbformat
import pandas as pd
import papermill
import pytest

from tbkd_utils.errors import SettingsError, TbkdError
from tbkd_utils.experiments.notebooks import PARAMETERS, SHOWN, experiment_from, injected_names, versions


@pytest.fixture
def injected(tmp_path: Path) -> Callable[..., str]:
    """Gives the cell that papermill itself puts into a notebook for some parameters."""
    cell = nbformat.v4.new_code_cell('recipe = "demo"', metadata={"tags": ["parameters"]})
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    nbformat.write(nbformat.v4.new_notebook(cells=[cell], metadata={"kernelspec": kernel}), tmp_path / "series.ipynb")

    def prepare(**parameters) -> str:
        filled = papermill.execute_notebook(
            tmp_path / "series.ipynb", tmp_path / "filled.ipynb", parameters, prepare_only=True, progress_bar=False
        )
        (found,) = [cell for cell in filled.cells if "injected-parameters" in cell.metadata.get("tags", [])]
        return found.source

    return prepare


def namespace(out: Path, *cells: str, **changes) -> dict:
    """What `globals()` of a notebook holds after its parameters cell and the injected ones."""
    return {
        "recipe": "smoke",
        "data": None,
        "out": str(out),
        "overrides": {},
        "In": ["", *cells],
        "pd": object(),
        **changes,
    }


@pytest.fixture(autouse=True)
def _display_options_are_put_back() -> Iterator[None]:
    with pd.option_context("display.precision", 6, "display.max_colwidth", 50):
        yield


# --- injected names -------------------------------------------------------------------------------------------------


def test_the_names_of_papermills_cell_are_found(injected) -> None:
    values = {"recipe": "laptop", "data": None, "out": "/tmp/a 'b'", "overrides": {"seed": 1, "train_splits": ["a"]}}
    cell = injected(**values)
    assert injected_names(["", 'recipe = "demo"\nother = 1', cell, "import pandas as pd"]) == list(values)


def test_other_cells_are_no_parameters() -> None:
    cells = ["", "recipe = 1", "# Some parameters\nrecipe = 1", "x = '''\n# Parameters\ny = 1'''", "%matplotlib inline"]
    assert injected_names(cells) == []
    assert injected_names([]) == []


def test_several_injected_cells_count_together(injected) -> None:
    assert injected_names([injected(recipe="demo"), injected(seed=3)]) == ["recipe", "seed"]


# --- opening --------------------------------------------------------------------------------------------------------


def test_an_experiment_is_opened_from_the_parameters(tmp_path: Path, injected) -> None:
    cell = injected(recipe="smoke", out=str(tmp_path), overrides={"temperature": 3.0})
    experiment = experiment_from(namespace(tmp_path, cell, overrides={"temperature": 3.0}))
    assert experiment.recipe.name == "smoke"
    assert experiment.recipe.distillation.temperature == 3.0
    assert (experiment.out, experiment.data) == (tmp_path, None)


def test_tables_are_shown_whole_and_rounded(tmp_path: Path) -> None:
    experiment_from(namespace(tmp_path))
    shown = pd.DataFrame({"sentence": ["many words " * 20], "value": [1 / 3]}).to_html()
    assert "many words " * 19 in shown
    assert ">0.3333<" in shown


def test_without_ipython_or_papermill_it_opens_all_the_same(tmp_path: Path) -> None:
    plain = namespace(tmp_path, data=str(tmp_path))
    del plain["In"]
    assert experiment_from(plain).data == tmp_path


@pytest.mark.parametrize("name", ["recip", "temperature", "seed"])
def test_a_parameter_that_the_notebooks_do_not_have_is_an_error(tmp_path: Path, injected, name: str) -> None:
    cell = injected(**{"recipe": "smoke", name: 3})
    with pytest.raises(
        SettingsError, match=f"no parameter '{name}'.*recipe, data, out, overrides.*overrides = "
    ) as caught:
        experiment_from(namespace(tmp_path, cell))
    assert isinstance(caught.value, TbkdError)


def test_an_unknown_setting_among_the_overrides_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="no setting 'temprature'"):
        experiment_from(namespace(tmp_path, overrides={"temprature": 3.0}))


def test_real_radiographs_need_a_folder(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.delenv("TBKD_DATA", raising=False)
    with pytest.raises(SettingsError, match="data = 'DIR'"):
        experiment_from(namespace(tmp_path, recipe="laptop"))


def test_the_parameters_are_those_of_an_experiment() -> None:
    assert PARAMETERS == ("recipe", "data", "out", "overrides", "figures")


# --- versions -------------------------------------------------------------------------------------------------------


def test_the_versions_are_the_installed_ones() -> None:
    table = versions()
    assert table.columns.tolist() == ["package", "version"]
    assert table["package"].tolist() == ["Python", *SHOWN]
    for row in table.iloc[1:].itertuples():
        assert row.version == version(row.package)
    with pytest.raises(PackageNotFoundError):
        version("tbkd-utils-that-nobody-installs")
