"""Pneumonia: seven networks, a patient-wise split, and where they look (arXiv 2511.00456).

Inside: what the system is (`declaration`, with `settings`, `presets`, `grid`, `report` and the paper's own `division`),
what the paper prints (`paper`), how well the networks classify (`tables`) and where they look (`looks`), verdicts on
the claims (`verdicts`), findings in words (`sentences`), and what the exercises run (`exercises`). Start reading at
`declaration`.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submodules=["exercises", "looks", "sentences", "tables"],
    submod_attrs={
        "grid": ["arm_variants", "division_variants", "network_variants", "seed_variants"],
        "verdicts": ["Evidence", "verdict_table"],
    },
)
