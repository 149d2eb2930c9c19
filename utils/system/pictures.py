"""Pictures without a screen."""

import io


def new_figure(width: float, height: float, rows: int = 0, columns: int = 0):
    """A matplotlib figure of width x height inches that needs no screen, and its axes row by row; none by default."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure, list(figure.subplots(rows, columns, squeeze=False).flat) if rows else []


def figure_png(figure, dpi: int = 110) -> bytes:
    """The matplotlib figure as the content of a PNG file."""
    figure.savefig(buffer := io.BytesIO(), dpi=dpi, format="png")
    return buffer.getvalue()
