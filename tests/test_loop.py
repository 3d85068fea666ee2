import threading
import time

import numpy as np
import pytest
import torch
from trained import as_trained, cohort, split_of, train

from bids_dl import building, training
from bids_dl import loop as loops
from bids_dl.errors import UsageError
from bids_dl.settings import Settings


@pytest.mark.parametrize(("model", "feature"), [("mlp", "edges"), ("mlp", "columns"), ("cnn3d", "volume")])
def test_kept_weights_are_those_of_the_best_epoch(model, feature):
    """Training far too fast: the last epoch is worse than an earlier one, whose loss the kept weights have."""
    data = cohort(effect=0.5)
    split = split_of(data)
    fitted = train(
        model, feature, data, split, n_epochs=40, patience=5, learning_rate=0.1, n_members=1, class_weights=False
    )
    losses = [row["validation_loss"] for row in fitted.history]
    p = as_trained(fitted, data, split.validation)[:, 1]
    y = data.target.values[split.validation]
    kept = -np.mean(y * np.log(p) + (1 - y) * np.log(1 - p))
    assert losses[-1] > min(losses)
    assert kept <= min(losses) + 1e-4
    assert len(losses) < 40


def test_training_stops_after_its_patience():
    data = cohort()
    fitted = train("mlp", "columns", data, split_of(data), n_epochs=60, patience=3, learning_rate=0.3, n_members=1)
    losses = [row["validation_loss"] for row in fitted.history]
    assert len(losses) <= int(np.argmin(losses)) + 3 + 2


def test_a_loss_that_leaps_at_first_and_then_falls_is_waited_for():
    """The first steps carry the loss far above the untrained network's: it falls from there, and is not given up."""
    told = [0.7, 3.0, 2.5, 2.0, 1.5, 1.0, 0.8, 0.6, 0.9, 0.8, 0.7]
    module, y = torch.nn.Linear(1, 1), torch.zeros(4)
    settings = Settings(n_epochs=20, patience=2, batch_size=4, device="cpu")
    run = loops.Loop(module, settings, lambda out, y: out.square().mean(), None, seed=0)
    run.evaluate = lambda rows, y: told.pop(0)
    history = run.run(lambda at: (torch.ones(len(at), 1),), y, lambda at: (), y)
    assert [row["validation_loss"] for row in history] == [3.0, 2.5, 2.0, 1.5, 1.0, 0.8, 0.6, 0.9, 0.8, 0.7]
    assert run.best == 0.6


def test_one_participant_at_a_time_is_refused_where_a_network_normalises_over_them():
    def trained(*layers):
        module, y = torch.nn.Sequential(*layers, torch.nn.Linear(2, 1)), torch.zeros(4)
        settings = Settings(n_epochs=1, batch_size=1, device="cpu")
        run = loops.Loop(module, settings, lambda out, y: out.square().mean(), None, seed=0)
        return run.run(lambda at: (torch.ones(len(at), 2),), y, lambda at: (torch.ones(len(at), 2),), y)

    with pytest.raises(
        UsageError, match=r"training.batch_size is 1, and this network normalises over the batch; give at"
    ):
        trained(torch.nn.BatchNorm1d(2))
    assert len(trained(torch.nn.LayerNorm(2))) == 1


@pytest.mark.parametrize(
    ("told", "epoch"), [([float("nan")], 0), ([0.7, 0.6, float("nan")], 1), ([0.7, float("inf")], 0)]
)
def test_a_validation_loss_that_stops_being_a_number_ends_the_training(told, epoch):
    """The loss on the training rows is taken before each step: after the last one, weights may be no numbers already."""
    module, y = torch.nn.Linear(1, 1), torch.zeros(4)
    settings = Settings(n_epochs=2, patience=2, batch_size=4, device="cpu")
    run = loops.Loop(module, settings, lambda out, y: out.square().mean(), None, seed=0)
    run.evaluate = lambda rows, y: told.pop(0)
    with pytest.raises(
        FloatingPointError, match=f"the validation loss became (nan|inf) in epoch {epoch}; look for extreme"
    ):
        run.run(lambda at: (torch.ones(len(at), 1),), y, lambda at: (), y)


class InterruptionError(Exception):
    pass


