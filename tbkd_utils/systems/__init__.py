"""Systems: one folder for each published method, with all that is only its own.

Inside: what each system declares (its task, networks, layouts, presets and report), the numbers its paper prints, and
tables, verdicts and sentences that set ours beside them. It may import every room but `views` and `cli`; nothing but
`cli` and the notebooks imports it. To add a system, write a folder and add a line here. Start reading at
`tb.declaration`.
"""

from tbkd_utils.systems.pneumonia.declaration import PNEUMONIA
from tbkd_utils.systems.tb.declaration import TB

__all__ = ["PNEUMONIA", "TB"]
