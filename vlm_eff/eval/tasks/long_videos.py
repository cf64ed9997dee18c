"""Video-MME, MLVU and LongVideoBench: multiple choice about videos from seconds to hours, some with subtitles."""

from __future__ import annotations

from collections.abc import Iterator

from vlm_eff.eval.tasks.choices import CHOICE_STYLES, bare_options, by_letter, by_number, by_text, options_text
from vlm_eff.eval.tasks.files import find_file, find_files, inside, media_folder
from vlm_eff.eval.tasks.footage import read_srt, read_subtitle_json, video_file
from vlm_eff.eval.tasks.item import Footage, Item
from vlm_eff.eval.tasks.rows import Row, rows_of
from vlm_eff.eval.tasks.source import Request, TaskSource, register
from vlm_eff.video.sampling import Sampling

_LISTED = "This video's subtitles are listed below:\n{subtitles}\n"
# the two tasks of MLVU whose answers are texts that a judge would have to read
_MLVU_GENERATION = ("sub_scene", "subscene", "subplot", "summary")
# seconds up to which a video of LongVideoBench belongs to a group
_DURATIONS = (15, 60, 600, 3600)


def read_videomme(request: Request, subtitles: bool = False) -> Iterator[Item]:
    """Video-MME (arXiv:2405.21075): `videomme/test-00000-of-00001.parquet` or a TSV, videos `data/ID.mp4`.

    With `subtitles` those of `subtitle/ID.srt` stand before the question, all of them: the official way takes those at
    the frames that are shown, which are not known when the file is read. Videos without the file have none, and the
    prompt says so.
    """
    names = ("videomme/test*.parquet", "test*.parquet", "*ideo*mme*.parquet", "*ideo*MME*.tsv", "*ideo*mme*.jsonl")
    folder = media_folder(request.folder, "data", "videos", "video")
    for path in find_files(request.folder, *names):
        for row in rows_of(path):
            video = row.text("videoID", "video")
            options = bare_options(row, row.sequence("options", "candidates"))
            question = row.text("question")
            if subtitles:
                question = _subtitles(request, video) + question
            yield Item(
                id=row.text("question_id", "index"),
                prompt=request.ask(question, options=options_text(options)),
                media=(Footage(video_file(folder, video)),),
                gold=by_letter(row, row.need("answer"), options),
                cluster=video,
                groups={
                    **{name: row.text(name) for name in ("duration", "domain", "task_type") if row.find(name)},
                    "subtitles": "with" if subtitles else "without",
                },
            )


def _subtitles(request: Request, video: str) -> str:
    path = inside(media_folder(request.folder, "subtitle", "subtitles"), f"{video}.srt")
    lines = [line.text for line in read_srt(path)] if path.exists() else []
    return _LISTED.format(subtitles="\n".join(lines) or "No subtitles available.")


def read_mlvu(request: Request) -> Iterator[Item]:
    """MLVU (arXiv:2406.04264), its multiple-choice tasks: `json/1_plotQA.json`, ..., videos `video/1_plotQA/*.mp4`.

    The split "dev" is all files of `json/` but the two whose answers need a judge; "test" is `test_multi_choice_tasks`,
    with videos in `test_video/`. The sum over tasks is the mean of their means. From general knowledge of the files.
    """
    if request.split == "test":
        paths = find_files(request.folder, "test*multi*.json", "*/test*multi*.json", "test.json")
    else:
        found = find_files(request.folder, "json/*.json", "MLVU/json/*.json", "[0-9]_*.json")
        paths = [path for path in found if not any(one in path.stem.lower() for one in _MLVU_GENERATION)]
    for path in paths:
        home = "test_video" if request.split == "test" else f"video/{path.stem}"
        folder = media_folder(request.folder, home, f"MLVU/{home}", f"videos/{path.stem}", "video", "videos")
        for place, row in enumerate(rows_of(path)):
            options = bare_options(row, row.sequence("candidates"))
            kind, video = row.text("question_type"), row.text("video")
            answer = row.find("answer")
            yield Item(
                id=str(row.find("question_id") or f"{path.stem}-{place:04d}"),
                prompt=request.ask(row.text("question"), options=options_text(options)),
                media=(Footage(video_file(folder, video)),),
                gold={} if answer is None else by_text(row, _bare(answer, row), options),
                cluster=video,
                groups={"task": kind},
            )


