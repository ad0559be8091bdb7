from pathlib import Path

import pytest

from atlasvi.engine.model.model_options import Freezing
from atlasvi.engine.training.settings import (
    SettingError,
    Settings,
    atlas_decay,
    atlas_rate,
    choose_batch_size,
    choose_evaluation_cells,
    heuristic_epochs,
    parse_settings,
    resolve_schedule,
    resolve_settings,
    warn_of_few_steps,
)
from atlasvi.loaders.errors import AtlasviError


def test_the_defaults_are_the_model_card_and_scvi_tools_optimizer():
    settings = resolve_settings()
    assert (settings.n_hidden, settings.n_latent, settings.n_layers, settings.dropout_rate) == (128, 20, 3, 0.05)
    resolved = resolve_schedule(settings, 1_000)
    assert (resolved.learning_rate, resolved.adam_eps, resolved.weight_decay) == (1e-3, 0.01, 1e-6)
    assert (settings.batch_size, settings.validation_fraction, settings.early_stopping_patience) == (128, 0.1, 45)


def test_values_are_read_as_what_they_look_like():
    assert parse_settings(["n_latent=10", "learning_rate=1e-4", "early_stopping=false", "keep=last"]) == {
        "n_latent": 10,
        "learning_rate": 1e-4,
        "early_stopping": False,
        "keep": "last",
    }


@pytest.mark.parametrize("assignment", ["n_latent", "", "n_latent:10"])
def test_an_assignment_without_an_equals_sign_is_explained(assignment: str):
    with pytest.raises(SettingError, match="KEY=VALUE"):
        parse_settings([assignment])


def test_every_setting_can_be_set_from_text():
    for name, field in Settings.model_fields.items():
        if name == "freezing":  # comes with the model that a run starts from
            continue
        decided = {
            "optimizer": "AdamW",
            "decayed": "weights",
            "learning_rate_warmup": 0.25,
            "learning_rate_decay": 0.25,
            "adam_beta2": 0.25,
            "initial_weights": "sample",
        }
        value = field.default if field.default is not None else decided.get(name, 3)
        text = str(value).lower() if isinstance(value, bool) else str(value)
        assert getattr(resolve_settings(None, parse_settings([f"{name}={text}"])), name) == value


def test_what_comes_later_wins_and_none_changes_nothing(tmp_path: Path):
    file = tmp_path / "run.toml"
    file.write_text("n_latent = 12\nkl_warmup_epochs = 5\n")
    settings = resolve_settings(file, {"n_latent": 14, "epochs": None}, {"epochs": 7})
    assert (settings.n_latent, settings.kl_warmup_epochs, settings.epochs) == (14, 5, 7)


def test_an_unknown_key_is_named_with_those_that_are_near():
    with pytest.raises(SettingError, match=r"no setting 'kl_warmup'; did you mean .*kl_warmup_epochs"):
        resolve_settings(None, {"kl_warmup": 5})
    with pytest.raises(SettingError, match="no setting 'zzz'; there are: n_hidden, n_latent"):
        resolve_settings(None, {"zzz": 5})


@pytest.mark.parametrize(
    ("key", "value"),
    [("n_latent", 0), ("n_latent", "many"), ("learning_rate", -1), ("dropout_rate", 1.0), ("keep", "first")],
)
def test_a_value_that_cannot_be_is_named_with_its_key(key: str, value: object):
    with pytest.raises(SettingError, match=f"{key} = {value!r}"):
        resolve_settings(None, {key: value})


