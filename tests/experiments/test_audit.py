"""The audit of shortcuts: rows that agree with other evaluations, and networks whose leaning is known."""

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from untrained import untrained

from tbkd_utils.data.synthetic.dataset import read_synthetic_markers, read_synthetic_samples
from tbkd_utils.data.synthetic.sample import draw_lungs, render_sample
from tbkd_utils.experiments import audit, sources
from tbkd_utils.experiments.audit import MARKER, NOTHING, audit_rows, audit_table, leaning_table, lungs_of, paintings
from tbkd_utils.experiments.evaluation import probabilities
from tbkd_utils.experiments.experiment import Experiment
from tbkd_utils.experiments.shortcut import markers_in_sight
from tbkd_utils.experiments.sources import AS_TRAINED, ONE_SOURCE, SAME, SWAPPED, source_table, swapped_sources
from tbkd_utils.experiments.trained import TrainedNetwork
from tbkd_utils.localization.paintings import FRAME, LUNGS, REST

COUNTS = {"synthetic_train": (10, 10, 20), "synthetic_val": (6, 6, 12), "synthetic_size": 160}
SCALE = {"resize": 146, "crop": 128, "resamples": 100}


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Experiment:
    return Experiment.open("smoke", out=tmp_path_factory.mktemp("audit"), overrides=COUNTS | SCALE)


@pytest.fixture(scope="module")
def network(drawn: Experiment) -> TrainedNetwork:
    return untrained(drawn)


@pytest.fixture(scope="module")
def rows(drawn: Experiment, network: TrainedNetwork) -> pd.DataFrame:
    return audit_rows(drawn, network)


def reading(measure, drawn: Experiment, monkeypatch: pytest.MonkeyPatch) -> pd.DataFrame:
    """The rows of a network whose probability is a function of the pixels, and whose map is even."""
    side = drawn.recipe.pixels.crop
    monkeypatch.setattr(audit, "class_probabilities", lambda trained, given: measure(np.array(given.pixels)))
    monkeypatch.setattr(audit, "activation_maps", lambda trained, given, recipe: np.ones((len(given), side, side)))
    trained = SimpleNamespace(task=drawn.task)
    return audit._painted_rows(drawn, trained, drawn.test)  # type: ignore[arg-type]


def areas(rows: pd.DataFrame) -> pd.DataFrame:
    return audit_table({"it": rows}, resamples=20).set_index("painted")


def test_every_radiograph_is_asked_about_every_painting(rows: pd.DataFrame, drawn: Experiment, network) -> None:
    assert list(dict.fromkeys(rows["painted"])) == [NOTHING, LUNGS, REST, FRAME, MARKER]
    assert (rows.groupby("painted")["name"].apply(list).map(tuple) == drawn.test.names).all()
    whole = rows[rows["painted"] == NOTHING]
    assert np.allclose(whole["probability"], probabilities(drawn, network)["probability"], rtol=1e-4)
    assert rows["energy"].between(0, 1).all()
    assert rows["lungs_area"].between(0.2, 0.7).all()
    seen, _ = markers_in_sight(drawn.test, read_synthetic_markers(drawn.root))
    assert whole["marker_energy"].notna().to_numpy().nonzero()[0].tolist() == seen
    assert audit_rows(drawn, network).equals(rows)


def test_lungs_in_the_recipes_maps_change_nothing(drawn: Experiment, network: TrainedNetwork, rows) -> None:
    asked = drawn.changed(inside_lungs=True)
    assert audit_rows(asked, TrainedNetwork(network.role, asked.recipe, network.run)).equals(rows)


