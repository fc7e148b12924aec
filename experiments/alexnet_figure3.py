"""AlexNet's columns divide colour among themselves: column 1 learns grey kernels, column 2 colours (figure 3).

    python -m experiments.alexnet_figure3 --data_dir=TFDS --budget=0.05
    python -m experiments.alexnet_figure3 --workdir=runs/alexnet
    python -m experiments.alexnet_figure3 --weights=resnet50.h5 --weights_format=keras --model=resnet:50

Krizhevsky et al. 2012, section 6.1 and figure 3: of the 96 kernels of the first convolution those of one column are
"largely color-agnostic", those of the other "largely color-specific", in every run, whichever column takes which part.
The paper gives no number. Here the colour of a kernel is the share of its energy at right angles to grey
(alexnet_resnet/analysis/kernels.py), and the columns are compared by their medians, by the probability that a kernel of
the second is the more colourful, and by a permutation test in both directions.

Without a network named, AlexNet as run is trained for the --budget. Another one may be drawn below it, by
--second_workdir, or --second_weights, --second_weights_format and --second_model. A network of one column, as every one
but AlexNet, has nothing to compare, and says so.
"""

from alexnet_resnet.errors import UserError
from experiments.study import Conclusion, Outcome, Row, Settings, Study, command, networks
from experiments.study.networks import Named

SECOND = "second_"
CLAIMS = {1: "the paper: colour-agnostic", 2: "the paper: colour-specific"}
COLUMN, COMPARED = "column {} of {}", "column 2 against column 1 of {}"
MEDIAN, DIFFERENCE = "median colour share", "difference of medians"
PROBABILITY, P_VALUE = "probability of more colour", "p-value (permutation)"


def check(options) -> None:
    networks.check(options)
    networks.check(options, SECOND)


def check_settings(settings: Settings) -> None:
    """Refuses networks whose kernels have no colours."""
    for prefix in ("", SECOND):
        config = networks.config_of(settings, prefix)
        if config is not None and config.data.channels != 3:
            where = settings.options[f"{prefix}workdir"]
            field = f"--{prefix}workdir={where!r}" if where else "--set=data.channels"
            raise UserError(f"{field}: expected a network of RGB pictures, found {config.data.channels} channel(s).")


def first_layer(named: Named) -> str:
    """The name of the convolution that sees the picture."""
    params = named.classifier.params
    name = next((name for name in named.classifier.activation_shapes if name in params), "")
    if named.classifier.channels != 3 or not name:
        raise UserError(f"{named.title}: expected a network whose first layer is a convolution of RGB pictures.")
    return name


def rows_of(named: Named | None, kernel, seed: int) -> list[Row]:
    """The paper's claim in numbers, and the one median where there is one column."""
    from alexnet_resnet.analysis import kernels

    title, columns = (named.title, named.classifier.columns) if named else (networks.OWN.label, 2)
    common = dict(budget=named.budget if named else "", digits=3)
    described, pairs = (), ()
    if named:
        shares = kernels.chromatic_share(kernel)
        described, pairs = kernels.describe(shares, columns), kernels.compare(shares, columns, seed=seed)
    if columns == 1:
        (one,) = described
        note = f"one column of {one.kernels} kernels: nothing to compare"
        return [Row(f"all kernels of {title}", MEDIAN, None, one.median, note=note, **common)]
    rows = [
        Row(COLUMN.format(number, title), MEDIAN, None, described[number - 1].median if described else None,
            note=CLAIMS.get(number, "") if columns == 2 else "", **common)
        for number in range(1, columns + 1)
    ]  # fmt: skip
    if not pairs:
        return rows + [Row(COMPARED.format(title), what, **common) for what in (DIFFERENCE, PROBABILITY, P_VALUE)]
    for pair in pairs:
        what = f"column {pair.second} against column {pair.first} of {title}"
        rows += [
            Row(what, DIFFERENCE, None, pair.median_difference, **common),
            Row(what, PROBABILITY, None, pair.probability, note="0.5: alike; 0 or 1: apart", **common),
            Row(what, P_VALUE, None, pair.p_value, note=f"least possible {1 / (1 + kernels.PERMUTATIONS):.1g}",
                **common | dict(digits=4)),
        ]  # fmt: skip
    return rows


def conclude(outcome: Outcome, folder: str) -> Conclusion:
    from alexnet_resnet.analysis import kernels
    from experiments.study import figures

    seed, found = outcome.settings.seed, []
    for prefix in ("", SECOND):
        if named := networks.load(outcome, prefix):
            found.append((named, kernels.of(named.classifier, first_layer(named))))
    rows = [row for named, kernel in found for row in rows_of(named, kernel, seed)]
    if not any(named.classifier.columns == 2 for named, _ in found):
        # The claim is about two columns, and stands in the table whatever was looked at.
        rows = rows_of(None, None, seed) + rows
    if not found:
        return Conclusion(rows)
    from matplotlib.figure import Figure

    sizes = [kernels.size(kernel, named.classifier.columns) for named, kernel in found]
    heights = [height for _, height in sizes]
    figure = Figure(figsize=(max(width for width, _ in sizes), sum(heights)), layout="constrained")
    parts = figure.subfigures(len(found), 1, squeeze=False, height_ratios=heights)[:, 0]
    for part, (named, kernel) in zip(parts, found, strict=True):
        title = f"{named.title}: the {kernel.shape[-1]} kernels of {first_layer(named)}"
        title += ", one column" * (named.classifier.columns == 1)
        kernels.draw_in(part, kernel, named.classifier.columns, title, seed=seed)
    return Conclusion(rows, [figures.save(figure, folder, "figure3.png")])


STUDY = Study(
    name="alexnet_figure3",
    title="The kernels of the first convolution, and how AlexNet's columns divide colour among themselves",
    source="Krizhevsky et al. 2012, figure 3 and section 6.1",
    runs=networks.runs,
    conclude=conclude,
    options=networks.options() | networks.options(SECOND, "a network drawn below"),
    check=check,
    check_settings=check_settings,
)

if __name__ == "__main__":
    command.main(STUDY)
