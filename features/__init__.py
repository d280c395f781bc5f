"""Slides become bags: from a whole-slide image to one HDF5 file of tile embeddings.

The road, module by module::

    slides     open and read a slide, whatever its format
    tissue     where the tissue is, at low resolution
    tiles      the grid of tiles on that tissue, and their pixels
    encoders   a frozen timm backbone with its own preprocessing
    embedding  tiles through the backbone
    bags       the file that the learning half reads
    pipeline   all of it, slide after slide, over a folder
    preview    pictures of slides and tiles, for people

Nothing is imported here, so that ``features.bags.bag`` loads without torch or a slide reader.
"""

__all__: list[str] = []