def test_a_radiograph_without_a_marker_is_not_painted_for_it(drawn: Experiment) -> None:
    markers = read_synthetic_markers(drawn.root)
    made = paintings(drawn.test, lungs_of(drawn, drawn.test), markers)
    changed = (made[MARKER][0].pixels != np.array(drawn.test.pixels)).any(axis=(1, 2))
    assert changed.nonzero()[0].tolist() == markers_in_sight(drawn.test, markers)[0]
    assert (made[MARKER][1]["covered"] > 0).tolist() == changed.tolist()
    assert MARKER not in paintings(drawn.test, lungs_of(drawn, drawn.test), {})


def test_a_network_that_reads_the_marker_alone(drawn: Experiment, monkeypatch: pytest.MonkeyPatch) -> None:
    """It says the same without the lungs, and nothing without the frame, where the marker lies."""
    corner = np.s_[:, :12, 110:]
    rows = reading(lambda pixels: pixels[corner].max(axis=(1, 2)) / 255, drawn, monkeypatch)
    said = rows.pivot(index="name", columns="painted", values="probability")
    assert np.allclose(said[LUNGS], said[NOTHING], atol=0.02)
    assert areas(rows).loc[LUNGS, "auc"] == pytest.approx(areas(rows).loc[NOTHING, "auc"], abs=0.05)
    seen, _ = markers_in_sight(drawn.test, read_synthetic_markers(drawn.root))
    names = [drawn.test.names[place] for place in seen]
    assert said.loc[names, NOTHING].min() > 0.9
    for painted in (REST, FRAME, MARKER):
        assert said.loc[names, painted].max() < 0.9


def test_a_network_that_reads_the_middle_of_the_lungs_alone(drawn: Experiment, monkeypatch) -> None:
    lung = np.array([one.mask for one in lungs_of(drawn, drawn.test)]).all(axis=0)
    assert lung.mean() > 0.05
    rows = reading(lambda pixels: pixels[:, lung].mean(axis=1) / 255, drawn, monkeypatch)
    said = rows.pivot(index="name", columns="painted", values="probability")
    for painted in (REST, MARKER):
        assert np.array_equal(said[painted], said[NOTHING])
    gray = rows[rows["painted"] == LUNGS].set_index("name")["gray"]
    assert np.allclose(said[LUNGS], gray[said.index].round() / 255)  # what is left is the paint
    table = areas(rows)
    assert table.loc[LUNGS, "auc"] == pytest.approx(table.loc[LUNGS, "gray_auc"], abs=0.05)
    assert np.allclose(table["energy"], table["lungs_area"])  # the map is even


def tiny_rows(probability: dict[str, list[float]], energy: float) -> pd.DataFrame:
    parts = [
        pd.DataFrame({"painted": painted, "name": list("abcd"), "label": [1, 1, 0, 0], "probability": p,
                      "energy": [energy, energy, 0, 0], "gray": np.nan, "covered": 0.5, "lungs_area": 0.4,
                      "marker_energy": np.nan, "marker_area": np.nan})
        for painted, p in probability.items()
    ]  # fmt: skip
    return pd.concat(parts, ignore_index=True)


def test_leaning_by_hand() -> None:
    right, wrong = [0.9, 0.8, 0.2, 0.1], [0.5, 0.5, 0.5, 0.5]
    leaning = tiny_rows({NOTHING: right, LUNGS: right, REST: wrong}, 0.2)
    looking = tiny_rows({NOTHING: right, LUNGS: wrong, REST: right}, 0.9)
    table = leaning_table({"teacher": leaning, "student": looking}, resamples=30).set_index("measure")
    assert set(table["comparison"]) == {"student - teacher"}
    assert table.loc["AUC without lungs", ["difference", "low", "high"]].tolist() == [-0.5] * 3
    assert table.loc["AUC lost without the rest", "difference"] == -0.5
    assert table.loc["energy in the lungs", "difference"] == pytest.approx(0.7)
    shuffled = looking.sample(frac=1, random_state=0)
    again = leaning_table({"teacher": leaning, "student": shuffled}, resamples=30).set_index("measure")
    pd.testing.assert_frame_equal(again, table)


