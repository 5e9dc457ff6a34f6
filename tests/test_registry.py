import sys

import pytest

from crossdistill.errors import ConfigError, suggest
from crossdistill.registry import discover, lookup


def test_whatever_carries_facts_is_found_by_its_name():
    found = discover("crossdistill.objectives")
    assert {"similarity", "contrastive", "l2", "cosine"} <= set(found)
    assert all(cls.facts.name == name and cls.facts.paper and cls.facts.title for name, cls in found.items())
    assert {"distillation", "simclr", "supervised"} <= set(discover("crossdistill.methods"))


def test_an_unknown_name_is_answered_with_the_nearest():
    with pytest.raises(ConfigError, match=r"no objective is called 'similarty'; did you mean 'similarity'\?"):
        lookup("crossdistill.objectives", "similarty")
    assert suggest("x", []) == ""


def test_a_users_own_class_is_found_by_its_dotted_path(tmp_path, monkeypatch):
    (tmp_path / "my_losses.py").write_text("class Mine: ...\nvalue = 3\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert lookup("crossdistill.objectives", "my_losses:Mine").__name__ == "Mine"
    with pytest.raises(ConfigError, match="'my_losses' has no 'Mime'; did you mean 'Mine'"):
        lookup("crossdistill.objectives", "my_losses:Mime")
    with pytest.raises(ConfigError, match="is not a class"):
        lookup("crossdistill.objectives", "my_losses:value")
    with pytest.raises(ConfigError, match="cannot import 'nowhere'"):
        lookup("crossdistill.objectives", "nowhere:Mine")


def test_a_new_file_in_a_package_is_a_new_choice_and_two_of_one_name_are_refused(tmp_path, monkeypatch):
    package = tmp_path / "zoo_of_losses"
    package.mkdir()
    (package / "__init__.py").write_text("")
    body = "from crossdistill.registry import Facts\nclass A:\n    facts = Facts(name='a', title='t', paper='p')\n"
    (package / "one.py").write_text(body)
    monkeypatch.syspath_prepend(tmp_path)
    assert list(discover("zoo_of_losses")) == ["a"]
    discover.cache_clear()
    (package / "two.py").write_text(body)
    sys.modules.pop("zoo_of_losses")
    with pytest.raises(ConfigError, match=r"'a' names a class in zoo_of_losses.one and one in zoo_of_losses.two"):
        discover("zoo_of_losses")


def test_a_users_module_that_cannot_be_imported_is_told_of(tmp_path, monkeypatch):
    (tmp_path / "broken_losses.py").write_text("def f(:\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ConfigError, match="importing 'broken_losses' of 'broken_losses:f' fails: SyntaxError"):
        lookup("crossdistill.objectives", "broken_losses:f")
