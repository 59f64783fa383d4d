"""The prompts of the oracle on the demo model: mixed lengths, chats and raw text, shared prefixes, code, many scripts.

Order and wording are part of the recorded data: a change here means running make_oracle.py again.
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Prompt:
    """One prompt: raw `text`, or `messages` of a chat as (role, content), rendered with the model's own template. With
    `num_tokens` the text is cut to so many."""

    name: str
    text: str = ""
    messages: tuple[tuple[str, str], ...] = ()
    num_tokens: int = 0


_HARBOUR = """The harbour of Kestrel Bay was built in three stages. The first stage, finished in 1841, was a
single stone pier of two hundred metres with a lamp at its end. Fishermen paid a penny for each basket they
landed, and the money went into a box that only the harbour master and the parish clerk could open together. The
second stage followed the great storm of 1872, when eleven boats were lost in one night although they lay at
anchor. A breakwater of granite blocks was laid from the northern cliff, each block weighing nine tons, and the
work took fourteen summers because nobody could work on it in winter. The third stage came with the railway in
1903. A branch line ended on the pier itself, so that herring caught at dawn were sold in the capital before
noon. A crane driven by steam lifted the barrels, and a clerk with a telegraph told the merchants what was on
its way. Today the rails are gone, the crane is a museum piece, and the lamp has become a small white lighthouse
that is lit for visitors on the last Saturday of every month. The breakwater still stands as it was built.
"""

_RULES = """You are the assistant of a small public library. Answer briefly and politely. Follow these rules.
One: books may be kept for three weeks, and once extended for two more, unless another reader waits for them.
Two: films and games may be kept for one week and never extended. Three: each late day costs ten cents for a
book and fifty cents for a film, and nobody pays more than ten euros. Four: children below twelve years pay
nothing. Five: a lost card costs five euros. Six: the library is open from ten to six on working days and from
ten to one on Saturdays; it is closed on Sundays and in the last week of December. Seven: readers may reserve up
to four items at once, at no charge, and are told by mail when an item has come in. Eight: the reading room has
twelve seats with power sockets, and food is not allowed there, though water is. If a question has nothing to do
with the library, say so in one sentence and offer to help with the library instead."""

_CODE = '''def merge_sorted(left: list[int], right: list[int]) -> list[int]:
    """Merge two sorted lists into one sorted list."""
    merged = []
    i = j = 0
    while i < len(left) and j < len(right):
        if left[i] <= right[j]:
            merged.append(left[i])
            i += 1
        else:
            merged.append(right[j])
            j += 1
    merged.extend(left[i:])
'''

_LETTERS = """Dear Ada, the parcel came on Tuesday and the children opened it before I could read your note.
Number {n}: the garden is dry, the well is low, and the bees have moved to the old pear tree behind the barn.
Your brother asks whether you still have the map of the northern trail, the one with the red pencil marks,
because he wants to walk it in the autumn with two friends from the mill. I told him that maps are like
umbrellas: they belong to whoever holds them when it rains.
"""


def _chat(name: str, question: str, system: str | None = None) -> Prompt:
    head = () if system is None else (("system", system),)
    return Prompt(name, messages=(*head, ("user", question)))


PROMPTS = (
    Prompt("one_word", text="Once"),
    Prompt("few_words", text="The capital of France is"),
    Prompt("counting", text="1, 2, 3, 4, 5, 6,"),
    _chat("chat_capital", "What is the capital of France?"),
    _chat("chat_greeting", "Hi!"),
    _chat("chat_haiku", "Write a haiku about an empty railway station in winter."),
    _chat(
        "chat_arithmetic", "I have three boxes with twelve eggs each and I break five eggs. How many are left? Explain."
    ),
    _chat("chat_german", "Erkläre einem Kind in zwei Sätzen, warum der Himmel blau ist."),
    Prompt(
        "scripts",
        text="Good morning. Bonjour à tous. Доброе утро. Καλημέρα. 早上好。おはようございます。 صباح الخير. नमस्ते।",
    ),
    Prompt("emoji", text="🎉🚀 Party plan: 🍕 × 3, 🥤 × 6, 🎂 × 1 → total €47.50 — “don’t be late!” 👩‍👩‍👧‍👦 ✅\n\n🗓️"),
    Prompt("code_python", text=_CODE),
    Prompt(
        "code_json", text='{"users": [{"id": 1, "name": "Ann", "tags": ["a", "b"]}, {"id": 2, "name": "Bo", "tags": ['
    ),
    Prompt("whitespace", text="A\n\n\n  B\n\t\tC   D\n\n    - item one\n    - item two\n    -"),
    Prompt("harbour_end", text=_HARBOUR),
    Prompt("harbour_question", text=_HARBOUR + "\nQuestion: Why was the breakwater built?\nAnswer:"),
    Prompt("harbour_other", text=_HARBOUR + "\nQuestion: What did the railway change?\nAnswer:"),
    _chat("library_late", "My daughter is nine and her book is eight days late. What do we owe?", system=_RULES),
    _chat("library_hours", "Are you open on Saturday afternoon?", system=_RULES),
    Prompt("letters", text="".join(_LETTERS.format(n=number) for number in range(1, 7))),
    Prompt(
        "long_chat",
        messages=(
            ("system", _RULES),
            ("user", "I found this text in the reading room:\n" + _HARBOUR),
            ("assistant", "Thank you, I will put it back. How can I help you with the library?"),
            ("user", "Please sum the text up in one sentence."),
        ),
    ),
)

_STORY = _HARBOUR + _RULES + "\n" + "".join(_LETTERS.format(n=number) for number in range(1, 30))
BASE_PROMPTS = (
    *(prompt for prompt in PROMPTS if prompt.text and not prompt.name.startswith("harbour")),
    Prompt("harbour_question", text=_HARBOUR + "\nQuestion: Why was the breakwater built?\nAnswer:"),
    Prompt("cut_700", text=_STORY, num_tokens=700),
    Prompt("cut_2000", text=_STORY, num_tokens=2000),
)
"""For a model without a chat template, whose window the last two cross."""
