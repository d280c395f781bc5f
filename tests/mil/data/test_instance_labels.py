"""Labels of single images: read, given to bags, and learned from without a leak."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from features.bags.h5 import write_bag
from features.errors import BagError
from mil.data.bags import PatientBags, load_patient_bags
from mil.data.cohort import Cohort, Patient
from mil.data.instance_labels import read_instance_labels
from mil.data.splits import Fold
from mil.errors import CohortError
from mil.heads.ensemble import predict_members
from mil.heads.random_streams import RandomStreams
from mil.training.checkpoints import Checkpoints
from mil.training.config import TrainConfig
from mil.training.cross_validation import cross_validate
from mil.training.ensemble import train_ensemble
from mil.training.feature_cache import FeatureCache
from mil.training.fold_jobs import FoldJob
from mil.training.losses import instance_attention_loss
from tests.fakes import make_series

N_PATIENTS, N_IMAGES = 24, 10
SETTINGS = TrainConfig(n_members=2, n_components=8, fixed_steps=30)


def test_labels_are_read_from_a_column_of_the_class_or_of_that_name(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("bag_id,path,any,label\ns,x/1.dcm,1,0\n")
    assert read_instance_labels(tmp_path / "a.csv", ["any", "label"]) == {("s", "x/1.dcm"): 1}
    assert read_instance_labels(tmp_path / "a.csv", ["ill", "label"]) == {("s", "x/1.dcm"): 0}
    (tmp_path / "a.csv").write_text("bag_id,path,label\ns,x/1.dcm,1.0\ns,x/2.dcm,False\n")
    assert list(read_instance_labels(tmp_path / "a.csv", ["label"]).values()) == [1, 0]
    (tmp_path / "a.csv").write_text("bag_id,path,label\ns,x/1.dcm,yes\n")
    with pytest.raises(CohortError, match="row 2: label is 'yes'"):
        read_instance_labels(tmp_path / "a.csv", ["label"])
    (tmp_path / "a.csv").write_text("bag_id,path,label\ns,x/1.dcm,1\ns,x/1.dcm,0\n")
    with pytest.raises(CohortError, match=r"row 3: label of image 'x/1\.dcm' is 0 and 1"):
        read_instance_labels(tmp_path / "a.csv", ["label"])


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> tuple[Cohort, PatientBags, dict]:
    """Series of which every second has two images that are a little raised, and all labels."""
    folder = tmp_path_factory.mktemp("bags")
    rng, patients, paths, image_labels = np.random.default_rng(0), [], {}, {}
    for number in range(N_PATIENTS):
        name, bag = f"s{number}", make_series(f"s{number}", n_images=N_IMAGES, dim=8, seed=3)
        raised = rng.choice(N_IMAGES, 2, replace=False) if number % 2 else []
        for place in raised:
            bag.features[place, 0] += np.float16(1.5)
        image_labels |= {
            (name, source): int(place in raised) for place, source in enumerate(bag.source or ())
        }
        paths[name] = folder / f"{name}.h5"
        write_bag(paths[name], bag)
        label = "ill" if number % 2 else "a well one"
        patients.append(
            Patient(patient_id=f"p{number}", slide_ids=(name,), label=label, center_id=None)
        )
    cohort = Cohort(path=folder, patients=tuple(patients), classes=("a well one", "ill"))
    return cohort, load_patient_bags(cohort, paths), image_labels


def test_bags_know_which_images_have_which_label(world: tuple) -> None:
    _, bags, image_labels = world
    some = {key: value for key, value in image_labels.items() if key[0] in ("s0", "s1")}
    marked = bags.with_instance_labels(some)
    assert marked.instance_labels["p0"].tolist() == [0] * N_IMAGES
    assert sorted(marked.instance_labels["p1"].tolist()) == [0] * 8 + [1] * 2
    assert (marked.instance_labels["p2"] == -1).all()
    assert list(marked.subset(["p1"]).instance_labels) == ["p1"]
    with pytest.raises(BagError, match="1, and none is of an image of a bag"):
        bags.with_instance_labels({("s0", "another.png"): 1})


def test_names_of_images_meet_in_one_form_of_unicode(world: tuple, tmp_path: Path) -> None:
    _, bags, _ = world
    slides = tuple(
        replace(record, sources=[f"e\u0301{source}" for source in record.sources])
        for record in bags.slides
    )
    first = bags.slides[0]
    table = tmp_path / "labels.csv"
    table.write_text(f"slide_id,source,label\n{first.slide_id},\u00e9{first.sources[0]},1\n")
    marked = replace(bags, slides=slides).with_instance_labels(
        read_instance_labels(table, ["label"])
    )
    assert marked.instance_labels[first.patient_id].tolist().count(1) == 1


def test_the_attention_is_pulled_to_images_that_show_something() -> None:
    attention = torch.tensor([[0.2, 0.3, 0.5], [0.2, 0.3, 0.5], [0.2, 0.3, 0.5], [0.5, 0.5, 0.0]])
    instance_labels = torch.tensor([[1, 0, -1], [0, 0, 0], [-1, 1, 1], [1, 0, 0]])
    mask = torch.tensor([[True] * 3] * 3 + [[True, True, False]])
    losses = instance_attention_loss(attention, mask, instance_labels).tolist()
    np.testing.assert_allclose(losses, [-np.log(0.4), 0, 0, -np.log(0.5)], rtol=1e-5)


def test_labels_stay_with_their_images_where_some_are_drawn() -> None:
    lengths = torch.tensor([30, 4])
    numbers = torch.arange(34)
    cache = FeatureCache(
        tiles=numbers[:, None].float(), starts=torch.tensor([0, 30]), lengths=lengths,
        labels=torch.zeros(2, dtype=torch.int64), instance_labels=(numbers % 3 == 0).to(torch.int8),
    )  # fmt: skip
    batch, instance_labels = FeatureCache.concatenate([cache, cache]).sample_labelled(
        torch.tensor([0, 3]), 8, RandomStreams()
    )
    assert instance_labels is not None
    expected = (batch.features[..., 0] % 3 == 0).to(torch.int8)
    assert (instance_labels == expected)[batch.mask].all()


def test_attention_that_is_taught_lies_better_on_new_patients(world: tuple) -> None:
    cohort, bags, image_labels = world
    labels = dict(zip(cohort.patient_ids, cohort.labels.tolist(), strict=True))
    learned, new = cohort.patient_ids[:16], cohort.patient_ids[17::2]

    def share_on_positive(store: PatientBags) -> float:
        ensemble = train_ensemble(
            store.subset(learned), labels, n_classes=2, config=SETTINGS, seed=(0,)
        )
        truth = bags.with_instance_labels(image_labels).instance_labels
        return float(
            np.mean(
                [
                    predict_members(ensemble.heads, bags.features[p])[1]
                    .mean(0)[truth[p] == 1]
                    .sum()
                    for p in new
                ]
            )
        )

    plain, supervised = (
        share_on_positive(bags),
        share_on_positive(bags.with_instance_labels(image_labels)),
    )
    assert supervised > plain


def test_labels_of_images_of_patients_judged_change_nothing_that_is_said_of_them(
    world: tuple,
) -> None:
    cohort, bags, image_labels = world
    tested = cohort.patient_ids[:8]
    fold = Fold(repeat=0, index=0, train_ids=cohort.patient_ids[8:], test_ids=tested)
    other = Fold(repeat=0, index=1, train_ids=tested, test_ids=cohort.patient_ids[8:])
    turned = {
        key: 1 - value if key[0] in {f"s{n}" for n in range(8)} else value
        for key, value in image_labels.items()
    }

    def logits_with(labels: dict) -> np.ndarray:
        found = cross_validate(
            bags.with_instance_labels(labels), cohort, [fold, other], config=SETTINGS, seed=0
        )
        return found.logits[0]

    first, second = logits_with(image_labels), logits_with(turned)
    np.testing.assert_array_equal(first[:8], second[:8])
    assert np.abs(first[8:] - second[8:]).max() > 1e-3  # those who learned from them


def test_folds_with_other_image_labels_are_not_read(world: tuple, tmp_path: Path) -> None:
    cohort, bags, image_labels = world
    fold = Fold(repeat=0, index=0, train_ids=cohort.patient_ids[:12], test_ids=())
    labels = dict(zip(cohort.patient_ids, cohort.labels.tolist(), strict=True))
    job = FoldJob(folds=[fold], labels=labels, n_classes=2, config=SETTINGS, seeds=[(0,)])
    names = {
        Checkpoints(tmp_path, store).keys(job)[0]
        for store in (
            bags, bags.with_instance_labels(image_labels),
            bags.with_instance_labels({key: 1 - value for key, value in image_labels.items()}),
        )
    }  # fmt: skip
    assert len(names) == 3
