"""Sample images while training: contact sheets in `samples/` and pictures in TensorBoard.

Why: the loss of a diffusion model says little; a person sees at a glance whether it learns.

Known gap: drawn by rank 0 while the others wait.
"""

import textwrap
from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw
from torch.utils.tensorboard import SummaryWriter

from dpiped.trainer.dataset import Pixels

MOST_PROMPTS = 8
CELL = 128
CAPTION_HEIGHT = 40


def default_prompts(captions: Sequence[str]) -> list[str]:
    """Some of the data set's captions, from all over it."""
    captions = [caption for caption in captions if caption]
    stride = max(len(captions) // MOST_PROMPTS, 1)
    return list(captions[::stride][:MOST_PROMPTS])


def contact_sheet(images: Pixels, captions: list[str], columns: int = 4) -> Image.Image:
    """Images [n, side, side, 3] in rows, each above its caption."""
    columns = min(columns, len(captions))
    rows = -(-len(captions) // columns)
    cell = max(CELL, images.shape[1])
    sheet = Image.new("RGB", (columns * cell, rows * (cell + CAPTION_HEIGHT)), "white")
    draw = ImageDraw.Draw(sheet)
    for index, (pixels, caption) in enumerate(zip(images, captions, strict=True)):
        left, top = index % columns * cell, index // columns * (cell + CAPTION_HEIGHT)
        picture = Image.fromarray(pixels).resize((cell, cell), Image.Resampling.NEAREST)
        sheet.paste(picture, (left, top))
        lines = textwrap.wrap(caption, cell // 6)[:3]
        draw.text((left + 3, top + cell + 2), "\n".join(lines), fill="black", font_size=10, spacing=1)
    return sheet


def publish(run_dir: Path, step: int, images: Pixels, captions: list[str], writer: SummaryWriter) -> None:
    """Writes `samples/step_NNNNNN.png` and the images `samples/N` with their captions to TensorBoard."""
    folder = run_dir / "samples"
    folder.mkdir(exist_ok=True)
    contact_sheet(images, captions).save(folder / f"step_{step:06d}.png")
    for index, (pixels, caption) in enumerate(zip(images, captions, strict=True), 1):
        writer.add_image(f"samples/{index}", pixels, step, dataformats="HWC")
        writer.add_text(f"samples/{index}/caption", caption, step)
    writer.flush()
