"""PlateauLens: see why a transformer's loss stays on a plateau before it drops. A plugin on TransformerLens.

    import plateaulens as pl

    task = pl.tasks.MovingWindowSum(n=16, k=2, p=17)
    model = pl.Transformer(pl.ModelConfig.for_task(task))
    run = pl.record(pl.train(model, task, pl.TrainConfig(steps=400)), "runs/mws", task.sample(256, seed=1))
    pl.plots.dynamics(run).show()

The public names are those of `__init__.pyi`. Each is imported when it is first used, so that `import plateaulens` is
quick and prints nothing.
"""

from difflib import get_close_matches
from typing import Any

import lazy_loader

__version__ = "0.2.0"

_get, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)


def __getattr__(name: str) -> Any:
    if name in __all__:
        return _get(name)
    near = get_close_matches(name, __all__, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    raise AttributeError(f"module 'plateaulens' has no attribute {name!r}{hint}")
