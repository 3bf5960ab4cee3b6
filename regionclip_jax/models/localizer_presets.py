"""Architectures of localizers by name (docs/reference/configuration.md#localizers)."""

from regionclip_jax.models.localizer import LocalizerConfig

_RN50 = dict(blocks=(3, 4, 6, 3), stem_width=64, bottleneck_width=64, features=256)

LOCALIZER_PRESETS: dict[str, LocalizerConfig] = {
    # The reference's rpn_coco_48: one level.
    "rn50_c4": LocalizerConfig(),
    # Its rpn_lvis_866, and the variant for large-scale jitter with norms and a deeper head.
    "rn50_fpn": LocalizerConfig(**_RN50, pyramid_channels=256),
    "rn50_fpn_lsj": LocalizerConfig(**_RN50, pyramid_channels=256, pyramid_norm=True, head_convs=2),
    # Its rpn_lvis_1203_clipbackbone: a pyramid on CLIP's RN50.
    "clip_rn50_fpn": LocalizerConfig(
        trunk="clip", blocks=(3, 4, 6, 3), stem_width=64, pyramid_channels=256
    ),
    # On the small CLIP of the synthetic experiment.
    "scenes": LocalizerConfig(
        trunk="clip", blocks=(1, 1, 1, 1), stem_width=16, pyramid_channels=32
    ),
    # A few million operations per image: for two CPU cores.
    "small": LocalizerConfig(
        blocks=(1, 1, 2, 1),
        stem_width=16,
        bottleneck_width=16,
        features=64,
        pyramid_channels=64,
        pyramid_norm=True,
    ),
}
