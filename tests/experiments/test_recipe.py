"""The recipe's values are the paper's, its errors name the field, and every recipe survives a trip through JSON."""

import dataclasses
import json
import math
import typing

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tbkd_utils.errors import TbkdError
from tbkd_utils.experiments.recipe import PRESETS, Recipe, RecipeError

FIELDS = {spec.name: spec for spec in dataclasses.fields(Recipe)}
HINTS = typing.get_type_hints(Recipe)
SETTABLE = [name for name in FIELDS if name != "name"]
PARTS = {
    "label", "data", "synthetic", "pixels", "training", "distillation", "ablation", "heatmaps", "scores", "curvature",
    "statistics", "execution",
}  # fmt: skip

LISTS = [name for name in FIELDS if typing.get_origin(HINTS[name]) is tuple]


def of_type(kind):
    """The names of the settable fields of one type."""
    return [name for name in SETTABLE if HINTS[name] == kind]


def limit(name, key):
    return FIELDS[name].metadata[key]


# ---------------------------------------------------------------------------------------------------------- presets


def test_defaults_are_the_papers_values():
    recipe = Recipe()
    stated = {
        "train_splits": ("train",), "test_splits": ("val",), "resize": 256, "crop": 224, "randaugment_ops": 2,
        "randaugment_magnitude": 9, "backbone": "resnet50", "weights": "imagenet1k_v1", "seed": 42,
        "learning_rate": 1e-3, "weight_decay": 1e-4, "batch_size": 64, "epochs": 100, "patience": 10,
        "temperature": 2.0, "alpha": 0.75,
    }  # fmt: skip
    left_open = {
        "monitor": "val", "teacher_mode": "eval", "cam_layer": "last_stage", "cam_relu": True,
        "cam_upsampling": "bilinear", "scored_images": "boxed", "normalisation": "minmax", "threshold": 0.5,
        "area": "rectangle", "min_area_quantile": 0.0, "no_prediction": "zero", "average": "image",
    }  # fmt: skip
    expected = stated | left_open
    assert {key: getattr(recipe, key) for key in expected} == expected


def test_the_paper_preset_changes_none_of_them_but_the_arithmetic():
    assert Recipe.named("paper").overrides() == {}
    differing = {key for key in FIELDS if getattr(Recipe(), key) != getattr(Recipe.named("paper"), key)}
    assert differing == {"workers", "precision"}


@pytest.mark.parametrize("name", PRESETS)
def test_presets_are_valid_and_named(name):
    recipe = Recipe.named(name)
    assert recipe.name == name
    assert recipe == Recipe.named(name)
    assert recipe.overrides() == {}
    assert set(PRESETS[name]) <= set(SETTABLE)


@pytest.mark.parametrize("name", ["smoke", "demo", "laptop"])
def test_small_presets_need_no_download_and_never_stop_on_the_test_set(name):
    recipe = Recipe.named(name)
    assert (recipe.backbone, recipe.weights) == ("efficientnet_lite0", "imagenet")
    assert recipe.monitor == "holdout"


@pytest.mark.parametrize("name", ["smoke", "demo"])
def test_synthetic_presets_hold_every_class(name):
    recipe = Recipe.named(name)
    assert min(*recipe.synthetic_train, *recipe.synthetic_val) > 0
    assert recipe.synthetic_size >= recipe.resize


def test_a_recipe_cannot_be_changed_in_place():
    with pytest.raises(dataclasses.FrozenInstanceError):
        Recipe.named("demo").seed = 1
    assert len({Recipe.named("demo"), Recipe.named("demo"), Recipe.named("demo", seed=1)}) == 2


# ------------------------------------------------------------------------------------------- names that do not exist


@pytest.mark.parametrize("name", ["papers", "", "Demo", "../demo"])
def test_unknown_preset_lists_the_known_ones(name):
    with pytest.raises(RecipeError, match="smoke, demo, laptop, paper"):
        Recipe.named(name)


@pytest.mark.parametrize(
    ("key", "meant"),
    [
        ("temprature", "temperature"), ("learning_rat", "learning_rate"), ("batchsize", "batch_size"),
        ("randaugment_op", "randaugment_ops"), ("Alpha", "alpha"), ("normalization", "normalisation"),
    ],
)  # fmt: skip
def test_misspelt_field_is_an_error_with_a_suggestion(key, meant):
    with pytest.raises(RecipeError, match=f"'{key}'.*Did you mean '{meant}'"):
        Recipe.named("demo", **{key: 1})


