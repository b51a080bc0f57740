"""Localization: heatmaps, the boxes drawn from them, and how well both find the lesions.

Inside: heatmaps that compose (`heatmaps`), Algorithm 1 (`boxes`), scores of one image (`scores`) and of a set
(`tables`), what went wrong by name (`failures`), lungs without annotation (`lungs`), parts painted over (`paintings`),
and guesses that look at no disease (`guesses`). It may import `models` and what lies below; it knows no recipe.
Start reading at `heatmaps`.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "boxes": ["boxes_from_heatmap"],
        "heatmaps": ["compute_heatmaps", "flipped", "fused", "grad_cam", "multi_scale", "upsample"],
        "lungs": ["find_lungs", "mean_chest"],
        "scores": ["energy_inside", "iou_matrix", "mean_iou"],
        "tables": ["score_rows", "summarize"],
    },
)
