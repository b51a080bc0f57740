"""Tuberculosis: teacher, student and their Grad-CAM boxes (arXiv 2512.11057).

Inside: what the system is (`declaration`, with `settings`, `presets`, `grid` and `report`), what the student of maps
learns from (`masks`), what the paper prints (`paper`),
tables with both (`tables`), verdicts on its claims (`verdicts`), findings in words (`sentences`, and `leaning` for the
shortcut audit), and what the exercises of the notebooks run (`exercises`). Start reading at `declaration`.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submodules=["exercises", "sentences"],
    submod_attrs={
        "grid": ["COMPARED", "CONDITIONS"],
        "paper": ["TABLE_3", "comparability", "left_open"],
        "tables": ["table_1", "table_2", "table_3", "table_4"],
        "verdicts": ["Evidence", "verdict_table"],
    },
)
