"""Problems to fit guides to: `PROBLEMS["funnel"]()` makes one."""

from collections.abc import Callable

from models.abx import abx
from models.conjugate_regression import conjugate_regression
from models.eight_schools import eight_schools, eight_schools_noncentred
from models.networks import ard, gap, two_class
from models.problem import Problem
from models.real_data import diabetes, wine
from models.targets import banana, correlated_gaussian, funnel
from models.two_modes import two_modes

PROBLEMS: dict[str, Callable[[], Problem]] = {
    "conjugate-regression": conjugate_regression,
    "correlated-gaussian": correlated_gaussian,
    "funnel": funnel,
    "banana": banana,
    "two-modes": two_modes,
    "abx": abx,
    "eight-schools": eight_schools,
    "eight-schools-noncentred": eight_schools_noncentred,
    "gap": gap,
    "two-class": two_class,
    "wine": wine,
    "ard": ard,
    "diabetes": diabetes,
}
