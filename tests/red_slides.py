"""A labelled data set for tests: red slides on green ground, as the Landslide4Sense tiles lie on disk."""

import numpy as np
from PIL import Image


def write_tiles(folder, *, px, train, validation, in_b):
    """The folder, with so many tiles of `px` a split; those whose number `in_b` says are of block B, others of A."""
    rng = np.random.default_rng(0)
    rows = ["split,png_id,l4s_train_file,landslide_fraction,l4s_id,id_block"]
    for number in range(train + validation):
        split = "train" if number < train else "validation"
        rows.append(f"{split},{number},x.h5,0.3,{number},{'B' if in_b(number) else 'A'}_1")
        mask = (rng.random((8, 8)) > 0.7).repeat(px // 8, 0).repeat(px // 8, 1)
        image = np.where(mask[..., None], [170, 110, 80], [40, 70, 40]) + rng.normal(0, 12, (px, px, 3))
        for kind, name, pixels in (("images", "image", image.clip(0, 255)), ("masks", "mask", mask * 255)):
            (folder / split / kind).mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels.astype(np.uint8)).save(folder / split / kind / f"{name}_{number}.png")
    (folder / "png_id_to_l4s_file.csv").write_text("\n".join(rows) + "\n")
    return folder