def _bare(answer: object, row: Row) -> str:
    """The answer's text as in the options, which may have lost the letters before them."""
    written = [str(one).strip() for one in row.sequence("candidates")]
    text = str(answer).strip()
    return bare_options(row, written)[written.index(text)] if text in written else text


def read_longvideobench(request: Request, subtitles: bool = True) -> Iterator[Item]:
    """LongVideoBench (arXiv:2407.15754): `lvb_val.json`, `videos/`, `subtitles/`.

    Subtitles stand before the question with their time in seconds, those before the start of the video left out. The
    official way puts each between the frames that are shown around it; here all frames come first, and a time is all
    that ties a subtitle to them. A file of subtitles that is named and missing is an error. "test" has no gold answers.
    """
    stems = ("lvb_val",) if request.split == "val" else ("lvb_test_wo_gt", "lvb_test")
    path = find_file(request.folder, *(f"{stem}{ending}" for stem in stems for ending in (".json", ".jsonl")))
    folder = media_folder(request.folder, "videos")
    for row in rows_of(path):
        video = row.text("video_path")
        options = bare_options(row, row.sequence("candidates"))
        answer = row.find("correct_choice")
        question = row.text("question")
        if subtitles and row.find("subtitle_path"):
            question = _timed(request, row) + question
        yield Item(
            id=row.text("id"),
            prompt=request.ask(question, options=options_text(options)),
            media=(Footage(video_file(folder, video)),),
            gold={} if answer is None or request.split == "test" else by_number(row, answer, options),
            cluster=str(row.find("video_id") or video),
            groups={"duration_group": _duration(row), **_category(row)},
        )


def _timed(request: Request, row: Row) -> str:
    path = inside(media_folder(request.folder, "subtitles"), row.text("subtitle_path"))
    first, last = row.number("starting_timestamp_for_subtitles") or 0.0, row.number("duration")
    lines = [line for line in read_subtitle_json(path, first) if last is None or line.start <= last]
    return _LISTED.format(subtitles="\n".join(f"[{line.start:.1f}s] {line.text}" for line in lines)) if lines else ""


def _duration(row: Row) -> str:
    given = row.find("duration_group")
    if given is None:
        # clips of a group are a little longer than its name
        seconds = row.number("duration") or 0.0
        given = next((limit for limit in _DURATIONS if seconds <= limit * 1.1), _DURATIONS[-1])
    return str(given)


def _category(row: Row) -> dict[str, str]:
    return {name: row.text(name) for name in ("question_category", "level") if row.find(name)}


register(
    TaskSource(
        name="videomme",
        about="Multiple choice about short, medium and long videos (Video-MME, arXiv:2405.21075)",
        files="videomme/test-00000-of-00001.parquet or Video-MME.tsv, the folders data and subtitle",
        splits=("test",),
        metric="video_mme",
        read=read_videomme,
        styles=CHOICE_STYLES,
        sampling=Sampling.named("lmms-eval", frames=8),
    )
)
register(
    TaskSource(
        name="mlvu",
        about="Multiple choice about long videos, a file a task (MLVU, arXiv:2406.04264)",
        files="the folders json and video, or test_multi_choice_tasks.json and test_video",
        splits=("dev", "test"),
        metric="mlvu",
        read=read_mlvu,
        styles=CHOICE_STYLES,
        sampling=Sampling.named("lmms-eval", frames=8),
    )
)
register(
    TaskSource(
        name="longvideobench",
        about="Multiple choice about videos with subtitles, 8 seconds to an hour (LongVideoBench, arXiv:2407.15754)",
        files="lvb_val.json, the folders videos and subtitles",
        splits=("val", "test"),
        metric="longvideobench",
        read=read_longvideobench,
        styles=CHOICE_STYLES,
        sampling=Sampling.named("longvideobench", max_frames=8),
    )
)
