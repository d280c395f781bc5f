from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from features.bags.bag import Bag
from features.bags.h5 import write_bag
from features.errors import BagError
from mil.audit import AuditReport, Severity, audit
from mil.audit.duplicates import match_tiles
from tests.fakes import make_bag, make_series, real_data

HEAD = "image_id,patient_id,label,center_id"


@dataclass
class World:
    """A clean cohort of noise, into which each test plants one fault."""

    folder: Path
    train: list[str] = field(default_factory=list)
    test: list[str] = field(default_factory=list)
    bags: dict[str, Bag] = field(default_factory=dict)

    def add(self, bag: Bag, patient: str, *, label: str = "CE", centre: str = "1") -> None:
        self.bags[bag.meta.slide_id] = bag
        self.train.append(f"{bag.meta.slide_id},{patient},{label},{centre}")

    def add_to_test(self, bag: Bag, patient: str) -> None:
        self.bags[bag.meta.slide_id] = bag
        self.test.append(f"{bag.meta.slide_id},{patient}")

    def audit(self, *, with_bags: bool = True, n_folds: int = 5) -> AuditReport:
        paths = {"train": self.folder / "train.csv", "test": self.folder / "test.csv"}
        paths["train"].write_text("\n".join([HEAD, *self.train]) + "\n")
        paths["test"].write_text("\n".join(["image_id,patient_id", *self.test]) + "\n")
        (self.folder / "bags").mkdir(exist_ok=True)
        for slide_id, bag in self.bags.items():
            write_bag(self.folder / "bags" / f"{slide_id}.h5", bag)
        return audit(
            paths["train"],
            test=paths["test"],
            bags_dir=self.folder / "bags" if with_bags else None,
            n_folds=n_folds,
        )


def noise(slide_id: str, rng: np.random.Generator) -> Bag:
    bag = make_bag(slide_id, n_tiles=int(rng.integers(16, 40)), seed=int(rng.integers(10_000)))
    glass = tuple(int(value) for value in rng.integers(200, 256, size=3))
    width, height = (int(value) for value in rng.integers(4000, 40_000, size=2))
    meta = replace(
        bag.meta, background_rgb=(glass[0], glass[1], glass[2]), width_px0=width, height_px0=height
    )
    return replace(bag, meta=meta)


def clean_world(folder: Path, *, seed: int = 0, n_patients: int = 16) -> World:
    """Two classes, four centres, some patients with two slides; nothing depends on anything.

    Sixteen patients are too few for the shortcut report, which then takes no time.
    """
    rng = np.random.default_rng(seed)
    world = World(folder)
    for number in range(n_patients):
        label, centre = "LAA" if number % 2 else "CE", str(rng.integers(1, 5))
        for image in range(1 + (rng.random() < 0.2)):
            bag = noise(f"p{number}_{image}", rng)
            world.add(bag, f"p{number}", label=label, centre=centre)
    for number in range(8):
        world.add_to_test(noise(f"q{number}_0", rng), f"q{number}")
    return world


def renamed(bag: Bag, slide_id: str, *, same_file: bool = False) -> Bag:
    content = bag.meta.slide_content_id if same_file else f"content of {slide_id}"
    return replace(bag, meta=replace(bag.meta, slide_id=slide_id, slide_content_id=content))


def rescanned(bag: Bag, slide_id: str, *, noise_share: float = 0.3) -> Bag:
    """Tiles embedded again: other numbers, another order, another origin, two tiles missing."""
    rng = np.random.default_rng(0)
    order = rng.permutation(len(bag.features))[2:]
    blurred = bag.features[order] + noise_share * rng.normal(size=bag.features[order].shape)
    return replace(
        bag,
        features=blurred.astype(np.float16),
        tissue_fraction=bag.tissue_fraction[order],
        **placed(bag, bag.coords_px0[order] + np.array([150, 4000]), slide_id=slide_id),
    )


def placed(bag: Bag, corners: np.ndarray, *, slide_id: str = "") -> dict[str, Any]:
    """Return corners that may be turned, shape (tiles, 2), with a slide that holds them."""
    corners = corners - np.minimum(corners.min(axis=0), 0)
    width, height = (corners.max(axis=0) + 448).tolist()
    meta = renamed(bag, slide_id).meta if slide_id else bag.meta
    return {"coords_px0": corners, "meta": replace(meta, width_px0=width, height_px0=height)}


