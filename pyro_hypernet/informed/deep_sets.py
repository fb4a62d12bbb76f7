"""Maps of sets of units: what happens to one hidden unit depends on itself and on the set of all, in no order."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from pyro_hypernet.maps.bijection import Bijection
from pyro_hypernet.maps.coupling import soft_bound
from pyro_hypernet.maps.linear import ShiftAndScale


@dataclass(frozen=True)
class Slots:
    """The coordinates of interchangeable units, of which a coupling passes some and moves the others.

    Attributes:
        passed: Coordinates that steer, shape `(H, p)`, p may be zero.
        moved: Coordinates that move, shape `(H, m)`, m may be zero.
        flips: Whether all coordinates of a unit may change their sign together.
    """

    passed: Tensor
    moved: Tensor
    flips: bool


class SetCoupling(Bijection):
    """A coupling that commutes with permutations of units, and with flips of their signs.

    Of every unit some coordinates pass and the others move, `y = x exp(s) + t`. What moves a unit is a network of its
    own passed coordinates and of the mean over all units of another network, the same for every unit; where signs may
    flip, s is made even and t odd by averaging over both signs. Coordinates of no unit pass or move likewise, steered
    by the mean alone. From noise that is the same for all units, draws are then as likely in every order.

    Source: Zaheer et al. 2017, Deep Sets, arXiv 1703.06114, for the networks; flows of sets: Köhler et al. 2020,
    arXiv 2006.02425. Signs are ours.

    Args:
        groups: The layers of units.
        passed: Coordinates of no unit that steer, shape `(p,)`.
        moved: Coordinates of no unit that move, shape `(m,)`.
        hidden: Width of the networks.
    """

    def __init__(self, groups: Sequence[Slots], passed: Tensor, moved: Tensor, *, hidden: int = 32) -> None:
        super().__init__()
        self.flips = [group.flips for group in groups]
        for number, group in enumerate(groups):
            self._index(f"passed_{number}", group.passed)
            self._index(f"moved_{number}", group.moved)
        self._index("passed", passed)
        self._index("moved", moved)
        self.own = nn.ModuleList(_first(group.passed.shape[1], hidden) for group in groups)
        self.deep = nn.ModuleList(nn.Linear(hidden, hidden) for _ in groups)
        self.pooled = nn.ModuleList(nn.Linear(hidden, hidden, bias=False) for _ in groups)
        self.fixed = _first(len(passed), hidden)
        self.shared = nn.ModuleList(nn.Linear(hidden, hidden) for _ in groups)
        self.out = nn.ModuleList(_zeros(hidden, 2 * group.moved.shape[1]) for group in groups)
        self.out_fixed = _zeros(hidden, 2 * len(moved))

    @property
    def suits_path_gradient(self) -> bool:
        return False  # measured: noisier than the total gradient here, and twice the price

    def forward_and_log_det(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self._move(x, self._params(x), inverse=False)

    def inverse_and_log_det(self, y: Tensor) -> tuple[Tensor, Tensor]:
        return self._move(y, self._params(y), inverse=True)

    def _index(self, name: str, index: Tensor) -> None:
        # Not saved: the group of symmetries, which the guide describes in its file, says them.
        self.register_buffer(f"{name}_at", index.to(torch.empty(0).device), persistent=False)

    def _params(self, x: Tensor) -> list[tuple[Tensor, Tensor, Tensor]]:
        """Log scales and shifts of what moves, with its flat coordinates, group by group."""
        features, context = [], self.fixed(x[..., self.passed_at])
        for number, flips in enumerate(self.flips):
            own = x[..., getattr(self, f"passed_{number}_at")]
            feature = functional.silu(self.own[number](torch.cat([own, -own], dim=-2) if flips else own))
            # Mean over all units and both signs.
            pooled = functional.silu(self.deep[number](feature)).mean(-2)
            features.append(feature)
            context = context + self.pooled[number](pooled)
        params = []
        for number, feature in enumerate(features):
            at = getattr(self, f"moved_{number}_at")
            if at.shape[1]:
                steer = self.shared[number](feature) + context[..., None, :]
                s, t = self.out[number](functional.silu(steer)).chunk(2, dim=-1)
                if self.flips[number]:
                    # Even and odd parts; of one sign only its own.
                    (s, s_flipped), (t, t_flipped) = s.chunk(2, dim=-2), t.chunk(2, dim=-2)
                    s, t = (s + s_flipped) / 2, (t - t_flipped) / 2
                params.append((soft_bound(s).flatten(-2), t.flatten(-2), at.flatten()))
        if len(self.moved_at):
            s, t = self.out_fixed(functional.silu(context)).chunk(2, dim=-1)
            params.append((soft_bound(s), t, self.moved_at))
        return params

    @staticmethod
    def _move(x: Tensor, params: Sequence[tuple[Tensor, Tensor, Tensor]], *, inverse: bool) -> tuple[Tensor, Tensor]:
        if not params:
            return x, x.new_zeros(x.shape[:-1])
        s, t, at = (torch.cat(parts, dim=-1) for parts in zip(*params, strict=True))
        old = x[..., at]
        new = (old - t) * (-s).exp() if inverse else old * s.exp() + t
        log_det = s.sum(-1)
        return x.index_copy(-1, at, new), -log_det if inverse else log_det


class SharedAffine(ShiftAndScale):
    """Shift and scale, the same for all coordinates of one class.

    Args:
        classes: The class of every coordinate, shape `(D,)`.
        loc: The shift of every class, shape `(C,)`.
        scale: Its scale, positive, shape `(C,)`.
        centred: Classes that are not shifted, for their signs may flip; boolean, shape `(C,)`.
        unscaled: Classes whose scale is not learnt; boolean, shape `(C,)`.
    """

    def __init__(self, classes: Tensor, loc: Tensor, scale: Tensor, centred: Tensor, unscaled: Tensor) -> None:
        super().__init__()
        device = torch.empty(0).device
        self.register_buffer("classes", classes.to(device), persistent=False)
        self.register_buffer("free", (~centred).to(loc), persistent=False)
        self.register_buffer("stretches", (~unscaled).to(loc), persistent=False)
        self.register_buffer("start", scale.log())
        self.loc = nn.Parameter(loc * self.free)
        self.log_stretch = nn.Parameter(torch.zeros_like(scale))

    def loc_and_log_scale(self) -> tuple[Tensor, Tensor]:
        log_scale = self.start + self.log_stretch * self.stretches
        return (self.loc * self.free)[self.classes], log_scale[self.classes]


class _Constant(nn.Module):
    """What a linear layer of no inputs gives."""

    def __init__(self, num_outputs: int) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(num_outputs))

    def forward(self, x: Tensor) -> Tensor:
        return self.bias.expand(*x.shape[:-1], -1)


def _first(num_inputs: int, num_outputs: int) -> nn.Module:
    return nn.Linear(num_inputs, num_outputs) if num_inputs else _Constant(num_outputs)


def _zeros(num_inputs: int, num_outputs: int) -> nn.Module:
    """A last layer that gives zeros at the start, or nothing where nothing is asked for."""
    if num_outputs == 0:
        return nn.Identity()
    layer = nn.Linear(num_inputs, num_outputs)
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer
