"""The description of `attention_kl` that tests and benchmarks read."""

from ..spec import attention_spec
from .op import attention_kl
from .reference import attention_kl as reference

SPEC = attention_spec("attention_kl", attention_kl, reference, ("a_s", "b_s", "a_t", "b_t"))
