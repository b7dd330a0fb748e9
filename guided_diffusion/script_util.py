"""ADM networks from the options that ADM's users know."""

from .unet import EncoderUNetModel

# Channel multiples by the number of levels: of 8x8 features, of 16x16 images, ..., of 512x512 images.
CHANNEL_MULT = {1: (1,), 2: (1, 2), 3: (1, 2, 4), 4: (1, 2, 3, 4), 5: (1, 1, 2, 3, 4), 6: (1, 1, 2, 2, 4, 4),
                7: (0.5, 1, 1, 2, 2, 4, 4)}
SMALLEST = 8  # images larger than this are halved once more
ATTENTION = (512, 256, 128, 64, 32, 16, 8)  # resolutions that may be given for images of any size


def default_channel_mult(image_size: int) -> tuple:
    """Multiples of the ADM classifier for images of this size, which is halved while even and above 8.

    Raises ValueError for an odd size above 8, and for a size that needs more levels than are known.
    """
    size, levels = image_size, 1
    while size > SMALLEST and size % 2 == 0:
        size, levels = size // 2, levels + 1
    if image_size < 1 or (levels == 1 and size > SMALLEST) or levels not in CHANNEL_MULT:
        raise ValueError(f'image size {image_size} is not supported; it must be even, or at most {SMALLEST}, and '
                         f'no more than 512')
    return CHANNEL_MULT[levels]


def create_classifier(image_size, classifier_width, classifier_depth, classifier_attention_resolutions='32,16,8',
                      classifier_use_scale_shift_norm=True, classifier_resblock_updown=True,
                      classifier_pool='attention', out_channels=1000, in_channels=3, num_classes=0,
                      dropout=0.0, channel_mult=None) -> EncoderUNetModel:
    """The ADM classifier for images (or features) of `image_size`.

    `channel_mult` has one multiple of the width per level (default: `default_channel_mult`).
    `classifier_attention_resolutions` is a comma-separated list of resolutions ('' for none). Each is the resolution
    of a level, or a power of two from 8 to 512, which means the level of at most that size and more than half of it: 16
    is 14 for images of 28. Those without a level are ignored. `num_classes` > 0 makes the network conditional (DG's
    conditional discriminators have 1000). Raises ValueError for impossible sizes and resolutions.
    """
    mults = tuple(channel_mult or default_channel_mult(image_size))
    if image_size % 2 ** (len(mults) - 1):
        raise ValueError(f'images of {image_size} pixels cannot be halved {len(mults) - 1} times')
    levels = [image_size >> level for level in range(len(mults))]
    known = {str(size) for size in (*ATTENTION, *levels)}
    named = [res.strip() for res in classifier_attention_resolutions.split(',') if res.strip()]
    for res in named:
        if res not in known:
            raise ValueError(f'attention at resolution {res!r} is not possible; known are '
                             f'{", ".join(sorted(known, key=int, reverse=True))}')
    factors = tuple(2 ** level for level, size in enumerate(levels) if any(size <= int(res) < 2 * size
                                                                           for res in named))
    return EncoderUNetModel(
        image_size=image_size, in_channels=in_channels, model_channels=classifier_width, out_channels=out_channels,
        num_res_blocks=classifier_depth, attention_resolutions=factors, channel_mult=mults,
        num_head_channels=64, use_scale_shift_norm=classifier_use_scale_shift_norm,
        resblock_updown=classifier_resblock_updown, pool=classifier_pool, num_classes=num_classes, dropout=dropout)
