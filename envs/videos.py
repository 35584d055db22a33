"""Films the first rows of a vector while something else plays in it, one animated picture per row.

Put around the vector that a rollout is given, `FilmedRows` sees every reset and step; the rollout knows nothing of it.
Pictures are kept small and as palette indices until they are written: 58 kB for a picture of 480 x 480.
"""

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from gymnasium.vector import VectorEnv, VectorWrapper
from jaxtyping import Bool, UInt8

from bpt_rl.types import UserError
from envs.task_vector import rows_to_reset

if TYPE_CHECKING:
    from PIL.Image import Image

# Faster films are thinned out to this many pictures per second of the environment's time.
MOST_PICTURES_PER_SECOND = 25
# Larger pictures are shrunk by a whole number until their longer side fits.
LONGEST_SIDE = 320
# Milliseconds that the last picture of an episode stays, so that the eye sees where one ends.
PAUSE = 500
_DEFAULT_FPS = 30


class FilmedRows(VectorWrapper):
    """Passes everything on, and keeps pictures of the first rows: at resets, at every so many steps, at the end.

    A row's film holds all of its episodes, one after the other. Steps that it waits for others are left out.

    Args:
        env: from `registry.make_vector(..., num_rendered=num_rows)`, or one with the same manners.
        folder: where `row_00.gif`, `row_01.gif`, ... are written; made if it is missing.
        num_rows: how many rows.

    Raises:
        ValueError: there are not so many rows, or they were not made to be rendered.
        UserError: Pillow is not installed.
    """

    def __init__(self, env: VectorEnv[Any, Any, Any], folder: Path, *, num_rows: int):
        super().__init__(env)
        if not 1 <= num_rows <= env.num_envs:
            raise ValueError(f"expected to film 1 .. {env.num_envs} rows, got {num_rows}")
        if env.render_mode != "rgb_array":
            raise ValueError(f"expected an environment rendered as rgb_array, got {env.render_mode}")
        _require_pillow()
        self._folder = Path(folder)
        fps = float(env.metadata.get("render_fps") or _DEFAULT_FPS)
        self._stride = math.ceil(fps / MOST_PICTURES_PER_SECOND)
        # The unit of time in the file is a hundredth of a second.
        self._milliseconds = 10 * round(100 * self._stride / fps)
        self._pictures: list[list[Image]] = [[] for _ in range(num_rows)]
        self._durations: list[list[int]] = [[] for _ in range(num_rows)]
        self._is_over = np.ones(env.num_envs, bool)
        self._num_steps = 0

    def reset(
        self, *, seed: Any = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Begins an episode as the environment does, and takes its first picture."""
        begins = rows_to_reset(options, self.num_envs)
        shown = self.env.reset(seed=seed, options=options)
        self._is_over &= ~begins
        self._take(begins)
        return shown

    def step(
        self, actions: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        """Plays one step as the environment does, and takes a picture if it is time, or the last of an episode."""
        observation, rewards, terminated, truncated, info = self.env.step(actions)
        self._num_steps += 1
        ends = ~self._is_over & (terminated | truncated)
        self._take(~self._is_over if self._num_steps % self._stride == 0 else ends)
        for row in np.flatnonzero(ends[: len(self._durations)]):
            self._durations[row][-1] += PAUSE
        self._is_over |= ends
        return observation, rewards, terminated, truncated, info

    def write(self) -> list[Path]:
        """Writes what was filmed so far and begins new films; returns the files, none for rows that showed nothing."""
        self._folder.mkdir(parents=True, exist_ok=True)
        files = []
        for row, (pictures, durations) in enumerate(zip(self._pictures, self._durations, strict=True)):
            if pictures:
                files.append(self._folder / f"row_{row:02d}.gif")
                pictures[0].save(
                    files[-1], save_all=True, append_images=pictures[1:], duration=durations, loop=0
                )
                pictures.clear()
                durations.clear()
        return files

    def close(self, **kwargs: Any) -> None:
        """Writes the films and closes the environment."""
        try:
            self.write()
        finally:
            super().close(**kwargs)

    def _take(self, rows: Bool[np.ndarray, " B"]) -> None:
        """Takes a picture of those of `rows` that are filmed; renders only if there are any."""
        chosen = np.flatnonzero(rows[: len(self._pictures)])
        if not len(chosen):
            return
        rendered = self._render()
        for row in chosen:
            self._pictures[row].append(_small(rendered[row]))
            self._durations[row].append(self._milliseconds)

    def _render(self) -> Any:
        try:
            return self.env.render()
        except Exception as error:  # Every simulator fails in its own way.
            raise UserError(
                f"the environment cannot be rendered: {error}. MuJoCo without a display needs MUJOCO_GL=egl among the "
                f"environment variables (or osmesa, with libosmesa6 installed); without videos it needs neither"
            ) from error


def _small(pixels: UInt8[np.ndarray, "height width 3"]) -> "Image":
    """Returns the pixels as a picture of at most `LONGEST_SIDE`, in at most 256 colours."""
    from PIL import Image

    picture = Image.fromarray(pixels)
    factor = math.ceil(max(picture.size) / LONGEST_SIDE)
    return picture.reduce(factor).quantize()


def _require_pillow() -> None:
    try:
        import PIL.Image  # noqa: F401
    except ModuleNotFoundError as error:
        raise UserError(
            "videos need Pillow, which is not installed. It comes with the extras 'plot' and 'mujoco': "
            "pip install -e '.[plot]' -c constraints.txt"
        ) from error
