"""What a recipe holds beside its own settings: the mapping `smoke`, which makes it tiny, and named `variants` of it.

An overlay says only what differs. So the recipe that is tried out with `--smoke` is the recipe itself: its optimizer,
schedule, adapter and precision are those of the real run, unless the mapping says otherwise.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from gradscale.options import nearest
from gradscale.training.arguments import DATA_DETAILS, DATA_SOURCES, MODEL_SOURCES
from gradscale.training.errors import ConfigError
from gradscale.training.output_folder import default_output_dir
from gradscale.training.yaml_file import Setting, as_setting

SMOKE, VARIANT, VARIANTS = "smoke", "variant", "variants"
KEYS = (SMOKE, VARIANT, VARIANTS)

# A smoke run is thrown away: it runs everywhere, tells nobody, draws nothing, and replaces the one before.
_SMOKE_DEFAULTS = {"use_cpu": "true", "report_to": "none", "plot": "false", "overwrite_output_dir": "true"}


def with_overlays(
    config: str, from_file: Mapping[str, Setting], given: Mapping[str, Setting], *, known: Collection[str]
) -> tuple[dict[str, Setting], dict[str, Setting]]:
    """Lay what the command line asks for, by `--variant` and `--smoke`, over the settings of the file.

    Variants come in the order in which they are named, and `smoke` last. Mappings (`optim_args`, `model_config`, ...)
    are merged key by key, as `over` says; everything else is replaced. Where no overlay says so, `output_dir` gets
    their names.

    Args:
        config: path of the YAML file.
        from_file: settings of the file.
        given: settings of the command line.
        known: names of all keys.

    Returns:
        The settings of the file, and those of the command line, both without the keys that are read here.

    Raises:
        ConfigError: an overlay is no mapping, names a key that does not exist or that cannot differ, or is not there.
    """
    file = {name: setting for name, setting in from_file.items() if name not in (SMOKE, VARIANTS)}
    own = {name: setting for name, setting in given.items() if name not in (SMOKE, VARIANT)}
    variants = {
        name: _settings(value, f"{from_file[VARIANTS].origin}, variants, {name}", known)
        for name, value in _mapping(from_file.get(VARIANTS)).items()
    }
    if SMOKE in variants:
        raise ConfigError(
            f"{from_file[VARIANTS].origin}: a variant cannot be called {SMOKE}: the mapping stands beside"
        )
    smoke = _settings(_mapping(from_file.get(SMOKE)), f"{_origin(from_file.get(SMOKE))}, smoke", known)

    chosen = {name: variants[name] for name in _chosen(config, given.get(VARIANT), variants)}
    if _switch(given.get(SMOKE)):
        if not smoke:
            raise ConfigError(f"{config} has no mapping smoke, which says how --smoke makes the recipe tiny")
        defaults = {name: Setting(value, "--smoke") for name, value in _SMOKE_DEFAULTS.items() if name in known}
        chosen[SMOKE] = {**defaults, **smoke}
    for overlay in chosen.values():
        file = over(file, overlay)
    if chosen and not any("output_dir" in overlay for overlay in chosen.values()):
        folder = file.get("output_dir")
        base = default_output_dir(config) if folder is None or folder.value is None else folder.value
        file["output_dir"] = Setting("_".join([str(base), *chosen]), ", ".join(chosen))
    return file, own


def over(below: Mapping[str, Setting], above: Mapping[str, Setting]) -> dict[str, Setting]:
    """Return settings with others laid over them.

    Mappings are merged, null takes an entry away, and a source of data, or of the model, replaces all others. A key
    that is null stays so under a mapping: what refines the options of SGG says nothing to a variant that has none.
    """
    kept = without_replaced(below, above)
    for name, setting in above.items():
        under = kept.get(name)
        if isinstance(setting.value, dict) and under is not None:
            if under.value is None:
                continue
            if isinstance(under.value, dict):
                setting = Setting(_merged(under.value, setting.value), setting.origin)
        kept[name] = setting
    return kept


def _merged(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in {**below, **above}.items() if name not in above or value is not None}


def without_replaced(below: Mapping[str, Setting], above: Mapping[str, Setting]) -> dict[str, Setting]:
    """Return the settings below without the source of data, or of the model, that one above replaces."""
    kept = dict(below)
    for sources in (MODEL_SOURCES, DATA_SOURCES):
        if any(name in above for name in sources):
            for source in (name for name in sources if name not in above):
                for name in (source, *DATA_DETAILS.get(source, ())):
                    kept.pop(name, None)
    return kept


def _settings(value: Any, origin: str, known: Collection[str]) -> dict[str, Setting]:
    if not isinstance(value, dict):
        raise ConfigError(f"{origin}={value!r} is not allowed: expected a mapping of keys to values")
    settings = {str(name).replace("-", "_"): as_setting(item, origin) for name, item in value.items()}
    for name in settings:
        if name in ("task", *KEYS):
            raise ConfigError(f"{origin}: {name} is not allowed in it")
        if name not in known:
            raise ConfigError(f"{origin}: unknown key {name!r}{nearest(name, known)}")
    return settings


def _mapping(setting: Setting | None) -> dict[str, Any]:
    if setting is None or setting.value is None:
        return {}
    if not isinstance(setting.value, dict):
        raise ConfigError(f"{setting.origin}: {setting.value!r} is not allowed: expected a mapping")
    return {str(name): value for name, value in setting.value.items()}


def _origin(setting: Setting | None) -> str:
    return "" if setting is None else setting.origin


def _chosen(config: str, setting: Setting | None, variants: Mapping[str, Any]) -> list[str]:
    if setting is None or setting.value is None:
        return []
    value = setting.value
    names = value if isinstance(value, list) else [] if value is True else str(value).split(",")
    listed = ", ".join(variants) or "none"
    if not names:
        raise ConfigError(f"{setting.origin}: variant=nothing is not allowed: {config} has {listed}")
    for name in names:
        if name not in variants:
            hint = nearest(str(name), variants)
            raise ConfigError(f"{setting.origin}: variant={name!r} is not allowed: {config} has {listed}{hint}")
        if names.count(name) > 1:
            raise ConfigError(f"{setting.origin}: variant={name!r} is named twice")
    return list(names)


def _switch(setting: Setting | None) -> bool:
    if setting is None:
        return False
    if setting.value is True or str(setting.value).lower() in ("true", "false"):
        return setting.value is True or setting.value.lower() == "true"
    raise ConfigError(f"{setting.origin}: smoke={setting.value!r} is not allowed: it takes no value")
