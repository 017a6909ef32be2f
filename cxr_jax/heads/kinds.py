"""The heads by name, as `config.head.name` and checkpoints call them."""

from cxr_jax.heads.attentive import AttentiveProbe
from cxr_jax.heads.glori import GLoRI
from cxr_jax.heads.linear import LinearHead
from cxr_jax.heads.ml_decoder import MLDecoder
from cxr_jax.heads.pooled import PooledHead
from cxr_jax.heads.severity import OrdinalHead

HEADS = {
    "linear": LinearHead,
    "pooled": PooledHead,
    "attentive": AttentiveProbe,
    "glori": GLoRI,
    "ml_decoder": MLDecoder,
    "ordinal": OrdinalHead,
}
