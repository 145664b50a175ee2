"""PlateauLens: see why a transformer's loss sits on a plateau before it drops. A plugin on TransformerLens.

    import plateaulens as pl

    task = pl.MovingWindowSum(n=16, k=2, p=17)
    model = pl.Transformer(pl.ModelConfig.for_task(task))
    run = pl.record(pl.train(model, task, pl.TrainConfig(steps=400)), "runs/mws", task.sample(256, seed=1))
    pl.plots.dynamics(run).show()

Names load when they are first used, so that importing the package is quick and quiet.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_HOME = {
    "_shapes": ("Batch", "Decoding"),
    "tasks": (
        "TASKS",
        "ActivitySelection",
        "Addition",
        "BinaryAddition",
        "BreadthFirstSearch",
        "Copy",
        "DepthFirstSearch",
        "Feature",
        "Histogram",
        "MajorityOfMajorities",
        "MatrixCompletion",
        "MatrixMixture",
        "MatrixSequence",
        "MaximumSubarray",
        "MinimumSpanningTree",
        "MovingWindowSum",
        "Multiplication",
        "Permutation",
        "PrefixSum",
        "Repeat",
        "Reverse",
        "ShortestPath",
        "Task",
        "TopologicalSort",
        "WindowMix",
    ),
    "models.config": ("ModelConfig",),
    "models.transformer": ("Transformer",),
    "models.convert": ("from_tl", "to_tl"),
    "generating": ("Generation", "generate", "greedy_decode"),
    "tracing": ("Trace", "trace"),
    "measurements": (
        "LANGUAGE",
        "MEASUREMENTS",
        "STANDARD",
        "accuracy",
        "alpha_1",
        "alpha_1_halves",
        "answer_loss",
        "at_site",
        "attention_progress",
        "attention_progress_at",
        "attention_progress_global",
        "attention_sink",
        "collapse",
        "count_check",
        "entropy",
        "exact_match",
        "loss",
        "masked_loss",
        "masked_size",
        "observed_loss",
        "part_accuracy",
        "of_ngrams",
        "part_collapse",
        "position_accuracy",
        "prediction_entropy",
        "reads",
        "repetition",
        "sequence_log_prob",
        "softmax_progress",
        "tf_accuracy",
        "tf_exact_match",
    ),
    "measuring": ("measure", "standard"),
    "hooked": ("AttentionPattern",),
    "models.parts": ("graft",),
    "interventions": (
        "Ablate",
        "AblateHeads",
        "FixAttention",
        "Freeze",
        "OptimalAttention",
        "Patch",
        "Project",
        "ScaleAttention",
        "Steer",
        "intervene",
    ),
    "training": ("Step", "TrainConfig", "Training", "train"),
    "runs": ("Run",),
    "recording": ("record", "resume"),
    "checkpoints.audit": ("audit",),
    "checkpoints.prompts": ("read_prompts",),
    "checkpoints.pretraining": ("pretrain",),
    "checkpoints.shipped": ("shipped",),
    "checkpoints.suite": ("Checkpoints",),
    "checkpoints.publishers": ("hub", "local", "olmo2", "open_suite", "pythia"),
    "checkpoints.survey": ("Survey", "survey"),
    "analysis": (
        "PairedDifference",
        "Plateau",
        "Probes",
        "Verdict",
        "ablate_feature",
        "activation_patching",
        "answer_tokens",
        "evolve",
        "find_plateau",
        "onset_order",
        "onsets",
        "paired_difference",
        "patch_across_steps",
        "path_patching",
        "probe",
        "probe_over",
        "probe_tokens",
        "quiet_or_loud",
        "sharpness",
    ),
    "report": ("write_report",),
}
_OF = {name: module for module, names in _HOME.items() for name in names}
_MODULES = ("analysis", "checkpoints", "interventions", "metrics", "models", "plots", "tasks", "training")

__all__ = [*_OF, *_MODULES]

if TYPE_CHECKING:  # for editors and type checkers
    from plateaulens import analysis as analysis
    from plateaulens import plots as plots


def __getattr__(name: str) -> Any:
    if name in _OF:
        value = getattr(import_module(f"plateaulens.{_OF[name]}"), name)
    elif name in _MODULES:
        value = import_module(f"plateaulens.{name}")
    else:
        from difflib import get_close_matches

        near = get_close_matches(name, __all__, n=1)
        raise AttributeError(
            f"module 'plateaulens' has no attribute {name!r}" + (f"; did you mean {near[0]!r}?" if near else "")
        )
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
