"""The recipes by name: what each sets apart from the TB paper's values, which are a recipe's defaults."""

from typing import Any

# The paper's own way (arXiv 2511.00456), but for its division, its noise and what stops a training.
_METHOD = {
    "train_splits": ("all",),
    "test_splits": ("all",),
    "division": "patients",
    "aspect": "squash",
    "head": "mlp",
    "augmentation": "nine",
    "noise_low": 0.02,
    "noise_high": 0.08,
    "balance": "both",
    "drop_last": True,
    "learning_rate": 1e-4,
    "weight_decay": 1e-4,
    "batch_size": 32,
    "epochs": 10,
    "patience": 3,
    "early_stopping_on": "validation",
    "seeds": (42, 0, 1),
    "min_area": "none",
}
_LITE = {"network": "efficientnet_lite0", "weights": "imagenet"}
PRESETS: dict[str, dict[str, Any]] = {
    # Seconds, for tests: every step runs, nothing is learned.
    "smoke": _METHOD
    | _LITE
    | {
        "synthetic_train": (8, 8, 6),
        "synthetic_val": (4, 4, 4),
        "synthetic_size": 64,
        "synthetic_identity": 1.0,
        "resize": 64,
        "crop": 64,
        "train_share": 0.5,
        "validation_share": 0.2,
        "batch_size": 16,
        "epochs": 1,
        "threads": 1,
        "seeds": (42, 0),
        "arms": ("both", "none"),
        "division_seeds": (0, 1),
        "leak_seeds": (0, 1),
        "resamples": 200,
    },
    # The embedded default: drawn persons, a few minutes on two cores. At 96 px the last stage has 3x3 cells; the layer
    # before it has 6x6, as near as can be to the paper's 7x7. It was picked after both had been scored on these
    # drawings. On so few the validation loss swings from epoch to epoch, so no training is stopped for it.
    "demo": _METHOD
    | _LITE
    | {
        "synthetic_train": (82, 142, 76),
        "synthetic_val": (22, 38, 20),
        "synthetic_size": 96,
        "synthetic_identity": 1.0,
        "resize": 96,
        "crop": 96,
        "cam_layers": {"efficientnet_lite0": "blocks.4"},
        "learning_rate": 1e-3,
        "batch_size": 16,
        "epochs": 6,
        "patience": 6,
        "threads": 1,
        "seeds": (42,),
        "division_seeds": (0, 1, 2),
    },
    # Real radiographs on a CPU, in one to two hours: four epochs where the paper allows ten.
    "laptop": _METHOD | _LITE | {"resize": 224, "crop": 224, "epochs": 4},
    # The paper's own values, defects and all.
    "paper": _METHOD
    | {
        "division": "source",
        "division_seed": 42,
        "drop_duplicates": False,
        "resize": 224,
        "crop": 224,
        "network": "resnet18",
        "noise_low": 0.2,
        "noise_high": 0.44,
        "early_stopping_metric": "accuracy",
        "compared_networks": (
            "resnet50", "densenet121", "efficientnet_b0", "mobilenet_v2", "mobilenet_v3_large", "vit_b_16"
        ),
        "cam_layers": {"densenet121": "features.denseblock4"},  # elsewhere the source shows the last stage
        "workers": 8,
    },
}  # fmt: skip
