from bids_dl import config as configuration
from bids_dl import training
from bids_dl.settings import settings_for


def test_wishes_of_the_user_win_over_the_models_schedule():
    definition = training.define("mlp", [(5,)], 1, {})
    given = {"bids_dir": "a", "output_dir": "b", "analysis_level": "group", "random_seed": 7}
    plain = settings_for(definition, configuration.from_mapping(given))
    asked = settings_for(definition, configuration.from_mapping(
        {**given, "training": {"n_epochs": 3, "weight_decay": 0.0, "class_weights": False, "precision": "bf16"}}
    ))  # fmt: skip
    from bids_dl.models.mlp import SCHEDULE

    assert {key: getattr(plain, key) for key in SCHEDULE} == SCHEDULE
    assert (plain.seed, plain.class_weights) == (7, True)
    assert (asked.n_epochs, asked.weight_decay, asked.class_weights) == (3, 0.0, False)
    assert (plain.precision, asked.precision) == ("auto", "bf16")
    assert asked.patience == plain.patience
