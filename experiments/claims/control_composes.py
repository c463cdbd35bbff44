"""ControlNet-style conditioning composes with guidance and schedule.

Measured by experiments/control_cells.py on white blood cells, 32x32: ControlNets of three seeds
beside one U-Net, trained under cosine with a tenth of the masks left out. Samples are drawn under
40 held-out masks; a segmenter that was trained on real pairs reads their masks again. Supported:
with guidance of 2, and along the linear schedule without training for it, the intersection over
union is at least 0.95 of that of plain sampling. Contradicted: one of the two is below.
"""

from verdicts import column, judge, ratio_of

CLAIM = "ControlNet-style conditioning composes with guidance and schedule."
EXPERIMENT = "experiments/control_cells.py"
NETWORKS = {}
ARMS = ("controlnet",)
COLUMNS = {
    "plain": "IoU, as trained",
    "guided": "IoU, guidance 2",
    "linear": "IoU, along linear",
    "both": "IoU, along linear with guidance 2",
    "floor": "IoU of the base, which sees no mask",
}


def verdict(raw):
    return judge(
        *(
            ratio_of(
                f"IoU, {words} over as trained",
                column(raw, "controlnet", key),
                column(raw, "controlnet", "plain"),
                0.95,
                inside=f"{words} keeps to the mask",
                outside=f"{words} loses the mask",
            )
            for key, words in (("guided", "guidance of 2"), ("linear", "the linear schedule"))
        )
    )
