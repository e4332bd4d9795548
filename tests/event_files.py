"""TensorBoard's event files, read by their format alone."""

import struct

from tensorboardX.proto.event_pb2 import Event


def events(folder):
    """What an event file holds: {(tag, step): value or image}. Records are framed by length and two checksums."""
    found = {}
    for path in folder.glob("events*"):
        content = path.read_bytes()
        while content:
            (length,) = struct.unpack("<Q", content[:8])
            event, content = Event.FromString(content[12 : 12 + length]), content[16 + length :]
            for each in event.summary.value:
                is_image = each.WhichOneof("value") == "image"
                found[each.tag, event.step] = each.image if is_image else each.simple_value
    return found
