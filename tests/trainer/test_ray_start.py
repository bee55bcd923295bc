"""Ray that does not start is tried again, and then explained in a sentence."""

import logging
import os
from pathlib import Path
from typing import Any

import pytest
import ray
from ray._private import services

from finetune_api.manifest import dump_yaml
from finetune_trainer import cli
from finetune_trainer.errors import RayUnavailable
from finetune_trainer.runtime.ray_tune import RAY_STARTS, start_ray
from tests.api.wrong_manifests import VALID


@pytest.fixture
def no_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder for Ray in which nobody can write, root neither."""
    monkeypatch.setenv("RAY_TMPDIR", "/proc")


@pytest.mark.usefixtures("no_ray")
def test_ray_is_tried_again_before_it_is_explained(caplog: pytest.LogCaptureFixture) -> None:
    with (
        caplog.at_level(logging.WARNING, "finetune.driver"),
        pytest.raises(
            RayUnavailable, match=rf"Ray did not start after {RAY_STARTS} tries: .*/proc"
        ),
    ):
        start_ray(1)
    assert len([line for line in caplog.messages if "retrying" in line]) == RAY_STARTS - 1


@pytest.mark.slow
def test_ray_that_gives_up_half_way_leaves_no_process_and_starts_at_the_next_try(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    get_node, asked = services.get_node, 0

    def once_in_vain(*arguments: Any) -> Any:
        nonlocal asked
        asked += 1
        if asked == 1:  # as after the 30 s that Ray waits for its raylet
            raise Exception("The current node timed out during startup.")
        return get_node(*arguments)

    monkeypatch.setattr(services, "get_node", once_in_vain)
    raylets = _running("raylet")
    try:
        start_ray(1, 0)
        assert [line for line in caplog.messages if "retrying" in line]
        assert len(_running("raylet") - raylets) == 1
    finally:
        ray.shutdown()


def _running(program: str) -> set[str]:
    """Ids of this process's children that run the program."""
    children = next(Path("/proc/self/task").glob(f"{os.getpid()}/children")).read_text().split()
    return {pid for pid in children if Path(f"/proc/{pid}/comm").read_text().strip() == program}


@pytest.mark.usefixtures("no_ray")
def test_command_line_says_so_without_a_traceback(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    manifest = tmp_path / "study.yaml"
    manifest.write_text(dump_yaml(VALID))
    assert cli.main(["run", str(manifest), "--into", str(tmp_path / "run")]) == 1
    said = capsys.readouterr().err
    assert "finetune: Ray did not start" in said
    assert "Traceback" not in said


@pytest.mark.usefixtures("no_ray")
@pytest.mark.parametrize("there", [True, False])
def test_ray_writes_its_token_into_no_home_that_is_not_there(
    there: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "home"
    if there:
        home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("RAY_AUTH_TOKEN", "")  # put back at the end, whatever comes
    monkeypatch.delenv("RAY_AUTH_TOKEN")
    monkeypatch.delenv("RAY_AUTH_TOKEN_PATH", raising=False)
    with pytest.raises(RayUnavailable):
        start_ray(1)
    assert home.exists() == there
    assert ("RAY_AUTH_TOKEN" in os.environ) != there
