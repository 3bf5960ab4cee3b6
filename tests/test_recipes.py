"""Settings from recipe files and command lines."""

import ml_collections
import pytest

from regionclip_jax import recipes
from regionclip_jax.recipes import defaults, resolve
from regionclip_jax.settings import (
    ConfigError,
    EvaluateSettings,
    EvaluationSettings,
    MixturePart,
    PretrainSettings,
    RunSettings,
    ScenesExperimentSettings,
    TrainClipSettings,
    TrainDetectorSettings,
    TrainLocalizerSettings,
    as_plain,
)

COUNT = "a whole number of at least 1"


def test_defaults_resolve_to_themselves():
    assert resolve(PretrainSettings, defaults(PretrainSettings)) == PretrainSettings()
    assert resolve(EvaluateSettings, defaults(EvaluateSettings)) == EvaluateSettings()


def test_an_optional_key_takes_its_type_and_none():
    config = defaults(PretrainSettings)
    config.regions.regions_per_softmax = 2
    config.regions.images_per_group = None
    resolved = resolve(PretrainSettings, config).regions
    assert resolved.regions_per_softmax == 2 and resolved.images_per_group is None
    with pytest.raises(TypeError, match="str"):
        config.regions.image_text_chunk = "all"
    config.regions.regions_per_softmax = None
    assert resolve(PretrainSettings, config).regions.regions_per_softmax is None


def test_an_unknown_key_is_refused_with_the_nearest_known_key():
    with pytest.raises(ConfigError, match=r"config\.batchsize: .* did you mean 'batch_size'"):
        resolve(RunSettings, {"batchsize": 2})


def test_an_unknown_key_deep_in_a_recipe_is_named_with_its_path():
    config = defaults(PretrainSettings)
    config.regions.num_region = 3
    with pytest.raises(ConfigError, match=r"config\.regions\.num_region: .*'num_regions'"):
        resolve(PretrainSettings, config)


@pytest.mark.parametrize(
    ("section", "key", "now"),
    [
        (PretrainSettings, "regions.num_proposals", "regions.proposals.num_proposals"),
        (PretrainSettings, "regions.roi_align", "regions.roi_align_impl"),
        (EvaluateSettings, "evaluation.nms_threshold", "evaluation.detection.nms.threshold"),
        (EvaluateSettings, "evaluation.temperature", "evaluation.detection.temperature"),
    ],
)
def test_a_key_of_an_earlier_version_fails_with_its_new_name(section, key, now):
    config = defaults(section)
    with pytest.raises(ConfigError, match=rf"config\.{key}: no such key; it is '{now}' now"):
        recipes.assign(section, config, key, "1")
    *parents, name = key.split(".")
    part = config
    for parent in parents:
        part = part[parent]
    part[name] = 1
    with pytest.raises(ConfigError, match=rf"config\.{key}: no such key; it is '{now}' now"):
        resolve(section, config)


def test_all_renamed_keys_lead_to_keys_that_exist():
    roots = {
        "data": TrainDetectorSettings,
        "regions": PretrainSettings,
        "evaluation": EvaluateSettings,
        "detector": TrainDetectorSettings,
        "scenes": ScenesExperimentSettings,
        "model": TrainDetectorSettings,
        "student": PretrainSettings,
        "localizer": TrainLocalizerSettings,
    }
    for old, new in recipes._RENAMED.items():
        section = roots[new.partition(".")[0]]
        config = defaults(section)
        for name in new.split("."):
            config = config[name]
        with pytest.raises(ConfigError, match=f"it is '{new}' now"):
            recipes.assign(section, defaults(section), old, "1")


def test_a_removed_key_is_not_renamed_to_a_key_of_another_section():
    config = defaults(TrainLocalizerSettings)
    with pytest.raises(ConfigError, match=r"evaluation\.embed_from: no such key; there are"):
        recipes.assign(TrainLocalizerSettings, config, "evaluation.embed_from", "crops")
    message = "evaluation.num_proposals: no such key; it is 'evaluation.proposals.num_proposals'"
    with pytest.raises(ConfigError, match=message):
        recipes.assign(TrainLocalizerSettings, config, "evaluation.num_proposals", "3")


def test_a_teacher_has_no_remat_policy():
    config = defaults(PretrainSettings)
    config.teacher.remat = "all"
    with pytest.raises(ConfigError, match=r"config\.teacher\.remat: no such key"):
        resolve(PretrainSettings, config)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_steps": "10"}, rf"config\.num_steps: expected {COUNT}, found '10'"),
        ({"num_steps": 1.5}, rf"config\.num_steps: expected {COUNT}, found 1\.5"),
        ({"num_steps": True}, rf"config\.num_steps: expected {COUNT}, found True"),
        ({"log_every": 0}, rf"config\.log_every: expected {COUNT}, found 0"),
        ({"seed": None}, r"config\.seed: expected a whole number from 0 to 4294967295, found None"),
    ],
)
def test_a_value_of_another_type_is_refused_with_its_key(changes, message):
    with pytest.raises(ConfigError, match=message):
        resolve(RunSettings, changes)


def test_an_unknown_choice_is_refused_with_the_known_choices():
    config = defaults(PretrainSettings)
    for value in ("auto", "float32", "bfloat16"):
        config.student.dtype = value
        assert resolve(PretrainSettings, config).student.dtype == value
    config.student.dtype = "float16"
    message = r"config\.student\.dtype: 'float16' is none of \['auto', 'bfloat16', 'float32'\]"
    with pytest.raises(ConfigError, match=message):
        resolve(PretrainSettings, config)


