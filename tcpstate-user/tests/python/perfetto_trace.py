"""Opens a trace with Perfetto's trace processor, and says what it has found in it.

Usage: perfetto_trace.py TRACE [SQL]. Prints one JSON object, or the rows that answer the question.
"""

import json
import re
import sys
from collections import defaultdict

from trace_processor import InProcess

WRONG = """
select name, value from stats where severity in ('error', 'data_loss') and value > 0
"""
# What a track is below, and how the tracks there are sorted.
TRACKS = """
select track.id, track.name, above.name as above, process.pid, process.name as process,
       extract_arg(above.source_arg_set_id, 'child_ordering') as ordering
from track left join track as above on above.id = track.parent_id
           left join process_track on process_track.id = track.id left join process using (upid)
"""
SLICES = """
select id, parent_id, track_id, name, depth, ts, dur, to_realtime(ts) as time, to_realtime(ts + dur) as until, arg_set_id
from slice order by id
"""
ARGUMENTS = """
select arg_set_id, key, value_type, int_value, string_value, real_value from args order by id
"""


def rows(processor, question):
    return [vars(row) for row in processor.query(question)]


def value(argument):
    match argument["value_type"]:
        case "string":
            return argument["string_value"]
        case "real":
            return argument["real_value"]
        case "bool":
            return bool(argument["int_value"])
        case "uint":
            # SQL knows no unsigned numbers.
            return argument["int_value"] % (1 << 64)
        case _:
            return argument["int_value"]


def annotations(processor):
    """What is known of slices: `debug.a.b` and `debug.c[0]` are objects and lists again."""
    sets = defaultdict(dict)
    for argument in rows(processor, ARGUMENTS):
        path = [int(part) if part.isdigit() else part for part in re.findall(r"[^.\[\]]+", argument["key"])]
        here = sets[argument["arg_set_id"]]
        for part, below in zip(path, path[1:]):
            empty = [] if isinstance(below, int) else {}
            if isinstance(here, list) and part == len(here):
                here.append(empty)
            here = here[part] if isinstance(here, list) else here.setdefault(part, empty)
        if isinstance(here, list):
            here.append(value(argument))
        else:
            here[path[-1]] = value(argument)
    return sets


def read(processor):
    tracks = {track["id"]: track for track in rows(processor, TRACKS)}
    known = annotations(processor)
    slices, outermost = {}, []
    for here in rows(processor, SLICES):
        about = known[here.pop("arg_set_id")]
        here |= {"about": about.get("debug", {}), "colour": about.get("correlation_id"), "slices": []}
        slices[here["id"]] = here
        above = slices.get(here["parent_id"])
        (above["slices"] if above else outermost).append(here)
        here["track"] = tracks[here["track_id"]]
    return {"wrong": rows(processor, WRONG), "slices": outermost}


if __name__ == "__main__":
    with InProcess(sys.argv[1]) as processor:
        json.dump(rows(processor, sys.argv[2]) if sys.argv[2:] else read(processor), sys.stdout)
