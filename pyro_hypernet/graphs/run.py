"""Captured graphs run from C++, compiled, or recorded on a GPU."""

import shutil
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx
from torch.utils import _pytree as pytree

from pyro_hypernet.graphs.products import in_place


def as_script(
    module: fx.GraphModule, tensors: Sequence[Tensor], *, overwritten: Sequence[int] = ()
) -> Callable[..., Any]:
    """The same operations run from C++, constants worked out beforehand, and in place what can be.

    Args:
        module: The graph.
        tensors: Inputs of the shapes that it will see.
        overwritten: Numbers of results that the next run may write over. Where they are large products their memory is
            kept: fresh memory costs more than the product that fills it.

    Returns:
        The script; the graph as it is, run from Python, on a GPU, where TorchScript compiles kernels of its own for
        minutes and a CUDA graph does away with Python; where this torch has no TorchScript, see `why_no_script`; and
        where TorchScript does not know an operation.
    """
    if any(tensor.is_cuda for tensor in tensors) or why_no_script():
        return module
    try:
        return _traced(_with_convolutions(in_place(module, overwritten)), tensors)
    except torch.linalg.LinAlgError:
        raise
    except RuntimeError:
        with torch.no_grad(), same_random_numbers(tensors):
            module(*tensors)  # what is wrong with the graph itself is raised here
        return module


@cache
def _library() -> torch.library.Library:
    """The gradient of a convolution by an operation of ours: torch's takes a list of booleans, and no trace can."""
    library = torch.library.Library("pyro_hypernet", "FRAGMENT")
    settings = "int[]? bias, int[] stride, int[] padding, int[] dilation, bool transposed, int[] more, int groups"
    mask, results = "bool by_x, bool by_w, bool by_bias", "(Tensor, Tensor, Tensor)"
    library.define(f"convolution_backward(Tensor grad, Tensor x, Tensor w, {settings}, {mask}) -> {results}")

    def convolution_backward(*args: Any) -> tuple[Tensor, ...]:
        results = torch.ops.aten.convolution_backward.default(*args[:10], list(args[10:]))
        return tuple(args[0].new_empty(0) if result is None else result for result in results)

    library.impl("convolution_backward", convolution_backward, "CompositeExplicitAutograd")
    return library


def _with_convolutions(module: fx.GraphModule) -> fx.GraphModule:
    """The graph, changed in place: with gradients of convolutions that TorchScript can run."""
    _library()
    for node in module.graph.find_nodes(op="call_function", target=torch.ops.aten.convolution_backward.default):
        node.target = torch.ops.pyro_hypernet.convolution_backward.default
        node.args = (*node.args[:10], *node.args[10])
    module.recompile()
    return module


@cache
def why_no_script() -> str:
    """Why graphs cannot be run by TorchScript here, found by trying; empty where they can."""
    graph = fx.Graph()
    graph.output(graph.call_function(torch.ops.aten.exp.default, (graph.placeholder("x"),)))
    try:
        value = _traced(fx.GraphModule({}, graph), [torch.zeros(2)])(torch.zeros(2))
    except Exception as error:  # whatever a release without it raises
        return f"TorchScript does not run here ({type(error).__name__}: {str(error).strip().splitlines()[0][:100]})"
    return "" if torch.equal(value, torch.ones(2)) else "TorchScript gives other results here"


def _traced(module: fx.GraphModule, tensors: Sequence[Tensor]) -> Callable[..., Any]:
    with warnings.catch_warnings(), torch.no_grad(), same_random_numbers(tensors):
        warnings.simplefilter("ignore")  # on the age of TorchScript, and on constants, which are meant
        return torch.jit.freeze(torch.jit.trace(module, tuple(tensors), check_trace=False).eval())


def as_inductor(module: fx.GraphModule, tensors: Sequence[Tensor]) -> Callable[..., Any]:
    """The graph compiled by torch's inductor, or taken from its cache on disk; random numbers as without it.

    Args:
        module: The graph.
        tensors: Inputs of the shapes that it will see.

    Raises:
        RuntimeError: If it cannot be compiled, by whatever error of inductor's.
    """
    from torch import _inductor as inductor  # seconds to import, and few runs need it

    with warnings.catch_warnings(), torch.no_grad(), same_random_numbers(tensors):
        warnings.simplefilter("ignore")
        try:
            with inductor.config.patch(fallback_random=True, compile_threads=1):
                compiled = inductor.standalone_compile(module, list(tensors))  # inductor.compile passes the cache by
            compiled(*tensors)
            _note(module, tensors).touch()
        except Exception as error:
            raise RuntimeError(f"inductor could not compile the graph: {str(error)[:200]}") from error
    return compiled


