"""A decided architecture as a drawing: stages of the backbone, the two paths of the neck, the head."""

from __future__ import annotations

from collections.abc import Mapping

from markupsafe import Markup

from hitdet_nni.config.architecture import Architecture
from hitdet_nni.config.skeleton import SearchedLayer, Skeleton
from hitdet_nni.cost.cost_model import Cost, CostModel
from hitdet_nni.operators.registry import parse_operator
from hitdet_nni.report import svg
from hitdet_nni.report.axes import number
from hitdet_nni.report.operator_text import block_text

BLOCK, HEIGHT = 108, 24
"""Width and height of a block, in units that are about a pixel each."""

GAP = 30
"""Room between two columns, for the arrows."""

PITCH = HEIGHT + 12
COLUMN = BLOCK + GAP
EDGE = 14
TITLE = 24
SUM = 8
"""Radius of the circle that adds two maps."""


def draw_architecture(architecture: Architecture) -> Markup:
    """Draw an architecture.

    The backbone's stages are columns, data goes down in each and on to the next one; below each stage whose map the
    neck takes stand the neck's two operators of that level; the head is the row at the bottom.

    Source:
        Figure 5.
    """
    return _Drawing(architecture).draw()


class _Drawing:
    """The parts of one drawing as they are laid out.

    Args:
        architecture: What is drawn.
    """

    def __init__(self, architecture: Architecture) -> None:
        self.architecture = architecture
        self.skeleton: Skeleton = architecture.skeleton
        self.sample: Mapping[str, str] = architecture.sample
        model = CostModel(self.skeleton, architecture.num_classes)
        layers = self.skeleton.searched_layers()
        self.costs: dict[str, Cost] = {
            layer.label: model.layer_cost(layer, self.sample[layer.label]) for layer in layers
        }
        self.layers: dict[str, list[SearchedLayer]] = {}
        for layer in layers:
            self.layers.setdefault(layer.component, []).append(layer)
        self.panels: list[Markup] = []
        self.arrows: list[Markup] = []
        self.parts: list[Markup] = []

    def draw(self) -> Markup:
        """Return all parts, in the order of the data."""
        skeleton = self.skeleton
        columns = 1 + len(skeleton.depths) + (skeleton.tail is not None)
        levels = self._level_columns()
        extra = skeleton.extra_levels
        width = max(columns, levels[-1] + 1 + extra, self._head_columns()) * COLUMN - GAP + 2 * EDGE
        bottom = self._backbone()
        neck_bottom = self._neck(bottom + PITCH)
        end = self._head(neck_bottom + PITCH + 6)
        tops = (4.0, bottom + PITCH - 8, neck_bottom + PITCH - 4)
        ends = (bottom + 10, neck_bottom + 8, end)
        head = 12 + EDGE + BLOCK / 2  # right of the arrow that comes from the neck
        for name, left, top, low in zip(self._titles(), (12, 12, head), tops, ends, strict=True):
            self.panels.append(svg.element("rect", x=2, y=top, width=width - 4, height=low - top, rx=8, class_="panel"))
            self.panels.append(svg.text(name, left, top + 17, class_="panel-title"))
        label = f"The architecture {self.architecture.name}: " + "; ".join(
            f"{component} {', '.join(self.sample[layer.label] for layer in layers)}"
            for component, layers in self.layers.items()
        )
        return svg.drawing(
            width, end + 4, label, _arrowhead(), *self.panels, *self.arrows, *self.parts, class_="architecture"
        )

    def _titles(self) -> tuple[str, str, str]:
        height, width = self.skeleton.input_size
        head = "RoI head" if self.skeleton.layout.pooled else "One-stage head, on every level of the pyramid"
        channels = self.skeleton.neck_width
        return f"Backbone, input {height} × {width}", f"Neck, {channels} channels", head

    def _level_columns(self) -> list[int]:
        """Return the column of each map that the neck takes; the stem is column 0."""
        columns = [1 + stage for stage in self.skeleton.output_stages]
        if self.skeleton.tail is not None:
            columns[-1] = 1 + len(self.skeleton.depths)
        return columns[self.skeleton.start_level :]

    def _head_columns(self) -> int:
        return self.skeleton.head_blocks + (4 if self.skeleton.layout.pooled else 3)

    def _x(self, column: float) -> float:
        return EDGE + column * COLUMN

    def _backbone(self) -> float:
        """Draw it from the top; the place of its lower edge."""
        skeleton, top = self.skeleton, 4.0 + TITLE + 38
        bottom = top + max(skeleton.depths) * PITCH - 12
        last = bottom - HEIGHT
        self._fixed(f"stem {skeleton.stem_channels} ch", self._x(0), last, "3×3 convolution, stride 2")
        total, layers = 2, iter(self.layers["backbone"])
        for stage, (width, depth, stride) in enumerate(
            zip(skeleton.widths, skeleton.depths, skeleton.strides, strict=True)
        ):
            x, total = self._x(stage + 1), total * stride
            first = bottom - depth * PITCH + 12
            heading = f"stage {stage + 1}"
            self.parts.append(svg.text(heading, x + BLOCK / 2, first - 20, anchor="middle", class_="stage"))
            self.parts.append(
                svg.text(f"{width} ch, 1/{total}", x + BLOCK / 2, first - 7, anchor="middle", class_="note")
            )
            self._between(x, last + HEIGHT / 2, first + HEIGHT / 2)
            for index in range(depth):
                y = first + index * PITCH
                self._block(next(layers), x, y)
                if index:
                    self._arrow((x + BLOCK / 2, y - 12), (x + BLOCK / 2, y))
        if skeleton.tail is not None:
            x = self._x(1 + len(skeleton.depths))
            self._fixed(
                f"tail {skeleton.tail.out_channels} ch",
                x,
                last,
                f"IR 3×3 to {skeleton.tail.width} channels, 1×1 convolution to {skeleton.tail.out_channels}",
            )
            self._between(x, last + HEIGHT / 2, last + HEIGHT / 2)
        return bottom

    def _between(self, x: float, start: float, end: float) -> None:
        """Draw the arrow from the last block of a column to the first of the next one at ``x``."""
        self._arrow((x - GAP, start), (x - GAP / 2, start), (x - GAP / 2, end), (x, end))

    def _neck(self, top: float) -> float:
        """Draw it below the backbone; the place of its lower edge."""
        layers, columns = self.layers["neck"], self._level_columns()
        count = len(columns)
        first = top + TITLE + 10
        sums = first + HEIGHT + 14 + SUM
        second = sums + SUM + 14
        merged = second + HEIGHT + 14 + SUM
        fused = merged + SUM + 12
        bus = fused + HEIGHT + 30
        start = self.skeleton.start_level
        self.parts.append(svg.text("top-down", self._x(0), sums + 4, class_="note"))
        self.parts.append(svg.text("bottom-up", self._x(0), merged + 4, class_="note"))
        for level, column in enumerate(columns):
            x = self._x(column)
            middle = x + BLOCK / 2
            self._arrow((middle, top - PITCH), (middle, first))
            self.parts.append(svg.text(f"C{level + start + 2}", middle + 6, first - 8, class_="note"))
            self._block(layers[level], x, first)
            self._block(layers[count + level], x, second)
            if level == count - 1:
                self._arrow((middle, first + HEIGHT), (middle, second))
            else:
                self._arrow((middle, first + HEIGHT), (middle, sums - SUM))
                self._sum(middle, sums)
                self._arrow((middle, sums + SUM), (middle, second))
                later = self._x(columns[level + 1]) + BLOCK / 2
                end = later if level == count - 2 else later - SUM
                self._arrow((end, sums), (middle + SUM, sums))
                self.parts.append(svg.text("up ×2", (middle + later) / 2, sums - 5, anchor="middle", class_="note"))
            if level == 0:
                self._arrow((middle, second + HEIGHT), (middle, bus))
            else:
                before = self._x(columns[level - 1]) + BLOCK / 2
                self._arrow((middle, second + HEIGHT), (middle, merged - SUM))
                self._sum(middle, merged)
                place = fused + HEIGHT + 11 if level > 1 else merged
                self._arrow((before, place), (x - 14, place), (x - 14, merged), (middle - SUM, merged))
                self.parts.append(svg.text("pool /2", x + 20, merged - 5, anchor="middle", class_="note"))
                self._arrow((middle, merged + SUM), (middle, fused))
                self._fixed("conv 3×3", x, fused, "3×3 convolution on the sum of the two paths")
                self._arrow((middle, fused + HEIGHT), (middle, bus))
            self.parts.append(svg.text(f"N{level + start + 2}", middle + 6, bus - 4, class_="note"))
        self._extra_levels(columns[-1], fused, bus, start + count + 2)
        right = self._x(columns[-1] + self.skeleton.extra_levels) + BLOCK / 2
        self.parts.append(svg.line(self._x(0) + BLOCK / 2, bus, right, bus, "bus"))
        return bus

    def _extra_levels(self, column: int, y: float, bus: float, level: int) -> None:
        kind = "conv 3×3 /2" if self.skeleton.layout.extra_convs else "subsample /2"
        for index in range(self.skeleton.extra_levels):
            x = self._x(column + 1 + index)
            self._arrow((x - GAP, y + HEIGHT / 2), (x, y + HEIGHT / 2))
            self._fixed(kind, x, y, "a level behind the coarsest map")
            self._arrow((x + BLOCK / 2, y + HEIGHT), (x + BLOCK / 2, bus))
            self.parts.append(svg.text(f"N{level + index}", x + BLOCK / 2 + 6, bus - 4, class_="note"))

    def _head(self, top: float) -> float:
        """Draw it below the neck; the place of its lower edge."""
        skeleton, layers = self.skeleton, self.layers["head"]
        classes = self.architecture.num_classes
        if skeleton.layout.pooled:
            before = [("RPN, RoIAlign", f"{skeleton.proposals_test} proposals in testing, 7 × 7 maps of each")]
            after = [
                (f"fc {skeleton.head_fc}", "fully connected layer"),
                ("class, box", f"scores of {classes} classes and background, a box for each class"),
            ]
            rows = [(before, layers, after)]
        else:
            depth = skeleton.head_blocks
            level = [("each level", "the towers are shared by all levels, with batch-norm statistics of their own")]
            rows = [
                (level, layers[:depth], [("conv 3×3: class", f"scores of {classes} classes for each anchor")]),
                (level, layers[depth:], [("conv 3×3: box", "a box for each anchor")]),
            ]
        y = top + TITLE + 8
        for index, (before, blocks, after) in enumerate(rows):
            place = y + index * (PITCH + 6)
            left = self._x(0) + BLOCK / 2
            self._arrow((left, top - PITCH - 6 if index == 0 else place - PITCH - 6 + HEIGHT), (left, place))
            column = 0
            for name, title in before:
                self._fixed(name, self._x(column), place, title)
                column += 1
            for layer in blocks:
                self._block(layer, self._x(column), place)
                column += 1
            for name, title in after:
                self._fixed(name, self._x(column), place, title)
                column += 1
            for number_ in range(1, column):
                x = self._x(number_)
                self._arrow((x - GAP, place + HEIGHT / 2), (x, place + HEIGHT / 2))
        return y + len(rows) * (PITCH + 6) - 8

    def _block(self, layer: SearchedLayer, x: float, y: float) -> None:
        name = self.sample[layer.label]
        operator, cost = parse_operator(name), self.costs[layer.label]
        stride = f", stride {layer.stride}" if layer.stride > 1 else ""
        title = (
            f"{layer.label}: {name}, {layer.in_channels} to {layer.out_channels} channels{stride}, "
            f"{number(cost.params_m)} M parameters, {number(cost.gflops)} GFLOPs"
        )
        self._box(block_text(operator), x, y, title, f"block fam-{operator.family}")

    def _fixed(self, name: str, x: float, y: float, title: str) -> None:
        self._box(name, x, y, f"not searched: {title}", "block fixed")

    def _box(self, name: str, x: float, y: float, title: str, class_: str) -> None:
        self.parts.append(
            svg.element(
                "g",
                svg.element("title", title),
                svg.element("rect", x=x, y=y, width=BLOCK, height=HEIGHT, rx=5),
                svg.text(name, x + BLOCK / 2, y + HEIGHT / 2 + 4, anchor="middle"),
                class_=class_,
            )
        )

    def _sum(self, x: float, y: float) -> None:
        circle = svg.element("circle", cx=x, cy=y, r=SUM, class_="sum")
        cross = svg.element("path", d=f"M{x - 4:.1f} {y:.1f}h8m-4 -4v8", class_="flow-line")
        self.parts.append(circle + cross)

    def _arrow(self, *points: tuple[float, float]) -> None:
        positions = " ".join(f"{svg.plain(float(x))},{svg.plain(float(y))}" for x, y in points)
        self.arrows.append(svg.element("polyline", points=positions, class_="flow", marker_end="url(#arrowhead)"))


def _arrowhead() -> Markup:
    path = svg.element("path", d="M0 0L8 4L0 8z", class_="arrowhead")
    marker = svg.element(
        "marker", path, id="arrowhead", viewBox="0 0 8 8", refX=8, refY=4, markerWidth=6, markerHeight=6, orient="auto"
    )
    return svg.element("defs", marker)
