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
    "tests/train/test_step.py::*same_losses[a site on a half line]": "2 s",
    "tests/train/test_step.py::*same_losses[module]": "2 s",
    "tests/train/test_step.py::test_a_convolution_is_captured*": "5 s of torch's compiler",
    # Processes that start, import torch and are killed.
    "tests/train/test_resume.py::test_kill_9[2]": "20 s of starting Python; kills at chosen steps run in one process",
    "tests/train/test_processes.py::test_a_killed_process_ends_the_others": "6 s",
    # Whole jobs with chains of NUTS in them.
    "tests/test_cli.py::test_an_exact_engine_has_the_guide_beside_it": "9 s",
    "tests/test_cli.py::test_fit_writes_its_files[t*]": "4 and 8 s; 'regression' runs",
    "tests/contrib/test_botorch.py::test_hypervolume_grows*": "20 s of refits; qLogNEI and qEHVI's own shapes run",
    "tests/test_readme.py::test_the_fifteen_lines_run_as_pasted": "50 s; the same with a tenth of the steps runs",
    "tests/test_keywords.py::*[refine, held against a guide-by name]": "5 s; refine by name runs",
    # One of two plates of a law: by Trace_ELBO or vectorised, in one precision or the other.
    "tests/test_drop_in.py::test_pyro_module_network[Vectorized]": "6 s; Trace runs",
    "tests/test_drop_in.py::test_all_supports[Vectorized]": "4 s; Trace runs",
    "tests/test_drop_in.py::test_handlers_around_the_model[*-Vectorized]": "2 s each; Trace runs",
    "tests/test_drop_in.py::test_every_elbo_trains_it[VectorizedELBO-*]": "4 s each; by Trace_ELBO they run, and fit",
    "tests/test_drop_in.py::test_neutra_with_nuts[coupling]": "5 s; linear runs",
    "tests/evaluation/test_symmetric.py::*precision_of_the_model[torch.float32-guide]": "3 s; float64 runs",
    "tests/evaluation/test_symmetric.py::*precision_of_the_model[torch.float64-mixture]": "3 s; float32 runs",
    "tests/informed/test_informed_guide.py::test_fit[dtype1]": "2 s; the other precision runs",
    "tests/train/test_anneal.py::test_the_posterior_stays_what_it_is[5.0]": "5 s; 0.2 runs",
    "tests/train/test_fit.py::test_the_same_seed_gives_the_same_run[iaf]": "2 s; coupling runs",
    "tests/train/test_blocks.py::*step_as_it_stands[weight_norm model-1]": "3 s; mean field runs",
    "tests/train/test_batches.py::test_a_short_last_batch_is_captured_once[True]": "3 s; False runs",
    "tests/train/test_batches.py::*goes_by_the_loader[in turn]": "3 s; a part runs",
    "tests/model/test_chunks.py::*predict_what_all_do[attention-7]": "3 s; 1 and 3 run",
    "tests/maps/test_bounds.py::*great_step_size_draws_numbers[relevance-*]": "2 s each; other models run",
    "tests/test_infer.py::test_no_step_that_fails_takes_away_what_was_reached[broken2]": "2 s each; others run",
    "tests/test_infer.py::test_steps_are_planned_by_the_clock": "7 s",
}


def matches(test: str, pattern: str) -> bool:
    """Whether a test's id is of a pattern."""
    return fnmatchcase(test, pattern.replace("[", "[[]"))
