"""What a number is: its name, its unit and how it is read."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Metric:
    """One number, what it is called and how it is read: of a score, or of every run of an ablation.

    Attributes:
      key: its name among the numbers of a run or of all scores, such as fd_lite0.
      label: its name in a report: "Bits per dimension", "FD (EfficientNet-Lite0)".
      unit: e.g. "bits/dim", "classifier features"; "" for none.
      lower_is_better: True, False, or None if neither.
      scale: "linear" (mean, paired differences) or "log" (positive values that vary by factors:
        geometric mean, paired ratios).
      digits: decimals shown on a linear scale, significant digits on a log scale.
      main: whether the verdict speaks of it and it has figures of its own; others are tabled only.
      measure, network: of a score over a pretrained network's features: what is measured whatever
        the network (the same of FID and of FD (MobileNetV2)), and the network; "" for others.
      basis: what it is measured on, in words that stand beside its name: "2,000 samples".
      meaning: what it says, in a sentence or two, for the reader of the number.
      short: of a measure: the label before a network's name in brackets; "" for `label`.
      entry: of a score: the key under which `scoring.pending` gives the number.
    """

    key: str
    label: str
    unit: str = ""
    lower_is_better: bool | None = True
    scale: str = "linear"
    digits: int = 3
    main: bool = True
    measure: str = ""
    network: str = ""
    basis: str = ""
    meaning: str = ""
    short: str = ""
    entry: str = ""
