"""Language models: suites of checkpoints, the Hub, prompts, generation, evaluation over steps, small pre-training."""

from plateaulens.batch import Decoding
from plateaulens.lm.bundled_data import bundled
from plateaulens.lm.evaluation import LANGUAGE_METRICS as DEFAULT_METRICS, EvaluatedCheckpoints, evaluate
from plateaulens.lm.generation import generate
from plateaulens.lm.olmo_suites import olmo2
from plateaulens.lm.opening import from_folder, from_hub
from plateaulens.lm.plain_model import PlainModel
from plateaulens.lm.pretraining import pretrain
from plateaulens.lm.prompts import read_prompts
from plateaulens.lm.pythia_suites import pythia
from plateaulens.lm.suite import Checkpoints
from plateaulens.lm.suites_by_name import load
from plateaulens.lm.weight_audit import Audit, audit
from plateaulens.tracing.decoding import Generation

__all__ = [
    "DEFAULT_METRICS",
    "Audit",
    "Checkpoints",
    "Decoding",
    "EvaluatedCheckpoints",
    "Generation",
    "PlainModel",
    "audit",
    "bundled",
    "evaluate",
    "from_folder",
    "from_hub",
    "generate",
    "load",
    "olmo2",
    "pretrain",
    "pythia",
    "read_prompts",
]
