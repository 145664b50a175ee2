from . import analysis as analysis
from . import interventions as interventions
from . import lm as lm
from . import metrics as metrics
from . import models as models
from . import papers as papers
from . import plots as plots
from . import probing as probing
from . import tasks as tasks
from .analysis import (
    Plateau as Plateau,
)
from .analysis import (
    PlateauRule as PlateauRule,
)
from .analysis import (
    activation_patching as activation_patching,
)
from .analysis import (
    find_plateau as find_plateau,
)
from .analysis import (
    onset_order as onset_order,
)
from .analysis import (
    paired_difference as paired_difference,
)
from .analysis import (
    patch_across_steps as patch_across_steps,
)
from .batch import Batch as Batch
from .hooks import AttentionPattern as AttentionPattern
from .interventions import (
    Ablate as Ablate,
)
from .interventions import (
    AblateHeads as AblateHeads,
)
from .interventions import (
    FixAttention as FixAttention,
)
from .interventions import (
    Freeze as Freeze,
)
from .interventions import (
    OptimalAttention as OptimalAttention,
)
from .interventions import (
    Patch as Patch,
)
from .interventions import (
    ScaleAttention as ScaleAttention,
)
from .interventions import (
    Steer as Steer,
)
from .interventions import (
    intervene as intervene,
)
from .metrics import measure as measure
from .models import (
    ModelConfig as ModelConfig,
)
from .models import (
    Transformer as Transformer,
)
from .models import (
    from_tl as from_tl,
)
from .models import (
    graft as graft,
)
from .models import (
    to_tl as to_tl,
)
from .probing import (
    ablate_feature as ablate_feature,
)
from .probing import (
    probe as probe,
)
from .probing import (
    probe_checkpoints as probe_checkpoints,
)
from .report import write_report as write_report
from .runs import Run as Run
from .runs import record as record
from .runs import resume as resume
from .tracing import Trace as Trace
from .tracing import greedy_decode as greedy_decode
from .tracing import trace as trace
from .training import (
    Step as Step,
)
from .training import (
    TrainConfig as TrainConfig,
)
from .training import (
    Training as Training,
)
from .training import (
    train as train,
)

__version__: str
