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
    "batch": ("Batch", "Decoding"),
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
    "models.conversion": ("from_tl", "to_tl"),
    "lm.generation": ("generate",),
    "tracing.decoding": ("Generation", "greedy_decode"),
    "tracing.traces": ("Trace", "trace"),
    "metrics.named": (
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
    "metrics.measuring": ("measure", "standard"),
    "hooks": ("AttentionPattern",),
    "models.parameter_groups": ("graft",),
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
    "runs.run": ("Run",),
    "runs.recording": ("record", "resume"),
    "lm.audit": ("audit",),
    "lm.prompts": ("read_prompts",),
    "lm.pretraining": ("pretrain",),
    "lm.bundled": ("shipped",),
    "lm.suite": ("Checkpoints",),
    "lm.pretrained": ("hub", "local", "olmo2", "open_suite", "pythia"),
    "lm.evaluation": ("Survey", "survey"),
    "analysis": (
        "PairedDifference",
        "Plateau",
        "activation_patching",
        "evolve",
        "find_plateau",
        "onset_order",
        "onsets",
        "paired_difference",
        "patch_across_steps",
        "path_patching",
        "sharpness",
    ),
    "probing": (
        "Probes",
        "Verdict",
        "ablate_feature",
        "answer_tokens",
        "probe",
        "probe_over",
        "probe_tokens",
        "quiet_or_loud",
    ),
    "report": ("write_report",),
}
_OF = {name: module for module, names in _HOME.items() for name in names}
_MODULES = ("analysis", "interventions", "lm", "metrics", "models", "papers", "plots", "probing", "tasks", "training")

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
