"""`diffax.evaluation` under its earlier name, for plugins that are kept in the workdirs of runs."""

from diffax.evaluation import *  # noqa: F403
from diffax.evaluation import register_extractor as register  # noqa: F401
