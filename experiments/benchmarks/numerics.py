"""This device computes what NumPy in float64 and JAX on the processor compute, to stated tolerances.

    python -m experiments.benchmarks.numerics --out=results/numerics

A check to run before anything else on a device: the table names what was compared, with what, the largest difference
and the tolerance; the exit status is 1 if one is beyond it. Written to numerics.txt and .json. Two minutes and a half
of processor time on a CPU, most of it the compiler's; on a GPU not measured yet.

A difference is the largest absolute one, as a share of the reference's largest absolute value; 0 is asked of what has
to be equal: the draws of dropout, crops and flips, and values that are only moved. Arithmetic is compared with formulas
written in NumPy here, in float64; whole training steps (batches made on the device, loss, gradient, optimizer) with
those of JAX's CPU backend in float32: the first loss, what the first step changes of the parameters, and the loss of
the fifth step. On a processor these compare a program with itself.

Precisions: 'highest' multiplies in float32; 'default' is what training has, on NVIDIA's GPUs TF32 with 10 bits of
mantissa; 'bfloat16' has 8 bits.
"""

from experiments.benchmarks import command
from experiments.benchmarks.command import Benchmark


def measure() -> dict:
    """All comparisons."""
    from experiments.benchmarks import numerics_operations, numerics_steps

    rows = []
    for part in (numerics_operations, numerics_steps):
        for row in part.comparisons(command.QUICK.value):
            command.say(line(row))
            rows.append(row)
    return dict(rows=rows, beyond=sum(not row["holds"] for row in rows))


def line(row: dict) -> str:
    """A row of the table."""
    figures = f"{row['difference']:>11.1e}{row['tolerance']:>11.1e}{'' if row['holds'] else '  BEYOND'}"
    return f"{row['what']:<54}{row['precision']:<10}{row['against']:<20}{figures}"


def table(result: dict) -> str:
    """The result as text."""
    heading = f"{'what':<54}{'precision':<10}{'against':<20}{'difference':>11}{'tolerance':>11}"
    rows, beyond = len(result["rows"]), result["beyond"]
    last = f"{beyond} of {rows} comparisons are beyond their tolerance" if beyond else f"all {rows} comparisons hold"
    return "\n".join([heading, *map(line, result["rows"]), "", last])


def status(result: dict) -> int:
    """1 if a comparison is beyond its tolerance."""
    return int(result["beyond"] > 0)


BENCHMARK = Benchmark("numerics", measure, table, status=status)

if __name__ == "__main__":
    command.main(BENCHMARK)
