"""Versions come and go without a request that fails."""

from __future__ import annotations

import io
import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from sealserve.errors import InputError, Unavailable
from sealserve.logs import make_log
from sealserve.serving.catalog import Catalog, ModelSpec
from sealserve.serving.config import All, Latest, LifeConfig, ModelConfig, Specific
from sealserve.serving.dataplane import Dataplane
from sealserve.serving.watcher import Watcher
from tests.serving.fakes import FakeRuntime, make_versions
from tests.soak import times

BAD = "servable.saved_model_malformed"


class World:
    """A catalog over fake models."""

    def __init__(self, *models: ModelConfig, life: LifeConfig | None = None) -> None:
        self.runtime = FakeRuntime()
        self.output = io.StringIO()
        self.log = make_log(self.output)
        self.catalog = Catalog(models, self.runtime, self.log, life or LifeConfig())
        self.catalog.load()

    def states(self, name: str = "m") -> dict[int, str]:
        return {each.version: each.state.name for each in self.catalog.statuses(ModelSpec(name))}

    def settled(self, name: str = "m") -> dict[int, str]:
        """The states once nothing is being unloaded."""
        wait_for(lambda: "UNLOADING" not in self.states(name).values())
        return self.states(name)


def wait_for(condition: Callable[[], bool], seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not come true"
        time.sleep(0.005)


def test_a_new_version_is_served_and_the_old_one_goes(tmp_path: Path) -> None:
    world = World(ModelConfig("m", make_versions(tmp_path, 1)))
    make_versions(tmp_path, "00000002")
    world.catalog.refresh()
    assert world.settled() == {1: "END", 2: "AVAILABLE"}
    assert world.runtime.models[f"{tmp_path.name}/1"].closed
    world.catalog.close()


def test_the_old_version_serves_until_the_new_one_can(tmp_path: Path) -> None:
    world = World(ModelConfig("m", make_versions(tmp_path, 1)))
    world.runtime.may_load.clear()
    make_versions(tmp_path, 2)
    swapping = threading.Thread(target=world.catalog.refresh)
    swapping.start()
    wait_for(lambda: world.states() == {1: "AVAILABLE", 2: "LOADING"})
    assert world.catalog.available() == [("m", 1)]
    world.runtime.may_load.set()
    swapping.join()
    assert world.catalog.available() == [("m", 2)]
    world.catalog.close()


def test_a_bad_new_version_takes_nothing_down(tmp_path: Path) -> None:
    world = World(ModelConfig("m", make_versions(tmp_path, 1)))
    make_versions(tmp_path, 2, bad=BAD)
    world.catalog.refresh()
    assert world.states() == {1: "AVAILABLE", 2: "END"}
    newest, _ = world.catalog.statuses(ModelSpec("m"))
    assert (newest.code.name, newest.message) == ("INVALID_ARGUMENT", "this version is bad")
    world.catalog.close()


def test_a_failed_load_is_tried_again_so_often_and_when_the_directory_changes(
    tmp_path: Path,
) -> None:
    life = LifeConfig(load_retries=2, retry_seconds=0.0)
    world = World(ModelConfig("m", make_versions(tmp_path, 1, bad=BAD)), life=life)
    for _ in range(5):
        world.catalog.refresh()
    assert len(world.runtime.loads) == 3
    assert world.catalog.retry_due() is None
    (tmp_path / "1" / "saved_model.pb").unlink()
    world.catalog.refresh()
    assert world.states() == {1: "AVAILABLE"}
    world.catalog.close()


def test_what_waiting_cannot_mend_is_not_tried_again(tmp_path: Path) -> None:
    life = LifeConfig(retry_seconds=0.0)
    models = ModelConfig("m", make_versions(tmp_path, 1, bad="servable.stateful"))
    world = World(models, life=life)
    world.catalog.refresh()
    assert len(world.runtime.loads) == 1
    world.catalog.close()


def test_the_watcher_retries_even_when_nothing_is_polled(tmp_path: Path) -> None:
    life = LifeConfig(load_retries=3, retry_seconds=0.02)
    world = World(ModelConfig("m", make_versions(tmp_path, 1, bad=BAD)), life=life)
    watcher = Watcher(world.catalog, life, world.log)
    watcher.start()
    wait_for(lambda: len(world.runtime.loads) == 4)
    watcher.stop()
    world.catalog.close()


def test_an_empty_base_path_unloads_and_an_unreadable_one_does_not(tmp_path: Path) -> None:
    base = make_versions(tmp_path / "m", 1)
    world = World(ModelConfig("m", base))
    moved = base.rename(tmp_path / "elsewhere")
    world.catalog.refresh()
    assert world.states() == {1: "AVAILABLE"}
    world.catalog.refresh()
    assert world.output.getvalue().count("no_versions") == 1
    moved.rename(base)
    shutil.rmtree(base / "1")
    world.catalog.refresh()
    assert world.settled() == {1: "END"}
    world.catalog.close()


@pytest.mark.parametrize(
    ("policy", "versions"),
    [(Latest(1), [7]), (Latest(2), [3, 7]), (All(), [1, 3, 7]), (Specific((1, 9)), [1])],
)
def test_policies_choose(
    tmp_path: Path, policy: Latest | All | Specific, versions: list[int]
) -> None:
    world = World(ModelConfig("m", make_versions(tmp_path, 1, 3, 7, "x", "-2", 2**63), policy))
    assert [version for _, version in world.catalog.available()] == versions
    world.catalog.close()


def test_a_reload_adds_removes_and_moves_models(tmp_path: Path) -> None:
    a, b = make_versions(tmp_path / "a", 1), make_versions(tmp_path / "b", 1)
    world = World(ModelConfig("m", a), ModelConfig("n", a))
    world.catalog.reload([ModelConfig("m", b), ModelConfig("o", a)])
    assert world.catalog.available() == [("m", 1), ("o", 1)]
    assert world.settled("n") == {1: "END"}
    assert "b/1" in world.runtime.models
    world.catalog.reload([ModelConfig("n", a)])
    assert world.catalog.available() == [("n", 1)]
    world.catalog.close()


def test_a_reload_says_which_models_did_not_become_available(tmp_path: Path) -> None:
    good, bad = make_versions(tmp_path / "a", 1), make_versions(tmp_path / "b", 1, bad=BAD)
    world = World(ModelConfig("m", good))
    with pytest.raises(Unavailable) as caught:
        world.catalog.reload([ModelConfig("m", good), ModelConfig("n", bad)])
    assert caught.value.code == "servable.not_available"
    assert "1 model(s) did not become available" in caught.value.message
    assert world.catalog.available() == [("m", 1)]
    world.catalog.close()


def test_labels_are_given_only_to_what_can_serve(tmp_path: Path) -> None:
    base = make_versions(tmp_path, 1, 2)
    stable = ModelConfig("m", base, All(), (("stable", 1),))
    world = World(stable)
    moved = ModelConfig("m", base, All(), (("stable", 3),))
    with pytest.raises(InputError) as caught:
        world.catalog.reload([moved])
    assert caught.value.message == (
        "Request to assign label to version 3 of model m, "
        "which is not currently available for inference"
    )
    spec = ModelSpec("m", label="stable")
    assert [each.version for each in world.catalog.statuses(spec)] == [1]
    make_versions(base, 3)
    world.catalog.refresh()
    assert [each.version for each in world.catalog.statuses(spec)] == [3]
    world.catalog.reload([ModelConfig("m", base, All())])
    with pytest.raises(InputError, match="label"):
        world.catalog.statuses(spec)
    world.catalog.close()


def test_with_early_labels_only_an_unused_label_may_wait_for_its_version(tmp_path: Path) -> None:
    base = make_versions(tmp_path, 1)
    life = LifeConfig(early_labels=True)
    world = World(ModelConfig("m", base, All(), (("canary", 5), ("stable", 1))), life=life)
    with pytest.raises(InputError, match="Could not find version 5"):
        world.catalog.statuses(ModelSpec("m", label="canary"))
    with pytest.raises(InputError, match="not currently available"):
        world.catalog.reload([ModelConfig("m", base, All(), (("stable", 5),))])
    world.catalog.close()


def test_a_changed_config_file_is_taken_and_a_broken_one_is_not(tmp_path: Path) -> None:
    make_versions(tmp_path / "a", 1)
    file = tmp_path / "models.config"
    m, new = (f'config {{ name: "{name}" base_path: "a" }}' for name in ("m", "new"))
    file.write_text(f"model_config_list {{ {m} }}")
    life = LifeConfig(config_file=file, config_poll_seconds=0.02)
    world = World(ModelConfig("m", tmp_path / "a"), life=life)
    watcher = Watcher(world.catalog, life, world.log)
    watcher.start()
    file.write_text("model_config_list { oops")
    wait_for(lambda: "config_reload_failed" in world.output.getvalue())
    assert world.catalog.available() == [("m", 1)]
    file.write_text(f"model_config_list {{ {m} {new} }}")
    wait_for(lambda: world.catalog.available() == [("m", 1), ("new", 1)])
    file.write_text("")  # as it looks to a reader while it is written
    wait_for(lambda: "there is no model_config_list" in world.output.getvalue())
    assert world.catalog.available() == [("m", 1), ("new", 1)]
    file.write_text("model_config_list { }")
    wait_for(lambda: not world.catalog.available())
    watcher.stop()
    world.catalog.close()


def test_unloading_waits_for_the_request_under_way(tmp_path: Path) -> None:
    world = World(ModelConfig("m", make_versions(tmp_path, 1)))
    model = world.runtime.models[f"{tmp_path.name}/1"]
    model.may_end.clear()
    plane = Dataplane(world.catalog)
    answers = []

    def ask() -> None:
        x = np.zeros(2, "f4")
        answers.append(plane.predict(ModelSpec("m"), "", lambda _: {"x": x}).outputs["y"].tolist())

    asking = threading.Thread(target=ask)
    asking.start()
    assert model.begun.wait(20)
    make_versions(tmp_path, 2)
    world.catalog.refresh()
    assert world.states() == {1: "UNLOADING", 2: "AVAILABLE"}
    assert not model.closed
    model.may_end.set()
    asking.join()
    assert answers == [[1.0, 1.0]]
    world.catalog.close()
    assert model.closed


def test_swaps_under_load_fail_no_request(tmp_path: Path) -> None:
    world = World(ModelConfig("m", make_versions(tmp_path, 1)))
    plane = Dataplane(world.catalog)
    ending = threading.Event()
    counts, failures = [0, 0], []

    def ask(who: int) -> None:
        x = np.zeros(1, "f4")
        while not ending.is_set():
            try:
                plane.predict(ModelSpec("m"), "", lambda _: {"x": x})
                counts[who] += 1
            except Exception as error:
                failures.append(error)

    askers = [threading.Thread(target=ask, args=(who,)) for who in (0, 1)]
    for asker in askers:
        asker.start()
    for version in range(2, times(500, 30)):
        make_versions(tmp_path, version)
        world.catalog.refresh()
        shutil.rmtree(tmp_path / str(version - 1))
    ending.set()
    for asker in askers:
        asker.join()
    assert failures == []
    assert min(counts) > 0
    # However often it is swapped, what has ended does not pile up.
    assert len(world.settled()) <= 40
    world.catalog.close()
