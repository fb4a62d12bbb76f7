"""A function of parameters and a batch that returns gradients, captured as one graph and held against itself."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import pyro
import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from pyro_hypernet.graphs.blocks import in_blocks
from pyro_hypernet.graphs.culprits import first_line
from pyro_hypernet.graphs.record import record
from pyro_hypernet.graphs.run import as_cuda_graph, as_script, same_random_numbers, tensors_in
from pyro_hypernet.graphs.simplify import simplify
from pyro_hypernet.graphs.workspace import Workspace, give_back, without_graph
from pyro_hypernet.model.single_run import outside_of_pyro

# Greatest relative difference of losses and gradients between what was captured and what was not.
TOLERANCE = 1e-3


class Captured:
    """A function for batches of one shape, differentiation included, run from C++.

    Args:
        function: From a batch, unpacked, to a tuple: some numbers, the first of them the loss and the last the norm of
            the gradient, shape `(k,)`; gradients; and whatever else. It may read the leaves and random numbers.
        leaves: The parameters that it reads.
        batch: Arguments of the shapes that it will see.
        is_fixed: Whether all batches are the same, so that what depends on the data alone is worked out once.
        num_gradients: How many gradients it returns.
        overwrites: Whether a run may write over the gradients of the run before it.
        loss: For long vectors, of which few copies fit in memory: the loss alone, from a batch, for a check by that.
            Nothing is then run to be captured, and the graph works in blocks.
        workspace: Where the long results of such a graph lie; what one run returns another may write over.

    Raises:
        RuntimeError: If it cannot be captured, or gives other losses or gradients when captured; it says why.
    """

    def __init__(
        self,
        function: Callable[..., Any],
        leaves: Sequence[Tensor],
        batch: tuple,
        *,
        is_fixed: bool,
        num_gradients: int,
        overwrites: bool = False,
        loss: Callable[..., float] | None = None,
        workspace: Workspace | None = None,
    ) -> None:
        self.function, self.loss = function, loss
        self.leaves = list(leaves)
        self.views = [leaf.detach() for leaf in leaves]
        self.is_fixed = is_fixed
        self.num_gradients = num_gradients
        try:
            self.module = self._trace(batch)
            inputs = self.inputs(batch)
            gradients = range(1, 1 + num_gradients) if overwrites else ()
            if loss is not None:
                self.run: Callable[..., Any] = in_blocks(self.module, workspace)
                self.check(batch)
                self._forget()
                return
            self.run = as_script(self.module, inputs, overwritten=gradients)
            with same_random_numbers(self.views), torch.no_grad():
                for _ in range(2):  # TorchScript optimises at its first two calls
                    self.run(*inputs)
                if all(tensor.is_cuda for tensor in inputs):
                    self.run = as_cuda_graph(self.run, inputs, len(self.views))
        except Exception as error:
            raise RuntimeError(f"it could not be captured: {first_line(error)}") from error
        self.check(batch)

    def _forget(self) -> None:
        """Lets go of what capturing took and a run does not."""
        del self.module
        self.run = without_graph(self.run)
        give_back()

    def _trace(self, batch: tuple) -> torch.fx.GraphModule:
        values, spec = pytree.tree_flatten(batch)

        def traced(*tensors: Tensor) -> Any:
            if self.is_fixed:
                return self.function(*batch)
            remaining = iter(tensors[len(self.leaves) :])
            merged = [next(remaining) if isinstance(value, Tensor) else value for value in values]
            return self.function(*pytree.tree_unflatten(merged, spec))

        with same_random_numbers(self.views), outside_of_pyro(), pyro.validation_enabled(False):
            long = None if self.loss is None else self.leaves
            module = record(traced, *self.leaves, *self._tensors(batch), shapes_alone_of=long)
        return simplify(module, constants=True)

    def inputs(self, batch: tuple) -> list[Tensor]:
        """What the graph takes: the parameters, and the batch where it may change."""
        return self.views if self.is_fixed else [*self.views, *self._tensors(batch)]

    def __call__(self, batch: tuple) -> Any:
        with torch.no_grad():
            return self.run(*self.inputs(batch))

    def check(self, batch: tuple) -> None:
        """Runs with and without capture on the same random numbers.

        Args:
            batch: Arguments.

        Raises:
            RuntimeError: If loss or gradients differ.
        """
        difference = self._difference(batch)
        if difference > TOLERANCE:
            raise RuntimeError(f"captured, it differs by {difference:.2g}: the model or the guide draws its own")

    def _difference(self, batch: tuple) -> float:
        """Greatest relative difference of losses and gradients; 0 where both are NaN."""
        if self.loss is not None:
            return self._difference_of_losses(batch)
        results = []
        for run in (self.function, lambda *batch: self(batch)):
            with same_random_numbers(self.views):
                numbers, *rest = run(*batch)
            results.append((numbers.tolist(), rest[: self.num_gradients]))
        (ours, gradients), (theirs, others) = results
        if not math.isfinite(ours[0]) or not math.isfinite(ours[-1]):
            return math.inf if math.isfinite(theirs[0]) and math.isfinite(theirs[-1]) else 0.0
        differences = [abs(ours[i] - theirs[i]) / max(1.0, abs(ours[i])) for i in (0, -1)]
        least = TOLERANCE * (1 + abs(ours[0]))  # at the posterior itself all that is left of a gradient is rounding
        parts = [float((gradient - other).norm()) for gradient, other in zip(gradients, others, strict=True)]
        differences.append(math.hypot(*parts) / max(least, ours[-1]))
        return max(math.inf if math.isnan(difference) else difference for difference in differences)

    def _difference_of_losses(self, batch: tuple) -> float:
        with same_random_numbers(self.views):
            ours = self.loss(*batch)
        with same_random_numbers(self.views):  # last: what it works in stays
            theirs = float(self(batch)[0][0])
        if not math.isfinite(ours):
            return math.inf if math.isfinite(theirs) else 0.0
        difference = abs(ours - theirs) / max(1.0, abs(ours))
        return math.inf if math.isnan(difference) else difference

    def _tensors(self, batch: tuple) -> list[Tensor]:
        return [] if self.is_fixed else tensors_in(batch)
