"""All ops of the package, described."""

from .attention_kl.spec import SPEC as ATTENTION_KL
from .attention_prob_mse.spec import SPEC as ATTENTION_PROB_MSE
from .attention_score_mse.spec import SPEC as ATTENTION_SCORE_MSE
from .hidden_mse.spec import COSINE as HIDDEN_COSINE
from .hidden_mse.spec import NORMALIZED as HIDDEN_NORMALIZED
from .hidden_mse.spec import SPEC as HIDDEN_MSE
from .soft_cross_entropy.spec import SPEC as SOFT_CROSS_ENTROPY

ATTENTION_SPECS = (ATTENTION_SCORE_MSE, ATTENTION_PROB_MSE, ATTENTION_KL)
SPECS = (*ATTENTION_SPECS, HIDDEN_MSE, HIDDEN_NORMALIZED, HIDDEN_COSINE, SOFT_CROSS_ENTROPY)