def kinds(report: AuditReport, severity: Severity = Severity.error) -> list[str]:
    return [finding.kind for finding in report.findings if finding.severity is severity]


@pytest.mark.parametrize(
    "seed", [0, 1, *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(2, 20))]
)
def test_a_clean_cohort_raises_no_alarm(tmp_path: Path, seed: int) -> None:
    report = clean_world(tmp_path, seed=seed, n_patients=50).audit()
    assert kinds(report) == []
    assert kinds(report, Severity.warning) == []
    assert not report.leaks
    assert {score.source for score in report.shortcut_scores} >= {
        "centre", "slides", "tiles", "area", "aspect", "background", "all", "mean embedding",
    }  # fmt: skip


def test_a_patient_on_two_sides_is_a_leak_even_with_other_slides(tmp_path: Path) -> None:
    world = clean_world(tmp_path)
    world.test.append("new_0,p3")
    report = world.audit(with_bags=False)
    assert kinds(report) == ["patient_on_two_sides"]
    assert report.findings[0].subjects == ("p3",)
    assert "p3" in report.findings[0].message


def test_a_slide_on_two_sides_is_a_leak_whatever_the_patient_is_called(tmp_path: Path) -> None:
    world = clean_world(tmp_path)
    world.test.append("p3_0.tif,somebody")
    report = world.audit(with_bags=False)
    assert kinds(report) == ["slide_on_two_sides"]
    assert report.findings[0].subjects == ("p3_0",)


def test_a_slide_of_two_patients_is_a_leak_and_listed_twice_a_warning(tmp_path: Path) -> None:
    world = clean_world(tmp_path)
    world.train += ["p3_0,p4,CE,1", world.train[0]]
    report = world.audit(with_bags=False)
    assert kinds(report) == ["slide_of_two_patients"]
    assert {"slide_listed_twice", "table_refused"} <= set(kinds(report, Severity.warning))
    assert report.shortcut_scores == ()


@pytest.mark.parametrize(
    ("row", "kind"),
    [
        ("new_0,p0,other,{centre}", "patient_with_two_labels"),
        ("new_0,p0,{label},99", "patient_with_two_centres"),
    ],
)
def test_contradictions_are_told_apart(tmp_path: Path, row: str, kind: str) -> None:
    world = clean_world(tmp_path)
    _, _, label, centre = world.train[0].split(",")
    world.train.append(row.format(label=label, centre=centre))
    report = world.audit(with_bags=False)
    assert set(kinds(report, Severity.warning)) == {kind, "table_refused"}


def test_ids_that_lost_their_zeros_are_told(tmp_path: Path) -> None:
    world = clean_world(tmp_path)
    world.train.append("a_0,049194,CE,1")
    world.test.append("b_0,49194")
    report = world.audit(with_bags=False)
    assert kinds(report, Severity.warning) == ["lookalike_patients"]
    assert "049194 = 49194" in report.findings[0].message


@pytest.mark.parametrize("same_file", [True, False])
def test_copies_on_two_sides_are_a_leak(tmp_path: Path, same_file: bool) -> None:
    world = clean_world(tmp_path)
    world.add_to_test(renamed(world.bags["p3_0"], "copy", same_file=same_file), "q99")
    report = world.audit()
    assert kinds(report) == ["identical_file" if same_file else "identical_embeddings"]
    assert "p3_0 (train, patient p3, LAA) = copy (test, patient q99)" in report.findings[0].message


def test_copies_with_two_labels_in_one_table_are_a_leak(tmp_path: Path) -> None:
    world = clean_world(tmp_path)
    other = "LAA" if ",CE," in world.train[0] else "CE"
    world.add(renamed(world.bags["p0_0"], "copy", same_file=True), "p99", label=other)
    report = world.audit()
    assert kinds(report) == ["identical_file"]
    assert "CE" in report.findings[0].message
    assert "LAA" in report.findings[0].message


def test_copies_of_one_patient_are_a_note_and_of_two_test_patients_a_warning(
    tmp_path: Path,
) -> None:
    world = clean_world(tmp_path)
    _, patient, label, centre = world.train[0].split(",")
    world.add(
        renamed(world.bags["p0_0"], "copy", same_file=True), patient, label=label, centre=centre
    )
    world.add_to_test(renamed(world.bags["q0_0"], "twin", same_file=True), "q99")
    report = world.audit()
    assert kinds(report) == []
    assert "identical_file" in kinds(report, Severity.note)
    assert kinds(report, Severity.warning) == ["identical_file"]


