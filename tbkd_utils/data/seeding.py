"""Randomness as a function of (seed, epoch, sample), never of history."""

import contextlib
import hashlib
from collections.abc import Iterator


def stable_seed(*parts: int | str) -> int:
    """Returns a 63-bit seed that depends on the parts alone, the same on every machine."""
    text = "/".join(map(str, parts)).encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest()) >> 1


@contextlib.contextmanager
def torch_seeded(seed: int) -> Iterator[None]:
    """Seeds torch's CPU generator for a block and puts its state back afterwards."""
    import torch  # here, so that naming a system takes no seconds

    state = torch.random.get_rng_state()
    torch.default_generator.manual_seed(seed)
    try:
        yield
    finally:
        torch.random.set_rng_state(state)
