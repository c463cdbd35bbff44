"""A higher guidance scale follows the condition more closely and loses diversity.

Class-conditional networks, with a tenth of the classes dropped in training, cosine schedule with
T = 1000 as published; classifier-free guidance (Ho & Salimans 2022), DDIM in 50 steps, the classes
in turn. Measured at each scale: the share of samples that the classifier takes for their class, and
precision and recall over its features (Kynkäänniemi 2019, 5 neighbours). Supported: from scale 1 to
scale 4 the share and precision rise and recall falls. Contradicted: one goes the other way.
"""

import numpy as np
from laboratory import published
from verdicts import column, difference_of, judge

CLAIM = (
    "A higher guidance scale follows the condition more closely and loses diversity (precision up,"
    " recall down)."
)
NETWORKS = {"cosine": published("cosine", model__class_conditional=True)}
GUIDANCE = (1.0, 2.0, 4.0, 8.0)
WORDS = {"accuracy": "share of its class", "precision": "precision", "recall": "recall"}
COLUMNS = {
    f"{key}-{scale:g}": f"{words}, scale {scale:g}"
    for key, words in WORDS.items()
    for scale in GUIDANCE
}


def measure(lab, trained, seed):
    num = lab.scale.num_samples
    label = np.arange(num) % trained.dataset.num_classes
    found = {}
    for scale in GUIDANCE:
        options = dict(sampler="ddim", num_steps=50, guidance_scale=scale)
        samples = lab.draw(trained, num, seed, label, **options)
        scores = lab.prdc(trained, samples)
        found |= {
            f"accuracy-{scale:g}": lab.accuracy(trained, samples, label),
            f"precision-{scale:g}": scores.precision,
            f"recall-{scale:g}": scores.recall,
        }
    return found


def verdict(raw):
    def change(key, **region):
        strong, weak = (column(raw, "cosine", f"{key}-{scale}") for scale in (4, 1))
        words = WORDS[key]
        up, down = f"{words} rises from scale 1 to 4", f"{words} falls from scale 1 to 4"
        says = dict(inside=up, outside=down) if "low" in region else dict(inside=down, outside=up)
        return difference_of(f"{words}, scale 4 less scale 1", strong, weak, **region, **says)

    return judge(
        change("accuracy", low=0.0), change("precision", low=0.0), change("recall", high=0.0)
    )
