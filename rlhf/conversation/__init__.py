"""Message, Conversation, and the ONE renderer: chat template -> ids, loss mask. Nobody else turns text into ids.

    messages    what a conversation is, its check, and thoughts in an answer
    template    chat templates as text: Llama 2's own, and what is written into one (`chat_template_kwargs`)
    writing     what a template writes around messages, learnt by probes, and one round trip
    pieces      texts in pieces -> ids, a piece by itself
    shortening  what a limit does not hold: the oldest turns, then text
    renderer    conversations -> ids and loss masks

Light: no torch, no transformers at import.
"""

from rlhf.conversation.empty_answers import decided, says_nothing
from rlhf.conversation.messages import (
    Conversation,
    Message,
    check_characters,
    check_conversation,
    split_thoughts,
    with_thoughts,
    without_thoughts,
)
from rlhf.conversation.renderer import Renderer
from rlhf.conversation.shortening import Rendered, TooLongError
from rlhf.conversation.template import LLAMA2_CHAT_TEMPLATE, give_kwargs, given_kwargs, read_chat_template
from rlhf.conversation.writing import apply_kwargs

__all__ = [
    "LLAMA2_CHAT_TEMPLATE",
    "Conversation",
    "Message",
    "Rendered",
    "Renderer",
    "TooLongError",
    "apply_kwargs",
    "check_characters",
    "check_conversation",
    "decided",
    "give_kwargs",
    "given_kwargs",
    "read_chat_template",
    "says_nothing",
    "split_thoughts",
    "with_thoughts",
    "without_thoughts",
]
