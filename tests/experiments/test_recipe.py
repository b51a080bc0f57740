"""The recipe's values are the paper's, its errors name the field, and every recipe survives a trip through JSON."""

import json
import math
import types
import typing
from pathlib import Path

import annotated_types
import pydantic
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tbkd_utils.errors import SettingsError, TbkdError
from tbkd_utils.experiments import recipe as module
from tbkd_utils.experiments.recipe import ALIASES, Settings
from tbkd_utils.experiments.system import SYSTEMS, named_recipe, overrides_of
from tbkd_utils.systems.tb.presets import PRESETS
from tbkd_utils.systems.tb.settings import TbRecipe as Recipe

GROUP_OF = Recipe.group_of()
GROUPS = {
    "data", "synthetic", "pixels", "training", "distillation", "ablation", "evaluation", "heatmaps", "scores",
    "curvature", "statistics", "execution", "maps", "beyond",
}  # fmt: skip


def field(name):
    return Recipe.model_fields[GROUP_OF[name]].annotation.model_fields[name]


def value_of(recipe, name):
    return getattr(getattr(recipe, GROUP_OF[name]), name)


def limits(name):
    """The bounds of a number: low (allowed), high (allowed), above (not allowed)."""
    found = {"low": None, "high": None, "above": None}
    for rule in field(name).metadata:
        if isinstance(rule, annotated_types.Ge):
            found["low"] = rule.ge
        if isinstance(rule, annotated_types.Le):
            found["high"] = rule.le
        if isinstance(rule, annotated_types.Gt):
            found["above"] = rule.gt
    return types.SimpleNamespace(**found)


def choices(name):
    hint = field(name).annotation
    return typing.get_args(hint) if typing.get_origin(hint) is typing.Literal else ()


def kind_of(name):
    """The type of a setting's values; `tuple` for lists, `dict` for tables."""
    hint = field(name).annotation
    return typing.get_origin(hint) or hint


SETTABLE = list(GROUP_OF)
LISTS = [name for name in SETTABLE if kind_of(name) is tuple]


# Settings whose values depend on each other's.
DEPENDENT = (
    "resize", "crop", "synthetic_train", "synthetic_val", "train_share", "validation_share", "noise_low", "noise_high",
    "early_stopping_metric",
)  # fmt: skip


def of_type(kind):
    """The names of the settings of one type."""
    return [name for name in SETTABLE if kind_of(name) is kind]


# ---------------------------------------------------------------------------------------------------------- presets


def test_defaults_are_the_papers_values():
    recipe = Recipe()
    stated = {
        "train_splits": ("train",), "test_splits": ("val",), "resize": 256, "crop": 224, "randaugment_ops": 2,
        "randaugment_magnitude": 9, "network": "resnet50", "weights": "imagenet1k_v1", "seed": 42,
        "learning_rate": 1e-3, "weight_decay": 1e-4, "batch_size": 64, "epochs": 100, "patience": 10,
        "temperature": 2.0, "alpha": 0.75,
    }  # fmt: skip
    left_open = {
        "early_stopping_on": "test", "teacher_mode": "eval", "cam_layer": "last_stage", "cam_relu": True,
        "cam_upsampling": "bilinear", "scored_images": "boxed", "normalization": "minmax", "threshold": 0.5,
        "area": "rectangle", "min_area_quantile": 0.0, "no_prediction": "zero", "average": "image",
    }  # fmt: skip
    expected = stated | left_open
    assert {key: value_of(recipe, key) for key in expected} == expected


def test_the_paper_preset_changes_none_of_them_but_the_arithmetic():
    assert overrides_of(named_recipe("paper")) == {}
    assert set(named_recipe("paper").differences()) == {"workers", "precision"}


@pytest.mark.parametrize("name", PRESETS)
def test_presets_are_valid_and_named(name):
    recipe = named_recipe(name)
    assert recipe.name == name
    assert recipe == named_recipe(name)
    assert overrides_of(recipe) == {}
    assert set(PRESETS[name]) <= set(SETTABLE)


@pytest.mark.parametrize("name", ["smoke", "demo", "laptop"])
def test_small_presets_need_no_download_and_never_stop_on_the_test_set(name):
    recipe = named_recipe(name)
    assert (recipe.training.network, recipe.training.weights) == ("efficientnet_lite0", "imagenet")
    assert recipe.training.early_stopping_on == "validation"


