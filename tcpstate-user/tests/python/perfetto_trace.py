"""Reads a trace with the classes that Perfetto's own package has for its format, and says what is in it.

Usage: perfetto_trace.py TRACE. Prints one JSON object: the tracks with their slices, and what is wrong with them.
"""

import json
import sys
from collections import defaultdict

from google.protobuf.unknown_fields import UnknownFieldSet
from perfetto.protos.perfetto.trace import perfetto_trace_pb2 as schema

MONOTONIC, BOOTTIME, REALTIME = 3, 6, 1


def unknown(message):
    """Whether there is a field in it that the format does not have."""
    if len(UnknownFieldSet(message)):
        return True
    for field, content in message.ListFields():
        if field.message_type is not None:
            if any(unknown(part) for part in (content if field.is_repeated else [content])):
                return True
    return False


def value(annotation, names):
    if annotation.dict_entries:
        return {names[entry.name_iid]: value(entry, names) for entry in annotation.dict_entries}
    if annotation.array_values:
        return [value(entry, names) for entry in annotation.array_values]
    return getattr(annotation, annotation.WhichOneof("value"))


def read(path):
    trace = schema.Trace()
    with open(path, "rb") as file:
        trace.ParseFromString(file.read())
    wrong, clocks, tracks, events = [], {}, {}, defaultdict(list)
    event_names, annotation_names = {}, {}
    cleared = default_clock = None
    for packet in trace.packet:
        if unknown(packet):
            wrong.append("a packet has fields that the format does not have")
        if packet.trusted_packet_sequence_id != 1:
            wrong.append("a packet of another sequence")
        if packet.sequence_flags & packet.SEQ_INCREMENTAL_STATE_CLEARED:
            cleared = True
            default_clock = packet.trace_packet_defaults.timestamp_clock_id
        for clock in packet.clock_snapshot.clocks:
            clocks[clock.clock_id] = clock.timestamp
        # Names come with, or before, the packet that uses them.
        for name in packet.interned_data.event_names:
            event_names[name.iid] = name.name
        for name in packet.interned_data.debug_annotation_names:
            annotation_names[name.iid] = name.name
        if packet.HasField("track_descriptor"):
            track = packet.track_descriptor
            if track.uuid in tracks:
                wrong.append(f"track {track.uuid} is there twice")
            tracks[track.uuid] = track
        if packet.HasField("track_event"):
            if not cleared or not packet.sequence_flags & packet.SEQ_NEEDS_INCREMENTAL_STATE:
                wrong.append("an event without the state it needs")
            event = packet.track_event
            if event.track_uuid not in tracks:
                wrong.append(f"an event before its track {event.track_uuid}")
            about = {
                annotation_names[annotation.name_iid]: value(annotation, annotation_names)
                for annotation in event.debug_annotations
            }
            name = event_names[event.name_iid] if event.name_iid else None
            events[event.track_uuid].append((packet.timestamp, event.type, name, about))
    if default_clock != MONOTONIC:
        wrong.append("times are not those of the monotonic clock")
    result = [describe(uuid, track, tracks, events[uuid], wrong) for uuid, track in tracks.items()]
    return {"wrong": wrong, "clocks": {str(id): time for id, time in clocks.items()}, "tracks": result}


def describe(uuid, track, tracks, events, wrong):
    """Slices as the trace processor makes them: events in the order of their times, and of the file where those are equal."""
    kinds = schema.TrackEvent
    slices, instants, open_slices = [], [], []
    for time, kind, name, about in sorted(events, key=lambda event: event[0]):
        if kind == kinds.TYPE_INSTANT:
            instants.append({"name": name, "time": time, "about": about})
        elif kind == kinds.TYPE_SLICE_BEGIN:
            here = {"name": name, "begin": time, "end": None, "depth": len(open_slices), "about": about}
            slices.append(here)
            open_slices.append(here)
        elif kind == kinds.TYPE_SLICE_END and open_slices:
            open_slices.pop()["end"] = time
        else:
            wrong.append(f"track {uuid}: an end without a beginning, or no event at all")
    if open_slices:
        wrong.append(f"track {uuid}: a beginning without an end")
    for depth in (0, 1):
        row = [here for here in slices if here["depth"] == depth]
        for before, after in zip(row, row[1:]):
            if before["end"] is None or before["end"] > after["begin"]:
                wrong.append(f"track {uuid}: slices overlap")
    parent = track.parent_uuid
    if parent and parent not in tracks:
        wrong.append(f"track {uuid}: it has no parent")
    process = None
    if track.HasField("process"):
        process = {"pid": track.process.pid, "name": track.process.process_name}
    return {
        "uuid": uuid,
        "parent": parent,
        "name": track.name,
        "process": process,
        "slices": slices,
        "instants": instants,
    }


if __name__ == "__main__":
    json.dump(read(sys.argv[1]), sys.stdout)
