"""Run by path in a process of its own by `apart.py`; imports decord and nothing of this package, so it starts fast.

Speaks JSON, a line at a time: out {total, fps}; in {indices, out, partial}; out {read, timestamps}. Frames go into the
file `out`. An error is {error}.
"""

import json
import os
import sys


def serve(path, answer):
    """Open the video, say what it is, and decode what is asked for."""
    import decord
    import numpy

    reader = decord.VideoReader(path, num_threads=1)
    answer({"total": len(reader), "fps": float(reader.get_avg_fps())})
    asked = json.loads(sys.stdin.readline())
    if asked["partial"]:
        answer({"read": readable(reader)})
        asked = json.loads(sys.stdin.readline())
    frames = reader.get_batch(asked["indices"]).asnumpy()
    begins = [float(pair[0]) for pair in reader.get_frame_timestamp([0, *asked["indices"]])]
    numpy.save(asked["out"], frames)
    answer({"read": len(frames), "timestamps": [begin - begins[0] for begin in begins[1:]]})


def readable(reader):
    """Frames from the start up to the first that fails."""
    for number in range(len(reader)):
        try:
            reader.next()
        except Exception:
            return number
    reader.seek(0)
    return len(reader)


def main():
    """Answer on the real standard output; what FFmpeg prints goes to standard error."""
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)

    def answer(message):
        out.write(json.dumps(message) + "\n")
        out.flush()

    try:
        serve(sys.argv[1], answer)
    except Exception as error:
        answer({"error": f"{type(error).__name__}: {error}".split("\n")[0][:300]})


if __name__ == "__main__":
    main()
