"""Noise schedules: pytrees that answer log_snr(t), alpha(t) and sigma(t).

    s = diffax.schedules.get("cosine")      # or diffax.schedules.cosine(s=0.008)
    d = s.discretize(1000)                  # betas, alphas_cumprod, integer t

Families are in `families` and `log_snr_families`, transforms in `transforms`, the learned schedule
in `learned`, one of equal rate in `from_rate`. One's own:

    def power_log_snr(t, p):
        return 10.0 - 20.0 * t**p

    schedules.register("power", lambda p=2.0: schedules.from_log_snr(power_log_snr, p=p))
"""

from diffax.schedules.base import (
    LOG_SNR_MAX,
    LOG_SNR_MIN,
    DiscreteSchedule,
    Schedule,
    alpha_of,
    from_betas,
    from_log_snr_table,
    sigma_of,
)
from diffax.schedules.families import (
    alpha_bar_linear,
    cosine,
    linear,
    quadratic,
    rectified_flow,
    sigmoid,
    sigmoid_beta,
)
from diffax.schedules.from_rate import from_rate
from diffax.schedules.learned import learned
from diffax.schedules.log_snr_families import (
    cosine_logsnr,
    edm,
    from_log_snr,
    laplace,
    linear_logsnr,
    sigmoid_logsnr,
)
from diffax.schedules.registry import SCHEDULES, get, keywords, names, register
from diffax.schedules.transforms import (
    concrete_ends,
    effective,
    ends_of,
    from_json,
    frozen,
    input_scaled,
    is_learned,
    require_finite_ends,
    shifted,
    with_endpoints,
    zero_terminal_snr,
)

__all__ = [
    "LOG_SNR_MAX",
    "LOG_SNR_MIN",
    "SCHEDULES",
    "DiscreteSchedule",
    "Schedule",
    "alpha_bar_linear",
    "alpha_of",
    "concrete_ends",
    "cosine",
    "cosine_logsnr",
    "edm",
    "effective",
    "ends_of",
    "from_betas",
    "from_json",
    "from_log_snr",
    "from_log_snr_table",
    "from_rate",
    "frozen",
    "get",
    "input_scaled",
    "is_learned",
    "keywords",
    "laplace",
    "learned",
    "linear",
    "linear_logsnr",
    "names",
    "quadratic",
    "rectified_flow",
    "register",
    "require_finite_ends",
    "shifted",
    "sigma_of",
    "sigmoid",
    "sigmoid_beta",
    "sigmoid_logsnr",
    "with_endpoints",
    "zero_terminal_snr",
]