def test_far_off_field_is_an_error_without_a_suggestion():
    with pytest.raises(RecipeError, match="no setting 'zzzzzz'") as caught:
        Recipe.named("demo", zzzzzz=1)
    assert "Did you mean" not in str(caught.value)
    assert "tbkd recipes demo" in str(caught.value)


def test_the_name_is_not_a_field_to_override():
    with pytest.raises(RecipeError, match="no setting 'name'"):
        Recipe.named("demo", name="paper")


def test_unknown_part_is_an_error():
    with pytest.raises(RecipeError, match="'trainng'"):
        Recipe().part("pixels", "trainng")


def test_the_error_is_one_that_the_user_can_mend():
    assert issubclass(RecipeError, TbkdError)
    assert issubclass(RecipeError, ValueError)


# ------------------------------------------------------------------------------------------------------ values, by type


def refused(name, value, message):
    """The error says which field, which value, and what was expected."""
    with pytest.raises(RecipeError, match=message) as caught:
        Recipe.named("paper", **{name: value})
    assert str(caught.value).startswith(f"{name} is {value!r}")


@pytest.mark.parametrize("name", of_type(int))
@pytest.mark.parametrize("value", [True, 3.0, "3", None, [3]], ids=repr)
def test_int_fields_take_nothing_else(name, value):
    refused(name, value, "expected int")


@pytest.mark.parametrize("name", of_type(float))
@pytest.mark.parametrize("value", [True, "0.5", None, [0.5], 1j], ids=repr)
def test_float_fields_take_no_other_type(name, value):
    refused(name, value, "expected float")


@pytest.mark.parametrize("name", of_type(float))
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf], ids=repr)
def test_float_fields_are_finite(name, value):
    refused(name, value, "expected a finite number")


@pytest.mark.parametrize("name", of_type(bool))
@pytest.mark.parametrize("value", [0, 1, "true", None], ids=repr)
def test_bool_fields_take_nothing_else(name, value):
    refused(name, value, "expected bool")


@pytest.mark.parametrize("name", of_type(str))
@pytest.mark.parametrize("value", [1, True, None, ["val"]], ids=repr)
def test_str_fields_take_nothing_else(name, value):
    refused(name, value, "expected str")


@pytest.mark.parametrize("name", LISTS)
@pytest.mark.parametrize("value", ["train", 3, None, {"train": 1}], ids=repr)
def test_tuple_fields_take_nothing_but_lists(name, value):
    refused(name, value, "expected a list")


@pytest.mark.parametrize("name", of_type(tuple[int, ...]))
@pytest.mark.parametrize("value", [[1, 2, 3.0], ["1", "2", "3"], [True, 2, 3], [[1], 2, 3]], ids=repr)
def test_lists_of_counts_hold_ints(name, value):
    refused(name, value, "expected a list of int")


@pytest.mark.parametrize("name", of_type(tuple[str, ...]))
@pytest.mark.parametrize("value", [[1], ["train", None], [["train"]]], ids=repr)
def test_lists_of_splits_hold_strings(name, value):
    refused(name, value, "expected a list of str")


def test_every_field_has_a_type_that_is_tested_here():
    kinds = (int, float, bool, str, tuple[str, ...], tuple[int, ...], tuple[float, ...])
    assert sorted(SETTABLE) == sorted(name for kind in kinds for name in of_type(kind))


def test_a_whole_number_becomes_a_float_and_a_list_a_tuple():
    recipe = Recipe.named("paper", temperature=4, train_splits=["a", "b"], synthetic_train=[1, 2, 3],
                          synthetic_val=(0, 0, 1))  # fmt: skip
    assert (recipe.temperature, type(recipe.temperature)) == (4.0, float)
    assert recipe.train_splits == ("a", "b")
    assert recipe.synthetic_train == (1, 2, 3)
    assert recipe == Recipe.named("paper", temperature=4.0, train_splits=("a", "b"), synthetic_train=(1, 2, 3),
                                  synthetic_val=[0, 0, 1])  # fmt: skip


# ---------------------------------------------------------------------------------------------------- values, by range


