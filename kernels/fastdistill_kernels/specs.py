"""All ops of the package, described."""

from .attention_kl.spec import SPEC as ATTENTION_KL
from .attention_prob_mse.spec import SPEC as ATTENTION_PROB_MSE
from .attention_score_mse.spec import SPEC as ATTENTION_SCORE_MSE
from .hidden_mse.spec import SPEC as HIDDEN_MSE
from .normalized_mse.spec import SPEC as NORMALIZED_MSE
from .soft_cross_entropy.spec import SPEC as SOFT_CROSS_ENTROPY

ATTENTION_SPECS = (ATTENTION_SCORE_MSE, ATTENTION_PROB_MSE, ATTENTION_KL)
SPECS = (*ATTENTION_SPECS, HIDDEN_MSE, SOFT_CROSS_ENTROPY, NORMALIZED_MSE)
