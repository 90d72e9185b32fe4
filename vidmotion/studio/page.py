"""The layout of the page of ``vidmotion studio``: four tabs that call the functions of `vidmotion.studio`."""

import contextlib
import os
import secrets
import tempfile
from collections.abc import Iterator

import gradio as gr
import numpy as np
import pandas as pd

from vidmotion import animate, media, studio
from vidmotion.data import heads
from vidmotion.reenact import reenact

MOTION = ("yaw", "pitch", "roll", "mouth_open", "smile", "lid_left", "lid_right", "gaze_x")
IDENTITY = ("face_width", "jaw", "skin", "eye_size", "hair_volume")


@contextlib.contextmanager
def said() -> Iterator[None]:
    """Shows errors that the visitor can mend as one sentence on the page."""
    try:
        yield
    except studio.MENDABLE as error:
        raise gr.Error(str(error), print_exception=False) from error


def fresh(suffix: str) -> str:
    """Returns a path that nobody can guess, in the folder whose files the page serves."""
    folder = os.path.join(os.environ["GRADIO_TEMP_DIR"], secrets.token_hex(16))
    os.makedirs(folder)
    return os.path.join(folder, f"result{suffix}")


def build(runs: str, workdirs: tuple[str, ...] = ()) -> gr.Blocks:
    """Builds the page for the shipped networks, the runs in a folder, and further workdirs."""
    shipped, found = studio.shipped(), studio.found(runs, workdirs)
    known = {**shipped, **found}
    able = studio.movers(known)

    def place(name: str | None) -> str:
        if not name:
            raise gr.Error(
                f"there is no run to choose; train one in {runs}, or start the studio with --workdir=RUN",
                print_exception=False,
            )
        return known[name]

    with gr.Blocks(title="vidmotion") as page:
        gr.Markdown("# vidmotion\nMotion and content, learned apart.")
        with gr.Tab("Heads"):
            _heads(able, list(shipped) or able[:1], place)
        with gr.Tab("Your files"):
            _files(able, place)
        with gr.Tab("Latents"):
            _latents(able, place)
        with gr.Tab("Runs"):
            _runs(list(found), place)
    return page.queue(max_size=16, default_concurrency_limit=1)


def _sliders(factors, names, values) -> list[gr.Slider]:
    chosen = [f for f in factors if f.name in names and f.kind == "continuous"]
    return [
        gr.Slider(f.low, f.high, values[f.name], label=f.name.replace("_", " "), info=f.meaning)
        for f in chosen
    ]


def _names(factors, names) -> list[str]:
    return [f.name for f in factors if f.name in names and f.kind == "continuous"]


def _heads(able, first, place) -> None:
    who_names = _names(heads.IDENTITY_FACTORS, IDENTITY)
    pose_names = _names(heads.MOTION_FACTORS, MOTION)
    gr.Markdown(
        "Set up a head and record the motion of another that drives it. The exact answer is drawn beside the results."
    )
    recorded = gr.State([])
    with gr.Row():
        with gr.Column():
            seed = gr.Number(1, label="head", precision=0, minimum=0)
            with gr.Accordion("who", open=True):
                who = _sliders(heads.IDENTITY_FACTORS, IDENTITY, studio.head(1))
        with gr.Column(), gr.Accordion("how it moves", open=True):
            pose = _sliders(heads.MOTION_FACTORS, MOTION, studio.rest())
        with gr.Column():
            shown = gr.Image(label="this pose", height=256, interactive=False)
            record, clear = gr.Button("Record this pose"), gr.Button("Forget the poses")
            count = gr.Markdown("No pose is recorded, so the driver moves at random.")
    with gr.Row():
        chosen = gr.CheckboxGroup(able, value=first, label="systems")
        driver = gr.Number(2, label="driver's head", precision=0, minimum=0)
    with gr.Row():
        go, stop = gr.Button("Move", variant="primary"), gr.Button("Stop")
    video = gr.Video(label="driver, systems, exact answer", loop=True, autoplay=True)
    figures = gr.Dataframe(
        headers=["run", "dB", "dB with another motion"],
        label="PSNR against the exact answer",
        interactive=False,
    )

    def identity(number, *values):
        values = values[: len(who_names)]
        return {**studio.head(int(number or 0)), **dict(zip(who_names, map(float, values)))}

    def posed(*values):
        return {**studio.rest(), **dict(zip(pose_names, map(float, values)))}

    def draw(number, *values):
        motion = studio.between([posed(*values[len(who_names) :])], 1)
        return heads.render(identity(number, *values), motion, 256)[0]

    def reset(number):
        values = studio.head(int(number or 0))
        return [values[name] for name in who_names]

    def add(poses, *values):
        poses = [*poses, posed(*values)][-16:]
        return poses, f"Poses recorded: {len(poses)}. Two or more make a motion."

    def move(runs, number, other, poses, *values, progress=gr.Progress()):  # noqa: B008 - how Gradio asks for one
        if not runs:
            raise gr.Error("choose at least one system", print_exception=False)
        person, sitter = identity(number, *values), studio.head(int(other or 0))
        course = (
            studio.between(poses, 24) if len(poses) > 1 else studio.motion_of(int(other or 0), 24)
        )
        panels, labels, rows = [], [], []
        for k, name in enumerate(runs):
            progress(k / len(runs), desc=f"{name} (slower the first time, while it is compiled)")
            with said():
                moved = studio.move_head(studio.opened(place(name)), person, course, sitter)
            panels.append(moved.video)
            labels.append(name.partition(" ")[0])
            rows.append([name, round(moved.psnr, 2), round(moved.wrong, 2)])
            yield gr.skip(), rows
        length = 16
        motion = studio.resampled(course, length)
        clips = [heads.render(sitter, motion, 128)]
        clips += [
            _enlarged(clip[np.linspace(0, len(clip) - 1, length).round().astype(int)])
            for clip in panels
        ]
        clips.append(heads.render(person, motion, 128))
        names = ["driver", *labels, "exact"]
        path = fresh(".mp4")
        media.write_mp4(path, (media.beside(row, names) for row in zip(*clips)), 2 * studio.FPS)
        yield path, rows

    inputs = [seed, *who, *pose]
    for part in (*who, *pose):
        part.input(draw, inputs, shown, show_progress="hidden", trigger_mode="always_last")
    seed.change(reset, seed, who).then(draw, inputs, shown, show_progress="hidden")
    record.click(add, [recorded, *pose], [recorded, count])
    clear.click(
        lambda: ([], "No pose is recorded, so the driver moves at random."), None, [recorded, count]
    )
    event = go.click(move, [chosen, seed, driver, recorded, *who], [video, figures])
    stop.click(None, cancels=[event])
    gr.on(None, draw, inputs, shown, show_progress="hidden")


