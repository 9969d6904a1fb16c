"""What a run measured, as Markdown: bench/RESULTS.md."""

import os
import platform
import statistics
import time

import aims

HEAD = """# Whole commands, measured side by side

Written by `bench/run --scale full`; what each command does and how it is measured stands in `bench/compare.py` and
the files beside it. One run, the tools in turn in each round; what is shown is the median. Wall times on a small
machine are noisy: differences below a quarter mean nothing; CPU is steadier. CPU is that of the command's processes
and of what the server did meanwhile.
"""
HEAD_OF_AIMS = """What we aim at, as ratios to the peers in this run (`bench/aims.py` holds the figures; memory and
requests are absolute). *Missed: bound named* is what [bounds.md](bounds.md) explains, with a profile; *off by less than
the noise* is a wall time that is within a quarter of the aim. The run ends with 1 if anything else is not met. Barman
is not measured here.
"""


def percentile(values, share):
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, round(share * (len(ordered) - 1)))]


def table(head, rows):
    lines = ["| " + " | ".join(head) + " |", "|" + " --- |" * len(head)]
    return lines + ["| " + " | ".join(row) + " |" for row in rows] + [""]


def memory_gb():
    with open("/proc/meminfo") as lines:
        return int(lines.readline().split()[1]) / 1e6


def figure(value):
    return f"{value:.4f}" if value < 0.2 else f"{value:.2f}"


def aims_section(judgements, rows, names, judged):
    lines = ["## Aims", "", HEAD_OF_AIMS]
    if not judged:
        lines += ["**This is not the scale that the aims are for: the verdicts are for orientation, and do not end the "
                  "run with 1.**", ""]
    body = []
    for each in judgements:
        decimals = 2 if each.peer else (1 if each.aim.what == aims.RSS else 0)
        reached = "-" if each.reached is None else f"{each.reached:.{max(decimals, 1)}f}"
        body.append([each.aim.row.format(**rows), each.aim.what, names.get(each.peer, each.peer) or "(absolute)",
                     f"<= {each.allowed:.{decimals}f}", reached, each.verdict])
    lines += table(["row", "measure", "peer", "aim", "reached", ""], body)
    told = {each.bound.key: each.bound for each in judgements if each.bound and not each.met}
    for key, bound in told.items():
        lines += [f"- {key}: {bound.cause}"]
    return lines + ([""] if told else [])


def row_table(found, row, by_tool):
    ours = by_tool.get("pgproof")
    ours_s = statistics.median(cost.wall_s for cost in ours) if ours else None
    sampled = any(cost.peak_rss_mb for costs in by_tool.values() for cost in costs)
    head = ["tool", "runs", "wall s (median)", "p95", "CPU s (median)", "time of it / time of pgproof"]
    body = []
    for key in [key for key in found.names if key in by_tool]:
        costs = by_tool[key]
        wall = [cost.wall_s for cost in costs]
        cpu = [cost.cpu_s for cost in costs if cost.cpu_s is not None]
        median = statistics.median(wall)
        body.append([found.names[key], str(len(costs)), figure(median), figure(percentile(wall, 0.95)),
                     f"{statistics.median(cpu):.2f}" if cpu else "-", f"{median / ours_s:.2f}" if ours_s else "-"])
        if sampled:
            body[-1].append(f"{max(cost.peak_rss_mb for cost in costs):.0f}")
    return [f"## {row}", ""] + table(head + (["peak RSS of the tree, MB"] if sampled else []), body)


def markdown(bench, load_before, judgements, rows, judged):
    found = bench.measurements
    lines = [HEAD]
    kernel = platform.release().split("-")[0]
    lines += [f"Machine: {os.cpu_count()} cores, {memory_gb():.0f} GB of memory, Linux {kernel}, "
              f"load {load_before:.2f} before the run. {time.strftime('%Y-%m-%d', time.gmtime())}. "
              f"The run took {bench.minutes():.0f} minutes.", ""]
    if load_before > 0.5:
        lines += ["**The machine was not idle: only ratios within a row say anything.**", ""]
    lines += table(["tool", "version"], [[found.names[key], version] for key, version in bench.versions.items()])
    lines += [f"- {note}" for note in bench.notes] + [""]
    lines += aims_section(judgements, rows, found.names, judged)
    for row, by_tool in sorted(found.rows.items(), key=lambda item: "(" in item[0]):
        lines += row_table(found, row, by_tool)
    lines += ["## Sizes", ""]
    lines += table(["what", "tool", "MB (median)"], [
        [row, found.names[key], f"{statistics.median(by_tool[key]):.1f}"]
        for row, by_tool in found.sizes_mb.items() for key in found.names if key in by_tool])
    if found.requests:
        lines += ["## Requests to S3", "", "Counted in the log of the server (moto), for each segment of WAL.", ""]
        lines += table(["what", "tool", "requests"], [
            [row, found.names[key], f"{statistics.median(by_tool[key]):.2f}"]
            for row, by_tool in found.requests.items() for key in found.names if key in by_tool])
    lines += ["## Commands", "", "Paths below the scratch folder are shown as `$S`.", ""]
    for row, by_tool in bench.commands.items():
        lines.append(f"- {row}:")
        lines += [f"  - {found.names[key]}: `{shown(command, bench)}`" for key, command in by_tool.items()]
    lines += [""]
    if found.failures:
        lines += ["## Failures", "", "A command that failed is in no figure above.", ""]
        lines += [f"- {row}, {name}: `{shown(error, bench)}`" for row, name, error in found.failures] + [""]
    return "\n".join(lines)


def shown(text, bench):
    return text.replace(bench.scratch, "$S").replace(bench.arguments.postgresql + "/", "")
