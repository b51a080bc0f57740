"""Models: networks and losses by name, and the one training loop.

Inside: the registries (`networks`, `losses`), networks that say where (`decoders`, `segmenters`, `foreground` with its
mask heads) and `vssm` on its `scan`, the training step (`module`) and loop (`loop`) with its options and checkpoints,
where it all runs (`devices`), and a linear classifier on thumbnails (`ridge`). It may import `data` and what lies
below; it knows no recipe. Start reading at `networks`, then `loop`.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "losses": ["LOSSES", "Loss", "build_loss"],
        "loop": ["fit"],
        "networks": ["NETWORKS", "Network", "build_network"],
        "options": ["TrainingOptions"],
    },
)
