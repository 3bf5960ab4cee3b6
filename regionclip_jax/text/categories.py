"""COCO's categories and their open-vocabulary split.

The split into 48 base and 17 novel categories is that of Bansal et al. (2018), "Zero-Shot Object
Detection", in RegionCLIP's order; the other 15 of the 80 categories are in neither.
"""

# fmt: off
COCO_80: tuple[str, ...] = (
    "person", "bicycle", "car", "motorcycle", "airplane", "bus", "train", "truck", "boat",
    "traffic light", "fire hydrant", "stop sign", "parking meter", "bench", "bird", "cat",
    "dog", "horse", "sheep", "cow", "elephant", "bear", "zebra", "giraffe", "backpack",
    "umbrella", "handbag", "tie", "suitcase", "frisbee", "skis", "snowboard", "sports ball",
    "kite", "baseball bat", "baseball glove", "skateboard", "surfboard", "tennis racket",
    "bottle", "wine glass", "cup", "fork", "knife", "spoon", "bowl", "banana", "apple",
    "sandwich", "orange", "broccoli", "carrot", "hot dog", "pizza", "donut", "cake", "chair",
    "couch", "potted plant", "bed", "dining table", "toilet", "tv", "laptop", "mouse", "remote",
    "keyboard", "cell phone", "microwave", "oven", "toaster", "sink", "refrigerator", "book",
    "clock", "vase", "scissors", "teddy bear", "hair drier", "toothbrush",
)

COCO_NOVEL_17: tuple[str, ...] = (
    "airplane", "bus", "cat", "dog", "cow", "elephant", "umbrella", "tie", "snowboard",
    "skateboard", "cup", "knife", "cake", "couch", "keyboard", "sink", "scissors",
)

_COCO_NEITHER_15: tuple[str, ...] = (
    "traffic light", "fire hydrant", "stop sign", "parking meter", "sports ball",
    "baseball bat", "baseball glove", "tennis racket", "wine glass", "hot dog",
    "potted plant", "dining table", "cell phone", "teddy bear", "hair drier",
)
# fmt: on

# All splits keep the order of the 80, which is that of COCO's category ids.
COCO_OVD_65: tuple[str, ...] = tuple(name for name in COCO_80 if name not in _COCO_NEITHER_15)
COCO_BASE_48: tuple[str, ...] = tuple(name for name in COCO_OVD_65 if name not in COCO_NOVEL_17)
