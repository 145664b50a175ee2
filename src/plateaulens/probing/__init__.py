"""Linear and one-hidden-layer probes over layers, positions and steps; ablation of the features they find."""

from plateaulens.probing.ablation import Ablation, OffsetProbes, ablate_feature
from plateaulens.probing.fitting import fit_logistic
from plateaulens.probing.probes import answer_tokens, probe, probe_checkpoints, probe_tokens
from plateaulens.probing.results import Probes
from plateaulens.probing.verdict import Verdict, quiet_or_loud, thirds

__all__ = [
    "Ablation",
    "OffsetProbes",
    "Probes",
    "Verdict",
    "ablate_feature",
    "answer_tokens",
    "fit_logistic",
    "probe",
    "probe_checkpoints",
    "probe_tokens",
    "quiet_or_loud",
    "thirds",
]
