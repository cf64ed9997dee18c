"""MVBench, NExT-QA and EgoSchema: multiple choice about clips of seconds to minutes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from vlm_eff.core.errors import InputError, explain
from vlm_eff.eval.tasks.choices import CHOICE_STYLES, bare_options, by_number, by_text, options_text
from vlm_eff.eval.tasks.files import find_file, find_files, inside, media_folder
from vlm_eff.eval.tasks.footage import video_file
from vlm_eff.eval.tasks.item import Footage, Item
from vlm_eff.eval.tasks.rows import Row, read_object, rows_of
from vlm_eff.eval.tasks.source import Request, TaskSource, register
from vlm_eff.video.sampling import Sampling

# a folder of frames does not tell its rate; the one of MVBench is in its folder's name
_FRAMES_FPS = 3.0
# where the pictures of each task lie, in the benchmark's archive
MVBENCH_FOLDERS = {
    "action_sequence": "star/Charades_v1_480",
    "action_prediction": "star/Charades_v1_480",
    "action_antonym": "ssv2_video",
    "fine_grained_action": "Moments_in_Time_Raw/videos",
    "unexpected_action": "FunQA_test/test",
    "object_existence": "clevrer/video_validation",
    "object_interaction": "star/Charades_v1_480",
    "object_shuffle": "perception/videos",
    "moving_direction": "clevrer/video_validation",
    "action_localization": "sta/sta_video",
    "scene_transition": "scene_qa/video",
    "action_count": "perception/videos",
    "moving_count": "clevrer/video_validation",
    "moving_attribute": "clevrer/video_validation",
    "state_change": "perception/videos",
    "fine_grained_pose": "nturgbd",
    "character_order": "perception/videos",
    "egocentric_navigation": "vlnqa",
    "episodic_reasoning": "tvqa/frames_fps3_hq",
    "counterfactual_inference": "clevrer/video_validation",
}


def read_mvbench(request: Request) -> Iterator[Item]:
    """MVBench (arXiv:2311.17005): 20 lists `json/action_sequence.json`, ..., media in `video/` as in its archive.

    A medium is a video, an animated picture, or a folder of frames, which are three a second; `start` and `end` are the
    seconds of the part that is asked about. Files of tasks that are not there are left out, so that some of the 20 can
    be run; their names are in the group "task". The archive's folders are from general knowledge.
    """
    for path in find_files(request.folder, "json/*.json", "*.json"):
        task = path.stem
        if task not in MVBENCH_FOLDERS:
            accepted = ", ".join(MVBENCH_FOLDERS)
            raise InputError(explain(f"{path.name} is no task of MVBench", accepted, "Take the file away"))
        home = MVBENCH_FOLDERS[task]
        folder = media_folder(request.folder, f"video/{home}", home, f"video/{task}", task)
        for place, row in enumerate(rows_of(path)):
            options = bare_options(row, row.sequence("candidates"))
            yield Item(
                id=f"{task}-{place:03d}",
                prompt=request.ask(row.text("question"), options=options_text(options)),
                media=(_clip(row, folder, frames=home.startswith("tvqa")),),
                gold=by_text(row, row.need("answer"), options),
                cluster=f"{home}/{row.text('video')}",
                groups={"task": task},
            )


def _clip(row: Row, folder: Path, frames: bool) -> Footage:
    name = row.text("video")
    path = inside(folder, name) if frames else video_file(folder, name)
    start, end = (row.number(key) for key in ("start", "end"))
    if start is not None and end is not None and not 0 <= start < end:
        raise row.wrong(f"start {start} and end {end}", "seconds, the end after the start")
    return Footage(path, start, end, _FRAMES_FPS if frames or path.is_dir() else None)


def read_nextqa(request: Request) -> Iterator[Item]:
    """NExT-QA (arXiv:2105.08276), multiple choice: `val.csv`, `map_vid_vidorID.json`, videos `NExTVideo/1164/ID.mp4`.

    Without the map a video is `ID.mp4` in the folder. Questions of the file have no mark at their end; it is put there.
    """
    path = find_file(request.folder, f"{request.split}.csv", f"*{request.split}*.csv", f"*/{request.split}.csv")
    folder = media_folder(request.folder, "NExTVideo", "videos", "video")
    places = _video_map(request.folder)
    for row in rows_of(path):
        video, kind = row.text("video"), row.text("type").upper()
        if kind[0] not in "CTD":
            raise row.wrong(f"type is {kind!r}", "a kind that begins with C, T or D")
        options = [row.text(f"a{number}") for number in range(5)]
        yield Item(
            id=f"{video}-{row.text('qid')}",
            prompt=request.ask(_sentence(row.text("question")), options=options_text(options)),
            media=(Footage(video_file(folder, places.get(video, video))),),
            gold=by_number(row, row.need("answer"), options),
            cluster=video,
            groups={"type": kind},
        )


def _sentence(question: str) -> str:
    return question if question.endswith("?") else f"{question}?"


def _video_map(folder: Path) -> dict[str, str]:
    name = "map_vid_vidorID.json"
    if not any(folder.glob(name)) and not any(folder.glob(f"*/{name}")):
        return {}
    path = find_file(folder, name, f"*/{name}")
    return {video: str(place) for video, place in read_object(path).items()}


def read_egoschema(request: Request) -> Iterator[Item]:
    """EgoSchema (arXiv:2308.09126): `questions.json`, `subset_answers.json`, videos `videos/ID.mp4`.

    The split "subset" is the 500 questions with public answers; "full" is all 5031, whose answers only the authors'
    server has.
    """
    answers: dict[str, Any] = {}
    if request.split == "subset":
        path = find_file(request.folder, "subset_answers.json", "*/subset_answers.json")
        answers = read_object(path)
        if not answers:
            raise InputError(explain(f"{path.name} holds no answers", "numbers by question id", "Check the file"))
    folder = media_folder(request.folder, "videos", "good_clips_git", "video")
    seen = set()
    for row in rows_of(find_file(request.folder, "questions.json", "*/questions.json")):
        name = row.text("q_uid")
        if request.split == "subset" and name not in answers:
            continue
        seen.add(name)
        options = [row.text(f"option {number}") for number in range(5)]
        yield Item(
            id=name,
            prompt=request.ask(row.text("question"), options=options_text(options)),
            media=(Footage(video_file(folder, name)),),
            gold=by_number(row, answers[name], options) if answers else {},
            cluster=name,
        )
    missing = sorted(set(answers) - seen)
    if missing:
        got = f"{len(missing)} answers without their question, the first is {missing[0]!r}"
        raise InputError(explain(got, "both files of one version", "Download both again"))


register(
    TaskSource(
        name="mvbench",
        about="Multiple choice in 20 tasks of time and motion (MVBench, arXiv:2311.17005)",
        files="the folders json (a list a task) and video",
        splits=("test",),
        metric="mvbench",
        read=read_mvbench,
        styles=CHOICE_STYLES,
        sampling=Sampling.named("mvbench", frames=8),
    )
)
register(
    TaskSource(
        name="nextqa",
        about="Multiple choice about causes, time and what is seen (NExT-QA, arXiv:2105.08276)",
        files="val.csv, map_vid_vidorID.json, the folder NExTVideo",
        splits=("val", "test", "train"),
        metric="nextqa",
        read=read_nextqa,
        styles=CHOICE_STYLES,
        sampling=Sampling.named("lmms-eval", frames=8),
    )
)
register(
    TaskSource(
        name="egoschema",
        about="Multiple choice about three minutes seen by who acts (EgoSchema, arXiv:2308.09126)",
        files="questions.json, subset_answers.json, the folder videos",
        splits=("subset", "full"),
        metric="egoschema",
        read=read_egoschema,
        styles=CHOICE_STYLES,
        sampling=Sampling.named("lmms-eval", frames=8),
    )
)
