"""Gentle cosine noise gives subtle variations that keep the anatomy.

Measured by experiments/control_cells.py on 40 held-out images of white blood cells, 32x32. A U-Net
without a control is trained on the others, under cosine. The held-out images are noised by a fifth
of the levels and sampled anew (SDEdit). A segmenter that was trained on real pairs reads nucleus
and cytoplasm in the result. A seed is one of the noise; the network is the same. Supported: the
masks have at least 0.9 of the intersection over union that they have with the untouched images, and
values move by 0.05 to 0.5 of the distance between two cells. Contradicted: one of the two is
outside.
"""

from verdicts import column, judge, ratio_of

CLAIM = "Gentle cosine noise gives subtle variations that keep the anatomy."
EXPERIMENT = "experiments/control_cells.py"
NETWORKS = {}
ARMS = ("cells",)
COLUMNS = {
    "kept": "IoU of variations with the cells' masks, a fifth of the levels",
    "untouched": "IoU of the untouched images",
    "far": "IoU of variations by four fifths of the levels",
    "moved": "values moved by, a fifth of the levels",
    "apart": "distance of two cells",
}


def verdict(raw):
    def of(key):
        return column(raw, "cells", key)

    return judge(
        ratio_of(
            "IoU with the mask, varied over untouched",
            of("kept"),
            of("untouched"),
            0.9,
            inside="variations keep the masks of their cells",
            outside="variations lose the masks of their cells",
        ),
        ratio_of(
            "values moved by, over the distance of two cells",
            of("moved"),
            of("apart"),
            0.05,
            0.5,
            inside="they are subtle, and no copies",
            below="they are nearly copies",
            above="they are not subtle",
        ),
    )
