from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from features.bags.bag import check_fingerprint
from features.errors import BagError
from tests.fakes import make_bag, make_series


def test_the_field_that_differs_is_named() -> None:
    print_a = make_bag("a").meta.fingerprint
    print_b = replace(print_a, target_mpp=1.0)
    check_fingerprint(print_a, [("a", print_a)], source="the run 'r'")
    with pytest.raises(
        BagError, match=r"b: made with --mpp 1; expected --mpp 0\.5 as in the run 'r'"
    ):
        check_fingerprint(print_a, [("a", print_a), ("b", print_b)], source="the run 'r'")


def test_some_rows_of_a_bag_keep_what_belongs_to_them() -> None:
    rows = np.array([True, False, True])
    series = make_series("scan", n_images=3)
    some_images = series.select(rows, meta=series.meta)
    assert some_images.order is not None
    assert some_images.order.tolist() == [0, 2]
    assert some_images.source == ("scan_0.png", "scan_2.png")
    tiles = make_bag("s1", n_tiles=3)
    some = tiles.select(rows, meta=tiles.meta)
    np.testing.assert_array_equal(some.coords_px0, tiles.coords_px0[rows])
    np.testing.assert_array_equal(some.features, tiles.features[rows])
    assert some.order is None


def test_of_many_settings_only_those_that_differ_are_named() -> None:
    whole = make_bag("a").meta.fingerprint
    one = replace(whole, tissue='{"max_tiles":80,"method":"contrast"}')
    other = replace(whole, tissue='{"mask_version":2,"max_tiles":null,"method":"contrast"}')
    with pytest.raises(BagError) as error:
        check_fingerprint(other, [("b", one)], source="the run 'r'")
    message = str(error.value)
    assert "b: made with --max-tiles 80, version 1 of the tissue mask; expected" in message
    assert "no --max-tiles, version 2 of the tissue mask as in the run 'r'" in message
    assert "contrast" not in message


def test_views_that_are_not_what_the_fingerprint_says_are_refused() -> None:
    bag = make_bag("s1", n_views=2)
    with pytest.raises(BagError, match=r"s1: no views; expected views of shape \(4, 2, 8\)"):
        replace(bag, views=None)
    plain = replace(bag.meta, fingerprint=replace(bag.meta.fingerprint, views=""))
    with pytest.raises(BagError, match=r"views of shape \(4, 2, 8\); expected no views"):
        replace(bag, meta=plain)


def test_bags_with_and_without_views_are_not_mixed() -> None:
    with_views, without = (make_bag("s", n_views=n).meta.fingerprint for n in (2, 0))
    with pytest.raises(BagError, match=r"b: made with no --views; expected --views 2"):
        check_fingerprint(with_views, [("b", without)], source="the run 'r'")
