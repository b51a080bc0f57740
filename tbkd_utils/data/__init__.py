"""Data: from files on disk to the batches of an epoch.

Inside: layouts on disk (`readers`) and records (`records`, `dataset`), a look at a whole set (`check`), pixels
(`images`, `dicom`, `geometry`, `transforms`), the decoded cache (`cache`), digests (`manifest`), what counts as one
example (`labels`), splits and batches (`split`, `loaders`, `seeding`), and drawings (`synthetic`). It may import
`metrics`, `runs` and `errors`.
Start reading at `records`, then `cache`.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "cache": ["Samples"],
        "check": ["check_dataset"],
        "dataset": ["read_dataset"],
        "files": ["find_radiographs"],
        "geometry": ["Geometry"],
        "images": ["read_image", "to_gray"],
        "readers": ["READERS", "Reader"],
        "records": ["Radiograph"],
    },
)
