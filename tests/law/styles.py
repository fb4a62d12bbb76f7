"""All styles of models that the law goes over."""

from tests.law.hierarchies import HIERARCHIES
from tests.law.interfaces import INTERFACES
from tests.law.networks import NETWORKS
from tests.law.regressions import REGRESSIONS

STYLES = {**REGRESSIONS, **HIERARCHIES, **INTERFACES, **NETWORKS}
