from regionclip_jax.text.categories import (
    COCO_80,
    COCO_BASE_48,
    COCO_NOVEL_17,
    COCO_OVD_65,
)


def test_the_coco_splits_have_their_sizes_and_do_not_overlap():
    assert [len(set(s)) for s in (COCO_80, COCO_OVD_65, COCO_BASE_48, COCO_NOVEL_17)] == [
        80, 65, 48, 17,
    ]  # fmt: skip
    assert set(COCO_BASE_48) | set(COCO_NOVEL_17) == set(COCO_OVD_65) < set(COCO_80)
    assert not set(COCO_BASE_48) & set(COCO_NOVEL_17)


def test_the_coco_splits_keep_the_order_of_the_80():
    for split in (COCO_OVD_65, COCO_BASE_48, COCO_NOVEL_17):
        assert list(split) == [name for name in COCO_80 if name in split]
    assert COCO_BASE_48[:2] == ("person", "bicycle") and COCO_NOVEL_17[-1] == "scissors"