def loop(checkpoint, rows, seed=0, learning_rate=1e-2, precision="auto"):
    """One network's loop over three columns, from the same first weights."""
    torch.manual_seed(seed)
    module = building.instantiate(training.define("mlp", [(3,)], 1, {"hidden": [4]}))
    asked = {"learning_rate": learning_rate, "precision": precision}
    settings = Settings(n_epochs=14, patience=50, batch_size=8, device="cpu", **asked)
    squared = torch.nn.functional.mse_loss
    run = loops.Loop(module, settings, lambda out, y: squared(out[:, 0], y), checkpoint, seed=seed)
    x, y = torch.randn(30, 3), torch.randn(30)
    history = run.run(lambda at: (rows(x, at),), y[:20], lambda at: (x[20:][at],), y[20:])
    return module.state_dict(), history


@pytest.fixture
def path(tmp_path):
    """The checkpoint of a training that was interrupted in its eighth epoch."""
    rows_read = []

    def stops_in_epoch_8(x, at):
        rows_read.append(len(at))
        if sum(rows_read) > 20 * 7 + 10:
            raise InterruptionError
        return x[at]

    with pytest.raises(InterruptionError):
        loop(tmp_path / "member-0.pt", stops_in_epoch_8)
    return tmp_path / "member-0.pt"


def test_interrupted_training_resumes_to_the_same_result(path):
    whole = loop(None, lambda x, at: x[at])
    assert path.is_file()
    rows_read = []
    resumed = loop(path, lambda x, at: rows_read.append(len(at)) or x[at])
    assert sum(rows_read) == 20 * (14 - loops.CHECKPOINT_EVERY)
    assert resumed[1] == whole[1]
    assert all(torch.equal(resumed[0][key], whole[0][key]) for key in whole[0])


def test_checkpoint_of_other_settings_is_not_resumed(path):
    whole = loop(None, lambda x, at: x[at], learning_rate=1e-4)
    resumed = loop(path, lambda x, at: x[at], learning_rate=1e-4)
    assert all(torch.equal(resumed[0][key], whole[0][key]) for key in whole[0])


def test_checkpoint_of_another_precision_is_not_resumed(path, monkeypatch):
    """Nor one of "auto", where that now is another: on a machine with a GPU."""
    whole = loop(None, lambda x, at: x[at], precision="bf16")
    rows_read = []
    monkeypatch.setattr(loops, "precision_of", lambda settings: "bf16-mixed")
    resumed = loop(path, lambda x, at: rows_read.append(len(at)) or x[at])
    assert sum(rows_read) == 20 * 14
    assert resumed[1] == whole[1]


def test_finished_training_leaves_no_checkpoint(tmp_path):
    data = cohort()
    train("mlp", "columns", data, split_of(data), checkpoint=tmp_path)
    assert not list(tmp_path.rglob("*.pt"))


def test_large_rows_go_through_a_network_a_few_at_a_time():
    assert loops.n_together(lambda at: (torch.zeros(len(at), 10),)) == loops.MOST_TOGETHER
    assert loops.n_together(lambda at: (torch.zeros(len(at), 2**21),)) == 4
    assert loops.n_together(lambda at: (torch.zeros(len(at), 2**24),)) == 1


def trained_on(rows, *, reads_ahead, n_epochs=3):
    """Weights and history of a network of three columns whose 20 training rows come from ``rows``, in batches of four."""
    torch.manual_seed(0)
    module = torch.nn.Linear(3, 1)
    x, y = torch.randn(30, 3), torch.randn(30)
    settings = Settings(n_epochs=n_epochs, batch_size=4, device="cpu")
    squared = torch.nn.functional.mse_loss
    run = loops.Loop(module, settings, lambda out, y: squared(out[:, 0], y), None, seed=0, reads_ahead=reads_ahead)
    history = run.run(lambda at: (rows(x, at),), y[:20], lambda at: (x[20:][at],), y[20:])
    return module.weight.detach(), history


def readers():
    return [t for t in threading.enumerate() if t.name.startswith("ThreadPoolExecutor")]


