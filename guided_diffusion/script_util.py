"""ADM networks from the options that their users know."""

from .unet import EncoderUNetModel

CHANNEL_MULT = {512: (0.5, 1, 1, 2, 2, 4, 4), 256: (1, 1, 2, 2, 4, 4), 128: (1, 1, 2, 3, 4), 64: (1, 2, 3, 4),
                32: (1, 2, 4), 16: (1, 2), 8: (1,)}


def create_classifier(image_size, classifier_width, classifier_depth, classifier_attention_resolutions='32,16,8',
                      classifier_use_scale_shift_norm=True, classifier_resblock_updown=True,
                      classifier_pool='attention', out_channels=1000, in_channels=3, num_classes=0,
                      dropout=0.0) -> EncoderUNetModel:
    """The ADM classifier for images (or features) of `image_size`, a power of two from 8 to 512.

    `classifier_attention_resolutions` is a comma-separated list of resolutions ('' for none; those above
    `image_size` are met nowhere); `num_classes` > 0 makes the network conditional (DG's conditional discriminators
    have 1000). Raises ValueError for sizes and resolutions that no level can have.
    """
    if image_size not in CHANNEL_MULT:
        raise ValueError(f'image size {image_size} is not supported; known are {", ".join(map(str, CHANNEL_MULT))}')
    known = {str(size): size for size in CHANNEL_MULT}  # every network ends at 8
    attention = [res.strip() for res in classifier_attention_resolutions.split(',') if res.strip()]
    for res in attention:
        if res not in known:
            raise ValueError(f'attention at resolution {res!r} is not possible; known are {", ".join(known)}')
    factors = tuple(image_size // known[res] for res in attention)
    return EncoderUNetModel(
        image_size=image_size, in_channels=in_channels, model_channels=classifier_width, out_channels=out_channels,
        num_res_blocks=classifier_depth, attention_resolutions=factors, channel_mult=CHANNEL_MULT[image_size],
        num_head_channels=64, use_scale_shift_norm=classifier_use_scale_shift_norm,
        resblock_updown=classifier_resblock_updown, pool=classifier_pool, num_classes=num_classes, dropout=dropout)
