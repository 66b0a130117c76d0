"""Problems beyond the published models: images and videos at full size."""

from natjax.kernels.tuning.problems import Problem

# Windows so large that unfused weights would not fit in memory: for fused kernels only.
LARGE = (
    Problem(
        name="image-256", shape=(256, 256), kernel_size=(80, 80), heads=8, head_dim=128, rpb=False
    ),
    Problem(
        name="video-30x48x80",
        shape=(30, 48, 80),
        kernel_size=(18, 24, 24),
        heads=8,
        head_dim=128,
        rpb=False,
    ),
)
