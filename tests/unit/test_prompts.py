from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from world_r1.blockworld import prompts as blockworld
from world_r1.camera import parse
from world_r1.config import Config, PhasesConfig
from world_r1.config import parse as parse_config
from world_r1.prompts import PromptStream, load_prompts, phase_at, steps_before
from world_r1.types import Prompt


def test_a_text_file_is_one_prompt_a_line_and_blank_lines_do_not_count(tmp_path: Path) -> None:
    file = tmp_path / "mine.txt"
    file.write_text("Camera push in. A red box.\n\n  A blue sphere. \n", encoding="utf-8")
    assert load_prompts(str(file), kind="dynamic") == [
        Prompt("mine-000001", "Camera push in. A red box.", "dynamic"),
        Prompt("mine-000003", "A blue sphere.", "dynamic"),
    ]


def test_a_jsonl_file_may_name_id_kind_and_attributes(tmp_path: Path) -> None:
    file = tmp_path / "mine.jsonl"
    file.write_text('{"text": "A box.", "id": "b", "kind": "dynamic", "attributes": {"count": 1}}\n{"text": "A ball."}\n')
    assert load_prompts(str(file)) == [Prompt("b", "A box.", "dynamic", {"count": 1}), Prompt("mine-000002", "A ball.")]


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("", "holds no prompts"),
        ("\n \n", "holds no prompts"),
        ('{"text": "a"}\n{"text": ', r"p\.jsonl:2: not a JSON object"),
        ('["a"]', r"p\.jsonl:1: expected a JSON object, got list"),
        ('\n{"text": ""}', r'p\.jsonl:2: "text" must be a non-empty string'),
        ('{"prompt": "a"}', r"p\.jsonl:1: unknown field 'prompt'; known: id, text"),
        ('{"text": "a", "kind": "moving"}', r"p\.jsonl:1: .kind. must be one of rigid, dynamic, got 'moving'"),
        ('{"text": "a", "attributes": 3}', r"p\.jsonl:1: .attributes. must be an object"),
        ('{"text": "a", "id": "x"}\n{"text": "b", "id": "x"}', r"id 'x' occurs twice"),
    ],
)
def test_a_malformed_file_is_an_error_that_names_the_line(tmp_path: Path, content: str, says: str) -> None:
    file = tmp_path / "p.jsonl"
    file.write_text(content, encoding="utf-8")
    with pytest.raises(ValueError, match=says):
        load_prompts(str(file))


def test_a_file_that_is_missing_or_no_text_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no prompt file at"):
        load_prompts(str(tmp_path / "none.txt"))
    (tmp_path / "raw.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match="not UTF-8"):
        load_prompts(str(tmp_path / "raw.txt"))


@pytest.mark.parametrize(
    "source", ["blockworld:train", "blockworld:train:0", "blockworld:train:x", "blockworld:train:3:4", "blockworld:none:3"]
)
def test_a_malformed_generated_source_is_an_error(source: str) -> None:
    with pytest.raises(ValueError, match="blockworld"):
        load_prompts(source)


def test_blockworld_prompts_are_stable_distinct_and_only_appended_to() -> None:
    few, many = blockworld.prompts("train", 20), blockworld.prompts("train", 150)
    assert many[:20] == few
    assert len({prompt.text for prompt in many}) == len({prompt.id for prompt in many}) == 150
    json.dumps([dict(prompt.attributes) for prompt in many])  # plain facts only


def test_no_test_scene_occurs_in_training_whatever_its_wording_or_camera() -> None:
    train, dynamic, test = (blockworld.prompts(split, n) for split, n in (("train", 600), ("dynamic", 200), ("test", 64)))
    contents = {blockworld._content(dict(prompt.attributes)) for prompt in train + dynamic}
    assert not contents & {blockworld._content(dict(prompt.attributes)) for prompt in test}
    assert not {prompt.text for prompt in train + dynamic} & {prompt.text for prompt in test}


@pytest.mark.parametrize("split", ["train", "test", "dynamic"])
def test_blockworld_prompts_command_the_camera_and_describe_a_scene_that_can_be_made_again(split: str) -> None:
    for prompt in blockworld.prompts(split, 12):
        command, facts = parse(prompt.text), prompt.attributes
        assert command is not None
        assert command.text == facts["command"] != "fixed"
        assert (prompt.kind == "dynamic") == facts["dynamic"] == (facts["movement"] is not None) == (split == "dynamic")
        from world_r1.blockworld import scenes

        again = scenes.attributes(blockworld.scene_of(prompt))[0]
        assert {key: again[key] for key in ("command", "floor", "objects", "sky")} == {
            key: facts[key] for key in ("command", "floor", "objects", "sky")
        }


def test_asking_for_a_split_leaves_torchs_global_generator_alone() -> None:
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    blockworld.prompts("train", 3)
    assert torch.equal(torch.rand(1), expected)


def test_phases_alternate_in_loop_steps() -> None:
    phases = PhasesConfig(rigid_steps=3, dynamic_steps=2)
    kinds = [phase_at(step, phases) for step in range(11)]
    assert kinds == ["rigid"] * 3 + ["dynamic"] * 2 + ["rigid"] * 3 + ["dynamic"] * 2 + ["rigid"]
    for step in range(11):
        assert steps_before(step, phases) == {kind: kinds[:step].count(kind) for kind in ("rigid", "dynamic")}
    assert {phase_at(step, PhasesConfig(rigid_steps=4, dynamic_steps=0)) for step in range(20)} == {"rigid"}


def _stream(tmp_path: Path, rigid: int, dynamic: int | None, groups: int, **phases: int) -> PromptStream:
    def write(name: str, count: int) -> str:
        (tmp_path / name).write_text("".join(f"{name} {i}\n" for i in range(count)))
        return str(tmp_path / name)

    prompts = {"train": write("r", rigid), "dynamic": None if dynamic is None else write("d", dynamic), "groups": groups}
    config: Config = parse_config({"seed": 5, "prompts": prompts, "phases": phases})
    return PromptStream.of(config)


def test_every_epoch_meets_every_prompt_once_across_phase_changes(tmp_path: Path) -> None:
    stream = _stream(tmp_path, 7, 4, 3, rigid_steps=2, dynamic_steps=1)
    taken: dict[str, list[str]] = {"rigid": [], "dynamic": []}
    for step in range(21):
        for prompt in stream.at(step):
            assert prompt.kind == phase_at(step, stream.phases)
            taken[prompt.kind].append(prompt.id)
    assert len(taken["rigid"]) == 42
    epochs = [taken["rigid"][i : i + 7] for i in range(0, 42, 7)]
    assert all(len(set(epoch)) == 7 for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) > 1  # not one order for ever
    assert all(len(set(taken["dynamic"][i : i + 4])) == 4 for i in range(0, 20, 4))


def test_the_prompts_of_a_step_do_not_depend_on_the_steps_before(tmp_path: Path) -> None:
    stream = _stream(tmp_path, 10, None, 4, rigid_steps=5, dynamic_steps=0)
    assert [stream.at(step) for step in (9, 2, 9)] == [stream.at(9), stream.at(2), stream.at(9)]
    # A change of this order would make old checkpoints resume with other prompts.
    assert [prompt.text for prompt in stream.at(0)] == EXPECTED_FIRST


def test_a_dynamic_phase_without_dynamic_prompts_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"needs prompts\.dynamic"):
        _stream(tmp_path, 3, None, 2, rigid_steps=5, dynamic_steps=1)


EXPECTED_FIRST = ["r 3", "r 6", "r 2", "r 4"]