def _enlarged(clip: np.ndarray) -> np.ndarray:
    return clip.repeat(128 // clip.shape[1], axis=1).repeat(128 // clip.shape[2], axis=2)


def _files(able, place) -> None:
    gr.Markdown(
        f"Move a picture of your own by a video of your own, of at most {studio.MOST_BYTES // 2**20} MiB and "
        f"{studio.MOST_SECONDS:.0f} s each. A run only knows what it was trained on: one that was trained on cartoon "
        "heads turns everybody into a cartoon head."
    )
    with gr.Row():
        picture = gr.File(label="picture or video to move", type="filepath")
        motion = gr.File(label="video with the motion", type="filepath")
        seen = gr.Image(label="the part that is used", height=256, interactive=False)
    with gr.Row():
        run = gr.Dropdown(able, value=able[0] if able else None, label="run")
        box = gr.Textbox(
            "detect",
            label="face: detect, whole, or x0,y0,x1,y1",
            info="for systems that look at faces",
        )
        strength = gr.Slider(0, 2, 1, label="strength", info="of the expression (X-NeMo only)")
        relative = gr.Textbox("", label="relative to frame", info="a number or best (X-NeMo only)")
        paste = gr.Checkbox(False, label="paste back", info="into the whole picture")
    with gr.Row():
        go, stop = gr.Button("Move", variant="primary"), gr.Button("Stop")
    status = gr.Markdown()
    result = gr.Video(label="content, motion and result, with the sound of the motion")
    manifest = gr.File(label="manifest: the weights, inputs and settings used", interactive=False)

    def look(path, run, where):
        if not path:
            return None
        with said():
            studio.check_upload(path, "picture", moving=False)
            picture = animate.first_picture(path)
            extent = picture.shape[1], picture.shape[0]
            if studio.opened(place(run)).run.system.face_side:
                found = animate.locate([picture], os.path.basename(path), where).boxes[0]
            else:
                side = min(extent)
                left, top = (extent[0] - side) / 2, (extent[1] - side) / 2
                found = np.array([left, top, left + side, top + side])
        return _framed(picture, found)

    def move(content, driver, name, where, strength, relative, paste):
        with said():
            studio.check_upload(content, "picture", moving=False)
            studio.check_upload(driver, "video", moving=True)
            one, out = studio.opened(place(name)), fresh(".mp4")
            faces = bool(one.run.system.face_side)
            drive = (
                animate.Drive(strength=strength, relative=relative.strip())
                if faces
                else animate.VIDEO
            )
            looked = animate.Faces(where if faces else "detect", "detect", "still", paste)

            def work(tell):
                return reenact(
                    one.run,
                    content,
                    driver,
                    out,
                    side_by_side=True,
                    where=looked,
                    drive=drive,
                    tell=tell,
                )

            yield (
                "reading; the first video of a run takes longer, because it is compiled",
                None,
                None,
            )
            for step in studio.in_steps(work):
                if isinstance(step, tuple):
                    of = f" of {step[1]}" if step[1] else ""
                    yield f"{step[0]}{of} frames", None, None
            yield "done", out, f"{out}.json"

    for part in (picture, run, box):
        part.change(look, [picture, run, box], seen)
    event = go.click(
        move, [picture, motion, run, box, strength, relative, paste], [status, result, manifest]
    )
    stop.click(lambda: "stopped", None, status, cancels=[event])


def _framed(picture: np.ndarray, box: np.ndarray) -> np.ndarray:
    """Draws a red frame around the part of a picture that is used, given as a box x0, y0, x1, y1."""
    framed, width = picture.copy(), max(2, min(picture.shape[:2]) // 100)
    height, across = picture.shape[:2]
    x0, y0, x1, y1 = np.clip(box.round().astype(int), 0, [across, height, across, height])
    inner = framed[y0 + width : y1 - width, x0 + width : x1 - width].copy()
    framed[y0:y1, x0:x1] = (230, 30, 30)
    framed[y0 + width : y1 - width, x0 + width : x1 - width] = inner
    return framed


def _latents(able, place) -> None:
    gr.Markdown(
        "See what the codes hold: a walk between two motions, each latent alone, and the bits of each frame."
    )
    with gr.Row():
        run = gr.Dropdown(able, value=able[0] if able else None, label="run")
        seed = gr.Number(1, label="head", precision=0, minimum=0)
        driver = gr.Number(2, label="driver's head", precision=0, minimum=0)
    with gr.Row():
        walk = gr.Button("Walk between two motions")
        alone = gr.Button("Each latent alone (VidTwin)")
        count = gr.Button("Bits per frame (BCD)")
    strip = gr.Image(label="frames", interactive=False)
    plot = gr.BarPlot(
        x="frame",
        y="bits",
        sort=None,
        y_lim=[0, None],
        label="bits per frame, from the histogram of eight random heads",
    )

    def walked(name, number, other):
        with said():
            one = studio.opened(place(name))
            who, sitter = studio.head(int(number or 0)), studio.head(int(other or 0))
            clip = studio.walk(one, who, sitter, seed=int(other or 0))
        return media.strip(clip, scale=2)

    def shown(name, number, other):
        with said():
            one = studio.opened(place(name))
            who, sitter = studio.head(int(number or 0)), studio.head(int(other or 0))
            made = studio.parts(one, who, studio.motion_of(int(other or 0), 16), sitter)
        return np.concatenate([media.strip(clip, scale=2) for clip in made.values()])

    def counted(name):
        with said():
            pairs = studio.bits(studio.opened(place(name)))
        table = pd.DataFrame(pairs, columns=["frame", "bits"])
        return table.astype({"frame": str})  # the axis of numbers would have fractions of frames

    walk.click(walked, [run, seed, driver], strip)
    alone.click(shown, [run, seed, driver], strip)
    count.click(counted, run, plot)


def _runs(names, place) -> None:
    gr.Markdown("See the curves, pictures and figures of one run, or of two side by side.")
    first = names[0] if names else None
    with gr.Row():
        left = gr.Dropdown(names, value=first, label="run")
        right = gr.Dropdown(["", *names], value="", label="compare with")
        metric = gr.Dropdown(
            ["loss/model"], value="loss/model", label="curve", allow_custom_value=True
        )
        go = gr.Button("Show", variant="primary")
    curve = gr.LinePlot(
        x="step",
        y="value",
        color="run",
        height=320,
    )
    with gr.Row():
        galleries = [gr.Gallery(label="pictures", columns=2, height=360) for _ in range(2)]
    with gr.Row():
        tables = [
            gr.Dataframe(headers=["metric", "value"], label="record", interactive=False)
            for _ in range(2)
        ]

    def show(one, other, chosen):
        pair = {name: place(name) for name in (one, other) if name}
        with said():
            points = studio.curves(pair, chosen)
        folders = [*pair.values(), ""][:2]
        shown = [
            [media.read_picture(p) for p in studio.pictures(f)[-8:]] if f else [] for f in folders
        ]
        rows = [studio.results(f) if f else [] for f in folders]
        return pd.DataFrame(points, columns=["step", "value", "run"]), *shown, *rows

    def named(name):
        return gr.update(choices=studio.metrics(place(name)))

    left.change(named, left, metric)
    go.click(show, [left, right, metric], [curve, *galleries, *tables])


def temporary() -> str:
    """Creates a folder for the files of the page and makes Gradio use it from now on."""
    folder = os.path.realpath(tempfile.mkdtemp(prefix="vidmotion-studio-"))
    os.environ["GRADIO_TEMP_DIR"] = folder
    return folder