def is_compiled(module: fx.GraphModule, tensors: Sequence[Tensor]) -> bool:
    """Whether `as_inductor` has compiled the same graph before, in this process or another, and its cache is there."""
    try:
        return _note(module, tensors).exists()
    except OSError:
        return False


def _note(module: fx.GraphModule, tensors: Sequence[Tensor]) -> Path:
    """A file beside inductor's cache that says that a graph was compiled."""
    from torch._inductor.runtime.cache_dir_utils import cache_dir

    shapes = [(tuple(tensor.shape), str(tensor.dtype), str(tensor.device)) for tensor in tensors]
    name = sha256(f"{torch.__version__} {shapes} {module.code}".encode()).hexdigest()
    folder = Path(cache_dir()) / "pyro_hypernet"
    folder.mkdir(parents=True, exist_ok=True)
    return folder / name


def as_cuda_graph(run: Callable[..., Any], tensors: Sequence[Tensor], num_kept: int) -> Callable[..., Any]:
    """Records all launches of a run on a GPU and replays them as one; results are overwritten by the next call.

    Args:
        run: A function of tensors without a synchronisation.
        tensors: Inputs on the GPU, of the shapes that it will see.
        num_kept: How many of the first inputs always lie where these do; all others are copied in at every call.

    Raises:
        RuntimeError: If an operation cannot be recorded; random numbers go on as if nothing had been tried.
    """
    kept, copied = list(tensors[:num_kept]), [tensor.clone() for tensor in tensors[num_kept:]]
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.no_grad(), torch.cuda.stream(side), same_random_numbers(tensors):
        for _ in range(3):
            run(*kept, *copied)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    generator = torch.cuda.default_generators[tensors[0].device.index or 0]
    untouched = generator.clone_state()
    try:
        with torch.no_grad(), torch.cuda.graph(graph):
            results = run(*kept, *copied)
    except RuntimeError:
        generator.graphsafe_set_state(untouched)  # the other one believes that it is still being recorded
        raise

    def replay(*tensors: Tensor) -> Any:
        for place, tensor in zip(copied, tensors[num_kept:], strict=True):
            place.copy_(tensor)
        graph.replay()
        return results

    return replay


def tensors_in(tree: Any) -> list[Tensor]:
    """The tensors among the leaves of a pytree, in order."""
    return [leaf for leaf in pytree.tree_leaves(tree) if isinstance(leaf, Tensor)]


@contextmanager
def same_random_numbers(tensors: Sequence[Tensor]) -> Iterator[None]:
    """Leaves torch's generators as they were, so that what runs inside is not seen outside.

    Args:
        tensors: Whose devices' generators.
    """
    devices = list({tensor.device.index or 0 for tensor in tensors if tensor.device.type == "cuda"})
    with torch.random.fork_rng(devices=devices):
        yield


def random_state(tensors: Sequence[Tensor]) -> list[tuple[torch.Generator, Tensor]]:
    """Where torch's generators stand.

    Args:
        tensors: Whose devices' generators, beside the CPU's.
    """
    devices = {tensor.device.index or 0 for tensor in tensors if tensor.device.type == "cuda"}
    generators = [torch.default_generator, *(torch.cuda.default_generators[device] for device in devices)]
    return [(generator, generator.get_state()) for generator in generators]


def set_random_state(state: list[tuple[torch.Generator, Tensor]]) -> None:
    """Puts torch's generators back to where they stood.

    Args:
        state: What `random_state` returned.
    """
    for generator, value in state:
        generator.set_state(value)


def has_compiler() -> bool:
    """Whether there is a C++ compiler, which inductor needs for the CPU."""
    from torch._inductor import config  # the compiler that inductor would take

    chosen = config.cpp.cxx
    names = [name for name in (chosen if isinstance(chosen, (tuple, list)) else [chosen]) if name]
    return any(shutil.which(name) for name in [*names, "g++", "clang++"])
