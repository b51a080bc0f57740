"""The mean loss of a network over a data set, as a function of its flat parameters: values and Hessian products.

Everything about curvature (``hessian``, ``landscape``, ``pyhessian_adapter``) looks at a network through this class. It
passes the data through batch by batch and refuses what would make a number silently wrong: data that change between
passes, a loss that is not finite, an operation without a second derivative.
"""

import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence, Sized
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from tbkd_utils.curvature.products import Graph, reverse_over_forward
from tbkd_utils.errors import ModelError

Loss = Callable[[Tensor, Tensor], Tensor]
Batches = Iterable[tuple[Tensor, Tensor]]
_ROUTES: WeakKeyDictionary[nn.Module, WeakKeyDictionary[Loss, dict[tuple, bool]]] = WeakKeyDictionary()


class HessianOperator:
    """The loss averaged over all samples, and its Hessian times vectors by the route that measurements favor.

    The Hessian is that of ``sum_b |b| * loss_b / sum_b |b|``, batch b having |b| samples, with respect to the
    parameters that require a gradient, flattened and concatenated in the order of ``model.parameters()``. Use it
    inside `preserved`.

    Args:
        model: the network, float32 or float64, on one device.
        loss: ``loss(outputs, targets)`` -> scalar, the mean over the samples of a batch.
        batches: re-iterable (list, DataLoader) of (inputs, targets), the same samples at each pass. Tensors are moved
            to the model's device, floating-point inputs to its dtype.

    Attributes:
        size: number of trainable parameters, n.
        products_used: Hessian-vector products so far (each over all the data).
        samples: number of samples, known after the first pass.
        loss_value: the mean loss, known after the first pass.

    Raises:
        ModelError: nothing to train, a mixed or half precision, several devices, or one-shot data.
    """

    def __init__(self, model: nn.Module, loss: Loss, batches: Batches) -> None:
        self.parameters = [p for p in model.parameters() if p.requires_grad]
        if not self.parameters:
            raise ModelError("the model has no trainable parameter: set requires_grad on those to look at")
        if len({(p.dtype, p.device) for p in self.parameters}) > 1:
            raise ModelError("trainable parameters differ in dtype or device: move the model to one of each")
        self.dtype, self.device = self.parameters[0].dtype, self.parameters[0].device
        if self.dtype not in (torch.float32, torch.float64):
            raise ModelError(f"the model is {self.dtype}: call model.float() or model.double() first")
        if isinstance(batches, Iterator):
            raise ModelError("batches can be read only once; give a list or a DataLoader, not a generator")
        if getattr(loss, "reduction", "mean") != "mean":
            raise ModelError("the loss sums or keeps its samples; build it with reduction='mean'")
        self.model, self.loss, self.batches = model, loss, batches
        self.counts = [p.numel() for p in self.parameters]
        self.size = sum(self.counts)
        self.products_used = self.samples = 0
        self.loss_value = float("nan")
        self._single = isinstance(batches, Sized) and len(batches) == 1
        self._kept: Graph | None = None  # of data of one batch
        self._forward: bool | None = None  # the route, chosen at the first batch

    def products(self, vectors: Tensor) -> Tensor:
        """Hessian times each row, in one pass over the data.

        Args:
            vectors: (b, n), the model's dtype and device.

        Returns:
            (b, n), likewise.

        Raises:
            ModelError: bad data, a loss or product that is not finite, an operation without a second derivative.
        """
        out = torch.zeros_like(vectors)
        total, samples = 0.0, 0
        for number, inputs, targets in self.each_batch():
            total += len(targets) * self._add(out, vectors, number, inputs, targets)
            samples += len(targets)
        self._same_as_before(total / samples, samples)
        self.products_used += len(vectors)
        out /= samples
        if not bool(out.isfinite().all()):
            raise ModelError("a Hessian-vector product is not finite though the loss is: some derivative overflows")
        return out

    def value(self) -> float:
        """The mean loss at the present parameters, without derivatives.

        Raises:
            ModelError: as `products`.
        """
        total, samples = 0.0, 0
        with torch.no_grad():
            for number, inputs, targets in self.each_batch():
                total += len(targets) * float(self.batch_loss(number, self.model(inputs), targets))
                samples += len(targets)
        return total / samples

    def each_batch(self) -> Iterator[tuple[int, Tensor, Tensor]]:
        """Each batch as (number from 0, inputs, targets), on the model's device.

        Raises:
            ModelError: there is none, or one is not a pair of tensors with samples in it.
        """
        number = -1
        for number, batch in enumerate(self.batches):
            pair = tuple(batch) if isinstance(batch, list | tuple) else ()
            if len(pair) != 2 or not all(isinstance(part, Tensor) and len(part) for part in pair):
                raise ModelError(f"batch {number} is not a pair (inputs, targets) of tensors with samples in them")
            inputs, targets = pair
            dtype = self.dtype if inputs.is_floating_point() else inputs.dtype
            yield number, inputs.to(self.device, dtype), targets.to(self.device)
        if number < 0:
            raise ModelError("batches holds no data: give at least one pair (inputs, targets)")

    def batch_loss(self, number: int, outputs: Tensor, targets: Tensor) -> Tensor:
        """The loss of one batch, checked to be a finite scalar.

        Raises:
            ModelError: it is not; the message names the batch.
        """
        value = self.loss(outputs, targets)
        if value.ndim != 0:
            raise ModelError(f"the loss has shape {tuple(value.shape)}; it has to be the mean over the batch")
        if not bool(value.isfinite()):
            raise ModelError(
                f"the loss of batch {number} is {float(value.detach())}: look for bad inputs or diverged weights"
            )
        return value

    def _add(self, out: Tensor, vectors: Tensor, number: int, inputs: Tensor, targets: Tensor) -> float:
        """Add ``samples * H v`` of one batch to each row of out (b, n); returns the batch's loss."""
        if self._forward is None:
            self._forward = self._known_route(number, inputs, targets)
        if not self._forward:
            graph = self._kept or self._graph(number, inputs, targets)
            self._kept = graph if self._single else None
            for k, (row, vector) in enumerate(zip(out, vectors, strict=True)):
                self._into(row, graph.product(self._pieces(vector), self._single or k + 1 < len(vectors)), len(targets))
            return graph.loss
        for row, vector in zip(out, vectors, strict=True):
            value, parts = self._forward_product(number, inputs, targets, vector)
            self._into(row, parts, len(targets))
        return value

    def _known_route(self, number: int, inputs: Tensor, targets: Tensor) -> bool:
        """The route, chosen once for a network and a loss, however many samples they are looked at on."""
        try:
            known = _ROUTES.setdefault(self.model, WeakKeyDictionary()).setdefault(self.loss, {})
        except TypeError:  # a loss that cannot be a key
            known = {}
        made_of = self.dtype, self._single, tuple(type(module) for module in self.model.modules())
        if made_of not in known:
            known[made_of] = self._choose(number, inputs, targets)
        return known[made_of]

    def _choose(self, number: int, inputs: Tensor, targets: Tensor) -> bool:
        """Whether to go reverse over forward, after a product by both routes of the first batch's first samples."""
        inputs, targets = inputs[:2], targets[:2]
        graph = self._graph(number, inputs, targets)
        graph.check()
        groups = [m.groups for m in self.model.modules() if isinstance(m, nn.modules.conv._ConvNd)]
        if not groups or (self._single and max(groups) == 1):
            return False
        vector = torch.randn(self.size, generator=torch.Generator().manual_seed(0)).to(self.device, self.dtype)
        exact, other = torch.zeros_like(vector), torch.zeros_like(vector)
        self._into(exact, graph.product(self._pieces(vector), keep=False), 1)
        del graph
        try:
            with warnings.catch_warnings():  # torch's first use of forward mode warns of torch's own code
                warnings.simplefilter("ignore", FutureWarning)
                self._into(other, self._forward_product(number, inputs, targets, vector)[1], 1)
        except torch.OutOfMemoryError:
            raise
        except (RuntimeError, TypeError, AttributeError):  # no forward mode, or an output that is not a tensor
            return False
        # They differ by more if the loss reaches the parameters by another way than the outputs.
        return float((exact - other).norm()) <= torch.finfo(self.dtype).eps ** 0.5 * float(exact.norm())

    def _graph(self, number: int, inputs: Tensor, targets: Tensor) -> Graph:
        return Graph(self.batch_loss(number, self.model(inputs), targets), self.parameters, len(targets))

    def _forward_product(
        self, number: int, inputs: Tensor, targets: Tensor, vector: Tensor
    ) -> tuple[float, Sequence[Tensor | None]]:
        return reverse_over_forward(
            self.model, lambda outputs: self.batch_loss(number, outputs, targets), inputs, self._pieces(vector)
        )

    def _pieces(self, vector: Tensor) -> list[Tensor]:
        return [d.view_as(p) for d, p in zip(vector.split(self.counts), self.parameters, strict=True)]

    def _into(self, row: Tensor, parts: Sequence[Tensor | None], samples: int) -> None:
        for piece, part in zip(row.split(self.counts), parts, strict=True):
            if part is not None:
                piece.add_(part.reshape(-1), alpha=samples)

    def _same_as_before(self, loss: float, samples: int) -> None:
        """Refuse data that change from pass to pass: every product would belong to another Hessian."""
        if self.samples == 0:
            self.loss_value, self.samples = loss, samples
        epsilon = torch.finfo(self.dtype).eps
        if samples != self.samples or abs(loss - self.loss_value) > epsilon**0.5 * abs(loss) + 100 * epsilon:
            raise ModelError(
                f"the data changed between two passes: {self.samples} samples with mean loss {self.loss_value:.8g}, "
                f"then {samples} with {loss:.8g}; turn off augmentation and drop_last, and let the data be re-iterable"
            )
