"""What is in a run folder."""

from cnnlab.data.facts import DataFacts

DATA = DataFacts(
    class_names=("a", "b"),
    image_shape=(8, 8, 3),
    mean=(1.0, 1.0, 1.0),
    std=(2.0, 2.0, 2.0),
    class_counts=(3, 4),
    digest="abc",
    counts={},
)


def events(folder):
    """(tag, step, value) of every scalar, from the files' TFRecords: length, its check, content,
    its check.
    """
    from tensorboardX.proto import event_pb2

    found = []
    for file in sorted((folder / "tensorboard").iterdir()):
        content = file.read_bytes()
        while content:
            size = int.from_bytes(content[:8], "little")
            event = event_pb2.Event.FromString(content[12 : 12 + size])
            found += [(v.tag, event.step, v.simple_value) for v in event.summary.value]
            content = content[16 + size :]
    return found
