"""Curvature: the Hessian of any network and loss.

Inside: what is multiplied (`operator`, by the routes of `products`), how eigenvalues and densities are found
(`lanczos`, `spectrum`), PyHessian's own numbers (`pyhessian`), and the loss around a minimum (`landscape`). It
may import `models` and what lies below; it knows no recipe. Start reading at `spectrum`.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "landscape": ["loss_along", "loss_rise"],
        "pyhessian": ["pyhessian_numbers"],
        "spectrum": ["Spectrum", "density", "hessian_spectrum"],
    },
)
