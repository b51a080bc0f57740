"""Readers: one file for each layout on disk.

Inside: the contract (`reader`); TBX11K as published (`tbx11k`, with its boxes in `coco`) and Kaggle's copy of it
(`tbx11k_kaggle`); Kermany's pneumonia set (`kermany`), NIH ChestX-ray14 (`nih`) and RSNA's pneumonia challenge
(`rsna`), whose boxes refer to larger images (`scaled`); the folders of NIH's findings as the source of Wang et al.,
2024 wants them (`sr`). To add a layout, write a class as `reader.Reader` says and
list it in `READERS`. Imports `data.records`, `data.images` and what a drawn set says of itself. Start reading at
`reader`.
"""

from tbkd_utils.data.readers.kermany import Kermany, KermanyPooled, KermanyPooledUpper
from tbkd_utils.data.readers.nih import Nih
from tbkd_utils.data.readers.reader import Reader
from tbkd_utils.data.readers.rsna import Rsna
from tbkd_utils.data.readers.sr import Sr
from tbkd_utils.data.readers.tbx11k import Tbx11k
from tbkd_utils.data.readers.tbx11k_kaggle import Tbx11kKaggle

__all__ = [
    "READERS",
    "Kermany",
    "KermanyPooled",
    "KermanyPooledUpper",
    "Nih",
    "Reader",
    "Rsna",
    "Sr",
    "Tbx11k",
    "Tbx11kKaggle",
]

READERS: tuple[type[Reader], ...] = (Tbx11k, Tbx11kKaggle, Kermany, KermanyPooled, KermanyPooledUpper, Nih, Rsna, Sr)
"""Every layout, in the order in which a folder is tried."""
