"""The closed form of Grad-CAM through `torch.compile`: for sets so large that compiling pays."""

import torch
import torch.nn.functional as F

from tbkd_utils.errors import TbkdError
from tbkd_utils.localization.closed_form import PooledHead


class CompileError(TbkdError, RuntimeError):
    """A network that cannot be compiled on this machine."""


class Compiled:
    """Images to Grad-CAM maps by one compiled forward pass.

    The weights are constants of the compiled code, so that batch norms are folded into convolutions and weights are
    stored as the processor likes them best; a network that is trained further has to be compiled again.

    Args:
        head: Of the network, which is in evaluation mode.
        target: The class that is explained.
    """

    def __init__(self, head: PooledHead, target: int) -> None:
        self._count = 0  # images in a batch: those of the first
        self._run = torch.compile(lambda images: head.maps(head.trunk(images), target), options={"freezing": True})

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        """Returns maps (b, h, w), before the ReLU, of images (b, 3, H, W).

        Raises:
            CompileError: If the machine has no C++ compiler, or the network cannot be compiled.
        """
        count = len(images)
        self._count = self._count or count
        # Compiled for one batch size: the last, smaller batch is filled up instead of compiled again.
        padded = F.pad(images, (0, 0, 0, 0, 0, 0, 0, self._count - count)) if count < self._count else images
        try:
            with torch.inference_mode():
                return self._run(padded)[:count]
        except torch._dynamo.exc.TorchDynamoException as error:
            reason = str(error).strip().splitlines()[0]
            raise CompileError(
                f"The network could not be compiled: {reason} Install a C++ compiler (g++ or clang++), or set "
                "cam_compile to false."
            ) from error
