"""Metrics: how good predictions are, and how sure one can be of it.

Inside: classification scores (`classification`), thresholds, curves and calibration (`operating`), overlaps and
distances of masks (`segmentation`), and intervals and tests over images and seeds (`statistics`). It may import
`errors` alone. Start reading at `statistics`.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "classification": ["classification_metrics", "classification_summary", "metrics_from_counts"],
        "operating": [
            "area_table",
            "calibration_table",
            "operating_metrics",
            "operating_table",
            "paired_accuracy_test",
        ],
        "statistics": [
            "across_seeds",
            "bootstrap_interval",
            "paired_difference",
            "paired_permutation_test",
            "seeds_needed",
            "wilson_interval",
        ],
    },
)
