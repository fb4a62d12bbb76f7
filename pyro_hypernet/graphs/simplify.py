"""A captured graph made smaller."""

from torch import fx

from pyro_hypernet.graphs.constants import fold, merge_constants, permute_back
from pyro_hypernet.graphs.nodes import untouched
from pyro_hypernet.graphs.products import add_in_products, unexpand_products
from pyro_hypernet.graphs.shorten import (
    cancel_shifts,
    drop_what_does_nothing,
    drop_zeros,
    join_slices,
    merge_equal,
    shorten,
)


def simplify(module: fx.GraphModule, *, constants: bool = False) -> fx.GraphModule:
    """Makes a captured graph smaller in place, with the same results up to rounding.

    What is computed twice is computed once, operations without effect go, constants are merged, and products with an
    operand that was copied along the other's batch become one product.

    Args:
        module: The graph, with shapes in its metadata, as `make_fx` leaves them.
        constants: Whether tensors that the graph holds never change, so that what depends on them alone is worked
            out now.

    Returns:
        The same module.
    """
    graph = module.graph
    graph.eliminate_dead_code()
    fixed = untouched(graph)
    drop_zeros(graph, fixed)
    join_slices(graph, fixed)
    shorten(graph, fixed)
    if constants:
        fold(module, fixed)
        permute_back(module, fixed)
    drop_what_does_nothing(graph, fixed)
    merge_equal(graph, fixed)
    changes = [unexpand_products(graph), cancel_shifts(graph, fixed)]
    if any(changes):
        graph.eliminate_dead_code()
        merge_equal(graph, fixed)
    if constants:
        fold(module, fixed)
        merge_constants(module, fixed)
    add_in_products(graph, fixed)
    graph.eliminate_dead_code()
    module.delete_all_unused_submodules()
    module.recompile()
    return module
