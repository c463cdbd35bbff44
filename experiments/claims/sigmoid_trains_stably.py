"""The sigmoid schedule trains more stably: smaller gradient norms, less variance of the loss.

Linear, cosine and sigmoid (Jabri 2022: start -3, end 3, tau 1) in continuous time between equal
ends, log-SNR 10 and -10, simple loss on the noise. Measured over the second half of the training:
the mean norm of the gradient, before clipping, and the mean over steps of the variance of the loss
between the examples of a batch. Supported: both are lower with sigmoid than with linear and than
with cosine. Contradicted: one is higher. The expected loss differs between schedules, so that these
numbers compare trainings as they are run, not the noise of one and the same gradient.
"""

from laboratory import between_equal_ends, logged
from verdicts import column, judge, ratio_of

CLAIM = "The sigmoid schedule trains more stably (gradient norms, loss variance)."
NETWORKS = {name: between_equal_ends(name) for name in ("linear", "cosine", "sigmoid")}
COLUMNS = {"grad_norm": "gradient norm", "loss_variance": "variance of the loss", "loss": "loss"}


def measure(lab, trained, seed):
    return {key: logged(trained, key, after=0.5) for key in COLUMNS}


def verdict(raw):
    return judge(
        *(
            ratio_of(
                f"{COLUMNS[key]}, sigmoid over {other}",
                column(raw, "sigmoid", key),
                column(raw, other, key),
                high=1.0,
                inside=f"the {COLUMNS[key]} is lower than with {other}",
                outside=f"the {COLUMNS[key]} is higher than with {other}",
            )
            for key in ("grad_norm", "loss_variance")
            for other in ("linear", "cosine")
        )
    )