def test_a_section_that_is_a_value_is_refused():
    with pytest.raises(ConfigError, match=r"config\.run: expected a section"):
        resolve(PretrainSettings, {"run": 3})


def test_keys_that_contradict_each_other_are_refused_with_their_path():
    config = defaults(EvaluateSettings)
    config.evaluation.detection.objectness = "reference"
    message = r"config\.evaluation\.detection\.objectness: 'reference' with regions"
    with pytest.raises(ConfigError, match=message):
        resolve(EvaluateSettings, config)


def test_canvases_are_pairs():
    config = defaults(PretrainSettings)
    config.data.canvas_sizes = ((800,),)
    with pytest.raises(ConfigError, match=r"config\.data\.canvas_sizes: expected 2 values"):
        resolve(PretrainSettings, config)


def test_the_parts_of_a_mixture_are_separate_sections():
    config = defaults(PretrainSettings)
    part = dict(source="coco_folder", path="data/coco", split="train2017", weight=1)
    config.data.mixture = (part, part | {"weight": 2.5})
    parsed = resolve(PretrainSettings, config).data.mixture
    assert [type(p) for p in parsed] == [MixturePart] * 2
    assert [p.weight for p in parsed] == [1.0, 2.5]
    config.data.mixture = (part | {"wieght": 1},)
    with pytest.raises(ConfigError, match=r"data\.mixture\.wieght: .*did you mean 'weight'"):
        resolve(PretrainSettings, config)
    config.data.mixture = ({"source": "coco_folder"},)
    with pytest.raises(ConfigError, match=r"data\.mixture: missing \['path'\]"):
        resolve(PretrainSettings, config)
    recipes.assign(PretrainSettings, config, "data.mixture", repr((part,)))
    assert resolve(PretrainSettings, config).data.mixture[0].split == "train2017"
    config.data.path = "data/coco"
    with pytest.raises(ConfigError, match=r"config\.data\.path: .* beside mixture"):
        resolve(PretrainSettings, config)


def test_json_lists_become_tuples_and_integers_become_floats():
    plain = as_plain(PretrainSettings())
    plain["data"]["canvas_sizes"] = [[800, 1344]]
    plain["optimizer"]["learning_rate"] = 1
    parsed = resolve(PretrainSettings, ml_collections.ConfigDict(plain))
    assert parsed.data.canvas_sizes == ((800, 1344),)
    assert parsed.optimizer.learning_rate == 1.0


def test_config_assignments_are_split_from_other_arguments():
    arguments = ["main", "--config=a.py", "--config.run.seed=3", "--workdir=x"]
    rest, assignments = recipes.split_assignments([*arguments, "--config.data.path", "with space"])
    assert rest == ["main", "--config=a.py", "--workdir=x"]
    assert assignments == ["--config.run.seed=3", "--config.data.path=with space"]
    with pytest.raises(ConfigError, match="--config.run.seed: expected a value"):
        recipes.split_assignments(["--config.run.seed"])


@pytest.mark.parametrize(
    ("key", "text", "message"),
    [
        ("run.seed", "abc", r"config\.run\.seed: expected a whole number .*, found 'abc'"),
        ("run", "3", r"config\.run: has keys of its own, set one of \['batch_size'"),
        ("run.seed.x", "3", r"config\.run\.seed\.x: 'seed' has no keys of its own"),
        ("data.group_by_canvas", "yes", "expected true or false, found 'yes'"),
        ("run.seeds", "3", r"config\.run\.seeds: no such key; did you mean 'seed'"),
    ],
)
def test_an_invalid_assignment_is_refused_with_its_key(key, text, message):
    config = defaults(TrainClipSettings)
    with pytest.raises(ConfigError, match=message):
        recipes.assign(TrainClipSettings, config, key, text)


def test_models_of_an_evaluation_are_added_by_name():
    config = defaults(EvaluateSettings)
    recipes.assign(EvaluateSettings, config, "models.teacher", "a=b/model")
    models = resolve(EvaluateSettings, config).models
    assert models == {"student": "workdir/model", "teacher": "a=b/model"}


def test_a_recipe_file_of_the_user_is_read_and_its_errors_are_one_line(tmp_path):
    file = tmp_path / "own.py"
    file.write_text(
        "from regionclip_jax.recipes import defaults\n"
        "from regionclip_jax.settings import TrainClipSettings\n\n"
        "def get_config(name='short'):\n"
        "    config = defaults(TrainClipSettings)\n"
        "    config.run.num_steps = {'short': 5000}[name]\n"
        "    return config\n"
    )
    assert recipes.read(str(file)).run.num_steps == 5000
    assert recipes.read(f"{file}:short", ["--config.run.num_steps=7000"]).run.num_steps == 7000
    with pytest.raises(ConfigError, match=r"own\.py: 'long' .*line 6"):
        recipes.read(f"{file}:long")
    file.write_text("x = 1\n")
    with pytest.raises(ConfigError, match="has no function get_config"):
        recipes.load(str(file))
    with pytest.raises(ConfigError, match=r"nowhere\.py' cannot be read"):
        recipes.load(str(tmp_path / "nowhere.py"))
    file.write_text("def get_config():\n    return {}\n")
    with pytest.raises(ConfigError, match="expected a ConfigDict"):
        recipes.load(str(file))


def test_contradictory_evaluation_settings_are_refused():
    with pytest.raises(ConfigError, match=r"window_sides: \(\), expected shares"):
        EvaluationSettings(regions="windows")
