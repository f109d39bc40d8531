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
    """Images [n, height, width, 3] in rows, each above its caption."""
    columns = min(columns, len(captions))
    rows = -(-len(captions) // columns)
    height, width = images.shape[1:3]
    scale = max(CELL // max(height, width), 1)
    wide, high = max(width * scale, CELL), height * scale + CAPTION_HEIGHT
    sheet = Image.new("RGB", (columns * wide, rows * high), "white")
    draw = ImageDraw.Draw(sheet)
    for index, (pixels, caption) in enumerate(zip(images, captions, strict=True)):
        left, top = index % columns * wide, index // columns * high
        picture = Image.fromarray(pixels).resize((width * scale, height * scale), Image.Resampling.NEAREST)
        sheet.paste(picture, (left, top))
        lines = textwrap.wrap(caption, wide // 6)[:3]
        draw.text(
            (left + 3, top + height * scale + 2), "\n".join(lines), fill="black", font_size=10, spacing=1
        )
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
