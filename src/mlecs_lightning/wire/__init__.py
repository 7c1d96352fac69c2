"""What clients and the server exchange: messages, schemas, and the channel that checks them."""

from mlecs_lightning.wire.channel import Channel, MessageLimits
from mlecs_lightning.wire.codec import DWC, Codec
from mlecs_lightning.wire.encoding import ChannelError
from mlecs_lightning.wire.messages import Message, ScalarField, Schema, TensorField

__all__ = [
    "DWC",
    "Channel",
    "ChannelError",
    "Codec",
    "Message",
    "MessageLimits",
    "ScalarField",
    "Schema",
    "TensorField",
]
