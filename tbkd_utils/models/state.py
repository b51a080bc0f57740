"""Run code on a model and restore its state afterwards."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch
from torch import nn


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Puts a model into evaluation mode, and every module back into its own mode afterwards."""
    training = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, mode in training:
            module.training = mode


@contextmanager
def preserved(model: nn.Module, seed: int) -> Iterator[None]:
    """Evaluation mode, full precision and a private random stream inside; everything as before outside.

    Training flags (of each module), ``requires_grad``, ``.grad``, buffers, torch's random state and its TF32 and
    determinism switches are put back however the block ends. Parameters are not copied: nothing here writes them.

    Args:
        model: the network.
        seed: of torch's global random stream inside (a shuffling data loader draws from it).
    """
    parameters = [(p, p.requires_grad, p.grad) for p in model.parameters()]
    buffers = [(b, b.clone()) for b in model.buffers()]
    device = next((p.device for p, _, _ in parameters), torch.device("cpu"))
    cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
    switches = cudnn.allow_tf32, cudnn.deterministic, cudnn.benchmark, matmul.allow_tf32
    with ExitStack() as stack:
        stack.enter_context(torch.random.fork_rng([device] if device.type == "cuda" else []))
        stack.enter_context(torch.autocast(device.type, enabled=False))
        stack.enter_context(torch.enable_grad())
        stack.enter_context(evaluation_mode(model))
        try:
            # TF32 keeps 10 bits of a product, too few for a residual of 1e-3.
            cudnn.allow_tf32, cudnn.deterministic, cudnn.benchmark, matmul.allow_tf32 = False, True, False, False
            torch.manual_seed(seed)
            yield
        finally:
            cudnn.allow_tf32, cudnn.deterministic, cudnn.benchmark, matmul.allow_tf32 = switches
            for parameter, requires_grad, grad in parameters:
                parameter.requires_grad_(requires_grad)
                parameter.grad = grad
            with torch.no_grad():
                for buffer, before in buffers:
                    buffer.copy_(before)