@pytest.mark.parametrize("name", [n for n in SETTABLE if limit(n, "low") is not None and n not in LISTS])
def test_lowest_value_is_allowed_and_what_lies_below_is_not(name):
    low = HINTS[name](limit(name, "low"))
    room = {"crop": low} if name == "resize" else {}  # a crop has to fit into the image
    assert getattr(Recipe.named("paper", **{name: low} | room), name) == low
    refused(name, low - 1, f"at least {low:.10g}")
    if HINTS[name] is float:
        refused(name, math.nextafter(low, -math.inf), f"at least {low:.10g}")


@pytest.mark.parametrize("name", [n for n in SETTABLE if limit(n, "high") is not None and n not in LISTS])
def test_highest_value_is_allowed_and_what_lies_above_is_not(name):
    high = HINTS[name](limit(name, "high"))
    assert getattr(Recipe.named("paper", **{name: high}), name) == high
    refused(name, high + 1, f"at most {high:.10g}")


@pytest.mark.parametrize("name", [n for n in SETTABLE if limit(n, "above") is not None and n not in LISTS])
def test_excluded_bounds(name):
    above = limit(name, "above")
    assert getattr(Recipe.named("paper", **{name: math.nextafter(above, 1)}), name) > above
    refused(name, float(above), f"above {above:.10g}")


@pytest.mark.parametrize("name", [n for n in SETTABLE if limit(n, "choices")])
def test_choices(name):
    for choice in limit(name, "choices"):
        assert getattr(Recipe.named("paper", **{name: choice}), name) == choice
    refused(name, "other", f"expected one of '{limit(name, 'choices')[0]}'")


def test_a_crop_fits_into_the_resized_image():
    assert Recipe.named("paper", resize=224).crop == 224
    with pytest.raises(RecipeError, match=r"crop \(224\) is larger than resize \(223\)"):
        Recipe.named("paper", resize=223)


@pytest.mark.parametrize("counts", [[1, 2], [1, 2, 3, 4], [-1, 2, 3], [1, 2, -3]], ids=repr)
@pytest.mark.parametrize("name", ["synthetic_train", "synthetic_val"])
def test_synthetic_counts_are_three_and_not_negative(name, counts):
    with pytest.raises(RecipeError, match=f"{name}.*three counts"):
        Recipe.named("demo", **{name: counts})


@pytest.mark.parametrize("name", ["synthetic_train", "synthetic_val"])
def test_a_synthetic_set_has_both_splits(name):
    with pytest.raises(RecipeError, match="go together"):
        Recipe.named("demo", **{name: []})
    with pytest.raises(RecipeError, match="go together"):
        Recipe.named("paper", **{name: [1, 1, 1]})


@pytest.mark.parametrize("name", ["temperatures", "alphas", "seeds"])
@pytest.mark.parametrize("values", [[], [1, 1]], ids=repr)
def test_an_ablation_has_values_and_none_twice(name, values):
    with pytest.raises(RecipeError, match=f"{name} is .*at least one value, none of them twice"):
        Recipe.named("demo", **{name: values})


def test_lists_of_numbers_are_checked_entry_by_entry():
    assert Recipe.named("paper", temperatures=[1, 2]).temperatures == (1.0, 2.0)
    refused("temperatures", [1.0, "2"], "expected a list of float")
    refused("alphas", [0.5, 1.5], "at least 0 and at most 1")
    refused("alphas", [math.nan], "expected a finite number")


@pytest.mark.parametrize("name", ["train_splits", "test_splits"])
def test_there_is_a_split_to_read(name):
    with pytest.raises(RecipeError, match=f"{name} is empty"):
        Recipe.named("paper", **{name: []})


def test_values_are_checked_however_a_recipe_is_made():
    with pytest.raises(RecipeError, match="alpha is 2"):
        Recipe(alpha=2)
    with pytest.raises(RecipeError, match="alpha is 2"):
        Recipe.named("demo").changed(alpha=2)
    with pytest.raises(RecipeError, match="alpha is 2"):
        dataclasses.replace(Recipe.named("demo"), alpha=2)


# ------------------------------------------------------------------------------------- parts, overrides, there and back


