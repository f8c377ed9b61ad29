"""Distillation losses over packed, padding-free tensors; the attention losses never form an attention map."""

from .attention_kl.op import attention_kl as attention_kl
from .attention_prob_mse.op import attention_prob_mse as attention_prob_mse
from .attention_score_mse.op import attention_score_mse as attention_score_mse
from .hidden_mse.op import hidden_mse as hidden_mse
from .soft_cross_entropy.op import soft_cross_entropy as soft_cross_entropy