@pytest.mark.parametrize("name", ["smoke", "demo"])
def test_synthetic_presets_hold_every_class(name):
    recipe = named_recipe(name)
    assert min(*recipe.synthetic.synthetic_train, *recipe.synthetic.synthetic_val) > 0
    assert recipe.synthetic.synthetic_size >= recipe.pixels.resize


def test_a_recipe_cannot_be_changed_in_place():
    with pytest.raises(pydantic.ValidationError, match="frozen"):
        named_recipe("demo").training.seed = 1
    assert len({named_recipe("demo"), named_recipe("demo"), named_recipe("demo", seed=1)}) == 2


# ------------------------------------------------------------------------------------------- names that do not exist


@pytest.mark.parametrize("name", ["papers", "", "Demo", "../demo"])
def test_unknown_preset_lists_the_known_ones(name):
    with pytest.raises(SettingsError, match="smoke, demo, laptop, paper"):
        named_recipe(name)


@pytest.mark.parametrize(
    ("key", "meant"),
    [
        ("temprature", "temperature"), ("learning_rat", "learning_rate"), ("batchsize", "batch_size"),
        ("randaugment_op", "randaugment_ops"), ("Alpha", "alpha"), ("normalizaton", "normalization"),
    ],
)  # fmt: skip
def test_misspelled_field_is_an_error_with_a_suggestion(key, meant):
    with pytest.raises(SettingsError, match=f"'{key}'.*Did you mean '{meant}'"):
        named_recipe("demo", **{key: 1})


def test_far_off_field_is_an_error_without_a_suggestion():
    with pytest.raises(SettingsError, match="no setting 'zzzzzz'") as caught:
        named_recipe("demo", zzzzzz=1)
    assert "Did you mean" not in str(caught.value)
    assert "tbkd recipes demo" in str(caught.value)


def test_the_name_is_not_a_field_to_override():
    with pytest.raises(SettingsError, match="no setting 'name'"):
        named_recipe("demo", name="paper")


def test_unknown_group_is_an_error():
    with pytest.raises(SettingsError, match="'trainng'"):
        Recipe().flat("pixels", "trainng")


def test_the_error_is_one_that_the_user_can_mend():
    assert issubclass(SettingsError, TbkdError)
    assert issubclass(SettingsError, ValueError)


# ------------------------------------------------------------------------------------------------------ values, by type


def refused(name, value, message):
    """The error says which field, which value, and what was expected."""
    with pytest.raises(SettingsError, match=message) as caught:
        named_recipe("paper", **{name: value})
    assert str(caught.value).startswith(f"{name} is {value!r}")


@pytest.mark.parametrize("name", of_type(int))
@pytest.mark.parametrize("value", [True, 3.0, "3", None, [3]], ids=repr)
def test_int_fields_take_nothing_else(name, value):
    refused(name, value, "valid integer")


@pytest.mark.parametrize("name", of_type(float))
@pytest.mark.parametrize("value", [True, "0.5", None, [0.5], 1j], ids=repr)
def test_float_fields_take_no_other_type(name, value):
    refused(name, value, "valid number")


@pytest.mark.parametrize("name", of_type(float))
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf], ids=repr)
def test_float_fields_are_finite(name, value):
    refused(name, value, "finite number")


@pytest.mark.parametrize("name", of_type(bool))
@pytest.mark.parametrize("value", [0, 1, "true", None], ids=repr)
def test_bool_fields_take_nothing_else(name, value):
    refused(name, value, "valid boolean")


@pytest.mark.parametrize("name", of_type(str))
@pytest.mark.parametrize("value", [1, True, None, ["val"]], ids=repr)
def test_str_fields_take_nothing_else(name, value):
    refused(name, value, "valid string")


@pytest.mark.parametrize("name", LISTS)
@pytest.mark.parametrize("value", ["train", 3, None, {"train": 1}], ids=repr)
def test_tuple_fields_take_nothing_but_lists(name, value):
    refused(name, value, "valid tuple")


@pytest.mark.parametrize("name", ["synthetic_train", "seeds", "hessian_sizes", "cam_sizes"])
@pytest.mark.parametrize("value", [[1, 2, 3.0], ["1", "2", "3"], [True, 2, 3], [[1], 2, 3]], ids=repr)
def test_lists_of_counts_hold_ints(name, value):
    refused(name, value, "valid integer")