@pytest.mark.parametrize("to_test", [True, False])
@pytest.mark.parametrize("seed", range(3))
def test_a_slide_scanned_again_is_a_leak_between_patients(
    tmp_path: Path, to_test: bool, seed: int
) -> None:
    world = clean_world(tmp_path, seed=seed)
    again = rescanned(world.bags["p3_0"], "again")
    if to_test:
        world.add_to_test(again, "q99")
    else:
        world.add(again, "p99")
    report = world.audit()
    assert kinds(report) == ["near_duplicate"]
    assert len(report.findings[0].subjects) == 1
    assert "p3_0" in report.findings[0].subjects[0]
    assert "again" in report.findings[0].subjects[0]
    assert "tiles agree" in report.findings[0].message


@pytest.mark.parametrize("turn", [((0, 1), (-1, 0)), ((-1, 0), (0, -1)), ((0, -1), (1, 0))])
def test_a_slide_put_in_the_other_way_round_is_recognised(
    turn: Sequence[Sequence[int]],
) -> None:
    bag = make_bag("a", n_tiles=30, seed=1)
    again = rescanned(bag, "b")
    turned = replace(again, **placed(again, again.coords_px0 @ np.array(turn)))
    fit = match_tiles(bag, turned, centre=np.zeros(8))
    assert fit.is_copy
    assert fit.share > 0.8


@pytest.mark.parametrize("turn", [((1, 0), (0, 1)), ((0, 1), (1, 0)), ((0, 1), (-1, 0))])
@pytest.mark.parametrize(("n_tiles", "n_kept"), [(12, 10), (12, 8), (60, 55), (60, 30)])
@pytest.mark.parametrize("noise_share", [0.0, 0.3], ids=["same numbers", "compressed"])
def test_a_bag_that_lost_tiles_is_recognised(
    turn: Sequence[Sequence[int]], n_tiles: int, n_kept: int, noise_share: float
) -> None:
    bag = make_bag("a", n_tiles=n_tiles, dim=16)
    rng = np.random.default_rng(0)
    rows = rng.permutation(n_tiles)[:n_kept]
    features = bag.features[rows] + noise_share * rng.normal(size=(n_kept, 16))
    part = replace(
        bag, features=features.astype(np.float16), tissue_fraction=bag.tissue_fraction[rows],
        **placed(bag, bag.coords_px0[rows] @ np.array(turn) + 90_000),
    )  # fmt: skip
    assert match_tiles(bag, part, centre=np.zeros(16)).is_copy
    other = replace(part, features=rng.normal(size=(n_kept, 16)).astype(np.float16))
    assert not match_tiles(bag, other, centre=np.zeros(16)).is_copy


def test_a_piece_of_a_slide_is_recognised() -> None:
    bag = make_bag("a", n_tiles=200, dim=16)
    piece = rescanned(
        replace(
            bag,
            features=bag.features[40:60],
            coords_px0=bag.coords_px0[40:60],
            tissue_fraction=bag.tissue_fraction[40:60],
        ),
        "b",
    )
    assert match_tiles(bag, piece, centre=np.zeros(16)).is_copy


@pytest.mark.parametrize("n_tiles", [8, 12, 20, 60, 300])
def test_different_slides_never_agree(n_tiles: int) -> None:
    bags = [make_bag(str(seed), n_tiles=n_tiles, seed=seed) for seed in range(25)]
    centre = np.zeros(8)
    assert not any(
        match_tiles(a, b, centre=centre).is_copy for i, a in enumerate(bags) for b in bags[:i]
    )


@pytest.mark.ci
def test_a_scanner_shared_by_a_centre_makes_no_duplicates(tmp_path: Path) -> None:
    world = clean_world(tmp_path, n_patients=60)
    rng = np.random.default_rng(5)
    scanners = {str(centre): rng.normal(size=8) * 3 for centre in range(1, 5)}
    centre_of = {row.split(",")[0]: row.split(",")[3] for row in world.train}
    for slide_id, centre in centre_of.items():
        world.bags[slide_id].features[:] += scanners[centre].astype(np.float16)
    report = world.audit()
    assert kinds(report) == []
    score = {m.target: m for m in report.shortcut_scores}["centre"]
    assert score.score.value > 0.9
    assert score.is_above_chance
    assert "centre_in_embeddings" in kinds(report, Severity.note)


