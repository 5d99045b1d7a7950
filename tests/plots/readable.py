"""Whether a figure can be read at its size: type of at least 7 points, nothing over something else, nothing cut off."""

from itertools import combinations

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.text import Text


def check_readable(figure, smallest=7.0):
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    renderer = canvas.get_renderer()
    texts = [text for text in _texts(figure) if text.get_text() and text.get_visible()]
    assert texts
    too_small = [text.get_text() for text in texts if text.get_fontsize() < smallest]
    assert not too_small, too_small
    boxes = {text: text.get_window_extent(renderer) for text in texts}
    width, height = figure.get_size_inches() * figure.dpi
    for text, box in boxes.items():
        inside = box.x0 > -1 and box.y0 > -1 and box.x1 < width + 1 and box.y1 < height + 1
        assert inside, f"{text.get_text()!r} is cut off: {box} in {width} x {height}"
    for one, other in combinations(texts, 2):
        overlap = _overlap(boxes[one], boxes[other])
        assert not overlap, f"{one.get_text()!r} lies over {other.get_text()!r}"


def _texts(figure):
    """matplotlib makes ticks beyond the ends of an axis as well, and does not draw these."""
    drawn, ticks = [], set()
    for axes in figure.axes:
        for axis in (axes.xaxis, axes.yaxis):
            ticks |= {text for tick in (*axis.majorTicks, *axis.minorTicks) for text in (tick.label1, tick.label2)}
            shown = axis._update_ticks() if axes.axison else []
            drawn += [text for tick in shown for text in (tick.label1, tick.label2)]
        if not axes.axison:
            ticks |= {axes.xaxis.label, axes.yaxis.label}
    return [*drawn, *(text for text in figure.findobj(Text) if text not in ticks)]


def _overlap(one, other, slack=1.0):
    across = min(one.x1, other.x1) - max(one.x0, other.x0)
    along = min(one.y1, other.y1) - max(one.y0, other.y0)
    return across > slack and along > slack