def test_rows_read_ahead_give_the_same_result_whatever_the_timing():
    delays = np.random.default_rng(0)

    def slowly(x, at):
        time.sleep(delays.uniform(0, 0.005))
        return x[at]

    weights, history = trained_on(lambda x, at: x[at], reads_ahead=False)
    for _ in range(3):
        found = trained_on(slowly, reads_ahead=True)
        assert torch.equal(found[0], weights)
        assert found[1] == history
    assert not readers()


def test_just_one_batch_is_read_while_another_is_trained_on(monkeypatch):
    """Each step waits for the next batch to be read; if nothing read ahead, it would wait in vain."""
    read, came_in_time, step = [], [], loops.Loop._training_loss
    arrived = threading.Condition()

    def noted(x, at):
        with arrived:
            read.append(threading.get_ident())
            arrived.notify()
        return x[at]

    def waiting(self, inputs, y):
        n = min(len(came_in_time) + 2, 5)
        with arrived:
            came_in_time.append(arrived.wait_for(lambda: len(read) >= n, timeout=5))
        time.sleep(0.01)  # a second one has time to come
        assert len(read) == n
        return step(self, inputs, y)

    monkeypatch.setattr(loops.Loop, "evaluate", lambda *_: 0.5)
    monkeypatch.setattr(loops.Loop, "_training_loss", waiting)
    trained_on(noted, reads_ahead=True, n_epochs=1)
    assert came_in_time == [True] * 5
    assert threading.get_ident() not in read


@pytest.mark.parametrize("reads_ahead", [False, True])
def test_what_fails_in_reading_or_in_training_is_raised_and_leaves_no_thread(monkeypatch, reads_ahead):
    reads = []

    def stops_at_the_third(x, at):
        reads.append(at)
        if len(reads) == 3:
            raise InterruptionError("unreadable")
        return x[at]

    def stops(self, inputs, y):
        raise InterruptionError("untrainable")

    with pytest.raises(InterruptionError, match="unreadable"):
        trained_on(stops_at_the_third, reads_ahead=reads_ahead)
    assert not readers()
    monkeypatch.setattr(loops.Loop, "_training_loss", stops)
    with pytest.raises(InterruptionError, match="untrainable") as caught:
        trained_on(lambda x, at: x[at], reads_ahead=reads_ahead)
    assert not readers()  # though the traceback still holds the loop's frames
    assert caught.tb is not None


@pytest.mark.parametrize(
    ("asked", "device", "has_gpu", "expected"),
    [
        ("auto", "auto", False, "32-true"),
        ("auto", "auto", True, "bf16-mixed"),
        ("auto", "cpu", True, "32-true"),
        ("32", "auto", True, "32-true"),
        ("bf16", "cpu", False, "bf16-mixed"),
    ],
)
def test_bfloat16_is_for_who_asks_and_for_gpus_that_have_it(monkeypatch, asked, device, has_gpu, expected):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: has_gpu)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **_: True)
    assert loops.precision_of(Settings(precision=asked, device=device)) == expected
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **_: False)
    assert loops.precision_of(Settings(precision="auto", device=device)) == "32-true"


def test_gradients_of_a_convolution_are_right_in_bfloat16_on_the_cpu():
    """oneDNN leaves a part of these gradients unwritten: what was in memory before stands there, here NaN."""
    x, y = torch.randn(20, 16, 2, 2, 2), torch.randn(20)

    def loss(out, y):
        for _ in range(4):
            torch.full((16 * 16 * 27,), float("nan")), torch.full((16 * 16 * 27,), float("nan"), dtype=torch.bfloat16)
        return torch.nn.functional.mse_loss(out[:, 0], y)

    found = []
    for precision in ("32", "bf16"):
        torch.manual_seed(0)
        layers = torch.nn.Conv3d(16, 16, 3, padding=1), torch.nn.Flatten(), torch.nn.Linear(128, 1)
        settings = Settings(n_epochs=5, patience=50, batch_size=8, device="cpu", precision=precision)
        run = loops.Loop(torch.nn.Sequential(*layers), settings, loss, None, seed=0)
        found.append([row["train_loss"] for row in run.run(lambda at: (x[at],), y, lambda at: (x[at],), y)])
    np.testing.assert_allclose(found[1], found[0], rtol=0.02)
    assert found[1] != found[0]
    assert torch.backends.mkldnn.enabled
