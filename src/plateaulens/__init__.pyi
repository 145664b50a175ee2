from . import (
    analysis as analysis,
    interventions as interventions,
    lm as lm,
    metrics as metrics,
    models as models,
    papers as papers,
    plots as plots,
    probing as probing,
    tasks as tasks,
)
from .analysis import (
    Plateau as Plateau,
    PlateauRule as PlateauRule,
    activation_patching as activation_patching,
    find_plateau as find_plateau,
    onset_order as onset_order,
    paired_difference as paired_difference,
    patch_across_steps as patch_across_steps,
)
from .batch import Batch as Batch
from .hooks import AttentionPattern as AttentionPattern
from .interventions import (
    Ablate as Ablate,
    AblateHeads as AblateHeads,
    FixAttention as FixAttention,
    Freeze as Freeze,
    OptimalAttention as OptimalAttention,
    Patch as Patch,
    ScaleAttention as ScaleAttention,
    Steer as Steer,
    intervene as intervene,
)
from .metrics import measure as measure
from .models import (
    ModelConfig as ModelConfig,
    Transformer as Transformer,
    from_tl as from_tl,
    graft as graft,
    to_tl as to_tl,
)
from .probing import (
    ablate_feature as ablate_feature,
    probe as probe,
    probe_checkpoints as probe_checkpoints,
)
from .report import write_report as write_report
from .runs import Run as Run, record as record, resume as resume
from .tracing import Trace as Trace, greedy_decode as greedy_decode, trace as trace
from .training import (
    Step as Step,
    TrainConfig as TrainConfig,
    Training as Training,
    train as train,
)

__version__: str
