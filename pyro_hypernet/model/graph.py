"""A function of a batch of draws captured as a graph, with the `pyro.param`s that it holds by reference."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pyro
from pyro import poutine
from pyro.poutine.runtime import _PYRO_STACK
from torch import Tensor
from torch.fx import GraphModule
from torch.utils import _pytree as pytree

from pyro_hypernet.graphs.batching import raises_failures
from pyro_hypernet.graphs.record import record
from pyro_hypernet.graphs.run import as_script, same_random_numbers, tensors_in
from pyro_hypernet.graphs.simplify import simplify
from pyro_hypernet.model.batched import Batched, slow_attention
from pyro_hypernet.model.single_run import outside_of_pyro

# The calls at which a graph is held against an uncaptured run.
_CHECKS = frozenset(8**power for power in range(1, 12))


@dataclass(eq=False)
class Graph:
    """A captured graph of tensor operations.

    Attributes:
        module: Its operations.
        run: The same, in the form in which they run.
        out_spec: How results read as what the function returns.
        params: The `pyro.param`s that it holds, by name.
        notes_failures: Whether the results are a pair, see `Batched.vmapped`.
        held: Kept alive as long as the graph, for its key knows tensors by identity.
        calls: How often it ran.
        has_gradient: Whether gradients through it were looked at.
    """

    module: GraphModule
    run: Callable[..., Any]
    out_spec: Any
    params: dict[str, Tensor | None]
    notes_failures: bool
    held: Any = None
    calls: int = 0
    has_gradient: bool = False

    @property
    def is_due(self) -> bool:
        """Whether it is time to hold it against an uncaptured run: at the 8th call, the 64th and so on."""
        return self.is_due_within(1)

    def is_due_within(self, number: int) -> bool:
        """Whether it will be within so many calls."""
        return not _CHECKS.isdisjoint(range(self.calls, self.calls + number))

    def is_current(self) -> bool:
        """Whether the parameter store still holds the very tensors that were captured."""
        return all(leaf is not None and _leaf(name) is leaf for name, leaf in self.params.items())

    def __call__(self, leaves: list[Any]) -> Any:
        if _PYRO_STACK:  # SVI learns from these statements which parameters to step
            for name in self.params:
                pyro.param(name)
        results = self.run(*tensors_in(leaves))
        return pytree.tree_unflatten(results, self.out_spec)

    def of_draws(self, rest: list[Tensor], draws: Any) -> Any:
        """Runs at other draws, all other tensors as they were."""
        return pytree.tree_unflatten(self.run(*pytree.tree_leaves(draws), *rest), self.out_spec)

    def inline(self, leaves: list[Any]) -> Any:
        """Runs operation by operation."""
        return pytree.tree_unflatten(self.module(*tensors_in(leaves)), self.out_spec)


def capture(batched: Batched, leaves: list[Any], spec: Any) -> Graph:
    """Captures a function of a batch of draws; where its graph may meet a failure it notes them from now on.

    Args:
        batched: The function; whatever it raises here is raised.
        leaves: Draws and arguments of the shapes that the graph is to take, flattened.
        spec: How they read as `(draws, args, kwargs)`.
    """
    out_spec: list[Any] = [None]

    def run_once(*tensors: Tensor) -> Any:
        remaining = iter(tensors)
        merged = [next(remaining) if isinstance(leaf, Tensor) else leaf for leaf in leaves]
        results, out_spec[0] = pytree.tree_flatten(batched.vmapped(*pytree.tree_unflatten(merged, spec)))
        return tuple(results)

    draws, args, kwargs = pytree.tree_unflatten(leaves, spec)
    # In another order, so that a graph that holds the draws themselves is found out.
    turned = pytree.tree_map(lambda draw: draw.detach().roll(1, 0), draws)
    tensors = [tensor.detach() for tensor in tensors_in((turned, args, kwargs))]
    with (
        same_random_numbers(tensors),
        slow_attention(),
        outside_of_pyro(),
        poutine.trace(param_only=True) as params,
    ):
        module = record(run_once, *tensors)
        if batched.failed is not None and not batched.notes_failures and raises_failures(module):
            batched.notes_failures = True
            module = record(run_once, *tensors)
        module = simplify(module)
        scripted = not (batched.is_differentiated or params.trace.nodes)
        run = as_script(module, tensors) if scripted else module
    params = {name: _leaf(name) for name in params.trace.nodes}
    return Graph(module, run, out_spec[0], params, batched.notes_failures)


def _leaf(name: str) -> Tensor | None:
    return pyro.get_param_store()._params.get(name)