@pytest.mark.parametrize("name", ["train_splits", "test_splits"])
@pytest.mark.parametrize("value", [[1], ["train", None], [["train"]]], ids=repr)
def test_lists_of_splits_hold_strings(name, value):
    refused(name, value, "valid string")


def test_every_field_has_a_type_that_is_tested_here():
    kinds = (int, float, bool, str, tuple, dict, typing.Literal)
    assert sorted(SETTABLE) == sorted(name for kind in kinds for name in of_type(kind))
    assert of_type(dict) == ["networks", "cam_layers"]


def test_networks_are_named_by_role():
    assert named_recipe("paper", networks={"student": "resnet18"}).training.networks == {"student": "resnet18"}
    refused("networks", ["resnet18"], "valid dictionary")
    refused("networks", {"student": 18}, "valid string")


def test_a_whole_number_becomes_a_float_and_a_list_a_tuple():
    recipe = named_recipe("paper", temperature=4, train_splits=["a", "b"], synthetic_train=[1, 2, 3],
                          synthetic_val=(0, 0, 1))  # fmt: skip
    assert (recipe.distillation.temperature, type(recipe.distillation.temperature)) == (4.0, float)
    assert recipe.data.train_splits == ("a", "b")
    assert recipe.synthetic.synthetic_train == (1, 2, 3)
    assert recipe == named_recipe("paper", temperature=4.0, train_splits=("a", "b"), synthetic_train=(1, 2, 3),
                                  synthetic_val=[0, 0, 1])  # fmt: skip


# ---------------------------------------------------------------------------------------------------- values, by range


@pytest.mark.parametrize("name", [n for n in SETTABLE if limits(n).low is not None and n not in (*LISTS, "noise_high")])
def test_lowest_value_is_allowed_and_what_lies_below_is_not(name):
    low = kind_of(name)(limits(name).low)
    room = {"crop": low} if name == "resize" else {}  # a crop has to fit into the image
    assert value_of(named_recipe("paper", **{name: low} | room), name) == low
    refused(name, low - 1, f"greater than or equal to {low:.10g}")
    if kind_of(name) is float:
        refused(name, math.nextafter(low, -math.inf), f"greater than or equal to {low:.10g}")


@pytest.mark.parametrize("name", [n for n in SETTABLE if limits(n).high is not None and n not in (*LISTS, "noise_low")])
def test_highest_value_is_allowed_and_what_lies_above_is_not(name):
    high = kind_of(name)(limits(name).high)
    assert value_of(named_recipe("paper", **{name: high}), name) == high
    refused(name, high + 1, f"less than or equal to {high:.10g}")


@pytest.mark.parametrize("name", [n for n in SETTABLE if limits(n).above is not None and n not in LISTS])
def test_excluded_bounds(name):
    above = limits(name).above
    assert value_of(named_recipe("paper", **{name: math.nextafter(above, 1)}), name) > above
    refused(name, float(above), f"greater than {above:.10g}")


@pytest.mark.parametrize("name", [n for n in SETTABLE if choices(n)])
def test_choices(name):
    for choice in choices(name):
        assert value_of(named_recipe("paper", **{name: choice}), name) == choice
    refused(name, "other", f"input should be '{choices(name)[0]}'")


def test_a_crop_fits_into_the_resized_image():
    assert named_recipe("paper", resize=224).pixels.crop == 224
    with pytest.raises(SettingsError, match=r"crop \(224\) is larger than resize \(223\)"):
        named_recipe("paper", resize=223)


@pytest.mark.parametrize("counts", [[-1, 2, 3], [1, 2, -3]], ids=repr)
@pytest.mark.parametrize("name", ["synthetic_train", "synthetic_val"])
def test_synthetic_counts_are_not_negative(name, counts):
    refused(name, counts, "greater than or equal to 0")


@pytest.mark.parametrize("name", ["synthetic_train", "synthetic_val"])
def test_a_synthetic_set_has_both_splits(name):
    with pytest.raises(SettingsError, match="go together"):
        named_recipe("demo", **{name: []})
    with pytest.raises(SettingsError, match="go together"):
        named_recipe("paper", **{name: [1, 1, 1]})


@pytest.mark.parametrize("name", ["temperatures", "alphas", "seeds"])
@pytest.mark.parametrize("values", [[], [1, 1]], ids=repr)
def test_an_ablation_has_values_and_none_twice(name, values):
    with pytest.raises(SettingsError, match=f"{name} is .*at least one value, none of them twice"):
        named_recipe("demo", **{name: values})


