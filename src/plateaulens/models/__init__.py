"""`Transformer`, its config with presets, conversion to and from TransformerLens, and parameter groups."""

from plateaulens.models.config import ModelConfig, bert, transformer_pp
from plateaulens.models.conversion import config_from_tl, config_to_tl, from_tl, to_tl
from plateaulens.models.parameter_groups import PARTS, graft
from plateaulens.models.transformer import Transformer

__all__ = [
    "PARTS",
    "ModelConfig",
    "Transformer",
    "bert",
    "config_from_tl",
    "config_to_tl",
    "from_tl",
    "graft",
    "to_tl",
    "transformer_pp",
]
