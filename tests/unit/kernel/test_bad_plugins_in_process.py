"""The ways in which a plugin can be bad: what choosing it says, and that nobody else notices it."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from celeriac.exceptions import (
    ImproperlyConfigured,
    PluginAmbiguous,
    PluginBlocked,
    PluginBroken,
    PluginError,
    PluginIncompatible,
    PluginNotFound,
    Unsupported,
)
from celeriac.kernel.discovery import Catalog, catalog
from celeriac.kernel.kernel import Kernel
from celeriac.kernel.shape import find_faults

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

if TYPE_CHECKING:
    from tests.conftest import FakeSite

PLUGINS = Path(__file__).resolve().parents[3] / "plugins"

HOOK = "@hookimpl\ndef celeriac_make_serializer(name):\n    "
TOP = "from celeriac.spec import hookimpl\nCELERIAC_API = (1, 0)\n"


def serializer(fake_site: FakeSite, source: str, **options: Any) -> Any:
    """Install this source as the serializer `bad`, and choose it."""
    fake_site.install("serializer", "bad", source, dist="acme-bad", version="2.5", **options)
    return Kernel({}).make_serializer("bad")


def broker(fake_site: FakeSite, old: str, new: str) -> Any:
    """Install a good broker with one change, and choose it."""
    good = fake_site.good["broker"]
    assert old in good
    source = good.replace(old, new)
    fake_site.install("broker", "bad", source, dist="acme-bad", version="2.5")
    return Kernel({}).make_transport("bad://")


def broken(*texts: str) -> Any:
    """Expect a `PluginBroken` that names the plugin, its dist with version, and these."""
    parts = ["bad", re.escape("acme-bad 2.5"), *texts]
    return pytest.raises(PluginBroken, match="".join(f"(?=.*{part})" for part in parts))


# -- it cannot be imported --------------------------------------------------------------------------------


def test_one_that_needs_a_missing_module_says_which(fake_site: FakeSite) -> None:
    with broken("'a_module_nobody_has', which is not installed", "pip install --force-reinstall acme-bad"):
        serializer(fake_site, "import a_module_nobody_has")


def test_one_that_raises_at_import_says_what_and_where(fake_site: FakeSite) -> None:
    with broken("ZeroDivisionError: division by zero", r"fake_plugin_\d+\.py:2"):
        serializer(fake_site, "\n1 / 0")


def test_one_that_ends_the_process_at_import_does_not(fake_site: FakeSite) -> None:
    with broken("SystemExit: 3"):
        serializer(fake_site, "raise SystemExit(3)")


def test_one_that_raises_an_odd_base_exception_at_import_is_broken_too(fake_site: FakeSite) -> None:
    with broken("GeneratorExit"):
        serializer(fake_site, "raise GeneratorExit")


def test_ctrl_c_during_an_import_is_not_taken_for_the_plugins_fault(fake_site: FakeSite) -> None:
    with pytest.raises(KeyboardInterrupt):
        serializer(fake_site, "raise KeyboardInterrupt")


def test_one_with_a_syntax_error_says_where(fake_site: FakeSite) -> None:
    with broken("SyntaxError", r"fake_plugin_\d+\.py:1"):
        serializer(fake_site, "def (:")


def test_one_whose_entry_point_names_a_missing_module_says_so(fake_site: FakeSite) -> None:
    with broken("names the module not_there, which does not exist"):
        serializer(fake_site, "", target="not_there")


def test_one_whose_entry_point_names_a_missing_attribute_says_so(fake_site: FakeSite) -> None:
    with broken("names json:not_there, but json has no such attribute"):
        serializer(fake_site, "", target="json:not_there")


def test_one_whose_entry_point_makes_no_sense_says_so(fake_site: FakeSite) -> None:
    # Older versions of importlib_metadata refuse the whole distribution.
    told = r"acme-bad 2.5.*'not a module!' is not of the form|entry points of acme_bad-2.5.dist-info cannot be read"
    with pytest.raises(PluginError, match=told):
        serializer(fake_site, "", target="not a module!")


# -- its hooks --------------------------------------------------------------------------------------------


def test_one_without_a_hook_is_told_which_is_missing(fake_site: FakeSite) -> None:
    with broken("has no hook celeriac_make_serializer"):
        serializer(fake_site, "CELERIAC_API = (1, 0)")


def test_one_whose_hook_is_not_marked_is_told_how(fake_site: FakeSite) -> None:
    with broken("not marked with @hookimpl"):
        serializer(fake_site, TOP + "def celeriac_make_serializer(name): return None")


def test_one_with_a_misspelt_hook_is_told_its_name(fake_site: FakeSite) -> None:
    with broken("celeriac_make_serialiser", "misspelt"):
        serializer(fake_site, TOP + "@hookimpl\ndef celeriac_make_serialiser(name): return None")


def test_one_whose_hook_takes_an_unknown_argument_is_told_which(fake_site: FakeSite) -> None:
    with broken("celeriac_make_serializer takes 'naem'"):
        serializer(fake_site, TOP + "@hookimpl\ndef celeriac_make_serializer(naem): return None")


def test_one_whose_attributes_cannot_be_read_is_broken(fake_site: FakeSite) -> None:
    source = TOP + "class Plugin:\n    @property\n    def celeriac_make_serializer(self): 1 / 0\nplugin = Plugin()"
    module = fake_site.install("serializer", "bad", source, dist="acme-bad", version="2.5")
    (fake_site.folder / "acme_bad-2.5.dist-info" / "entry_points.txt").write_text(
        f"[celeriac.serializers]\nbad = {module}:plugin\n"
    )
    with broken("its attributes cannot be read: ZeroDivisionError"):
        Kernel({}).make_serializer("bad")


# -- its version ------------------------------------------------------------------------------------------


def test_one_that_names_no_contract_version_is_told_how(fake_site: FakeSite) -> None:
    with broken(r"CELERIAC_API = \(1, 0\)"):
        serializer(fake_site, "from celeriac.spec import hookimpl\n" + HOOK + "return None")


@pytest.mark.parametrize("version", ["'1.0'", "1", "(1,)", "(1, '0')", "[1, 0]", "(True, False)"])
def test_one_with_a_malformed_contract_version_is_told_what_it_should_be(fake_site: FakeSite, version: str) -> None:
    with broken("CELERIAC_API is"):
        serializer(fake_site, f"CELERIAC_API = {version}")


@pytest.mark.parametrize(
    ("version", "todo"),
    [("(2, 0)", "Upgrade celeriac."), ("(1, 99)", "Upgrade celeriac."), ("(0, 9)", "Upgrade acme-bad.")],
)
def test_one_for_another_contract_is_refused_with_both_versions(fake_site: FakeSite, version: str, todo: str) -> None:
    written_for = version.strip("()").replace(", ", ".")
    with pytest.raises(
        PluginIncompatible, match=f"acme-bad 2.5.*contract {written_for}; this celeriac has 1.0. {todo}"
    ):
        serializer(fake_site, TOP.replace("(1, 0)", version) + HOOK + "return None")


# -- what it makes ----------------------------------------------------------------------------------------


def test_one_that_makes_nothing_for_its_own_name_is_broken(fake_site: FakeSite) -> None:
    with broken("it made nothing for 'bad'"):
        serializer(fake_site, TOP + HOOK + "return None")


def test_one_that_makes_nothing_for_its_own_scheme_is_broken(fake_site: FakeSite) -> None:
    with broken("it made nothing for 'bad://'"):
        broker(fake_site, "return Transport()", "return None")


def test_a_good_one_chosen_for_a_url_that_is_not_its_own_is_no_fault_of_its(fake_site: FakeSite) -> None:
    fake_site.install("broker", "picky", fake_site.good["broker"].replace("return Transport()", "return None"))
    with pytest.raises(ImproperlyConfigured, match=r"does not take the URL 'redis://'.*picky://") as caught:
        Kernel({}).make_transport("redis://", plugin="picky")
    assert not isinstance(caught.value, PluginBroken)


def test_one_that_makes_something_else_is_told_what_it_lacks(fake_site: FakeSite) -> None:
    with broken("the str it made lacks name, content_type, content_encoding, unsafe, dumps, loads"):
        serializer(fake_site, TOP + HOOK + "return 'a serializer'")


def test_one_that_raises_in_its_hook_says_what(fake_site: FakeSite) -> None:
    with broken("its celeriac_make_serializer raised ZeroDivisionError"):
        serializer(fake_site, TOP + HOOK + "1 / 0")


def test_one_that_ends_the_process_in_its_hook_does_not(fake_site: FakeSite) -> None:
    with broken("its celeriac_make_serializer raised SystemExit"):
        serializer(fake_site, TOP + HOOK + "raise SystemExit(1)")


def test_one_that_misses_a_client_library_in_its_hook_says_which(fake_site: FakeSite) -> None:
    with broken("'a_client_nobody_has', which is not installed"):
        serializer(fake_site, TOP + HOOK + "import a_client_nobody_has")


def test_an_error_about_the_url_stays_the_plugins_own(fake_site: FakeSite) -> None:
    raising = "from celeriac.exceptions import ImproperlyConfigured\n    raise ImproperlyConfigured('no port')"
    with pytest.raises(ImproperlyConfigured, match=r"^no port$"):
        broker(fake_site, "return Transport()", raising)


def test_one_that_lacks_a_member_is_told_which(fake_site: FakeSite) -> None:
    with broken("the Transport it made lacks depth"):
        broker(fake_site, "def depth(self, queue): return 0", "")


def test_one_that_lacks_what_an_ability_calls_for_is_told_which(fake_site: FakeSite) -> None:
    with broken("the Transport it made lacks state"):
        broker(fake_site, 'frozenset({"shared"})', 'frozenset({"shared", "state"})')


def test_one_whose_member_is_no_method_is_told_which(fake_site: FakeSite) -> None:
    with broken("its depth is 7 and should be a method"):
        broker(fake_site, "def depth(self, queue): return 0", "depth = 7")


def test_one_whose_method_takes_other_arguments_is_told_which(fake_site: FakeSite) -> None:
    with broken(r"its send\(payloads\) cannot be called as send\(payloads, \*, timeout_s=10.0\)"):
        broker(fake_site, "def send(self, payloads, *, timeout_s=10.0): pass", "def send(self, payloads): pass")


def test_one_whose_data_has_the_wrong_type_is_told_which(fake_site: FakeSite) -> None:
    with broken("its joint is 7 and should be str, NoneType"):
        broker(fake_site, "joint = None", "joint = 7")


def test_one_that_declares_an_ability_nobody_knows_is_told_the_known_ones(fake_site: FakeSite) -> None:
    with broken("unknown ability: prioritys", "priority"):
        broker(fake_site, '{"shared"}', '{"prioritys"}')


def test_one_that_declares_an_ability_without_its_verb_is_told(fake_site: FakeSite) -> None:
    with broken("its purge is None and should be a method"):
        broker(fake_site, "def purge(self, queue): return 0", "purge = None")


def test_the_verbs_that_an_ability_brings_are_missed_only_by_who_declares_it() -> None:
    class Keeps:
        joint = None
        abilities = frozenset({"push"})

        def nothing(self, *args: Any, **kwargs: Any) -> Any:
            raise AssertionError("only looked at")

        encode = decode = store = commands = expect = fetch = watch = nothing
        forget = cleanup = ping = after_fork = close = nothing

    class Counts(Keeps):
        abilities = frozenset({"count", "groups"})
        open_chords = grow_chord = close_chords = overdue_chords = Keeps.nothing

    assert find_faults("backend", Keeps()) == []
    assert find_faults("backend", Counts()) == ["the Counts it made lacks join, save_group, load_group, delete_group"]


def test_an_ability_that_is_lacking_is_named_with_who_and_why(fake_site: FakeSite) -> None:
    fake_site.install("broker", "good", dist="acme-good", version="1.5")
    kernel = Kernel({})
    transport = kernel.make_transport("good://")
    kernel.require(transport, {"shared"})
    with pytest.raises(
        Unsupported, match=r"broker:good \(acme-good 1.5\) lacks the ability delay.*because of a countdown"
    ):
        kernel.require(transport, {"delay", "shared"}, because="of a countdown")


# -- choosing ---------------------------------------------------------------------------------------------


def test_two_dists_with_one_name_are_both_named(fake_site: FakeSite) -> None:
    fake_site.install("serializer", "twice", dist="acme-one", version="1.1")
    fake_site.install("serializer", "twice", dist="acme-two", version="2.2")
    with pytest.raises(PluginAmbiguous, match=r"acme-one 1.1 and acme-two 2.2.*twice@acme-one"):
        Kernel({}).make_serializer("twice")


def test_one_of_two_is_picked_by_its_dist(fake_site: FakeSite) -> None:
    fake_site.install("serializer", "twice", "raise SystemExit", dist="acme-one")
    module = fake_site.install("serializer", "twice", dist="acme-two")
    kernel = Kernel({})
    assert type(kernel.make_serializer("twice@Acme_Two")).__module__ == module


def test_a_dist_that_does_not_have_the_plugin_is_not_picked(fake_site: FakeSite) -> None:
    fake_site.install("serializer", "good", dist="acme-one")
    with pytest.raises(PluginNotFound, match=r"not in the distribution 'acme-two', but in acme-one 1.0"):
        Kernel({}).make_serializer("good@acme-two")


@pytest.mark.parametrize("pattern", ["good", "serializer:good", "serializer:*", "*@acme-good", "good@acme-good"])
def test_a_blocked_one_is_not_even_imported(fake_site: FakeSite, pattern: str) -> None:
    fake_site.install("serializer", "good", "raise SystemExit", dist="acme-good")
    with pytest.raises(PluginBlocked, match=re.escape(pattern)):
        Kernel({"plugins_blocked": [pattern]}).make_serializer("good")


def test_the_environment_can_block_too(fake_site: FakeSite, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_site.install("serializer", "good")
    monkeypatch.setenv("CELERIAC_PLUGINS_BLOCKED", "broker:good, serializer:good")
    with pytest.raises(PluginBlocked, match="CELERIAC_PLUGINS_BLOCKED"):
        Kernel({}).make_serializer("good")


def test_one_that_is_not_on_the_allow_list_is_refused(fake_site: FakeSite) -> None:
    fake_site.install("serializer", "good")
    Kernel({"plugins_allowed": ["serializer:*"]}).make_serializer("good")
    with pytest.raises(PluginBlocked, match="not on the list of allowed ones: broker:redis"):
        Kernel({"plugins_allowed": ["broker:redis"]}).make_serializer("good")


def test_an_unknown_name_is_answered_with_the_installed_ones_and_what_to_install(fake_site: FakeSite) -> None:
    fake_site.install("broker", "good")
    with pytest.raises(PluginNotFound, match=r"Installed: .*good.*pip install celeriac-broker-nonesuch") as caught:
        Kernel({}).make_transport("nonesuch://:secret@host/0")
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("path", sorted(PLUGINS.glob("*/*/pyproject.toml")), ids=lambda path: path.parent.name)
def test_each_name_of_a_plugin_of_ours_leads_to_its_distribution(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    project = tomllib.loads(path.read_text(encoding="utf-8"))["project"]
    monkeypatch.setattr("celeriac.kernel.kernel.catalog", Catalog)  # as if nothing were installed
    for group, names in project.get("entry-points", {}).items():
        for name in [name for name in names if "+" not in name]:
            with pytest.raises(PluginNotFound) as refused:
                Kernel({}).find(group.removeprefix("celeriac.").removesuffix("s"), name)
            assert str(refused.value).endswith(f"Try: pip install {project['name']}")


def test_a_name_that_is_nobody_s_is_not_said_to_be_there() -> None:
    with pytest.raises(PluginNotFound, match="celeriac itself has none of that name"):
        Kernel({}).make_transport("sqs://")


def test_a_consumer_that_lacks_something_is_told_before_it_is_worked_with(fake_site: FakeSite) -> None:
    fake_site.install("broker", "bad", dist="acme-bad", version="2.5")
    kernel = Kernel({})
    transport = kernel.make_transport("bad://")
    with broken("made lacks receive, settle, flush, renew"):
        kernel.check_consumer(transport, object())


def test_a_near_miss_is_answered_with_the_right_name(fake_site: FakeSite) -> None:
    fake_site.install("broker", "gearman")
    with pytest.raises(PluginNotFound, match="Did you mean 'gearman'") as caught:
        Kernel({}).make_transport("germann://")
    assert "pip install" not in str(caught.value)


# -- metadata ---------------------------------------------------------------------------------------------


def test_a_dist_whose_entry_points_cannot_be_read_takes_no_other_one_down(fake_site: FakeSite) -> None:
    fake_site.install("serializer", "good")
    fake_site.install("serializer", "bad", dist="acme-bad")
    entry_points = fake_site.folder / "acme_bad-1.0.dist-info" / "entry_points.txt"
    entry_points.write_text("[celeriac.serializers]\nthis line has no equals sign\n")
    assert Kernel({}).make_serializer("good")
    assert ["acme_bad-1.0" in trouble for trouble in catalog().troubles] == [True]
    assert catalog().named("serializer", "json"), "the others are still there"
    with pytest.raises(PluginNotFound, match=r"acme_bad-1.0.dist-info cannot be read .* reinstall it"):
        Kernel({}).make_serializer("bad")


@pytest.mark.parametrize("metadata", [None, "", "\x00\xff nonsense"])
def test_a_dist_without_readable_metadata_is_known_by_its_folder(fake_site: FakeSite, metadata: str | None) -> None:
    fake_site.install("serializer", "bad", "raise SystemExit", dist="acme-bad", version="2.5")
    file = fake_site.folder / "acme_bad-2.5.dist-info" / "METADATA"
    file.unlink()
    if metadata is not None:
        file.write_text(metadata)
    with pytest.raises(PluginBroken, match=r"acme_bad 2\.5"):
        Kernel({}).make_serializer("bad")


# -- and all the while ------------------------------------------------------------------------------------


def test_bad_plugins_that_nobody_chose_are_not_imported(fake_site: FakeSite) -> None:
    for number, source in enumerate(["raise SystemExit", "def (:", "import os; os._exit(1)", "while True: pass"]):
        fake_site.install("serializer", f"bad{number}", source)
    fake_site.install("serializer", "good")
    kernel = Kernel({})
    kernel.make_serializer("good")
    assert [info.name for info in kernel.loaded()] == ["good"]
