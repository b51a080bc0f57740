"""Experiments: what is asked, computed once and kept.

Inside: settings (`recipe`), what a system declares (`system`), a recipe with its data (`experiment`), the mean chest of
those (`chests`), trained networks (`trained`) and what is computed from them (`evaluation`, `curvature`, `shortcut`,
`audit`, `sources`, `comparisons`, `choices`, `predict`), blind guesses (`guesses`), grids of networks (`grid`), and
running it all (`notebooks`, `series`, `executors`, `status`). It may import every room below; it knows no paper.
Start reading at `experiment`.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "evaluation": ["classification", "localization", "probabilities"],
        "experiment": ["Experiment"],
        "notebooks": ["experiment_from", "versions"],
        "predict": ["locate"],
        "series": ["train_variants"],
        "system": ["Variant", "named_recipe"],
        "trained": ["load_trained", "train"],
    },
)