@pytest.mark.ci
@pytest.mark.parametrize("source", ["centre", "slides", "tiles", "area", "aspect", "background"])
def test_each_planted_shortcut_is_found(tmp_path: Path, source: str) -> None:
    rng = np.random.default_rng(1)
    world = World(tmp_path)
    for number in range(60):
        label = "LAA" if number % 3 == 0 else "CE"
        has_signal = label == "LAA" if rng.random() < 0.9 else label == "CE"
        centre = ("1" if has_signal else "2") if source == "centre" else str(rng.integers(1, 3))
        bag = noise(f"{number}_0", rng)
        change: dict[str, object] = {
            "tiles": {},
            "area": {"width_px0": 40_000 if has_signal else 20_000, "height_px0": 30_000},
            "aspect": {"width_px0": 40_000 if has_signal else 10_000, "height_px0": 20_000},
            "background": {"background_rgb": (250, 250, 250) if has_signal else (230, 240, 235)},
        }.get(source, {})  # type: ignore[assignment]
        bag = replace(bag, meta=replace(bag.meta, **change))  # type: ignore[arg-type]
        if source == "tiles":
            tiles = make_bag(f"{number}_0", n_tiles=60 if has_signal else 20, seed=number)
            bag = replace(tiles, meta=bag.meta)
        world.add(bag, f"p{number}", label=label, centre=centre)
        if source == "slides" and has_signal:
            world.add(noise(f"{number}_1", rng), f"p{number}", label=label, centre=centre)
    world.add_to_test(noise("q", rng), "q")
    report = world.audit(with_bags=source not in {"centre", "slides"})
    assert kinds(report) == []
    measured = {m.source: m for m in report.shortcut_scores}
    assert measured[source].is_above_chance
    assert measured[source].score.low > 0.6
    warned = {f.subjects[0] for f in report.findings if f.kind == "shortcut"}
    assert source in warned


def test_a_centre_that_tells_the_label_and_shows_in_embeddings_is_a_warning(tmp_path: Path) -> None:
    world = World(tmp_path)
    rng = np.random.default_rng(2)
    for number in range(60):
        label = "LAA" if number % 2 else "CE"
        centre = "1" if (label == "LAA") == (rng.random() < 0.85) else "2"
        bag = noise(f"{number}_0", rng)
        bag.features[:] += np.float16(centre == "1")
        world.add(bag, f"p{number}", label=label, centre=centre)
    world.add_to_test(noise("q", rng), "q")
    report = world.audit()
    assert {"shortcut", "centre_in_embeddings"} <= set(kinds(report, Severity.warning))


def test_classes_and_folds_too_small_are_told(tmp_path: Path) -> None:
    world = World(tmp_path)
    for number in range(30):
        world.train.append(f"{number}_0,{number},{'LAA' if number < 4 else 'CE'},1")
    world.test.append("q,q")
    report = world.audit(with_bags=False)
    assert kinds(report, Severity.warning) == ["class_too_small"]
    assert "--folds 4" in report.findings[0].advice
    fewer = world.audit(with_bags=False, n_folds=4)
    assert kinds(fewer, Severity.warning) == []
    assert "fold_small" in kinds(fewer, Severity.note)
    assert "shortcuts_not_measured" in kinds(fewer, Severity.note)
    # Two folds would leave two patients to fit a calibrator.
    two = world.audit(with_bags=False, n_folds=2)
    assert kinds(two, Severity.warning) == ["class_too_small"]


def test_a_class_too_small_for_any_number_of_folds_is_told_the_minimum(tmp_path: Path) -> None:
    world = World(tmp_path)
    for number in range(30):
        world.train.append(f"{number}_0,{number},{'LAA' if number < 3 else 'CE'},1")
    world.test.append("q,q")
    (finding,) = (
        one for one in world.audit(with_bags=False).findings if one.kind == "class_too_small"
    )
    assert "has 3 patients" in finding.message
    assert "at least 4" in finding.message
    assert "--folds" not in finding.advice