def test_lists_of_numbers_are_checked_entry_by_entry():
    assert named_recipe("paper", temperatures=[1, 2]).ablation.temperatures == (1.0, 2.0)
    refused("temperatures", [1.0, "2"], "valid number")
    refused("alphas", [0.5, 1.5], "less than or equal to 1")
    refused("alphas", [math.nan], "finite number")


@pytest.mark.parametrize("name", ["train_splits", "test_splits"])
def test_there_is_a_split_to_read(name):
    refused(name, [], "at least 1 item")


def test_values_are_checked_however_a_recipe_is_made():
    with pytest.raises(SettingsError, match="alpha is 2"):
        Recipe.build("mine", {"alpha": 2})
    with pytest.raises(SettingsError, match="alpha is 2"):
        named_recipe("demo").changed(alpha=2)
    with pytest.raises(pydantic.ValidationError, match="less than or equal to 1"):
        module.Distillation(alpha=2)


# ------------------------------------------------------------------------------------- parts, overrides, there and back


def strategy(name):
    """Values of one field that are allowed whatever the others are."""
    kind, bounds = kind_of(name), limits(name)
    low, high, above = bounds.low, bounds.high, bounds.above
    if choices(name):
        return st.sampled_from(choices(name))
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
    if name in ("negatives_data", "more_negatives"):
        return st.sampled_from(["", str(Path(__file__).parent)])
    if kind is str:
        return st.text(max_size=12)
    if kind is dict:
        return st.dictionaries(st.text(max_size=5), st.text(max_size=5), max_size=2)
    entries = st.text(max_size=8) if name.endswith("_splits") else st.integers(1, 10**4)
    return st.lists(entries, min_size=1, max_size=3)


INDEPENDENT = [n for n in SETTABLE if n not in DEPENDENT]


@settings(deadline=None, max_examples=60)
@given(st.sampled_from(list(PRESETS)), st.fixed_dictionaries({}, optional={n: strategy(n) for n in INDEPENDENT}))
def test_overrides_make_the_same_recipe_again_even_through_json(preset, chosen):
    recipe = named_recipe(preset, **chosen)
    overrides = overrides_of(recipe)
    assert named_recipe(recipe.name, **overrides) == recipe
    assert named_recipe(recipe.name, **json.loads(json.dumps(overrides))) == recipe
    assert set(overrides) <= set(chosen)
    assert recipe.changed() == recipe
    assert named_recipe(preset).changed(**chosen) == recipe


def test_overrides_are_what_differs_from_the_preset():
    recipe = named_recipe("laptop", seed=1, alpha=0.75, train_splits=["train"], epochs=6)
    assert overrides_of(recipe) == {"seed": 1, "train_splits": ["train"]}


def test_changed_keeps_the_rest_and_the_original():
    recipe = named_recipe("demo", seed=7)
    other = recipe.changed(alpha=0.55, synthetic_train=[1, 2, 3])
    assert (other.training.seed, other.distillation.alpha, other.name) == (7, 0.55, "demo")
    assert other.synthetic.synthetic_train == (1, 2, 3)
    assert recipe == named_recipe("demo", seed=7)


def test_changed_refuses_what_named_refuses():
    with pytest.raises(SettingsError, match="Did you mean 'alpha'"):
        named_recipe("demo").changed(alpah=0.5)


@pytest.mark.parametrize("preset", PRESETS)
def test_groups_cover_every_setting_once(preset):
    recipe = named_recipe(preset)
    by_group = {group: recipe.flat(group) for group in GROUPS}
    assert all(by_group.values())
    assert sum(map(len, by_group.values())) == len(GROUP_OF)
    whole = recipe.flat(*GROUPS)
    assert list(whole) == list(GROUP_OF)  # in the order of declaration, whatever the order of the groups
    assert whole == recipe.flat()
    assert json.loads(json.dumps(whole, allow_nan=False)) == whole
    assert Recipe.build(preset, whole) == recipe


def test_a_name_stands_in_one_group_only():
    names = [name for group in GROUPS for name in Recipe.model_fields[group].annotation.model_fields]
    assert len(set(names)) == len(names)