def test_a_set_of_one_class_has_no_area_but_its_energy() -> None:
    rows = tiny_rows({NOTHING: [0.9, 0.8, 0.2, 0.1]}, 0.6)
    table = audit_table({"teacher": rows[rows["label"] == 1]}, resamples=20).iloc[0]
    assert np.isnan(table["auc"])
    assert np.isnan(table["p_other"])
    assert table["energy"] == pytest.approx(0.6)
    assert table["p_tb"] == pytest.approx(0.85)


# --- sources ----------------------------------------------------------------------------------------------------------


def test_a_network_that_knows_the_source_alone_fails_where_sources_are_swapped() -> None:
    rows = pd.DataFrame({"label": [1, 0] * 20, "source": (["A"] * 2 + ["B"] * 2) * 10})
    rows["probability"] = np.where(rows["source"] == "A", 0.9, 0.1)
    table = sources._pair_areas(rows, pd.Series({"A": 0.8, "B": 0.2}), resamples=20, seed=0)
    pooled = table[table["tb_from"] == "any"].set_index("no_tb_from")
    assert pooled["auc"].to_dict() == {"any": 0.5, SAME: 0.5, AS_TRAINED: 1.0, SWAPPED: 0.0}
    pairs = table.set_index(["tb_from", "no_tb_from"])
    assert pairs.loc[("A", "B"), ["auc", "low", "high", "n_tb", "n_other"]].tolist() == [1, 1, 1, 10, 10]
    assert pairs.loc[("B", "A"), "auc"] == 0


def test_on_drawings_the_marker_takes_the_place_of_the_source(drawn: Experiment, network, monkeypatch) -> None:
    def seen(pixels: np.ndarray) -> np.ndarray:
        return (pixels[:, :12, 110:] > 240).any(axis=(1, 2)).astype(float)[:, None]

    monkeypatch.setattr(sources, "thumbnails", seen)
    shares = sources.tb_shares(drawn)
    assert shares[sources.WITH] > 0.7 > 0.3 > shares[sources.WITHOUT]
    table = swapped_sources(drawn, {"student": network})
    assert set(table["tb_from"]) == {"any", sources.WITH, sources.WITHOUT}
    told = source_table(drawn, {"student": network}).set_index("question")
    assert told["blind"].tolist() == [0.5] * 4
    assert told.iloc[0]["value"] == 1.0  # a thumbnail that shows the marker and nothing else names it
    read = told.loc["AUC for TB: its source by 16 x 16 pixels"]
    assert read["value"] == pytest.approx(told.loc["AUC for TB: its source", "value"])
    assert told.loc["AUC for TB: its source", "value"] == pytest.approx(0.5, abs=0.1)  # it says nothing in the test


def test_one_source_is_said_to_be_one(drawn: Experiment, network, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "known_markers", lambda experiment: {})
    told = source_table(drawn, {"student": network})
    assert told["question"].tolist() == [ONE_SOURCE, "AUC for TB: student"]
    assert np.isnan(told["value"][0])
    table = swapped_sources(drawn, {"student": network}).set_index(["tb_from", "no_tb_from"])
    assert table.loc[("any", SAME), "auc"] == table.loc[("any", "any"), "auc"]
    assert table.loc[[("any", AS_TRAINED), ("any", SWAPPED)], "auc"].isna().all()
    assert table.loc[("any", SWAPPED), "n_tb"] == 0
    assert ("TBX11K", "TBX11K") in table.index


def test_the_drawn_samples_are_described_again_by_their_names(drawn: Experiment) -> None:
    known = read_synthetic_samples(drawn.root)
    name = drawn.test.names[0]
    assert {sample.name for sample in known.values()} == set(known)
    lungs, image = draw_lungs(known[name]), render_sample(known[name])
    assert lungs.shape == image.shape
    assert image[lungs].mean() < image[~lungs].mean() - 30  # air is dark