def test_thousands_of_classes_are_one_finding(tmp_path: Path) -> None:
    table = tmp_path / "train.csv"
    rows = "".join(f"s{n},p{n},{n / 3:.2f}\n" for n in range(1000))
    table.write_text(f"image_id,patient_id,label\n{rows}")
    (finding,) = [f for f in audit(table).findings if f.kind == "class_too_small"]
    assert finding.message.startswith("1,000 of 1,000 classes have too few patients for 5 folds")
    assert len(finding.subjects) == 1000


def test_a_table_with_one_class_is_refused_in_training_and_said(tmp_path: Path) -> None:
    world = World(tmp_path, train=["a,p,CE,1", "b,q,CE,1"], test=["c,r"])
    report = world.audit(with_bags=False)
    assert kinds(report, Severity.warning) == ["table_refused"]
    assert "one class only" in report.findings[0].message


def test_slides_without_a_bag_are_told_and_bags_made_otherwise_refused(tmp_path: Path) -> None:
    world = clean_world(tmp_path)
    world.test.append("gone_0,gone")
    report = world.audit()
    assert kinds(report, Severity.warning) == ["slide_without_bag"]
    assert report.findings[0].subjects == ("gone_0",)
    world.add(make_bag("odd", dim=9), "odd")
    with pytest.raises(
        BagError,
        match=r"odd.h5: made with embeddings of 9 numbers; expected embeddings of 8 numbers",
    ):
        world.audit()


def test_no_bag_at_all_is_one_error(tmp_path: Path) -> None:
    world = World(tmp_path, train=["a,p,CE,1", "b,q,LAA,1"], test=["c,r"])
    world.bags["other"] = make_bag("other")
    with pytest.raises(BagError, match="has a bag"):
        world.audit()


def test_slides_without_tiles_are_no_copies_of_each_other(tmp_path: Path) -> None:
    world = clean_world(tmp_path)
    for name in ("e1", "e2"):
        world.add(make_bag(name, n_tiles=0, empty_reason="no tissue"), name)
    assert kinds(world.audit()) == []


def test_bags_that_know_neither_places_nor_sizes_are_told_by_content_alone(tmp_path: Path) -> None:
    world = clean_world(tmp_path, n_patients=24)
    world.add(renamed(world.bags["p0_0"], "copy"), "p99")
    world.bags = {
        name: replace(
            bag,
            coords_px0=np.full_like(bag.coords_px0, -1),
            meta=replace(bag.meta, width_px0=0, height_px0=0),
        )
        for name, bag in world.bags.items()
    }
    report = world.audit()
    assert kinds(report) == ["identical_embeddings"]
    assert "places_not_known" in kinds(report, Severity.note)
    sources = {score.source for score in report.shortcut_scores}
    assert {"tiles", "background"} <= sources
    assert not {"area", "aspect"} & sources


def test_scans_whose_slices_match_by_their_level_are_no_copies(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    world, levels = World(tmp_path, test=["x,x"]), rng.normal(size=(2, 32))
    for number in range(8):
        bag = make_series(f"s{number}", n_images=30, dim=32, seed=number)
        angle = np.linspace(0, np.pi, 30)
        level = np.stack([np.sin(angle), np.cos(angle)], axis=1) @ levels
        features = (level + 0.3 * bag.features).astype(np.float16)
        world.add(replace(bag, features=features), f"p{number}", label="ab"[number % 2])
    report = world.audit()
    assert kinds(report) == []
    assert "places_not_known" in kinds(report, Severity.note)


def test_the_same_seed_gives_the_same_report(tmp_path: Path) -> None:
    world = clean_world(tmp_path, n_patients=24)
    first, again = (world.audit(with_bags=False).as_dict() for _ in range(2))
    assert first == again
    assert first["predictability"]


@real_data
def test_the_four_strip_test_patients_are_found_in_training(mil_data: Path) -> None:
    folder = mil_data / "strip"
    report = audit(folder / "train.csv", test=folder / "test.csv")
    assert kinds(report) == ["patient_on_two_sides", "slide_on_two_sides"]
    assert report.findings[0].subjects == ("006388", "008e5c", "00c058", "01adc5")
    centre = {m.source: m for m in report.shortcut_scores}["centre"]
    assert 0.47 < centre.score.value < 0.58
    assert not audit(folder / "train.csv").leaks
