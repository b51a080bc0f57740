"""Views: what people look at.

Inside: figures (`figures`, `ablation_figures`, `classifier_figures`, `curvature_figures`, `teaching_figures`,
`audit_figures`, `overlays`), explorers with controls (`explorers`, `classifier_explorers`), the HTML report (`page`),
files for annotation tools (`export`), and saving (`save`). It may import `experiments` and what lies below; it knows no
paper. Start reading at `figures`.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submodules=["ablation_figures", "explorers", "figures", "overlays"],
    submod_attrs={
        "export": ["write_suggestions"],
        "page": ["write_page"],
        "save": ["save_figure", "save_table"],
        "upload": ["locate_upload"],
    },
)