def test_a_group_moves_with_its_own_settings_only():
    recipe = named_recipe("demo")
    training = recipe.flat("data", "pixels", "training")
    others = {"threshold": 0.25, "temperature": 3.0, "workers": 2, "cam_relu": False, "resamples": 500, "seed": 0,
              "crop": 96, "data_seed": 3, "synthetic_seed": 5, "eval_crop": 96}  # fmt: skip
    for name, other in others.items():
        moved = recipe.changed(**{name: other}).flat("data", "pixels", "training") != training
        assert moved == (GROUP_OF[name] in ("data", "pixels", "training")), name


def test_settings_lists_every_setting_with_its_meaning():
    rows = named_recipe("demo", seed=3).settings()
    assert [name for _, name, _, _ in rows] == list(GROUP_OF)
    assert ("training", "seed", 3, field("seed").description) in rows
    assert all(group in GROUPS and meaning for group, _, _, meaning in rows)


@pytest.mark.parametrize("preset", PRESETS)
def test_differences_are_what_is_not_the_default(preset):
    recipe = named_recipe(preset, temperature=2.0, seed=3)
    found = recipe.differences("training", "distillation")
    assert found["seed"] == 3
    assert "temperature" not in found
    assert Recipe.build(preset, found).flat("training", "distillation") == recipe.flat("training", "distillation")


# -------------------------------------------------------------------------------------- settings that come, go and
# change


def test_the_names_of_before_are_understood():
    old = named_recipe("demo", monitor="val", holdout_fraction=0.2, backbone="resnet18", normalisation="max")
    new = named_recipe(
        "demo", early_stopping_on="test", validation_fraction=0.2, network="resnet18", normalization="max"
    )
    assert old == new
    assert named_recipe("demo", monitor="holdout").training.early_stopping_on == "validation"
    assert named_recipe("demo", scored_images="boxed_and_called_tb").scores.scored_images == "boxed_and_predicted"
    assert set(ALIASES.values()) <= set(GROUP_OF)
    assert not set(ALIASES) & set(GROUP_OF)
    with pytest.raises(SettingsError, match="earlier name of the setting 'early_stopping_on', which is given too"):
        named_recipe("demo", monitor="val", early_stopping_on="test")


def test_a_setting_that_is_added_and_removed_again_renames_no_run():
    class Longer(module.Training):
        focal_gamma: float = pydantic.Field(0.0, description="a setting of the future")

    class Future(Recipe):
        training: Longer = Longer()

    for preset in PRESETS:
        now, then = named_recipe(preset, seed=1), Future.build(preset, dict(PRESETS[preset]) | {"seed": 1})
        assert then.differences("data", "pixels", "training") == now.differences("data", "pixels", "training")
    changed = then.changed(focal_gamma=2.0)
    assert changed.differences("training") == then.differences("training") | {"focal_gamma": 2.0}
    assert changed.changed(focal_gamma=0.0).differences("training") == now.differences("training")


def test_a_system_may_have_groups_of_its_own(monkeypatch):
    class Foreground(Settings):
        foreground_input: typing.Literal["normed", "raw"] = pydantic.Field("normed", description="as the code")

    class Own(Recipe):
        foreground: Foreground = Foreground()

    import dataclasses

    monkeypatch.setitem(SYSTEMS, "own", dataclasses.replace(SYSTEMS["tb"], name="own", recipe=Own))
    recipe = named_recipe("smoke", "own", foreground_input="raw")
    assert recipe.foreground.foreground_input == "raw"
    assert recipe.label == "own-smoke"
    assert overrides_of(recipe) == {"foreground_input": "raw"}
    with pytest.raises(SettingsError, match="Did you mean 'foreground_input'"):
        named_recipe("smoke", "own", foreground_inputs="raw")


def test_an_unknown_system_lists_the_known_ones():
    with pytest.raises(SettingsError, match=r"no system 'tuberculosis': expected .*tb"):
        named_recipe("demo", "tuberculosis")


def test_the_crop_at_evaluation_fits_the_image_at_evaluation():
    assert named_recipe("demo", eval_crop=64).evaluation_scale == (146, 64, "keep")
    assert named_recipe("demo", eval_resize=256, eval_crop=224).evaluation_scale == (256, 224, "keep")
    with pytest.raises(SettingsError, match=r"crop at evaluation \(128\) is larger than the resized image \(100\)"):
        _ = named_recipe("demo", eval_resize=100).evaluation_scale