def strategy(name):
    """Values of one field that are allowed whatever the others are."""
    kind = HINTS[name]
    choices, low, high, above = (limit(name, key) for key in ("choices", "low", "high", "above"))
    if choices:
        return st.sampled_from(choices)
    if name in ("temperatures", "alphas", "seeds"):
        entry = st.integers(0, 10**6) if name == "seeds" else st.floats(0.1, 1)
        return st.lists(entry, min_size=1, max_size=4, unique=True)
    if kind is int:
        return st.integers(low, high if high is not None else 10**6)
    if kind is float:
        smallest = low if low is not None else above
        return st.floats(smallest, high if high is not None else 1e6, exclude_min=low is None)
    if kind is bool:
        return st.booleans()
    if kind is str:
        return st.text(max_size=12)
    entries = st.integers(1, 10**4) if kind == tuple[int, ...] else st.text(max_size=8)
    return st.lists(entries, min_size=1, max_size=3)


# The sizes depend on each other, and so do the synthetic counts.
INDEPENDENT = [n for n in SETTABLE if n not in ("resize", "crop", "synthetic_train", "synthetic_val")]


@settings(deadline=None, max_examples=60)
@given(st.sampled_from(list(PRESETS)), st.fixed_dictionaries({}, optional={n: strategy(n) for n in INDEPENDENT}))
def test_overrides_make_the_same_recipe_again_even_through_json(preset, chosen):
    recipe = Recipe.named(preset, **chosen)
    overrides = recipe.overrides()
    assert Recipe.named(recipe.name, **overrides) == recipe
    assert Recipe.named(recipe.name, **json.loads(json.dumps(overrides))) == recipe
    assert set(overrides) <= set(chosen)
    assert recipe.changed() == recipe
    assert Recipe.named(preset).changed(**chosen) == recipe


def test_overrides_are_what_differs_from_the_preset():
    recipe = Recipe.named("laptop", seed=1, alpha=0.75, train_splits=["train"], epochs=6)
    assert recipe.overrides() == {"seed": 1, "train_splits": ["train"]}


def test_changed_keeps_the_rest_and_the_original():
    recipe = Recipe.named("demo", seed=7)
    other = recipe.changed(alpha=0.55, synthetic_train=[1, 2, 3])
    assert (other.seed, other.alpha, other.synthetic_train, other.name) == (7, 0.55, (1, 2, 3), "demo")
    assert recipe == Recipe.named("demo", seed=7)


def test_changed_refuses_what_named_refuses():
    with pytest.raises(RecipeError, match="Did you mean 'alpha'"):
        Recipe.named("demo").changed(alpah=0.5)
    with pytest.raises(RecipeError, match="no recipe 'other'"):
        Recipe.named("demo").changed(name="other")


def test_changed_name_takes_the_values_along():
    assert Recipe.named("demo").changed(name="paper").overrides()["backbone"] == "efficientnet_lite0"


@pytest.mark.parametrize("preset", PRESETS)
def test_parts_cover_every_field_once(preset):
    recipe = Recipe.named(preset)
    by_part = {part: recipe.part(part) for part in PARTS}
    assert all(by_part.values())
    assert sum(map(len, by_part.values())) == len(FIELDS)
    whole = recipe.part(*PARTS)
    assert list(whole) == list(FIELDS)  # in the order of the fields, whatever the order of the parts
    assert json.loads(json.dumps(whole, allow_nan=False)) == whole
    assert Recipe(**whole) == recipe


def test_a_part_moves_with_its_own_fields_only():
    recipe = Recipe.named("demo")
    training = recipe.part("data", "pixels", "training")
    for name in SETTABLE:
        part = limit(name, "part")
        other = {"threshold": 0.25, "temperature": 3.0, "workers": 2, "cam_relu": False, "resamples": 500, "seed": 0,
                 "crop": 96, "data_seed": 3, "synthetic_seed": 5}.get(name)  # fmt: skip
        if other is not None:
            moved = recipe.changed(**{name: other}).part("data", "pixels", "training") != training
            assert moved == (part in ("data", "pixels", "training")), name


def test_settings_lists_every_field_with_its_meaning():
    rows = Recipe.named("demo", seed=3).settings()
    assert [name for _, name, _, _ in rows] == list(FIELDS)
    assert ("training", "seed", 3, FIELDS["seed"].metadata["help"]) in rows
    assert all(part in PARTS and meaning for part, _, _, meaning in rows)


@pytest.mark.parametrize("preset", PRESETS)
def test_differences_are_what_is_not_the_default(preset):
    recipe = Recipe.named(preset, temperature=2.0, seed=3)
    found = recipe.differences("training", "distillation")
    assert found["seed"] == 3
    assert "temperature" not in found
    assert Recipe(**found).part("training", "distillation") == recipe.part("training", "distillation")
