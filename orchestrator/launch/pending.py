"""Completes an attempt that was decided without its dataset, in a pod, which can read what the controller could not.

Invariant: the recipe is the one that `launch.resolve` would have made with the dataset at hand, and what does not fit
is refused in the same words.
"""

from __future__ import annotations

from collections.abc import Callable

from orchestrator.launch.architecture import Initial, require_same_tokenizer
from orchestrator.launch.batches import choose_mixture, read_tasks
from orchestrator.launch.choices import Choices, absolute
from orchestrator.launch.dataset import check_lengths, choose_eval_tokens, read_dataset
from orchestrator.launch.resolve import Resolved
from orchestrator.spec import TrainingJob


def complete(job: TrainingJob, resolved: Resolved, where: Callable[[str], str] = absolute) -> Resolved:
    """With all that the dataset in `resolved.recipe.data` decides; one that lacks nothing comes back as it is.

    The paths of `resolved` are those of this process; `where` says it of those that only the job names. InvalidJob for
    what cannot run.
    """
    if not resolved.data_pending:
        return resolved
    recipe, choose = resolved.recipe, Choices()
    manifest = read_dataset(job, recipe.data, recipe.model, where)
    if recipe.init_from is not None:
        initial = Initial(recipe.init_from, recipe.init_fingerprint or "")
        require_same_tokenizer(initial, manifest, job.spec.data.source, recipe.data)
    check_lengths(recipe.sequence_length, recipe.model, manifest)
    read_tasks(recipe.eval_tasks)
    decided = {
        "mixture": choose_mixture(job, manifest),
        "end_of_text": manifest.tokenizer.end_of_text,
        "eval_tokens": choose_eval_tokens(job, manifest, choose),
    }
    complete = {"recipe": recipe.model_copy(update=decided), "chosen": (*resolved.chosen, *choose.made)}
    return resolved.model_copy(update=complete | {"data_pending": False})