def test_a_config_file_that_cannot_be_read_is_named(tmp_path: Path):
    with pytest.raises(SettingError, match=r"nowhere\.toml"):
        resolve_settings(tmp_path / "nowhere.toml")
    (tmp_path / "broken.toml").write_text("n_latent = = 3")
    with pytest.raises(SettingError, match=r"broken.toml: not a TOML file"):
        resolve_settings(tmp_path / "broken.toml")
    (tmp_path / "binary.toml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(AtlasviError, match=r"binary.toml"):
        resolve_settings(tmp_path / "binary.toml")


def test_settings_do_not_change_once_they_are_resolved():
    with pytest.raises(ValueError, match="frozen"):
        resolve_settings().n_latent = 3  # type: ignore[misc]


@pytest.mark.parametrize(
    ("n_cells", "epochs"), [(1, 400), (20_000, 400), (40_000, 200), (20_259, 395), (10**6, 8), (10**8, 1)]
)
def test_the_number_of_epochs_follows_scvi_tools(n_cells: int, epochs: int):
    assert heuristic_epochs(n_cells) == epochs


def warmup(n_train: int = 1_000, **given: int) -> tuple[int | None, int | None]:
    """Epochs and steps of the KL warm-up of a run over so many cells, 128 per minibatch: 8 steps per epoch."""
    resolved = resolve_schedule(Settings(**given), n_train)
    return resolved.kl_warmup_epochs, resolved.kl_warmup_steps


@pytest.mark.parametrize("epochs", [4, 5, 8, 100, 400, 2_000])
def test_a_run_of_more_than_three_epochs_warms_up_by_epochs_over_half_of_them(epochs: int):
    assert warmup(epochs=epochs) == (min(400, epochs // 2), None)


@pytest.mark.parametrize("epochs", [1, 2, 3])
def test_a_run_of_few_epochs_warms_up_by_steps_over_all_of_them(epochs: int):
    assert warmup(epochs=epochs) == (0, 8 * epochs)
    assert warmup(epochs=epochs, accumulate=3) == (0, 3 * epochs)
    assert warmup(epochs=epochs, max_steps=5) == (0, 5)
    assert warmup(10**8)[1] == warmup(10**8, epochs=1)[1] == 781_250  # an atlas gets one epoch


def test_a_recipe_fills_in_what_is_not_set():
    theirs = resolve_schedule(Settings(), 10**6)
    assert (theirs.learning_rate, theirs.initial_weights, theirs.learning_rate_decay) == (1e-3, "random", 0)
    ours = resolve_schedule(Settings(recipe="atlas", batch_size=1024, adam_eps=1e-6), 10**6)
    assert (ours.learning_rate, ours.initial_weights, ours.learning_rate_decay) == (0.004, "sample", 0.3)
    assert (ours.optimizer, ours.adam_eps, ours.adam_beta2) == ("AdamW", 1e-6, 0.99)
    assert ours.weight_decay == pytest.approx(atlas_decay(8) / (0.004 * 8 * 977))  # of so many cells, 8 epochs
    assert [atlas_decay(epochs) for epochs in (1, 10, 350)] == [2, 3, 50]  # forgotten after 7 epochs at the latest
    assert resolve_schedule(Settings(recipe="atlas", max_steps=10), 10**6).weight_decay > 100
    assert resolve_schedule(Settings(recipe="atlas", optimizer="Adam"), 10**6).weight_decay == 1e-6
    assert atlas_rate(512 * 4) == atlas_rate(2048) < atlas_rate(2**14) == atlas_rate(2**20) == 0.016
    assert resolve_schedule(Settings(recipe="atlas", batch_size=4096), 256 * 100).learning_rate == 0.002  # 256 a step


def test_minibatches_are_made_smaller_where_an_epoch_or_a_run_would_have_too_few_steps():
    def choose(n_train: int, **given: object) -> int:
        return choose_batch_size(resolve_schedule(Settings(**{"recipe": "atlas", **given}), n_train), n_train)

    assert choose(900_000, epochs=1, batch_size=4096) == 4096
    assert choose(900_000, epochs=1, batch_size=16_384) == 4_500  # 200 steps in all
    assert choose(900_000, epochs=4, batch_size=16_384) == 9_000  # 100 in each epoch
    assert choose(24_000, epochs=400, batch_size=1024) == 24_000 // 100
    assert choose(40_000, epochs=400, batch_size=1024, accumulate=2) == 40_000 // 200
    assert choose(1_645, epochs=400, batch_size=1024) == 128
    assert choose(1_645, epochs=400, batch_size=64) == 64
    assert choose(1_645, epochs=400, batch_size=1024, least_steps_an_epoch=0) == 1024
    assert choose(1_645, epochs=400, batch_size=1024, recipe="scvi-tools") == 1024
    assert choose(1_645, epochs=400, batch_size=1024, recipe="scvi-tools", least_steps_an_epoch=4) == 411


def test_minibatches_that_leave_too_few_steps_are_warned_of_with_what_would_do():
    def warn(n_train: int, **given: object) -> str | None:
        return warn_of_few_steps(resolve_schedule(Settings(**given), n_train), n_train)

    assert warn(900_000, epochs=1, batch_size=4096) is None  # 220 steps
    said = warn(900_000, epochs=1, batch_size=16_384)
    assert said is not None
    assert "1 epoch of 900,000 cells are 55 steps of 16,384 cells" in said
    assert "make a step of 4,096 cells or fewer" in said
    assert warn(900_000, epochs=4, batch_size=16_384) is None
    assert warn(900_000, epochs=1, batch_size=4096, accumulate=2) is not None
    assert warn(1_000, epochs=1) is None  # 8 steps: smaller minibatches than 128 are not advised
    assert warn(900_000, epochs=1, batch_size=16_384, max_steps=10) is None  # that few were asked for
    assert warn(900_000, epochs=1, batch_size=16_384, freezing=Freezing()) is None  # a query is mapped


@pytest.mark.parametrize(
    ("n_held_out", "asked", "n"),
    [(0, None, 10_000), (3, None, 1_000), (3_000, None, 3_000), (10**6, None, 10**5), (3, 5, 5)],
)
def test_as_many_training_cells_as_are_held_out_are_evaluated_at_the_end(n_held_out: int, asked: int | None, n: int):
    assert choose_evaluation_cells(Settings(evaluation_cells=asked), n_held_out) == n


def test_a_warm_up_that_was_asked_for_stays_as_it_is():
    assert warmup(epochs=1, kl_warmup_epochs=0) == (0, None)
    assert warmup(epochs=1, kl_warmup_epochs=1) == (1, None)
    assert warmup(epochs=1, kl_warmup_steps=3) == warmup(epochs=100, kl_warmup_steps=3) == (0, 3)
    assert warmup(epochs=100, kl_warmup_epochs=7, kl_warmup_steps=3) == (7, 3)
    saved = resolve_schedule(Settings(epochs=2), 1_000)
    assert resolve_schedule(Settings.model_validate(saved.model_dump()), 1_000) == saved  # a run that is resumed
