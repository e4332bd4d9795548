"""The data sets: right arrays from right files, clear refusals of everything else."""

import dataclasses
import gzip
import math
import pickle
import re
import struct
import subprocess
import sys
from pathlib import Path
from typing import get_args

import jax
import numpy as np
import pytest
import tyro

from train import tasks
from train.tasks import cifar10

DEBIAN = Path("/usr/share/datasets/fashion-mnist")
SMALL = [
    tasks.Digits(),
    tasks.Digits(num_train=50, num_test=20),
    tasks.GaussianMixture(num_train=300, num_test=200),
    tasks.TeacherStudent(num_train=300, num_test=200),
    tasks.TeacherStudent(num_train=300, num_test=200, activation="leaky_relu(0.2)", depth=4, sigma_w=1.4),
]


@pytest.fixture
def nowhere(tmp_path, monkeypatch):
    """No data folder but one that is empty."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("JAXACT_DATA", str(tmp_path / "data"))
    (tmp_path / "data").mkdir()
    return tmp_path / "data"


def idx(array: np.ndarray, kind: int = 8) -> bytes:
    """An IDX file as its specification has it, independent of the reader."""
    return struct.pack(f">BBBB{array.ndim}I", 0, 0, kind, array.ndim, *array.shape) + array.tobytes()


def fashion_files(num_train=40, num_test=20):
    rng = np.random.default_rng(0)
    return {
        "train-images-idx3-ubyte": rng.integers(0, 256, (num_train, 28, 28), np.uint8),
        "train-labels-idx1-ubyte": (np.arange(num_train) % 10).astype(np.uint8),
        "t10k-images-idx3-ubyte": rng.integers(0, 256, (num_test, 28, 28), np.uint8),
        "t10k-labels-idx1-ubyte": (np.arange(num_test) % 10).astype(np.uint8),
    }


def write_fashion(folder: Path, *, compress=False, **replaced: bytes) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, array in fashion_files().items():
        data = replaced.get(name.replace("-", "_"), idx(array))
        (folder / (name + ".gz" if compress else name)).write_bytes(gzip.compress(data) if compress else data)
    return folder


@pytest.mark.parametrize("task", SMALL, ids=str)
def test_arrays_have_the_promised_shapes_and_types(task):
    data = task.load()
    for inputs, labels in ((data.train_inputs, data.train_labels), (data.test_inputs, data.test_labels)):
        assert inputs.dtype == np.float32
        assert labels.dtype == np.int32
        assert inputs.shape == (len(labels), *data.input_shape)
        assert np.isfinite(inputs).all()
        assert set(np.unique(labels)) == set(range(data.num_classes))
    if task.num_train is not None:
        assert len(data.train_labels) == task.num_train
        assert len(data.test_labels) == task.num_test
    assert data.name == str(task)


@pytest.mark.parametrize("task", SMALL, ids=str)
def test_second_moment_of_the_inputs_is_one(task):
    inputs = task.load().train_inputs.astype(np.float64)
    generated = isinstance(task, tasks.GaussianMixture | tasks.TeacherStudent)
    # x^2 has a standard deviation of about sqrt(2): generated tasks promise the expectation alone.
    tolerance = 5 * math.sqrt(2 / inputs.size) if generated else 1e-5
    assert np.mean(inputs**2) == pytest.approx(1, abs=tolerance)


@pytest.mark.parametrize("task", SMALL, ids=str)
def test_building_twice_gives_the_same_arrays(task):
    first, second = task.build(), task.build()
    jax.tree.map(np.testing.assert_array_equal, first, second)


@pytest.mark.parametrize("task", SMALL, ids=str)
def test_text_and_pickle_give_the_task_back(task):
    assert tasks.parse(str(task)) == task
    assert pickle.loads(pickle.dumps(task)) == task
    assert hash(tasks.parse(str(task))) == hash(task)


def test_load_is_cached_and_read_only():
    data = tasks.Digits(num_train=30).load()
    assert tasks.Digits(num_train=30).load() is data
    with pytest.raises(ValueError, match="read-only"):
        data.train_inputs[0] = 0


def test_data_is_a_pytree_of_its_four_arrays():
    data = tasks.Digits(num_train=30).load()
    moved = jax.device_put(data)
    assert len(jax.tree.leaves(moved)) == 4
    assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(moved))
    assert (moved.num_classes, moved.name) == (10, "digits(num_train=30)")
    assert moved.flat().input_shape == (64,)


@pytest.mark.parametrize(
    ("task", "shape"),
    [
        (tasks.Digits(), (8, 8, 1)),
        (tasks.FashionMNIST(), (28, 28, 1)),
        (tasks.Cifar10(), (32, 32, 3)),
        (tasks.GaussianMixture(dimension=12), (12,)),
        (tasks.TeacherStudent(dimension=12), (12,)),
    ],
    ids=str,
)
def test_the_shape_of_inputs_is_known_before_any_is_loaded(task, shape, nowhere, monkeypatch):
    monkeypatch.setattr(type(task), "build", None)
    assert task.input_shape == shape
    assert task.holds_images == (len(shape) == 3)
    if task.holds_images:
        tasks.check_images("task", task)
    else:
        told = rf"`problem` must hold images .* got {re.escape(str(task))}, whose inputs are \(12,\)\. "
        with pytest.raises(ValueError, match=told + r"Use .*cifar10 or .*digits or .*fashion_mnist"):
            tasks.check_images("problem", task)


def test_flat_keeps_every_value():
    data = tasks.Digits(num_train=30).load()
    flat = data.flat()
    assert flat.input_shape == (64,)
    assert flat.flat().input_shape == (64,)
    np.testing.assert_array_equal(flat.train_inputs.reshape(data.train_inputs.shape), data.train_inputs)


def test_importing_the_tasks_imports_no_data_library():
    code = (
        "import sys, train.tasks; print([m for m in ('sklearn', 'flax', 'scipy.stats') if m in sys.modules])"
    )
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda: tasks.Digits(num_train=0), r"`num_train` must be an integer of at least 1, got 0"),
        (lambda: tasks.Digits(num_test=2.5), r"`num_test` must be an integer of at least 1, got 2\.5"),
        (lambda: tasks.Digits(num_train=True), r"`num_train` .* got True"),
        (lambda: tasks.Digits(num_train=1438), r"`num_train` must be at most 1437.*got 1438.*None"),
        (lambda: tasks.FashionMNIST(num_test=10_001), r"`num_test` must be at most 10000"),
        (lambda: tasks.Cifar10(num_train=50_001), r"`num_train` must be at most 50000"),
        (lambda: tasks.GaussianMixture(num_train=None), r"`num_train` must be an integer"),
        (lambda: tasks.GaussianMixture(num_classes=1), r"`num_classes` must be an integer of at least 2"),
        (
            lambda: tasks.GaussianMixture(dimension=8),
            r"`dimension` must be at least num_classes - 1 = 9, got 8",
        ),
        (
            lambda: tasks.GaussianMixture(separation=-1.0),
            r"`separation` must be a finite number of at least 0",
        ),
        (lambda: tasks.GaussianMixture(separation=math.nan), r"`separation` .* got nan"),
        (lambda: tasks.GaussianMixture(seed=-1), r"`seed` must be an integer of at least 0, got -1"),
        (lambda: tasks.TeacherStudent(sigma_w=0.0), r"`sigma_w` must be a finite number above 0, got 0\.0"),
        (lambda: tasks.TeacherStudent(label_noise=1.5), r"`label_noise` .*at most 1, got 1\.5"),
        (lambda: tasks.TeacherStudent(depth=0), r"`depth` must be an integer of at least 1, got 0"),
        (lambda: tasks.TeacherStudent(width="64"), r"`width` .* got '64'"),
        (lambda: tasks.TeacherStudent(activation=3), r"`activation` must be text"),
        (lambda: tasks.TeacherStudent(activation="tanhh"), r"tanh"),
    ],
)
def test_a_bad_value_is_refused_by_name_value_and_rule(make, told):
    with pytest.raises(ValueError, match=told):
        make()


@pytest.mark.parametrize("text", ["fashion_mnist", "fashion-mnist", "Fashion-MNIST", " FashionMNIST "])
def test_spelling_of_a_name_is_forgiven(text):
    assert tasks.parse(text) == tasks.FashionMNIST()


def test_every_name_parses_and_prints_itself():
    ours = ["cifar10", "digits", "fashion_mnist", "gaussian_mixture", "teacher_student"]
    assert set(ours) <= set(tasks.names())
    assert [str(tasks.parse(name)) for name in ours] == ours


def test_parameters_are_read_as_in_a_call():
    text = "teacher_student(depth=4, activation='leaky_relu(0.2)', label_noise=.1)"
    assert tasks.parse(text) == tasks.TeacherStudent(depth=4, activation="leaky_relu(0.2)", label_noise=0.1)
    assert tasks.get("digits", num_train=7) == tasks.parse("digits(num_train=7)") == tasks.Digits(num_train=7)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("digts", "got 'digts'. Did you mean 'digits'"),
        ("", "must be one of cifar10"),
        ("mnist1d", "must be one of"),
        ("digits(num_tran=3)", "no parameter 'num_tran'.*Did you mean 'num_train'"),
        ("digits(3)", "name\\(parameter=value"),
        ("digits(num_train=3", "name\\(parameter=value"),
        ("digits(num_train=3) + 1", "name\\(parameter=value"),
        ("digits(num_train=3)()", "name\\(parameter=value"),
        ("digits(**{})", "name\\(parameter=value"),
        ("digits(num_train=3, num_train=4)", "name\\(parameter=value"),
        ("teacher_student(activation=tanh)", "tanh is not a literal; put text into quotes"),
        ("digits(num_train=open('x'))", "not a literal"),
        ("digits(num_train=-3)", "`num_train` must be .* got -3"),
    ],
)
def test_text_that_is_no_task_is_refused(text, told):
    with pytest.raises(ValueError, match=told):
        tasks.parse(text)


def test_a_config_takes_a_task_from_the_command_line(capsys):
    assert get_args(tasks.FromText)[0] is tasks.Task

    @dataclasses.dataclass(frozen=True)
    class Config:
        task: tasks.FromText = tasks.Digits(num_train=5)
        width: int = 3

    default = Config()
    parsed = tyro.cli(
        Config, default=default, args=["--task", "gaussian-mixture(dimension=20)", "--width", "4"]
    )
    assert parsed == Config(tasks.GaussianMixture(dimension=20), 4)
    assert tyro.cli(Config, default=default, args=[]) == default
    with pytest.raises(SystemExit) as exit_:
        tyro.cli(Config, default=default, args=["--task", "digitz"])
    assert exit_.value.code == 2
    assert "Did you mean 'digits'" in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize("sizes", [(90, 10), (50, 50), (3, 97), (33, 33, 34)])
def test_every_prefix_of_the_stratified_order_holds_the_classes_in_proportion(sizes):
    labels = np.repeat(np.arange(len(sizes)), sizes)
    order = tasks._task.stratified_order(labels, seed=1)
    assert sorted(order) == list(range(len(labels)))
    counts = np.cumsum(labels[order][:, None] == np.arange(len(sizes)), axis=0)
    expected = np.arange(1, len(labels) + 1)[:, None] * np.array(sizes) / len(labels)
    assert np.abs(counts - expected).max() <= len(sizes)


def test_a_small_digits_set_is_the_start_of_the_large_one():
    small, large = tasks.Digits(num_train=200, num_test=50).load(), tasks.Digits().load()
    np.testing.assert_array_equal(small.train_labels, large.train_labels[:200])
    np.testing.assert_array_equal(small.test_labels, large.test_labels[:50])
    # Each set is scaled by its own statistics: the rows agree up to one affine map.
    slope, offset = np.polyfit(large.train_inputs[:200].ravel(), small.train_inputs.ravel(), 1)
    np.testing.assert_allclose(slope * large.test_inputs[:50] + offset, small.test_inputs, atol=1e-4)


@pytest.mark.parametrize("kind", [tasks.GaussianMixture, tasks.TeacherStudent])
def test_a_small_generated_set_is_the_start_of_the_large_one(kind):
    small = kind(num_train=100, num_test=60).build()
    large = kind(num_train=500, num_test=90).build()
    np.testing.assert_array_equal(small.train_inputs, large.train_inputs[:100])
    np.testing.assert_array_equal(small.train_labels, large.train_labels[:100])
    np.testing.assert_array_equal(small.test_inputs, large.test_inputs[:60])
    np.testing.assert_array_equal(small.test_labels, large.test_labels[:60])


def test_digits_split_is_disjoint_complete_and_stratified():
    from sklearn.datasets import load_digits

    source = load_digits()
    data = tasks.Digits().load()
    total = np.bincount(source.target)
    test = np.bincount(data.test_labels)
    np.testing.assert_array_equal(np.bincount(data.train_labels) + test, total)
    assert np.abs(test - total * 360 / 1797).max() <= 2
    # Undo the scaling with scikit-learn's own pixels: both parts together are its rows, each once.
    inputs = np.concatenate([data.train_inputs, data.test_inputs]).reshape(1797, 64).astype(np.float64)
    labels = np.concatenate([data.train_labels, data.test_labels])
    levels = np.unique(inputs)
    assert len(levels) == 17
    grey = np.rint((inputs - levels[0]) / (levels[-1] - levels[0]) * 16)
    ours = np.column_stack([grey, labels])
    theirs = np.column_stack([source.data, source.target])
    np.testing.assert_array_equal(
        ours[np.lexsort(ours.T)], theirs[np.lexsort(theirs.T)]
    )  # the 1,797 rows are distinct
    assert len(np.unique(theirs, axis=0)) == 1797


def test_digits_are_scaled_by_the_training_rows_alone():
    data = tasks.Digits().load()
    train, test = data.train_inputs.astype(np.float64), data.test_inputs.astype(np.float64)
    assert train.mean() == pytest.approx(0, abs=1e-6)
    assert train.std() == pytest.approx(1, abs=1e-6)
    assert abs(test.mean()) > 1e-4  # the test rows were not centred by themselves
    assert np.mean(test**2) == pytest.approx(1, abs=0.05)


def test_digits_can_be_learned_from_the_split():
    data = tasks.Digits().load().flat()
    # One nearest neighbour: an independent check that labels still belong to their images.
    squares = np.sum(data.train_inputs**2, axis=1)
    nearest = np.argmin(squares - 2 * data.test_inputs @ data.train_inputs.T, axis=1)
    assert np.mean(data.train_labels[nearest] == data.test_labels) > 0.97


@pytest.mark.parametrize("compress", [False, True], ids=["plain", "gz"])
@pytest.mark.parametrize("subfolder", ["", "fashion-mnist"])
def test_idx_files_are_read_as_written(nowhere, compress, subfolder):
    write_fashion(nowhere / subfolder, compress=compress)
    data = tasks.FashionMNIST().load()
    raw = fashion_files()
    pixels, labels = raw["train-images-idx3-ubyte"].astype(np.float64), raw["train-labels-idx1-ubyte"]
    assert data.input_shape == (28, 28, 1)
    scaled = (pixels - pixels.mean()) / pixels.std()
    rows = [int(np.abs(scaled - image[..., 0]).max(axis=(1, 2)).argmin()) for image in data.train_inputs]
    assert sorted(rows) == list(range(40))
    np.testing.assert_allclose(data.train_inputs[..., 0], scaled[rows], atol=1e-5)
    np.testing.assert_array_equal(data.train_labels, labels[rows])
    held_out = (raw["t10k-images-idx3-ubyte"] - pixels.mean()) / pixels.std()
    assert np.sort(data.test_inputs, axis=None) == pytest.approx(np.sort(held_out, axis=None), abs=1e-5)


@pytest.mark.parametrize("ending", ["", ".gz"])
@pytest.mark.parametrize(
    "spelt",
    [
        lambda name: name.replace("-idx", ".idx"),
        lambda name: name.replace("-idx", ".idx").replace("ubyte", "UBYTE").replace("t10k", "T10K"),
        lambda name: name.title(),
        lambda name: name.replace("-idx", ".idx") if "images" in name else name,
    ],
)
def test_idx_files_are_found_under_the_names_of_other_distributions(nowhere, spelt, ending):
    write_fashion(nowhere / "plain")
    for path in list((nowhere / "plain").iterdir()):
        content = path.read_bytes()
        (nowhere / (spelt(path.name) + ending)).write_bytes(gzip.compress(content) if ending else content)
        path.unlink()
    data = tasks.FashionMNIST().build()
    for written in nowhere.iterdir():
        if written.is_file():
            written.unlink()
    write_fashion(nowhere)
    jax.tree.map(np.testing.assert_array_equal, data, tasks.FashionMNIST().build())


def test_a_name_spelt_as_published_wins_over_one_in_capitals(nowhere):
    write_fashion(nowhere)
    (nowhere / "TRAIN-IMAGES-IDX3-UBYTE").write_bytes(b"not this")
    assert len(tasks.FashionMNIST().load().train_labels) == 40


def test_the_named_subfolder_wins_over_mnist_files_of_the_same_name(nowhere):
    write_fashion(nowhere, train_images_idx3_ubyte=b"not these")
    write_fashion(nowhere / "fashion-mnist")
    assert len(tasks.FashionMNIST().load().train_labels) == 40


def test_home_is_searched_when_nothing_is_set(nowhere, monkeypatch):
    monkeypatch.delenv("JAXACT_DATA")
    write_fashion(nowhere.parent / "home/data/fashion-mnist", compress=True)
    assert len(tasks.FashionMNIST(num_train=30).load().train_labels) == 30


@pytest.mark.parametrize("compress", [False, True], ids=["plain", "gz"])
@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (lambda good: good[:-1], "is truncated: 31360 values expected, got 31359"),
        (lambda good: good[:10], "is truncated: it ends inside its header"),
        (lambda good: good[:3], "is not an IDX file"),
        (lambda good: b"", "is not an IDX file: it begins with nothing"),
        (lambda good: b"<html>" + good, "is not an IDX file: it begins with 3c 68 74 6d"),
        (lambda good: good + b"x", "is longer than its header says"),
        (lambda good: good[:2] + b"\x0d" + good[3:], "must hold unsigned bytes.*got type 13"),
        (lambda good: idx(np.zeros(40, np.uint8)), "in 3 dimensions, got type 8 in 1"),
        (lambda good: idx(np.zeros((40, 28, 27), np.uint8)), "must be n x 28 x 28.*got 40 x 28 x 27"),
        (lambda good: idx(np.zeros((0, 28, 28), np.uint8)), "got 0 x 28 x 28"),
        (lambda good: good[:4] + b"\xff" * 4 + good[8:], "is truncated: 3367254359280 values expected"),
        (lambda good: idx(np.zeros((39, 28, 28), np.uint8)), "equal length, got 39 images and 40 labels"),
    ],
)
def test_a_damaged_idx_file_is_refused_by_name_with_the_remedy(nowhere, compress, spoil, told):
    good = idx(fashion_files()["train-images-idx3-ubyte"])
    write_fashion(nowhere, compress=compress, train_images_idx3_ubyte=spoil(good))
    with pytest.raises(tasks.DataError, match=told) as error:
        tasks.FashionMNIST().load()
    assert str(nowhere / "train-images-idx3-ubyte") in str(error.value)
    assert "apt-get install dataset-fashion-mnist" in str(error.value)


@pytest.mark.parametrize("keep", [0.02, 0.5, 0.999])
def test_a_truncated_gzip_file_is_refused(nowhere, keep):
    path = write_fashion(nowhere, compress=True) / "train-images-idx3-ubyte.gz"
    packed = path.read_bytes()
    path.write_bytes(packed[: int(keep * len(packed))])
    with pytest.raises(tasks.DataError, match=r"train-images-idx3-ubyte.gz is truncated or damaged"):
        tasks.FashionMNIST().load()


def test_a_gzip_file_with_a_wrong_checksum_is_refused(nowhere):
    path = write_fashion(nowhere, compress=True) / "train-labels-idx1-ubyte.gz"
    packed = bytearray(path.read_bytes())
    packed[-6] ^= 0xFF
    path.write_bytes(packed)
    with pytest.raises(tasks.DataError, match="truncated or damaged: gzip says CRC"):
        tasks.FashionMNIST().load()


def test_labels_out_of_range_are_refused(nowhere):
    write_fashion(nowhere, t10k_labels_idx1_ubyte=idx(np.full(20, 10, np.uint8)))
    with pytest.raises(tasks.DataError, match=r"t10k-labels-idx1-ubyte must hold labels from 0 to 9, got 10"):
        tasks.FashionMNIST().load()


def test_more_rows_than_the_files_hold_are_refused(nowhere):
    write_fashion(nowhere)
    with pytest.raises(ValueError, match=r"`num_train` must be at most 40.*got 41"):
        tasks.FashionMNIST(num_train=41).load()


def test_missing_files_are_reported_with_places_and_remedy(nowhere, monkeypatch):
    monkeypatch.setattr(
        "train.tasks.fashion_mnist.places", lambda name, *_: tasks._files.places(name, "~/none")
    )
    write_fashion(nowhere / "fashion-mnist")
    (nowhere / "fashion-mnist/t10k-labels-idx1-ubyte").unlink()
    with pytest.raises(FileNotFoundError) as error:
        tasks.FashionMNIST().load()
    told = str(error.value)
    assert f"{nowhere}/fashion-mnist: lacks t10k-labels-idx1-ubyte or t10k-labels-idx1-ubyte.gz or " in told
    assert f"{nowhere}: has none of the files" in told
    assert f"{nowhere.parent}/home/none: no such folder" in told
    assert "apt-get install dataset-fashion-mnist" in told
    assert "JAXACT_DATA" in told


@pytest.mark.skipif(not DEBIAN.is_dir(), reason="needs the Debian package dataset-fashion-mnist")
def test_debians_fashion_mnist_is_whole(nowhere):
    data = tasks.FashionMNIST().build()
    np.testing.assert_array_equal(np.bincount(data.train_labels), [6000] * 10)
    np.testing.assert_array_equal(np.bincount(data.test_labels), [1000] * 10)
    assert np.abs(np.bincount(data.train_labels[:1000]) - 100).max() <= 1
    # The published mean and deviation of the pixels, 0.2860 and 0.3530 of full scale.
    black, white = data.train_inputs.min(), data.train_inputs.max()
    assert 1 / (white - black) == pytest.approx(0.3530, abs=1e-4)
    assert -black / (white - black) == pytest.approx(0.2860, abs=1e-4)


RECORDS = 20


@pytest.fixture
def batches(nowhere, monkeypatch):
    """Six batches of 20 records: record i of batch b is 10 b + i in red, twice that in green, i in blue."""
    monkeypatch.setattr(cifar10, "_RECORDS", RECORDS)
    folder = nowhere / "cifar-10-batches-bin"
    folder.mkdir()
    for b, name in enumerate([*(f"data_batch_{i}.bin" for i in range(1, 6)), "test_batch.bin"]):
        records = [
            bytes([i % 10])
            + bytes([10 * b + i]) * 1024
            + bytes([2 * (10 * b + i)]) * 1024
            + bytes([i]) * 1024
            for i in range(RECORDS)
        ]
        (folder / name).write_bytes(b"".join(records))
    return folder


def test_cifar_records_become_images_with_channels_last(batches):
    data = tasks.Cifar10().load()
    assert data.train_inputs.shape == (100, 32, 32, 3)
    assert data.test_inputs.shape == (20, 32, 32, 3)
    np.testing.assert_array_equal(np.bincount(data.train_labels), [10] * 10)
    red = np.add.outer(10 * np.arange(5), np.arange(RECORDS)).ravel().astype(np.float64)
    blue = np.tile(np.arange(RECORDS), 5)
    expected = np.stack([(red - red.mean()) / red.std()] * 2 + [(blue - blue.mean()) / blue.std()], axis=-1)
    assert np.ptp(data.train_inputs, axis=(1, 2)).max() == 0
    ours = data.train_inputs[:, 0, 0, :]
    np.testing.assert_allclose(ours[np.lexsort(ours.T)], expected[np.lexsort(expected.T)], atol=1e-5)
    # The blue plane tells the record's number, hence its label.
    number = np.rint(ours[:, 2] * blue.std() + blue.mean()).astype(int)
    np.testing.assert_array_equal(number % 10, data.train_labels)
    # The test batch is scaled by the training set's statistics, not its own.
    assert data.test_inputs[..., 0].mean() == pytest.approx((50 + 9.5 - red.mean()) / red.std(), abs=1e-4)


def test_cifar_pixels_keep_their_row_and_column(batches):
    plane = (np.arange(1024) % 251).astype(np.uint8)
    record = bytes([3]) + plane.tobytes() * 3
    (batches / "test_batch.bin").write_bytes(record * RECORDS)
    image = tasks.Cifar10(num_test=1).load().test_inputs[0].astype(np.float64)
    slope, offset = np.polyfit(plane, image[..., 0].ravel(), 1)
    np.testing.assert_allclose(image[..., 0], slope * plane.reshape(32, 32) + offset, atol=1e-4)


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (lambda good: good[:-1], "is truncated: it must have 61460 bytes, got 61459"),
        (lambda good: good[:-3073], "is truncated"),
        (lambda good: good + b"x", "is not a CIFAR-10 batch"),
        (lambda good: b"\x0a" + good[1:], "must hold labels from 0 to 9, got 10"),
    ],
)
def test_a_damaged_cifar_batch_is_refused_by_name(batches, spoil, told):
    path = batches / "data_batch_3.bin"
    path.write_bytes(spoil(path.read_bytes()))
    with pytest.raises(tasks.DataError, match=told) as error:
        tasks.Cifar10().load()
    assert str(path) in str(error.value)
    assert "JAXACT_DATA" in str(error.value)


def test_missing_cifar_says_where_it_looked(nowhere):
    with pytest.raises(FileNotFoundError, match="binary version") as error:
        tasks.Cifar10().load()
    assert f"{nowhere}/cifar-10-batches-bin: no such folder" in str(error.value)
    assert f"{nowhere}: has none of the files" in str(error.value)


def test_means_are_equidistant_at_the_separation():
    task = tasks.GaussianMixture(num_classes=5, dimension=7, separation=30.0, num_train=20_000)
    data = task.load()
    means = np.stack([data.train_inputs[data.train_labels == k].mean(axis=0) for k in range(5)])
    distances = np.linalg.norm(means[:, None] - means[None], axis=-1)[np.triu_indices(5, 1)]
    noise = np.concatenate([data.train_inputs[data.train_labels == k] - means[k] for k in range(5)]).std()
    np.testing.assert_allclose(distances / noise, 30, rtol=0.01)


@pytest.mark.parametrize(("classes", "dimension", "separation"), [(2, 1, 1.5), (4, 3, 2.0), (10, 64, 4.0)])
def test_no_more_than_the_bayes_accuracy_is_reached_and_the_best_rule_reaches_it(
    classes, dimension, separation
):
    num_test = 20_000
    task = tasks.GaussianMixture(
        num_classes=classes, dimension=dimension, separation=separation, num_train=50_000, num_test=num_test
    )
    data = task.load()
    means = np.stack([data.train_inputs[data.train_labels == k].mean(axis=0) for k in range(classes)])
    scores = data.test_inputs @ means.T - 0.5 * np.sum(means**2, axis=1)
    accuracy = np.mean(scores.argmax(axis=1) == data.test_labels)
    bayes = task.bayes_accuracy()
    error = math.sqrt(bayes * (1 - bayes) / num_test)
    assert data.accuracy_ceiling == bayes
    # Estimated means cost well under one per cent here; the sample's error is four standard deviations.
    assert bayes - 4 * error - 0.005 < accuracy < bayes + 4 * error


def test_bayes_accuracy_has_its_known_values():
    for separation in (0.0, 1.0, 3.0):  # two classes: Phi(separation / 2)
        exact = 0.5 * math.erfc(-separation / 2 / math.sqrt(2))
        two = tasks.GaussianMixture(num_classes=2, separation=separation)
        assert two.bayes_accuracy() == pytest.approx(exact, abs=1e-12)
    guess = tasks.GaussianMixture(num_classes=7, separation=0.0)
    assert guess.bayes_accuracy() == pytest.approx(1 / 7, abs=1e-12)
    assert tasks.GaussianMixture(separation=100.0).bayes_accuracy() == pytest.approx(1, abs=1e-12)
    z = np.random.default_rng(0).standard_normal((200_000, 10))
    z[:, 0] += 4 / math.sqrt(2)
    assert tasks.GaussianMixture().bayes_accuracy() == pytest.approx(
        np.mean(z.argmax(axis=1) == 0), abs=0.004
    )


def test_seeds_give_different_problems():
    for kind in (tasks.GaussianMixture, tasks.TeacherStudent):
        one, two = kind(num_train=50, seed=1).build(), kind(num_train=50, seed=2).build()
        assert not np.array_equal(one.train_inputs, two.train_inputs)
        assert not np.array_equal(one.train_inputs[:50], one.test_inputs[:50])


def test_teacher_classes_are_about_equally_frequent():
    data = tasks.TeacherStudent(num_train=20_000).load()
    assert np.bincount(data.train_labels).min() > 20_000 / 10 / 4


def test_label_noise_redraws_its_share_of_the_training_labels_alone():
    clean = tasks.TeacherStudent(num_train=20_000, num_classes=4).load()
    noisy = tasks.TeacherStudent(num_train=20_000, num_classes=4, label_noise=0.4).load()
    np.testing.assert_array_equal(clean.train_inputs, noisy.train_inputs)
    np.testing.assert_array_equal(clean.test_labels, noisy.test_labels)
    changed = np.mean(clean.train_labels != noisy.train_labels)
    expected = 0.4 * 3 / 4
    assert changed == pytest.approx(expected, abs=4 * math.sqrt(expected * (1 - expected) / 20_000))


def test_a_wider_sigma_w_makes_the_teacher_harder_to_follow():
    def agreement(sigma_w):
        """How often a step of 5 % keeps the label: the share of points that lie well inside a region."""
        task = tasks.TeacherStudent(depth=4, sigma_w=sigma_w, num_classes=2)
        weights = task._weights()
        x = np.random.default_rng(0).standard_normal((4000, 32))
        step = 0.05 * np.random.default_rng(1).standard_normal(x.shape)
        here, there = task._logits(weights, x), task._logits(weights, x + step)
        centre = here.mean(axis=0)
        return np.mean((here - centre).argmax(axis=1) == (there - centre).argmax(axis=1))

    assert agreement(0.8) > agreement(2.0) > agreement(6.0)


def test_linear_teacher_is_a_linear_rule():
    data = tasks.TeacherStudent(activation="identity", num_classes=2, num_train=4000).load()
    signs = 2.0 * data.train_labels - 1.0
    direction = np.linalg.lstsq(data.train_inputs, signs, rcond=None)[0]
    agreed = np.mean((data.test_inputs @ direction > 0) == (data.test_labels == 1))
    assert agreed > 0.95


def test_a_constant_teacher_is_refused():
    task = tasks.TeacherStudent(activation="relu", depth=200, sigma_w=0.01)
    with pytest.raises(ValueError, match=r"constant or not finite.*`sigma_w`"):
        task.load()


def test_a_task_of_ones_own_needs_no_registration_and_is_checked():
    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Broken(tasks.Task):
        name = "broken"
        input_shape = (8, 8, 1)
        fault: str = ""

        def build(self):
            good = tasks.Digits(num_train=20, num_test=20).build()
            faults = {
                "": {},
                "dtype": {"test_inputs": good.test_inputs.astype(np.float64)},
                "device": {"test_inputs": jax.numpy.asarray(good.test_inputs)},
                "length": {"train_labels": good.train_labels[:-1]},
                "label": {"num_classes": 9},
                "nan": {"train_inputs": np.full_like(good.train_inputs, np.nan)},
                "shape": vars(good.flat()),
            }
            return dataclasses.replace(good, **{**faults[self.fault], "name": str(self)})

    assert "broken" in tasks.names()
    assert tasks.parse("broken").load().num_classes == 10
    with pytest.raises(TypeError, match=r"broken\(fault='device'\): .* must be NumPy arrays"):
        Broken(fault="device").load()
    with pytest.raises(TypeError, match=r"broken\(fault='dtype'\): `test_inputs` must be float32"):
        Broken(fault="dtype").load()
    with pytest.raises(ValueError, match=r"`train_inputs` must be .* beside n >= 1 labels"):
        Broken(fault="length").load()
    with pytest.raises(ValueError, match=r"labels` must lie in 0\.\.8"):
        Broken(fault="label").load()
    with pytest.raises(ValueError, match="`train_inputs` must be finite"):
        Broken(fault="nan").load()
    with pytest.raises(
        ValueError, match=r"`input_shape` must be that of its inputs, \(64,\), got \(8, 8, 1\)"
    ):
        Broken(fault="shape").load()
