"""The description of `attention_score_mse` that tests and benchmarks read."""

from ..spec import attention_spec
from .op import attention_score_mse
from .reference import attention_score_mse as reference

SPEC = attention_spec("attention_score_mse", attention_score_mse, reference, ("q_s", "k_s", "q_t", "k_t"))
