"""What runs by `make test-slow` alone, and why: the one table of it beside the marks that tests carry themselves.

A pattern is that of a test's id, as `fnmatch` has it, `[` and `]` standing for themselves. Seconds are of a quiet core.
"""

from fnmatch import fnmatchcase

SLOW = {
    # Arguments by name: one way of giving them runs by default for every verb, the other for the cheap ones.
    "tests/test_keywords.py::*[infer*-some by name]": "a whole pipeline, 10 s; 'by name' runs",
    "tests/test_keywords.py::*[move*-some by name]": "chains of many draws, 8 s; 'by name' runs",
    "tests/test_keywords.py::*[choose_temperature-some by name]": "four fits, 6 s; 'by name' runs",
    "tests/test_keywords.py::*[refine, held against a guide-some by name]": "a fit and chains, 6 s; 'by name' runs",
    "tests/test_keywords.py::*[fit of restarts-by name]": "four fits, 4 s; 'some by name' runs",
    "tests/test_keywords.py::*[nuts through a guide-by name]": "a fit and chains, 4 s; 'some by name' runs",
    "tests/test_keywords.py::*[infer by refine-by name]": "12 s; `refine` by name runs, and `infer` by name",
    # Size: every structure runs at 10³ weights by default, two of them at 10⁵.
    "tests/train/test_size.py::test_no_structure_diverges[layerwise-1e5]": "20 s: a network over every layer",
    "tests/train/test_size.py::test_no_structure_diverges[full-1e5]": "11 s",
    "tests/train/test_size.py::test_no_structure_diverges[patterns-1e5]": "3 s",
    "tests/train/test_size.py::test_no_structure_diverges[multiplicative-1e5]": "3 s",
    "tests/train/test_size.py::test_no_structure_diverges[last_layer-1e5]": "3 s",
    "tests/train/test_size.py::test_no_structure_diverges_at_eight*[layerwise-1e3]": "15 s, as at the default",
    # An exact guide after a second fit: of six models, two run by default.
    "tests/train/test_trust.py::test_an_exact_guide_stays_exact[2-walk]": "6 s: six sites, captured twice",
    "tests/train/test_trust.py::test_an_exact_guide_stays_exact[2-tree]": "5 s",
    "tests/train/test_trust.py::test_an_exact_guide_stays_exact[2-sum]": "5 s",
    "tests/train/test_trust.py::test_an_exact_guide_stays_exact[2-line]": "4 s",
    # A captured step against one as it stands: styles that others cover.
    "tests/train/test_step.py::*same_losses[informed]": "6 s; the same with classes runs",
    "tests/train/test_step.py::*same_losses[path]": "4 s; path gradients are those of 'full' too",
    "tests/train/test_step.py::*same_losses[linear weights alone]": "3 s",
    "tests/train/test_step.py::test_a_convolution_is_captured*": "5 s of torch's compiler",
    # Processes that start, import torch and are killed.
    "tests/train/test_resume.py::test_kill_9[2]": "20 s of starting Python; kills at chosen steps run in one process",
    "tests/train/test_processes.py::test_a_killed_process_ends_the_others": "6 s",
    # Whole jobs with chains of NUTS in them.
    "tests/test_cli.py::test_an_exact_engine_has_the_guide_beside_it": "9 s",
    "tests/test_cli.py::test_fit_writes_its_files[three]": "4 s; 'two' and 'regression' run",
    "tests/contrib/test_botorch.py::*[qLogEHVI-*]": "12 s; qLogNEHVI runs",
    "tests/test_infer.py::test_steps_are_planned_by_the_clock": "7 s",
}


def matches(test: str, pattern: str) -> bool:
    """Whether a test's id is of a pattern."""
    return fnmatchcase(test, pattern.replace("[", "[[]"))
