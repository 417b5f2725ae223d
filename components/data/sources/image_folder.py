"""Any folder of pictures: mixed sizes and formats, class subfolders or a table of labels and captions beside them.

    pictures/                      or   pictures/metadata.csv        or   pictures/0001.jpg
      cat/0001.jpg                        file_name,label,text              pictures/0001.txt   its caption
      dog/rex and me.png                  0001.jpg,cat,a cat on a mat

Mechanism and what is absent: `_folder`. Content decides, not the name: a PNG called `.jpg` is a PNG.
"""

from __future__ import annotations

from components.data.sources._folder import FolderSource


class ImageFolder(FolderSource):
    """Pictures of a folder or of a URL such as `s3://bucket/pictures`; what is none (a README) comes as `Broken`.

    >>> from pathlib import Path
    >>> from sklearn import datasets
    >>> source = ImageFolder(path=str(Path(datasets.__file__).parent / "images"))
    >>> [sample.key for sample in source.samples() if hasattr(sample, "image")]
    ['china.jpg', 'flower.jpg']
    """

    modality = "image"
    modalities = ("image",)
    expected = "pictures (PNG, JPEG, WebP, BMP, GIF, TIFF)"
