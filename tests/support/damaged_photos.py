"""Records of photos, some of them damaged; a module, since worker processes import it."""

import imagenet_tar

DAMAGED = (b"", b"no image", imagenet_tar.photo(0)[:300], b"%!PS-Adobe-3.0 EPSF-3.0\n")


class Photos:
    """Photos with their place as label; some are damaged."""

    def __init__(self, count, bad):
        self.images = [imagenet_tar.photo(i) for i in range(count)]
        for i in bad:
            self.images[i] = DAMAGED[i % len(DAMAGED)]

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        return {"image": self.images[index], "label": index}
