"""The recipes by name: what each sets apart from the paper's values, which are a recipe's defaults."""

from typing import Any

# Few radiographs and few products: seconds on a CPU, and wide intervals, which the notebook shows.
_BRIEF_CURVATURE = {
    "hessian_samples": 6,
    "hessian_batch_size": 6,
    "hessian_top": 3,
    "hessian_probes": 2,
    "hessian_steps": 4,
    "hessian_tolerance": 0.1,
    "hessian_sizes": (2, 3, 4, 5, 6),
    "hessian_draws": 3,
    "hessian_size_probes": 2,
    "pyhessian_iterations": 2,
    "landscape_points": 7,
    "landscape_draws": 4,
}
# All of Table 1, on as many radiographs as a CPU gets through in about an hour.
_FULL_CURVATURE = {
    "hessian_samples": 16,
    "hessian_batch_size": 8,
    "hessian_top": 10,
    "hessian_probes": 4,
    "hessian_steps": 12,
    "hessian_tolerance": 1e-3,
    "hessian_sizes": (2, 4, 8, 12, 16),
    "hessian_draws": 3,
    "hessian_size_probes": 4,
    "pyhessian_iterations": 20,
    "landscape_points": 11,
    "landscape_draws": 6,
}
_LITE = {"network": "efficientnet_lite0", "weights": "imagenet", "early_stopping_on": "validation"}
# What makes a network look at the disease: it sees parts of radiographs, classes equally often, and few epochs.
_LOOKING = _LITE | {
    "augmentation": "crops",
    "balance": "sampler",
    "frozen_stages": 4,
    "schedule": "cosine",
    "keep": "last",  # the schedule ends there; no epoch is chosen
    "cam_flip": True,
    "min_area": "share",  # so that no box is read on the way to boxes
    "map_balance": "none",
    "map_teachers": (0, 1, 2),
}
# The drawings, the same for every recipe of a size.
_FEW = {
    "synthetic_train": (8, 8, 16),
    "synthetic_val": (4, 4, 8),
    "synthetic_size": 96,
}
_SOME = {
    "synthetic_train": (70, 70, 140),
    "synthetic_val": (30, 30, 60),
    "synthetic_size": 256,
}
PRESETS: dict[str, dict[str, Any]] = {
    # Seconds, for tests: every step runs, nothing is learned.
    "smoke": _LITE
    | _FEW
    | {
        "resize": 73,
        "crop": 64,
        "validation_fraction": 0.25,
        "batch_size": 16,
        "epochs": 2,
        "threads": 1,
        "temperatures": (1.0, 2.0),
        "alphas": (0.75, 0.95),
        "seeds": (0, 42),
        "resamples": 200,
        "hessian_samples": 4,
        "hessian_batch_size": 4,
        "hessian_top": 2,
        "hessian_probes": 2,
        "hessian_steps": 4,
        "hessian_tolerance": 0.1,
        "hessian_sizes": (2, 4),
        "hessian_draws": 2,
        "hessian_size_probes": 2,
        "pyhessian_iterations": 2,
        "landscape_points": 3,
        "landscape_draws": 2,
    },
    # The embedded default: synthetic radiographs, a few minutes on two cores.
    "demo": _LITE
    | _SOME
    | _BRIEF_CURVATURE
    | {
        "resize": 146,
        "crop": 128,
        "batch_size": 16,
        "epochs": 4,
        "threads": 1,  # the same digits, whether one cell of a grid runs at a time or two
    },
    # Real radiographs on a CPU: TBX11K or a part of it, with the `extra` radiographs as further negatives.
    "laptop": _LITE
    | _FULL_CURVATURE
    | {
        "train_splits": ("train", "extra_train"),
        "test_splits": ("val", "extra_val"),
        "partial": True,
        "batch_size": 32,
        "epochs": 6,
    },
    # The paper's own values.
    "paper": {"workers": 8, "precision": "bf16-mixed"},
    # Ours, on the radiographs of `laptop`: three teachers on whole radiographs, and a student of their cleaned maps.
    "maps": _LOOKING
    | {
        "train_splits": ("train", "extra_train"),
        "test_splits": ("val", "extra_val"),
        "partial": True,
        "resize": 224,
        "crop": 224,
        "batch_size": 32,
        "epochs": 3,
        "map_resize": 256,
        "map_crop": 256,
        "map_batch_size": 16,
        "map_epochs": 6,
        "map_cam_sizes": (256, 320, 384),
        "eval_resize": 320,
        "eval_crop": 320,
        "cam_sizes": (384,),
        "seeds": (0, 1, 2),
    },
    # The same on the drawings of `demo`: minutes.
    "maps_demo": _LOOKING
    | _SOME
    | {
        "resize": 128,
        "crop": 128,
        "batch_size": 16,
        "epochs": 4,
        "map_teachers": (0, 1),
        "map_resize": 128,
        "map_crop": 128,
        "map_epochs": 6,
        "eval_resize": 160,
        "eval_crop": 160,
        "cam_sizes": (128, 160),
        "threads": 1,
        "seeds": (0,),
    },
    # The same in seconds, on drawings: every step runs, nothing is learned.
    "maps_smoke": _LOOKING
    | _FEW
    | {
        "resize": 64,
        "crop": 64,
        "validation_fraction": 0.25,
        "batch_size": 16,
        "epochs": 1,
        "map_teachers": (0, 1),
        "map_resize": 80,
        "map_crop": 80,
        "eval_resize": 96,
        "eval_crop": 96,
        "cam_sizes": (80, 96),
        "threads": 1,
        "seeds": (0, 1),
        "resamples": 200,
    },
}
BEYOND = {"smoke": "maps_smoke", "demo": "maps_demo", "laptop": "maps", "paper": "maps"}
"""Recipe of the paper's series to the recipe that goes beyond it on the same radiographs."""
