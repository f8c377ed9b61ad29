"""The description of `attention_prob_mse` that tests and benchmarks read."""

from ..spec import attention_spec
from .op import attention_prob_mse
from .reference import attention_prob_mse as reference

SPEC = attention_spec("attention_prob_mse", attention_prob_mse, reference, ("q_s", "k_s", "q_t", "k_t"))
